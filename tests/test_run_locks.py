"""One writer per run folder: every verb that writes one holds the lock beside it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config, train_tiny

import inat
from inat.core.errors import WorldError
from inat.runs.folds import fold_path
from inat.runs.run import Run, writing
from inat.training import folds as folds_module
from inat.training import loop


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world: Path) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    return [train_tiny(folder / f"seed{seed}", world, seed=seed) for seed in range(2)]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def train_folds(runs: list[Run], out: Path) -> None:
    inat.train_folds(tiny_config(**{"data.root": runs[0].config.data.root}), 2, out, overwrite=True)


WRITERS: dict[str, Callable[[list[Run], Path], object]] = {
    "train": lambda runs, out: inat.train(runs[0].config, out, overwrite=True),
    "folds": train_folds,
    "soup": lambda runs, out: inat.soup([run.path for run in runs], out, overwrite=True),
    "stage-two": lambda runs, out: inat.train_stage_two(
        runs[0].path, out, method="ncm", overwrite=True
    ),
}


@pytest.mark.parametrize("verb", WRITERS)
@pytest.mark.parametrize("linked", [False, True])
def test_no_verb_writes_a_run_that_another_process_writes(
    runs: list[Run], tmp_path: Path, verb: str, linked: bool
) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs[1].path, out)
    before, place = content(out), out
    if linked:
        place = tmp_path / "link"
        place.symlink_to(out)
    with writing(out), pytest.raises(WorldError) as caught:
        WRITERS[verb](runs, place)
    assert str(caught.value).startswith(f"{place}: another process writes there; wait for it")
    assert content(out) == before


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, runs: list[Run]) -> Path:
    path = tmp_path_factory.mktemp("folds") / "f"
    train_folds(runs, path)
    return path


def test_a_call_for_folds_holds_their_folder_to_its_end(
    folds: Path, runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    shutil.copytree(folds, path)
    shutil.rmtree(fold_path(path, 2))
    train, tried = folds_module.train, []

    def second(*arguments: Any, **options: Any) -> Run:
        with pytest.raises(WorldError, match="another process writes there"):
            train_folds(runs, path)
        tried.append(arguments)
        return train(*arguments, **options)

    monkeypatch.setattr("inat.training.folds.train", second)
    inat.train_folds(tiny_config(**{"data.root": runs[0].config.data.root}), 2, path)
    assert len(tried) == 2
    assert len(inat.open_folds(path).runs) == 2


def test_folds_one_of_which_is_trained_by_another_process_are_not_thrown_away(
    folds: Path, runs: list[Run]
) -> None:
    before = content(folds)
    with writing(fold_path(folds, 2)), pytest.raises(WorldError) as caught:
        train_folds(runs, folds)
    assert str(caught.value).startswith(f"{fold_path(folds, 2)}: another process writes there")
    assert content(folds) == before


@pytest.mark.parametrize("moved", [True, False], ids=["replaced", "removed"])
def test_a_training_whose_folder_is_no_longer_its_own_writes_no_checkpoint(
    runs: list[Run],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moved: bool,
) -> None:
    path, taken = tmp_path / "run", loop.take_step

    def replaced(trainer: Any, batches: Any, state: Any) -> Any:
        if state.step == 2:
            shutil.rmtree(path)
            if moved:
                shutil.copytree(runs[1].path, path)
        return taken(trainer, batches, state)

    monkeypatch.setattr(loop, "take_step", replaced)
    with pytest.raises(WorldError) as caught:
        train_tiny(path, world)
    assert str(caught.value).startswith(f"{path}: the run folder was removed or replaced while")
    if moved:
        assert content(path) == content(runs[1].path)
    else:
        assert not path.exists()


def test_overwriting_a_linked_run_replaces_what_the_link_points_to(
    runs: list[Run], tmp_path: Path
) -> None:
    large, link = tmp_path / "large" / "run", tmp_path / "runs" / "run"
    shutil.copytree(runs[1].path, large)
    link.parent.mkdir()
    link.symlink_to(large)
    for verb in ("stage-two", "soup", "train"):
        before = content(large)
        WRITERS[verb](runs, link)
        assert link.is_symlink()
        assert content(large) != before
    assert Run(link).config.seed == 0
    assert [path.name for path in link.parent.iterdir()] == ["run"]
    assert {path.name for path in large.parent.iterdir()} == {"run", ".run.lock"}

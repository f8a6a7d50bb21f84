"""Whoever reads weights checks them, and pairs them with the facts that were written with them."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config, train_tiny, weights

import inat
from inat.core.errors import InputError
from inat.runs import checkpoints
from inat.runs import trained as trained_model
from inat.runs.checkpoints import find_checkpoint
from inat.runs.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    """Two epochs, so that `last` and `previous` differ."""
    folder = tmp_path_factory.mktemp("trained")
    return train_tiny(folder / "run", world, epochs=2, **{"optim.ema_decay": 0.9})


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained.path, tmp_path / "run"))


def put_another(run: Run) -> Path:
    """What a training does when it ends an epoch: another checkpoint takes the place of last."""
    last, aside = run.checkpoint("last"), run.checkpoint("last").with_name("aside")
    last.rename(aside)
    shutil.copytree(aside, last)
    file = last / "ema.safetensors"
    shutil.copy(last / "model.safetensors", file)
    state = (last / "state.json").read_bytes().replace(b'"epoch": 2', b'"epoch": 7')
    (last / "state.json").write_bytes(state)
    (last / "checksums.json").unlink()
    inat.core.files.write_checksums(last)
    return aside


def readers(run: Run, other: Run, out: Path) -> dict[str, Any]:
    return {
        "predict": lambda: inat.predict(run.path, "val"),
        "soup": lambda: inat.soup([other.path, run.path], out),
        "stage-two": lambda: inat.train_stage_two(run.path, out, method="crt"),
    }


@pytest.mark.parametrize("reader", ["predict", "soup", "stage-two"])
@pytest.mark.parametrize("name", ["ema.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_checkpoint_is_refused_by_all_who_read_weights(
    run: Run, trained: Run, world: Path, tmp_path: Path, reader: str, name: str, damage: str
) -> None:
    path = run.checkpoint("last") / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b" " * 8
    path.unlink()
    if damage == "changed":
        path.write_bytes(b"[]" if name == "checksums.json" else content)
    other = trained
    if reader == "soup":
        other = train_tiny(tmp_path / "other", world, seed=1, **{"optim.ema_decay": 0.9})
    with pytest.raises(InputError) as caught:
        readers(run, other, tmp_path / "out")[reader]()
    text = str(caught.value)
    assert name in text or "checksums.json" in text
    assert "damaged" in text or "not JSON" in text or "there is no such file" in text
    assert "\n" not in text
    assert not (tmp_path / "out").exists()
    assert not run.prediction("val").exists()


def test_a_checkpoint_of_more_bytes_than_weights_have_is_refused_before_it_is_read(
    run: Run,
) -> None:
    path = run.checkpoint("last") / "ema.safetensors"
    path.unlink()  # a link to that of best
    with path.open("wb") as file:
        file.truncate(100 * 2**30)
    with pytest.raises(InputError, match=r"ema\.safetensors: 107,374,182,400 bytes, more than"):
        find_checkpoint(run).load_weights()


def test_a_training_that_starts_from_a_run_s_damaged_weights_is_refused(
    run: Run, world: Path, tmp_path: Path
) -> None:
    path = run.checkpoint("last") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-8:] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        train_tiny(tmp_path / "out", world, **{"model.weights": str(path)})
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_replaced_while_it_is_opened_is_opened_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoints._open, []

    def slow(*arguments: Any) -> Any:
        calls.append(real(*arguments))
        if len(calls) == 1:
            put_another(run)
        return calls[-1]

    monkeypatch.setattr(checkpoints, "_open", slow)
    found = find_checkpoint(run)
    assert len(calls) == 2
    assert found.epoch == 7
    file = run.checkpoint("last") / "ema.safetensors"
    assert found.digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_weights_are_those_that_were_found_though_a_training_replaced_them(run: Run) -> None:
    found = find_checkpoint(run)
    before = {name: tensor.clone() for name, tensor in weights(run, kind="ema").items()}
    shutil.rmtree(put_another(run))
    loaded = found.load_weights()
    assert loaded.keys() == before.keys()
    assert all((loaded[name] == before[name]).all() for name in before)
    assert found.digest != find_checkpoint(run).digest


def test_a_prediction_beside_a_training_records_the_checkpoint_it_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = inat.predict(run.path, "val", name="before")
    load = trained_model.load_split

    def slow(*arguments: Any, **options: Any) -> Any:
        if run.checkpoint("last").with_name("aside").exists() is False:
            put_another(run)
        return load(*arguments, **options)

    monkeypatch.setattr(trained_model, "load_split", slow)
    found = inat.predict(run.path, "val", name="after")
    assert found.meta.checkpoint_sha256 == expected.meta.checkpoint_sha256
    assert found.meta.checkpoint_epoch == 2
    assert (found.logits == expected.logits).all()


def test_new_runs_of_soup_and_stage_two_have_checksums(run: Run, tmp_path: Path) -> None:
    made = inat.train_stage_two(run.path, tmp_path / "crt", method="crt", epochs=1, batch_size=8)
    assert tiny_config().digest != made.config.digest
    assert not inat.core.files.damaged_files(made.checkpoint("last"))
    file = made.checkpoint("last") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="damaged"):
        inat.predict(made.path, "val")

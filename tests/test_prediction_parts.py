"""Predictions in parts, killed and shared by processes: the same bytes however they were made."""

import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prediction_processes import content, finish, start
from safetensors.numpy import load_file
from tiny_runs import train_tiny
from worlds import make_world

import inat
from inat.core.errors import InputError, WorldError
from inat.core.files import read_json
from inat.dataset.split import load_split
from inat.loader import reader as reader_module
from inat.photos.sources import PhotoFiles
from inat.predictions import predict as predict_module
from inat.predictions import processes
from inat.predictions.parts import Parts, parts_folder
from inat.predictions.processes import Process, this_process, wait_until_none
from inat.runs.run import Run

SETTINGS = {"batch_size": 2, "data.holdout": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", world, **SETTINGS)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 8 images: two batches of 4 centre crops, one of 2 photos with 4 views."""
    monkeypatch.setattr(predict_module, "PART_IMAGES", 8)


def interrupted(run: Run, monkeypatch: pytest.MonkeyPatch, after: int, **options: Any) -> Path:
    """A prediction that is cut off when it is about to write part `after`."""
    write = Parts.write

    def cut_off(self: Parts, number: int, *part: Any) -> None:
        if number == after:
            raise KeyboardInterrupt
        write(self, number, *part)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            inat.predict(run.path, "train", **options)
    return parts_folder(run.prediction(options["name"]))


@pytest.fixture
def read_photos(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The photos that were read."""
    names: list[str] = []
    read = PhotoFiles.read

    def noted(self: PhotoFiles, index: int) -> bytes:
        names.append(self.path(index))
        return read(self, index)

    monkeypatch.setattr(PhotoFiles, "read", noted)
    yield names


@pytest.mark.parametrize("views", ["centre", "random:2+flip"])
@pytest.mark.usefixtures("small_parts")
def test_a_prediction_goes_on_after_its_last_whole_part_and_is_the_same(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    read_photos: list[str],
    views: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = inat.predict(run.path, "train", name=f"whole-{views}", views=views)
    assert len(read_photos) == len(set(read_photos)) == len(whole) == 43
    photos_a_part = 8 if views == "centre" else 2
    n_parts = -(-43 // photos_a_part)
    folder = interrupted(run, monkeypatch, 3, name=f"cut-{views}", views=views)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "000000.safetensors", "000001.safetensors", "000002.safetensors"
    ]  # fmt: skip
    read_photos.clear()
    capsys.readouterr()
    resumed = inat.predict(run.path, "train", name=f"cut-{views}", views=views)
    assert f"predict train: 3 of {n_parts} parts are there already\n" in capsys.readouterr().err
    split = load_split(run.config.data.root or Path())
    assert read_photos == [str(split.path(row)) for row in range(3 * photos_a_part, 43)]
    assert content(resumed.path) == content(whole.path)
    assert not folder.exists()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "other", [{"views": "flip"}, {"weights": "raw", "batch_size": 3}, {"checkpoint_changes": True}]
)
def test_parts_of_other_settings_are_not_gone_on_from(
    run: Run, monkeypatch: pytest.MonkeyPatch, read_photos: list[str], other: dict[str, Any]
) -> None:
    name = "other-" + "-".join(other)
    folder = interrupted(run, monkeypatch, 2, name=name)
    assert len(list(folder.glob("*.safetensors"))) == 2
    read_photos.clear()
    if other.pop("checkpoint_changes", False):
        monkeypatch.setattr(predict_module, "versions", lambda: {"torch": "another"})
    made = inat.predict(run.path, "train", name=name, **other)
    assert len(read_photos) == len(made) == 43
    assert not folder.exists()


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_part_is_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inat.predict(run.path, "train", name="undamaged")
    folder = interrupted(run, monkeypatch, 3, name="damaged")
    for number, content_of in enumerate((b"", b"no part at all, but long enough")):
        (folder / f"{number:06}.safetensors").write_bytes(content_of)
    path = folder / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert content(inat.predict(run.path, "train", name="damaged").path) == content(whole.path)


def test_a_part_is_rows_and_what_befell_them(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", "abc", n_photos=10, length=4)
    assert [parts.rows(number) for number in range(len(parts))] == [
        slice(0, 4), slice(4, 8), slice(8, 10)
    ]  # fmt: skip
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    told = predict_module.Troubles(bad=["a.jpg: cut off"], slow=["b.jpg: took 2 s"])
    parts.write(2, rows, told)
    assert parts.missing(range(3)) == [0, 1]
    assert dataclasses.replace(parts, digest="other").missing(range(3)) == [0, 1, 2]
    logits, troubles = parts.read(2)
    assert np.array_equal(logits, rows)
    assert troubles == told
    assert list(load_file(tmp_path / "parts" / "000002.safetensors")) == ["logits"]


@pytest.mark.usefixtures("small_parts")
def test_unreadable_photos_are_listed_once_whichever_call_met_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_world(tmp_path / "world")
    skip = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.1}
    run = train_tiny(tmp_path / "run", root, **SETTINGS, **skip)
    split = load_split(root)
    for row in (1, 9, 30):
        split.path(row).write_bytes(b"no photo")
    interrupted(run, monkeypatch, 2, name="bad", views="flip")
    made = inat.predict(run.path, "train", name="bad", views="flip")
    assert [line.split(" (image ")[1].split(")")[0] for line in made.meta.bad_photos] == [
        str(split.image_ids[row]) for row in (1, 9, 30)
    ]
    prior = np.array([30, 8, 3, 2]) / 43
    for row in (1, 9, 30):
        assert made.logits[row] == pytest.approx(np.log(prior / prior.max()), abs=2e-3)
    for row in (2, 11, 20, 31, 33):
        split.path(row).write_bytes(b"no photo")
    with pytest.raises(
        WorldError, match=r"^5 of 43 photos cannot be read, and data\.bad_photo_limit 0\.1 allows 4"
    ):
        inat.predict(run.path, "train", name="worse")


@pytest.mark.usefixtures("small_parts")
def test_slow_photos_are_printed_when_the_parts_are_joined_and_leave_the_bytes_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = inat.predict(run.path, "train", name="quick")
    assert "photos took" not in capsys.readouterr().err
    for module in (reader_module, predict_module):
        monkeypatch.setattr(module, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.0)
    split = load_split(run.config.data.root or Path())
    some = ", ".join(
        rf"{re.escape(str(split.path(row)))} \(image {split.image_ids[row]}\): took \d+\.\d s"
        for row in range(3)
    )
    line = rf"predict train: 43 of 43 photos took more than 0 s to read: {some} \.\.\.\n"

    def told() -> list[str]:
        lines = capsys.readouterr().err.splitlines(keepends=True)
        return [line for line in lines if "photos took" in line]

    made = [inat.predict(run.path, "train", name="slow")]
    lines = told()
    interrupted(run, monkeypatch, 3, name="slow-cut")
    made.append(inat.predict(run.path, "train", name="slow-cut"))
    lines += told()
    with pytest.raises(WorldError, match="waited 0 minutes for part 0 of rank 0"):
        inat.predict(run.path, "train", name="slow-ranks", rank=1, world_size=2)
    assert told() == []
    made.append(inat.predict(run.path, "train", name="slow-ranks", rank=0, world_size=2))
    lines += told()
    assert len(lines) == 3
    assert all(re.fullmatch(line, found) for found in lines)
    assert all("slow_photos" not in read_json(one.path / "meta.json") for one in made)
    assert all(content(prediction.path) == content(quick.path) for prediction in made)


def test_two_calls_for_one_prediction_do_not_write_it_together(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Parts.write

    def meanwhile(self: Parts, *part: Any) -> None:
        with pytest.raises(WorldError) as refused:
            inat.predict(run.path, "test", name="once")
        assert str(refused.value) == (
            f"{run.prediction('once')}: another process predicts it; wait for that one, or give "
            "another --name"
        )
        write(self, *part)

    monkeypatch.setattr(Parts, "write", meanwhile)
    inat.predict(run.path, "test", name="once")


# Several processes


def test_three_kills_leave_the_bytes_of_a_prediction_that_was_left_in_peace(run: Run) -> None:
    options: dict[str, Any] = {"views": "flip+random:1", "part_images": 8}
    whole = start(run.path, "train", name="peace", **options)
    finish(whole)
    folder = parts_folder(run.prediction("killed"))
    for wanted in (2, 3, 7):
        process = start(run.path, "train", name="killed", pause=0.05, **options)
        until = time.monotonic() + 60
        while len(list(folder.glob("0*.safetensors"))) < wanted and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert wanted <= len(list(folder.glob("0*.safetensors"))) < 22
        assert not run.prediction("killed").exists()
    finish(start(run.path, "train", name="killed", **options))
    assert content(run.prediction("killed")) == content(run.prediction("peace"))
    assert not folder.exists()


def test_two_processes_write_the_bytes_of_one(run: Run) -> None:
    options: dict[str, Any] = {"views": "ten-crop", "part_images": 20}
    finish(start(run.path, "train", name="one", **options))
    finish(
        *(
            start(run.path, "train", name="two", rank=rank, world_size=2, **options)
            for rank in (1, 0)
        )
    )
    assert content(run.prediction("two")) == content(run.prediction("one"))
    assert not parts_folder(run.prediction("two")).exists()


@pytest.mark.usefixtures("small_parts")
def test_a_rank_makes_every_world_sizeth_part_and_a_later_rank_0_joins_them(
    run: Run, monkeypatch: pytest.MonkeyPatch, read_photos: list[str]
) -> None:
    whole = inat.predict(run.path, "train", name="alone")
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.001)
    read_photos.clear()
    with pytest.raises(WorldError) as stopped:
        inat.predict(run.path, "train", name="ranks", rank=1, world_size=2)
    path = run.prediction("ranks")
    assert str(stopped.value) == (
        f"{path}: waited 0 minutes for part 0 of rank 0 and 3 more; a process has stopped, or has "
        "other settings or versions: see to it and run the same command again, it goes on from "
        "there"
    )
    split = load_split(run.config.data.root or Path())
    assert read_photos == [
        str(split.path(row)) for row in range(43) if row // 8 % 2 == 1
    ]  # fmt: skip
    joined = inat.predict(run.path, "train", name="ranks", rank=0, world_size=2)
    assert sorted(read_photos) == sorted(str(split.path(row)) for row in range(43))
    assert content(joined.path) == content(whole.path)


@pytest.mark.usefixtures("small_parts")
def test_a_rank_without_a_share_comes_too_late_for_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.001)
    path = run.prediction("late")
    with pytest.raises(WorldError) as stopped:
        inat.predict(run.path, "train", name="late", rank=6, world_size=7)  # there are 6 parts
    assert str(stopped.value).startswith(
        f"{path}: waited 0 minutes for the prediction, which rank 0 joins and 0 more; "
    )
    assert not parts_folder(path).exists()
    made = predict_module._is_made
    monkeypatch.setattr(
        predict_module,
        "_is_made",
        lambda *job: inat.predict(run.path, "train", name="late") and made(*job),
    )
    late = inat.predict(run.path, "train", name="late", rank=6, world_size=7)
    assert late.path == path
    assert not parts_folder(path).exists()


def test_waiting_goes_on_for_as_long_as_something_new_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 1_000_000, 50))
    monkeypatch.setattr(processes.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    left = [[str(n) for n in range(size)] for size in range(100, -1, -1)]
    wait_until_none(lambda: left.pop(0), "a prediction")  # 100 times at least 100 s
    with pytest.raises(WorldError, match=r"^a prediction: waited 30 minutes for x and 0 more; "):
        wait_until_none(lambda: ["x"], "a prediction")


def test_rank_and_world_size_come_from_the_options_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert this_process(None, None) == Process(0, 1)
    assert this_process(1, 3) == Process(1, 3)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert this_process(None, None) == Process(2, 4)
    assert this_process(0, 1) == Process(0, 1)
    assert list(Process(2, 4).share(11)) == [2, 6, 10]


@pytest.mark.parametrize(
    ("rank", "world_size", "environment", "told"),
    [
        (1, None, {}, "--rank and --world-size go together; give both or none"),
        (2, 2, {}, "--rank 2 is none of --world-size 2; ranks go from 0 to 1"),
        (None, None, {"RANK": "1"}, "RANK and WORLD_SIZE go together; give both or none"),
        (
            None, None, {"RANK": "one", "WORLD_SIZE": "2"},
            "RANK='one' in the environment is no whole number; unset it",
        ),
        (
            None, None, {"RANK": "3", "WORLD_SIZE": "2"},
            "RANK 3 is none of WORLD_SIZE 2; ranks go from 0 to 1",
        ),
    ],
)  # fmt: skip
def test_an_impossible_rank_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    rank: int | None,
    world_size: int | None,
    environment: dict[str, str],
    told: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        this_process(rank, world_size)
    assert str(refused.value) == told

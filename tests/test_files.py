"""Whole files or none."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inat.core import files
from inat.core.errors import InputError, WorldError
from inat.core.files import (
    atomic_file,
    atomic_folder,
    damaged_files,
    disk_remedies,
    locked,
    read_json,
    remove_leftovers,
    reserve,
    sha256,
    system_sentence,
    write_bytes,
    write_checksums,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_parent_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.npy"
    with atomic_file(target) as partial:
        assert partial.suffix == ".npy"
        partial.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["b.npy"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as partial:
        partial.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_takes_the_old_ones_place_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with atomic_folder(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "new.txt").write_text("new")
        assert names(target) == ["old.txt"]
    assert names(target) == ["deep"]
    assert (target / "deep" / "new.txt").read_text() == "new"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_folder_keeps_the_old_one_and_leaves_no_partial(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(error), atomic_folder(target) as partial:
        (partial / "new.txt").write_text("half")
        raise error
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["folder"]


def no_exchange(*_: Path) -> bool:
    return False


def test_a_folder_whose_last_rename_fails_leaves_the_old_one_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")
    replace = Path.replace

    def failing(self: Path, other: Path) -> Path:
        if self.name.startswith(".partial"):
            raise OSError("no")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", failing)
    monkeypatch.setattr(files, "_exchange", no_exchange)
    with pytest.raises(OSError, match="no"), atomic_folder(target) as partial:
        (partial / "new.txt").write_text("new")
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["folder"]


def fill(folder: Path, content: str, keep: Path | None = None) -> None:
    with atomic_folder(folder, keep=keep) as partial:
        (partial / "is").write_text(content)


def held(folder: Path) -> str:
    return (folder / "is").read_text()


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_folder_before_is_kept_and_the_one_before_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", no_exchange)
    last, before = tmp_path / "last", tmp_path / "before"
    for content in "abc":
        fill(last, content, keep=before)
    assert (held(last), held(before)) == ("c", "b")
    assert names(tmp_path) == ["before", "last"]


class Killed(BaseException):
    """In the place of SIGKILL: nothing is tidied up after it."""


def steps_until_done(monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]) -> Iterator[int]:
    """Runs `write` again and again, killed before its first, second, ... change to the disk."""
    changes = {
        (Path, "replace"): Path.replace,
        (files, "_exchange"): files._exchange,
        (shutil, "rmtree"): shutil.rmtree,
    }
    for kill in range(20):
        left = [kill]

        def counted(change: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def changed(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return change(*arguments, **options)

            return changed

        with monkeypatch.context() as patch:
            for (place, name), change in changes.items():
                patch.setattr(place, name, counted(change))
            try:
                write()
            except Killed:
                pass
            else:
                return
        yield kill
    raise AssertionError("never done")


def test_a_kill_at_any_moment_of_a_replacement_leaves_a_whole_folder_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, before = tmp_path / "last", tmp_path / "before"
    for content in "ab":
        fill(last, content, keep=before)
    found = []
    for _ in steps_until_done(monkeypatch, lambda: fill(last, "c", keep=before)):
        found.append((held(last), held(before)))
        remove_leftovers(last)
        assert names(tmp_path) == ["before", "last"]
        for content in "ab":
            fill(last, content, keep=before)
    assert found == [("b", "a"), ("c", "a"), ("c", "b")]


def test_where_folders_cannot_change_places_the_next_writer_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", no_exchange)
    (tmp_path / ".old-0123abcd-last").mkdir()
    (tmp_path / ".old-0123abcd-last" / "is").write_text("a")
    (tmp_path / ".partial-0123abcd-last").mkdir()
    remove_leftovers(tmp_path / "last")
    assert held(tmp_path / "last") == "a"
    assert names(tmp_path) == ["last"]
    (tmp_path / "last").rename(tmp_path / ".old-0123abcd-last")
    with pytest.raises(OSError, match="no"), atomic_folder(tmp_path / "last"):
        raise OSError("no")
    assert held(tmp_path / "last") == "a"


def test_checksums_name_what_is_damaged_missing_or_no_list(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    assert damaged_files(tmp_path) == []
    (tmp_path / "a").write_text("A")
    (tmp_path / "c").unlink()
    assert damaged_files(tmp_path) == ["a", "c"]
    for text in ("{cut", "[]"):
        (tmp_path / "checksums.json").write_text(text)
        assert damaged_files(tmp_path) == ["checksums.json"]
    (tmp_path / "checksums.json").unlink()
    assert damaged_files(tmp_path) == ["checksums.json"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "out: the disk is full; the old one is whole"),
        (errno.EDQUOT, "out: the disk is full; the old one is whole"),
        (
            errno.EROFS,
            "out/a: Read-only file system; make it writable, or give another place",
        ),
        (errno.EACCES, "out/a: Permission denied; make it writable, or give another place"),
    ],
)
def test_a_full_or_read_only_disk_is_told_with_its_remedy(number: int, sentence: str) -> None:
    with pytest.raises(WorldError) as told, disk_remedies("out", "the old one is whole"):
        raise OSError(number, os.strerror(number), "out/a")
    assert str(told.value) == sentence


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), disk_remedies("out", ""):
        raise FileNotFoundError(errno.ENOENT, "no", "a")


def test_room_is_reserved_for_a_file_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with path.open("wb") as file:
        file.truncate(2**20)
    assert path.stat().st_blocks == 0
    reserve(path)
    assert path.stat().st_blocks * 512 >= 2**20
    assert path.read_bytes() == bytes(2**20)


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}: there is no such file"


def test_a_json_file_cut_off_is_named_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('{"images": [\n{"id": 1')
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value) == (
        f"{path}: not JSON, or cut off: unexpected end of data at line 2, column 9; "
        "fetch or write the file again"
    )


def test_json_takes_numpy_values_and_reads_back_as_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"array": np.arange(3), "whole": np.int64(2**40), "share": np.float64(0.1), "n": None}
    write_json(path, content)
    assert read_json(path) == {"array": [0, 1, 2], "whole": 2**40, "share": 0.1, "n": None}
    assert path.read_bytes().startswith(b'{\n  "array"')
    write_json(path, content, indent=False)
    assert path.read_bytes() == b'{"array":[0,1,2],"whole":1099511627776,"share":0.1,"n":null}\n'


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "abc", b"abc")
    assert sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    stays = ["test", ".partial-0123abcd-my-test", ".partial-0123abcd-test2", ".parts-test"]
    for name in [*stays, ".partial-0123abcd-test", ".old-4567cdef-test"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "logits.npy").write_bytes(b"half")
    remove_leftovers(tmp_path / "test")
    assert names(tmp_path) == sorted(stays)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError("512 requested and 0 written"),  # NumPy
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_an_atomic_writer_names_its_file_where_the_disk_is_full(
    error: Exception, tmp_path: Path
) -> None:
    for writer in (atomic_file, atomic_folder):
        with pytest.raises(OSError) as told, writer(tmp_path / "out"):
            raise error
        assert system_sentence(told.value) == (
            f"{tmp_path / 'out'}: the disk is full; make room, or give another place"
        )
    with (
        pytest.raises(OSError) as told,
        atomic_folder(tmp_path / "out") as folder,
        atomic_file(folder / "a"),
    ):
        raise error
    assert told.value.filename == str(tmp_path / "out")


def test_an_atomic_writer_leaves_the_names_of_other_files_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, atomic_folder(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    assert told.value.filename == str(tmp_path / "input")
    with pytest.raises(OSError, match="truncated"), atomic_folder(tmp_path / "out"):
        raise OSError("image file is truncated")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EMFILE, f"a: {os.strerror(errno.EMFILE)}; allow more (ulimit -n 4096), lower"),
        (errno.EFBIG, f"a: {os.strerror(errno.EFBIG)}; raise the limit (ulimit -f)"),
        (errno.EIO, f"a: {os.strerror(errno.EIO)}"),
    ],
)
def test_what_the_system_refused_is_told_with_the_file_and_a_remedy(
    number: int, sentence: str
) -> None:
    assert system_sentence(OSError(number, os.strerror(number), "a")).startswith(sentence)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_a_file_keeps_others_out(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    path = tmp_path / ".lock"
    for _ in range(2):  # the second time there is a lock file already
        with locked(path, "busy"):
            with pytest.raises(WorldError) as told, locked(path, "busy"):
                pass
            assert str(told.value) == (
                f"busy (or remove {path}.soft where nothing works there, on this machine or "
                "another)"
            )
    # One that a process left that was killed is taken over.
    code = (
        "import filelock, os, sys; filelock.SoftFileLock(sys.argv[1]).acquire(); os.kill("
        "os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, f"{path}.soft"])
    with locked(path, "busy"):
        pass


# --- leftovers and links ---------------------------------------------------------------------


@contextmanager
def writer_of(path: Path) -> Iterator[Path]:
    """Writes a file or folder `path`, by its name."""
    with (atomic_file if path.suffix else atomic_folder)(path) as partial:
        (partial if path.suffix else partial / "is").write_text("new")
        yield partial


@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_every_writer_removes_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import test_files\n"
        "with test_files.writer_of(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / name
    for _ in range(2):
        words = [sys.executable, "-c", code, str(path)]
        killed = subprocess.run(words, cwd=Path(__file__).parent, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(names(tmp_path)) == 1  # that of the kill before is gone
    (tmp_path / f".partial-0123abcd-my-{name}").mkdir()  # another name
    with writer_of(path):
        pass
    assert names(tmp_path) == sorted([f".partial-0123abcd-my-{name}", name])


@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_a_writer_leaves_alone_what_a_living_one_is_writing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with writer_of(path) as first:
        with writer_of(path) as second:
            assert first.exists()
            assert second.exists()
        assert first.exists()
    assert names(tmp_path) == [name]


def test_a_partial_that_was_taken_for_a_leftover_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = files._lock, []

    def late(path: Path, *, wait: bool) -> int | None:
        if wait and not taken:
            taken.append(path)
            path.rmdir()  # another writer was faster
        return lock(path, wait=wait)

    monkeypatch.setattr(files, "_lock", late)
    fill(tmp_path / "out", "a")
    assert taken
    assert names(tmp_path) == ["out"]


def test_where_there_are_no_locks_nothing_is_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".partial-0123abcd-out").mkdir()
    monkeypatch.setattr(files, "_lock", lambda path, wait: None)
    fill(tmp_path / "out", "a")
    assert names(tmp_path) == [".partial-0123abcd-out", "out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_replaced_where_it_lies(
    tmp_path: Path, there: bool
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    if there:
        fill(large / "run", "old")
    (small / "run").symlink_to(large / "run")
    fill(small / "run", "new")
    assert (small / "run").is_symlink()
    assert held(large / "run") == "new"
    assert (names(small), names(large)) == (["run"], ["run"])
    files.remove_folder(small / "run")
    assert (names(small), names(large)) == (["run"], [])

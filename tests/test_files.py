"""Whole files or none."""

from pathlib import Path

import numpy as np
import pytest

from inat.errors import InputError
from inat.files import (
    atomic_file,
    atomic_folder,
    read_json,
    remove_leftovers,
    sha256,
    write_bytes,
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
    with pytest.raises(OSError, match="no"), atomic_folder(target) as partial:
        (partial / "new.txt").write_text("new")
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["folder"]


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

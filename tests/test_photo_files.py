"""Photos as files below a folder: read where they are, and never through a link out of it."""

from pathlib import Path

import pyarrow as pa
import pytest

from inat.photos.decode import BadPhoto
from inat.photos.sources import PhotoFiles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "top" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "top" / "sub" / "a.jpg").write_bytes(b"a")
    (tmp_path / "root" / "b.jpg").write_bytes(b"b")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.jpg").write_bytes(b"secret")
    return tmp_path / "root"


def read(root: Path, name: str) -> bytes:
    return PhotoFiles(root, pa.array([name])).read(0)


def refusal(root: Path, name: str) -> str:
    with pytest.raises(BadPhoto) as caught:
        read(root, name)
    return str(caught.value)


def test_root_and_its_top_folders_may_be_links(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (root / "top").rename(tmp_path / "large disk")
    (root / "top").symlink_to(tmp_path / "large disk")
    assert read(tmp_path / "link", "top/sub/a.jpg") == b"a"
    assert read(tmp_path / "link", "b.jpg") == b"b"


def test_a_link_within_the_top_folder_is_followed(root: Path) -> None:
    (root / "top" / "again.jpg").symlink_to("sub/a.jpg")
    (root / "top" / "sub2").symlink_to("sub")
    assert read(root, "top/again.jpg") == read(root, "top/sub2/a.jpg") == b"a"


@pytest.mark.parametrize("target", ["../../secret/s.jpg", "../b.jpg"])
def test_a_photo_that_is_a_link_out_of_its_top_folder_is_not_read(root: Path, target: str) -> None:
    (root / "top" / "s.jpg").symlink_to(target)
    message = f"a link leads out of {root}/top; put the photo in its place"
    assert refusal(root, "top/s.jpg") == message


def test_a_folder_that_is_a_link_out_of_its_top_folder_is_not_entered(root: Path) -> None:
    (root / "top" / "away").symlink_to("../../secret")
    message = f"a link leads out of {root}/top; put the photo in its place"
    files = PhotoFiles(root, pa.array(["top/away/s.jpg", "top/sub/a.jpg", "top/away/t.jpg"]))
    for index in (0, 2, 0):
        with pytest.raises(BadPhoto) as caught:
            files.read(index)
        assert str(caught.value) == message
    assert files.read(1) == b"a"


def test_a_photo_right_below_the_root_may_not_be_a_link_out_of_it(root: Path) -> None:
    (root / "s.jpg").symlink_to("../secret/s.jpg")
    assert refusal(root, "s.jpg") == f"a link leads out of {root}; put the photo in its place"


@pytest.mark.parametrize("name", ["../secret/s.jpg", "top/../../secret/s.jpg", ".."])
def test_a_name_that_leads_out_of_the_root_is_not_read(root: Path, name: str) -> None:
    assert refusal(root, name) == f"its name leads out of {root}"


def test_a_photo_that_is_not_there_is_told_in_the_words_of_the_system(root: Path) -> None:
    assert refusal(root, "top/sub/none.jpg") == "No such file or directory"
    assert refusal(root, "none/none.jpg") == "No such file or directory"


def test_backslashes_in_the_name_of_a_photo_that_is_not_there_are_named(root: Path) -> None:
    assert "backslashes, and '/' separates folders" in refusal(root, "top\\sub\\a.jpg")
    (root / "top" / "a\\b.jpg").write_bytes(b"ab")
    assert read(root, "top/a\\b.jpg") == b"ab"

"""Archives that are not what they should be, and what of them reaches the disk."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mirrors import (
    CATEGORIES,
    LOCATIONS,
    PHOTOS,
    Mirror,
    fault,
    fetch,
    noise,
    photo,
    serving,
    tarred,
    tree,
    zipped,
)

from inat.acquire import unpacking
from inat.core.competitions import Archive


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving(monkeypatch) as server:
        yield server


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o777) << 16
    return info


REFUSED_TAR = [
    ("train_val2018/../../out.jpg", "leads out of the data root"),
    ("train_val2018\\..\\..\\out.jpg", "leads out of the data root"),
    ("../out.jpg", "leads out of the data root"),
    ("..", "leads out of the data root"),
    ("/tmp/out.jpg", "leads out of the data root"),
    ("//host/out.jpg", "leads out of the data root"),
    ("C:\\out.jpg", "leads out of the data root"),
    ("c:out.jpg", "leads out of the data root"),
    (".", "has no name"),
    (special("../out", tarfile.DIRTYPE), "leads out of the data root"),
    (special("train_val2018/a", tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link"),
    (special("train_val2018/Aves", tarfile.SYMTYPE, "../.."), "is a symbolic link"),
    (special("unasked/a", tarfile.SYMTYPE, "b"), "is a symbolic link"),
    (special("train_val2018/a", tarfile.LNKTYPE, "train_val2018/b"), "is a hard link"),
    (special("train_val2018/a", tarfile.CHRTYPE), "is a device"),
    (special("train_val2018/a", tarfile.BLKTYPE), "is a device"),
    (special("train_val2018/a", tarfile.FIFOTYPE), "is a pipe"),
    (special("train_val2018/a", b"Z"), "is of an unknown kind"),
]


@pytest.mark.parametrize(("member", "why"), REFUSED_TAR)
def test_a_tar_member_that_is_not_safe_is_refused(
    tmp_path: Path, mirror: Mirror, member: str | tarfile.TarInfo, why: str
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1), (member, b""), photo(2))})
    root = tmp_path / "deep" / "root"
    name = member if isinstance(member, str) else member.name
    assert fault(lambda: fetch(root)) == (
        f"{root / PHOTOS}: member {name!r} {why}; such an archive is not unpacked: remove it and "
        "fetch it from elsewhere (--base-url)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["root"]
    assert set(tree(root)) == {PHOTOS, photo(1)[0]}
    assert not any(path.is_symlink() for path in root.rglob("*"))
    assert not (root / "download.json").exists()


def test_a_member_larger_than_any_file_of_a_data_set_is_refused_before_it_is_written(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "LARGEST_MEMBER", 10_000)
    mirror.offer({PHOTOS: tarred(("train_val2018/a.jpg", b"0" * 10_001))})
    said = fault(lambda: fetch(tmp_path))
    assert "member 'train_val2018/a.jpg' has 10,001 bytes, more than any file" in said
    assert not list(tmp_path.rglob("*a.jpg"))


def test_a_sparse_member_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    info = tarfile.TarInfo("train_val2018/bomb.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**15)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    mirror.offer({PHOTOS: packed.getvalue()})
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / PHOTOS}: member 'train_val2018/bomb.jpg' is a sparse file; such an archive "
        "is not unpacked: remove it and fetch it from elsewhere (--base-url)"
    )


REFUSED_ZIP = [
    ("../train2018_locations.json", "leads out of the data root"),
    ("a/../../train2018_locations.json", "leads out of the data root"),
    ("/etc/train2018_locations.json", "leads out of the data root"),
    ("C:/train2018_locations.json", "leads out of the data root"),
    (linked("train2018_locations.json", stat.S_IFLNK), "is a symbolic link"),
    (linked("train2018_locations.json", stat.S_IFIFO), "is a device or a pipe"),
]


@pytest.mark.parametrize(("member", "why"), REFUSED_ZIP)
def test_a_zip_member_that_is_not_safe_is_refused(
    tmp_path: Path, mirror: Mirror, member: str | zipfile.ZipInfo, why: str
) -> None:
    mirror.offer({LOCATIONS: zipped((member, b"/etc/passwd"))})
    root = tmp_path / "deep" / "root"
    name = member if isinstance(member, str) else member.filename
    assert fault(lambda: fetch(root)) == (
        f"{root / LOCATIONS}: member {name!r} {why}; such an archive is not unpacked: remove it "
        "and fetch it from elsewhere (--base-url)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["root"]
    assert set(tree(root)) == {LOCATIONS}


def test_a_link_that_lies_there_already_is_not_followed(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / "train_val2018").mkdir(parents=True)
    (root / "train_val2018" / "Aves").symlink_to(outside)
    assert fault(lambda: fetch(root)) == (
        f"{root / PHOTOS}: member 'train_val2018/Aves/1/1.jpg' would be written through a link out "
        f"of {root / 'train_val2018'}; put a folder in the place of the link"
    )
    assert list(outside.iterdir()) == []


def test_a_photo_in_the_place_of_a_link_replaces_the_link(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    root, outside = tmp_path / "root", tmp_path / "mine.jpg"
    outside.write_bytes(noise(9, 3000))  # of the photo's size
    (root / "train_val2018/Aves/1").mkdir(parents=True)
    (root / photo(1)[0]).symlink_to(outside)
    fetch(root)
    assert not (root / photo(1)[0]).is_symlink()
    assert tree(root) == dict([photo(1)])
    assert outside.read_bytes() == noise(9, 3000)


@pytest.mark.parametrize("n_bytes", [0, 5, 1000, -9, -1])
def test_a_gz_that_is_cut_off_is_told(tmp_path: Path, mirror: Mirror, n_bytes: int) -> None:
    content = tarred(("categories.json", noise(1, 3000)))
    mirror.offer({CATEGORIES: content[:n_bytes]})  # no MD5 is published that could tell
    reason = (
        "Compressed file ended before the end-of-stream marker was reached"
        if n_bytes
        else "empty file"
    )
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / CATEGORIES}: cut off or damaged: {reason}; remove it, and the same command "
        "fetches it again"
    )
    assert not (tmp_path / "download.json").exists()
    assert not list(tmp_path.glob(".partial*"))


def damaged(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (CATEGORIES, b"<html>", "Not a gzipped file (b'<h')"),
        (CATEGORIES, gzip.compress(b"x" * 2000), "invalid header"),
        (
            CATEGORIES,
            damaged(gzip.compress(gzip.decompress(tarred(("categories.json", b"[]")))), -8),
            "CRC check failed",
        ),
        (LOCATIONS, b"<html>", "File is not a zip file"),
        (LOCATIONS, zipped(("train2018_locations.json", b"[]"))[:-10], "File is not a zip file"),
        (
            LOCATIONS,
            damaged(zipped(("train2018_locations.json", noise(1, 3000))), 1000),
            "Bad CRC-32 for file 'train2018_locations.json'",
        ),
    ],
    ids=["html", "no tar", "gz checksum", "html for zip", "cut zip", "zip checksum"],
)
def test_a_damaged_archive_is_told(
    tmp_path: Path, mirror: Mirror, name: str, content: bytes, reason: str
) -> None:
    mirror.offer({name: content})
    line = fault(lambda: fetch(tmp_path))
    assert line.startswith(f"{tmp_path / name}: cut off or damaged: {reason}")
    assert line.endswith("; remove it, and the same command fetches it again")
    assert set(tree(tmp_path)) <= {name, "categories.json"}
    assert not (tmp_path / "download.json").exists()


def test_a_zip_that_points_before_its_first_byte_is_told(tmp_path: Path, mirror: Mirror) -> None:
    content = bytearray(zipped(("train2018_locations.json", b"[]")))
    place = content.rindex(b"PK\5\6") + 16  # where the list of members begins, in the last record
    content[place : place + 4] = (
        int.from_bytes(content[place : place + 4], "little") + 50
    ).to_bytes(4, "little")
    mirror.offer({LOCATIONS: bytes(content)})
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / LOCATIONS}: cut off or damaged: [Errno 22] Invalid argument; "
        "remove it, and the same command fetches it again"
    )


def test_a_zip_member_without_a_name_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    content = zipped(("a", b"[]")).replace(b"\1\0\0\0a[]", b"\0\0\0\0a[]")
    place = content.rindex(b"PK\1\2") + 28  # the name's length, in the list of members
    content = content[:place] + b"\0\0\1" + content[place + 3 :]
    mirror.offer({LOCATIONS: content})
    assert "member '' has no name" in fault(lambda: fetch(tmp_path))


def test_a_negative_size_does_not_send_the_reader_back(tmp_path: Path, mirror: Mirror) -> None:
    info = tarfile.TarInfo("train_val2018/a.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-1024 & (2**96 - 1)).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    mirror.offer({PHOTOS: gzip.compress(bytes(header) * 3 + bytes(1024))})
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / PHOTOS}: cut off or damaged: seeking backwards is not allowed; remove it, "
        "and the same command fetches it again"
    )


def test_an_archive_without_what_it_should_bring_is_told(tmp_path: Path, mirror: Mirror) -> None:
    again = "; remove it, and the same command fetches it again"
    mirror.offer({PHOTOS: tarred(("elsewhere/a.jpg", b"x"), ("train_val2018", b"x"))})
    assert fault(lambda: fetch(tmp_path)) == f"{tmp_path / PHOTOS}: holds no train_val2018{again}"
    mirror.offer({LOCATIONS: zipped(("a/train2018.json", b"[]"))})
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / LOCATIONS}: holds no train2018_locations.json and no "
        f"val2018_locations.json{again}"
    )
    assert set(tree(tmp_path)) == {PHOTOS, LOCATIONS}


def test_what_is_no_data_is_left_out_and_told(
    tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    strays = (("._train_val2018", b"x"), ("train2018.json", b"x"), ("download.json", b"x"))
    mirror.offer({PHOTOS: tarred(*strays, photo(1))})
    assert fetch(tmp_path).n_files == 1
    assert tree(tmp_path) == dict([photo(1)])
    assert capsys.readouterr().err == (
        f"{tmp_path / PHOTOS}: left out 3 files that are no data (first: '._train_val2018')\n"
    )


def test_folders_and_dots_in_names_are_harmless(tmp_path: Path, mirror: Mirror) -> None:
    folder = special("./train_val2018/Aves/1", tarfile.DIRTYPE)
    mirror.offer({PHOTOS: tarred((special(".", tarfile.DIRTYPE), b""), (folder, b""),
                          ("./train_val2018/./Aves//1/1.jpg", b"x"))})  # fmt: skip
    assert fetch(tmp_path).n_files == 1
    assert tree(tmp_path) == {"train_val2018/Aves/1/1.jpg": b"x"}


def test_modes_owners_and_dates_of_the_archive_are_not_taken_over(
    tmp_path: Path, mirror: Mirror
) -> None:
    wild = tarfile.TarInfo("train_val2018/Aves/1.jpg")
    wild.mode, wild.uid, wild.mtime = 0o6777, 12345, 1
    folder = special("train_val2018/Aves", tarfile.DIRTYPE)
    folder.mode = 0
    mirror.offer({PHOTOS: tarred((folder, b""), (wild, b"x"))})
    before = os.umask(0o022)
    try:
        fetch(tmp_path)
    finally:
        os.umask(before)
    state = (tmp_path / wild.name).stat()
    assert stat.S_IMODE(state.st_mode) == 0o644
    assert state.st_uid == os.getuid()
    assert state.st_mtime > 10**9
    assert stat.S_IMODE((tmp_path / "train_val2018/Aves").stat().st_mode) == 0o755


def test_reading_a_large_tar_keeps_no_list_of_its_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tarred(*[photo(n, 10) for n in range(50)]))
    told: list[int] = []
    lengths = []
    real_next = tarfile.TarFile.next

    def counted(self: Any) -> Any:
        lengths.append(len(self.members))
        return real_next(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", counted)
        archive = Archive(name=path.name, part="train_val", md5=None, folder="train_val2018")
        assert unpacking.unpack(path, archive, tmp_path, told.append) == 50
    assert max(lengths) <= 1
    assert sum(told) == path.stat().st_size

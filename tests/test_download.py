"""The download from end to end: options, disks, interruptions and neighbours."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from mirrors import (
    CATEGORIES,
    LOCATIONS,
    PHOTOS,
    SLUG,
    SPEC,
    TRAIN,
    Mirror,
    fault,
    fetch,
    give_up,
    noise,
    photo,
    serving,
    tarred,
    tree,
    zipped,
)
from worlds import make_world

import inat
from inat.acquire import download as downloading
from inat.acquire import fetching, unpacking
from inat.acquire.download import Downloaded, download
from inat.cli.app import main
from inat.core.competitions import COMPETITIONS
from inat.core.errors import InputError
from inat.core.files import read_json
from inat.dataset.split import load_split


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving(monkeypatch) as server:
        yield server


def packed_world(world: Path) -> dict[str, bytes]:
    """The archives that a data set would be published as."""

    def members(folder: str) -> list[tuple[str, bytes]]:
        return [
            (str(path.relative_to(world)), path.read_bytes())
            for path in sorted((world / folder).rglob("*.jpg"))
        ]

    files = {
        f"{name}2018.json.tar.gz": tarred(
            (f"{name}2018.json", (world / f"{name}2018.json").read_bytes())
        )
        for name in ("train", "val", "test")
    }
    real_names = read_json(world / "train2018.json")["categories"]
    for row in real_names:
        row["name"] = "Real " + row["name"]
    return files | {
        CATEGORIES: tarred(("categories.json", orjson.dumps(real_names))),
        LOCATIONS: zipped(
            ("inat2018_locations/train2018_locations.json", b"[]"),
            ("inat2018_locations/val2018_locations.json", b"[]"),
        ),
        PHOTOS: tarred(*members("train_val2018")),
        "test2018.tar.gz": tarred(*members("test2018")),
    }


def test_the_whole_download_is_the_data_set(
    world: Path, tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.offer(packed_world(world))
    root = tmp_path / "new" / "root"
    assert main(["data", "download", SLUG, "--root", str(root)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{root}: 69 files of 7 archives, 0 archives were there already\n"
    assert captured.err == ""
    heads, gets = mirror.log[:7], mirror.log[7:]
    assert heads == [f"HEAD {archive.name}" for archive in SPEC.archives]
    assert gets == [f"GET {archive.name}" for archive in SPEC.archives]
    assert sorted(path.name for path in root.iterdir()) == [
        ".download.lock",
        "categories.json",
        "download.json",
        "test2018",
        "test2018.json",
        "train2018.json",
        "train2018_locations.json",
        "train_val2018",
        "val2018.json",
        "val2018_locations.json",
    ]
    for path in world.rglob("*.jpg"):
        assert (root / path.relative_to(world)).read_bytes() == path.read_bytes()
    names = load_split(root).taxonomy.names
    assert names == ["Real " + name for name in load_split(world).taxonomy.names]
    for split in ("train", "val", "test"):
        assert load_split(root, split).fingerprint == load_split(world, split).fingerprint


def test_the_record_states_each_archive(tmp_path: Path, mirror: Mirror) -> None:
    content = {CATEGORIES: tarred(("categories.json", b"[]")), PHOTOS: tarred(photo(1), photo(2))}
    mirror.offer(content)
    assert fetch(tmp_path) == Downloaded(tmp_path, (CATEGORIES, PHOTOS), (), 3)
    record = read_json(tmp_path / "download.json")
    assert record["competition"] == SLUG
    assert list(record["archives"]) == [CATEGORIES, PHOTOS]
    for name, members in ((CATEGORIES, 1), (PHOTOS, 2)):
        entry = record["archives"][name]
        assert entry.pop("when")[-6:] == "+00:00"
        assert entry == {
            "url": mirror.url + name,
            "md5": hashlib.md5(content[name]).hexdigest(),
            "size": len(content[name]),
            "members": members,
        }


def test_a_second_call_asks_nothing_of_the_server_and_writes_nothing(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}")), PHOTOS: tarred(photo(1))})
    fetch(tmp_path)
    mirror.asked()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be locked or written")

    monkeypatch.setattr(downloading, "locked", never)
    assert fetch(tmp_path) == Downloaded(tmp_path, (), (TRAIN, PHOTOS), 0)
    assert mirror.asked() == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_was_removed_or_published_anew_is_fetched_again(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}")), PHOTOS: tarred(photo(1))})
    fetch(tmp_path)
    (tmp_path / "train2018.json").unlink()
    mirror.asked()
    assert fetch(tmp_path).fetched == (TRAIN,)
    assert mirror.asked() == [f"HEAD {TRAIN}", f"GET {TRAIN}"]
    mirror.offer({TRAIN: mirror.files[TRAIN], PHOTOS: tarred(photo(1), photo(2))})
    assert fetch(tmp_path).fetched == (PHOTOS,)


@pytest.mark.parametrize("part", ["annotations", "locations", "train_val", "test"])
def test_only_fetches_that_part(world: Path, tmp_path: Path, mirror: Mirror, part: str) -> None:
    mirror.offer(packed_world(world))
    done = fetch(tmp_path, only=part)
    assert done.fetched == tuple(a.name for a in SPEC.archives if a.part == part)
    assert len(mirror.log) == 2 * len(done.fetched)
    brought = {name for a in SPEC.archives if a.part == part for name in (*a.files, a.folder)}
    ours = {".download.lock", "download.json"}
    assert {path.name for path in tmp_path.iterdir()} == (brought - {""}) | ours


def test_archives_are_kept_when_asked_and_used_where_they_lie(
    tmp_path: Path, mirror: Mirror
) -> None:
    content = {PHOTOS: tarred(photo(1))}
    mirror.offer(content)
    fetch(tmp_path, keep_archives=True)
    assert (tmp_path / PHOTOS).read_bytes() == content[PHOTOS]
    (tmp_path / "download.json").unlink()
    shutil.rmtree(tmp_path / "train_val2018")
    mirror.asked()
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked() == []
    assert tree(tmp_path) == dict([photo(1)])


def test_the_facts_of_inaturalist_2018() -> None:
    assert SPEC.download_url == "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
    assert {a.name: (a.part, a.md5, a.folder, a.files) for a in SPEC.archives} == {
        "train2018.json.tar.gz": (
            "annotations", "bfa29d89d629cbf04d826a720c0a68b0", "", ("train2018.json",)
        ),
        "val2018.json.tar.gz": (
            "annotations", "f2ed8bfe3e9901cdefceb4e53cd3775d", "", ("val2018.json",)
        ),
        "test2018.json.tar.gz": (
            "annotations", "fc717a7f53ac72ed8b250221a08a4502", "", ("test2018.json",)
        ),
        "categories.json.tar.gz": ("annotations", None, "", ("categories.json",)),
        "inat2018_locations.zip": (
            "locations", "1704763abc47b75820aa5a3d93c6c0f3", "",
            ("train2018_locations.json", "val2018_locations.json"),
        ),
        "train_val2018.tar.gz": (
            "train_val", "b1c6952ce38f31868cc50ea72d066cc3", "train_val2018", ()
        ),
        "test2018.tar.gz": ("test", "4b71d44d73e27475eefea68886c7d1b1", "test2018", ()),
    }  # fmt: skip
    named = {*SPEC.annotation_files.values(), *SPEC.locations_files.values(), "categories.json"}
    assert {name for archive in SPEC.archives for name in archive.files} == named


def test_bars_count_whole_megabytes(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[list[Any]] = []

    @contextmanager
    def bar(title: str, total: int, unit: str) -> Iterator[Any]:
        bars.append([title, total, unit, 0])

        class Counts:
            def advance(self, count: int) -> None:
                bars[-1][3] += count

        yield Counts()

    monkeypatch.setattr(downloading, "progress_bar", bar)
    mirror.offer({PHOTOS: tarred(photo(1, 1_400_000), photo(2, 1_400_000))})
    fetch(tmp_path)
    assert bars == [
        [f"{PHOTOS}: checking what is there", 1, "MB", 0],
        [PHOTOS, 3, "MB", 2],  # 2.8 MB: the third is not full
        [f"{PHOTOS}: unpacking", 3, "MB", 2],
    ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "--base-url 'ftp://host/x' is no address of a folder; it looks like "
         "https://host/2018/"),
        ("host/x", "--base-url 'host/x' is no address of a folder; it looks like "
         "https://host/2018/"),
        ("", "--base-url '' is no address of a folder; it looks like https://host/2018/"),
        ("http://[x/", "--base-url 'http://[x/' is no address of a folder; it looks like "
         "https://host/2018/"),
        ("https://host/?key=1", "--base-url 'https://host/?key=1' is no address of a folder; it "
         "looks like https://host/2018/"),
        *((f"https://{user}@{host}/", "--base-url holds a user name or a password; put it into "
           "~/.netrc") for user in ("me:secret", "TOKEN") for host in ("host", "[host")),
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str, message: str) -> None:
    assert fault(lambda: fetch(tmp_path / "new", base_url=url), InputError) == message
    assert not (tmp_path / "new").exists()


def test_a_competition_without_archives_says_where_its_files_are(tmp_path: Path) -> None:
    assert fault(lambda: download("herbarium-2021-fgvc8", tmp_path), InputError) == (
        "herbarium-2021-fgvc8 is not fetched by this verb; fetch its files by hand from "
        f"https://www.kaggle.com/c/herbarium-2021-fgvc8/data into {tmp_path}"
    )
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_list_the_valid_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fault(lambda: download("inaturalist-2081", tmp_path), InputError) == (
        "competition: unknown name 'inaturalist-2081'; did you mean inaturalist-2021? "
        f"valid: {', '.join(sorted(COMPETITIONS))}"
    )
    assert fault(lambda: fetch(tmp_path, only="tests"), InputError) == (
        "--only: unknown name 'tests'; did you mean test? "
        "valid: annotations, locations, test, train_val"
    )
    assert main(["data", "download", SLUG, "--root", str(tmp_path), "--only", "tests"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert fault(lambda: fetch(tmp_path / "file"), InputError) == (
        f"{tmp_path / 'file'}: is no folder; the data needs one there"
    )
    assert fault(lambda: fetch(tmp_path / "link"), InputError) == (
        f"{tmp_path / 'link'}: is a link to a folder that is not there; make it or mount it"
    )


def test_a_photo_folder_that_is_no_folder_is_refused_before_the_download(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    top = tmp_path / "train_val2018"
    top.symlink_to(tmp_path / "unmounted")
    assert fault(lambda: fetch(tmp_path), InputError) == (
        f"{top}: is a link to a folder that is not there; make it or mount it"
    )
    top.unlink()
    top.write_text("")
    assert fault(lambda: fetch(tmp_path), InputError) == (
        f"{top}: is no folder; the data needs one there"
    )
    assert mirror.asked() == [f"HEAD {PHOTOS}"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "{path}: is no record of inat data download; move it away"),
        ('{"competition": "x", "archives": {"a": 3}}',
         "{path}: is no record of inat data download; move it away"),
        ("{", "{path}: not JSON, or cut off: unexpected end of data at line 1, column 2; fetch or "
         "write the file again"),
        ('{"competition": "inaturalist-2021", "archives": {}}',
         "{root}: holds the data of inaturalist-2021; give another --root"),
    ],
)  # fmt: skip
def test_a_strange_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "download.json"
    path.write_text(text)
    expected = message.format(path=path, root=tmp_path)
    assert fault(lambda: fetch(tmp_path), InputError) == expected


def test_a_file_of_ones_own_is_not_overwritten(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}"))})
    mine = tmp_path / "train2018.json"
    mine.write_text("[]")
    assert fault(lambda: fetch(tmp_path), InputError) == (
        f"{mine}: is there already, and is not what {TRAIN} holds; move it away, or give another "
        "--root"
    )
    assert mine.read_text() == "[]"
    mine.write_text("{}")  # the same: as after a call that was killed before its record
    assert fetch(tmp_path).n_files == 1
    assert tree(tmp_path) == {"train2018.json": b"{}"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        reason = done.stderr.strip()
    except OSError as error:
        reason = str(error)
    if reason:
        pytest.skip(f"a small disk needs a mount: {reason}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_small_a_disk_is_named_before_anything_is_fetched(
    small_disk: Path, tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1, 40_000))})
    size = len(mirror.files[PHOTOS])
    needed = (size + round(size * 1.03)) / 1000
    assert fault(lambda: fetch(small_disk)) == (
        f"{small_disk}: {needed:.1f} kB are needed there and 65.5 kB are free; make room, or put "
        "a link to a folder on a larger disk in its place"
    )
    assert mirror.asked() == [f"HEAD {PHOTOS}"]
    # The remedy of the message: the photos go elsewhere.
    (small_disk / "train_val2018").symlink_to(tmp_path)
    assert fetch(small_disk).n_files == 1
    assert (tmp_path / "Aves/1/1.jpg").read_bytes() == photo(1, 40_000)[1]


def test_the_disk_behind_a_photo_folder_counts_too(
    small_disk: Path, tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1, 70_000))})
    root = tmp_path / "root"
    root.mkdir()
    (root / "train_val2018").symlink_to(small_disk)
    needed = round(len(mirror.files[PHOTOS]) * 1.03) / 1000
    assert fault(lambda: fetch(root)) == (
        f"{root / 'train_val2018'}: {needed:.1f} kB are needed there and 65.5 kB are free; make "
        "room, or put a link to a folder on a larger disk in its place"
    )


def test_a_disk_that_fills_up_keeps_what_came_and_goes_on(
    small_disk: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1, 50_000), photo(2, 50_000))})
    with monkeypatch.context() as patch:  # the check sees room that is gone a moment later
        patch.setattr(downloading.shutil, "disk_usage", plenty)
        assert fault(lambda: fetch(small_disk)) == (
            f"{small_disk}: No space left on device; mend that, and the same command goes on from "
            "there"
        )
        came = (small_disk / (PHOTOS + ".part")).stat().st_size
        assert 40_000 < came < 65_536
        resize(small_disk, "180k")
        mirror.asked()
        assert fault(lambda: fetch(small_disk)) == (
            f"{small_disk / 'train_val2018'}: No space left on device; mend that, and the same "
            "command goes on from there"
        )
        assert mirror.asked()[1:] == [f"GET {PHOTOS} bytes={came}- {mirror.etag(PHOTOS)}"]
    assert [p.name for p in (small_disk / "train_val2018").rglob("*.jpg")] == ["1.jpg"]
    resize(small_disk, "300k")
    assert fetch(small_disk).n_files == 2
    assert mirror.asked() == []
    assert tree(small_disk) == dict([photo(1, 50_000), photo(2, 50_000)])


def plenty(_: Path) -> Any:
    return shutil._ntuple_diskusage(10**15, 0, 10**15)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.parametrize("keep", [False, True])
def test_the_room_that_is_needed_is_that_of_the_fullest_moment(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    mirror.offer(
        {
            TRAIN: tarred(("train2018.json", noise(0, 20_000))),
            PHOTOS: tarred(photo(1, 50_000)),
            "test2018.tar.gz": tarred(("test2018/a.jpg", noise(1, 40_000))),
        }
    )
    train, photos, test = (len(mirror.files[name]) for name in (TRAIN, PHOTOS, "test2018.tar.gz"))
    unpacked = [10 * train, round(1.03 * photos), round(1.03 * test)]
    # With the archives gone, what is unpacked and the one archive at hand lie there.
    moments = [train + unpacked[0], photos + sum(unpacked[:2]), test + sum(unpacked)]
    needed = train + photos + test + sum(unpacked) if keep else max(moments)
    for free in (needed - 1, needed):
        monkeypatch.setattr(
            downloading.shutil,
            "disk_usage",
            lambda _, free=free: shutil._ntuple_diskusage(10**12, 0, free),
        )
        if free < needed:
            assert fault(lambda: fetch(tmp_path, keep_archives=keep)) == (
                f"{tmp_path}: {needed / 1000:.1f} kB are needed there and {free / 1000:.1f} kB are "
                "free; make room, or put a link to a folder on a larger disk in its place"
            )
        else:
            assert fetch(tmp_path, keep_archives=keep).n_files == 3


def test_what_is_there_already_needs_no_room(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1), photo(2))})
    give_up(tmp_path, mirror, 2000)
    path = tmp_path / photo(1)[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(photo(1)[1])
    size = len(mirror.files[PHOTOS])
    needed = size - 2000 + round(1.03 * size) - 3000
    monkeypatch.setattr(
        downloading.shutil,
        "disk_usage",
        lambda _: shutil._ntuple_diskusage(10**12, 0, needed - 1),
    )
    assert f"{needed / 1000:.1f} kB are needed there" in fault(lambda: fetch(tmp_path))


def test_a_server_that_tells_no_length_is_taken_at_the_published_size(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.headers = {"Content-Length": None}
    monkeypatch.setattr(
        downloading.shutil,
        "disk_usage",
        lambda _: shutil._ntuple_diskusage(10**12, 0, 243 * 10**9),
    )
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path}: 243.6 GB are needed there and 243.0 GB are free; make room, or put a link "
        "to a folder on a larger disk in its place"
    )


def test_sizes_are_written_in_a_unit_that_fits() -> None:
    sizes = (0, 999, 1000, 1_250_000, 161_500_000_000, 2 * 10**12)
    shown = ["0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "161.5 GB", "2,000.0 GB"]
    assert [downloading._shown(size) for size in sizes] == shown


def test_a_read_only_folder_is_named(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})

    def refuse(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(downloading, "locked", refuse)
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / '.download.lock'}: Read-only file system; mend that, and the same command "
        "goes on from there"
    )


def test_the_record_comes_after_the_flush_of_the_photos(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    seen: list[tuple[bool, bool]] = []

    def flush() -> None:
        seen.append(((tmp_path / photo(1)[0]).exists(), (tmp_path / "download.json").exists()))

    monkeypatch.setattr(os, "sync", flush)
    fetch(tmp_path)
    assert seen == [(True, False)]


def test_root_and_photo_folders_may_be_links(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}")), PHOTOS: tarred(photo(1), photo(2))})
    for name in ("real", "large"):
        (tmp_path / name).mkdir()
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "root" / "train_val2018").symlink_to(tmp_path / "large")
    assert fetch(tmp_path / "root").n_files == 3
    assert (tmp_path / "real/train2018.json").read_bytes() == b"{}"
    assert tree(tmp_path / "large") == {
        name.removeprefix("train_val2018/"): content for name, content in (photo(1), photo(2))
    }
    assert (tmp_path / "root" / "train_val2018").is_symlink()
    assert fetch(tmp_path / "root").fetched == ()


def test_an_interrupted_unpacking_goes_on_where_it_stopped(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [photo(n) for n in range(4)]
    mirror.offer({PHOTOS: tarred(*photos)})
    written: list[str] = []
    stop_at = "2.jpg"

    def copy(source: Any, target: Any, length: int) -> None:
        name = Path(target.name).name.removeprefix(".partial-")
        if name == stop_at:
            target.write(source.read(1000))
            raise KeyboardInterrupt
        written.append(name)
        target.write(source.read())

    monkeypatch.setattr(unpacking.shutil, "copyfileobj", copy)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path)
    assert tree(tmp_path / "train_val2018") == {
        name.removeprefix("train_val2018/"): content for name, content in photos[:2]
    }
    assert not (tmp_path / "download.json").exists()
    # What a kill leaves behind, and a photo that is shorter than it should be.
    leftover = tmp_path / "train_val2018/Aves/2/.partial-2.jpg"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    (tmp_path / photos[1][0]).write_bytes(b"short")
    stop_at = ""
    mirror.asked()
    assert fetch(tmp_path).n_files == 4
    assert mirror.asked() == []
    assert written == ["0.jpg", "1.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert tree(tmp_path) == dict(photos)


def test_the_command_line_tells_an_interruption(
    tmp_path: Path,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching.Part, "_take", interrupt)
    assert main(["data", "download", SLUG, "--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "inat: interrupted\n"


def test_of_two_processes_one_works_and_a_killed_one_lets_go(
    tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}"))})
    words = ["data", "download", SLUG, "--root", str(tmp_path), "--base-url", mirror.url]
    words += ["--only", "annotations"]
    at_work, ended = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        at_work.set()
        ended.wait(30)

    mirror.before = hold
    other = subprocess.Popen([sys.executable, "-m", "inat", *words])
    try:
        assert at_work.wait(30)
        mirror.asked()
        assert main(words) == 1
        assert capsys.readouterr().err == (
            f"inat: {tmp_path}: another inat data download is at work there; wait until it is "
            "done\n"
        )
        assert mirror.asked() == []
        other.send_signal(signal.SIGKILL)
    finally:
        other.kill()
        other.wait()
        ended.set()
        mirror.before = lambda asked: None
    assert main(words) == 0
    assert tree(tmp_path) == {"train2018.json": b"{}"}


def test_what_another_process_completed_meanwhile_is_not_fetched_again(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}"))})
    really_locked = downloading.locked

    @contextmanager
    def late(path: Path, busy: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(downloading, "locked", really_locked)
            fetch(tmp_path)
        with really_locked(path, busy):
            yield

    monkeypatch.setattr(downloading, "locked", late)
    assert fetch(tmp_path) == Downloaded(tmp_path, (), (TRAIN,), 0)
    assert mirror.asked() == [f"HEAD {TRAIN}", f"GET {TRAIN}"]


def test_the_function_has_its_name_and_the_verb_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert inat.download is download
    assert inat.download is download  # the second time too: no module has its name
    assert main(["data", "download", "--help"]) == 0
    assert "From Python: inat.download" in " ".join(capsys.readouterr().out.split())


def test_make_world_and_a_download_do_not_mix_in_silence(tmp_path: Path, mirror: Mirror) -> None:
    make_world(tmp_path, counts=(3, 2), n_val=1, n_test=1)
    before = tree(tmp_path)
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}"))})
    assert "move it away, or give another --root" in fault(lambda: fetch(tmp_path), InputError)
    after = tree(tmp_path)
    after.pop(TRAIN)
    assert after == before

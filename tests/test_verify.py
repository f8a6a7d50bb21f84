"""Every photo is looked at once, and what is wrong with it stands in the report."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from photo_reading import read_whole
from PIL import Image
from worlds import make_world
from xxhash import xxh3_128_hexdigest

from inat import pack_photos, verify
from inat.acquire import verify as verifying
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.photos.decode import BadPhoto
from inat.photos.sources import PhotoFiles

NO_PHOTO = "no photo of a known format (JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF)"
CUT_OFF = "cut off or damaged: Corrupt JPEG data: premature end of data segment"
NO_FILE = "No such file or directory"
KINDS = ("missing", "bad", "recovered", "mismatched", "slow", "copied")


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).normal(0, 15, (height, width, 3))
    return np.clip((x + y)[:, :, None] + 40 + grain, 0, 255).astype(np.uint8)


def jpeg(height: int = 60, width: int = 80, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture(height, width)).save(buffer, "JPEG", exif=exif, **options)
    return buffer.getvalue()


def annotate(
    root: Path, rows: list[tuple[str, tuple[int, int] | None]], file: str = "train2018.json"
) -> None:
    """Writes annotations of one species for rows of a name and a stated height and width."""
    first = 0 if file.startswith("train") else 1000
    images = [
        {"id": first + at, "file_name": name}
        | ({"height": size[0], "width": size[1]} if size else {})
        for at, (name, size) in enumerate(rows)
    ]
    document = {
        "images": images,
        "annotations": [
            {"id": row["id"], "image_id": row["id"], "category_id": 5} for row in images
        ],
        "categories": [{"id": 5, "name": "Prunella modularis"}],
    }
    root.mkdir(exist_ok=True)
    (root / file).write_bytes(orjson.dumps(document))


def data_set(root: Path, photos: dict[str, bytes | None]) -> Path:
    annotate(root, [(name, (60, 80)) for name in photos])
    for name, content in photos.items():
        if content is not None:
            (root / name).write_bytes(content)
    return root


def troubled() -> dict[str, bytes | None]:
    whole = jpeg(quality=95)
    return {
        "good.jpg": whole,
        "cut.jpg": whole[: int(len(whole) * 0.97)],
        "progressive.jpg": jpeg(progressive=True)[:-200],
        "empty.jpg": b"",
        "gone.jpg": None,
        "no_end.jpg": whole[:-2],
        "small.jpg": jpeg(30, 40),
        "text.jpg": b"<html>gone</html>",
    }


def report_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content


def refusal(call: Callable[[], object], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def finding(name: str, reason: str) -> dict[str, str]:
    return {"file_name": name, "reason": reason}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PHOTOS_PER_BLOCK", 3)


# What is found


def test_a_sound_data_set_has_nothing_to_report(world: Path, tmp_path: Path) -> None:
    verified = verify(world, report=tmp_path / "report.json", workers=2)
    assert verified.faults() == ""
    assert verified.lines()[0] == (
        f"{world}: 63 photos, 0 missing, 0 bad, 0 recovered, 0 mismatched, 0 slow, 0 copied; "
        f"see {tmp_path}/report.json"
    )
    assert report_of(tmp_path / "report.json") == {
        "root": str(world), "part": "1/1", "n_photos": 63, "missing": [], "bad": [],
        "recovered": [], "mismatched": [], "slow": [], "copied": [], "damaged_files": [],
    }  # fmt: skip


def copied_world(root: Path) -> Path:
    """A world with copies; sorted, 0 to 5 of the images of train are of one species."""
    make_world(root, counts=(6, 3, 3, 3))
    documents = {name: orjson.loads((root / f"{name}2018.json").read_bytes())
                 for name in ("train", "val", "test")}  # fmt: skip
    label_of = {row["image_id"]: row["category_id"] for row in documents["train"]["annotations"]}
    train = sorted(documents["train"]["images"], key=lambda row: label_of[row["id"]])
    files = {"train": train} | {name: documents[name]["images"] for name in ("val", "test")}
    copies = [
        ("train", 0, "train", 1),  # of one species: no harm
        ("train", 2, "train", 6),  # of two
        ("train", 3, "val", 0),
        ("train", 7, "test", 0),
        ("train", 7, "test", 1),
        ("val", 1, "test", 2),
    ]
    for split, at, other, place in copies:
        (root / files[other][place]["file_name"]).write_bytes(
            (root / files[split][at]["file_name"]).read_bytes()
        )
    names = {
        kind: [files[split][at]["file_name"] for split, at in photos]
        for kind, photos in {
            "two species": [("train", 2), ("train", 6)],
            "train and val": [("train", 3), ("val", 0)],
            "train and test": [("train", 7), ("test", 0), ("test", 1)],
            "val and test": [("val", 1), ("test", 2)],
        }.items()
    }
    (root / "expected.json").write_bytes(orjson.dumps(names))
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_copies_under_two_species_and_in_two_splits_are_listed_with_their_twin(
    tmp_path: Path, workers: int
) -> None:
    root = copied_world(tmp_path / "data")
    expected = orjson.loads((root / "expected.json").read_bytes())
    verified = verify(root, workers=workers)
    assert verified.lines()[0].endswith(", 9 copied; see " + str(root / "verify.json"))
    assert verified.faults() == ""
    found = {row["file_name"]: row["reason"] for row in report_of(root / "verify.json")["copied"]}
    assert list(found) == sorted(name for names in expected.values() for name in names)
    one, other = expected["two species"]
    assert found[one] == f"the bytes of {other}, in train as category 2 and train as category 10"
    assert found[other].startswith(f"the bytes of {one}, in train as category")
    for kind in ("train and val", "train and test", "val and test"):
        first, second = kind.split(" and ")
        for name in expected[kind]:
            twin = found[name].removeprefix("the bytes of ").partition(",")[0]
            assert twin in expected[kind] and twin != name
            assert first in found[name] and second in found[name]


def test_one_file_under_two_ids_and_two_species_is_listed(tmp_path: Path) -> None:
    root = make_world(tmp_path / "data", counts=(3, 3, 3, 3))
    path = root / "train2018.json"
    document = orjson.loads(path.read_bytes())
    image, label = document["images"][0], document["annotations"]
    own = next(row["category_id"] for row in label if row["image_id"] == image["id"])
    other = 2 if own != 2 else 10
    document["images"] += [{**image, "id": 7000}, {**document["images"][1], "id": 7001}]
    of_next = next(r for r in label if r["image_id"] == document["images"][1]["id"])
    label += [{"image_id": 7000, "category_id": other}, {**of_next, "image_id": 7001}]
    path.write_bytes(orjson.dumps(document))
    low, high = sorted([own, other])
    found = verify(root).findings.copied
    assert [f.file_name for f in found] == [image["file_name"]]
    assert set(found[0].reason.removeprefix("in ").split(" and ")) == {
        f"train as category {low}", f"train as category {high}"
    }  # fmt: skip


def test_bytes_that_are_not_those_that_the_annotations_state_are_mismatched(
    tmp_path: Path,
) -> None:
    root = make_world(tmp_path / "data", counts=(3, 2, 2, 2))
    path = root / "train2018.json"
    document = orjson.loads(path.read_bytes())
    for row in document["images"]:
        row["xxh3_128"] = xxh3_128_hexdigest((root / row["file_name"]).read_bytes())
    path.write_bytes(orjson.dumps(document))
    assert verify(root).findings.mismatched == []
    changed = document["images"][4]["file_name"]
    content = (root / changed).read_bytes()
    (root / changed).write_bytes(content + b"\0")
    assert [str(f) for f in verify(root).findings.mismatched] == [
        f"{changed}: its bytes are not those that the annotations state (xxh3_128)"
    ]


def test_copies_are_found_across_an_interruption(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied_world(tmp_path / "data")
    last = verify(root, workers=0).findings.copied
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    with monkeypatch.context() as patch:
        stop_at(patch, names[-1])
        with pytest.raises(KeyboardInterrupt):
            verify(root, workers=0)
    seen = spied(monkeypatch)
    assert verify(root, workers=0).findings.copied == last
    assert 0 < len(seen) <= 3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_fault_is_listed_with_its_reason(workers: int, tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", troubled())
    verified = verify(root, workers=workers)
    found = report_of(root / "verify.json")
    assert found["missing"] == [finding("gone.jpg", NO_FILE)]
    bad = {row["file_name"]: row["reason"] for row in found["bad"]}
    assert list(bad) == ["cut.jpg", "empty.jpg", "progressive.jpg", "text.jpg"]
    assert bad["cut.jpg"] == CUT_OFF
    assert bad["empty.jpg"] == "the file is empty"
    assert bad["progressive.jpg"].startswith("cut off or damaged: ")
    assert bad["text.jpg"] == NO_PHOTO
    assert found["recovered"] == [finding("no_end.jpg", "no end marker")]
    assert found["mismatched"] == [
        finding("small.jpg", "the annotations state 80 x 60, it is 40 x 30")
    ]
    assert found["n_photos"] == 8
    assert verified.report == root / "verify.json"
    assert verified.faults() == (
        f"{root}: 1 missing, 4 bad of 8 photos (first: gone.jpg: {NO_FILE}); all are listed in "
        f"{root}/verify.json"
    )


def test_a_file_that_is_there_and_cannot_be_read_is_bad(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", {"good.jpg": jpeg(), "folder.jpg": None})
    (root / "folder.jpg").mkdir()
    assert [str(f) for f in verify(root).findings.bad] == ["folder.jpg: a folder, not a file"]


def test_a_size_may_be_stated_before_or_after_exif_turned_the_photo(tmp_path: Path) -> None:
    root = tmp_path / "data"
    annotate(root, [("a.jpg", (60, 80)), ("b.jpg", (80, 60)), ("c.jpg", None), ("d.jpg", (80, 60))])
    for name in "abc":
        (root / f"{name}.jpg").write_bytes(jpeg(orientation=6))
    (root / "d.jpg").write_bytes(jpeg())
    assert [str(f) for f in verify(root).findings.mismatched] == [
        "d.jpg: the annotations state 60 x 80, it is 80 x 60"
    ]


def test_rows_that_share_a_photo_are_looked_at_once_and_each_size_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    annotate(root, [("a.jpg", (60, 80)), ("b.jpg", (1, 2)), ("a.jpg", (60, 80))])
    annotate(root, [("a.jpg", (3, 4)), ("b.jpg", (60, 80))], "val2018.json")
    for name in "ab":
        (root / f"{name}.jpg").write_bytes(jpeg())
    read = spied(monkeypatch)
    verified = verify(root, workers=0)
    assert read == ["a.jpg", "b.jpg"]
    assert verified.n_photos == 2
    assert [str(f) for f in verified.findings.mismatched] == [
        "a.jpg: the annotations state 4 x 3, it is 80 x 60",
        "b.jpg: the annotations state 2 x 1, it is 80 x 60",
    ]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the photos that are read from now on."""
    names: list[str] = []
    read = PhotoFiles.read

    def reading(files: PhotoFiles, index: int) -> bytes:
        names.append(Path(files.path(index)).name)
        return read(files, index)

    monkeypatch.setattr(PhotoFiles, "read", reading)
    return names


def test_a_photo_that_was_slow_is_reported_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", {"a.jpg": jpeg(), "b.jpg": b"text", "c.jpg": jpeg()})
    clock = iter([0.0, 1.0, 10.0, 12.25, 20.0, 21.04])
    monkeypatch.setattr(verifying, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    verified = verify(root, workers=0)
    assert [str(f) for f in verified.findings.slow] == ["b.jpg: took 2.2 s", "c.jpg: took 1.0 s"]
    assert [str(f) for f in verified.findings.bad] == [f"b.jpg: {NO_PHOTO}"]


@pytest.mark.parametrize("options", [{"quality": 95}, {"progressive": True}])
def test_an_eighth_of_the_size_shows_every_cut_that_the_whole_decode_shows(
    options: dict[str, Any],
) -> None:
    content = jpeg(200, 300, **options)

    def seen(cut: int, factor: int) -> str:
        try:
            return read_whole(content[: len(content) - cut], factor).recovered
        except BadPhoto as error:
            return str(error)

    for cut in (0, 1, 2, 3, 4, 10, 50, 300, 2000, len(content) // 2):
        assert seen(cut, 8) == seen(cut, 1), cut
    assert seen(2, 8) == "no end marker"
    assert seen(50, 8).startswith("cut off or damaged: ")


# Parts and resuming


@pytest.mark.usefixtures("small_blocks")
def test_the_parts_together_find_what_one_finds(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", troubled())
    verify(root)
    whole = report_of(root / "verify.json")
    parts = []
    for number in (1, 2, 3):
        verified = verify(root, part=f"{number}/3")
        assert verified.report == root / f"verify.part-{number}-of-3.json"
        parts.append(report_of(verified.report))
    for kind in KINDS:
        assert [row for part in parts for row in part[kind]] == whole[kind]
    assert sum(part["n_photos"] for part in parts) == whole["n_photos"]


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Lets the reading of one photo be interrupted."""
    read = PhotoFiles.read

    def reading(files: PhotoFiles, index: int) -> bytes:
        if files.path(index).endswith(name):
            raise KeyboardInterrupt
        return read(files, index)

    monkeypatch.setattr(PhotoFiles, "read", reading)


@pytest.fixture
def interrupted(tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A verification that did two blocks of three photos and was stopped in the third."""
    root = data_set(tmp_path / "data", troubled())
    with monkeypatch.context() as patch:
        stop_at(patch, "text.jpg")
        with pytest.raises(KeyboardInterrupt):
            verify(root, workers=0)
    assert not (root / "verify.json").exists()
    return root


def test_an_interrupted_verification_goes_on_and_ends_with_the_same_report(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = spied(monkeypatch)
    verify(interrupted, workers=0)
    assert names == ["small.jpg", "text.jpg"]
    verify(interrupted, workers=2, report=tmp_path / "whole.json")
    assert (tmp_path / "whole.json").read_bytes() == (interrupted / "verify.json").read_bytes()
    left = {path.name for path in interrupted.glob(".verify*")}
    assert left == {".verify.json.lock"}


def test_a_block_whose_files_changed_is_looked_at_again(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (interrupted / "gone.jpg").write_bytes(jpeg())
    names = spied(monkeypatch)
    assert verify(interrupted, workers=0).findings.missing == []
    # Sorted: cut, empty, gone | good, no_end, progressive | small, text.
    assert names == ["cut.jpg", "empty.jpg", "gone.jpg", "small.jpg", "text.jpg"]


def test_other_annotations_begin_anew(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = spied(monkeypatch)
    sizes = {name: (30, 40) if name == "small.jpg" else (60, 80) for name in troubled()}
    annotate(interrupted, list(sizes.items()))
    assert verify(interrupted, workers=0).findings.mismatched == []
    assert len(names) == 8


def test_a_second_verification_looks_at_everything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", troubled())
    names = spied(monkeypatch)
    for _ in range(2):
        verify(root, workers=0)
    assert len(names) == 16


# Packs


def packed(tmp_path: Path, photos: dict[str, bytes | None], **options: Any) -> Path:
    root = data_set(tmp_path / "data", photos)
    pack_photos(root, tmp_path / "pack", **{"short_side": 50, **options})
    return tmp_path / "pack"


def test_a_pack_is_verified_as_the_folder_it_was_made_of(tmp_path: Path) -> None:
    pack = packed(tmp_path, troubled())
    verify(pack)
    in_pack, in_folder = report_of(pack / "verify.json"), (tmp_path / "data")
    verify(in_folder)
    expected = report_of(in_folder / "verify.json")
    assert in_pack["missing"] == [finding("gone.jpg", "it was missing when the pack was made")]
    assert in_pack["bad"] == expected["bad"]
    # A photo that was recovered and shrunk is sound in the pack.
    assert in_pack["recovered"] == []
    # Sizes are those of the files that were packed.
    assert in_pack["mismatched"] == expected["mismatched"]
    assert in_pack["damaged_files"] == []


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_shard_is_listed_with_the_photo(tmp_path: Path) -> None:
    small = jpeg(30, 40)
    pack = packed(tmp_path, {"a.jpg": small, "b.jpg": jpeg(31, 40)})
    shard = pack / "photos/part-0001-of-0001/shard-00000.arrow"
    flip(shard, shard.read_bytes().index(small) + 900)
    verified = verify(pack)
    (bad,) = verified.findings.bad
    assert bad.file_name == "a.jpg"
    assert bad.reason.startswith("its checksum is not the one that was packed; delete ")
    name = "photos/part-0001-of-0001/shard-00000.arrow"
    assert [str(f) for f in verified.damaged_files] == [
        f"{name}: its SHA-256 is not the manifest's"
    ]
    assert verified.faults().startswith(
        f"{pack}: 0 missing, 1 bad of 2 photos, 1 damaged files (first: a.jpg: its checksum is "
    )


def test_damage_beside_the_photos_is_found_too(tmp_path: Path) -> None:
    pack = packed(tmp_path, {"a.jpg": jpeg()}, part="1/2")
    pack_photos(tmp_path / "data", pack, short_side=50, part="2/2")
    shard = pack / "photos/part-0002-of-0002/shard-00000.arrow"
    flip(shard, shard.read_bytes().index(b"a.jpg"))
    found = [verify(pack, part=f"{number}/2") for number in (1, 2)]
    damaged = [str(f) for part in found for f in part.damaged_files]
    assert damaged == [
        "photos/part-0002-of-0002/shard-00000.arrow: its SHA-256 is not the manifest's"
    ]
    assert [len(part.findings.bad) for part in found] == [0, 0]


def test_a_pack_that_cannot_be_opened_gets_one_line(tmp_path: Path) -> None:
    pack = packed(tmp_path, {"a.jpg": jpeg()}, part="1/2")
    assert refusal(lambda: verify(pack)) == (
        f"{pack}: part 2 of 2 missing or not finished; pack with --part 2/2"
    )


# The world


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", troubled())
    names = spied(monkeypatch)
    real = verifying.locked

    @contextmanager
    def locked(path: Path, busy: str) -> Any:
        if path.parent == root:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        with real(path, busy):
            yield

    monkeypatch.setattr(verifying, "locked", locked)
    assert refusal(lambda: verify(root)) == (
        f"{root}/verify.json: cannot be written (Read-only file system); give --report FILE "
        "elsewhere"
    )
    assert names == []
    report = tmp_path / "reports" / "mine.json"
    assert verify(root, report=report).report == report
    assert len(report_of(report)["bad"]) == 4


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path / "data", {"a.jpg": jpeg()})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(verifying, "write_json", full)
    assert refusal(lambda: verify(root), WorldError) == (
        f"{root}/.verify.json.journal: No space left on device; free some space and run the same "
        "command again, it goes on from there"
    )


def test_the_second_process_that_verifies_gets_one_line(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", {"a.jpg": jpeg()})
    code = (
        "import sys; from pathlib import Path; from inat.core.files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(root / ".verify.json.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen(words, cwd=Path(__file__).parents[1], **pipes)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert refusal(lambda: verify(root), WorldError) == (
            f"{root}/verify.json: another process verifies this; wait for it, or give another "
            "--report"
        )
        verify(root, part="1/2")
    finally:
        child.communicate()
    verify(root)


def test_impossible_options_are_refused(world: Path) -> None:
    assert refusal(lambda: verify(world, workers=-1)) == (
        "--workers -1 is less than 0; give 0 or more"
    )
    assert refusal(lambda: verify(world, part="x")) == (
        "--part: 'x' is not I/N with I from 1 to N, such as 2/4"
    )


def test_the_verb_leaves_with_1_at_missing_or_bad_photos_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = troubled()
    data_set(Path("mild"), {name: photos[name] for name in ("good.jpg", "no_end.jpg", "small.jpg")})
    assert main(["data", "verify", "mild", "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "mild: 3 photos, 0 missing, 0 bad, 1 recovered, 1 mismatched, 0 slow, 0 copied; "
        "see mild/verify.json\n"
    )
    assert err == ""
    data_set(Path("grave"), {"a.jpg": None, "b.jpg": jpeg()})
    assert main(["data", "verify", "grave", "--part", "1/1", "--report", "r.json"]) == 1
    out, err = capsys.readouterr()
    assert out == (
        "grave: 2 photos, 1 missing, 0 bad, 0 recovered, 0 mismatched, 0 slow, 0 copied; "
        "see r.json\n"
    )
    assert err == (
        f"inat: grave: 1 missing, 0 bad of 2 photos (first: a.jpg: {NO_FILE}); all are listed in "
        "r.json\n"
    )
    assert main(["data", "verify", "--help"]) == 0
    assert "From Python: inat.verify" in " ".join(capsys.readouterr().out.split())

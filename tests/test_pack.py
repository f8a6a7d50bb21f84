"""A pack gives back what was packed, byte for byte or shrunk, or says what became of it."""

import errno
import io
import mmap
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import simplejpeg
from photo_reading import read_whole
from PIL import Image, ImageOps

from inat import load_split, pack_photos
from inat.acquire import pack as packing
from inat.acquire.pack import Packed, target_size
from inat.acquire.parts import names_digest, part_range, photo_names
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import locked
from inat.core.threads import in_order
from inat.photos.decode import BadPhoto
from inat.photos.pack import SHARD_SCHEMA, PackedPhotos, is_pack, read_parts

HEIGHT, WIDTH = 90, 120
SHORT = 48


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Gradients of a colour of its own, with a corner that is like no other."""
    y, x = np.mgrid[:height, :width]
    shift = np.random.default_rng(seed).integers(0, 60, 3)
    bands = (180 * x / width, 180 * y / height, 40 + 100 * (x / width) * (y / height))
    return (np.stack(bands, axis=2) + shift).astype(np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95)
    return content


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def data_set(root: Path, photos: Mapping[str, bytes | None]) -> Path:
    """A data set of one species; a photo of None is in the annotations alone."""
    rows = [{"id": at, "file_name": name} for at, name in enumerate(photos)]
    document = {
        "images": rows,
        "annotations": [{"id": at, "image_id": at, "category_id": 5} for at in range(len(rows))],
        "categories": [{"id": 5, "name": "Prunella modularis"}],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "train2018.json").write_bytes(orjson.dumps(document))
    for name, content in photos.items():
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    return root


def many(n: int = 11) -> dict[str, bytes]:
    """Every third photo small enough to be kept, in an order that is not that of the names."""
    photos = {}
    for at in range(n):
        pixels = picture(at, 40, 50 + at) if at % 3 == 0 else picture(at, HEIGHT, WIDTH + at)
        photos[f"train_val2018/Aves/{7 * at % n}/{at}.jpg"] = jpeg(pixels)
    return photos


def pack(root: Path, out: Path, **options: Any) -> Packed:
    return pack_photos(root, out, **{"short_side": SHORT, "workers": 2, **options})


def open_pack(root: Path) -> dict[str, Callable[[], bytes]]:
    """A reader for each name in the annotations of a pack."""
    names = load_split(root, "train").file_names
    photos = PackedPhotos(root, names)
    return {
        name: lambda index=index: bytes(photos.read(index))
        for index, name in enumerate(names.to_pylist())
    }


def read_all(root: Path) -> dict[str, bytes]:
    return {name: read() for name, read in open_pack(root).items()}


def facts(root: Path) -> dict[str, dict[str, Any]]:
    """What the shards say of each photo, read as any Arrow reader does."""
    rows = {}
    for path in sorted(root.glob("photos/*/shard-*.arrow")):
        for row in pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all().to_pylist():
            rows[row["file_name"]] = row
    return rows


def one(tmp_path: Path, content: bytes, **options: Any) -> tuple[bytes, dict[str, Any]]:
    """What a pack of one photo gives back, and its facts."""
    root = data_set(tmp_path / "data", {"a.jpg": content})
    assert pack(root, tmp_path / "pack", **options).faults() == ""
    return read_all(tmp_path / "pack")["a.jpg"], facts(tmp_path / "pack")["a.jpg"]


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def part_path(root: Path, number: int = 1, n_parts: int = 1) -> Path:
    return root / "photos" / f"part-{number:04}-of-{n_parts:04}"


def part_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a part but the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def refusal(call: Callable[[], object], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PHOTOS_PER_SHARD", 4)
    monkeypatch.setattr(packing, "PHOTOS_PER_BATCH", 3)


# What is stored


@pytest.mark.parametrize(
    "content",
    [
        jpeg(picture(0, SHORT, 200)),
        jpeg(picture(0, 200, SHORT)),
        saved(Image.fromarray(picture(0, 30, 40)), "PNG"),
        saved(Image.fromarray(picture(0, 30, 40)), "GIF"),
        saved(Image.fromarray(picture(0, 30, 40)), "WEBP"),
        jpeg(picture(0, 30, 40)) + b"trailing bytes of a camera",
    ],
    ids=["wide", "tall", "png", "gif", "webp", "trailing"],
)
def test_a_photo_of_at_most_the_short_side_is_stored_byte_for_byte(
    content: bytes, tmp_path: Path
) -> None:
    stored, row = one(tmp_path, content)
    assert stored == content
    assert row["content"] == content
    assert row["reduced"] is False
    height, width = decoded(content).shape[:2]
    assert (row["height"], row["width"]) == (height, width)
    assert (row["original_height"], row["original_width"]) == (height, width)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_larger_photo_is_a_jpeg_of_the_short_side_as_pillow_would_resize_it(
    form: str, tmp_path: Path
) -> None:
    options = {"quality": 97, "subsampling": 0} if form == "JPEG" else {}
    content = saved(Image.fromarray(picture()), form, **options)
    stored, row = one(tmp_path, content, quality=97)
    assert (row["height"], row["width"], row["reduced"]) == (SHORT, 64, True)
    assert (row["original_height"], row["original_width"]) == (HEIGHT, WIDTH)
    assert simplejpeg.decode_jpeg_header(stored) == (SHORT, 64, "YCbCr", "420")
    original = Image.open(io.BytesIO(content))
    expected = np.asarray(original.resize((64, SHORT), Image.Resampling.BILINEAR))
    assert difference(decoded(stored), expected) < 1


def test_a_photo_far_larger_is_still_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 200  # finer than the result can show: an even grey
    stored, row = one(tmp_path, saved(Image.fromarray(stripes), "PNG"), quality=97)
    assert (row["height"], row["width"]) == (SHORT, 64)
    assert np.abs(decoded(stored).astype(int) - 100).max() <= 4
    pixels = np.clip(picture(0, 961, 1277).astype(int) + 20, 0, 255).astype(np.uint8)
    jpeg_stored, row = one(tmp_path / "jpeg", jpeg(pixels), quality=97)
    assert (row["height"], row["width"]) == (SHORT, 64)
    expected = np.asarray(Image.fromarray(pixels).resize((64, SHORT), Image.Resampling.BILINEAR))
    assert difference(decoded(jpeg_stored), expected) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_shrunk_photo_stands_upright_without_exif(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(picture()), "JPEG", quality=97, exif=exif)
    stored, row = one(tmp_path, content, quality=97)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    size = (64, SHORT) if orientation < 5 else (SHORT, 64)
    assert (row["width"], row["height"]) == size
    assert (row["original_width"], row["original_height"]) == upright.size
    expected = np.asarray(upright.resize(size, Image.Resampling.BILINEAR))
    assert difference(decoded(stored), expected) < 1
    assert not Image.open(io.BytesIO(stored)).getexif()


def test_a_small_photo_keeps_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(picture(0, 30, 40)), "JPEG", exif=exif)
    stored, row = one(tmp_path, content)
    assert stored == content
    assert (row["height"], row["width"]) == (40, 30)


def test_cmyk_grey_and_transparent_photos_keep_their_colours(tmp_path: Path) -> None:
    rgb = Image.fromarray(picture())
    alpha = Image.fromarray(np.full((HEIGHT, WIDTH), 128, np.uint8))
    clear = rgb.copy()
    clear.putalpha(alpha)
    over_white = Image.blend(Image.new("RGB", rgb.size, "white"), rgb, 128 / 255)
    cases = {
        "cmyk": (saved(rgb.convert("CMYK"), "JPEG", quality=97), rgb),
        "grey": (saved(rgb.convert("L"), "JPEG", quality=97), rgb.convert("L").convert("RGB")),
        "clear": (saved(clear, "PNG"), over_white),
    }
    for name, (content, expected) in cases.items():
        stored, _ = one(tmp_path / name, content, quality=97)
        resized = np.asarray(expected.resize((64, SHORT), Image.Resampling.BILINEAR))
        assert difference(decoded(stored), resized) < 2, name


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (600, 800, (384, 512)),
        (800, 600, (512, 384)),
        (384, 800, (384, 800)),
        (385, 385, (384, 384)),
        (383, 5000, (383, 5000)),
        (450, 799, (384, 682)),  # 681.8
        (400, 60_000, (384, 57_600)),
        (400, 190_000, (400, 190_000)),  # a JPEG has no room for it
    ],
)
def test_the_short_side_becomes_exact_and_the_long_one_is_rounded(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert target_size(height, width, 384) == expected


# Troubled photos


def troubled() -> dict[str, bytes | None]:
    whole = jpeg(picture())
    return {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "gone.jpg": None,
        "good.jpg": whole,
        "no_end.jpg": whole[:-2],
        "small_no_end.jpg": jpeg(picture(1, 30, 40))[:-2],
        "text.jpg": b"<html>gone</html>",
    }


NO_PHOTO = "no photo of a known format (JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF)"
CUT_OFF = "cut off or damaged: Corrupt JPEG data: premature end of data segment"


def test_troubled_photos_are_listed_with_their_reasons(tmp_path: Path) -> None:
    packed = pack(data_set(tmp_path / "data", troubled()), tmp_path / "pack")
    assert [(f.file_name, f.reason) for f in packed.bad] == [
        ("cut.jpg", CUT_OFF), ("empty.jpg", "the file is empty"), ("text.jpg", NO_PHOTO),
    ]  # fmt: skip
    assert [str(f) for f in packed.missing] == ["gone.jpg: No such file or directory"]
    assert [str(f) for f in packed.recovered] == [
        "no_end.jpg: no end marker", "small_no_end.jpg: no end marker",
    ]  # fmt: skip
    manifest = orjson.loads(packed.manifest.read_bytes())
    assert manifest["missing"] == [{"file_name": "gone.jpg", "reason": "No such file or directory"}]
    assert [len(manifest[kind]) for kind in ("bad", "recovered")] == [3, 2]
    assert (packed.n_photos, packed.n_reduced) == (7, 2)


def test_bad_photos_fail_in_the_pack_as_they_fail_in_the_folder(tmp_path: Path) -> None:
    photos = troubled()
    pack(data_set(tmp_path / "data", photos), tmp_path / "pack")
    readers = open_pack(tmp_path / "pack")
    for name, reason in (("cut.jpg", CUT_OFF), ("empty.jpg", "the file is empty"),
                         ("text.jpg", NO_PHOTO)):  # fmt: skip
        content = readers[name]()
        assert content == photos[name]
        assert refusal(lambda c=content: read_whole(c), BadPhoto) == reason
    assert refusal(readers["gone.jpg"], BadPhoto) == "it was missing when the pack was made"


def test_a_recovered_photo_is_stored_whole_or_as_it_is(tmp_path: Path) -> None:
    photos = troubled()
    pack(data_set(tmp_path / "data", photos), tmp_path / "pack")
    stored = read_all_readable(tmp_path / "pack")
    assert stored["no_end.jpg"] == stored["good.jpg"]
    assert stored["small_no_end.jpg"] == photos["small_no_end.jpg"]


def read_all_readable(root: Path) -> dict[str, bytes]:
    return {name: read() for name, read in open_pack(root).items() if name != "gone.jpg"}


def test_a_run_after_mending_packs_anew_what_was_missing_or_bad_and_nothing_else(
    tmp_path: Path, small_shards: None
) -> None:
    root = data_set(tmp_path / "data", troubled())
    pack(root, tmp_path / "pack")
    folder = part_path(tmp_path / "pack")
    # Sorted, shard 0 has cut, empty, gone and good.
    kept = (folder / "shard-00001.arrow").stat()
    for name in ("cut.jpg", "empty.jpg", "gone.jpg"):
        (root / name).write_bytes(jpeg(picture(7)))
    packed = pack(root, tmp_path / "pack")
    assert [f.file_name for f in (*packed.missing, *packed.bad)] == ["text.jpg"]
    stored = read_all(tmp_path / "pack")
    assert stored["gone.jpg"] == stored["cut.jpg"] == stored["empty.jpg"]
    assert decoded(stored["gone.jpg"]).shape == (SHORT, 64, 3)
    after = (folder / "shard-00001.arrow").stat()
    assert (after.st_ino, after.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


# Reading


@pytest.mark.usefixtures("small_shards")
def test_random_access_gives_what_reading_in_order_gives(tmp_path: Path) -> None:
    pack(data_set(tmp_path / "data", many()), tmp_path / "pack")
    in_turn = {name: row["content"] for name, row in facts(tmp_path / "pack").items()}
    names = list(in_turn) * 3
    random.Random(0).shuffle(names)
    photos = PackedPhotos(tmp_path / "pack", pa.array(names))
    assert len(photos) == 33
    assert [bytes(photos.read(i)) for i in range(33)] == [in_turn[name] for name in names]
    assert photos.path(4) == f"{tmp_path}/pack/{names[4]}"
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: bytes(photos.read(i % 33)), range(330)))
    assert read == [in_turn[name] for name in names] * 10


def test_reading_copies_nothing(tmp_path: Path) -> None:
    pack(data_set(tmp_path / "data", many()), tmp_path / "pack")
    photos = PackedPhotos(tmp_path / "pack", load_split(tmp_path / "pack").file_names)
    content = photos.read(3)
    assert isinstance(content, memoryview)
    assert isinstance(content.obj, mmap.mmap)
    assert content.readonly


def test_pickled_it_is_a_number_a_photo_and_it_reads_the_same_elsewhere(tmp_path: Path) -> None:
    pack(data_set(tmp_path / "data", many()), tmp_path / "pack")
    names = pa.array(list(many()) * 1000)
    photos = PackedPhotos(tmp_path / "pack", names)
    photos.read(0)
    pickled = pickle.dumps(photos)
    assert len(pickled) < 8 * len(names) + 1000
    elsewhere = pickle.loads(pickled)
    assert [elsewhere.read(i) for i in range(11)] == [photos.read(i) for i in range(11)]
    assert elsewhere.path(10_999) == photos.path(10_999)


def test_a_pack_that_was_replaced_while_in_use_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many())
    pack(root, tmp_path / "pack")
    pickled = pickle.dumps(PackedPhotos(tmp_path / "pack", load_split(root).file_names))
    (tmp_path / "pack").rename(tmp_path / "old")
    pack(root, tmp_path / "pack", short_side=20)
    assert refusal(lambda: pickle.loads(pickled)) == (
        f"{tmp_path}/pack: the pack was replaced while it was in use; start again"
    )


def test_rows_may_share_a_photo_which_is_packed_once(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many(5))
    document = orjson.loads((root / "train2018.json").read_bytes())
    shared = [{**row, "id": 100 + row["id"]} for row in document["images"][:3]]
    (root / "test2018.json").write_bytes(orjson.dumps({"images": shared}))
    assert pack(root, tmp_path / "pack").n_photos == 5
    train, test = (load_split(tmp_path / "pack", name) for name in ("train", "test"))
    photos = PackedPhotos(tmp_path / "pack", train.file_names)
    tested = PackedPhotos(tmp_path / "pack", test.file_names)
    assert [bytes(tested.read(i)) for i in range(3)] == [bytes(photos.read(i)) for i in range(3)]


def test_a_pack_has_the_annotations_of_the_folder(world: Path, tmp_path: Path) -> None:
    pack(world, tmp_path / "pack", short_side=32)
    assert is_pack(tmp_path / "pack")
    assert not is_pack(world)
    for name in ("train", "val", "test"):
        split, original = load_split(tmp_path / "pack", name), load_split(world, name)
        assert split.file_names.equals(original.file_names)
        assert np.array_equal(split.image_ids, original.image_ids)
        assert np.array_equal(split.labels, original.labels)
        assert split.fingerprint == original.fingerprint
        photos = PackedPhotos(tmp_path / "pack", split.file_names)
        for index in (0, len(split) - 1):
            pixels = read_whole(original.path(index).read_bytes()).pixels
            expected = Image.fromarray(pixels).resize((43, 32), Image.Resampling.BILINEAR)
            assert difference(decoded(bytes(photos.read(index))), np.asarray(expected)) < 4
    assert (tmp_path / "pack" / "train2018.json").samefile(world / "train2018.json")


def test_annotations_are_copied_where_links_cannot_be_had(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(packing.os, "link", refused)
    pack(world, tmp_path / "pack")
    copy = tmp_path / "pack" / "val2018.json"
    assert not copy.samefile(world / "val2018.json")
    assert copy.read_bytes() == (world / "val2018.json").read_bytes()


def test_a_pack_can_be_packed_smaller_and_knows_the_first_sizes(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", troubled())
    pack(root, tmp_path / "large", short_side=60)
    packed = pack(tmp_path / "large", tmp_path / "small", short_side=20)
    assert [str(f) for f in packed.missing] == ["gone.jpg: it was missing when the pack was made"]
    row = facts(tmp_path / "small")["good.jpg"]
    assert (row["height"], row["width"]) == (20, 27)
    assert (row["original_height"], row["original_width"]) == (HEIGHT, WIDTH)
    expected = Image.fromarray(picture()).resize((27, 20), Image.Resampling.BILINEAR)
    assert difference(decoded(row["content"]), np.asarray(expected)) < 2


# Parts


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("n_parts", [2, 3, 20])
def test_any_number_of_parts_read_as_one(n_parts: int, tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many())
    pack(root, tmp_path / "one")
    for number in reversed(range(1, n_parts + 1)):
        pack(root, tmp_path / "several", part=f"{number}/{n_parts}")
    assert read_all(tmp_path / "several") == read_all(tmp_path / "one")


@pytest.mark.parametrize("n_photos", [0, 1, 7, 100])
@pytest.mark.parametrize("n_parts", [1, 2, 3, 8])
def test_the_parts_are_stretches_that_cover_all_photos(n_photos: int, n_parts: int) -> None:
    spans = [part_range(n_photos, number, n_parts) for number in range(1, n_parts + 1)]
    assert [at for span in spans for at in span] == list(range(n_photos))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_missing_parts_are_named(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many())
    out = tmp_path / "pack"
    for number in (1, 3):
        pack(root, out, part=f"{number}/4")
    assert refusal(lambda: open_pack(out)) == (
        f"{out}: parts 2 and 4 of 4 missing or not finished; pack with --part 2/4 and so on"
    )
    pack(root, out, part="4/4")
    part_path(out, 2, 4).mkdir()  # begun
    assert refusal(lambda: open_pack(out)) == (
        f"{out}: part 2 of 4 missing or not finished; pack with --part 2/4"
    )
    pack(root, out, part="2/4")
    assert len(read_all(out)) == 11


def test_a_pack_that_is_not_finished_is_no_folder_of_photos(tmp_path: Path) -> None:
    pack(data_set(tmp_path / "data", many()), tmp_path / "pack")
    (part_path(tmp_path / "pack") / "manifest.json").unlink()
    assert is_pack(tmp_path / "pack")
    assert refusal(lambda: open_pack(tmp_path / "pack")) == (
        f"{tmp_path}/pack: the pack is not finished; run its inat data pack command again"
    )


def test_a_folder_without_a_pack_is_none(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "part-of-mine").mkdir()
    assert not is_pack(tmp_path)
    assert not is_pack(tmp_path / "nowhere")
    assert refusal(lambda: read_parts(tmp_path)) == (
        f"{tmp_path}: holds no pack; make one with inat data pack"
    )


def digest_of(root: Path) -> str:
    return names_digest(photo_names([load_split(root)]))[:12]


@pytest.mark.parametrize(
    ("options", "theirs", "ours"),
    [
        ({"short_side": 32}, "short side 48, quality 92", "short side 32, quality 92"),
        ({"quality": 80}, "short side 48, quality 92", "short side 48, quality 80"),
    ],
)
@pytest.mark.parametrize("part", ["1/2", "2/2"])
def test_a_part_with_other_settings_is_refused_naming_both(
    part: str, options: dict[str, int], theirs: str, ours: str, tmp_path: Path
) -> None:
    root = data_set(tmp_path / "data", many())
    out = tmp_path / "pack"
    pack(root, out, part="1/2")
    before = part_bytes(part_path(out, 1, 2))
    photos = f"list of photos {digest_of(root)}"
    assert refusal(lambda: pack(root, out, part=part, **options)) == (
        f"{part_path(out, 1, 2)} was packed with format 1, {theirs}, {photos}, but "
        f"part-000{part[0]}-of-0002 is to be with format 1, {ours}, {photos}; the parts of a pack "
        "must agree: use the same settings and annotations, or give another --out"
    )
    assert part_bytes(part_path(out, 1, 2)) == before
    assert not part_path(out, 2, 2).exists()


def test_a_part_of_other_annotations_or_of_another_cut_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many())
    other = data_set(tmp_path / "other", many(10))
    out = tmp_path / "pack"
    pack(root, out, part="1/2")
    line = refusal(lambda: pack(other, out, part="2/2"))
    assert f"list of photos {digest_of(root)}, but" in line
    assert f"list of photos {digest_of(other)};" in line
    assert refusal(lambda: pack(root, out, part="2/3")) == (
        f"{part_path(out, 1, 2)} is one of 2 parts, but part-0002-of-0003 was asked for; use the "
        "same number of parts, or give another --out"
    )
    part_path(out, 2, 3).mkdir()
    assert refusal(lambda: read_parts(out)) == (
        f"{out}: part-0001-of-0002 and part-0002-of-0003 are parts of different cuts; delete one"
    )


def test_parts_that_disagree_are_not_joined(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many())
    out = tmp_path / "pack"
    for part in ("1/2", "2/2"):
        pack(root, out, part=part)
    rewrite(part_path(out, 2, 2) / "manifest.json", quality=50)
    line = refusal(lambda: open_pack(out))
    assert line.startswith(f"{part_path(out, 1, 2)} was packed with format 1, short side 48, ")
    assert f"but {part_path(out, 2, 2)} was with format 1, short side 48, quality 50, " in line


def rewrite(path: Path, **fields: object) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **fields}))


def test_the_list_of_photos_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    photos = many()
    first = data_set(tmp_path / "a", photos)
    second = data_set(tmp_path / "b", dict(reversed(photos.items())))
    assert digest_of(first) == digest_of(second)
    assert digest_of(first) != digest_of(data_set(tmp_path / "c", many(10)))
    names = photo_names([load_split(first)]).to_pylist()
    assert names == sorted(photos, key=str.encode)


# Damage


@pytest.fixture
def packed(tmp_path: Path, small_shards: None) -> Path:
    """Eleven photos in shards of four."""
    pack(data_set(tmp_path / "data", many()), tmp_path / "pack")
    return tmp_path / "pack"


def again(root: Path) -> str:
    return (
        f"pack part 1/1 again (inat data pack ROOT --out {root} --short-side 48 --quality 92 "
        "--part 1/1)"
    )


@pytest.mark.parametrize("name", ["shard-00001.arrow", "index.arrow"])
def test_a_file_that_is_cut_off_is_named_and_mended_by_packing_again(
    name: str, packed: Path
) -> None:
    before = part_bytes(part_path(packed))
    path = part_path(packed) / name
    n_bytes = path.stat().st_size
    with path.open("rb+") as handle:
        handle.truncate(n_bytes - 1000)
    assert refusal(lambda: open_pack(packed)) == (
        f"{path}: has {n_bytes - 1000:,} bytes of {n_bytes:,}, it was cut off or replaced; "
        f"{again(packed)}"
    )
    path.unlink()
    assert refusal(lambda: open_pack(packed)) == f"{path}: there is no such file; {again(packed)}"
    pack(packed.parent / "data", packed)
    assert part_bytes(part_path(packed)) == before


def test_a_shard_that_is_cut_off_while_in_use_is_a_bad_photo(packed: Path) -> None:
    readers = open_pack(packed)
    last = part_path(packed) / "shard-00002.arrow"
    in_last = {row["file_name"] for row in pa.ipc.open_file(last).read_all().to_pylist()}
    with last.open("rb+") as handle:
        handle.truncate(0)
    for name, read in readers.items():
        if name in in_last:
            assert refusal(read, BadPhoto) == f"{last}: cannot mmap an empty file"
        else:
            assert read()
    last.unlink()
    assert refusal(readers[min(in_last)], BadPhoto) == f"{last}: No such file or directory"


def test_a_pack_of_another_version_is_refused(packed: Path) -> None:
    manifest = part_path(packed) / "manifest.json"
    rewrite(manifest, format_version=2)
    assert refusal(lambda: open_pack(packed)) == (
        f"{manifest}: a pack of format 2, this inat reads format 1; pack the photos again, or "
        "read them with the inat that packed them"
    )


def test_a_manifest_that_is_none_is_refused(packed: Path) -> None:
    manifest = part_path(packed) / "manifest.json"
    content = orjson.loads(manifest.read_bytes())
    del content["index"]
    manifest.write_bytes(orjson.dumps(content))
    assert refusal(lambda: open_pack(packed)) == (
        f"{manifest}: no manifest of a pack ('index'); delete it and pack that part again"
    )
    manifest.write_bytes(b"[]")
    assert "a pack of format None" in refusal(lambda: open_pack(packed))


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "shard-00001.arrow"])
def test_a_manifest_names_no_files_but_its_own_shards(packed: Path, name: str) -> None:
    manifest = part_path(packed) / "manifest.json"
    shards = orjson.loads(manifest.read_bytes())["shards"]
    rewrite(manifest, shards=[{**shards[0], "name": name}, *shards[1:]])
    last = f"shard-{len(shards) - 1:05}.arrow"
    assert refusal(lambda: open_pack(packed)) == (
        f"{manifest}: names other files than {last}, index.arrow; delete it and {again(packed)}"
    )


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"part": "1"}, "no manifest of a pack (Expected `int`, got `str`)"),
        ({"shards": {}}, "no manifest of a pack (Expected `array`, got `object`)"),
        ({"index": [1]}, "no manifest of a pack (Expected `object`, got `array`)"),
        ({"short_side": "384"}, "no settings of a pack (Expected `int`, got `str` - at "
         "`$.short_side`)"),
    ],
)  # fmt: skip
def test_a_manifest_of_other_types_is_refused(
    packed: Path, fields: dict[str, object], fault: str
) -> None:
    manifest = part_path(packed) / "manifest.json"
    rewrite(manifest, **fields)
    assert refusal(lambda: open_pack(packed)) == (
        f"{manifest}: {fault}; delete it and pack that part again"
    )


def test_a_pack_is_not_read_through_a_link_out_of_its_photos(packed: Path, tmp_path: Path) -> None:
    top = packed / "photos"
    top.rename(tmp_path / "large disk")
    top.symlink_to(tmp_path / "large disk")
    open_pack(packed)
    index = part_path(packed) / "index.arrow"
    index.rename(tmp_path / "index.arrow")
    index.symlink_to(tmp_path / "index.arrow")
    assert refusal(lambda: open_pack(packed)) == (
        f"{index}: a link leads out of {top}; put the file in its place"
    )


def test_an_index_that_is_none_is_refused(packed: Path) -> None:
    index = part_path(packed) / "index.arrow"
    n_bytes = index.stat().st_size
    index.write_bytes(b"\0" * n_bytes)
    assert refusal(lambda: open_pack(packed)).startswith(f"{index}: damaged (")
    index.unlink()
    pack(packed.parent / "data", packed)
    content = bytearray(index.read_bytes())
    content[content.index(np.repeat([0, 1], 4).astype(np.int32).tobytes()) + 3] = 1
    index.write_bytes(content)
    assert refusal(lambda: open_pack(packed)) == (
        f"{index}: damaged (it names no shard); delete it and {again(packed)}"
    )
    shard = (part_path(packed) / "shard-00000.arrow").read_bytes()
    index.write_bytes(shard)
    manifest = part_path(packed) / "manifest.json"
    described = orjson.loads(manifest.read_bytes())["index"]
    rewrite(manifest, index={**described, "n_bytes": len(shard)})
    assert refusal(lambda: open_pack(packed)) == (
        f"{index}: is no index of a pack; delete it and {again(packed)}"
    )


def test_a_damaged_byte_is_a_bad_photo_and_no_other_suffers(packed: Path) -> None:
    row = facts(packed)
    name = list(row)[5]
    shard = part_path(packed) / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(row[name]["content"]) + 700] ^= 1
    shard.write_bytes(content)
    for other, read in open_pack(packed).items():
        if other == name:
            assert refusal(read, BadPhoto) == (
                f"its checksum is not the one that was packed; delete {shard} and {again(packed)}"
            )
        else:
            assert read() == row[other]["content"]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2)], ids=["other size", "same size"])
def test_photos_that_changed_places_are_bad_photos(first: int, second: int, tmp_path: Path) -> None:
    content = jpeg(picture(5, 30, 40))
    photos = {"a.jpg": jpeg(picture(1)), "b.jpg": content, "c.jpg": content[:-2] + b"\xff\xd8"}
    pack(data_set(tmp_path / "data", photos), tmp_path / "pack")
    shard = part_path(tmp_path / "pack") / "shard-00000.arrow"
    rows = pa.ipc.open_file(pa.memory_map(os.fspath(shard))).read_all().to_pylist()
    rows[first]["content"], rows[second]["content"] = (
        rows[second]["content"], rows[first]["content"],
    )  # fmt: skip
    n_bytes = shard.stat().st_size
    shard.unlink()
    with pa.ipc.new_file(os.fspath(shard), SHARD_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, SHARD_SCHEMA))
    assert shard.stat().st_size == n_bytes
    readers = list(open_pack(tmp_path / "pack").values())
    for place in (first, second):
        assert refusal(readers[place], BadPhoto).startswith("its checksum is not the one that ")
    (left,) = {0, 1, 2} - {first, second}
    assert readers[left]() == rows[left]["content"]


def test_a_photo_under_the_name_of_its_twin_differs(tmp_path: Path) -> None:
    content = jpeg(picture(5, 30, 40))
    pack(data_set(tmp_path / "data", {"a.jpg": content, "b.jpg": content}), tmp_path / "pack")
    sums = {row["checksum"] for row in facts(tmp_path / "pack").values()}
    assert len(sums) == 2


def test_photos_that_the_pack_lacks_are_counted_and_the_first_named(packed: Path) -> None:
    names = [*list(many())[:3], "x/new.jpg", "y/new.jpg"]
    assert refusal(lambda: PackedPhotos(packed, pa.array(names))) == (
        f"{packed}: the pack lacks 2 of 5 photos of the annotations (first: x/new.jpg); pack them "
        "into a new folder"
    )


# Interruptions


class Interrupter:
    """Stands for the preparer, and stops at a photo."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at = at
        self.error = error

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare = packing._Preparer.__call__

        def failing(preparer: Any, index: int) -> Any:
            if index == self.at:
                raise self.error
            return prepare(preparer, index)

        monkeypatch.setattr(packing._Preparer, "__call__", failing)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_interrupted_pack_goes_on_and_ends_with_the_same_bytes(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", {**many(), "z/gone.jpg": None, "z/text.jpg": b"text"})
    pack(root, tmp_path / "whole", workers=2)
    out = tmp_path / "pack"
    with monkeypatch.context() as patch:
        Interrupter(9, KeyboardInterrupt()).patch(patch)
        with pytest.raises(KeyboardInterrupt):
            pack(root, out, workers=workers)
    folder = part_path(out)
    names = sorted(path.name for path in folder.glob("*.arrow"))
    assert names == ["shard-00000.arrow", "shard-00001.arrow"]
    assert not (folder / "manifest.json").exists()
    before = {name: (folder / name).stat() for name in names}
    (folder / ".partial-0123-shard-00002.arrow").write_bytes(b"left over by a killed process")
    (folder / "shard-00003.arrow").write_bytes(b"renamed, but its facts were not written")
    pack(root, out, workers=workers)
    for name in names:
        assert (folder / name).stat().st_mtime_ns == before[name].st_mtime_ns
    assert part_bytes(folder) == part_bytes(part_path(tmp_path / "whole"))
    assert read_parts(out)[0].shards == read_parts(tmp_path / "whole")[0].shards


@pytest.mark.usefixtures("small_shards")
def test_the_bytes_are_the_same_whatever_was_done_before(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many())
    pack(root, tmp_path / "pack", workers=0)
    folder = part_path(tmp_path / "pack")
    before = part_bytes(folder)
    pack(root, tmp_path / "pack", workers=3)  # nothing to do
    assert part_bytes(folder) == before
    (folder / "shard-00001.arrow").unlink()
    (folder / "shard-00000.json").unlink()
    (folder / "index.arrow").unlink()
    pack(root, tmp_path / "pack", workers=3)
    assert part_bytes(folder) == before


@pytest.mark.usefixtures("small_shards")
def test_the_index_has_no_place_for_photos_that_are_missing(tmp_path: Path) -> None:
    missing = {f"z/{at}.jpg": None for at in range(9)}  # whole batches of them, too
    root = data_set(tmp_path / "data", {**many(), **missing})
    pack(root, tmp_path / "pack")
    index = pa.ipc.open_file(part_path(tmp_path / "pack") / "index.arrow").read_all().to_pandas()
    gone = index[index["file_name"].str.startswith("z/")]
    assert gone[["offset", "length"]].drop_duplicates().to_numpy().tolist() == [
        [0, packing.MISSING]
    ]
    assert (index.loc[~index.index.isin(gone.index), "offset"] > 0).all()


def test_a_shard_of_other_photos_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", many())
    for length in (5, 4):
        monkeypatch.setattr(packing, "PHOTOS_PER_SHARD", length)
        pack(root, tmp_path / "pack")
    pack(root, tmp_path / "other")
    assert read_all(tmp_path / "pack") == read_all(tmp_path / "other")


class FullDisk(io.RawIOBase):
    """A file on a disk that has no room left after some bytes."""

    def __init__(self, path: str, room: int) -> None:
        super().__init__()
        self.file = open(path, "wb")  # noqa: PTH123, SIM115
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "Error writing bytes")
        return self.file.write(content)

    def close(self) -> None:
        self.file.close()
        super().close()


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_is_named_and_nothing_half_written_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", many())
    pack(root, tmp_path / "whole")
    opened = iter([10**9, 2000])
    out = tmp_path / "pack"
    with monkeypatch.context() as patch:
        patch.setattr(
            packing.pa,
            "OSFile",
            lambda path, mode: pa.PythonFile(FullDisk(path, next(opened)), mode[0]),
        )
        line = refusal(lambda: pack(root, out), WorldError)
    assert line == (
        f"{part_path(out)}/shard-00001.arrow: No space left on device; free some space and run "
        "the same command again, it goes on from there"
    )
    assert sorted(part_bytes(part_path(out))) == [
        "settings.json", "shard-00000.arrow", "shard-00000.json",
    ]  # fmt: skip
    pack(root, out)
    assert part_bytes(part_path(out)) == part_bytes(part_path(tmp_path / "whole"))


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Lets another process hold a lock until the test ends."""
    code = (
        "import sys; from pathlib import Path; from inat.core.files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
    )
    children: list[subprocess.Popen[bytes]] = []

    def hold(path: Path) -> None:
        words = [sys.executable, "-c", code, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen(words, cwd=Path(__file__).parents[1], **pipes)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"

    yield hold
    for child in children:
        child.communicate()


def test_the_second_process_that_packs_a_part_gets_one_line(
    tmp_path: Path, busy: Callable[[Path], None]
) -> None:
    root = data_set(tmp_path / "data", many())
    out = tmp_path / "pack"
    folder = part_path(out, 1, 2)
    folder.mkdir(parents=True)
    busy(folder / ".lock")
    assert refusal(lambda: pack(root, out, part="1/2"), WorldError) == (
        f"{folder}: another process packs this part; wait for it, or pack another part"
    )
    pack(root, out, part="2/2")


def test_a_part_can_be_packed_again_after_a_failed_run_let_go_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "data", many())
    with monkeypatch.context() as patch:
        Interrupter(0, RuntimeError("x")).patch(patch)
        with pytest.raises(RuntimeError):
            pack(root, tmp_path / "pack")
    with locked(part_path(tmp_path / "pack") / ".lock", "still held"):
        pass
    pack(root, tmp_path / "pack")


def test_results_come_in_order_and_the_rest_is_dropped_on_leaving() -> None:
    for workers in (0, 1, 4):
        assert list(in_order(lambda x: x * x, range(500), workers)) == [x * x for x in range(500)]
    asked = []
    results = in_order(lambda x: asked.append(x), iter(range(10**9)), 2)
    next(results)
    results.close()
    assert len(asked) < 1000


# Options and the command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 0}, "--short-side 0 is less than 1; 384 serves crops of 224"),
        ({"quality": 0}, "--quality 0 is not from 1 to 100; 92 is hardly seen"),
        ({"quality": 101}, "--quality 101 is not from 1 to 100; 92 is hardly seen"),
        ({"workers": -1}, "--workers -1 is less than 0; give 0 or more"),
        ({"part": "0/2"}, "--part: '0/2' is not I/N with I from 1 to N, such as 2/4"),
        ({"part": "3/2"}, "--part: '3/2' is not I/N with I from 1 to N, such as 2/4"),
        ({"part": "1"}, "--part: '1' is not I/N with I from 1 to N, such as 2/4"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    options: dict[str, Any], message: str, world: Path, tmp_path: Path
) -> None:
    assert refusal(lambda: pack(world, tmp_path / "pack", **options)) == message
    assert not (tmp_path / "pack").exists()


def test_a_place_in_use_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", many(2))
    assert refusal(lambda: pack(root, root / ".." / "data")) == (
        f"{tmp_path}/data/../data: is the data set's own folder; give another --out"
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    assert refusal(lambda: pack(root, other)) == (
        f"{other}: the folder is not empty and holds no pack (but thesis.tex); give a new --out"
    )
    assert refusal(lambda: pack(root, other / "thesis.tex")) == (
        f"{other}/thesis.tex: is no folder; give another --out"
    )
    assert refusal(lambda: pack(tmp_path / "nowhere", tmp_path / "pack")) == (
        f"{tmp_path}/nowhere: there is no such folder; data.root is the data set's folder"
    )
    assert not (tmp_path / "pack").exists()


def test_the_verb_prints_a_line_and_leaves_with_1_at_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data_set(Path("good"), many())
    words = ["data", "pack", "good", "--out", "pack", "--short-side", "48", "--quality", "90"]
    assert main([*words, "--part", "1/2", "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == "pack: part 1/2, 5 photos, 3 reduced, 0 recovered, 0.0 MB\n"
    assert err == ""
    data_set(Path("bad"), troubled())
    assert main(["data", "pack", "bad", "--out", "other", "--short-side", "48"]) == 1
    out, err = capsys.readouterr()
    assert out == "other: part 1/1, 7 photos, 2 reduced, 2 recovered, 0.0 MB\n"
    assert err == (
        "inat: other: part 1/1 is packed, but of its 7 photos 1 missing, 3 bad (first: gone.jpg: "
        "No such file or directory); all are listed in "
        "other/photos/part-0001-of-0001/manifest.json; mend them and run the same command again\n"
    )
    assert main(["data", "pack", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "From Python: inat.pack_photos" in text

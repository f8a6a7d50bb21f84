"""The cache of annotations: what is found in it, what is not trusted, and where it lies."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import category

from inat.core.errors import InputError
from inat.dataset import annotation_cache, annotation_tables
from inat.dataset.annotation_cache import AnnotationCache, digest, digest_of, key_of
from inat.dataset.profile import describe
from inat.dataset.split import Split, load_split

SPLITS = ("train", "val", "test", "train+val", "holdout", "fold:1/3")


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, not yet there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    annotation_cache._say_once.cache_clear()
    return tmp_path / "user" / "inat"


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    """The world's annotation files alone."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in world.glob("*2018.json"):
        shutil.copy(path, folder)
    return folder


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Edits a JSON file and gives it its old time: only its bytes tell."""
    before = path.stat()
    content = orjson.loads(path.read_bytes())
    edit(content)
    path.write_bytes(orjson.dumps(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def add_locations(root: Path, *, with_date_c: bool = False) -> None:
    for split in ("train", "val"):
        images = orjson.loads((root / f"{split}2018.json").read_bytes())["images"]
        rows: list[dict[str, Any]] = [
            {"id": row["id"], "lat": n / 7, "lon": -n, "date": f"2017-05-{n % 28 + 1:02} 08:30:00"}
            for n, row in enumerate(images)
        ]
        rows[1].update(lat=None, lon=None)
        rows[2]["date"] = None
        rows[3]["date"] = "May 3, 2016"
        if with_date_c:
            for n, row in enumerate(rows):
                row["date_c"] = None if n == 4 else n / 100
        (root / f"{split}2018_locations.json").write_bytes(orjson.dumps(rows[::-1]))


def add_categories(root: Path) -> None:
    real = [{**category(label), "name": f"real {label} ä"} for label in range(4)]
    (root / "categories.json").write_bytes(orjson.dumps(real))


def add_identity(root: Path) -> None:
    """Digests and observations, of some photos."""
    for split in ("train", "val", "test"):
        document = orjson.loads((root / f"{split}2018.json").read_bytes())
        for n, row in enumerate(document["images"]):
            if n % 3:
                row.update(xxh3_128=f"{7 * n:032x}"[::-1], observation_id=n // 2)
        (root / f"{split}2018.json").write_bytes(orjson.dumps(document))


KINDS: dict[str, Callable[[Path], object]] = {
    "plain": lambda root: None,
    "locations": add_locations,
    "date_c": lambda root: add_locations(root, with_date_c=True),
    "categories": add_categories,
    "identity": add_identity,
}


def assert_same(one: Split, other: Split) -> None:
    """Every field, with its type; and none can be written to less."""
    assert (one.name, one.root, one.competition) == (other.name, other.root, other.competition)
    for names in (one.file_names, other.file_names):
        assert isinstance(names, pa.StringArray)
    assert one.file_names.equals(other.file_names)
    for field in ("image_ids", "labels", "sizes", "train_counts"):
        ours, theirs = getattr(one, field), getattr(other, field)
        assert ours.dtype == theirs.dtype
        assert ours.flags.writeable and theirs.flags.writeable
        np.testing.assert_array_equal(ours, theirs)
    for field in ("digests", "groups"):
        ours, theirs = getattr(one, field), getattr(other, field)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype == np.int64
            np.testing.assert_array_equal(ours, theirs)
    assert one.sizes.dtype == np.int32 and one.labels.dtype == one.image_ids.dtype == np.int64
    pd.testing.assert_frame_equal(one.taxonomy.table, other.taxonomy.table, check_exact=True)
    assert (one.locations is None) == (other.locations is None)
    if one.locations is not None and other.locations is not None:
        pd.testing.assert_frame_equal(one.locations, other.locations, check_exact=True)


@contextmanager
def nothing_parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While it lasts a read that is not from the cache fails."""

    def parsed(*arguments: object) -> None:
        raise AssertionError(f"parsed {arguments[0]}")

    with monkeypatch.context() as patch:
        for name in ("parse_annotations", "parse_categories", "parse_places"):
            patch.setattr(annotation_tables, name, parsed)
        yield


def parsings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are parsed from now on."""
    seen: list[str] = []
    for name in ("parse_annotations", "parse_categories", "parse_places"):
        parse = getattr(annotation_tables, name)

        def spy(path: Path, *rest: Any, parse: Callable[..., Any] = parse) -> Any:
            seen.append(path.name)
            return parse(path, *rest)

        monkeypatch.setattr(annotation_tables, name, spy)
    return seen


def refuse_writes(
    monkeypatch: pytest.MonkeyPatch, *folders: Path, number: int = errno.EROFS
) -> None:
    """Writing below these folders fails, as on a read-only or full disk."""
    write = annotation_cache.atomic_file

    def atomic_file(path: Path) -> Any:
        if any(path.is_relative_to(folder) for folder in folders):
            raise OSError(number, os.strerror(number), str(path))
        return write(path)

    monkeypatch.setattr(annotation_cache, "atomic_file", atomic_file)


# What is found


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_read_equals_one_without_a_cache_in_every_field(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    KINDS[kind](root)
    with monkeypatch.context() as patch:
        refuse_writes(patch, tmp_path)
        uncached = load_split(root, name)
    assert not (root / ".inat").exists()
    first = load_split(root, name)
    with nothing_parsed(monkeypatch):
        cached = load_split(root, name)
    assert_same(first, uncached)
    assert_same(cached, uncached)
    assert (cached.locations is not None) == (kind in ("locations", "date_c") and name != "test")


def test_the_first_read_parses_each_file_once_and_the_later_ones_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_locations(root)
    add_categories(root)
    seen = parsings(monkeypatch)
    load_split(root, "train+val")
    files = ["train2018.json", "categories.json", "train2018_locations.json",
             "val2018.json", "val2018_locations.json"]  # fmt: skip
    assert seen == files
    for name in ("train", "val", "holdout"):
        load_split(root, name)
    assert seen == files
    load_split(root, "test")
    assert seen == [*files, "test2018.json"]


def test_what_is_kept_is_parquet_beside_the_data_and_nothing_else(
    root: Path, user_cache: Path
) -> None:
    add_locations(root)
    before = kept(root)
    split = load_split(root)
    assert kept(root) == [".inat", *before]
    assert kept(root / ".inat") == [
        "train2018.parquet", "train2018_locations.parquet", "train2018_species.parquet",
    ]  # fmt: skip
    photos = pq.read_table(root / ".inat" / "train2018.parquet")
    assert photos.column_names == ["image_id", "label", "file_name", "height", "width"]
    assert photos["image_id"].to_pylist() == split.image_ids.tolist()
    species = pq.read_table(root / ".inat" / "train2018_species.parquet")
    assert species["train_count"].to_pylist() == [30, 8, 3, 2]
    assert not user_cache.exists()


def test_val_is_read_without_the_photos_of_train(root: Path) -> None:
    before = load_split(root, "val")
    (root / ".inat" / "train2018.parquet").unlink()
    assert_same(load_split(root, "val"), before)
    assert "train2018.parquet" not in kept(root / ".inat")


def test_describe_parses_each_file_once_even_if_nothing_can_be_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = parsings(monkeypatch)
    refuse_writes(monkeypatch, tmp_path)
    assert describe(root).split_sizes == {"train": 43, "val": 12, "test": 8}
    assert seen == ["train2018.json", "val2018.json", "test2018.json"]


def test_describe_is_the_same_from_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = describe(root).lines()
    with nothing_parsed(monkeypatch):
        assert describe(root).lines() == lines


# What is not trusted


def test_a_digest_is_of_the_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 300_000)
    assert digest(path) == digest_of(b"x" * 300_000)
    os.utime(path, (0, 0))
    assert digest(path) == digest_of(b"x" * 300_000) != digest_of(b"x" * 299_999 + b"y")
    assert digest(tmp_path / "none") == digest_of(None) == ""
    path.write_bytes(b"")
    assert digest(path) == digest_of(b"") != ""


def test_a_key_tells_its_parts_and_their_order_apart() -> None:
    keys = [key_of("a", "b"), key_of("b", "a"), key_of("ab"), key_of("a", "", "b"), key_of("a")]
    assert len(set(keys)) == 5


def rename_first(rows: list[dict[str, Any]]) -> None:
    rows[0]["name"] = rows[0]["name"][::-1]


@pytest.mark.parametrize(
    ("name", "file", "edit"),
    [
        ("train", "train2018.json", lambda d: d["images"][5].update(width=65)),
        ("train", "train2018.json", lambda d: rename_first(d["categories"])),
        ("train", "categories.json", rename_first),
        ("train", "train2018_locations.json", lambda rows: rows[5].update(lat=1.0)),
        ("val", "val2018.json", lambda d: d["images"][5].update(width=65)),
        ("val", "val2018_locations.json", lambda rows: rows[5].update(lat=1.0)),
        ("val", "train2018.json", lambda d: d["categories"][0].update(genus="Other")),
        ("test", "test2018.json", lambda d: d["images"][5].update(width=65)),
        ("holdout", "train2018.json", lambda d: d["images"][5].update(file_name="other.jpg")),
    ],
)
def test_a_file_changed_within_its_size_and_time_is_read_anew(
    root: Path, tmp_path: Path, name: str, file: str, edit: Callable[[Any], object]
) -> None:
    add_locations(root)
    if file == "categories.json":
        add_categories(root)
    load_split(root, name)
    change(root / file, edit)
    anew = tmp_path / "anew"
    shutil.copytree(root, anew, ignore=shutil.ignore_patterns(".inat"))
    expected = load_split(anew, name)
    for _ in range(2):
        split = load_split(root, name)
        assert split.image_ids.tolist() == expected.image_ids.tolist()
        assert split.file_names.equals(expected.file_names)
        assert split.sizes.tolist() == expected.sizes.tolist()
        pd.testing.assert_frame_equal(split.taxonomy.table, expected.taxonomy.table)
        assert (split.locations is None) == (expected.locations is None)
        if split.locations is not None and expected.locations is not None:
            pd.testing.assert_frame_equal(split.locations, expected.locations)


def test_files_that_come_and_go_are_seen(root: Path) -> None:
    assert load_split(root, "val").taxonomy.names[0] == "Prunella species0"
    add_categories(root)
    assert load_split(root, "val").taxonomy.names[0] == "real 0 ä"
    (root / "categories.json").unlink()
    assert load_split(root, "val").taxonomy.names[0] == "Prunella species0"
    assert load_split(root, "val").locations is None
    add_locations(root)
    assert load_split(root, "val").locations is not None
    (root / "val2018_locations.json").unlink()
    assert load_split(root, "val").locations is None
    (root / "train2018.json").unlink()
    with pytest.raises(InputError, match=r"train2018.json: there is no such file"):
        load_split(root, "val")


def test_val_follows_the_species_of_train(root: Path) -> None:
    ids = load_split(root, "val").taxonomy.category_ids
    labels = load_split(root, "val").labels

    def renumber(document: dict[str, Any]) -> None:
        for row in document["annotations"]:
            row["category_id"] = int(ids[3 - ids.tolist().index(row["category_id"])])

    change(root / "train2018.json", renumber)
    split = load_split(root, "val")
    assert split.train_counts.tolist() == [2, 3, 8, 30]
    assert split.labels.tolist() == labels.tolist()


def test_photos_that_train_takes_over_from_val_are_found(root: Path) -> None:
    image_id = int(load_split(root, "val").image_ids[0])

    def take(document: dict[str, Any]) -> None:
        document["images"].append({"id": image_id, "file_name": "a.jpg"})
        document["annotations"].append({"image_id": image_id, "category_id": 2})

    change(root / "train2018.json", take)
    with pytest.raises(InputError, match=f"image id {image_id} stands in train2018.json too"):
        load_split(root, "val")


def test_a_cache_of_another_data_set_is_ignored_and_replaced(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    change(other / "train2018.json", lambda document: document["images"][5].update(width=1))
    load_split(other)
    shutil.copytree(other / ".inat", root / ".inat")
    assert load_split(root).sizes[5].tolist() == [48, 64]
    with nothing_parsed(monkeypatch):
        assert load_split(root).sizes[5].tolist() == [48, 64]
        assert load_split(other).sizes[5].tolist() == [48, 1]


def test_a_cache_of_another_format_is_ignored_and_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_split(root)
    seen = parsings(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(annotation_cache, "FORMAT", annotation_cache.FORMAT + 1)
        assert_same(load_split(root), before)
        assert_same(load_split(root), before)
        assert seen == ["train2018.json"]
    assert_same(load_split(root), before)
    assert seen == ["train2018.json"] * 2


@pytest.mark.parametrize("file", ["train2018", "train2018_species", "train2018_locations"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not parquet",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: content[:200] + b"\xff" * 50 + content[250:],
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    damage: Callable[[bytes], bytes],
) -> None:
    add_locations(root)
    before = load_split(root)
    path = root / ".inat" / f"{file}.parquet"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert_same(load_split(root), before)
    assert path.read_bytes() == content
    with nothing_parsed(monkeypatch):
        assert_same(load_split(root), before)


def test_no_changed_byte_of_a_cache_changes_what_is_read(root: Path) -> None:
    load_split(root)
    path = root / ".inat" / "train2018.parquet"
    content = path.read_bytes()
    key = pq.read_schema(path).metadata[b"inat"].split()[0].decode()
    whole = AnnotationCache(root).find("train2018", key)
    assert whole is not None
    n_refused = 0
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        found = AnnotationCache(root).find("train2018", key)
        n_refused += found is None
        assert found is None or found.equals(whole)
    # The others are bytes without a meaning, such as the name of the writer.
    assert n_refused > 0.6 * len(content) / 7


def test_a_well_formed_cache_with_another_number_in_it_is_ignored(root: Path) -> None:
    before = load_split(root)
    path = root / ".inat" / "train2018.parquet"
    table = pq.read_table(path)
    labels = table["label"].to_numpy().copy()
    labels[0] = (labels[0] + 1) % 4
    pq.write_table(table.set_column(1, "label", pa.array(labels)), path)
    assert pq.read_schema(path).metadata[b"inat"] == table.schema.metadata[b"inat"]
    assert_same(load_split(root), before)
    assert pq.read_table(path)["label"].to_pylist() == before.labels.tolist()


def forge(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Changes a kept table and gives it the hash of its new content, as its owner could."""
    table = pq.read_table(path)
    key = table.schema.metadata[b"inat"].split()[0].decode()
    forged = edit(table.replace_schema_metadata()).combine_chunks()
    stamp = annotation_cache._stamp(key, forged)
    pq.write_table(forged.replace_schema_metadata({b"inat": stamp}), path, use_dictionary=False)


def with_value(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, table[name].type))


BAD_PHOTOS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "leads out": lambda t: with_value(t, "file_name", 1, "../private/passport.png"),
    "leads out further on": lambda t: with_value(t, "file_name", 1, "a/../../passport.png"),
    "absolute": lambda t: with_value(t, "file_name", 0, "/etc/passwd"),
    "drive": lambda t: with_value(t, "file_name", 0, "C:/a.jpg"),
    "backslashes": lambda t: with_value(t, "file_name", 0, "..\\a.jpg"),
    "no name": lambda t: with_value(t, "file_name", 2, ""),
    "NUL": lambda t: with_value(t, "file_name", 2, "a\0.jpg"),
    "unknown species": lambda t: with_value(t, "label", 0, 4),
    "label below 0": lambda t: with_value(t, "label", 0, -2),
    "one id twice": lambda t: with_value(t, "image_id", 0, t["image_id"][1].as_py()),
    "no label": lambda t: t.drop_columns("label"),
    "another column": lambda t: t.append_column("more", t["label"]),
    "another type": lambda t: t.set_column(1, "label", t["label"].cast(pa.int32())),
    "empty": lambda t: t.slice(0, 0),
}


@pytest.mark.parametrize("name", ["train", "val", "test"])
@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_a_table_that_no_annotation_file_gives_is_ignored_though_its_hash_is_right(
    root: Path, kind: str, name: str
) -> None:
    before = load_split(root, name)
    path = root / ".inat" / f"{name}2018.parquet"
    forge(path, BAD_PHOTOS[kind])
    assert_same(load_split(root, name), before)
    assert pq.read_table(path)["file_name"].to_pylist() == before.file_names.to_pylist()


def test_a_table_that_is_small_on_disk_and_large_in_memory_is_ignored(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_split(root)
    path = root / ".inat" / "train2018.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, use_dictionary=True)  # one text many times
    assert_same(load_split(root), before)
    assert not pq.ParquetFile(path).metadata.row_group(0).column(2).has_dictionary_page
    seen = parsings(monkeypatch)
    for limit in ("MOST_ROWS", "LARGEST_TABLE"):
        with monkeypatch.context() as patch:
            patch.setattr(annotation_cache, limit, 3)
            load_split(root)
    assert seen == ["train2018.json"] * 2


def test_a_forged_table_that_an_annotation_file_could_give_is_read(root: Path) -> None:
    load_split(root)
    forge(root / ".inat" / "train2018.parquet", lambda t: with_value(t, "file_name", 0, "b.jpg"))
    assert load_split(root).file_names[0].as_py() == "b.jpg"


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: with_value(t, "category_id", 0, t["category_id"][1].as_py()),
        lambda t: with_value(t, "train_count", 0, 0),
        lambda t: t.drop_columns("genus"),
        lambda t: t.slice(0, 3),
    ],
)
def test_a_table_of_species_that_no_annotation_file_gives_is_ignored(
    root: Path, edit: Callable[[pa.Table], pa.Table]
) -> None:
    before = load_split(root, "val")
    forge(root / ".inat" / "train2018_species.parquet", edit)
    assert_same(load_split(root, "val"), before)


def test_a_table_of_places_that_no_file_gives_is_ignored(root: Path) -> None:
    add_locations(root)
    before = load_split(root)
    edits: list[Callable[[pa.Table], pa.Table]] = [
        lambda t: t.slice(0, 5),
        lambda t: t.drop_columns("lat"),
        lambda t: t.set_column(0, "lat", t["date"]),
    ]
    for edit in edits:
        forge(root / ".inat" / "train2018_locations.parquet", edit)
        assert_same(load_split(root), before)


def test_a_file_that_changes_between_look_up_and_read_is_kept_as_what_was_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (root / "train2018.json").read_bytes()
    read = annotation_tables.read_content

    def swap_and_read(path: Path) -> bytes:
        change(path, lambda document: document["images"][5].update(width=1))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(annotation_tables, "read_content", swap_and_read)
        assert load_split(root).sizes[5].tolist() == [48, 1]
    with nothing_parsed(monkeypatch):
        assert load_split(root).sizes[5].tolist() == [48, 1]
    (root / "train2018.json").write_bytes(original)
    assert load_split(root).sizes[5].tolist() == [48, 64]


# Data sets with a fault


@pytest.mark.parametrize(
    ("name", "file", "edit"),
    [
        ("train", "train2018.json", lambda d: d["images"][5].update(id="7")),
        ("train", "train2018.json", lambda d: d["annotations"].pop()),
        ("train", "train2018_locations.json", lambda rows: rows[5].update(lat="north")),
        ("val", "val2018.json", lambda d: d["annotations"][0].update(category_id=3)),
        ("val", "val2018_locations.json", lambda rows: rows.append(rows[0])),
        ("test", "test2018.json", lambda d: d["images"][5].update(file_name="../a")),
        ("train+val", "val2018.json", lambda d: d["annotations"].pop()),
    ],
)
def test_of_a_data_set_with_a_fault_nothing_is_kept(
    root: Path,
    tmp_path: Path,
    user_cache: Path,
    name: str,
    file: str,
    edit: Callable[[Any], object],
) -> None:
    add_locations(root)
    good = (root / file).read_bytes()
    change(root / file, edit)
    sentences = set()
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            load_split(root, name)
        sentences.add(str(caught.value))
        assert not (root / ".inat").exists() and not user_cache.exists()
    assert len(sentences) == 1
    (root / file).write_bytes(good)
    load_split(root, name)
    change(root / file, edit)
    with pytest.raises(InputError):  # a cache of the mended files does not hide the fault
        load_split(root, name)


# Where it lies


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EIO]
)
def test_where_the_data_cannot_be_written_the_users_cache_folder_is_used(
    root: Path,
    user_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    before = kept(root)
    refuse_writes(monkeypatch, root, number=number)
    first = load_split(root)
    assert kept(root) == before
    assert [name.split("-")[0] for name in kept(user_cache)] == ["train2018", "train2018_species"]
    with nothing_parsed(monkeypatch):
        assert_same(load_split(root), first)
    assert capsys.readouterr() == ("", "")


def test_the_users_cache_folder_holds_many_data_sets_and_versions(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    change(other / "train2018.json", lambda document: document["images"][5].update(width=1))
    refuse_writes(monkeypatch, root, other)
    load_split(root)
    load_split(other)
    with nothing_parsed(monkeypatch):
        assert load_split(root).sizes[5].tolist() == [48, 64]
        assert load_split(other).sizes[5].tolist() == [48, 1]


def test_a_damaged_file_in_the_users_cache_folder_is_replaced(
    root: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_writes(monkeypatch, root)
    before = load_split(root)
    for path in user_cache.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert_same(load_split(root), before)
    with nothing_parsed(monkeypatch):
        assert_same(load_split(root), before)


def test_where_nothing_can_be_written_it_goes_on_and_says_so_once(
    root: Path,
    tmp_path: Path,
    user_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_locations(root)
    before = kept(root)
    refuse_writes(monkeypatch, tmp_path)
    for name in ("train", "val", "test", "train"):
        assert len(load_split(root, name))
    assert kept(root) == before and not user_cache.exists()
    assert capsys.readouterr() == (
        "",
        f"{root}: its annotations are parsed anew each time, for the result can be kept nowhere "
        f"({root}/.inat: Read-only file system; {user_cache}: Read-only file system); "
        "make room in one of these folders\n",
    )


def test_a_disk_that_fills_up_while_writing_leaves_nothing_half_written(
    root: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table = pq.write_table

    def fill_up(table: pa.Table, path: Path, **options: Any) -> None:
        if path.is_relative_to(root):
            path.write_bytes(b"PAR1 and no more")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(table, path, **options)

    monkeypatch.setattr(pq, "write_table", fill_up)
    first = load_split(root)
    assert kept(root / ".inat") == []
    with nothing_parsed(monkeypatch):
        assert_same(load_split(root), first)
    assert len(kept(user_cache)) == 2


def test_a_file_in_the_place_of_the_cache_folder_is_left_alone(
    root: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / ".inat").write_text("mine")
    first = load_split(root)
    assert (root / ".inat").read_text() == "mine"
    assert len(kept(user_cache)) == 2
    with nothing_parsed(monkeypatch):
        assert_same(load_split(root), first)


@pytest.mark.parametrize("given", [None, "", "relative/folder"])
def test_without_a_usable_xdg_cache_home_it_is_in_the_home_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    refuse_writes(monkeypatch, root)
    load_split(root)
    assert len(kept(tmp_path / "home" / ".cache" / "inat")) == 2


def test_a_user_without_a_home_folder_goes_without(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    refuse_writes(monkeypatch, root)
    assert len(load_split(root)) == 43
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory of that size, where this machine lets us."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"mounting needs root and its capabilities: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no `mount` here")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_data_on_a_read_only_disk_is_cached_elsewhere(
    root: Path,
    user_cache: Path,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = small_disk("1m")
    shutil.copytree(root, disk / "data")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    first = load_split(disk / "data")
    assert len(kept(user_cache)) == 2
    with nothing_parsed(monkeypatch):
        assert_same(load_split(disk / "data"), first)
    assert capsys.readouterr() == ("", "")


def test_data_on_a_full_disk_is_cached_elsewhere_and_nothing_is_left_there(
    root: Path, user_cache: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("64k")
    shutil.copytree(root, disk / "data")
    with (disk / "rest").open("wb", buffering=0) as handle, pytest.raises(OSError):
        while True:
            handle.write(bytes(4096))
    load_split(disk / "data")
    assert len(kept(user_cache)) == 2
    left = disk / "data" / ".inat"
    assert not left.exists() or kept(left) == []


# Two at once

TWO_AT_ONCE = """
import sys
from pathlib import Path
import pyarrow as pa
from inat.dataset.annotation_cache import AnnotationCache

root, mine = Path(sys.argv[1]), sys.argv[2]
tables = {key: pa.table({"who": [key] * 20_000, "n": range(20_000)}) for key in ("a", "b")}
print("ready", flush=True)
sys.stdin.readline()
for _ in range(30):
    cache = AnnotationCache(root)
    cache.add("table", mine, tables[mine])
    cache.write()
    for key in ("a", "b"):
        found = AnnotationCache(root).find("table", key)
        assert found is None or found.equals(tables[key]), "half a table"
print("done")
"""


def test_two_processes_that_cache_at_once_both_succeed(root: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_AT_ONCE, str(root), mine],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mine in ("a", "b")
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60) == ("done\n", "")
        assert process.returncode == 0
    assert kept(root / ".inat") == ["table.parquet"]
    found = [AnnotationCache(root).find("table", key) for key in ("a", "b")]
    assert sum(table is not None for table in found) == 1


def test_what_a_killed_process_left_behind_is_no_cache(root: Path) -> None:
    before = load_split(root)
    path = root / ".inat" / "train2018.parquet"
    path.rename(path.with_name(".partial-0123-train2018.parquet"))
    assert_same(load_split(root), before)

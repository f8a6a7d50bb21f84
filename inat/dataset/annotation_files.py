"""Reads the JSON files of the iNat layout into arrays; what is wrong with one is one sentence."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from jaxtyping import Float64, Int32, Int64
from msgspec import UNSET

from inat.core.errors import InputError
from inat.core.files import parse_json, read_file
from inat.dataset.dates import Dates, parse_dates

LARGEST_ANNOTATIONS = 2**32
"""Bytes; the largest file of a competition has 1.1 GB."""

# A name without any of these is a plain path below the root; the few others are looked at closely.
SUSPICIOUS = r"\A[./]|\A\z|[\\:\x00]|/\.\."

DIGEST = "xxh3_128"
"""Field of an image that holds the XXH3-128 of the file's bytes, as 32 hexadecimal digits."""

GROUP_FIELDS = {
    "observation_id": "observation",
    "group_id": "group",
    "group": "group",
    "seq_id": "sequence",
    "sequence": "sequence",
}
"""Fields of an image that say what it belongs to; the first that a row has counts."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# Only these fields of the JSON become Python objects: a fifth of the time and of the memory that
# all of them would take. `Any`, because a decoder told `int` would take 7.0 for 7.
class _Image(msgspec.Struct, gc=False):
    id: Any = UNSET
    file_name: Any = UNSET
    height: Any = None
    width: Any = None
    xxh3_128: Any = None
    observation_id: Any = None
    group_id: Any = None
    group: Any = None
    seq_id: Any = None
    sequence: Any = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Any = UNSET
    category_id: Any = UNSET


class _Place(msgspec.Struct, gc=False):
    id: Any = UNSET
    lat: Any = None
    lon: Any = None
    date_c: Any = UNSET
    date: Any = None


class _Unlabelled(msgspec.Struct):
    images: list[_Image] | msgspec.UnsetType = UNSET


class _Labelled(_Unlabelled):
    annotations: list[_Annotation] | msgspec.UnsetType = UNSET
    categories: Any = UNSET


class _Training(_Labelled):
    categories: list[Any] | msgspec.UnsetType = UNSET


SHAPES: dict[str, type[_Unlabelled]] = {"train": _Training, "val": _Labelled, "test": _Unlabelled}
REQUIRED = {
    "train": ("images", "annotations", "categories"),
    "val": ("images", "annotations"),
    "test": ("images",),
}


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says; lists that its split does not have are empty.

    `digests` are the first 64 bits of each image's `xxh3_128`, 0 where unknown; `groups` a hash of
    what each image belongs to (`GROUP_FIELDS`), the same in all files, 0 for nothing. Either is
    None where no image has one.
    """

    image_ids: Int64[np.ndarray, "photos"]  # each once
    file_names: pa.StringArray  # none leads out of the data root
    sizes: Int32[np.ndarray, "photos 2"]  # height and width; 0 where they are not stated
    digests: Int64[np.ndarray, "photos"] | None
    groups: Int64[np.ndarray, "photos"] | None
    annotated: Int64[np.ndarray, "annotations"]  # image_id
    category_ids: Int64[np.ndarray, "annotations"]
    categories: list[Any]  # as listed


@dataclass(frozen=True)
class Places:
    ids: Int64[np.ndarray, "places"]  # of the images, each once
    # lat, lon and, where the file has it, date_c; NaN where unknown
    numbers: dict[str, Float64[np.ndarray, "places"]]
    dates: Dates


def read_content(path: Path) -> bytes:
    try:
        return read_file(path, LARGEST_ANNOTATIONS)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None


def parse_annotations(path: Path, content: bytes, split: str) -> Annotations:
    """The content of train2018.json and the like; the split decides which lists there must be."""
    document = _decoded(path, content, split)
    images, place = document.images, f"{path}: images"
    annotations = getattr(document, "annotations", [])
    categories = getattr(document, "categories", [])
    image_ids = _whole_numbers([row.id for row in images], "id", place)
    refuse_duplicates(image_ids, f"{path}: image id", "in 'images'")
    names = [row.file_name for row in images]
    if set(map(type, names)) != {str}:
        _refuse_missing(names, "file_name", place)
        at = next(i for i, name in enumerate(names) if not isinstance(name, str))
        raise InputError(f"{place}[{at}]: 'file_name' is {names[at]!r:.80}, no path")
    # Nothing outside the root is ever read: no absolute path, no `..`, no drive letter.
    file_names = pa.array(names, pa.string())
    refuse_unsafe_names(file_names, place)
    heights = _stated_sizes([row.height for row in images])
    widths = _stated_sizes([row.width for row in images])
    place = f"{path}: annotations"
    return Annotations(
        image_ids=image_ids,
        file_names=file_names,
        sizes=np.stack([heights, widths], axis=1),
        digests=_digests([row.xxh3_128 for row in images], f"{path}: images"),
        groups=_groups(images, f"{path}: images"),
        annotated=_whole_numbers([row.image_id for row in annotations], "image_id", place),
        category_ids=_whole_numbers([row.category_id for row in annotations], "category_id", place),
        categories=categories if isinstance(categories, list) else [],
    )


def parse_categories(path: Path, content: bytes) -> list[Any]:
    categories = read_document(path, content)
    if not isinstance(categories, list):
        raise InputError(f"{path}: is no list of species")
    return categories


def parse_places(path: Path, content: bytes) -> Places:
    """The content of train2018_locations.json and the like."""
    content = as_utf8(path, content)
    try:
        rows = msgspec.json.decode(content, type=list[_Place])
    except UNREADABLE:
        document = read_document(path, content)
        try:
            rows = msgspec.convert(document, list[_Place])
        except UNREADABLE as error:
            if not isinstance(document, list):
                raise InputError(f"{path}: is no list of places") from None
            _refuse_other_than_objects(document, "id", f"{path}: ")
            raise _unreadable(path, error) from None
    ids = _whole_numbers([row.id for row in rows], "id", f"{path}: ")
    columns = {"lat": [row.lat for row in rows], "lon": [row.lon for row in rows]}
    shares_of_year = [row.date_c for row in rows]
    if set(map(type, shares_of_year)) - {type(UNSET)}:  # geo_prior's copy has 0..1
        columns["date_c"] = [None if share is UNSET else share for share in shares_of_year]
    numbers = {}
    for name, values in columns.items():
        if not set(map(type, values)) <= {float, int, bool, type(None)}:
            for at, value in enumerate(values):
                if value is not None and not isinstance(value, int | float):
                    raise InputError(f"{path}: [{at}]: '{name}' is {value!r:.40}, not a number")
        numbers[name] = np.array(values, np.float64)
    dates = parse_dates([row.date for row in rows], f"{path}: ")
    refuse_duplicates(ids, f"{path}: id", "")
    return Places(ids, numbers, dates)


def refuse_duplicates(ids: Int64[np.ndarray, "n"], what: str, where: str) -> None:
    """Raises the sentence that names the first id that stands more than once."""
    ordered = np.sort(ids)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        raise InputError(f"{what} {again[0]} stands {(ids == again[0]).sum()} times {where}")


def as_utf8(path: Path, content: bytes) -> bytes:
    """The content without a byte order mark; an InputError for UTF-16 and UTF-32."""
    encoding = json.detect_encoding(content)
    if encoding == "utf-8-sig":
        return content.removeprefix(codecs.BOM_UTF8)
    if encoding != "utf-8":
        raise InputError(f"{path}: is {encoding.upper()} text; save it as UTF-8")
    return content


def read_document(path: Path, content: bytes) -> Any:
    """A JSON file as Python objects; NaN and Infinity, which json.dump writes, are null."""
    content = as_utf8(path, content)
    try:
        return json.loads(content, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return parse_json(path, content)


def _decoded(path: Path, content: bytes, split: str) -> Any:
    content, shape = as_utf8(path, content), SHAPES[split]
    try:
        document = msgspec.json.decode(content, type=shape)
    except UNREADABLE:
        plain = read_document(path, content)
        try:
            document = msgspec.convert(plain, shape)
        except UNREADABLE as error:
            if not isinstance(plain, Mapping):
                fields = ", ".join(REQUIRED[split])
                raise InputError(f"{path}: an annotation file is an object with {fields}") from None
            for field in REQUIRED[split]:
                if field not in plain:
                    raise InputError(f"{path}: has no field '{field}'") from None
                if not isinstance(plain[field], list):
                    raise InputError(f"{path}: '{field}' is no list") from None
            for field, first in (("images", "id"), ("annotations", "image_id")):
                _refuse_other_than_objects(plain.get(field, []), first, f"{path}: {field}")
            raise _unreadable(path, error) from None
    for field in REQUIRED[split]:
        if getattr(document, field) is UNSET:
            raise InputError(f"{path}: has no field '{field}'")
    if not document.images:
        raise InputError(f"{path}: 'images' is empty; a split needs at least one photo")
    return document


def _refuse_other_than_objects(rows: Sequence[Any], first_field: str, place: str) -> None:
    for at, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{place}[{at}] has no field '{first_field}'")


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read: {error}; fetch or write the file again")


def _refuse_missing(values: Sequence[Any], field: str, place: str) -> None:
    for at, value in enumerate(values):
        if value is UNSET:
            raise InputError(f"{place}[{at}] has no field '{field}'")


def _whole_numbers(values: Sequence[Any], field: str, place: str) -> Int64[np.ndarray, "n"]:
    if set(map(type, values)) <= {int}:
        with suppress(OverflowError):
            return np.array(values, np.int64)
    _refuse_missing(values, field, place)
    at = next(i for i, v in enumerate(values) if type(v) is not int or not -(2**63) <= v < 2**63)
    raise InputError(
        f"{place}[{at}]: '{field}' is {values[at]!r:.40}, not a whole number; number photos and "
        "species with whole numbers, the same in all lists"
    )


def _stated_sizes(values: Sequence[Any]) -> Int32[np.ndarray, "n"]:
    if set(map(type, values)) == {int}:
        with suppress(OverflowError):
            numbers = np.array(values, np.int64)
            return np.where((numbers > 0) & (numbers < 2**31), numbers, 0).astype(np.int32)
    known = [value if type(value) is int and 0 < value < 2**31 else 0 for value in values]
    return np.array(known, np.int32)


def _digests(values: Sequence[Any], place: str) -> Int64[np.ndarray, "n"] | None:
    if set(map(type, values)) == {type(None)}:
        return None
    known = ["0" * 32 if value is None else value for value in values]
    for at, value in enumerate(known):
        if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{32}", value):
            raise InputError(
                f"{place}[{at}]: '{DIGEST}' is {value!r:.40}, not 32 hexadecimal digits (xxhsum "
                "-H2 prints them); correct or remove it"
            )
    first = bytes.fromhex("".join(value[:16] for value in known))
    return np.frombuffer(first, ">i8").astype(np.int64)


def _groups(images: Sequence[_Image], place: str) -> Int64[np.ndarray, "n"] | None:
    groups = np.zeros(len(images), np.int64)
    for field, kind in GROUP_FIELDS.items():
        values = [getattr(row, field) for row in images]
        if set(map(type, values)) == {type(None)}:
            continue
        for at, value in enumerate(values):
            # pandas writes whole numbers as 7.0 where others are missing
            known = int(value) if type(value) is float and value.is_integer() else value
            if known is None or known == "" or groups[at]:
                continue
            if type(known) not in (int, str):
                raise InputError(
                    f"{place}[{at}]: '{field}' is {value!r:.40}, neither text nor a whole number; "
                    "photos of one group stay on one side of a cut; correct or remove it"
                )
            groups[at] = xxhash.xxh3_64_intdigest(f"{kind} {known}".encode()) - 2**63
    return groups if groups.any() else None


def refuse_unsafe_names(names: pa.StringArray, place: str) -> None:
    """Stops where a file name is empty, absolute, or leads out of the data root."""
    # Half the time of the regex alone, which matters where a kept table is read.
    text = (names.buffers()[2] or pa.py_buffer(b"")).to_pybytes()
    starts = (pc.starts_with(names, "."), pc.starts_with(names, "/"), pc.equal(names, ""))
    if not any(mark in text for mark in (b"..", b"\\", b":", b"\0")) and not any(
        pc.any(found).as_py() for found in starts
    ):
        return
    for at in np.flatnonzero(pc.match_substring_regex(names, SUSPICIOUS)).tolist():
        name = str(names[at])
        parts = PurePosixPath(name.replace("\\", "/")).parts if "\0" not in name else ()
        if not parts:
            raise InputError(f"{place}[{at}]: 'file_name' is {name!r:.80}, no path")
        # Of "//a" the first part is "//".
        if parts[0].startswith("/") or ".." in parts or ":" in parts[0]:
            raise InputError(
                f"{place}[{at}]: 'file_name' {name!r:.80} leads out of the data root; "
                "it must be relative and without '..'"
            )

"""Brings other competitions' annotation files to iNaturalist's layout, which is COCO's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from inat.core.competitions import AnnotationLayout, Competition
from inat.core.errors import InputError
from inat.dataset.annotation_files import as_utf8, read_document

FIRST_IDS = {"train": 1_000_000_000, "val": 2_000_000_000, "test": 0}
"""What is added to the image ids of a split where each numbers its photos anew, so that they are
unique in the whole data set; those of test stand in submissions and stay as they are."""

Row = Mapping[str, Any]


def in_inat_layout(path: Path, content: bytes, spec: Competition, split: str) -> bytes:
    """An annotation file as iNaturalist would have written it."""
    layout = spec.layout
    if layout is None:
        return content
    content = as_utf8(path, content)
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:  # Herbarium 2020 holds places' names in Latin-1
            document = orjson.loads(content.decode("latin-1"))
        except orjson.JSONDecodeError:
            document = read_document(path, content)
    if isinstance(document, list):  # test_metadata.json of 2022 is the list of images alone
        document = {"images": document}
    if not isinstance(document, dict):
        raise InputError(f"{path}: an annotation file is an object with images")

    def annotation(row: Row) -> dict[str, Any]:
        return {"image_id": _number(row["image_id"], split), "category_id": row[layout.label]}

    def category(row: Row) -> dict[str, Any]:
        return {**row, "id": row[layout.category_id], "name": row[layout.category_name]}

    made = {
        "images": _rows(path, document, "images", lambda row: _image(row, layout, split)),
        "annotations": _rows(path, document, "annotations", annotation),
    }
    if layout.category_id:
        made["categories"] = _rows(path, document, "categories", category)
    else:
        labels = {row["category_id"] for row in made["annotations"] or []}
        made["categories"] = [
            {"id": label, "name": f"category {label}"} for label in sorted(labels, key=str)
        ]
    return orjson.dumps({name: rows for name, rows in made.items() if rows is not None})


def _rows(
    path: Path, document: Row, name: str, convert: Callable[[Row], dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """The rows of a list; None where the file has none of that name."""
    if name not in document:
        return None
    if not isinstance(document[name], list):
        raise InputError(f"{path}: '{name}' is no list")
    made = []
    for at, row in enumerate(document[name]):
        if not isinstance(row, dict):
            raise InputError(f"{path}: {name}[{at}] is no object")
        try:
            made.append(convert(row))
        except KeyError as error:
            raise InputError(f"{path}: {name}[{at}] has no field {error}") from None
        except ValueError as error:
            raise InputError(f"{path}: {name}[{at}]: {error}") from None
    return made


def _image(row: Row, layout: AnnotationLayout, split: str) -> dict[str, Any]:
    image_id = row[layout.image_id]
    file_name = row[layout.file_name] if layout.file_name else f"{image_id}.jpg"
    if not isinstance(file_name, str):
        raise ValueError(f"'{layout.file_name}' is {file_name!r:.40}, no path")
    return {
        "id": _number(image_id, split),
        "file_name": f"{layout.photo_folders[split]}/{file_name}",
        "height": row.get("height"),
        "width": row.get("width"),
    }


def _number(image_id: Any, split: str) -> int:
    """The id as a number. 00000__001, the first photo of category 0 in 2022, has always five
    and three digits, so that without the dashes no two become one."""
    if type(image_id) is int:
        return FIRST_IDS[split] + image_id
    digits = image_id.replace("__", "", 1) if isinstance(image_id, str) else ""
    if not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"the image id is {image_id!r:.40}, no number")
    return FIRST_IDS[split] + int(digits)

"""The tables of a data set, photos, places and species: from its JSON once, then from a cache."""

from collections.abc import Iterator, Mapping
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int64

from inat.core.competitions import Competition
from inat.core.errors import InputError
from inat.dataset.annotation_cache import AnnotationCache, digest, digest_of, key_of
from inat.dataset.annotation_files import (
    Annotations,
    parse_annotations,
    parse_categories,
    parse_places,
    read_content,
    refuse_unsafe_names,
)
from inat.dataset.annotation_layouts import in_inat_layout
from inat.dataset.dates import Known
from inat.dataset.taxonomy import COLUMNS, Taxonomy, read_taxonomy

PHOTO_TYPES = {
    **dict.fromkeys(("image_id", "label", "digest", "group"), pa.int64()),
    "file_name": pa.string(),
    **dict.fromkeys(("height", "width"), pa.int32()),
}
SPECIES_TYPES = {
    **dict.fromkeys((*COLUMNS, "listed_name"), pa.string()),
    **dict.fromkeys(("category_id", "train_count"), pa.int64()),
}
PLACE_TYPES = {
    **dict.fromkeys(("lat", "lon", "date_c"), pa.float64()),
    "date": pa.int64(),
    "date_known": pa.int8(),
}
OPTIONAL = ("digest", "group", "date_c")


class AnnotationTables:
    """The tables of the data set in `root`; the competition names its files.

    A table's key follows from every file that it depends on: the labels of val are numbered by the
    species of train, and its ids were compared with train's.
    """

    def __init__(self, root: Path, spec: Competition) -> None:
        if not root.is_dir():
            raise InputError(f"{root}: there is no such folder; data.root is the data set's folder")
        self._root = root
        self._spec = spec
        self._cache = AnnotationCache(root)
        self._train = self._path("train")
        if not self._train.exists():
            raise InputError(
                f"{self._train}: there is no such file; inat data import makes a data set of "
                "folders of photos, one a species"
            )
        # The first release hid the species' names; categories.json brought the real list.
        self._replacement = root / "categories.json"

    def keep(self) -> None:
        """Keeps what was parsed for the next time, once no file showed a fault."""
        self._cache.write()

    def read(self, name: str) -> tuple[pa.Table, pa.Table, str]:
        """The photos of the split train, val or test, with the columns image_id, label,
        file_name, height and width, and digest and group where the file has any; the species,
        with those of a taxonomy and train_count; and the key of the photos. Each column is one
        chunk."""
        train_key = self._train_key
        path = self._path(name)
        key = train_key if name == "train" else key_of(name, train_key, digest(path))
        photos = self._cache.find(_table_name(path, self._root), key)
        species = self._cache.find(self._species_name, train_key)
        labelled = name != "test"
        if photos is not None and species is not None and _are_sound(photos, species, labelled):
            return photos, species, key
        return self._parse_train() if name == "train" else self._parse_other(name, path)

    def places(self, name: str, photos: pa.Table, key: str) -> pa.Table | None:
        """Where and when each photo of a split was taken, with the columns lat, lon, date (UTC,
        in microseconds), date_known (a `Known`) and, where the file has it, date_c; None where
        there is no such file."""
        file_name = self._spec.locations_files.get(name)
        if file_name is None or not (self._root / file_name).is_file():
            return None
        path = self._root / file_name
        table = self._cache.find(path.stem, key_of(key, digest(path)))
        if table is None or not _is_sound(table, PLACE_TYPES) or len(table) != len(photos):
            content = read_content(path)
            places = parse_places(path, content)
            at = _positions(places.ids, photos["image_id"].to_numpy())
            dates = places.dates
            known = {**places.numbers, "date": dates.moments, "date_known": dates.known}
            columns = {name: np.full(len(at), np.nan) for name in places.numbers}
            columns["date"] = np.full(len(at), "NaT", "datetime64[us]")
            columns["date_known"] = np.full(len(at), Known.NOTHING, np.int8)
            for column, values in columns.items():
                values[at >= 0] = known[column][at[at >= 0]]
            # As plain numbers: Arrow would hold unknown dates as nulls, apart from the others.
            columns["date"] = columns["date"].view(np.int64)
            table = pa.table(columns)
            self._cache.add(path.stem, key_of(key, digest_of(content)), table)
        return table

    @cached_property
    def _train_key(self) -> str:
        return self._key_of_train(digest(self._train), digest(self._replacement))

    def _key_of_train(self, *digests: str) -> str:
        # The same bytes in another competition's layout are other photos.
        layout = () if self._spec.layout is None else (self._spec.slug,)
        return key_of("train", *layout, *digests)

    @property
    def _species_name(self) -> str:
        return f"{_table_name(self._train, self._root)}_species"

    def _path(self, name: str) -> Path:
        if name not in self._spec.annotation_files:
            raise InputError(f"{self._spec.slug} has no {name}; hold out a part of train")
        return self._root / self._spec.annotation_files[name]

    def _parse(self, path: Path, content: bytes, name: str) -> Annotations:
        return parse_annotations(path, in_inat_layout(path, content, self._spec, name), name)

    def _parse_train(self) -> tuple[pa.Table, pa.Table, str]:
        path, source = self._train, self._train
        content, replacement = read_content(path), None
        annotations = self._parse(path, content, "train")
        categories = annotations.categories
        if self._replacement.is_file():
            source, replacement = self._replacement, read_content(self._replacement)
            categories = parse_categories(source, replacement)
        taxonomy = read_taxonomy(categories, str(source))
        labels = _labels(annotations, taxonomy, path, source)
        counts = np.bincount(labels, minlength=len(taxonomy))
        empty = taxonomy.table[counts == 0]
        if len(empty):
            listed = "'categories'" if source == path else source.name
            raise InputError(
                f"{path}: {len(empty)} of {len(taxonomy)} species have no training photo (first: "
                f"category {empty['category_id'].iloc[0]}, {empty['name'].iloc[0]}); "
                f"add a photo of each or remove them from {listed}"
            )
        photos = _photo_table(annotations, labels)
        columns = {name: pa.array(taxonomy.table[name].to_list()) for name in COLUMNS}
        # What the training file itself calls them: categories.json may have brought other names.
        names = dict(_listed_names(annotations.categories))
        listed_names = [names.get(number, "") for number in taxonomy.category_ids.tolist()]
        species = pa.table({**columns, "train_count": counts, "listed_name": listed_names})
        # Of the very bytes that were parsed: a file may have changed since it was looked up.
        key = self._key_of_train(digest_of(content), digest_of(replacement))
        self._cache.add(_table_name(path, self._root), key, photos)
        self._cache.add(self._species_name, key, species)
        return photos, species, key

    def _parse_other(self, name: str, path: Path) -> tuple[pa.Table, pa.Table, str]:
        train, species, train_key = self.read("train")
        content = read_content(path)
        annotations = self._parse(path, content, name)
        if name == "test":
            labels = np.full(len(annotations.image_ids), -1)
        else:
            source = self._replacement if self._replacement.is_file() else path
            labels = _labels(annotations, taxonomy_of(species), path, source)
            _refuse_other_names(path, annotations.categories, species, self._train.name)
        ids = annotations.image_ids
        both = ids[np.isin(ids, train["image_id"].to_numpy())]
        if len(both):
            raise InputError(
                f"{path}: image id {both.min()} stands in {self._train.name} too; "
                "ids must be unique in the whole data set"
            )
        photos = _photo_table(annotations, labels)
        key = key_of(name, train_key, digest_of(content))
        self._cache.add(_table_name(path, self._root), key, photos)
        return photos, species, key


def _are_sound(photos: pa.Table, species: pa.Table, labelled: bool) -> bool:
    """Whether kept tables are such as this module makes: whoever gave the data set may have
    written them, and their hash shows only that they are whole."""
    if not _is_sound(photos, PHOTO_TYPES) or not _is_sound(species, SPECIES_TYPES):
        return False
    try:
        refuse_unsafe_names(photos["file_name"].chunk(0), "")
    except InputError:
        return False
    labels, ids = photos["label"].to_numpy(), np.sort(photos["image_id"].to_numpy())
    return bool(
        (0 if labelled else -1) <= labels.min()
        and labels.max() < len(species)
        and (ids[1:] != ids[:-1]).all()
        and (np.diff(species["category_id"].to_numpy()) > 0).all()
        and species["train_count"].to_numpy().min() > 0
    )


def _is_sound(table: pa.Table, types: Mapping[str, pa.DataType]) -> bool:
    names = table.column_names
    required = [name for name in types if name not in OPTIONAL]
    return (
        len(table) > 0
        and len(set(names)) == len(names)
        and set(required) <= set(names) <= set(types)
        and all(table[name].type == types[name] and not table[name].null_count for name in names)
    )


def taxonomy_of(species: pa.Table) -> Taxonomy:
    return Taxonomy(species.select(COLUMNS).to_pandas())


def locations_of(places: pa.Table) -> pd.DataFrame:
    names = [name for name in places.column_names if name != "date_known"]
    columns = {name: places[name].to_numpy() for name in names}
    dates = pd.DatetimeIndex(columns.pop("date").view("datetime64[us]")).tz_localize(UTC)
    return pd.DataFrame({**columns, "date": dates})


def _table_name(path: Path, root: Path) -> str:
    """train2018 for train2018.json; with its folders, for Herbarium's are all metadata.json."""
    return "_".join(path.relative_to(root).with_suffix("").parts)


def _labels(
    annotations: Annotations, taxonomy: Taxonomy, path: Path, source: Path
) -> Int64[np.ndarray, "photos"]:
    """The label of each photo. `source` is the file that lists the species."""
    labels, unknown = taxonomy.labels_of(annotations.category_ids)
    if len(unknown):
        if source.name != "categories.json":
            raise InputError(
                f"{path}: annotations[{unknown[0]}] has category_id "
                f"{annotations.category_ids[unknown[0]]}, which is not in 'categories'"
            )
        missing = np.unique(annotations.category_ids[unknown])
        raise InputError(
            f"{source}: lacks {len(missing)} of the category ids in {path.name} (first: "
            f"{missing[0]}); it takes the place of the 'categories' there, so it must list every "
            "species; fetch it again, or remove it"
        )
    annotated = annotations.annotated
    place = _positions(annotations.image_ids, annotated)
    stray = np.flatnonzero(place < 0)
    if len(stray):
        raise InputError(
            f"{path}: annotations[{stray[0]}] is for image {annotated[stray[0]]}, "
            "which is not in 'images'"
        )
    by_photo = np.full(len(annotations.image_ids), -1)
    by_photo[place] = labels
    # Several rows of one species, a box each say, are one label.
    other = np.flatnonzero(by_photo[place] != labels)
    if len(other):
        at = other[0]
        both = sorted(taxonomy.category_ids[[labels[at], by_photo[place[at]]]].tolist())
        raise InputError(
            f"{path}: image {annotated[at]} has annotations of several species (categories "
            f"{both[0]} and {both[1]}); a photo has one species: keep one, or remove the image"
        )
    bare = annotations.image_ids[by_photo < 0]
    if len(bare):
        raise InputError(
            f"{path}: {len(bare)} of {len(by_photo)} images have no annotation (first: image "
            f"{bare[0]}); annotate them or remove them from 'images'"
        )
    return by_photo


def _positions(
    ids: Int64[np.ndarray, "n"], wanted: Int64[np.ndarray, "wanted"]
) -> Int64[np.ndarray, "wanted"]:
    """Where each of the `wanted` stands in `ids`; -1 where it does not."""
    if np.array_equal(ids, wanted):  # most files keep the order of 'images' throughout
        return np.arange(len(wanted))
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    place = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[place] == wanted, place, -1)


def _photo_table(annotations: Annotations, labels: Int64[np.ndarray, "photos"]) -> pa.Table:
    known = {"digest": annotations.digests, "group": annotations.groups}
    return pa.table(
        {
            "image_id": annotations.image_ids,
            "label": labels,
            "file_name": annotations.file_names,
            "height": annotations.sizes[:, 0],
            "width": annotations.sizes[:, 1],
            **{name: values for name, values in known.items() if values is not None},
        }
    )


def _listed_names(categories: list[Any]) -> Iterator[tuple[int, str]]:
    """Id and name of the categories that have both."""
    for row in categories:
        if isinstance(row, Mapping) and type(row.get("id")) is int and row.get("name"):
            yield row["id"], str(row["name"])


def _refuse_other_names(path: Path, categories: list[Any], species: pa.Table, train: str) -> None:
    """Stops where a file lists other species under the ids of those of train: either its list or
    its labels are wrong, and only a person can say which."""
    ids, names = species["category_id"].to_pylist(), species["listed_name"].to_pylist()
    name_of, id_of = dict(zip(ids, names, strict=True)), dict(zip(names, ids, strict=True))
    for number, name in _listed_names(categories):
        known = name_of.get(number, "")
        if known and normalize("NFC", known) != normalize("NFC", name):
            theirs = f"{known!r:.60}"
        elif number not in name_of and name in id_of:
            theirs = f"it as category {id_of[name]}"
        else:
            continue
        raise InputError(
            f"{path}: its 'categories' have {name!r:.60} as category {number}, and {train} has "
            f"{theirs}; correct the one that is wrong, or remove 'categories' from {path.name} "
            "where its category ids are those of train"
        )

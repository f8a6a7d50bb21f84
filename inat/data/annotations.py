"""Reads a data set in the iNat layout into a Split: which photos, which label, which species."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int32, Int64

from inat.competitions import Competition, find_competition
from inat.config import parse_holdout
from inat.data.taxonomy import Taxonomy, read_taxonomy
from inat.errors import InputError
from inat.files import read_json

SPLIT_NAMES = "train, val, test, train+val, holdout, fold:i/K"


@dataclass(frozen=True, eq=False)
class Split:
    """A list of photos with what is known of each.

    Attributes:
        name: train, val, test, train+val, holdout, fold:i/K, or a part of one.
        root: folder that `file_names` are relative to.
        competition: Kaggle name of the competition.
        file_names: path of each photo below `root`, with forward slashes.
        image_ids: id of each photo, unique within the data set.
        labels: 0..C-1 in numeric order of category id; -1 where unknown.
        sizes: height and width in pixels as the annotations state them; 0 where they do not.
        taxonomy: the species.
        train_counts: photos of each species in the whole `train` split, whatever this split is.
        locations: a row a photo with lat and lon in degrees and date (UTC), and date_c (share of
            the year) where the file gives that; NaN or NaT where unknown; None where the
            competition gives no locations.
    """

    name: str
    root: Path
    competition: str
    file_names: pa.StringArray
    image_ids: Int64[np.ndarray, "photos"]
    labels: Int64[np.ndarray, "photos"]
    sizes: Int32[np.ndarray, "photos 2"]
    taxonomy: Taxonomy
    train_counts: Int64[np.ndarray, "classes"]
    locations: pd.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def n_classes(self) -> int:
        """Number of species, those without a photo in this split included."""
        return len(self.taxonomy)

    @property
    def class_counts(self) -> Int64[np.ndarray, "classes"]:
        """Photos of each species in this split."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.n_classes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over image ids and category ids, whatever the photos' order: two splits of the
        same photos and species have the same."""
        order = np.argsort(self.image_ids)
        known = self.labels[order] >= 0
        categories = np.where(known, self.taxonomy.category_ids[self.labels[order]], -1)
        rows = np.stack([self.image_ids[order], categories])
        return hashlib.sha256(rows.tobytes()).hexdigest()

    def path(self, index: int) -> Path:
        """Where photo number `index` lies."""
        return self.root / str(self.file_names[index])

    def select(self, index: np.ndarray, name: str | None = None) -> "Split":
        """The photos at these positions (or of this mask), in this order."""
        positions = np.flatnonzero(index) if index.dtype == bool else index
        return replace(
            self,
            name=name or self.name,
            file_names=self.file_names.take(pa.array(positions)),
            image_ids=self.image_ids[positions],
            labels=self.labels[positions],
            sizes=self.sizes[positions],
            locations=None if self.locations is None else self.locations.iloc[positions],
        )


def load_split(
    root: Path | str,
    name: str = "train",
    *,
    holdout: str = "0.2",
    holdout_seed: int = 0,
    competition: str = "inaturalist-2018",
) -> Split:
    """Reads one split of a data set in the iNat layout.

    Args:
        root: folder with the annotation files (train2018.json, val2018.json, test2018.json).
        name: train, val, test, train+val; holdout, the part of train that `holdout` (a share, or
            fold:i/K) keeps out of training; or fold:i/K itself.
        holdout: as in a config's `data.holdout`; used by the name holdout alone.
        holdout_seed: which photos are held out.
        competition: Kaggle name; it decides the names of the annotation files.

    Raises:
        InputError: an unknown name, or an annotation file that is missing, cut off or
            contradicts itself; one line that names file and field.
    """
    root = Path(root)
    spec = find_competition(competition)
    train = _read_train(root, spec)
    if name == "train":
        return train
    if name in ("val", "test"):
        return _read_other(root, name, spec, train)
    if name == "train+val":
        return _joined(train, _read_other(root, "val", spec, train))
    if name == "holdout" or name.startswith("fold:"):
        return cut_holdout(train, holdout if name == "holdout" else name, holdout_seed)[1]
    raise InputError(f"there is no split {name!r}; valid: {SPLIT_NAMES}")


def cut_holdout(train: Split, holdout: str, seed: int) -> tuple[Split, Split]:
    """Cuts `train` into the part that is trained on and the part that is held out.

    The cut depends on the image ids, `holdout` and `seed` alone. A share is kept of every
    species, its fraction rounded up or down by a draw, so that species with few photos are held
    out at the same rate as the others; no species loses its last photo.

    Raises:
        InputError: `holdout` is "none" or of no known form, or nothing would be held out.
    """
    parsed = parse_holdout(holdout)
    if parsed is None:
        raise InputError(
            "data.holdout is none: nothing is held out; "
            "train with a share (data.holdout 0.2) or a fold (fold:1/5) to have a held-out part"
        )
    place, count = _places_within_species(train, seed)
    if isinstance(parsed, tuple):
        fold, n_folds = parsed
        # Each species starts its round at another fold: else fold 1 would get all the leftovers.
        start = _draws(seed, train.taxonomy.category_ids, "fold") * n_folds
        held = (place + start[train.labels].astype(np.int64)) % n_folds == fold - 1
        held &= count > 1
    else:
        dither = _draws(seed, train.taxonomy.category_ids, "share")[train.labels]
        held = place < np.minimum(np.floor(count * parsed + dither), count - 1)
    if not held.any():
        raise InputError(
            f"data.holdout {holdout} holds out no photo of {len(train)}; raise the share"
        )
    held_out_name = holdout if holdout.startswith("fold:") else "holdout"
    return train.select(~held), train.select(held, held_out_name)


def _places_within_species(
    train: Split, seed: int
) -> tuple[Int64[np.ndarray, "photos"], Int64[np.ndarray, "photos"]]:
    """Each photo's place in a shuffled list of its species' photos, and that list's length."""
    order = np.lexsort((_draws(seed, train.image_ids, "photo"), train.labels))
    counts = train.class_counts
    place = np.empty(len(train), np.int64)
    place[order] = np.arange(len(train)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[train.labels]


def _draws(seed: int, ids: Int64[np.ndarray, "n"], purpose: str) -> np.ndarray:
    """A number in [0, 1) for each id that depends on seed, id and purpose alone.

    SplitMix64 (Steele et al. 2014): unlike a generator it gives a photo the same number whatever
    other photos there are.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def _read_train(root: Path, spec: Competition) -> Split:
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; data.root is the data set's folder")
    path = root / spec.annotation_files["train"]
    document = _read_document(path, ("images", "annotations", "categories"))
    categories, source = document["categories"], path
    # The first release hid the species' names; categories.json brought the real list.
    if (replacement := root / "categories.json").is_file():
        categories, source = read_json(replacement), replacement
    taxonomy = read_taxonomy(categories, str(source))
    split = _labelled(root, path, "train", spec, document, taxonomy)
    counts = split.class_counts
    if (counts == 0).any():
        empty = taxonomy.table[counts == 0]
        raise InputError(
            f"{path}: {len(empty)} of {len(taxonomy)} species have no training photo (first: "
            f"category {empty['category_id'].iloc[0]}, {empty['name'].iloc[0]}); "
            "add a photo of each or remove them from 'categories'"
        )
    return replace(split, train_counts=counts)


def _read_other(root: Path, name: str, spec: Competition, train: Split) -> Split:
    path = root / spec.annotation_files[name]
    fields = ("images",) if name == "test" else ("images", "annotations")
    document = _read_document(path, fields)
    if name == "test":
        split = _unlabelled(root, path, name, spec, document, train.taxonomy)
    else:
        split = _labelled(root, path, name, spec, document, train.taxonomy)
    both = np.intersect1d(split.image_ids, train.image_ids)
    if len(both):
        raise InputError(
            f"{path}: image id {both[0]} stands in {spec.annotation_files['train']} too; "
            "ids must be unique in the whole data set"
        )
    return replace(split, train_counts=train.train_counts)


def _joined(first: Split, second: Split) -> Split:
    locations = None
    if first.locations is not None and second.locations is not None:
        locations = pd.concat([first.locations, second.locations], ignore_index=True)
    return replace(
        first,
        name="train+val",
        file_names=pa.concat_arrays([first.file_names, second.file_names]),
        image_ids=np.concatenate([first.image_ids, second.image_ids]),
        labels=np.concatenate([first.labels, second.labels]),
        sizes=np.concatenate([first.sizes, second.sizes]),
        locations=locations,
    )


def _read_document(path: Path, fields: Sequence[str]) -> Mapping[str, Any]:
    document = read_json(path)
    if not isinstance(document, Mapping):
        raise InputError(f"{path}: an annotation file is an object with {', '.join(fields)}")
    for field in fields:
        if field not in document:
            raise InputError(f"{path}: has no field '{field}'")
        if not isinstance(document[field], list):
            raise InputError(f"{path}: '{field}' is no list")
    if not document["images"]:
        raise InputError(f"{path}: 'images' is empty; a split needs at least one photo")
    return document


def _unlabelled(
    root: Path,
    path: Path,
    name: str,
    spec: Competition,
    document: Mapping[str, Any],
    taxonomy: Taxonomy,
) -> Split:
    images = document["images"]
    image_ids = _whole_numbers(images, "id", f"{path}: images")
    _refuse_duplicates(image_ids, f"{path}: image id", "in 'images'")
    file_names = _column(images, "file_name", f"{path}: images")
    _refuse_unsafe(file_names, path)
    sizes = [[_stated_size(row.get(side)) for side in ("height", "width")] for row in images]
    return Split(
        name=name,
        root=root,
        competition=spec.slug,
        file_names=pa.array(file_names, pa.string()),
        image_ids=image_ids,
        labels=np.full(len(images), -1, np.int64),
        sizes=np.array(sizes, np.int32),
        taxonomy=taxonomy,
        train_counts=np.zeros(len(taxonomy), np.int64),
        locations=_read_locations(root, name, spec, image_ids),
    )


def _labelled(
    root: Path,
    path: Path,
    name: str,
    spec: Competition,
    document: Mapping[str, Any],
    taxonomy: Taxonomy,
) -> Split:
    split = _unlabelled(root, path, name, spec, document, taxonomy)
    annotations = document["annotations"]
    annotated = _whole_numbers(annotations, "image_id", f"{path}: annotations")
    categories = _whole_numbers(annotations, "category_id", f"{path}: annotations")
    labels, unknown = taxonomy.labels_of(categories)
    if len(unknown):
        at = unknown[0]
        raise InputError(
            f"{path}: annotations[{at}] has category_id {categories[at]}, "
            "which is not in 'categories'"
        )
    by_id = np.argsort(split.image_ids, kind="stable")
    ids = split.image_ids[by_id]
    place = np.minimum(np.searchsorted(ids, annotated), len(ids) - 1)
    stray = np.flatnonzero(ids[place] != annotated)
    if len(stray):
        raise InputError(
            f"{path}: annotations[{stray[0]}] is for image {annotated[stray[0]]}, "
            "which is not in 'images'"
        )
    _refuse_duplicates(annotated, f"{path}: image", "in 'annotations'; a photo has one species")
    split.labels[by_id[place]] = labels
    if (split.labels < 0).any():
        image_id = split.image_ids[np.argmin(split.labels)]
        raise InputError(f"{path}: image {image_id} has no annotation")
    return split


def _stated_size(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0


def _column(rows: Sequence[Any], field: str, place: str) -> list[Any]:
    try:
        return [row[field] for row in rows]
    except (KeyError, TypeError):
        at = next(
            i for i, row in enumerate(rows) if not isinstance(row, Mapping) or field not in row
        )
        raise InputError(f"{place}[{at}] has no field '{field}'") from None


def _whole_numbers(rows: Sequence[Any], field: str, place: str) -> Int64[np.ndarray, "n"]:
    values = _column(rows, field, place)
    for at, value in enumerate(values):
        if type(value) is not int or not -(2**63) <= value < 2**63:
            raise InputError(f"{place}[{at}]: '{field}' is {value!r:.40}, not a whole number")
    return np.array(values, np.int64)


def _refuse_duplicates(ids: Int64[np.ndarray, "n"], what: str, where: str) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        first = np.argmax(counts > 1)
        raise InputError(f"{what} {unique[first]} stands {counts[first]} times {where}")


def _refuse_unsafe(file_names: Sequence[Any], path: Path) -> None:
    """Nothing outside the root is ever read: no absolute path, no `..`, no drive letter."""
    for at, file_name in enumerate(file_names):
        is_text = isinstance(file_name, str) and "\0" not in file_name
        parts = PurePosixPath(file_name.replace("\\", "/")).parts if is_text else ()
        if not parts:
            raise InputError(f"{path}: images[{at}]: 'file_name' is {file_name!r:.80}, no path")
        # Of "//a" the first part is "//".
        if parts[0].startswith("/") or ".." in parts or ":" in parts[0]:
            raise InputError(
                f"{path}: images[{at}]: 'file_name' {file_name!r:.80} leads out of the data root; "
                "it must be relative and without '..'"
            )


def _read_locations(
    root: Path, name: str, spec: Competition, image_ids: Int64[np.ndarray, "photos"]
) -> pd.DataFrame | None:
    file_name = spec.locations_files.get(name)
    if file_name is None or not (root / file_name).is_file():
        return None
    rows = read_json(root / file_name)
    ids = _whole_numbers(rows, "id", f"{root / file_name}: ")
    columns = ["lat", "lon"]
    if any("date_c" in row for row in rows):  # geo_prior's copy: share of the year, 0..1
        columns.append("date_c")
    table = pd.DataFrame(
        {
            **{column: _numbers_or_nan(rows, column, root / file_name) for column in columns},
            "date": pd.to_datetime(
                pd.Series([row.get("date") for row in rows], ids, dtype="object"),
                utc=True,
                errors="coerce",
                format="mixed",
            ),
        },
        index=ids,
    )
    _refuse_duplicates(ids, f"{root / file_name}: id", "")
    return table.reindex(image_ids).reset_index(drop=True)


def _numbers_or_nan(rows: Sequence[Any], field: str, path: Path) -> np.ndarray:
    numbers = np.full(len(rows), np.nan)
    for at, row in enumerate(rows):
        value = row.get(field)
        if value is not None:
            if not isinstance(value, int | float):
                raise InputError(f"{path}: [{at}]: '{field}' is {value!r:.40}, not a number")
            numbers[at] = value
    return numbers

"""Reads a data set in the iNat layout into a Split: which photos, which label, which species."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash
from jaxtyping import Int32, Int64

from inat.config.schema import parse_holdout
from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.dataset.annotation_tables import AnnotationTables, locations_of, taxonomy_of
from inat.dataset.grouping import hold_fold, hold_share, joined
from inat.dataset.taxonomy import Taxonomy

SPLIT_NAMES = "train, val, test, train+val, holdout, fold:i/K"


@dataclass(frozen=True, eq=False)
class Split:
    """A list of photos with what is known of each."""

    name: str  # train, val, test, train+val, holdout, fold:i/K, or a part of one
    root: Path  # folder that `file_names` are relative to
    competition: str  # Kaggle name of the competition
    file_names: pa.StringArray  # path of each photo below `root`, with forward slashes
    image_ids: Int64[np.ndarray, "photos"]  # id of each photo, unique within the data set
    labels: Int64[np.ndarray, "photos"]  # 0..C-1 in numeric order of category id; -1 where unknown
    # Height and width in pixels as the annotations state them; 0 where they do not
    sizes: Int32[np.ndarray, "photos 2"]
    taxonomy: Taxonomy  # the species
    # Photos of each species in the whole `train` split, whatever this split is
    train_counts: Int64[np.ndarray, "classes"]
    # The first 64 bits of the XXH3-128 of each photo's bytes, as the annotations state it; 0 where
    # they do not; None where they state none
    digests: Int64[np.ndarray, "photos"] | None = None
    # A number for each observation, sequence or other group of photos that the annotations name,
    # the same in all splits; 0 for a photo of none; None without any
    groups: Int64[np.ndarray, "photos"] | None = None
    # A row a photo with lat and lon in degrees and date (UTC), and date_c (share of the year) where
    # the file gives that; NaN or NaT where unknown; None where the competition gives no locations
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

    @cached_property
    def keys(self) -> Int64[np.ndarray, "photos"]:
        """What each photo is recognized by in other splits, data sets and predictions: its digest,
        or where that is not known a hash of its id, file name and size. An id alone is not enough:
        another import of the same photos numbers them in another order.

        Of 10 million photos any two have the same key with a chance of 3 in a million.
        """
        keys = np.zeros(len(self), np.int64) if self.digests is None else self.digests.copy()
        unknown = np.flatnonzero(keys == 0)
        names = self.file_names.take(pa.array(unknown)).to_pylist()
        numbers = np.column_stack([self.image_ids, self.sizes])[unknown].tolist()
        keys[unknown] = [
            xxhash.xxh3_64_intdigest(f"{number} {name}".encode()) - 2**63
            for number, name in zip(numbers, names, strict=True)
        ]
        return keys

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over keys and category ids, whatever the photos' order and numbers: two splits
        of the same photos and species have the same."""
        categories = np.where(self.labels >= 0, self.taxonomy.category_ids[self.labels], -1)
        rows = np.stack([self.keys, categories])
        return hashlib.sha256(rows[:, np.lexsort(rows)].tobytes()).hexdigest()

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
            digests=None if self.digests is None else self.digests[positions],
            groups=None if self.groups is None else self.groups[positions],
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

    What was parsed of the JSON is kept in ROOT/.inat, or where that cannot be written in the
    user's cache folder, and used for as long as the files have the same bytes.

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
    is_part_of_train = name == "holdout" or name.startswith("fold:")
    if not is_part_of_train and name not in ("train", "val", "test", "train+val"):
        raise InputError(f"there is no split {name!r}; valid: {SPLIT_NAMES}")
    tables = AnnotationTables(Path(root), find_competition(competition))
    parts = ["train"] if is_part_of_train else name.split("+")
    splits = [_read(tables, part, Path(root), competition) for part in parts]
    tables.keep()
    if is_part_of_train:
        return cut_holdout(splits[0], holdout if name == "holdout" else name, holdout_seed)[1]
    return splits[0] if len(splits) == 1 else _joined(*splits)


def cut_holdout(train: Split, holdout: str, seed: int) -> tuple[Split, Split]:
    """Cuts `train` into the part that is trained on and the part that is held out.

    The cut depends on the annotations, `holdout` and `seed` alone. A share is kept of every
    species, its fraction rounded up or down by a draw, so that species with few photos are held
    out at the same rate as the others; no species loses its last photo. Photos of equal bytes or
    of one observation (`photo_groups`) stay on one side.

    Raises:
        InputError: `holdout` is "none" or of no known form, or nothing would be held out.
    """
    parsed = parse_holdout(holdout)
    if parsed is None:
        raise InputError(
            "data.holdout is none: nothing is held out; "
            "train with a share (data.holdout 0.2) or a fold (fold:1/5) to have a held-out part"
        )
    draws = _draws(seed, train.image_ids, "photo")
    category_ids, groups = train.taxonomy.category_ids, photo_groups(train)
    if isinstance(parsed, tuple):
        fold, n_folds = parsed
        # Each species starts its round at another fold: else fold 1 would get all the leftovers.
        starts = (_draws(seed, category_ids, "fold") * n_folds).astype(np.int64)
        held = hold_fold(train.labels, draws, groups, starts, fold, n_folds)
    else:
        held = hold_share(train.labels, draws, groups, parsed, _draws(seed, category_ids, "share"))
    if not held.any():
        remedy = "make fewer folds" if isinstance(parsed, tuple) else "raise the share"
        if train.class_counts.max() < 2:
            remedy = "no species has a photo to spare; set data.holdout none"
        elif groups is not None:
            remedy += "; copies and photos of one observation or group stay together"
        raise InputError(f"data.holdout {holdout} holds out no photo of {len(train)}; {remedy}")
    held_out_name = holdout if holdout.startswith("fold:") else "holdout"
    return train.select(~held), train.select(held, held_out_name)


def photo_groups(split: Split) -> Int64[np.ndarray, "photos"] | None:
    """The group of each photo: photos of equal bytes and photos of one observation or sequence
    are of one group, which stays on one side of every cut. None where each photo is alone."""
    return joined(*(keys for keys in (split.digests, split.groups) if keys is not None))


def count_mates(split: Split, trained: Split) -> int:
    """Photos of `split` of whose group (`photo_groups`) a photo is trained on."""
    groups = photo_groups(_joined(trained, split))
    if groups is None:
        return 0
    return int(np.isin(groups[len(trained) :], groups[: len(trained)]).sum())


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


def _read(tables: AnnotationTables, name: str, root: Path, competition: str) -> Split:
    photos, species, key = tables.read(name)
    places = tables.places(name, photos, key)
    return Split(
        name=name,
        root=root,
        competition=competition,
        file_names=photos["file_name"].chunk(0),
        # Copied: Arrow's own memory cannot be written to, of which torch warns.
        image_ids=photos["image_id"].to_numpy().copy(),
        labels=photos["label"].to_numpy().copy(),
        sizes=np.stack([photos["height"].to_numpy(), photos["width"].to_numpy()], axis=1),
        taxonomy=taxonomy_of(species),
        train_counts=species["train_count"].to_numpy().copy(),
        **{
            f"{column}s": photos[column].to_numpy().copy()
            for column in ("digest", "group")
            if column in photos.column_names
        },
        locations=None if places is None else locations_of(places),
    )


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
        digests=_known_of_both(first, second, "digests"),
        groups=_known_of_both(first, second, "groups"),
        locations=locations,
    )


def _known_of_both(
    first: Split, second: Split, field: Literal["digests", "groups"]
) -> Int64[np.ndarray, "photos"] | None:
    if getattr(first, field) is None and getattr(second, field) is None:
        return None
    parts = [(getattr(split, field), len(split)) for split in (first, second)]
    return np.concatenate([np.zeros(n, np.int64) if part is None else part for part, n in parts])

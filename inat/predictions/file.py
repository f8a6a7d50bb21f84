"""The prediction file: a model's logits with everything that later steps need to know of them.

A folder with `logits.npy` (float16 `[images, classes]`, row maximum subtracted; float32 where
that was asked for), `ids.npy`, `labels.npy` (-1 where unknown), `species.parquet`,
`photos.parquet` and `meta.json`; where something was chosen for it, `chosen_on.npy` has the keys
of the photos that it was chosen on. It is written beside its place and put there by one rename.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float, Float32, Float64, Int64
from numpy.lib.format import open_memmap

from inat.core.arrays import positions, read_array, read_species, read_table
from inat.core.errors import InputError
from inat.core.files import atomic_folder, reserve
from inat.core.metrics import top_k
from inat.predictions.meta import PredictionMeta, Role, read_meta, write_meta

FILES = ("logits.npy", "ids.npy", "labels.npy", "species.parquet", "photos.parquet", "meta.json")
PHOTOS = {
    "id": "whole numbers", "key": "whole numbers", "file_name": "texts", "role": "texts"
}  # fmt: skip
CHOSEN_ON = "chosen_on.npy"
REMEDY = "predict again"
CHUNK_BYTES = 64_000_000


@dataclass(frozen=True, eq=False)
class PredictionFile:
    """A prediction file that was opened; `logits` stay on the disk until they are sliced.

    Attributes:
        path: the folder.
        logits: float16 or float32, memory-mapped.
        ids: image ids.
        labels: true labels, -1 where unknown.
        species: a row a label: category_id, name, lineage, train_count.
        photos: a row an image: id, key (what the photo is recognized by in other predictions,
            see `Split.keys`), file_name, role.
        meta: how the logits were made, and the class prior that they carry.
        chosen_keys: keys of the photos on which something was chosen for it, of whatever split.
        notes: sentences of the verb that wrote it just now; none where it was merely opened.
    """

    path: Path
    logits: Float[np.ndarray, "images classes"]
    ids: Int64[np.ndarray, "images"]
    labels: Int64[np.ndarray, "images"]
    species: pd.DataFrame
    photos: pd.DataFrame
    meta: PredictionMeta
    chosen_keys: Int64[np.ndarray, "chosen"]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def with_notes(self, notes: list[str]) -> "PredictionFile":
        """The same file, just written, with what there is to say of it."""
        return replace(self, notes=notes)

    def lines(self) -> list[str]:
        """The notes, and what the file holds, for a terminal."""
        return [*self.notes, f"{self.path}: {len(self):,} photos x {self.n_classes:,} species"]

    @property
    def n_classes(self) -> int:
        """Number of species."""
        return len(self.species)

    @property
    def category_ids(self) -> Int64[np.ndarray, "classes"]:
        """Category id of each label."""
        return self.species["category_id"].to_numpy(np.int64)

    @property
    def train_counts(self) -> Int64[np.ndarray, "classes"]:
        """Photos of each species in the whole train split; they decide the bands."""
        return self.species["train_count"].to_numpy(np.int64)

    @property
    def logits_prior(self) -> Float64[np.ndarray, "classes"] | None:
        """The class prior that the logits carry; None where unknown."""
        prior = self.meta.logits_prior
        return None if prior is None else np.array(prior, np.float64)

    @property
    def absent_species(self) -> pd.DataFrame:
        """The rows of `species` of which no photo here is known to be."""
        here = np.bincount(self.labels[self.labels >= 0], minlength=self.n_classes)
        absent: pd.DataFrame = self.species[here == 0]
        return absent

    def read(self, rows: slice | Int64[np.ndarray, "some"]) -> Float32[np.ndarray, "some classes"]:
        """A copy of the logits of a few images.

        Raises:
            InputError: one of them is not finite.
        """
        logits: Float32[np.ndarray, "some classes"] = self.logits[rows].astype(np.float32)
        finite = np.isfinite(logits)
        if not finite.all():
            image = self.ids[rows][finite.all(axis=1).argmin()]
            raise InputError(
                f"{self.path / 'logits.npy'}: the logits of image {image} are not finite; {REMEDY}"
            )
        return logits

    @property
    def roles(self) -> np.ndarray:
        """The `Role` of each image, as text."""
        return self.photos["role"].to_numpy(object)

    def positions(self, ids: Int64[np.ndarray, "some"]) -> Int64[np.ndarray, "some"]:
        """The rows of these image ids, each of which must be here."""
        return positions(self.ids, ids)

    def top_k(self, k: int) -> Int64[np.ndarray, "images k"]:
        """The k likeliest labels of every image, best first; ties go to the lower category id.

        Raises:
            InputError: a logit is not finite.
        """
        return np.concatenate([top_k(self.read(rows), k) for rows in self.chunks()])

    def chunks(self, n_bytes: int | None = None) -> Iterator[slice]:
        """Slices of the images that need about `n_bytes` each as float32; None: 64 MB."""
        rows = max(1, (n_bytes or CHUNK_BYTES) // (4 * self.n_classes))
        for begin in range(0, len(self), rows):
            yield slice(begin, min(begin + rows, len(self)))


def read_prediction(prediction: PredictionFile | Path | str) -> PredictionFile:
    """Opens a prediction file; one that is open already is returned as it is.

    Raises:
        InputError: it is missing, not whole, or its parts disagree.
    """
    if isinstance(prediction, PredictionFile):
        return prediction
    path = Path(prediction)
    if not (path / "meta.json").is_file():
        raise InputError(f"{path}: no prediction file (a folder with logits.npy and meta.json)")
    meta = read_meta(path / "meta.json")
    logits = read_array(path / "logits.npy", REMEDY, np.float16, np.float32, ndim=2)
    n_images, n_classes = logits.shape
    ids, labels = (
        read_array(path / name, REMEDY, np.int64, ndim=1) for name in ("ids.npy", "labels.npy")
    )
    if not n_images == len(ids) == len(labels):
        raise InputError(
            f"{path}: its parts disagree: {n_images:,} rows of logits, {len(ids):,} ids, "
            f"{len(labels):,} labels; predict again"
        )
    species = read_species(path / "species.parquet", REMEDY, n_classes)
    photos = read_table(path / "photos.parquet", REMEDY, PHOTOS, n_images)
    _refuse_repeats(path, ids, species)
    if not np.array_equal(photos["id"], ids):
        raise InputError(
            f"{path}: its parts disagree: photos.parquet has other ids than ids.npy; {REMEDY}"
        )
    if unknown := set(photos["role"]) - {*Role}:
        raise InputError(
            f"{path / 'photos.parquet'}: {min(unknown)!r:.40} is no role of a photo; predict again"
        )
    if not logits.size or not ((labels >= -1) & (labels < len(species))).all():
        raise InputError(
            f"{path}: it has no photo, or a label that is none of its {len(species)} species; "
            "predict again"
        )
    prior = meta.logits_prior
    # A finite sum excludes NaN and infinity.
    if prior is not None and not (
        len(prior) == len(species) and min(prior) >= 0 and math.isclose(sum(prior), 1, rel_tol=1e-3)
    ):
        raise InputError(
            f"{path / 'meta.json'}: 'logits_prior' is not a list of {len(species)} numbers, one "
            "per species, that sum to 1; predict again"
        )
    chosen: Int64[np.ndarray, chosen] = np.empty(0, np.int64)
    if (path / CHOSEN_ON).exists():
        chosen = np.array(read_array(path / CHOSEN_ON, REMEDY, np.int64, ndim=1))
    return PredictionFile(
        path, logits, np.array(ids), np.array(labels), species, photos, meta, chosen
    )


@contextmanager
def write_prediction(
    path: Path,
    *,
    ids: Int64[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    species: pd.DataFrame,
    photos: pd.DataFrame,
    meta: PredictionMeta,
    dtype: npt.DTypeLike = np.float16,
    chosen_keys: Sequence[Int64[np.ndarray, "_"]] = (),
) -> Iterator[Float[np.ndarray, "images classes"]]:
    """Gives the logits' rows to be filled by `store`; on leaving, the file is in its place.

    Nothing is left at `path` when the block raises. `dtype` is float16 or float32, `chosen_keys`
    are of the photos on which something was chosen, by this step and by those before it.

    Raises:
        InputError: an id twice, category ids that do not ascend, a folder of something else.
    """
    if path.exists() and not (path / "meta.json").is_file() and any(path.iterdir()):
        raise InputError(f"{path}: the folder is not empty and holds no prediction; give another")
    _refuse_repeats(path, ids, species)
    with atomic_folder(path) as partial:
        shape = (len(ids), len(species))
        logits = open_memmap(partial / "logits.npy", mode="w+", dtype=dtype, shape=shape)
        reserve(partial / "logits.npy")
        yield logits
        logits.flush()
        np.save(partial / "ids.npy", ids, allow_pickle=False)
        np.save(partial / "labels.npy", labels, allow_pickle=False)
        species.to_parquet(partial / "species.parquet", index=False)
        photos.to_parquet(partial / "photos.parquet", index=False)
        if sum(map(len, chosen_keys)):
            chosen = np.unique(np.concatenate(chosen_keys))
            np.save(partial / CHOSEN_ON, chosen, allow_pickle=False)
        write_meta(partial / "meta.json", meta)


def store(
    logits: Float[np.ndarray, "images classes"], dtype: npt.DTypeLike = np.float16
) -> Float[np.ndarray, "images classes"]:
    """Logits as they are stored: row maximum subtracted, then rounded to float16 (or `dtype`).

    So the likeliest classes lie near 0, where float16 is finest; what lies more than 65,504
    below the best is stored as that.
    Raises InputError at NaN and infinity, but not at a minus infinity that is not the best.
    """
    best = logits.max(axis=1, keepdims=True)
    if not np.isfinite(best).all():  # NaN where any of the row is
        raise InputError("the new logits are not finite: the prior or the prediction is damaged")
    shifted = logits - best
    np.maximum(shifted, np.finfo(np.float16).min, out=shifted)
    stored: Float[np.ndarray, "images classes"] = shifted.astype(dtype, copy=False)
    return stored


def refuse_place(
    out: Path, inputs: Sequence[PredictionFile], verb: str, *, overwrite: bool
) -> None:
    """Refuses an `out` that is or holds one of the inputs, or exists and may not be overwritten."""
    for place in (prediction.path.resolve() for prediction in inputs):
        if out.resolve() == place:
            raise InputError(f"{out}: {verb} does not write over its input; give another --out")
        if place.is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds a prediction that {verb} reads; give another --out")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists already; give another --out, or --overwrite")


def rows_of_photos(
    prediction: PredictionFile, first: PredictionFile
) -> Int64[np.ndarray, "images"]:
    """The row in `prediction` of each photo of `first`; InputError if photos or species differ."""
    if not np.array_equal(prediction.category_ids, first.category_ids):
        raise InputError(
            f"{prediction.path}: its {prediction.n_classes} species are not the {first.n_classes} "
            f"of {first.path}; give predictions of runs on one data set"
        )
    stray = np.setxor1d(prediction.ids, first.ids)
    if len(stray):
        raise InputError(
            f"{prediction.path}: its photos are not those of {first.path} ({len(stray)} stand "
            f"in one alone; first: {stray[0]}); give predictions of one split"
        )
    refuse_other_photos(prediction, first)
    return prediction.positions(first.ids)


def refuse_other_photos(prediction: PredictionFile, first: PredictionFile) -> None:
    """Refuses predictions of two data sets: an image id stands for another photo in `first`."""
    keys = prediction.photos["key"].to_numpy()[prediction.positions(first.ids)]
    apart = first.ids[keys != first.photos["key"].to_numpy()]
    if len(apart):
        raise InputError(
            f"{prediction.path}: {len(apart)} of its {len(prediction)} photos are others than in "
            f"{first.path}, under the same ids (first: {apart.min()}); each import "
            "numbers its photos itself: predict one data set with both"
        )


def _refuse_repeats(path: Path, ids: Int64[np.ndarray, "images"], species: pd.DataFrame) -> None:
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"{path / 'ids.npy'}: has an image twice; {REMEDY}")
    # Ties go to the lower id, and searches rely on it.
    if not (np.diff(species["category_id"]) > 0).all():
        raise InputError(
            f"{path / 'species.parquet'}: its category ids do not ascend, or one is there twice; "
            f"{REMEDY}"
        )

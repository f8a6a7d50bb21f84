"""The prediction file: a model's logits with everything that later steps need to know of them.

A folder with `logits.npy` (float16 `[images, classes]`, row maximum subtracted; float32 where
that was asked for), `ids.npy`, `labels.npy` (-1 where unknown), `species.parquet`,
`photos.parquet` and `meta.json`; where something was chosen for it, `chosen_on.npy` has the keys
of the photos that it was chosen on. It is written beside its place and put there by one rename.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float, Float32, Float64, Int64
from numpy.lib.format import open_memmap

from inat.core.arrays import read_array, read_species, read_table
from inat.core.bands import FEW_BELOW, MANY_ABOVE
from inat.core.errors import InputError
from inat.core.files import atomic_folder, read_json, reserve, write_json

FORMAT = 1
FILES = ("logits.npy", "ids.npy", "labels.npy", "species.parquet", "photos.parquet", "meta.json")
ROLES = ("unseen", "trained on", "held out", "chosen on")
PHOTOS = {
    "id": "whole numbers", "key": "whole numbers", "file_name": "texts", "role": "texts"
}  # fmt: skip
CHOSEN_ON = "chosen_on.npy"
REMEDY = "predict again"
CHUNK_BYTES = 64_000_000
MOST_LEVELS = 20
"""Of ensembles of ensembles."""

LOG_PRESENCE = "log presence"
"""What `logits` in meta.json says of a geo prior's; nothing is said of a classifier's."""


# No path has a zero in it, and to ask for one is an error.
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\0]*\Z")]


class _Making(msgspec.Struct):
    """What meta.json may say of how a prediction was made: the types alone, of what there is."""

    competition: str = ""
    split: str = ""
    run: _Text = ""
    checkpoint: str = ""
    checkpoint_epoch: int | None = None
    checkpoint_sha256: str | None = None
    weights: str = ""
    weights_source: str = ""
    config_digest: str | None = None
    config_digest_without_holdout: str | None = None
    views: list[Any] = []
    view_mean: str | None = None
    logits: str = ""
    chosen: dict[str, str] = {}
    adjusted: list[dict[str, Any]] = []
    how: str = ""
    fit: dict[str, Any] | None = None
    members: list["_Member"] = []
    folds: list["_Making"] = []
    data_root: _Text = ""
    band_edges: tuple[int, int] = (FEW_BELOW, MANY_ABOVE)
    versions: dict[str, str] = {}
    bad_photos: list[str] = []
    recovered_photos: list[str] = []


class _Meta(_Making, kw_only=True):
    competition: str
    split: str
    logits_prior: list[float] | None
    chosen: dict[str, str]


class _Member(_Making, kw_only=True):
    prediction: _Text = ""
    weight: float = 1.0
    temperature: float = 1.0


def _n_levels(meta: dict[str, Any]) -> int:
    return 1 + max(map(_n_levels, meta.get("members", [])), default=0)


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
        meta: competition, split, logits_prior, run, checkpoint, weights, chosen ...
        chosen_keys: keys of the photos on which something was chosen for it, of whatever split.
    """

    path: Path
    logits: Float[np.ndarray, "images classes"]
    ids: Int64[np.ndarray, "images"]
    labels: Int64[np.ndarray, "images"]
    species: pd.DataFrame
    photos: pd.DataFrame
    meta: dict[str, Any]
    chosen_keys: Int64[np.ndarray, "chosen"]

    def __len__(self) -> int:
        return len(self.ids)

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
        prior = self.meta["logits_prior"]
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

    def chunks(self, n_bytes: int | None = None) -> Iterator[slice]:
        """Slices of the images that need about `n_bytes` each as float32; None: 64 MB."""
        rows = max(1, (n_bytes or CHUNK_BYTES) // (4 * self.n_classes))
        for begin in range(0, len(self), rows):
            yield slice(begin, min(begin + rows, len(self)))


def read_prediction(path: Path | str) -> PredictionFile:
    """Opens a prediction file.

    Raises:
        InputError: it is missing, not whole, or its parts disagree.
    """
    path = Path(path)
    if not (path / "meta.json").is_file():
        raise InputError(f"{path}: no prediction file (a folder with logits.npy and meta.json)")
    meta = read_json(path / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path / 'meta.json'}: not of format {FORMAT}; predict again")
    try:
        msgspec.convert(meta, _Meta)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(f"{path / 'meta.json'}: {error}; predict again") from None
    if _n_levels(meta) > MOST_LEVELS:
        raise InputError(f"{path / 'meta.json'}: members of members without end; predict again")
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
    if unknown := set(photos["role"]) - {*ROLES}:
        raise InputError(
            f"{path / 'photos.parquet'}: {min(unknown)!r:.40} is no role of a photo; predict again"
        )
    if not logits.size or not ((labels >= -1) & (labels < len(species))).all():
        raise InputError(
            f"{path}: it has no photo, or a label that is none of its {len(species)} species; "
            "predict again"
        )
    prior = meta["logits_prior"]
    if prior is not None and not (len(prior) == len(species) and _are_shares(prior)):
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
    meta: dict[str, Any],
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
        write_json(partial / "meta.json", {"format": FORMAT, **meta})


def store(
    logits: Float[np.ndarray, "images classes"], dtype: npt.DTypeLike = np.float16
) -> Float[np.ndarray, "images classes"]:
    """Logits as they are stored: row maximum subtracted, then rounded to float16 (or `dtype`).

    So the likeliest classes lie near 0, where float16 is finest; what lies more than 65,504
    below the best is stored as that.

    Raises:
        InputError: a logit is NaN or infinite (minus infinity is not, where it is not the best).
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
    """Stops where `verb` must not write its prediction.

    Raises:
        InputError: `out` is or holds one of the inputs, or exists and may not be overwritten.
    """
    for place in (prediction.path.resolve() for prediction in inputs):
        if out.resolve() == place:
            raise InputError(f"{out}: {verb} does not write over its input; give another --out")
        if place.is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds a prediction that {verb} reads; give another --out")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists already; give another --out, or --overwrite")


def refuse_other_photos(prediction: PredictionFile, first: PredictionFile) -> None:
    """Stops where an image id stands for another photo in `first`, which has the same ids.

    Raises:
        InputError: it does: the predictions are of two data sets.
    """
    orders = [np.argsort(p.ids, kind="stable") for p in (prediction, first)]
    keys = [p.photos["key"].to_numpy()[order]
            for p, order in zip((prediction, first), orders, strict=True)]  # fmt: skip
    apart = orders[0][keys[0] != keys[1]]
    if len(apart):
        raise InputError(
            f"{prediction.path}: {len(apart)} of its {len(prediction)} photos are others than in "
            f"{first.path}, under the same ids (first: {prediction.ids[apart[0]]}); each import "
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


def _are_shares(values: list[Any]) -> bool:
    are_numbers = all(type(value) in (int, float) and 0 <= value < math.inf for value in values)
    return are_numbers and math.isclose(sum(values), 1, rel_tol=1e-3)

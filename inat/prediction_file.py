"""The prediction file: a model's logits with everything that later steps need to know of them.

A folder with `logits.npy` (float16 `[images, classes]`, row maximum subtracted; float32 where
that was asked for), `ids.npy`, `labels.npy` (-1 where unknown), `species.parquet`,
`photos.parquet` and `meta.json`. It is written beside its place and put there by one rename.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from jaxtyping import Float, Float64, Int64
from numpy.lib.format import open_memmap

from inat.errors import InputError
from inat.files import atomic_folder, read_json, write_json

FORMAT = 1
ROLES = ("unseen", "trained on", "held out", "chosen on")
META_KEYS = ("competition", "split", "logits_prior", "chosen")
CHUNK_BYTES = 64_000_000
LOG_PRESENCE = "log presence"
"""What `logits` in meta.json says of a geo prior's; nothing is said of a classifier's."""


@dataclass(frozen=True, eq=False)
class PredictionFile:
    """A prediction file that was opened; `logits` stay on the disk until they are sliced.

    Attributes:
        path: the folder.
        logits: float16 or float32, memory-mapped.
        ids: image ids.
        labels: true labels, -1 where unknown.
        species: a row a label: category_id, name, lineage, train_count.
        photos: a row an image: id, file_name, role.
        meta: competition, split, logits_prior, run, checkpoint, weights, chosen ...
    """

    path: Path
    logits: Float[np.ndarray, "images classes"]
    ids: Int64[np.ndarray, "images"]
    labels: Int64[np.ndarray, "images"]
    species: pd.DataFrame
    photos: pd.DataFrame
    meta: dict[str, Any]

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
    for key in META_KEYS:
        if key not in meta:
            raise InputError(f"{path / 'meta.json'}: has no field '{key}'; predict again")
    logits = _read_array(path / "logits.npy", np.float16, np.float32, mmap_mode="r")
    ids = _read_array(path / "ids.npy", np.int64)
    labels = _read_array(path / "labels.npy", np.int64)
    species = _read_table(path / "species.parquet", ("category_id", "name", "train_count"))
    photos = _read_table(path / "photos.parquet", ("id", "file_name", "role"))
    expected = (len(ids), len(species))
    if logits.shape != expected or not len(ids) == len(labels) == len(photos):
        raise InputError(
            f"{path}: its parts disagree: logits {logits.shape}, ids and species "
            f"{expected}, labels {len(labels)}, photos {len(photos)}; predict again"
        )
    prior = meta["logits_prior"]
    if prior is not None and (not isinstance(prior, list) or len(prior) != len(species)):
        raise InputError(
            f"{path / 'meta.json'}: 'logits_prior' is no list of {len(species)} numbers, one a "
            "species; predict again"
        )
    return PredictionFile(path, logits, ids, labels, species, photos, meta)


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
) -> Iterator[Float[np.ndarray, "images classes"]]:
    """Gives the logits' rows to be filled by `store`; on leaving, the file is in its place.

    Nothing is left at `path` when the block raises. `dtype` is float16 or float32.
    """
    if path.exists() and not (path / "meta.json").is_file() and any(path.iterdir()):
        raise InputError(f"{path}: the folder is not empty and holds no prediction; give another")
    with atomic_folder(path) as partial:
        shape = (len(ids), len(species))
        logits = open_memmap(partial / "logits.npy", mode="w+", dtype=dtype, shape=shape)
        yield logits
        logits.flush()
        np.save(partial / "ids.npy", ids, allow_pickle=False)
        np.save(partial / "labels.npy", labels, allow_pickle=False)
        species.to_parquet(partial / "species.parquet", index=False)
        photos.to_parquet(partial / "photos.parquet", index=False)
        write_json(partial / "meta.json", {"format": FORMAT, **meta})


def store(
    logits: Float[np.ndarray, "images classes"], dtype: npt.DTypeLike = np.float16
) -> Float[np.ndarray, "images classes"]:
    """Logits as they are stored: row maximum subtracted, then rounded to float16 (or `dtype`).

    So the likeliest classes lie near 0, where float16 is finest; what lies more than 65,504
    below the best is stored as that.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
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


def _read_array(path: Path, *dtypes: type, **options: Any) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False, **options)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; predict again") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: no array, or cut off ({error}); predict again") from None
    if array.dtype not in dtypes:
        expected = " or ".join(dtype.__name__ for dtype in dtypes)
        raise InputError(f"{path}: holds {array.dtype}, not {expected}; predict again")
    return array


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; predict again") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: no table, or cut off ({error!s:.80}); predict again") from None
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: has no column {column}; predict again")
    return table

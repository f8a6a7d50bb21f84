"""Prediction files made in a line, for the tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from worlds import category_id

from inat.core.files import read_json, write_json
from inat.predictions.file import PredictionFile, read_prediction, store, write_prediction
from inat.predictions.meta import PredictionMeta


def make_prediction(
    path: Path,
    logits: Any,
    labels: Sequence[int] | None = None,
    train_counts: Sequence[int] | None = None,
    split: str = "test",
    role: str | Sequence[str] = "unseen",
    logits_prior: Sequence[float] | EllipsisType | None = ...,
    chosen: dict[str, str] | None = None,
    ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
    columns: dict[str, Sequence[str]] | None = None,
    dtype: type = np.float16,
    **facts: Any,
) -> PredictionFile:
    """Writes a prediction file and opens it.

    Args:
        path: the folder.
        logits: rows of logits; they are stored as float16 below their maximum.
        labels: true labels; None: all unknown.
        train_counts: training photos of each label; None: 50, 49, 48, ...
        split: what the prediction is of.
        role: of all photos, or of each.
        logits_prior: prior that the logits carry; None: not known; ...: that of train_counts.
        chosen: what was chosen, and how.
        ids: image ids; None: 11, 18, 25, ...
        category_ids: None: 2, 10, 28, 56, ... as in `worlds`.
        columns: more columns of the species, or others for name and lineage.
        dtype: of the stored logits.
        **facts: more for meta.json, or other values of run, checkpoint and weights.
    """
    values = np.asarray(logits, np.float32)
    n_images, n_classes = values.shape
    counts = np.array(
        range(50, 50 - n_classes, -1) if train_counts is None else train_counts, np.int64
    )
    if category_ids is None:
        category_ids = [category_id(label) for label in range(n_classes)]
    if ids is None:
        ids = range(11, 11 + 7 * n_images, 7)
    if logits_prior is ...:
        logits_prior = (counts / counts.sum()).tolist()
    species = pd.DataFrame(
        {
            "category_id": np.array(category_ids, np.int64),
            "name": [f"Genus{label} species{label}" for label in range(n_classes)],
            "lineage": [f"Animalia|Genus{label}" for label in range(n_classes)],
            "train_count": counts,
        }
        | (columns or {})
    )
    photos = pd.DataFrame(
        {
            "id": np.array(ids, np.int64),
            "key": np.array(ids, np.int64) * 1_000_003,
            "file_name": [f"test2018/{image_id}.jpg" for image_id in ids],
            "role": [role] * n_images if isinstance(role, str) else list(role),
        }
    )
    with write_prediction(
        path,
        ids=np.array(ids, np.int64),
        labels=np.array([-1] * n_images if labels is None else labels, np.int64),
        species=species,
        photos=photos,
        meta=msgspec.convert(
            {
                "competition": "inaturalist-2018",
                "split": split,
                "logits_prior": logits_prior,
                "run": "runs/a",
                "checkpoint": "last",
                "weights": "raw",
                "chosen": chosen or {},
                **facts,
            },
            PredictionMeta,
        ),
        dtype=dtype,
    ) as rows:
        rows[:] = store(values, dtype)
    return read_prediction(path)


def restate(prediction: PredictionFile, **changed: Any) -> PredictionFile:
    """Lets meta.json of a prediction say something else, and opens it again."""
    path = prediction.path / "meta.json"
    write_json(path, read_json(path) | changed)
    return read_prediction(prediction.path)

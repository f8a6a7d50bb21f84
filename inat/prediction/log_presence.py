"""Predictions of a geo prior: log presence of each species where and when a photo was taken."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Int64

from inat.data.annotations import Split
from inat.data.places import have_place, places_of
from inat.models.device import pick_device
from inat.models.geo_prior import GeoPrior, log_presence
from inat.prediction.trained_model import Checkpoint
from inat.prediction_file import (
    CHUNK_BYTES,
    LOG_PRESENCE,
    PredictionFile,
    read_prediction,
    store,
    write_prediction,
)
from inat.run_folder import Run

SEEN: dict[str, Any] = {"logits": LOG_PRESENCE, "views": [], "view_mean": None}
"""For meta.json: what the logits are, and that nobody looked at a photo."""


def write_log_presence(
    path: Path,
    run: Run,
    checkpoint: Checkpoint,
    photos: Split,
    photo_table: pd.DataFrame,
    chosen_keys: Int64[np.ndarray, "chosen"],
    meta: dict[str, Any],
    dtype: npt.DTypeLike,
) -> PredictionFile:
    """Writes a prediction file of log presence; the row of a photo without a place is all 0.

    Raises:
        InputError: the split has no locations.
    """
    places = places_of(photos)
    network = _load(run, checkpoint)
    device = next(network.parameters()).device
    meta |= {
        "n_without_place": int((~have_place(places)).sum()),
        "n_without_date": int(np.isnan(places[:, 2]).sum()),
        "bad_photos": [],
    }
    length = max(1, CHUNK_BYTES // (4 * photos.n_classes))
    with write_prediction(
        path,
        ids=photos.image_ids,
        labels=photos.labels,
        species=run.species,
        photos=photo_table,
        meta=meta,
        dtype=dtype,
        chosen_keys=[chosen_keys],
    ) as rows:
        for begin in range(0, len(photos), length):
            chunk = slice(begin, begin + length)
            logits = log_presence(network, torch.from_numpy(places[chunk]).to(device))
            rows[chunk] = store(logits.cpu().numpy(), dtype)
    return read_prediction(path)


def _load(run: Run, checkpoint: Checkpoint) -> GeoPrior:
    with torch.random.fork_rng(devices=[]):
        network = GeoPrior(len(run.model["category_ids"]))
    network.load_state_dict(dict(checkpoint.load_weights()))
    return network.to(pick_device(run.config.runtime.device))

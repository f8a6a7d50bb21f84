"""Predictions of a geo prior: log presence of each species where and when a photo was taken."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32

from inat.geo.network import GeoPrior, log_presence
from inat.models.device import pick_device
from inat.runs.trained import TrainedRun

CHUNK_BYTES = 64_000_000


def predict_log_presence(
    geo: TrainedRun, places: Float32[np.ndarray, "photos 3"]
) -> Iterator[tuple[slice, Float[np.ndarray, "chunk classes"]]]:
    """The log presence of each species, chunk by chunk; the row of a photo without a place is
    all 0.

    Args:
        geo: a run of `inat stage-two --method geo_prior`.
        places: of the photos, as `places_of` gives them.
    """
    n_classes = len(geo.run.facts.category_ids)
    with torch.random.fork_rng(devices=[]):
        network = GeoPrior(n_classes)
    network.load_state_dict(dict(geo.checkpoint.load_weights()))
    device = pick_device(geo.config.runtime.device)
    network.to(device)
    length = max(1, CHUNK_BYTES // (4 * n_classes))
    for begin in range(0, len(places), length):
        chunk = slice(begin, begin + length)
        yield chunk, log_presence(network, torch.from_numpy(places[chunk]).to(device)).cpu().numpy()

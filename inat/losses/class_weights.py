"""Weights of the species by their photo counts, for draws and for losses.

A species without photos has weight 0: nothing is drawn of it, and no photo is of it.
"""

import numpy as np
from jaxtyping import Float64, Int64

from inat.config.schema import LossConfig

Weights = Float64[np.ndarray, "classes"]


def effective_number_weights(counts: Int64[np.ndarray, "classes"], beta: float) -> Weights:
    """(1 - beta) / (1 - beta^n): one over the effective number of n photos (Cui et al. 2019,
    arXiv 1901.05555, proposition 1); 1 at beta 0, 1/n in the limit of beta 1."""
    weights = np.zeros(len(counts))
    np.divide(1 - beta, 1 - beta ** counts.astype(np.float64), out=weights, where=counts > 0)
    return weights


def inverse_weights(counts: Int64[np.ndarray, "classes"]) -> Weights:
    """1 / n."""
    weights = np.zeros(len(counts))
    np.divide(1, counts, out=weights, where=counts > 0)
    return weights


def class_weights(config: LossConfig, counts: Int64[np.ndarray, "classes"]) -> Weights | None:
    """The weights that `loss.class_weights` names; None where it names none.

    They are scaled to a mean of 1 over the species that have photos, so they sum to C where all
    have some (Cui et al. 2019, sec. 4).
    """
    if config.class_weights == "none":
        return None
    weights = (
        inverse_weights(counts)
        if config.class_weights == "inverse"
        else effective_number_weights(counts, config.beta)
    )
    scaled: Weights = weights * (np.count_nonzero(counts) / weights.sum())
    return scaled

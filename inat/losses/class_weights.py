"""Weights of the species by their photo counts, for draws and for losses.

A species without photos has weight 0: nothing is drawn of it, and no photo is of it.
"""

from __future__ import annotations

from inat.core.lazy import np
from inat.losses.base import shapes


def effective_number_weights(counts: shapes.Counts, beta: float) -> shapes.Prior:
    """(1 - beta) / (1 - beta^n): one over the effective number of n photos (Cui et al. 2019,
    arXiv 1901.05555, proposition 1); 1 at beta 0, 1/n in the limit of beta 1."""
    weights = np.zeros(len(counts))
    np.divide(1 - beta, 1 - beta ** counts.astype(np.float64), out=weights, where=counts > 0)
    return weights


def class_weights(counts: shapes.Counts, kind: str, beta: float) -> shapes.Prior | None:
    """The weights that `loss.class_weights` names, scaled to a mean of 1 over the species that have
    photos, so they sum to C where all have some (Cui et al. 2019, sec. 4); None for `none`."""
    if kind == "none":
        return None
    weights = np.zeros(len(counts))
    if kind == "inverse":
        np.divide(1, counts, out=weights, where=counts > 0)
    else:
        weights = effective_number_weights(counts, beta)
    return weights * (np.count_nonzero(counts) / weights.sum())

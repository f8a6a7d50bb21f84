"""Class priors: which one a model's logits carry, and how to move logits to another.

The rule of the kit: logits z of a trained model carry the prior of the draws it was trained on,
softmax(z)_j ~ p(j | x) under that prior; a loss that adds tau log pi takes pi^tau off again
(Menon et al. 2021, arXiv 2007.07314). A prior is an array that sums to 1 over the classes.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64
from numpy.typing import ArrayLike

from inat.core.arrays import read_csv
from inat.core.errors import InputError

Prior = Float64[np.ndarray, "classes"]


def count_prior(counts: Int64[np.ndarray, "classes"]) -> Prior:
    """n_j / N."""
    return counts / counts.sum()


def uniform_prior(n_classes: int) -> Prior:
    """1 / C for every class."""
    return np.full(n_classes, 1 / n_classes)


def normalised(weights: Float64[np.ndarray, "classes"]) -> Prior:
    """Weights scaled to sum to 1."""
    return weights / weights.sum()


def prior_left(draws: Prior, adjusted_by: Prior | None, tau: float) -> Prior:
    """The prior that logits still carry after a loss that added tau log(adjusted_by) to those of
    the sampler's draws; None: plain cross-entropy."""
    if adjusted_by is None:
        return draws
    return normalised(draws * adjusted_by**-tau)


def temper(prior: Prior, power: float) -> Prior:
    """`prior` to a power, normalised: what tau = 1 - power leaves of it."""
    return normalised(prior**power)


def is_uniform(prior: Prior) -> bool:
    """Whether moving logits from this prior to the uniform one changes nothing."""
    return bool(np.allclose(prior, 1 / len(prior), rtol=1e-6))


def same_prior(one: ArrayLike | None, other: ArrayLike | None) -> bool:
    """Whether both are the same prior, or both are unknown."""
    if one is None or other is None:
        return one is other
    return np.allclose(one, other, rtol=1e-6, atol=0)


def tau_shift(logits_prior: Prior, tau: float) -> Float64[np.ndarray, "classes"]:
    """What to add to logits for a post-hoc adjustment: -tau log(prior) (Menon et al., eq. 9)."""
    return -tau * np.log(logits_prior)


def target_shift(logits_prior: Prior, target: Prior) -> Float64[np.ndarray, "classes"]:
    """What to add to logits to move them from one prior to another (Bayes' rule); -inf, never
    predicted, for a class whose target is 0."""
    with np.errstate(divide="ignore"):
        shift: Float64[np.ndarray, classes] = np.log(target) - np.log(logits_prior)
    return shift


def drawn_shift(logits_prior: Prior, target: Prior) -> Float64[np.ndarray, "classes"]:
    """`target_shift`, which leaves a class alone whose prior is 0 in one of the two."""
    shift = np.zeros(len(target))
    drawn = (logits_prior > 0) & (target > 0)
    shift[drawn] = target_shift(logits_prior[drawn], target[drawn])
    return shift


def total_variation(
    one: Float64[np.ndarray, "classes *columns"], other: Float64[np.ndarray, "classes *columns"]
) -> Float64[np.ndarray, "*columns"] | np.float64:
    """Half the sum of absolute differences: the share of photos that would have to change class."""
    return np.abs(one - other).sum(axis=0) / 2


def log_softmax(logits: Float[np.ndarray, "images classes"]) -> Float[np.ndarray, "images classes"]:
    """Log-probabilities, in float32."""
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def read_prior(path: Path, category_ids: Int64[np.ndarray, "classes"]) -> Prior:
    """Reads a prior from a CSV `category_id,prior` and scales it to sum to 1; an InputError for an
    unknown, missing or duplicate category, or a bad number."""
    try:
        table = read_csv(path, ["category_id", "prior"])
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; a prior is uniform or a CSV") from None
    table["category_id"] = pd.to_numeric(table["category_id"], errors="coerce")
    table["prior"] = table["prior"].replace("", None)
    if table["category_id"].duplicated().any():
        twice = table["category_id"][table["category_id"].duplicated()].iloc[0]
        raise InputError(f"{path}: category {twice} stands twice")
    stray = table["category_id"][~table["category_id"].isin(category_ids)]
    if len(stray):
        raise InputError(f"{path}: {stray.iloc[0]} is no category of this prediction")
    weights = table.set_index("category_id")["prior"].reindex(category_ids)
    if weights.isna().any():
        raise InputError(f"{path}: category {weights.index[weights.isna()][0]} has no prior")
    values = pd.to_numeric(weights, errors="coerce").to_numpy(np.float64)
    with np.errstate(over="ignore"):
        total = values.sum()
    if not ((values >= 0).all() and 0 < total < np.inf):
        raise InputError(f"{path}: priors must be numbers from 0 on with a finite sum above 0")
    return normalised(values)

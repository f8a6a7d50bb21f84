"""How members' guesses become one: the mean of log-probabilities, of probabilities, or of ranks.

Each rule is a weighted mean of what it makes of a member's logits (its part), and a last step.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32

RANK_DEPTH = 100
"""Guesses of a member that are told apart by their rank: deep ranks are noise at 8,142 species."""


def pool(
    how: str,
    members: Iterable[Float32[np.ndarray, "images classes"]],
    weights: Sequence[float],
    temperatures: Sequence[float],
) -> Float32[np.ndarray, "images classes"]:
    """The ensemble's scores, up to a constant a row; works in the members' own memory.

    mean_logprob is sum_m w_m log softmax(z_m / T_m), mean_prob is
    log sum_m w_m softmax(z_m / T_m), rank is -sum_m w_m min(rank_m, 100), where rank_m is the
    number of classes that member m puts above: 0 is its best, and ties share the better rank.
    Members come one after another, so that one alone is in memory; their weights sum to 1.
    """
    total: Float32[np.ndarray, "images classes"] | None = None
    for logits, weight, temperature in zip(members, weights, temperatures, strict=True):
        # mean_logprob: a log-probability is the logit less a constant of the row.
        part = logits
        if how == "rank":
            part = minus_rank(logits)
        else:
            part /= np.float32(temperature)
        if how == "mean_prob":
            part -= part.max(axis=1, keepdims=True)
            np.exp(part, out=part)
            part /= part.sum(axis=1, keepdims=True)
        part *= np.float32(weight)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return finish(how, total)


def finish(how: str, mean: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The last step of a rule, in place: mean_prob's logarithm."""
    if how == "mean_prob":
        np.maximum(mean, np.finfo(np.float32).tiny, out=mean)
        np.log(mean, out=mean)
    return mean


def minus_rank(
    logits: Float32[np.ndarray, "images classes"],
) -> Float32[np.ndarray, "images classes"]:
    """Minus the number of classes above each class, at most RANK_DEPTH."""
    depth = min(RANK_DEPTH, logits.shape[1])
    ranks = np.full_like(logits, -depth)
    for row, minus in zip(ranks, -logits, strict=True):
        best = np.sort(np.partition(minus, depth - 1)[:depth])
        among = np.flatnonzero(minus <= best[-1])
        row[among] = -np.searchsorted(best, minus[among])
    return ranks

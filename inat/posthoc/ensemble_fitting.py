"""Chooses temperatures and weights on held-out predictions, and tells what that gains.

All is weighed by class means, as under the uniform prior that the members were moved to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from inat.core.intervals import Interval, gain_interval
from inat.core.priors import normalised
from inat.posthoc.ensemble_fit_table import TEMPERATURES, FitTable

Weights = Float64[np.ndarray, "members"]
Parts = Float32[np.ndarray, "members photos listed"]

GREEDY_PICKS = 50
N_FOLDS = 5
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, eq=False)
class Fit:
    """What was chosen: a temperature and a weight of each member, the weights summing to 1."""

    temperatures: list[float]
    weights: list[float]


@dataclass(frozen=True, eq=False)
class Gain:
    """What an ensemble gains on photos that its choices did not see."""

    accuracy: float  # mean class accuracy, each photo scored with what the other folds chose
    best_member: int  # of the highest mean class accuracy on these photos
    best_accuracy: float  # of that member; chosen on these photos, so it is optimistic
    difference: Interval  # the first less the second, paired


def fit(table: FitTable, weights: Sequence[float] | None, search: str) -> Fit:
    """Temperatures, and weights where they are not given."""
    temperatures = fit_temperatures(table)
    if weights is None:
        weights = SEARCHES[search](table, table.parts(temperatures)).tolist()
    return Fit(temperatures, list(weights))


def fit_temperatures(table: FitTable) -> list[float]:
    """The one of TEMPERATURES with the least class-mean log loss, of each member (Guo et al.
    2017, section 4.2); 1 for ranks, which know none."""
    if table.how == "rank":
        return [1.0] * len(table.values)
    found = []
    for values, log_z in zip(table.values, table.log_z, strict=True):
        losses = log_z - values[table.is_true][:, None] / TEMPERATURES
        means = [table.class_mean(losses[:, place]) for place in range(len(TEMPERATURES))]
        found.append(float(TEMPERATURES[np.argmin(means)]))
    return found


def greedy(table: FitTable, parts: Parts) -> Weights:
    """Members picked one after another, with replacement (Caruana et al. 2004, section 2), each by
    mean class accuracy, ties by class-mean log loss, then the earlier. Of the first 1, 2 ... 50
    picks the best are kept; the weights are how often each was picked."""
    total = np.zeros(parts.shape[1:], np.float64)
    picks: list[int] = []
    scores = []
    for n_picked in range(1, GREEDY_PICKS + 1):
        accuracies = [table.accuracy(total + part) for part in parts]
        tied = np.flatnonzero(np.array(accuracies) == max(accuracies)).tolist()
        losses = [table.log_loss((total + parts[member]) / n_picked) for member in tied]
        best = tied[int(np.argmin(losses))]
        picks.append(best)
        scores.append((accuracies[best], -min(losses)))
        total += parts[best]
    n_kept = 1 + max(range(GREEDY_PICKS), key=scores.__getitem__)
    return np.bincount(picks[:n_kept], minlength=len(parts)) / n_kept


def convex(table: FitTable, parts: Parts) -> Weights:
    """The weights from 0 on, summing to 1, with the least class-mean log loss, which is convex in
    them. Weights below 0.001 become 0."""
    from scipy.optimize import minimize  # costs 0.2 s, which other verbs need not pay

    n_members = len(parts)
    double = parts.astype(np.float64)
    done = minimize(
        lambda weights: table.log_loss(np.tensordot(weights, double, 1)),
        np.full(n_members, 1 / n_members),
        method="SLSQP",
        bounds=[(0, 1)] * n_members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-7},
    )
    return normalised(np.where(done.x < LEAST_WEIGHT, 0, done.x))


SEARCHES: dict[str, Callable[[FitTable, Parts], Weights]] = {"greedy": greedy, "convex": convex}


def cross_fitted(table: FitTable, weights: Sequence[float] | None, search: str) -> Gain:
    """The gain over the best member; each fifth of the photos is scored by choices on the rest."""
    hits = np.zeros(len(table.labels), bool)
    folds = stratified_folds(table.labels, N_FOLDS)
    for fold in range(N_FOLDS):
        here, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if len(here) and len(others):
            chosen = fit(table.select(others), weights, search)
            hits[here] = ensemble_hits(table.select(here), chosen)
    alone = [table.hits(values) for values in table.values]
    accuracies = [table.class_mean(member_hits) for member_hits in alone]
    best = int(np.argmax(accuracies))
    difference = gain_interval(alone[best], hits, table.labels)
    assert difference is not None
    return Gain(table.class_mean(hits), best, accuracies[best], difference)


def ensemble_hits(table: FitTable, chosen: Fit) -> Bool[np.ndarray, "photos"]:
    return table.hits(np.tensordot(chosen.weights, table.parts(chosen.temperatures), 1))


def stratified_folds(
    labels: Int64[np.ndarray, "photos"], n_folds: int
) -> Int64[np.ndarray, "photos"]:
    """A fold from 0 on for each photo: a species' photos are spread evenly over the folds."""
    order = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds

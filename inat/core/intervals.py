"""95 % intervals of accuracies and of paired gains over a fixed set of species.

NumPy alone. The species are the strata of a stratified sample: what varies is which photos of
them were taken. One construction serves means over species and over photos, one model and two:

1. Each species' outcomes are shrunk towards those of the species with about as many photos, as
   far as the photos show these to be alike. Species of one photo, all right or all wrong thereby
   have a variance.
2. The shrunk chances are tilted up (or down) exponentially, each species in proportion to
   weight / photos, the path along which the mean moves with the least change of the likelihood.
   An end of the interval is where the observed mean would be 1.96 standard errors away, by the
   standard error of the tilted chances; farther, where their skewness makes that tail longer.

For one species that is Wilson's interval (1927), for the pairs of one species about Tango's
(1998), each lengthened by the skewness correction of Gart and Nam (1988) on the side where that
lengthens. For strata see Yan and Su (2010, "Stratified Wilson and Newcombe confidence
intervals") and Laud (2017, "Equal-tailed confidence intervals for comparison of rates"); for
strata of one photo the collapsed strata of Cochran (1977, section 5A.12). The ends cannot leave
what the mean can be.

`tests/benchmarks/interval_table.py` measures how often the intervals hold the truth.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""

ALIKE = 0.5
"""Standard deviation, in log photos, of the weights with which species count as alike."""

PRIOR_SQUARES = 2.0
"""How firmly species with equally many photos are taken to be alike, in squared outcomes."""

HALF_RIGHT, HALF_WON = (0.5, 0.5), (0.0, 1.0)
"""Mean and mean square of the invented photo: half right and half wrong, half won and half lost."""

N_HALVINGS = 28


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def points(self) -> str:
        """A difference in percentage points: +3.1 points, 95 % interval +1.0 to +5.2."""
        return (
            f"{100 * self.value:+.1f} points, 95 % interval {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f}"
        )


def accuracy_interval(
    hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None = None,
    *,
    over: Literal["classes", "images"] = "classes",
) -> Interval | None:
    """An accuracy with its 95 % interval: of the `members` (None: all), as the mean over the
    classes of their accuracies or over their images. None where no member class has an image."""
    return _mean_interval(hits.astype(np.float64), labels, members, over, HALF_RIGHT)


def gain_interval(
    hits: Bool[np.ndarray, "images"],
    new_hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None = None,
    *,
    over: Literal["classes", "images"] = "classes",
) -> Interval | None:
    """The gain in accuracy of `new_hits` over `hits` on the same images; arguments as above."""
    return _mean_interval(new_hits.astype(np.float64) - hits, labels, members, over, HALF_WON)


def _mean_interval(
    values: Float64[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None,
    over: Literal["classes", "images"],
    made_up: tuple[float, float],
) -> Interval | None:
    n = np.bincount(labels, minlength=0 if members is None else len(members))
    totals = np.bincount(labels, weights=values, minlength=len(n))
    squares = np.bincount(labels, weights=values**2, minlength=len(n))
    present = np.flatnonzero(n if members is None else members * n)
    if not len(present):
        return None
    # Species with the same outcomes are one row: at 3 photos a species there are 4 rows of hits.
    rows = np.stack((n[present], totals[present], squares[present]))
    rows = rows[:, np.lexsort(rows)]
    first = np.append(True, (rows[:, 1:] != rows[:, :-1]).any(axis=0))
    times = np.diff(np.append(np.flatnonzero(first), len(present)))
    n, totals, squares = rows[:, first]
    shares = np.ones(len(n)) if over == "classes" else n
    whole = times @ shares
    value = float(times * shares @ (totals / n) / whole)
    low, high = score_bounds(n, totals[None], squares[None], shares / whole, times, made_up=made_up)
    # Rounding must not put the estimate outside, nor an end beyond what is possible.
    return Interval(value, max(min(float(low[0]), value), -1), min(max(float(high[0]), value), 1))


def score_bounds(
    n: Float64[np.ndarray, "species"],
    totals: Float64[np.ndarray, "experiments species"],
    squares: Float64[np.ndarray, "experiments species"],
    weights: Float64[np.ndarray, "species"],
    times: Int64[np.ndarray, "species"] | None = None,
    *,
    made_up: tuple[float, float],
) -> tuple[Float64[np.ndarray, "experiments"], Float64[np.ndarray, "experiments"]]:
    """Both ends of the 95 % interval of a weighted mean over species of the mean of their photos.

    Args:
        n: photos of each species, at least one.
        totals, squares: sum of a species' outcomes, which are -1, 0 or 1, and of their squares.
        weights: of the species; times `times`, the species that an entry stands for, they sum to 1.
        made_up: mean and mean square of an invented photo that is spread over all species: where
            all outcomes are alike it keeps another one possible.
    """
    times = np.ones(len(n), np.int64) if times is None else times
    mean, square, shrunk = _shrunk_moments(n, totals, squares, times, made_up)
    plus, zero, minus = (square + mean) / 2, 1 - square, (square - mean) / 2
    slope = weights / n
    second, third = times * weights * slope * shrunk, times * weights * slope**2 * shrunk
    estimate = (totals / n) @ (times * weights)

    def moved(tilt: Float64[np.ndarray, "experiments"]) -> tuple[np.ndarray, np.ndarray]:
        """The tilted mean, and how far the outer tail of estimates of it reaches beyond it."""
        factor = np.exp(np.clip(tilt[:, None] * (slope / slope.max()), -40, 40))
        up, down = plus * factor, minus / factor
        whole = up + zero + down
        mean, square = (up - down) / whole, (up + down) / whole
        variance = np.maximum(((square - mean**2) * second).sum(-1), 1e-40)
        skew = ((mean - 3 * mean * square + 2 * mean**3) * third).sum(-1)
        error = np.sqrt(variance)
        skewed = -side * (Z95**2 - 1) / 6 * skew / variance
        return mean @ (times * weights), Z95 * error + np.maximum(skewed, 0)

    ends = []
    for side in (-1, 1):
        inside, outside = np.full(estimate.shape, -20.0), np.full(estimate.shape, 20.0)
        for _ in range(N_HALVINGS):
            middle = (inside + outside) / 2
            at, reach = moved(side * np.sinh(middle))
            beyond = side * (at - estimate) > reach
            outside, inside = np.where(beyond, middle, outside), np.where(beyond, inside, middle)
        at, _ = moved(side * np.sinh(outside))
        ends.append(side * np.maximum(side * at, side * estimate))
    return ends[0], ends[1]


def _shrunk_moments(
    n: Float64[np.ndarray, "species"],
    totals: Float64[np.ndarray, "experiments species"],
    squares: Float64[np.ndarray, "experiments species"],
    times: Int64[np.ndarray, "species"],
    made_up: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and mean square of each species' outcomes, shrunk towards species with as many photos.

    As the posterior of a Dirichlet process whose base are the outcomes of like species and whose
    concentration is found from the spread between these species (analysis of variance). The third
    array is the expected share of the variance that is the species' own.
    """
    sizes, size_of = np.unique(n, return_inverse=True)
    order = np.argsort(size_of, kind="stable")
    starts = np.searchsorted(size_of[order], np.arange(len(sizes)))
    near = np.exp(-0.5 * (np.log(sizes / sizes[:, None]) / ALIKE) ** 2)

    def of_size(per_species: np.ndarray) -> np.ndarray:
        """Sums over the species with equally many photos."""
        return np.add.reduceat((times * per_species)[..., order], starts, axis=-1)

    n_photos = of_size(n)
    n_near = n_photos @ near
    n_all = n_photos.sum()
    base = []
    for sums, of_made_up in ((totals, made_up[0]), (squares, made_up[1])):
        by_size = of_size(sums)
        overall = (by_size.sum(-1, keepdims=True) + of_made_up) / (n_all + 1)
        near_sums = by_size @ near + of_made_up * n_near / n_all + overall
        base.append((near_sums / (n_near * (1 + 1 / n_all) + 1))[..., size_of])
    # Squares about the species' own mean and about that of like species; their degrees of freedom.
    own = np.maximum(squares - totals**2 / n, 0)
    about = own + n * (totals / n - (of_size(totals) @ near / n_near)[..., size_of]) ** 2
    freedom = of_size(n - 1) @ near
    freedom_about = np.maximum(n_photos - n_photos / n_near, 0) @ near
    expected = of_size(about) @ near * freedom / np.maximum(freedom_about, 1e-9)
    alike = (of_size(own) @ near + PRIOR_SQUARES) / (expected + PRIOR_SQUARES)
    alike = np.minimum(alike, 1 - 1e-9)[..., size_of]
    weight = alike / (1 - alike)
    shrunk = (n + weight) / (n + weight + 1)
    mean, square = (
        (sums + weight * of_base) / (n + weight)
        for sums, of_base in zip((totals, squares), base, strict=True)
    )
    return mean, square, shrunk


def shrunk_accuracies(
    hits: Bool[np.ndarray, "images"], labels: Int64[np.ndarray, "images"]
) -> Float64[np.ndarray, "classes"]:
    """Each class's accuracy, shrunk towards those of classes with about as many images; NaN for a
    class without images."""
    n = np.bincount(labels)
    present = n > 0
    counts, totals = n[present].astype(np.float64), np.bincount(labels, weights=hits)[present]
    times = np.ones(len(counts), np.int64)
    mean, _, _ = _shrunk_moments(counts, totals[None], totals[None], times, HALF_RIGHT)
    accuracies: Float64[np.ndarray, classes] = np.full(len(n), np.nan)
    accuracies[present] = mean[0]
    return accuracies


def wilson_bounds(
    share: Float64[np.ndarray, "classes"], n: Float64[np.ndarray, "classes"]
) -> tuple[Float64[np.ndarray, "classes"], Float64[np.ndarray, "classes"]]:
    """Ends of the 95 % interval of a share of n images (Wilson 1927)."""
    z_n = Z95**2 / n
    centre = (share + z_n / 2) / (1 + z_n)
    half = np.sqrt(z_n * (share * (1 - share) + z_n / 4)) / (1 + z_n)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)

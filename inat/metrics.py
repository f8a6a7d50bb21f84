"""How well species are recognised: accuracies by species and by shot band, and their intervals.

NumPy alone. A *hit* is 1 where the true species is among the first k guesses, else 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from inat.bands import FEW_BELOW, MANY_ABOVE

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end; None where nothing tells the spread.
        high: upper end; None where nothing tells the spread.
        left_out: classes with one image, whose own spread nothing tells.
    """

    value: float
    low: float | None
    high: float | None
    left_out: int = 0

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def points(self) -> str:
        """A difference in percentage points: +3.1 points, 95 % interval +1.0 to +5.2."""
        text = f"{100 * self.value:+.1f} points"
        if self.low is None or self.high is None:
            return text
        return f"{text}, 95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}"

    def within(self, least: float, most: float) -> "Interval":
        """The interval cut to what the estimate can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))


def top_k(logits: Float[np.ndarray, "images classes"], k: int) -> Int64[np.ndarray, "images k"]:
    """The k most likely labels of each image, best first; ties go to the lower label."""
    # A copy, since guesses are struck out as they are found; none starts as low as a struck one.
    left = np.maximum(logits, np.finfo(np.float32).min, dtype=np.float32)
    k = min(k, left.shape[1])
    rows = np.arange(len(left))
    guesses = np.empty((len(left), k), np.int64)
    for place in range(k):
        # argmax gives the first of equals; k passes are far cheaper than a stable sort of C.
        guesses[:, place] = left.argmax(axis=1)
        left[rows, guesses[:, place]] = -np.inf
    return guesses


def hits_at(
    guesses: Int64[np.ndarray, "images k"], labels: Int64[np.ndarray, "images"], k: int
) -> Bool[np.ndarray, "images"]:
    """Whether the true label is among the first k guesses."""
    hits: Bool[np.ndarray, images] = (guesses[:, :k] == labels[:, None]).any(axis=1)
    return hits


def class_means(
    values: Float[np.ndarray, "images"] | Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    n_classes: int,
) -> Float64[np.ndarray, "classes"]:
    """Mean of the values of each class's images; NaN for a class without images."""
    counts = np.bincount(labels, minlength=n_classes)
    totals = np.bincount(labels, weights=values.astype(np.float64), minlength=n_classes)
    means: Float64[np.ndarray, classes] = np.full(n_classes, np.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means


def shot_bands(
    train_counts: Int64[np.ndarray, "classes"],
    *,
    few_below: int = FEW_BELOW,
    many_above: int = MANY_ABOVE,
) -> dict[str, Bool[np.ndarray, "classes"]]:
    """Which species are in each band: many > 100, medium 20..100, few < 20 training photos
    (Liu et al. 2019, as their code has it)."""
    return {
        "many": train_counts > many_above,
        "medium": (train_counts >= few_below) & (train_counts <= many_above),
        "few": train_counts < few_below,
    }


def mean_of(class_values: Float64[np.ndarray, "classes"], members: np.ndarray) -> float | None:
    """Mean over the member classes that have images; None where none has."""
    present = class_values[members & np.isfinite(class_values)]
    return float(present.mean()) if len(present) else None


def bootstrap_interval(
    values: Float[np.ndarray, "images"] | Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None = None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """95 % interval of the mean over classes of the mean over a class's images.

    Images are resampled within their class: the classes are this fixed set. Resampling n images
    understates their spread by sqrt((n - 1) / n), so each class's deviation is widened by the
    inverse. A class with one image tells nothing of its own spread: that of an image is taken to
    be as large as in the other classes, on average. For a paired comparison give the differences
    of two models' hits.

    Args:
        values: a number an image: hits, or differences of hits.
        labels: class of each image.
        members: which classes count; None: all.
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        None where no member class has an image; without low and high where none has two.
    """
    return _resampled(values, labels, members, n_resamples, seed, by_images=False)


def _resampled(
    values: Float[np.ndarray, "images"] | Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    *,
    by_images: bool,
) -> Interval | None:
    """The interval, each class weighing the same or as much as it has images."""
    values = values.astype(np.float64)
    n_classes = int(labels.max(initial=-1)) + 1 if members is None else len(members)
    counted = np.ones(n_classes, bool) if members is None else members
    means = class_means(values, labels, n_classes)
    present = np.flatnonzero(counted & np.isfinite(means))
    if not len(present):
        return None
    counts = np.bincount(labels, minlength=n_classes)
    weights = counts[present] if by_images else np.ones(len(present))
    value = float(weights @ means[present] / weights.sum())
    alone = int((counts[present] == 1).sum())
    if alone == len(present):
        return Interval(value, None, None, alone)
    rng = np.random.default_rng(seed)
    total, variances = np.zeros(n_resamples), 0.0
    # Classes with the same values are drawn together: n draws with replacement from each of m
    # such classes are m n draws from one of them. Hits at 3 images a class make 4 such sets,
    # whatever the number of classes.
    for own_values, m in _alike(values, labels, present):
        n = len(own_values)
        distinct, times = np.unique(own_values, return_counts=True)
        if n == 1 or len(distinct) == 1:
            continue
        variances += m * own_values.var(ddof=1)
        drawn = rng.multinomial(m * n, times / n, size=n_resamples)
        deviations = np.sqrt(n / (n - 1)) * (drawn @ distinct / n - m * own_values.mean())
        total += deviations * (n if by_images else 1)
    if alone:
        spread = np.sqrt(alone * variances / (len(present) - alone))
        total += rng.normal(0, spread, n_resamples)
    low, high = value + np.quantile(total / weights.sum(), (0.025, 0.975))
    return Interval(value, float(low), float(high), alone)


def _alike(
    values: Float64[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    present: Int64[np.ndarray, "present"],
) -> Iterator[tuple[Float64[np.ndarray, "n"], int]]:
    """Each sorted set of values that a class has, and the number of classes that have it."""
    by_class = values[np.lexsort((values, labels))]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    for n in np.unique(counts[present]):
        group = present[counts[present] == n]
        rows = by_class[starts[group][:, None] + np.arange(n)]
        yield from zip(*np.unique(rows, axis=0, return_counts=True), strict=True)


def photo_interval(
    values: Float[np.ndarray, "images"] | Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None = None,
) -> Interval | None:
    """95 % interval of the mean over the images of the member classes.

    As `bootstrap_interval`, each class weighing as much as it has images.
    """
    return _resampled(values, labels, members, by_images=True)


def accuracy_interval(
    hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"] | None = None,
    *,
    over: Literal["classes", "images"] = "classes",
) -> Interval | None:
    """An accuracy over the member classes, or over their images, with its 95 % interval.

    By bootstrap within classes, cut to 0..1. Where no class has both right and wrong images, every
    resample is alike and would promise certainty: the interval is then Wilson's for that accuracy
    and that many images.
    """
    mean_interval = bootstrap_interval if over == "classes" else photo_interval
    found = mean_interval(hits, labels, members)
    if found is None or found.low is None:
        return found
    if found.low == found.high:
        n = len(hits) if members is None else int(members[labels].sum())
        low, high = wilson_bounds(np.array([found.value * n]), np.array([n]))
        return replace(found, low=float(low[0]), high=float(high[0]))
    return found.within(0, 1)


def wilson_bounds(
    n_hits: Int64[np.ndarray, "classes"] | Float64[np.ndarray, "classes"],
    n: Int64[np.ndarray, "classes"],
) -> tuple[Float64[np.ndarray, "classes"], Float64[np.ndarray, "classes"]]:
    """Ends of the 95 % interval of each class's accuracy (Wilson 1927); NaN below two images."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share, z_n = n_hits / n, Z95**2 / n
        centre = (share + z_n / 2) / (1 + z_n)
        half = np.sqrt(z_n * (share * (1 - share) + z_n / 4)) / (1 + z_n)
    low: Float64[np.ndarray, classes] = np.where(n > 1, np.maximum(centre - half, 0), np.nan)
    high: Float64[np.ndarray, classes] = np.where(n > 1, np.minimum(centre + half, 1), np.nan)
    return low, high


def class_f1(
    guesses: Int64[np.ndarray, "images"], labels: Int64[np.ndarray, "images"]
) -> Float64[np.ndarray, "classes"]:
    """F1, 2 hits / (guesses + images), of every class up to the highest label; NaN for a class
    that is neither guessed nor has an image."""
    n_classes = int(max(guesses.max(initial=-1), labels.max(initial=-1))) + 1
    hits = np.bincount(labels[guesses == labels], minlength=n_classes)
    sizes = np.bincount(labels, minlength=n_classes) + np.bincount(guesses, minlength=n_classes)
    f1: Float64[np.ndarray, classes] = np.full(n_classes, np.nan)
    np.divide(2 * hits, sizes, out=f1, where=sizes > 0)
    return f1


def macro_f1(
    guesses: Int64[np.ndarray, "images"], labels: Int64[np.ndarray, "images"]
) -> Interval | None:
    """Macro F1, the mean over the classes guessed or with images, with its 95 % interval.

    F1 is no mean over images. The interval is that of the mean of its derivatives: with s the
    guesses and images of a class, a hit adds 2/s to the class's F1 and a guess takes F1/s off.

    Returns:
        None where there is no image; without low and high where no class has two.
    """
    if not len(labels):
        return None
    f1 = class_f1(guesses, labels)
    sizes = np.bincount(labels, minlength=len(f1)) + np.bincount(guesses, minlength=len(f1))
    slopes = 2.0 * (guesses == labels) / sizes[labels] - f1[guesses] / sizes[guesses]
    value = float(np.nanmean(f1))
    spread = photo_interval(slopes * len(labels) / np.count_nonzero(sizes), labels)
    if spread is None or spread.low is None or spread.high is None:
        return Interval(value, None, None)
    shift = value - spread.value
    return Interval(value, spread.low + shift, spread.high + shift).within(0, 1)

"""How well species are recognised: accuracies by species and by shot band, and their intervals.

NumPy alone. A *hit* is 1 where the true species is among the first k guesses, else 0.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from inat.bands import FEW_BELOW, MANY_ABOVE


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; low and high are None where nothing tells the spread."""

    value: float
    low: float | None
    high: float | None

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
        return Interval(self.value, max(self.low, least), min(self.high, most))


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
    inverse. A class with one image tells nothing of its spread; it counts in the value and not
    in the interval's width. For a paired comparison give the differences of two models' hits.

    Args:
        values: a number an image: hits, or differences of hits.
        labels: class of each image.
        members: which classes count; None: all.
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        None where no member class has an image; without low and high where none has two.
    """
    values = values.astype(np.float64)
    n_classes = int(labels.max(initial=-1)) + 1 if members is None else len(members)
    counted = np.ones(n_classes, bool) if members is None else members
    means = class_means(values, labels, n_classes)
    present = np.flatnonzero(counted & np.isfinite(means))
    if not len(present):
        return None
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=n_classes)
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)
    total = np.zeros(n_resamples)
    for n in np.unique(counts[present]):
        if n == 1:
            continue
        group = present[counts[present] == n]
        rows = values[order[starts[group][:, None] + np.arange(n)]]  # [classes, n]
        widening = np.sqrt(n / (n - 1))
        # As many resamples at a time as make some 2 million draws.
        for begin in range(0, n_resamples, step := max(1, 2_000_000 // rows.size)):
            n_now = min(step, n_resamples - begin)
            drawn = rng.integers(n, size=(n_now, *rows.shape))
            resampled = rows[np.arange(len(rows))[:, None], drawn].mean(axis=2)
            deviations = (resampled - rows.mean(axis=1)).sum(axis=1)
            total[begin : begin + n_now] += widening * deviations
    value = float(means[present].mean())
    if counts[present].max() < 2:
        return Interval(value, None, None)
    low, high = value + np.quantile(total / len(present), (0.025, 0.975))
    return Interval(value, float(low), float(high))


def photo_interval(
    values: Float[np.ndarray, "images"] | Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
) -> Interval | None:
    """95 % interval of the mean over the images, resampled within classes as in
    `bootstrap_interval`, each class weighing as much as it has images."""
    counts = np.bincount(labels)
    weight = np.count_nonzero(counts) * counts / max(1, len(labels))
    return bootstrap_interval(values * weight[labels], labels)


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

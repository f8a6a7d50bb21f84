"""How well species are recognised: accuracies by species and by shot band.

NumPy alone. A *hit* is 1 where the true species is among the first k guesses, else 0.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from inat.core.bands import FEW_BELOW, MANY_ABOVE
from inat.core.intervals import Interval, accuracy_interval, shrunk_accuracies, wilson_bounds


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
    return (guesses[:, :k] == labels[:, None]).any(axis=1)


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
    guesses: Int64[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    *,
    n_resamples: int = 400,
    seed: int = 0,
) -> Interval | None:
    """Macro F1, the mean over the classes guessed or with images, with its 95 % interval; None
    without images.

    The interval is that of the macro F1 to expect of the same number of images per class: F1 of few
    images differs from that of many. F1 is not a mean over images, so its variance is found by
    parametric bootstrap: every image is guessed right with its class's shrunk accuracy, or else is
    given the guess of some wrong image. The ends are Wilson's for the number of images with that
    variance.
    """
    if not len(labels):
        return None
    value = float(np.nanmean(class_f1(guesses, labels)))
    hits = guesses == labels
    chances = shrunk_accuracies(hits, labels)[labels]
    mistakes = labels if hits.all() else guesses[~hits]
    n_classes = max(int(max(guesses.max(), labels.max())) + 1, 2)
    rng = np.random.default_rng(seed)
    again = []
    for _ in range(n_resamples):
        wrong = mistakes[rng.integers(len(mistakes), size=len(labels))]
        wrong = np.where(wrong == labels, (labels + 1) % n_classes, wrong)
        drawn = np.where(rng.random(len(labels)) < chances, labels, wrong)
        again.append(np.nanmean(class_f1(drawn, labels)))
    near_value = (value * len(labels) + 0.5) / (len(labels) + 1)
    n_equal = near_value * (1 - near_value) / np.var(again)
    low, high = wilson_bounds(np.array([value]), np.array([n_equal]))
    return Interval(value, min(float(low[0]), value), max(float(high[0]), value))


@dataclass(frozen=True)
class Validation:
    """Accuracies on the held-out part, as shares; None where no photo is in the band."""

    top1: float  # of the photos
    top3_error: float  # share of the photos whose species is not among the first three guesses
    mean_class_accuracy: float  # mean over species of their top-1; what best is chosen by
    bands: dict[str, float | None]  # mean over the species of each shot band
    # Both ends of the 95 % interval of mean_class_accuracy; None without photos
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return self.since(None)

    def since(self, before: "Validation | None") -> str:
        """The accuracies in a line, and how the bands have moved since an earlier validation."""

        def moved(value: float | None, band: str) -> str:
            earlier = None if before is None else before.bands[band]
            return "" if value is None or earlier is None else f" ({value - earlier:+.3f})"

        bands = "  ".join(
            f"{band} {'–' if value is None else f'{value:.3f}'}" + moved(value, band)
            for band, value in self.bands.items()
        )
        spread = "" if self.interval is None else " ({:.3f}–{:.3f})".format(*self.interval)
        return (
            f"held out: top-1 {self.top1:.3f}  top-3 error {self.top3_error:.3f}  "
            f"mean class {self.mean_class_accuracy:.3f}{spread}  {bands}"
        )


def score_guesses(
    guessed: Int64[np.ndarray, "photos k"],
    true: Int64[np.ndarray, "photos"],
    train_counts: np.ndarray,
    band_edges: tuple[int, int],
) -> Validation:
    """The accuracies of a few guesses a photo, best first."""
    top1 = hits_at(guessed, true, 1)
    by_class = class_means(top1, true, len(train_counts))
    interval = accuracy_interval(top1, true)
    bands = shot_bands(train_counts, few_below=band_edges[0], many_above=band_edges[1])
    return Validation(
        top1=float(top1.mean()),
        top3_error=1 - float(hits_at(guessed, true, 3).mean()),
        mean_class_accuracy=0.0 if interval is None else interval.value,
        bands={band: mean_of(by_class, members) for band, members in bands.items()},
        interval=None if interval is None else (interval.low, interval.high),
    )

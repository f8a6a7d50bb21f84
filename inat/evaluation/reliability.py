"""Whether the probabilities can be believed, and what a confidence threshold would keep."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from inat.evaluation.outcomes import Outcomes

N_BINS = 15
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class ReliabilityBin:
    """The photos whose confidence lies above `above` and up to `up_to`."""

    above: float  # the first bin holds 0 too
    up_to: float
    n: int  # photos
    confidence: float | None  # mean; None without photos
    accuracy: float | None  # share of them that is right; None without photos


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy; `ece` is |accuracy - confidence| of the bins, weighted by their
    photos (Guo et al. 2017, arXiv 1706.04599, eq. 3, with 15 bins of equal width)."""

    ece: float
    confidence: float  # mean
    accuracy: float  # share of the photos that is right
    bins: list[ReliabilityBin]


@dataclass(frozen=True)
class Kept:
    """What is left when guesses below a confidence are left out."""

    threshold: float  # least confidence that is kept
    coverage: float  # share of the photos that is kept
    accuracy: float | None  # share of the kept photos that is right


def reliability(outcomes: Outcomes, photos: Bool[np.ndarray, "images"]) -> Reliability | None:
    """The reliability of these photos' first guesses; None without photos."""
    confidence, hits = outcomes.confidence[photos].astype(np.float64), outcomes.hits[photos]
    if not len(hits):
        return None
    edges = np.linspace(0, 1, N_BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, N_BINS - 1)
    bins = [
        ReliabilityBin(
            above=float(edges[i]),
            up_to=float(edges[i + 1]),
            n=int((place == i).sum()),
            confidence=_mean(confidence[place == i]),
            accuracy=_mean(hits[place == i]),
        )
        for i in range(N_BINS)
    ]
    gaps = np.bincount(place, weights=hits - confidence, minlength=N_BINS)
    return Reliability(
        ece=float(np.abs(gaps).sum() / len(hits)),
        confidence=float(confidence.mean()),
        accuracy=float(hits.mean()),
        bins=bins,
    )


def kept_at_thresholds(outcomes: Outcomes, photos: Bool[np.ndarray, "images"]) -> list[Kept]:
    """Coverage and accuracy of these photos at confidences from 0.5 to 0.99, the curve of selective
    classification (Geifman and El-Yaniv 2017, arXiv 1705.08500); none without photos."""
    confidence, hits = outcomes.confidence[photos], outcomes.hits[photos]
    if not len(hits):
        return []
    kept = {threshold: hits[confidence >= threshold] for threshold in THRESHOLDS}
    return [Kept(at, len(right) / len(hits), _mean(right)) for at, right in kept.items()]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None

"""Whether the probabilities can be believed, and what a confidence threshold would keep."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from inat.evaluation.outcomes import Outcomes

N_BINS = 15
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class ReliabilityBin:
    """The photos whose confidence lies above `above` and up to `up_to`.

    Attributes:
        above: lower edge; the first bin holds 0 too.
        up_to: upper edge.
        n: photos.
        confidence: their mean confidence; None without photos.
        accuracy: share of them that is right; None without photos.
    """

    above: float
    up_to: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy.

    Attributes:
        ece: expected calibration error: |accuracy - confidence| of the bins, weighted by their
            photos (Guo et al. 2017, arXiv 1706.04599, eq. 3, with 15 bins).
        confidence: mean confidence.
        accuracy: share of the photos that is right.
        bins: 15 of equal width.
    """

    ece: float
    confidence: float
    accuracy: float
    bins: list[ReliabilityBin]


@dataclass(frozen=True)
class Kept:
    """What is left when guesses below a confidence are left out.

    Attributes:
        threshold: least confidence that is kept.
        coverage: share of the photos that is kept.
        accuracy: share of the kept photos that is right; None where none is kept.
    """

    threshold: float
    coverage: float
    accuracy: float | None


def reliability(outcomes: Outcomes, photos: Bool[np.ndarray, "images"]) -> Reliability | None:
    """The reliability of these photos' first guesses; None without photos."""
    confidence, hits = outcomes.confidence[photos].astype(np.float64), outcomes.hits[photos]
    if not len(hits):
        return None
    edges = np.linspace(0, 1, N_BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, N_BINS - 1)
    bins = [
        _bin(edges[i], edges[i + 1], confidence[place == i], hits[place == i])
        for i in range(N_BINS)
    ]
    gaps = np.bincount(place, weights=hits - confidence, minlength=N_BINS)
    return Reliability(
        ece=float(np.abs(gaps).sum() / len(hits)),
        confidence=float(confidence.mean()),
        accuracy=float(hits.mean()),
        bins=bins,
    )


def _bin(above: float, up_to: float, confidence: np.ndarray, hits: np.ndarray) -> ReliabilityBin:
    return ReliabilityBin(
        above=float(above),
        up_to=float(up_to),
        n=len(hits),
        confidence=float(confidence.mean()) if len(hits) else None,
        accuracy=float(hits.mean()) if len(hits) else None,
    )


def kept_at_thresholds(outcomes: Outcomes, photos: Bool[np.ndarray, "images"]) -> list[Kept]:
    """Coverage and accuracy of these photos at confidences from 0.5 to 0.99; none without photos.

    The curve of selective classification (Geifman and El-Yaniv 2017, arXiv 1705.08500).
    """
    confidence, hits = outcomes.confidence[photos], outcomes.hits[photos]
    if not len(hits):
        return []
    return [_kept(threshold, hits[confidence >= threshold], len(hits)) for threshold in THRESHOLDS]


def _kept(threshold: float, kept: Bool[np.ndarray, "kept"], n: int) -> Kept:
    return Kept(threshold, len(kept) / n, float(kept.mean()) if len(kept) else None)

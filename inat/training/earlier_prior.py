"""Whether logits have left the class prior of the training that they started from.

A head that is trained on with draws of another prior (a second stage, learnable weight scaling)
takes that prior on step by step. Until then its logits carry N (E / N)^a, of the earlier prior E
and the new one N, with a share a that falls from 1 to 0. Held-out photos tell a: it is where
their likelihood, each photo weighted as if drawn by N, is largest when a log(E / N) is taken off.
"""

import numpy as np
from jaxtyping import Float, Int64

from inat.core.priors import Prior, log_softmax

LARGEST_SHARE = 0.1
"""Measured share of the earlier prior up to which the new one is stated."""

LARGEST_BOUND = 0.5
"""The same for the measured share with two standard errors: few photos tell too little."""


class EarlierPriorShare:
    """Measures the share of the earlier prior in held-out photos' logits.

    Two numbers are kept per photo. Species without photos, whose prior is 0, do not count.
    """

    def __init__(self, earlier: Prior, new: Prior) -> None:
        self._new = new
        self._counts = (earlier > 0) & (new > 0)
        self._direction = np.zeros(len(new))
        np.log(earlier, out=self._direction, where=self._counts)
        self._direction[self._counts] -= np.log(new[self._counts])
        self.slopes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def add(
        self, logits: Float[np.ndarray, "photos classes"], labels: Int64[np.ndarray, "photos"]
    ) -> None:
        """Adds photos: slope and curvature of their log-likelihood at a = 0."""
        probabilities = np.exp(log_softmax(logits)) * self._counts
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        mean = probabilities @ self._direction
        variance = probabilities @ self._direction**2 - mean**2
        self.slopes.append(np.stack([mean - self._direction[labels], variance], axis=1))
        self.labels.append(labels)

    def measure(self) -> tuple[float, float]:
        """The share a (one Newton step from 0) and its standard error; (nan, inf) where the
        photos tell nothing, because every species is certain."""
        slopes, labels = np.concatenate(self.slopes), np.concatenate(self.labels)
        n_of_label = np.bincount(labels, minlength=len(self._new))
        weights = (self._new * self._counts)[labels] / n_of_label[labels]
        curvature = float(weights @ slopes[:, 1])
        if curvature <= 0:
            return np.nan, np.inf
        error = float(weights**2 @ slopes[:, 0] ** 2) ** 0.5
        return float(weights @ slopes[:, 0]) / curvature, error / curvature

    def is_gone(self) -> bool:
        share, error = self.measure()
        return abs(share) <= LARGEST_SHARE and abs(share) + 2 * error <= LARGEST_BOUND

    def facts(self) -> dict[str, float]:
        share, error = self.measure()
        return {"earlier_prior_share": share, "earlier_prior_share_error": error}

    def __str__(self) -> str:
        share, error = self.measure()
        n_photos = sum(map(len, self.labels))
        return f"{share:.2f} ±{2 * error:.2f} on {n_photos} held-out photos"

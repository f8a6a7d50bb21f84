"""Draws that turn the long tail around."""

from __future__ import annotations

from inat.core.lazy import np, priors
from inat.samplers.base import shapes
from inat.samplers.independent import IndependentSampler


class ReverseSampler(IndependentSampler):
    """A species by one over its photo count, then one of its photos uniformly: the reversed sampler
    of BBN's re-balancing branch (Zhou et al. 2020, arXiv 1912.02413, eq. 4)."""

    name = "reverse"
    summary = "a species by one over its photo count, then one of its photos uniformly"

    def prior_at(self, progress: float) -> shapes.Prior:
        """w / sum of w, with w = (largest n) / n."""
        present = self.counts > 0
        return priors.normalised(present * self.counts.max() / np.maximum(self.counts, 1))

"""Draws without replacement: passes over the photos, one behind the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Unpack

from inat.core.lazy import np, priors
from inat.core.options import POSITIVE
from inat.samplers.base import Sampler, SamplerConfig, Shared, shapes
from inat.samplers.independent import ClassBalancedSampler


class InstanceSampler(Sampler):
    """Every photo once before any photo twice: the natural, long-tailed distribution."""

    name = "instance"
    summary = "every photo once an epoch"

    def draw(self, n_draws: int, rng: np.random.Generator, progress: float) -> shapes.Draws:
        """Whole permutations of the photos, one behind the other, cut at `n_draws`."""
        n_photos = int(self.counts.sum())
        n_rounds = -(-n_draws // n_photos)
        return np.concatenate([rng.permutation(n_photos) for _ in range(n_rounds)])[:n_draws]

    @property
    def prior(self) -> shapes.Prior:
        """n / N."""
        return priors.count_prior(self.counts)


class ClassBalancedCyclingSampler(ClassBalancedSampler):
    """The same shares without replacement: every species once before any comes twice, and of each
    species every photo once before any comes twice (the class-aware sampler of Shen et al. 2016,
    sec. 3.3, as arrays in place of its loop)."""

    name = "class_balanced_cycling"
    summary = "the same without replacement"

    def draw(self, n_draws: int, rng: np.random.Generator, progress: float) -> shapes.Draws:
        """Rounds through the species, cut at `n_draws`; each species goes through its photos."""
        n_rounds = -(-n_draws // len(self._present))
        rounds = np.tile(self._present, (n_rounds, 1))
        drawn = rng.permuted(rounds, axis=1, out=rounds).ravel()[:n_draws]
        times = np.bincount(drawn, minlength=len(self.counts))
        lists, starts = self._shuffled_lists(times, rng)
        # The k-th draw of a species takes element k of its list.
        order = np.argsort(drawn.astype(np.min_scalar_type(len(times))), kind="stable")
        k = np.empty(n_draws, np.int64)
        k[order] = np.arange(n_draws) - np.repeat(np.cumsum(times) - times, times)
        return lists[starts[drawn] + k]

    def _shuffled_lists(
        self, times: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each species its photos, shuffled, as often as `times` needs them; one list behind
        the other, and where each begins."""
        counts = self.counts
        n_passes = -(-times // np.maximum(counts, 1))
        lengths = n_passes * counts
        starts = np.cumsum(lengths) - lengths
        place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        sizes = np.repeat(counts, lengths)
        passes = np.repeat(np.cumsum(n_passes) - n_passes, lengths) + place // sizes
        photos = self._by_class[np.repeat(self._starts, lengths) + place % sizes]
        return photos[np.argsort(passes + rng.random(len(passes)))], starts


class RepeatFactorSampler(Sampler):
    """Passes in which every photo of a rare species comes several times (Gupta et al. 2019, arXiv
    1908.03195): r = max(1, sqrt(threshold / (n / N))) times, the fraction of r rounded up by
    chance, again in every pass, as detectron2 does.

    `threshold` is the share of the photos below which those of a species are repeated. By default
    an epoch has as many draws as there are photos with their repeats.
    """

    name = "repeat_factor"
    summary = "a photo max(1, sqrt(threshold / share of its species)) times a pass"

    @dataclass(frozen=True, kw_only=True)
    class Options(SamplerConfig):
        threshold: Annotated[float, POSITIVE] = 0.001
        """Share of the photos below which repeat_factor repeats a species' photos."""

    def __init__(
        self, labels: shapes.Labels, threshold: float = 0.001, **shared: Unpack[Shared]
    ) -> None:
        super().__init__(labels, **shared)
        share = np.maximum(self.counts, 1) / len(labels)
        self.factors = np.maximum(1, np.sqrt(threshold / share))
        self._times = self.factors[labels]
        self.epoch_size = shared.get("epoch_size") or round(float(self._times.sum()))

    def draw(self, n_draws: int, rng: np.random.Generator, progress: float) -> shapes.Draws:
        """Shuffled passes one behind the other, cut at `n_draws`."""
        passes: list[np.ndarray] = []
        while sum(map(len, passes)) < n_draws:
            # floor(r + u) is r rounded up as often as its fraction says.
            times = np.floor(self._times + rng.random(len(self._times))).astype(np.int64)
            passes.append(rng.permutation(np.repeat(np.arange(len(times)), times)))
        return np.concatenate(passes)[:n_draws]

    @property
    def prior(self) -> shapes.Prior:
        """n r, normalized."""
        return priors.normalised(self.counts * self.factors)

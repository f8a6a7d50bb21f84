"""Which photos an epoch draws, and the class prior that these draws have.

An epoch's order is an array drawn from (seed, epoch); draw k of the epoch is its element k. So
the order is the same for any number of workers and processes, and a resume jumps into it.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from inat.errors import InputError, unknown_name


@runtime_checkable  # beartype checks it while tests run
class Sampler(Protocol):
    """Draws photos of a labelled list; made from the labels of the photos and the class count."""

    def __init__(self, labels: Int64[np.ndarray, "photos"], n_classes: int) -> None: ...

    def draw(self, n_draws: int, rng: np.random.Generator) -> Int64[np.ndarray, "draws"]:
        """Positions of `n_draws` photos."""
        ...

    @property
    def prior(self) -> Float64[np.ndarray, "classes"]:
        """Probability that a draw is of each species; sums to 1."""
        ...


class InstanceSampler:
    """Every photo once before any photo twice: the natural, long-tailed distribution."""

    def __init__(self, labels: Int64[np.ndarray, "photos"], n_classes: int) -> None:
        self._counts = np.bincount(labels, minlength=n_classes)

    def draw(self, n_draws: int, rng: np.random.Generator) -> Int64[np.ndarray, "draws"]:
        """Whole permutations of the photos, one behind the other, cut at `n_draws`."""
        n_photos = int(self._counts.sum())
        n_rounds = -(-n_draws // n_photos)
        return np.concatenate([rng.permutation(n_photos) for _ in range(n_rounds)])[:n_draws]

    @property
    def prior(self) -> Float64[np.ndarray, "classes"]:
        """n_j / N."""
        prior: Float64[np.ndarray, classes] = self._counts / self._counts.sum()
        return prior


class ClassBalancedSampler:
    """A species uniformly, then one of its photos uniformly (Kang et al. 2020, sec. 3, q = 0)."""

    def __init__(self, labels: Int64[np.ndarray, "photos"], n_classes: int) -> None:
        self._by_class = np.argsort(labels, kind="stable")
        self._counts = np.bincount(labels, minlength=n_classes)
        self._starts = np.cumsum(self._counts) - self._counts
        self._present = np.flatnonzero(self._counts)

    def draw(self, n_draws: int, rng: np.random.Generator) -> Int64[np.ndarray, "draws"]:
        """Independent draws, with replacement."""
        drawn = self._present[rng.integers(len(self._present), size=n_draws)]
        within = (rng.random(n_draws) * self._counts[drawn]).astype(np.int64)
        photos: Int64[np.ndarray, draws] = self._by_class[self._starts[drawn] + within]
        return photos

    @property
    def prior(self) -> Float64[np.ndarray, "classes"]:
        """Uniform over the species that have photos."""
        return (self._counts > 0) / len(self._present)


class ClassBalancedCyclingSampler(ClassBalancedSampler):
    """The same shares without replacement: every species once before any comes twice, and of
    each species every photo once before any comes twice.

    The class-aware sampler of Shen et al. 2016 (sec. 3.3), whose lists are shuffled anew when
    they end, as arrays in place of its loop.
    """

    def draw(self, n_draws: int, rng: np.random.Generator) -> Int64[np.ndarray, "draws"]:
        """Rounds through the species, cut at `n_draws`; each species goes through its photos."""
        n_rounds = -(-n_draws // len(self._present))
        rounds = np.tile(self._present, (n_rounds, 1))
        drawn = rng.permuted(rounds, axis=1, out=rounds).ravel()[:n_draws]
        times = np.bincount(drawn, minlength=len(self._counts))
        lists, starts = self._shuffled_lists(times, rng)
        # The k-th draw of a species takes element k of its list.
        order = np.argsort(drawn.astype(np.min_scalar_type(len(times))), kind="stable")
        k = np.empty(n_draws, np.int64)
        k[order] = np.arange(n_draws) - np.repeat(np.cumsum(times) - times, times)
        photos: Int64[np.ndarray, draws] = lists[starts[drawn] + k]
        return photos

    def _shuffled_lists(
        self, times: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each species its photos, shuffled, as often as `times` needs them; one list behind
        the other, and where each begins."""
        counts = self._counts
        n_passes = -(-times // np.maximum(counts, 1))
        lengths = n_passes * counts
        starts = np.cumsum(lengths) - lengths
        place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        sizes = np.repeat(counts, lengths)
        passes = np.repeat(np.cumsum(n_passes) - n_passes, lengths) + place // sizes
        photos = self._by_class[np.repeat(self._starts, lengths) + place % sizes]
        return photos[np.argsort(passes + rng.random(len(passes)))], starts


SAMPLERS: dict[str, type[Sampler]] = {
    "instance": InstanceSampler,
    "class_balanced": ClassBalancedSampler,
    "class_balanced_cycling": ClassBalancedCyclingSampler,
}


def build_sampler(name: str, labels: Int64[np.ndarray, "photos"], n_classes: int) -> Sampler:
    """The sampler of that name over photos with these labels.

    Raises:
        InputError: an unknown name, or photos without a label.
    """
    if name not in SAMPLERS:
        raise InputError(unknown_name("sampler", name, SAMPLERS))
    if (labels < 0).any():
        raise InputError(
            f"sampler {name}: {(labels < 0).sum()} photos have no label; draw from train or val"
        )
    return SAMPLERS[name](labels, n_classes)


def epoch_order(
    sampler: Sampler, n_draws: int, seed: int, epoch: int
) -> Int64[np.ndarray, "draws"]:
    """Which photo is draw k of an epoch, for every k."""
    return sampler.draw(n_draws, stream(seed, epoch, ORDER))


# What a random stream is for; part of its key, so that no two uses share numbers.
ORDER, CROPS, TRANSFORM_SEEDS = range(3)


def stream(seed: int, epoch: int, purpose: int, block: int = 0) -> np.random.Generator:
    """The generator of one purpose in one epoch (and one block of draws)."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, epoch, purpose, block)))
    )

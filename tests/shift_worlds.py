"""Worlds whose class prior moves by a known amount: every class is a Gaussian of features."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class ShiftWorld:
    """Species with unit Gaussians of features around means drawn from N(0, 1) in each dimension.

    Attributes:
        n_classes: species.
        n_features: dimensions; the more, the farther apart the species.
        most: training photos of the commonest species.
        imbalance: the commonest species' over the rarest's; counts fall geometrically.
        overconfidence: what the likelihood's logarithm is multiplied by; 1: exact posteriors.
        bias_spread: standard deviation of an error in each species' logits.
        learned: the model knows the means from the training photos alone, badly in the tail.
        seed: of everything.
    """

    n_classes: int
    n_features: int
    most: int
    imbalance: float = 50.0
    overconfidence: float = 1.0
    bias_spread: float = 0.0
    learned: bool = False
    seed: int = 0

    @cached_property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @cached_property
    def counts(self) -> np.ndarray:
        """Training photos of each species."""
        falling = self.imbalance ** -np.linspace(0, 1, self.n_classes)
        return np.maximum(np.round(self.most * falling), 1).astype(np.int64)

    @property
    def source(self) -> np.ndarray:
        """Their shares: the prior that the logits carry."""
        return self.counts / self.counts.sum()

    @cached_property
    def means(self) -> np.ndarray:
        return self._rng.normal(size=(self.n_classes, self.n_features))

    @cached_property
    def believed_means(self) -> np.ndarray:
        """The means' posterior expectation after the training photos, where it is learned."""
        if not self.learned:
            return self.means
        error = self._rng.normal(size=self.means.shape) / np.sqrt(self.counts)[:, None]
        return (self.means + error) * (self.counts / (self.counts + 1))[:, None]

    @cached_property
    def bias(self) -> np.ndarray:
        return self.bias_spread * self._rng.normal(size=self.n_classes)

    def photos(self, labels: np.ndarray) -> np.ndarray:
        """Logits of photos with these labels."""
        features = self.means[labels] + self._rng.normal(size=(len(labels), self.n_features))
        return self.logits(features)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """log likelihood times the overconfidence, plus log source prior, plus bias."""
        means = self.believed_means
        likelihood = features @ means.T - (means**2).sum(axis=1) / 2
        return self.overconfidence * likelihood + np.log(self.source) + self.bias

    def held_out(self, n_photos: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of photos drawn as the training photos are."""
        labels = self.draw(self.source, n_photos)
        return self.photos(labels), labels

    def draw(self, prior: np.ndarray, n_photos: int) -> np.ndarray:
        """Labels."""
        return self._rng.choice(self.n_classes, size=n_photos, p=prior)

    def target(self, shift: str) -> np.ndarray:
        """A prior to move to: none, uniform, reversed or dirichlet."""
        if shift == "dirichlet":
            return self._rng.dirichlet(np.ones(self.n_classes))
        uniform = np.full(self.n_classes, 1 / self.n_classes)
        return {"none": self.source, "uniform": uniform, "reversed": self.source[::-1]}[shift]


def accuracy(
    calibrated: np.ndarray, source: np.ndarray, prior: np.ndarray, labels: np.ndarray
) -> float:
    """Share of photos that calibrated logits get right once they are moved to `prior`."""
    moved = calibrated + np.log(np.maximum(prior, 1e-300)) - np.log(source)
    return float((moved.argmax(axis=1) == labels).mean())

"""Batches of features for a head to train on: from the cache, or from photos as it trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from inat.core.priors import Prior
from inat.samplers import build_sampler
from inat.samplers.base import FEATURE_VIEWS, epoch_order, stream
from inat.stage_two.extractor import FeatureExtractor
from inat.stage_two.features import Features

SAMPLER = "class_balanced"
"""What crt and lws draw by: a species uniformly, then one of its photos uniformly."""


@dataclass(eq=False)
class CachedBatches:
    """Gathers class-balanced batches from cached features.

    Draw k of epoch e, which photo and in which of its views, depends on (seed, e, k) alone.
    """

    features: Features
    device: torch.device
    epoch_size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self._labels = self.features.labels[self.features.readable]
        self._sampler = build_sampler(SAMPLER, self._labels, self.features.n_classes)
        assert self._sampler.prior is not None  # balanced draws are the same in every epoch
        self.prior: Prior = self._sampler.prior  # probability that a draw is of each species
        self.bad_photos = self.features.bad_photos  # photos that have no features, with the reason

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A last, shorter batch is left out."""
        features, size = self.features, self.batch_size
        order = epoch_order(self._sampler, self.epoch_size, self.seed, epoch)
        rng = stream(self.seed, epoch, FEATURE_VIEWS)
        views = rng.integers(features.n_views, size=self.epoch_size)
        for begin in range(0, self.epoch_size - size + 1, size):
            draws = slice(begin, begin + size)
            photos = order[draws]
            rows = features.values[views[draws], features.readable[photos]]
            yield (
                torch.from_numpy(rows).to(self.device).float(),
                torch.from_numpy(self._labels[photos]).to(self.device),
            )


class LiveBatches:
    """Reads, augments and passes class-balanced photos through the network as the head trains.

    The published form: the weights are frozen, while batch norm goes on using the statistics of
    each batch and gathering them, and dropout and drop path drop as in the run's training.
    """

    def __init__(
        self, extractor: FeatureExtractor, *, epoch_size: int, batch_size: int, seed: int
    ) -> None:
        self._extractor = extractor
        self._seed = seed
        self._loader = extractor.loader(
            extractor.source.trained,
            training=True,
            sampler=SAMPLER,
            epoch_size=epoch_size,
            batch_size=batch_size,
            seed=seed,
        )

    @property
    def prior(self) -> Prior:
        assert self._loader.prior is not None
        return self._loader.prior

    @property
    def bad_photos(self) -> list[str]:
        return sorted({str(event) for event in self._loader.bad_photos})

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        extractor = self._extractor
        extractor.network.train()
        self._loader.set_epoch(epoch)
        for step, batch in enumerate(self._loader):
            if not len(batch["label"]):  # all its photos were unreadable
                continue
            # What is dropped depends on (seed, epoch, step) alone.
            key = np.random.SeedSequence((self._seed, epoch, step)).generate_state(1, np.uint64)
            torch.manual_seed(int(key[0] >> 1))
            images = extractor.source.model.images(batch)
            yield extractor(images), batch["label"].to(extractor.device)
        source = extractor.source
        source.config.data.refuse_too_many(self.bad_photos, len(source.trained))


FeatureBatches: TypeAlias = CachedBatches | LiveBatches
"""Features and labels of an epoch's draws, on the device."""

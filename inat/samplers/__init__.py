"""Samplers for long tails: which photos an epoch draws. Each takes plain arguments, and torch's
`DataLoader` takes each:

    sampler = inat.samplers.ClassBalancedSampler(labels, seed=0)
    loader = torch.utils.data.DataLoader(photos, batch_size=64, sampler=sampler)

`SAMPLERS` has them by the name that a config gives them; `base.py` says what a new one needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inat.core.errors import InputError
from inat.core.lazy import np
from inat.core.options import joined_options, switch_epoch
from inat.samplers.base import Sampler, Shared, shapes

if TYPE_CHECKING:
    from inat.samplers.base import SamplerConfig as SamplerConfig

    def __getattr__(name: str) -> Any: ...  # a type checker does not see the classes added below
else:
    SamplerConfig = joined_options(__name__, Sampler, first="instance")
    # Not imports, which each new file would have to extend.
    globals().update({sampler.__name__: sampler for sampler in Sampler.parts.values()})

SAMPLERS = Sampler.parts


class DeferredSampler(Sampler):
    """Instance draws at first; those of `then` after the share `begins` of the training. The epochs
    stay as long as the first ones; a sampler's progress counts from the training's start."""

    changes = True

    def __init__(self, first: Sampler, then: Sampler, begins: float) -> None:
        self._first, self._then, self._begins = first, then, begins
        self.counts, self.epoch_size = first.counts, first.epoch_size

    def draw(self, n_draws: int, rng: np.random.Generator, progress: float) -> shapes.Draws:
        sampler = self._then if progress >= self._begins else self._first
        return sampler.draw(n_draws, rng, progress)

    @property
    def prior(self) -> None:
        return


def build_sampler(
    sampler: str | SamplerConfig | Sampler,
    labels: shapes.Labels,
    n_classes: int,
    epochs: int | None = None,
) -> Sampler:
    """The sampler that a config or a name (with default options) asks for, over photos with these
    labels; a sampler of these photos is given back. `epochs` of the training are needed where the
    draws change during it.

    Raises:
        InputError: an unknown name, a sampler of other photos, photos without a label, draws that
            change over an unknown number of epochs.
    """
    if isinstance(sampler, Sampler):
        if len(labels) != (n_photos := sampler.counts.sum()):
            raise InputError(f"sampler: it draws from {n_photos} photos, not from {len(labels)}")
        return sampler
    if isinstance(sampler, str):
        sampler = SamplerConfig(name=sampler)
    if (labels < 0).any():
        raise InputError(
            f"sampler {sampler.name}: {(labels < 0).sum()} photos have no label; draw from train "
            "or val"
        )
    if sampler.changes and epochs is None:
        raise InputError(
            f"sampler {sampler}: its draws change during training, of which the length is not "
            "known; give epochs"
        )
    shared = Shared(n_classes=n_classes, epoch_size=sampler.epoch_size, seed=0)
    built = sampler.method.make(sampler, shared, labels=labels, epochs=epochs)
    if sampler.after is None:
        return built
    assert epochs is not None
    first = SAMPLERS["instance"](labels, **shared)
    return DeferredSampler(first, built, switch_epoch(sampler.after, epochs) / epochs)

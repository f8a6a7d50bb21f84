"""What all samplers share. A sampler is a module of this package with a subclass of `Sampler` that
has a `name`; `sampler.name` of a config, `inat train --help` and `build_loader` then know it.

An epoch's order is an array drawn from (seed, epoch); draw k of the epoch is its element k. So
the order is the same for any number of workers and processes, and a resume jumps into it.

In the docstrings, n is the number of photos of a species, N that of all photos, C that of the
species that have photos; a species without photos is never drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, TypedDict

from inat.core.errors import InputError
from inat.core.lazy import Lazy, np
from inat.core.options import Part, PartOptions, Range, Switch

if TYPE_CHECKING:
    from inat.samplers import shapes as shapes
else:
    shapes = Lazy("inat.samplers.shapes")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(PartOptions):
    """Which photos an epoch draws: the options that samplers share. Each adds its own, as
    `Options`."""

    section: ClassVar[str] = "sampler."

    name: str = "instance"

    epoch_size: Annotated[int | None, Range(1)] = None
    """Photos an epoch draws. Unset: the number of photos trained on; of repeat_factor the number
    with their repeats."""

    after: Annotated[str | None, Switch()] = None
    """When these draws begin: a share of the training (80%, down to a whole epoch) or after this
    many epochs (160); before that the draws are instance. Unset: from the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and self.name == "instance":
            raise InputError(
                f"sampler.after {self.after} waits for draws that sampler.name instance begins "
                "with; name another sampler, or leave sampler.after unset"
            )

    @property
    def changes(self) -> bool:
        """Whether the share of each species changes during training."""
        return self.method.changes or self.after is not None

    def __str__(self) -> str:
        return self.name if self.after is None else f"{self.name} after {self.after}"


class Shared(TypedDict, total=False):
    """Species (unset: up to the last label), draws of an epoch (unset: photos), seed."""

    n_classes: int
    epoch_size: int | None
    seed: int


class Sampler(Part):
    """Draws photos of a labeled list, and iterates over the draws of one epoch, that of
    `set_epoch`, as torch's `DataLoader` asks."""

    parts: ClassVar[dict[str, type[Sampler]]] = {}
    changes: ClassVar[bool] = False  # whether the species' shares change during training
    Options = SamplerConfig
    epochs: int | None = None  # of the training; None where the draws do not depend on it

    def __init__(
        self,
        labels: shapes.Labels,
        *,
        n_classes: int = 0,
        epoch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.counts = np.bincount(labels, minlength=n_classes)
        self.epoch_size = epoch_size or len(labels)
        self._seed = seed
        self._epoch = 0

    def draw(self, n_draws: int, rng: np.random.Generator, progress: float) -> shapes.Draws:
        """Positions of `n_draws` photos, at `progress` = epoch / epochs of the training."""
        raise NotImplementedError

    @property
    def prior(self) -> shapes.Prior | None:
        """Probability of each species in a draw; None where it changes during training."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws, counted from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self, self.epoch_size, self._seed, self._epoch).tolist())

    def __len__(self) -> int:
        return self.epoch_size


SamplerConfig.kind = Sampler  # which its own options come before


def epoch_order(
    sampler: Sampler,
    n_draws: int,
    seed: int,
    epoch: int,
    epochs: int | None = None,
    first_epoch: int = 0,
) -> shapes.Draws:
    """Which photo is draw k of an epoch, for every k.

    `epoch` and `first_epoch`, with which the `epochs` of a training or stage begin, count from 0;
    only a sampler whose draws change asks for them, and an epoch after the last is an InputError.
    """
    done = epoch - first_epoch
    epochs = sampler.epochs if epochs is None else epochs
    if sampler.prior is None and epochs is not None and done >= epochs:
        raise InputError(
            f"epoch {epoch}: the draws change over {epochs} epochs, counted from {first_epoch}, "
            "and are not defined after that; give more epochs"
        )
    progress = done / epochs if epochs else 0.0
    return sampler.draw(n_draws, stream(seed, epoch, ORDER), progress)


# What a random stream is for; part of its key, so that no two uses share numbers.
ORDER, CROPS, TRANSFORM_SEEDS, BATCHES = range(4)
FEATURE_VIEWS = 64


def stream(seed: int, epoch: int, purpose: int, block: int = 0) -> np.random.Generator:
    """The generator of one purpose in one epoch (and one block of draws)."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, epoch, purpose, block)))
    )

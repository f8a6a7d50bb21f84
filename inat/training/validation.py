"""Scores the held-out part of train between two epochs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Int64
from torch import nn

from inat.data.loader import Loader
from inat.earlier_prior import EarlierPriorShare
from inat.intervals import accuracy_interval
from inat.metrics import class_means, hits_at, mean_of, shot_bands, top_k
from inat.models.backbone import Triple
from inat.prediction.forward import iterate_logits
from inat.training.processes import gathered


@dataclass(frozen=True)
class Validation:
    """Accuracies on the held-out part, as shares; None where no photo is in the band.

    Attributes:
        top1: of the photos.
        top3_error: share of the photos whose species is not among the first three guesses.
        mean_class_accuracy: mean over species of their top-1; what best is chosen by.
        bands: mean over the species of each shot band.
        interval: both ends of the 95 % interval of mean_class_accuracy; None without photos.
    """

    top1: float
    top3_error: float
    mean_class_accuracy: float
    bands: dict[str, float | None]
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return self.since(None)

    def since(self, before: "Validation | None") -> str:
        """The accuracies in a line, and how the bands have moved since an earlier validation."""
        bands = "  ".join(
            f"{band} {'–' if value is None else f'{value:.3f}'}" + _moved(value, band, before)
            for band, value in self.bands.items()
        )
        spread = "" if self.interval is None else " ({:.3f}–{:.3f})".format(*self.interval)
        return (
            f"held out: top-1 {self.top1:.3f}  top-3 error {self.top3_error:.3f}  "
            f"mean class {self.mean_class_accuracy:.3f}{spread}  {bands}"
        )


def _moved(value: float | None, band: str, before: Validation | None) -> str:
    earlier = None if before is None else before.bands[band]
    return "" if value is None or earlier is None else f" ({value - earlier:+.3f})"


def validate(
    network: nn.Module,
    loader: Loader,
    *,
    mean: Triple,
    std: Triple,
    precision: str,
    channels_last: bool,
    train_counts: np.ndarray,
    band_edges: tuple[int, int],
    check: Callable[[], None] = lambda: None,
    earlier_prior: EarlierPriorShare | None = None,
) -> Validation:
    """Scores every photo of the processes' loaders once; keeps guesses, not logits, so memory
    stays small. `check` is called after each batch that all processes have; `earlier_prior`
    receives the logits of all processes' photos."""
    none = np.empty((0, min(3, len(train_counts))), np.int64)
    guesses, labels = [none], [np.empty(0, np.int64)]
    found = iterate_logits(
        network,
        loader,
        n_classes=loader.n_classes,
        mean=mean,
        std=std,
        precision=precision,
        channels_last=channels_last,
    )
    for place, (batch, logits) in enumerate(found, start=1):
        guesses.append(top_k(logits.numpy(), 3))
        labels.append(batch["label"].numpy())
        if earlier_prior is not None:
            earlier_prior.add(logits.numpy(), labels[-1])
        if place * loader.global_batch <= loader.n_draws:  # a last one need not reach all
            check()
    if earlier_prior is not None:
        everywhere = gathered((earlier_prior.slopes, earlier_prior.labels))
        earlier_prior.slopes = [*chain(*(slopes for slopes, _ in everywhere))]
        earlier_prior.labels = [*chain(*(labels for _, labels in everywhere))]
    parts = gathered((np.concatenate(guesses), np.concatenate(labels)))
    all_guesses, all_labels = (np.concatenate(of_all) for of_all in zip(*parts, strict=True))
    return score_guesses(all_guesses, all_labels, train_counts, band_edges)


def score_guesses(
    guessed: Int64[np.ndarray, "photos k"],
    true: Int64[np.ndarray, "photos"],
    train_counts: np.ndarray,
    band_edges: tuple[int, int],
) -> Validation:
    """The accuracies of a few guesses a photo, best first."""
    top1 = hits_at(guessed, true, 1)
    by_class = class_means(top1, true, len(train_counts))
    interval = accuracy_interval(top1, true)
    bands = shot_bands(train_counts, few_below=band_edges[0], many_above=band_edges[1])
    return Validation(
        top1=float(top1.mean()),
        top3_error=1 - float(hits_at(guessed, true, 3).mean()),
        mean_class_accuracy=0.0 if interval is None else interval.value,
        bands={band: mean_of(by_class, members) for band, members in bands.items()},
        interval=None if interval is None else (interval.low, interval.high),
    )

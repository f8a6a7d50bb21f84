"""Scores the held-out part of train between two epochs."""

from collections.abc import Callable
from itertools import chain

import numpy as np

from inat.core.metrics import Validation, score_guesses, top_k
from inat.loader.loader import Loader
from inat.runs.trained import TrainedModel, TrainedRun
from inat.training.earlier_prior import EarlierPriorShare
from inat.training.processes import gathered


def validate(
    model: TrainedModel,
    loader: Loader,
    *,
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
    for place, (batch, logits) in enumerate(model.logits(loader, loader.n_classes), start=1):
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


def validate_held_out(
    trained: TrainedRun, earlier_prior: EarlierPriorShare | None = None
) -> Validation:
    assert trained.held_out is not None
    return validate(
        trained.model,
        trained.loader(trained.held_out),
        train_counts=trained.trained.train_counts,
        band_edges=trained.config.data.band_edges,
        earlier_prior=earlier_prior,
    )

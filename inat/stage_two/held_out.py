"""How well a new head recognises the held-out part of train."""

import numpy as np
import torch
from torch import nn

from inat.core.metrics import Validation, score_guesses, top_k
from inat.models.heads import put_classifier
from inat.stage_two.body import Body
from inat.stage_two.features import cached_features
from inat.training.earlier_prior import EarlierPriorShare
from inat.training.validation import validate


def score_cached(
    body: Body, head: nn.Module, earlier_prior: EarlierPriorShare | None = None
) -> Validation:
    """The accuracies from cached features, in the view that predictions use."""
    assert body.held_out is not None
    guesses, labels = [], []
    for features, true in cached_features(body, body.held_out, 1).chunks():
        with torch.inference_mode():
            logits = head(features.to(body.device))
        guesses.append(top_k(logits.cpu().numpy(), 3))
        labels.append(true.numpy())
        if earlier_prior is not None:
            earlier_prior.add(logits.cpu().numpy(), labels[-1])
    return score_guesses(
        np.concatenate(guesses),
        np.concatenate(labels),
        body.trained.train_counts,
        body.config.data.band_edges,
    )


def score_live(
    body: Body, head: nn.Module, earlier_prior: EarlierPriorShare | None = None
) -> Validation:
    """The accuracies from photos, through the network as it is now, which then has the head."""
    assert body.held_out is not None
    put_classifier(body.network, head)
    return validate(
        body.network,
        body.loader(body.held_out, training=False),
        mean=body.model.mean,
        std=body.model.std,
        precision=body.model.precision,
        channels_last=body.model.channels_last,
        train_counts=body.trained.train_counts,
        band_edges=body.config.data.band_edges,
        earlier_prior=earlier_prior,
    )

"""The heads of Kang et al. 2020 (arXiv 1910.09217, sec. 4.1) on frozen features."""

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn
from torch.nn import functional

from inat.core.metrics import class_means, mean_of
from inat.models.heads import NearestMeanHead, ScaledHead
from inat.stage_two.features import Features

TAUS = np.linspace(0, 2, 21)
"""What tau is chosen from where it is not given."""


def scaled_head(linear: nn.Linear) -> ScaledHead:
    """Learnable weight scaling, LWS: the linear head as it is, with a scale of 1 per class on its
    logits, so that it gives the same ones. The scales alone are to be trained.
    """
    head = ScaledHead(linear.in_features, linear.out_features)
    with torch.no_grad():
        head.weight.copy_(linear.weight)
        head.bias.copy_(0 if linear.bias is None else linear.bias)
    head.weight.requires_grad_(False)
    head.bias.requires_grad_(False)
    return head


def nearest_mean_head(features: Features) -> NearestMeanHead:
    """Nearest class mean, NCM: guesses the species with the nearest mean.

    Features are centered by the mean over all photos and scaled to length 1; a class mean is that
    of its photos' scaled features, in all views, and is not scaled again. A species without
    photos is never guessed.
    """
    n_features = features.values.shape[2]
    center = _mean(features)
    sums = torch.zeros(features.n_classes, n_features, dtype=torch.float64)
    counts = torch.zeros(features.n_classes, dtype=torch.float64)
    for values, labels in features.chunks():
        unit = functional.normalize(values - center).double()
        sums.index_add_(0, labels, unit)
        counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
    head = NearestMeanHead(n_features, features.n_classes)
    head.set_means(center, (sums / counts.clamp_min(1)[:, None]).float(), counts > 0)
    return head


def _mean(features: Features) -> torch.Tensor:
    total = torch.zeros(features.values.shape[2], dtype=torch.float64)
    for values, _ in features.chunks():
        total += values.double().sum(dim=0)
    return (total / (features.n_views * len(features.readable))).float()


def tau_normalized(linear: nn.Linear, tau: float) -> nn.Linear:
    """tau-normalization (eq. 4): w_j / ||w_j||^tau without the bias, as the paper drops it.

    tau 0 leaves the weights as they are; tau 1 makes every one of length 1.
    """
    head = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        head.weight.copy_(linear.weight * _factors(linear, tau)[:, None])
        if head.bias is not None:
            head.bias.zero_()
    return head


def score_taus(
    linear: nn.Linear, held_out: Features, grid: Float64[np.ndarray, "taus"] = TAUS
) -> Float64[np.ndarray, "taus"]:
    """Mean class accuracy on held-out photos at each tau, without the classifier's bias."""
    weight = linear.weight.detach()
    factors = [_factors(linear, tau) for tau in grid]
    hits, labels = [], []
    for features, true in held_out.chunks():
        logits = features.to(weight.device) @ weight.T
        guesses = torch.stack([(logits * factor).argmax(dim=1) for factor in factors])
        hits.append((guesses.cpu() == true).numpy())
        labels.append(true.numpy())
    hit, true_labels = np.concatenate(hits, axis=1), np.concatenate(labels)
    everyone = np.ones(held_out.n_classes, bool)
    return np.array(
        [mean_of(class_means(row, true_labels, held_out.n_classes), everyone) for row in hit]
    )


def _factors(linear: nn.Linear, tau: float) -> torch.Tensor:
    norms = linear.weight.detach().norm(dim=1)
    return torch.where(norms > 0, norms, 1) ** -tau  # a weight of length 0 keeps it

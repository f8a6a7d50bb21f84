"""tau-normalisation of a trained classifier (Kang et al. 2020, arXiv 1910.09217, eq. 4)."""

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from inat.core.metrics import class_means, mean_of
from inat.stage_two.features import Features

GRID = np.linspace(0, 2, 21)
"""What tau is chosen from where it is not given."""


def tau_normalised(linear: nn.Linear, tau: float) -> nn.Linear:
    """w_j / ||w_j||^tau without the bias, as the paper drops it.

    tau 0 leaves the weights as they are; tau 1 makes every one of length 1.
    """
    head = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        head.weight.copy_(linear.weight * _factors(linear, tau)[:, None])
        if head.bias is not None:
            head.bias.zero_()
    return head


def score_grid(
    linear: nn.Linear, held_out: Features, grid: Float64[np.ndarray, "taus"] = GRID
) -> Float64[np.ndarray, "taus"]:
    """Mean class accuracy on held-out photos at each tau.

    Args:
        linear: the classifier; its bias is left out.
        held_out: features of the photos.
        grid: the taus.
    """
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

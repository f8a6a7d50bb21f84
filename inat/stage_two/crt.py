"""Classifier re-training, cRT (Kang et al. 2020, arXiv 1910.09217, sec. 4.1)."""

from torch import nn

from inat.models.heads import build_head

EPOCHS = 30
"""Of the published schedule on iNat-2018: learning rate .2 for batches of 512, decay 1e-4."""


def fresh_head(n_features: int, n_classes: int, seed: int) -> nn.Module:
    """A linear head with new weights, all of which are to be trained on class-balanced draws."""
    return build_head("linear", n_features, n_classes, seed=seed)

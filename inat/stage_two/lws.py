"""Learnable weight scaling, LWS (Kang et al. 2020, arXiv 1910.09217, sec. 4.1)."""

import torch
from torch import nn

from inat.models.heads import ScaledHead

EPOCHS = 5
"""Of the published schedule on iNat-2018; all else is cRT's."""


def scaled_head(linear: nn.Linear) -> ScaledHead:
    """The linear head as it is, with a scale of 1 a class on its logits: it gives the same logits.

    The scales alone are to be trained.
    """
    head = ScaledHead(linear.in_features, linear.out_features)
    with torch.no_grad():
        head.weight.copy_(linear.weight)
        head.bias.copy_(0 if linear.bias is None else linear.bias)
    head.weight.requires_grad_(False)
    head.bias.requires_grad_(False)
    return head

"""Balanced binary cross-entropy: one adjusted sigmoid per species."""

from __future__ import annotations

from typing import Any, Unpack

from inat.core.errors import InputError
from inat.core.lazy import functional, np, torch
from inat.losses.base import Loss, Shared, as_soft, at_least_float32, positive, shapes


class BalancedBCELoss(Loss):
    """A sigmoid a species: BCE(z + log pi - log(1 - pi)), summed over the species (Bal-BCE of
    LiVT, Xu et al. 2023, arXiv 2212.02015); evaluate the raw z.

    Args:
        prior: pi, float64 `[classes]`, positive and below 1.
    """

    name = "balanced_bce"
    summary = "a sigmoid a species, adjusted (Xu et al. 2023)"
    shift: torch.Tensor

    def __init__(self, prior: shapes.Prior | None, **shared: Unpack[Shared]) -> None:
        super().__init__(**shared)
        prior = positive(prior, self.name)
        if (prior >= 1).any():
            raise InputError(
                "loss.name balanced_bce: the prior of one species is 1, whose log(1 - prior) is "
                "not finite; train on two or more species, or set loss.name ce"
            )
        self.keep("shift", np.log(prior) - np.log1p(-prior))

    @classmethod
    def adjusts(cls, options: Any) -> bool:
        return True

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        logits = at_least_float32(logits)
        total = functional.binary_cross_entropy_with_logits(
            logits + self.shift, self.smoothed(as_soft(targets, logits)), reduction="sum"
        )
        return total / len(logits)

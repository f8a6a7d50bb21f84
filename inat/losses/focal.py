"""The focal loss: photos that are classified well count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Unpack

from inat.core.lazy import torch
from inat.core.options import Range
from inat.losses.base import ExpectedCost, LossConfig, Shared, shapes


class FocalLoss(ExpectedCost):
    """-(1 - p)^gamma log p of the softmax's p (Lin et al. 2017, arXiv 1708.02002, eq. 4, there of a
    sigmoid); gamma 0 is cross-entropy."""

    name = "focal"
    summary = "easy photos count less (Lin et al. 2017)"
    takes_class_weights = True

    @dataclass(frozen=True, kw_only=True)
    class Options(LossConfig):
        gamma: Annotated[float, Range(0, 10)] = 2.0
        """How much less focal counts what is likely already: the power of 1 - p; 0 is off."""

    def __init__(self, gamma: float = 2.0, **shared: Unpack[Shared]) -> None:
        super().__init__(**shared)
        self.gamma = gamma

    def cost(self, logits: shapes.Logits, labels: shapes.Labels) -> shapes.Cost:
        return self._at(logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1))

    def costs(self, logits: shapes.Logits) -> shapes.Costs:
        return self._at(logits.log_softmax(dim=1))

    def _at(self, log_p: torch.Tensor) -> torch.Tensor:
        # Below gamma 1 the slope at 1 - p = 0 has no bound; a clamp has none there.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -log_p * rest**self.gamma

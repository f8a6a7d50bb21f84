"""The seesaw loss: rare species are spared, wrong guesses are punished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Unpack

from inat.core.errors import InputError
from inat.core.lazy import functional, torch
from inat.core.options import Range
from inat.losses.base import Loss, LossConfig, Shared, at_least_float32, shapes

LEAST_PROBABILITY = 0.01
"""Of the true species in the ratio of probabilities, as in the authors' code."""


class SeesawLoss(Loss):
    """-log(e^z_i / sum_j S_ij e^z_j) for the true species i (Wang et al. 2021, arXiv 2008.10032,
    sec. 3), with S_ij = min(1, (N_j / N_i)^p) max(1, (sigma_j / sigma_i)^q) and S_ii = 1.

    N are the photos seen so far by all processes, those of this batch among them, and at least 1,
    which is the rule for species without photos. They are part of the loss's state. sigma is the
    softmax, through which no gradient goes; sigma_i is at least 0.01.

    Args:
        n_classes: number of species.
        mitigation: the power p.
        compensation: the power q.
    """

    name = "seesaw"
    summary = "rare species are pushed down less by the photos of frequent ones (Wang et al. 2021)"
    takes_soft_targets = False
    seen: torch.Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(LossConfig):
        mitigation: Annotated[float, Range(0, 10)] = 0.8
        """Power p of seesaw's ratio of counts, which spares rare species; 0 is off."""

        compensation: Annotated[float, Range(0, 10)] = 2.0
        """Power q of seesaw's ratio of probabilities, which punishes wrong guesses; 0 is off."""

    def __init__(
        self,
        n_classes: int,
        mitigation: float = 0.8,
        compensation: float = 2.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(**shared)
        self.mitigation = mitigation
        self.compensation = compensation
        self.register_buffer("seen", torch.zeros(n_classes, dtype=torch.int64))

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        if targets.is_floating_point():
            raise InputError(
                "loss seesaw takes labels, not soft targets; turn mixup and CutMix off"
            )
        if self.training:
            self.seen += self._count(targets)
        logits = at_least_float32(logits)
        true = targets[:, None]
        log_n = self.seen.clamp_min(1).to(logits.dtype).log()
        log_p = logits.detach().log_softmax(dim=1)
        log_p_true = log_p.gather(1, true).clamp_min(math.log(LEAST_PROBABILITY))
        spared = self.mitigation * (log_n - log_n[true]).clamp_max(0)
        punished = self.compensation * (log_p - log_p_true).clamp_min(0)
        return functional.cross_entropy(logits + spared + punished, targets)

    def _count(self, labels: shapes.Labels) -> torch.Tensor:
        # Not torch.bincount, which waits for the device.
        counts = torch.zeros_like(self.seen).scatter_add_(0, labels, torch.ones_like(labels))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        return counts

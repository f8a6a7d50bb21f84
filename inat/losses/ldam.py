"""Label-distribution-aware margins: the rarer a species, the larger its margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Unpack

from inat.core.lazy import functional, np, torch
from inat.core.options import Range
from inat.losses.base import ExpectedCost, LossConfig, Shared, shapes


class LDAMLoss(ExpectedCost):
    """Cross-entropy with a margin of n^(-1/4) subtracted from the true species' cosine, scaled so
    that the rarest has `max_margin` (Cao et al. 2019, arXiv 1906.07413, sec. 3.2).

    A species without photos has the rarest's margin.

    Args:
        class_counts: photos of each species, int64 `[classes]`.
        max_margin: margin of the rarest species, as a cosine.
        scale: what the logits are cosines times of.
    """

    name = "ldam"
    summary = "a margin that is larger for rarer species (Cao et al. 2019; needs model.head cosine)"
    takes_class_weights = True
    head = "cosine"
    margins: torch.Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(LossConfig):
        max_margin: Annotated[float, Range(0, 1)] = 0.5
        """Margin of the rarest species, as a cosine; the others have less, by n^(-1/4). Used by
        ldam alone; 0 is off."""

    def __init__(
        self,
        class_counts: shapes.Counts,
        max_margin: float = 0.5,
        scale: float = 30.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(**shared)
        least = class_counts[class_counts > 0].min()
        margins = max_margin * (least / np.maximum(class_counts, least)) ** 0.25
        self.keep("margins", scale * margins)

    # -log(e^(z_c - m_c) / (e^(z_c - m_c) + o)) = log(1 + e^(log o - z_c + m_c)), with o the sum of
    # e^z over the other species.

    def cost(self, logits: shapes.Logits, labels: shapes.Labels) -> shapes.Cost:
        true = labels[:, None]
        of_others = logits.scatter(1, true, -math.inf).logsumexp(dim=1)
        own = logits.gather(1, true).squeeze(1)
        return functional.softplus(of_others - own + self.margins[labels])

    def costs(self, logits: shapes.Logits) -> shapes.Costs:
        return functional.softplus(log_sum_of_others(logits) - logits + self.margins)


def log_sum_of_others(logits: shapes.Logits) -> shapes.Costs:
    """log sum_{j != c} e^z_j for every species c, exact where c has nearly all of the softmax."""
    best = logits.argmax(dim=1, keepdim=True)
    of_best = logits.scatter(1, best, -math.inf).logsumexp(dim=1, keepdim=True)
    # The others have half of the probability at most: nothing cancels in 1 - p.
    p = logits.softmax(dim=1).scatter(1, best, 0.0)
    return (logits.logsumexp(dim=1, keepdim=True) + torch.log1p(-p)).scatter(1, best, of_best)

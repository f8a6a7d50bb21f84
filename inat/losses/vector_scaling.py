"""The vector-scaling loss: logits are shifted and scaled by how frequent their species is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Unpack

from inat.core.lazy import np, torch
from inat.core.options import Range
from inat.losses.base import Shared, Tail, at_least_float32, shapes
from inat.losses.cross_entropy import LogitAdjustedLoss


class VectorScalingLoss(LogitAdjustedLoss):
    """-log(e^(D_y z_y + i_y) / sum_c e^(D_c z_c + i_c)) with i_c = tau log pi_c and
    D_c = (n_c / max n)^gamma (Kini et al. 2021, arXiv 2103.01550, eq. 2 without its weights);
    evaluate the raw z.

    The factors act late in a training, where the photos are separated and shifts no longer move
    the decision boundary. At gamma 0 it is the logit-adjusted loss.

    Args:
        prior: pi, float64 `[classes]`, positive.
        class_counts: n, photos of each species, int64 `[classes]`, positive.
        tau: strength of the shifts.
        scaling: the power gamma.
    """

    name = "vector_scaling"
    summary = (
        "logit_adjusted, with logits that are also scaled by (n / largest n)^scaling (Kini et al. "
        "2021, eq. 2)"
    )
    is_plain_if_uniform = False
    factors: torch.Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(LogitAdjustedLoss.Options):
        scaling: Annotated[float, Range(0, 1)] = 0.05
        """Power of vector_scaling's factors; the authors took 0.05 for CIFAR-100-LT with tau 0.75.
        0 is logit_adjusted."""

    def __init__(
        self,
        prior: shapes.Prior | None,
        class_counts: shapes.Counts,
        tau: float = 1.0,
        scaling: float = 0.05,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(prior, tau, **shared)
        self.keep("factors", (class_counts / np.max(class_counts)) ** scaling)

    @classmethod
    def logits_prior(cls, options: Any, tail: Tail) -> shapes.Prior | None:
        # The softmax of D z + i carries the prior of the draws, so z carries 1 / D of the rest,
        # whose size depends on the photo: no prior says that.
        return None if options.scaling else super().logits_prior(options, tail)

    @classmethod
    def facts(cls, options: Any) -> list[str]:
        return [*super().facts(options), f"scaling {options.scaling:g}"]

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        return super().forward(at_least_float32(logits) * self.factors, targets)

"""Cross-entropy, of plain and of adjusted logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Unpack

from inat.core.errors import InputError
from inat.core.lazy import functional, np, priors, torch
from inat.core.options import Range
from inat.losses.base import Loss, LossConfig, Shared, Tail, at_least_float32, positive, shapes
from inat.losses.class_weights import class_weights


class CrossEntropyLoss(Loss):
    """Mean cross-entropy, with label smoothing (Szegedy et al. 2016) and class weights (Cui et
    al. 2019, arXiv 1901.05555, sec. 4)."""

    name = "ce"
    summary = "cross-entropy"
    takes_class_weights = True

    @classmethod
    def logits_prior(cls, options: Any, tail: Tail) -> shapes.Prior | None:
        assert tail.draws is not None
        weights = class_weights(tail.counts, options.class_weights, options.beta)
        return tail.draws if weights is None else priors.normalised(tail.draws * weights)

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        logits = at_least_float32(logits)
        weights = self.weights_for(logits)
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)
        if weights is None or not targets.is_floating_point():
            return functional.cross_entropy(
                logits, targets, weights, label_smoothing=self.label_smoothing
            )
        total = functional.cross_entropy(
            logits, targets, weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / (targets @ weights).sum()


class LogitAdjustedLoss(CrossEntropyLoss):
    """CE(z + tau log pi) (Menon et al. 2021, arXiv 2007.07314, eq. 10); evaluate the raw z.

    Args:
        prior: pi, float64 `[classes]`, positive.
        tau: strength of the adjustment.
    """

    name = "logit_adjusted"
    summary = "cross-entropy of logits + tau log prior (Menon et al. 2021, eq. 10)"
    takes_class_weights = False
    is_plain_if_uniform: ClassVar[bool] = True  # adjusted by a uniform prior it is cross-entropy
    log_prior: torch.Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(LossConfig):
        tau: Annotated[float, Range(0, 10)] = 1.0
        """Strength of the logit adjustment; 0 is cross-entropy. Used by logit_adjusted alone."""

    def __init__(
        self, prior: shapes.Prior | None, tau: float = 1.0, **shared: Unpack[Shared]
    ) -> None:
        super().__init__(**shared)
        self.keep("log_prior", tau * np.log(positive(prior, self.name)))

    @classmethod
    def adjusts(cls, options: Any) -> bool:
        return options.tau > 0

    @classmethod
    def logits_prior(cls, options: Any, tail: Tail) -> shapes.Prior | None:
        assert tail.draws is not None
        return priors.prior_left(tail.draws, tail.prior, options.tau)

    @classmethod
    def describe(cls, options: Any, tail: Tail, draws: str) -> str:
        text = super().describe(options, tail, draws)
        if cls.is_plain_if_uniform and tail.prior is not None and priors.is_uniform(tail.prior):
            text += f", which is plain ce under {draws} draws"
        return text

    @classmethod
    def facts(cls, options: Any) -> list[str]:
        return [f"tau {options.tau:g}", *super().facts(options)]

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        return super().forward(at_least_float32(logits) + self.log_prior, targets)


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    """-log(n_y e^z_y / sum_j n_j e^z_j) (Ren et al. 2020, arXiv 2007.10740, theorem 1); evaluate
    the raw z.

    It is the logit-adjusted loss at tau 1: n_j e^z_j is e^(z_j + log pi_j) but for a factor that
    the softmax divides out.

    Args:
        class_counts: photos of each species, int64 `[classes]`, or a prior; positive.
    """

    name = "balanced_softmax"
    summary = "the same at tau 1 (Ren et al. 2020)"

    def __init__(self, class_counts: shapes.PerClass | None, **shared: Unpack[Shared]) -> None:
        # The sum of a prior is rounded to 1, so that the prior stays as it is to the last bit.
        counts = positive(class_counts, self.name)
        super().__init__(counts / round(float(counts.sum())), **shared)

    @classmethod
    def build(cls, options: Any, tail: Tail, shared: Shared) -> Loss:
        return cls(tail.prior, **shared)

    @classmethod
    def check(cls, options: Any) -> None:
        super().check(options)
        if options.tau != 1:
            raise InputError(
                f"loss.tau {options.tau:g}: balanced_softmax is logit_adjusted at tau 1; "
                "set loss.name logit_adjusted"
            )

    @classmethod
    def facts(cls, options: Any) -> list[str]:
        return super().facts(options)[1:]

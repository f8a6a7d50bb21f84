"""The losses, by name. Each takes logits `[batch, classes]` and what the photos show: labels
`[batch]`, or soft targets `[batch, classes]` whose rows sum to 1 (mixup, CutMix).

One rule holds for all: a soft target t costs sum_c t_c l_c, the mean cost of labels drawn from it,
and label smoothing by e is the soft target (1 - e) t + e / C. With class weights w the batch's
mean is the weighted one, sum of w l by sum of w, as in torch's `cross_entropy` and in the LDAM
authors' code. Arithmetic is in float32 at least.

Below, n is the number of photos of a species that are trained on, pi a class prior, z a logit.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from inat.config.schema import LossConfig, switch_epoch
from inat.core.errors import InputError, unknown_name
from inat.core.priors import Prior
from inat.losses.class_weights import class_weights

Logits = Float[Tensor, "batch classes"]
Targets = Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]
Costs = Float[Tensor, "batch classes"]
Scalar = Float[Tensor, ""]

LEAST_PROBABILITY = 0.01
"""Of the true species in seesaw's ratio of probabilities, as in the authors' code."""


@dataclass(frozen=True)
class Tail:
    """What a loss knows of the photos.

    Attributes:
        counts: photos of each species that are trained on.
        prior: class prior to take off; None where the draws have no one prior.
        head_scale: what the classifier multiplies its cosines by.
        weights_begin: share of the training after which class weights begin.
    """

    counts: Int64[np.ndarray, "classes"]
    prior: Prior | None
    head_scale: float
    weights_begin: float


class Loss(nn.Module):
    """What all losses share: class weights, from the start or later."""

    weights: Tensor | None

    def __init__(self, config: LossConfig, tail: Tail) -> None:
        super().__init__()
        weights = class_weights(config, tail.counts)
        given = None if weights is None else torch.from_numpy(weights).float()
        self.register_buffer("weights", given, persistent=False)
        self.label_smoothing = config.label_smoothing
        self._weights_begin = tail.weights_begin
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Says how much of the training is over, epoch / epochs; called before every epoch.

        Deferred class weights (DRW, Cao et al. 2019, sec. 3.3) begin by it.
        """
        self.is_weighted = self.weights is not None and progress >= self._weights_begin

    def weights_for(self, logits: Logits) -> Tensor | None:
        """The class weights in force, in the logits' type."""
        if not self.is_weighted or self.weights is None:
            return None
        return self.weights.to(logits.dtype)

    def forward(self, logits: Logits, targets: Targets) -> Scalar:
        """The batch's mean."""
        raise NotImplementedError

    def weight_of(self, targets: Targets) -> Scalar:
        """What the batch's mean divides by: the photos, or the sum of their class weights."""
        if not self.is_weighted or self.weights is None:
            return torch.full((), float(len(targets)), device=targets.device)
        if targets.is_floating_point():
            return (targets @ self.weights).sum()
        return self.weights[targets].sum()


class CrossEntropy(Loss):
    """Mean cross-entropy, with label smoothing (Szegedy et al. 2016) and class weights (Cui et
    al. 2019, arXiv 1901.05555, sec. 4)."""

    def forward(self, logits: Logits, targets: Targets) -> Scalar:
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


class LogitAdjustedCrossEntropy(CrossEntropy):
    """CE(z + tau log pi) (Menon et al. 2021, arXiv 2007.07314, eq. 10); evaluate the raw z.

    At tau = 1 this is Balanced Softmax (Ren et al. 2020, arXiv 2007.10740, theorem 1): its
    n_j e^z_j is e^(z_j + log pi_j) but for a factor that the softmax divides out, so the two
    share all but their name. `prior` must be positive.
    """

    log_prior: Tensor

    def __init__(self, config: LossConfig, tail: Tail) -> None:
        super().__init__(config, tail)
        shift = torch.from_numpy(config.tau * np.log(positive_prior(config, tail))).float()
        self.register_buffer("log_prior", shift, persistent=False)

    def forward(self, logits: Logits, targets: Targets) -> Scalar:
        return super().forward(at_least_float32(logits) + self.log_prior, targets)


class ExpectedCost(Loss):
    """Losses that say what a photo costs whose true species is c, and so what a soft target costs:
    sum_c t_c w_c l_c."""

    def cost(self, logits: Logits, labels: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """What each photo costs."""
        raise NotImplementedError

    def costs(self, logits: Logits) -> Costs:
        """What each photo would cost with each species as the true one; some 5 times the work."""
        raise NotImplementedError

    def forward(self, logits: Logits, targets: Targets) -> Scalar:
        logits = at_least_float32(logits)
        weights = self.weights_for(logits)
        if not self.label_smoothing and not targets.is_floating_point():
            cost = self.cost(logits, targets)
            given = torch.ones_like(cost) if weights is None else weights[targets]
            return (given * cost).sum() / given.sum()
        soft = as_soft(targets, logits)
        smoothed = (1 - self.label_smoothing) * soft + self.label_smoothing / logits.shape[1]
        if weights is None:
            return (smoothed * self.costs(logits)).sum() / len(logits)
        return (smoothed * self.costs(logits) * weights).sum() / (soft @ weights).sum()


class Focal(ExpectedCost):
    """-(1 - p)^gamma log p of the softmax's p (Lin et al. 2017, arXiv 1708.02002, eq. 4, there of
    a sigmoid); gamma 0 is cross-entropy."""

    def __init__(self, config: LossConfig, tail: Tail) -> None:
        super().__init__(config, tail)
        self.gamma = config.gamma

    def cost(self, logits: Logits, labels: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return self._at(logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1))

    def costs(self, logits: Logits) -> Costs:
        return self._at(logits.log_softmax(dim=1))

    def _at(self, log_p: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        # Below gamma 1 the slope at 1 - p = 0 has no bound; a clamp has none there.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -log_p * rest**self.gamma


class Ldam(ExpectedCost):
    """Cross-entropy with a margin of n^(-1/4) subtracted from the true species' cosine, scaled so
    that the rarest has `max_margin` (Cao et al. 2019, arXiv 1906.07413, sec. 3.2).

    A species without photos has the rarest's margin.
    """

    margins: Tensor

    def __init__(self, config: LossConfig, tail: Tail) -> None:
        super().__init__(config, tail)
        least = tail.counts[tail.counts > 0].min()
        margins = config.max_margin * (least / np.maximum(tail.counts, least)) ** 0.25
        # The logits are cosines times head_scale already, so their margins are too.
        scaled = torch.from_numpy(tail.head_scale * margins).float()
        self.register_buffer("margins", scaled, persistent=False)

    # -log(e^(z_c - m_c) / (e^(z_c - m_c) + o)) = log(1 + e^(log o - z_c + m_c)), with o the sum of
    # e^z over the other species.

    def cost(self, logits: Logits, labels: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        true = labels[:, None]
        of_others = logits.scatter(1, true, -math.inf).logsumexp(dim=1)
        own = logits.gather(1, true).squeeze(1)
        return functional.softplus(of_others - own + self.margins[labels])

    def costs(self, logits: Logits) -> Costs:
        return functional.softplus(log_sum_of_others(logits) - logits + self.margins)


class Seesaw(Loss):
    """-log(e^z_i / sum_j S_ij e^z_j) for the true species i (Wang et al. 2021, arXiv 2008.10032,
    sec. 3), with S_ij = min(1, (N_j / N_i)^p) max(1, (sigma_j / sigma_i)^q) and S_ii = 1.

    N are the photos seen so far by all processes, those of this batch among them, and at least 1,
    which is the rule for species without photos. They are part of the loss's state. sigma is the
    softmax, through which no gradient goes; sigma_i is at least 0.01.
    """

    seen: Tensor

    def __init__(self, config: LossConfig, tail: Tail) -> None:
        super().__init__(config, tail)
        self.mitigation = config.mitigation
        self.compensation = config.compensation
        self.register_buffer("seen", torch.zeros(len(tail.counts), dtype=torch.int64))

    def forward(self, logits: Logits, targets: Targets) -> Scalar:
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

    def _count(self, labels: Int64[Tensor, "batch"]) -> Int64[Tensor, "classes"]:
        # Not torch.bincount, which waits for the device.
        counts = torch.zeros_like(self.seen).scatter_add_(0, labels, torch.ones_like(labels))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        return counts


class BalancedBinaryCrossEntropy(Loss):
    """A sigmoid a species: BCE(z + log pi - log(1 - pi)), summed over the species (Bal-BCE of
    LiVT, Xu et al. 2023, arXiv 2212.02015); evaluate the raw z. `prior` must be positive."""

    shift: Tensor

    def __init__(self, config: LossConfig, tail: Tail) -> None:
        super().__init__(config, tail)
        prior = positive_prior(config, tail)
        if (prior >= 1).any():
            raise InputError(
                "loss.name balanced_bce: the prior of one species is 1, whose log(1 - prior) is "
                "not finite; train on two or more species, or set loss.name ce"
            )
        shift = torch.from_numpy(np.log(prior) - np.log1p(-prior)).float()
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, logits: Logits, targets: Targets) -> Scalar:
        logits = at_least_float32(logits)
        soft = as_soft(targets, logits)
        smoothed = (1 - self.label_smoothing) * soft + self.label_smoothing / logits.shape[1]
        total = functional.binary_cross_entropy_with_logits(
            logits + self.shift, smoothed, reduction="sum"
        )
        return total / len(logits)


def at_least_float32(logits: Logits) -> Logits:
    """The logits, widened where they are of half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def as_soft(targets: Targets, logits: Logits) -> Costs:
    """Labels as rows with a single 1; soft targets as they are."""
    if targets.is_floating_point():
        return targets.to(logits.dtype)
    return torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)


def log_sum_of_others(logits: Logits) -> Costs:
    """log sum_{j != c} e^z_j for every species c, exact where c has nearly all of the softmax."""
    best = logits.argmax(dim=1, keepdim=True)
    of_best = logits.scatter(1, best, -math.inf).logsumexp(dim=1, keepdim=True)
    # The others have half of the probability at most: nothing cancels in 1 - p.
    p = logits.softmax(dim=1).scatter(1, best, 0.0)
    return (logits.logsumexp(dim=1, keepdim=True) + torch.log1p(-p)).scatter(1, best, of_best)


def positive_prior(config: LossConfig, tail: Tail) -> Prior:
    """The prior to take off.

    Raises:
        InputError: there is none, or it is 0 for some species.
    """
    if tail.prior is None:
        raise InputError(
            f"loss {config.name}: the draws change during training and have no one prior to take "
            "off; give loss.prior counts"
        )
    if not (tail.prior > 0).all():
        raise InputError(
            f"loss {config.name}: the prior of {(tail.prior <= 0).sum()} species is 0, and its "
            "logarithm has no value; every species needs a training photo"
        )
    return tail.prior


LOSSES: dict[str, type[Loss]] = {
    "ce": CrossEntropy,
    "logit_adjusted": LogitAdjustedCrossEntropy,
    "balanced_softmax": LogitAdjustedCrossEntropy,
    "ldam": Ldam,
    "focal": Focal,
    "seesaw": Seesaw,
    "balanced_bce": BalancedBinaryCrossEntropy,
}


def build_loss(
    config: LossConfig,
    *,
    prior: Prior | None,
    counts: Int64[np.ndarray, "classes"],
    head_scale: float = 1.0,
    epochs: int | None = None,
) -> Loss:
    """The loss that `config` names.

    Args:
        config: name and options.
        prior: class prior to take off, where the loss takes one off; None where the draws have
            no one prior.
        counts: photos of each species that are trained on.
        head_scale: what the classifier multiplies its cosines by; ldam's margins grow with it.
        epochs: of the training; needed for class weights that begin later.

    Raises:
        InputError: an unknown name, a prior of 0 where its logarithm is needed, class weights that
            begin in a training of unknown length.
    """
    if config.name not in LOSSES:
        raise InputError(unknown_name("loss.name", config.name, LOSSES))
    if config.after is not None and epochs is None:
        raise InputError(
            f"loss.after {config.after}: the training's length is not known; give epochs"
        )
    begins = switch_epoch(config.after, epochs) / epochs if epochs else 0.0
    return LOSSES[config.name](config, Tail(counts, prior, head_scale, begins))

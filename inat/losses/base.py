"""What all losses share. A loss is a module of this package with a subclass of `Loss` that has a
`name`; `loss.name` of a config, `inat train --help` and the plan of a training then know it.

A loss takes logits `[batch, classes]` and what the photos show: labels `[batch]`, or soft targets
`[batch, classes]` whose rows sum to 1 (mixup, CutMix). One rule holds for all: a soft target t
costs sum_c t_c l_c, the mean cost of labels drawn from it, and label smoothing by e is the soft
target (1 - e) t + e / C. With class weights w the batch's mean is the weighted one, sum of w l by
sum of w, as in torch's `cross_entropy` and in the LDAM authors' code. Arithmetic is in float32 at
least.

In the docstrings, n is the number of photos of a species that are trained on, pi a class prior, z
a logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypedDict

from inat.core.errors import InputError
from inat.core.lazy import Lazy, torch
from inat.core.options import Part, PartOptions, Range, Switch

if TYPE_CHECKING:
    from torch.nn import Module

    from inat.losses import shapes as shapes
else:
    shapes = Lazy("inat.losses.shapes")

    class Module:
        """In place of `torch.nn.Module` until the first loss is made (`Loss.__new__`)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig(PartOptions):
    """What is minimized: the options that losses share. Each adds its own, as `Options`."""

    section: ClassVar[str] = "loss."

    name: str = "ce"

    prior: str = "draws"
    """Prior that a loss which adjusts the logits takes off: draws (that of the sampler's draws),
    counts (the photo counts), or a CSV category_id,prior."""

    class_weights: Literal["none", "effective_number", "inverse"] = "none"
    """Weight of a photo by its species' count n: effective_number is (1 - beta) / (1 - beta^n)
    (Cui et al. 2019), inverse is 1 / n, none is off. For losses that do not correct for the long
    tail by themselves."""

    beta: Annotated[float, Range(0, 0.999999)] = 0.9999
    """The beta of class_weights effective_number; 0 weighs all species alike."""

    after: Annotated[str | None, Switch()] = None
    """When class_weights begin: a share of the training (80%, down to a whole epoch) or after this
    many epochs (160). Unset: from the start."""

    correct_twice: bool = False
    """Allow draws other than instance together with class weights or an adjustment by photo
    counts, which corrects for the long tail twice."""

    label_smoothing: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability mass spread evenly over all species; 0 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method.check(self)

    @property
    def takes_prior_off(self) -> bool:
        """Whether the loss adjusts the logits by `prior`."""
        return self.method.adjusts(self)


class Shared(TypedDict, total=False):
    """Class weights, float64 `[classes]`; the share of the training after which they count (DRW,
    Cao et al. 2019, sec. 3.3); the probability mass that is spread over all species."""

    class_weights: shapes.Prior | None
    weights_begin: float
    label_smoothing: float


@dataclass(frozen=True)
class Tail:
    """What a loss knows of the photos: training photos of each species; the prior to take off and
    that of the draws, None where they change; what the classifier multiplies its cosines by."""

    counts: shapes.Counts
    prior: shapes.Prior | None
    draws: shapes.Prior | None = None
    head_scale: float = 1.0


class Loss(Part, Module):
    """A loss of logits and targets, known by its `name`."""

    parts: ClassVar[dict[str, type[Loss]]] = {}
    takes_soft_targets: ClassVar[bool] = True  # of mixup, CutMix and label smoothing
    takes_class_weights: ClassVar[bool] = False  # no: it corrects for the tail itself
    head: ClassVar[str | None] = None  # the `model.head` that it needs; None: any
    Options = LossConfig

    weights: torch.Tensor | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Names, options and priors are asked for where torch, which takes a second to import, has
        # no business. The first loss that is made makes all of them torch modules.
        if not issubclass(Loss, torch.nn.Module):
            Loss.__bases__ = (Part, torch.nn.Module)
        return super().__new__(cls)

    def __init__(
        self,
        class_weights: shapes.Prior | None = None,
        weights_begin: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep("weights", class_weights)
        self.label_smoothing = label_smoothing
        self._weights_begin = weights_begin
        self.set_progress(0.0)

    def keep(self, name: str, values: shapes.Prior | None) -> None:
        """Keeps constants as a float32 buffer, outside the loss's state."""
        given = None if values is None else torch.from_numpy(values).float()
        self.register_buffer(name, given, persistent=False)

    # What is asked before a loss is built. Options are those of a config.

    @classmethod
    def build(cls, options: Any, tail: Tail, shared: Shared) -> Loss:
        """The loss that `options` describe; its constructor's arguments have the names used here
        or those of options."""
        counts, prior, scale = tail.counts, tail.prior, tail.head_scale
        known = {"class_counts": counts, "n_classes": len(counts), "prior": prior, "scale": scale}
        return cls.make(options, shared, **known)

    @classmethod
    def check(cls, options: Any) -> None:
        """Raises an InputError where the options contradict each other."""
        if options.class_weights != "none" and not cls.takes_class_weights:
            *names, last = [name for name, loss in cls.parts.items() if loss.takes_class_weights]
            raise InputError(
                f"loss.class_weights {options.class_weights} go with loss.name {', '.join(names)} "
                f"and {last}; {cls.name} corrects for the long tail by itself: set "
                "loss.class_weights none"
            )
        if options.after is not None and options.class_weights == "none":
            raise InputError(
                f"loss.after {options.after} waits for loss.class_weights, which are none; "
                "set loss.class_weights, or leave loss.after unset"
            )
        if options.label_smoothing and not cls.takes_soft_targets:
            raise InputError(
                f"loss.name {cls.name} weighs every species against the one true species of a "
                "photo, and label smoothing names them all; set loss.label_smoothing 0"
            )

    @classmethod
    def adjusts(cls, options: Any) -> bool:
        """Whether the loss adjusts the logits by `prior`."""
        return False

    @classmethod
    def logits_prior(cls, options: Any, tail: Tail) -> shapes.Prior | None:
        """What is left of the draws' prior in the logits of a trained model; None where no formula
        says it. Asked where neither draws nor class weights change during training."""
        return None

    @classmethod
    def describe(cls, options: Any, tail: Tail, draws: str) -> str:
        """The loss in the plan of a training, under the sampler that `draws` names."""
        facts = cls.facts(options)
        text = f"{cls.name} ({', '.join(facts)})" if facts else cls.name
        if options.class_weights != "none":
            begin = "" if options.after is None else f" after {options.after}"
            text += f", class weights {options.class_weights}{begin}"
        return text

    @classmethod
    def facts(cls, options: Any) -> list[str]:
        """What the plan says in brackets behind the name."""
        the = "the " if options.prior in ("draws", "counts") else ""
        return [f"prior of {the}{options.prior}"] if cls.adjusts(options) else []

    # What is asked during training.

    def set_progress(self, progress: float) -> None:
        """Takes epoch / epochs before every epoch, by which class weights may begin."""
        self.is_weighted = self.weights is not None and progress >= self._weights_begin

    def weights_for(self, logits: shapes.Logits) -> torch.Tensor | None:
        """The class weights in force, in the logits' type."""
        if not self.is_weighted or self.weights is None:
            return None
        return self.weights.to(logits.dtype)

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        """The batch's mean."""
        raise NotImplementedError

    def weight_of(self, targets: shapes.Targets) -> shapes.Scalar:
        """What the batch's mean divides by: the photos, or the sum of their class weights."""
        if not self.is_weighted or self.weights is None:
            return torch.full((), float(len(targets)), device=targets.device)
        if targets.is_floating_point():
            return (targets @ self.weights).sum()
        return self.weights[targets].sum()

    def smoothed(self, soft: shapes.Costs) -> shapes.Costs:
        """Soft targets after label smoothing."""
        return (1 - self.label_smoothing) * soft + self.label_smoothing / soft.shape[1]


class ExpectedCost(Loss):
    """Losses that say what a photo costs whose true species is c, and so what a soft target costs:
    sum_c t_c w_c l_c."""

    def cost(self, logits: shapes.Logits, labels: shapes.Labels) -> shapes.Cost:
        raise NotImplementedError

    def costs(self, logits: shapes.Logits) -> shapes.Costs:
        """What each photo would cost with each species as the true one; some 5 times the work."""
        raise NotImplementedError

    def forward(self, logits: shapes.Logits, targets: shapes.Targets) -> shapes.Scalar:
        logits = at_least_float32(logits)
        weights = self.weights_for(logits)
        if not self.label_smoothing and not targets.is_floating_point():
            cost = self.cost(logits, targets)
            given = torch.ones_like(cost) if weights is None else weights[targets]
            return (given * cost).sum() / given.sum()
        soft = as_soft(targets, logits)
        costs = self.smoothed(soft) * self.costs(logits)
        if weights is None:
            return costs.sum() / len(logits)
        return (costs * weights).sum() / (soft @ weights).sum()


def at_least_float32(logits: shapes.Logits) -> shapes.Logits:
    """The logits, widened where they are of half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def as_soft(targets: shapes.Targets, logits: shapes.Logits) -> shapes.Costs:
    """Labels as rows with a single 1; soft targets as they are."""
    if targets.is_floating_point():
        return targets.to(logits.dtype)
    return torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)


def positive(prior: shapes.PerClass | None, name: str) -> shapes.PerClass:
    """The prior or counts that the loss `name` takes off; an InputError for none or a 0."""
    if prior is None:
        raise InputError(
            f"loss {name}: the draws change during training and have no one prior to take "
            "off; give loss.prior counts"
        )
    if not (prior > 0).all():
        raise InputError(
            f"loss {name}: the prior of {(prior <= 0).sum()} species is 0, and its "
            "logarithm has no value; every species needs a training photo"
        )
    return prior


LossConfig.kind = Loss  # which its own options come before

"""The optimiser and the learning-rate schedule, from timm's parts."""

from bisect import bisect_right
from typing import Any

from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from inat.config.schema import OptimConfig
from inat.core.errors import InputError
from inat.models.backbone import Backbone


def build_optimizer(config: OptimConfig, backbone: Backbone, learning_rate: float) -> Optimizer:
    """AdamW or SGD over groups of parameters that share a learning rate and a weight decay.

    Biases and other vectors (norms, scales) are decayed with `decay_norms` alone. With
    `layer_decay` d a layer that lies k below the classifier has d^k of the learning rate (Clark
    et al. 2020, arXiv 2003.10555), the layers being timm's.
    """
    # torch refuses Nesterov's step without a momentum.
    nesterov = config.nesterov and config.momentum > 0
    options: dict[str, Any] = {"momentum": config.momentum, "nesterov": nesterov}
    if config.name == "adamw":
        options = {"betas": (config.momentum, 0.999)}
    optimizer: Optimizer = create_optimizer_v2(
        _groups(config, backbone),
        opt=config.name,
        lr=learning_rate,
        weight_decay=config.weight_decay,
        **options,
    )
    return optimizer


def _groups(config: OptimConfig, backbone: Backbone) -> list[dict[str, Any]]:
    head = backbone.head_parameters()
    network: Any = backbone.network
    no_decay = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
    scales: dict[int, float] = {}  # share of the learning rate of each parameter, by its id
    if config.layer_decay != 1:
        if not hasattr(network, "group_matcher"):
            raise InputError(
                "optim.layer_decay: timm does not say which layers this backbone has; leave it at 1"
            )
        groups = param_groups_layer_decay(network, layer_decay=config.layer_decay)
        scales = {id(parameter): g["lr_scale"] for g in groups for parameter in g["params"]}
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and name not in no_decay
            decayed = is_matrix or config.decay_norms
            scale = scales.get(id(parameter), 1.0)
            if id(parameter) in head:
                scale *= config.head_lr_factor
            members.setdefault((scale, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            # timm's schedulers multiply a group's learning rate by this.
            "lr_scale": scale,
        }
        for (scale, decayed), parameters in members.items()
    ]


def build_schedule(
    config: OptimConfig, optimizer: Optimizer, *, steps_per_epoch: int, epochs: int
) -> Scheduler:
    """Linear warm-up, then a cosine to zero at the last step, or steps down; counted in steps."""
    if config.schedule == "step":
        return StepSchedule(config, optimizer, steps_per_epoch)
    n_steps = steps_per_epoch * epochs
    n_warmup = min(round(config.warmup_epochs * steps_per_epoch), n_steps - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=n_steps - n_warmup,
        lr_min=0.0,
        warmup_t=n_warmup,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )


class StepSchedule(Scheduler):  # type: ignore[misc]
    """A learning rate that is constant within an epoch: epoch e of the w of the warm-up, counted
    from 1, has e / w of the peak, and every milestone that lies behind multiplies by a factor.

    That of LDAM's code (Cao et al. 2019, `adjust_learning_rate`). timm's MultiStepLRScheduler
    is another: it starts from 0 and steps down an epoch earlier.
    """

    def __init__(self, config: OptimConfig, optimizer: Optimizer, steps_per_epoch: int) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.config = config
        self.steps_per_epoch = steps_per_epoch

    def factor(self, epoch: int) -> float:
        """Share of the peak; epochs are counted from 0 here."""
        config = self.config
        rise = min(1.0, (epoch + 1) / config.warmup_epochs) if config.warmup_epochs else 1.0
        return float(rise * config.step_factor ** bisect_right(config.milestones, epoch))

    def _get_lr(self, t: int) -> list[float]:
        # Asked before step t, counted from 1.
        factor = self.factor((t - 1) // self.steps_per_epoch)
        return [peak * factor for peak in self.base_values]

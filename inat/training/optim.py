"""The optimiser and the learning-rate schedule, from timm's parts."""

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from inat.config import OptimConfig
from inat.models.backbone import Backbone


def build_optimizer(config: OptimConfig, backbone: Backbone, learning_rate: float) -> Optimizer:
    """AdamW or SGD over four groups: backbone and classifier, with and without weight decay.

    Biases and other vectors (norms, scales) are not decayed.
    """
    # torch refuses Nesterov's step without a momentum.
    options: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.momentum > 0}
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
    no_decay = set()
    if hasattr(backbone.network, "no_weight_decay"):
        network: Any = backbone.network
        no_decay = set(network.no_weight_decay())
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in backbone.network.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and name not in no_decay
            members.setdefault((id(parameter) in head, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            # timm's schedulers multiply a group's learning rate by this.
            "lr_scale": config.head_lr_factor if in_head else 1.0,
        }
        for (in_head, decayed), parameters in members.items()
    ]


def build_schedule(
    config: OptimConfig, optimizer: Optimizer, *, steps_per_epoch: int, epochs: int
) -> CosineLRScheduler:
    """Linear warm-up, then a cosine to zero at the last step; counted in steps."""
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

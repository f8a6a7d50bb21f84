"""Losses for long tails. Each is an `nn.Module` with plain arguments, for any training loop:

    loss = inat.losses.LDAMLoss(class_counts, max_margin=0.5, scale=30)
    loss(logits, labels).backward()

`LOSSES` has them by the name that a config gives them; `base.py` says what a new one needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inat.core.errors import InputError
from inat.core.options import joined_options, switch_epoch
from inat.losses.base import Loss, Shared, Tail, shapes
from inat.losses.class_weights import class_weights

if TYPE_CHECKING:
    from inat.losses.base import LossConfig as LossConfig

    def __getattr__(name: str) -> Any: ...  # a type checker does not see the classes added below
else:
    LossConfig = joined_options(__name__, Loss, first="ce")
    # Not imports, which each new file would have to extend.
    globals().update({loss.__name__: loss for loss in Loss.parts.values()})

LOSSES = Loss.parts


def build_loss(
    config: LossConfig,
    *,
    prior: shapes.Prior | None,
    counts: shapes.Counts,
    head_scale: float = 1.0,
    epochs: int | None = None,
) -> Loss:
    """The loss that a config names.

    Args:
        prior: class prior to take off, above 0; None where the draws have no one prior.
        counts: training photos of each species.
        head_scale: what the classifier multiplies its cosines by; ldam's margins grow with it.
        epochs: of the training; class weights that begin later need it, else an InputError.
    """
    if config.after is not None and epochs is None:
        raise InputError(
            f"loss.after {config.after}: the training's length is not known; give epochs"
        )
    shared = Shared(
        class_weights=class_weights(counts, config.class_weights, config.beta),
        weights_begin=switch_epoch(config.after, epochs) / epochs if epochs else 0.0,
        label_smoothing=config.label_smoothing,
    )
    return config.method.build(config, Tail(counts, prior, head_scale=head_scale), shared)

"""Logits of several views of each photo, and their mean."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.config.schema import ViewMean
from inat.core.errors import InputError
from inat.loader.loader import Batch
from inat.loader.views import View, views_of
from inat.models.device import is_of_memory


def view_logits(
    network: nn.Module, batch: Batch, normalised: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch views classes"]:
    """The logits of each view: those of one size of all photos go through the network together.

    Args:
        network: gives logits.
        batch: from a loader with views.
        normalised: makes uint8 `[images, height, width, 3]` the network's input.
    """
    logits = []
    for images in views_of(batch):
        n_photos, n_views = images.shape[:2]
        together = network(normalised(images.flatten(0, 1).contiguous())).float()
        logits.append(together.view(n_photos, n_views, together.shape[1]))
    return torch.cat(logits, dim=1)


def mean_logits(
    logits: Float[Tensor, "batch views classes"], how: ViewMean
) -> Float[Tensor, "batch classes"]:
    """The mean over the views, as logits.

    logprob is the mean of the log-probabilities, which is that of the logits but for a constant
    of each photo; it carries the class prior that each view's logits carry, and so commutes with
    an adjustment of that prior. prob is the logarithm of the mean probability: pi_j times a mean
    of p(view | j) / p(view), so it carries the same prior, but an adjustment afterwards weighs
    the views as they were before it.
    """
    if how == "logprob":
        return logits.mean(dim=1)
    return logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])


def refuse_sizes(network: nn.Module, views: tuple[View, ...], own_size: int, backbone: str) -> None:
    """Tries a black image of each size but the network's own.

    Raises:
        InputError: the network takes images of one size alone.
    """
    device = next(network.parameters()).device
    for size in sorted({view.size for view in views} - {own_size}):
        try:
            with torch.inference_mode():
                network(torch.zeros(1, 3, size, size, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:
            if is_of_memory(error):
                raise
            raise InputError(
                f"views: {backbone} takes no images of {size} pixels ({error!s:.80}); leave {size} "
                f"out of scales (it was trained at {own_size})"
            ) from None

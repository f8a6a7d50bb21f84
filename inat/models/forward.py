"""Forward passes of a trained network over batches."""

import math
from collections import deque
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.config.schema import ViewMean
from inat.core.errors import InputError
from inat.loader.batches import Batch, normalize
from inat.loader.views import View, views_of
from inat.models.device import autocast, is_of_memory
from inat.models.heads import classifiers_in_float32
from inat.models.weights import Triple


def iterate_logits(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    n_classes: int,
    mean: Triple,
    std: Triple,
    precision: str,
    channels_last: bool = True,
    view_mean: ViewMean = "logprob",
) -> Iterator[tuple[Batch, Float[Tensor, "batch classes"]]]:
    """Each batch with its logits, float32 on the CPU; those of several views are averaged.

    The network is put into eval mode, and left there. Its classifier runs in float32. A GPU works
    on the next batch while the logits of one are used.
    """
    network.eval()
    device = next(network.parameters()).device

    def logits_of(images: Tensor) -> Float[Tensor, "images classes"]:
        images = normalize(images, device, mean, std, channels_last=channels_last)
        logits: Tensor = network(images)
        return logits.float()

    waiting: deque[tuple[Batch, Tensor, torch.cuda.Event | None]] = deque()
    for batch in batches:
        # Inside the loop, so that the mode does not leak into whoever consumes the generator.
        with torch.inference_mode(), autocast(device, precision), classifiers_in_float32(network):
            if not len(batch["label"]):  # all its photos were unreadable; ViTs take no empty batch
                logits = torch.empty(0, n_classes)
            elif "image" in batch:
                logits = logits_of(batch["image"])
            else:  # the views of one size of all photos go through the network together
                of_views = [
                    logits_of(images.flatten(0, 1).contiguous()).view(*images.shape[:2], -1)
                    for images in views_of(batch)
                ]
                logits = mean_logits(torch.cat(of_views, dim=1), view_mean)
        waiting.append((batch, *_sent(logits)))
        if len(waiting) > batches_late(device):
            yield _landed(*waiting.popleft())
    while waiting:
        yield _landed(*waiting.popleft())


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
    """Tries a black image of each size but the network's own; raises InputError if it fails."""
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


def batches_late(device: torch.device) -> int:
    """Batches that are on their way while the host uses one."""
    return 1 if device.type == "cuda" else 0


def _sent(logits: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Sends logits to the host, without waiting for a GPU."""
    if logits.device.type != "cuda":
        return logits.cpu(), None
    host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
    host.copy_(logits, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event


def _landed(batch: Batch, logits: Tensor, event: torch.cuda.Event | None) -> tuple[Batch, Tensor]:
    if event is not None:
        event.synchronize()
    return batch, logits

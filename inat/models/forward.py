"""Forward passes of a trained network over batches."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.config.schema import ViewMean
from inat.loader.loader import Batch, normalise, to_device
from inat.models.backbone import Triple
from inat.models.device import autocast
from inat.models.heads import classifiers_in_float32
from inat.models.view_batches import mean_logits, view_logits


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

    def normalised(images: Tensor) -> Tensor:
        return normalise(images, device, mean, std, channels_last=channels_last)

    waiting: deque[tuple[Batch, Tensor, torch.cuda.Event | None]] = deque()
    for batch in batches:
        # Inside the loop, so that the mode does not leak into whoever consumes the generator.
        with (
            torch.inference_mode(),
            autocast(device, precision),
            classifiers_in_float32(network),
        ):
            if not len(batch["label"]):  # all its photos were unreadable; ViTs take no empty batch
                logits = torch.empty(0, n_classes)
            elif "image" in batch:
                images = to_device(batch, device, mean, std, channels_last=channels_last)
                logits = network(images).float()
            else:
                logits = mean_logits(view_logits(network, batch, normalised), view_mean)
        waiting.append((batch, *_sent(logits)))
        if len(waiting) > batches_late(device):
            yield _landed(*waiting.popleft())
    while waiting:
        yield _landed(*waiting.popleft())


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

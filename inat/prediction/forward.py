"""Forward passes of a trained network over a loader."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.data.loader import Batch, Loader, to_device
from inat.models.backbone import Triple
from inat.models.device import autocast


def iterate_logits(
    network: nn.Module,
    loader: Loader,
    *,
    mean: Triple,
    std: Triple,
    precision: str,
) -> Iterator[tuple[Batch, Float[Tensor, "batch classes"]]]:
    """Each batch with its logits, float32 on the CPU.

    The network is put into eval mode, and left there.
    """
    network.eval()
    device = next(network.parameters()).device
    for batch in loader:
        # Inside the loop, so that the mode does not leak into whoever consumes the generator.
        with torch.inference_mode(), autocast(device, precision):
            logits = network(to_device(batch, device, mean, std))
        yield batch, logits.float().cpu()

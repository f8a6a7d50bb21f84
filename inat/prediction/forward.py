"""Forward passes of a trained network over a loader."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.config import ViewMean
from inat.data.loader import Batch, Loader, normalise, to_device
from inat.models.backbone import Triple
from inat.models.device import autocast
from inat.prediction.views import mean_logits, view_logits


def iterate_logits(
    network: nn.Module,
    loader: Loader,
    *,
    mean: Triple,
    std: Triple,
    precision: str,
    channels_last: bool = True,
    view_mean: ViewMean = "logprob",
) -> Iterator[tuple[Batch, Float[Tensor, "batch classes"]]]:
    """Each batch with its logits, float32 on the CPU; those of several views are averaged.

    The network is put into eval mode, and left there.
    """
    network.eval()
    device = next(network.parameters()).device
    for batch in loader:
        # Inside the loop, so that the mode does not leak into whoever consumes the generator.
        with torch.inference_mode(), autocast(device, precision):
            if not len(batch["label"]):  # all its photos were unreadable; ViTs take no empty batch
                logits = torch.empty(0, loader.n_classes)
            elif "image" in batch:
                images = to_device(batch, device, mean, std, channels_last=channels_last)
                logits = network(images).float()
            else:
                of_views = view_logits(
                    network,
                    batch,
                    lambda images: normalise(
                        images, device, mean, std, channels_last=channels_last
                    ),
                )
                logits = mean_logits(of_views, view_mean)
        yield batch, logits.cpu()

"""A batch: the memory it is written to, and its way to the device."""

import math
import threading
import weakref
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Batch = dict[str, Tensor]


def empty_images(n_photos: int, shape: tuple[int, ...], *, pinned: bool | None = None) -> Tensor:
    """Memory for the photos of a batch, uint8 `[n_photos, *shape]`, pinned for a CUDA device;
    None: if there is one."""
    pinned = torch.cuda.is_available() if pinned is None else pinned
    return torch.empty((n_photos, *shape), dtype=torch.uint8, pin_memory=pinned)


def shared_images(n_photos: int, shape: tuple[int, ...]) -> Tensor:
    """Memory for the photos of a batch, uint8 `[n_photos, *shape]`, that another process maps
    without a copy, as in torch's own default_collate."""
    n_bytes = n_photos * math.prod(shape)
    storage = torch.UntypedStorage._new_shared(n_bytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(n_photos, *shape)


def to_device(
    batch: Batch,
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = True,
) -> Float[Tensor, "batch 3 height width"]:
    """The batch's images on `device`, normalized, float32.

    Args:
        batch: from a loader; `image` is uint8 `[B, H, W, 3]`.
        device: where to; the copy does not block from pinned memory.
        mean: of each channel, as a share of 255.
        std: of each channel, as a share of 255.
        channels_last: their memory format; else contiguous.
    """
    return normalize(batch["image"], device, mean, std, channels_last=channels_last)


def normalize(
    images: UInt8[Tensor, "batch height width 3"],
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = True,
) -> Float[Tensor, "batch 3 height width"]:
    """Images on `device`, normalized as `to_device` does a batch's."""
    # uint8 crosses the bus. A row of the image is one run of numbers with one run of factors:
    # broadcasting three of them instead takes 4 times as long on a CPU.
    images = images.to(device, non_blocking=True)
    n_images, height, width, channels = images.shape
    scale, shift = _factors(tuple(mean), tuple(std), width, images.device)
    rows = images.view(n_images * height, width * channels)
    # A GPU's allocator keeps what is freed; on a CPU a pool does.
    floats = _pool.lend(tuple(rows.shape)).copy_(rows) if rows.is_cpu else rows.float()
    torch.addcmul(shift, floats, scale, out=floats)
    # Seen as [B, 3, H, W] the same bytes are channels_last.
    normalized = floats.view(images.shape).permute(0, 3, 1, 2)
    return normalized if channels_last else normalized.contiguous()


@lru_cache(maxsize=32)
def _factors(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`[width * 3]` each: scale and offset of a row of pixels."""
    with torch.inference_mode(False):  # for training too, whoever asks first
        scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width)
        return scale.to(device), shift.to(device)


class BufferPool:
    """Lends a few blocks of the processor's memory again and again, as float32 tensors.

    The C library gives a large block back to the system when it is freed, and the next one costs
    its page faults again: measured for batches at 224 px, three quarters of their normalization.
    """

    def __init__(self, most: int = 4) -> None:
        # blocks that are kept; while all are lent, the next tensor has memory of its own
        self.most = most
        self._blocks: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        self._lock = threading.Lock()

    def lend(self, shape: tuple[int, ...]) -> Tensor:
        """An empty tensor; its memory is lent again once neither it nor a view of it is left."""
        n_floats = math.prod(shape)
        with self._lock:
            free = [place for place, (_, lent) in enumerate(self._blocks) if lent() is None]
            if not free and len(self._blocks) == self.most:
                return torch.empty(shape)
            block = self._blocks.pop(free[-1])[0] if free else np.empty(0, np.float32)
            if len(block) < n_floats:
                block = torch.empty(n_floats).numpy()  # by torch, which aligns it for vector code
            lent = block[:n_floats]  # torch holds on to this object as long as to its memory
            self._blocks.append((block, weakref.ref(lent)))
        return torch.from_numpy(lent).view(shape)


_pool = BufferPool()

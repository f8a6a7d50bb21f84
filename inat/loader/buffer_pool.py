"""Memory of batches that were used up, for the next ones."""

import math
import threading
import weakref

import numpy as np
import torch
from torch import Tensor


class KeptMemory:
    """Lends a few blocks of the processor's memory again and again.

    The C library gives a large block back to the system when it is freed, and the next one costs
    its page faults anew: measured for batches at 224 px, three quarters of their normalisation.

    Attributes:
        most: blocks that are kept; while all are lent, the next tensor has memory of its own.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._blocks: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        self._lock = threading.Lock()

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An empty tensor; its memory is lent again once neither it nor a view of it is left."""
        n_bytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            block = self._free_block(n_bytes)
            if block is None:
                return torch.empty(shape, dtype=dtype)
            lent = block[:n_bytes]  # torch holds on to this object as long as to its memory
            self._blocks.append((block, weakref.ref(lent)))
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _free_block(self, n_bytes: int) -> np.ndarray | None:
        """Takes out a block that nobody has, a new one in place of one that is too small."""
        free = [place for place, (_, borrower) in enumerate(self._blocks) if borrower() is None]
        if not free and len(self._blocks) == self.most:
            return None
        # By torch, which aligns it for its vector code.
        block = self._blocks.pop(free[-1])[0] if free else np.empty(0, np.uint8)
        if len(block) < n_bytes:
            block = torch.empty(n_bytes, dtype=torch.uint8).numpy()
        return block

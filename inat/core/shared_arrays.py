"""Arrays that worker processes map instead of copying."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from torch import Tensor


class SharedArray:
    """A read-only NumPy array that torch's pickler passes to a worker process as a handle of shared
    memory; any other pickler copies it, and a forked worker shares it anyway."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._shared: Tensor | None = None  # made once, whatever the number of workers

    def __getstate__(self) -> "Tensor":
        if self._shared is None:
            import torch  # here: it is slow to import, and only worker processes need it

            shared = torch.from_numpy(self.array.copy())
            self._shared = shared.share_memory_()  # type: ignore[no-untyped-call]
        return self._shared

    def __setstate__(self, shared: "Tensor") -> None:
        self._shared = shared
        self.array = shared.numpy()


class SharedStrings:
    """A list of strings, none of them null, that is pickled as `SharedArray` is."""

    def __init__(self, strings: pa.StringArray) -> None:
        whole = pa.concat_arrays([strings])  # a slice would carry the strings it does not show
        _, offsets, characters = whole.buffers()
        self._offsets = SharedArray(np.frombuffer(offsets, np.int32, len(whole) + 1))
        self._characters = SharedArray(np.frombuffer(characters or b"", np.uint8))

    def __getitem__(self, index: int) -> str:
        begin, end = self._offsets.array[index : index + 2]
        return self._characters.array[begin:end].tobytes().decode()

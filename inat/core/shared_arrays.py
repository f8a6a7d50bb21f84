"""Arrays that worker processes map instead of copying."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from torch import Tensor


class SharedArray:
    """A NumPy array that is pickled into a worker process as a handle of shared memory.

    torch's own pickler does that for tensors; by any other pickler it goes as a copy. A forked
    worker shares it anyway. The array is not to be written to.
    """

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
    """A list of strings that is pickled into a worker process as a handle of shared memory.

    Args:
        strings: without a null among them.
    """

    def __init__(self, strings: pa.StringArray) -> None:
        whole = pa.concat_arrays([strings])  # a slice would carry the strings it does not show
        _, offsets, characters = whole.buffers()
        self._offsets = SharedArray(np.frombuffer(offsets, np.int32, len(whole) + 1))
        self._characters = SharedArray(np.frombuffer(characters or b"", np.uint8))

    def __getitem__(self, index: int) -> str:
        begin, end = self._offsets.array[index : index + 2]
        return self._characters.array[begin:end].tobytes().decode()

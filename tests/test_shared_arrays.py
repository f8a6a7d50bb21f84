"""What worker processes map instead of copying."""

import io
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pyarrow as pa
import torch.multiprocessing  # noqa: F401  # teaches ForkingPickler to share tensors

from inat.core.shared_arrays import SharedArray, SharedStrings
from inat.photos.sources import PhotoFiles

NAMES = pa.array(["a/1.jpg", "", "Aves/Ünï/3.jpg", "b"] * 5, pa.string())


def test_strings_are_those_that_were_given_slices_included() -> None:
    for names in (NAMES, NAMES.slice(2, 7), NAMES.slice(1, 1), pa.array([""], pa.string())):
        shared = SharedStrings(names)
        assert [shared[i] for i in range(len(names))] == names.to_pylist()


def test_a_pickled_array_has_the_same_numbers() -> None:
    array = np.arange(10, dtype=np.int64)
    again = pickle.loads(pickle.dumps(SharedArray(array)))
    assert np.array_equal(again.array, array) and again.array.dtype == array.dtype


def test_what_goes_to_a_worker_process_is_a_handle_whatever_the_length(tmp_path: object) -> None:
    sizes = []
    for n in (10, 100_000):
        names = pa.array([f"train_val2018/Aves/{i:07}.jpg" for i in range(n)], pa.string())
        stream = io.BytesIO()
        ForkingPickler(stream, pickle.HIGHEST_PROTOCOL).dump(
            (PhotoFiles(tmp_path, names), SharedArray(np.arange(n)))  # type: ignore[arg-type]
        )
        sizes.append(len(stream.getvalue()))
    assert sizes[1] - sizes[0] < 100


def test_the_shared_copy_is_made_once_for_all_workers() -> None:
    shared = SharedArray(np.arange(3))
    assert shared.__getstate__().data_ptr() == shared.__getstate__().data_ptr()

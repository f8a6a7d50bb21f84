"""The photos of a data set as one sorted list, cut into parts, worked through in order."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inat.core.competitions import Competition
from inat.core.errors import InputError, WorldError
from inat.dataset.split import Split, load_split


@dataclass(frozen=True)
class Finding:
    """A photo or file with which something is not as it should be."""

    file_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file_name}: {self.reason}"


def parse_part(text: str) -> tuple[int, int]:
    """Reads "I/N": which part, counted from 1, of how many."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise InputError(f"--part: {text!r} is not I/N with I from 1 to N, such as 2/4")


def part_range(n_photos: int, number: int, n_parts: int) -> range:
    """The positions of a part in the sorted list of photos."""
    return range(n_photos * (number - 1) // n_parts, n_photos * number // n_parts)


def load_splits(root: Path, spec: Competition) -> list[Split]:
    """train, and val and test where the folder has them."""
    others = [name for name in ("val", "test") if spec.has_split(root, name)]
    return [load_split(root, name, competition=spec.slug) for name in ("train", *others)]


def photo_names(splits: Sequence[Split]) -> pa.StringArray:
    """The distinct file names of the splits, sorted by their bytes."""
    names = pc.unique(pa.concat_arrays([split.file_names for split in splits]))
    return names.take(pc.sort_indices(names))


def names_digest(names: pa.StringArray) -> str:
    """SHA-256 of a list of names that was made by `photo_names`."""
    _, offsets, content = names.buffers()
    edges = np.frombuffer(offsets, np.int32)[: len(names) + 1]
    running = hashlib.sha256(edges.tobytes())
    running.update(memoryview(content)[: edges[-1]])
    return running.hexdigest()


@contextmanager
def naming_disk_faults(path: Path) -> Iterator[None]:
    """Names `path`, and not a temporary file, where the disk refuses to be written to."""
    try:
        yield
    except OSError as error:
        # Arrow's own text goes round the system's.
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise WorldError(
            f"{path}: {reason}; {remedy} and run the same command again, it goes on from there"
        ) from None

"""Who reads the batches: the calling thread, threads, or processes. All give the same batches."""

import errno
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as TorchSampler

from inat.core.errors import WorldError
from inat.core.files import MORE_FILES
from inat.loader.batches import Batch, empty_images, shared_images
from inat.loader.reader import BatchIndices, BatchReader, PhotoIssue

BATCHES_AHEAD = 3

Piece = Future[list[tuple[int, PhotoIssue]]]

BatchIssues = tuple[Batch, list[PhotoIssue]]
"""A batch, and what was wrong with its photos."""


def read_batch(
    reader: BatchReader,
    indices: BatchIndices,
    empty: Callable[[int, tuple[int, ...]], Tensor] = empty_images,
) -> BatchIssues:
    """Reads one batch in the calling thread, into memory that `empty` provides."""
    images = empty(len(indices.photos), reader.transform.shape)
    issues = reader.read(indices, images.numpy())
    return reader.batch(indices.photos, images, issues), [issue for _, issue in issues]


def read_here(
    reader: BatchReader, batches: Sequence[BatchIndices], *, pinned: bool
) -> Iterator[BatchIssues]:
    for indices in batches:
        yield read_batch(reader, indices, partial(empty_images, pinned=pinned))


def read_in_threads(
    reader: BatchReader, batches: Sequence[BatchIndices], workers: int, *, pinned: bool
) -> Iterator[BatchIssues]:
    """Each batch is cut into one piece per thread; a few batches are read ahead."""
    pool = ThreadPoolExecutor(workers, "inat-loader")
    waiting: deque[tuple[BatchIndices, Tensor, list[tuple[int, Piece]]]] = deque()

    def oldest() -> BatchIssues:
        indices, images, pieces = waiting.popleft()
        issues = [(begin + row, issue) for begin, piece in pieces for row, issue in piece.result()]
        return reader.batch(indices.photos, images, issues), [issue for _, issue in issues]

    try:
        for indices in batches:
            n_photos = len(indices.photos)
            images = empty_images(n_photos, reader.transform.shape, pinned=pinned)
            into = images.numpy()
            edges = np.linspace(0, n_photos, workers + 1).astype(int).tolist()
            pieces = [
                (begin, pool.submit(reader.read, indices.part(begin, end), into[begin:end]))
                for begin, end in pairwise(edges)
            ]
            waiting.append((indices, images, pieces))
            if len(waiting) > BATCHES_AHEAD:
                yield oldest()
        while waiting:
            yield oldest()
    finally:
        pool.shutdown(cancel_futures=True)


class WorkerProcesses:
    """Worker processes, each of which reads whole batches.

    They stay for the next iteration; one that begins before this one has ended gets its own.
    """

    def __init__(self, reader: BatchReader, workers: int, *, pinned: bool) -> None:
        self._reader = reader
        self._workers = workers
        self._pinned = pinned
        self._idle: DataLoader[BatchIssues] | None = None

    def read(self, batches: Sequence[BatchIndices]) -> Iterator[BatchIssues]:
        processes, self._idle = self._idle, None
        iterator: Any = processes and processes._iterator
        if processes is None or (
            iterator is not None and not all(worker.is_alive() for worker in iterator._workers)
        ):
            processes = DataLoader(
                _BatchDataset(self._reader),
                batch_size=None,
                sampler=_Batches(),
                num_workers=self._workers,
                pin_memory=self._pinned,
                persistent_workers=True,
                worker_init_fn=_own_group,
                # The base seed that DataLoader draws would otherwise move torch's global generator.
                generator=torch.Generator().manual_seed(0),
            )
        processes.sampler.batches = batches  # type: ignore[attr-defined]
        try:
            with worker_deaths():
                yield from processes
        except GeneratorExit:  # whoever iterates has stopped early
            self._idle = processes
            raise
        # After any other error, a dead worker's too, the next iteration starts new ones.
        self._idle = processes


class _BatchDataset(Dataset[BatchIssues]):
    """What torch's worker processes hold; its index is a batch's indices, its element a batch."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitem__(self, indices: BatchIndices) -> BatchIssues:
        return read_batch(self.reader, indices, shared_images)


class _Batches(TorchSampler[BatchIndices]):
    """What torch hands to the worker processes, one at a time."""

    batches: Sequence[BatchIndices] = ()

    def __iter__(self) -> Iterator[BatchIndices]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _own_group(_: int) -> None:
    """Ctrl-C and signals to the process group do not reach the workers: the training, which they
    read for, decides. To ignore them would not do: the interpreter ends workers by SIGTERM, and
    waits for them."""
    os.setpgid(0, 0)


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Raises WorldError in place of torch's error where a worker process died, or its batches do
    not arrive. torch raises its error in whatever the main thread does at that moment, so this
    stands around the use of the batches too."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        text = f"{error} {error.__cause__ or error.__context__ or ''}"
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # The second where the limit is reached while a batch is received: its descriptors are cut.
        if any(words in text for words in (os.strerror(errno.EMFILE), "items of ancdata")):
            raise WorldError(
                f"the processes that read photos have too many open files; {MORE_FILES}"
            ) from None
        if "DataLoader worker" not in text:
            raise
        by = re.search(r"killed by signal: ([A-Za-z ]+)", text)
        cause = f"was killed by a signal ({by[1].strip()})" if by else "ended unexpectedly"
        raise WorldError(
            f"a process that reads photos {cause}, most often because memory or shared memory "
            "(/dev/shm) ran out; lower data.workers or batch_size, or set data.worker_kind threads"
        ) from None

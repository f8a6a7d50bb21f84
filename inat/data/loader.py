"""Batches of photos, the same for any number of workers and after any resume."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from inat.config import TransformConfig
from inat.data.annotations import Split
from inat.data.photos import BadPhoto, Crop
from inat.data.samplers import Sampler, build_sampler, epoch_order
from inat.data.transforms import Draw, EpochDraws, EvalTransform, TrainTransform
from inat.errors import InputError, WorldError

WorkerKind = Literal["auto", "threads", "processes"]
Batch = dict[str, Tensor]

MOST_WORKERS = 16
BATCHES_AHEAD = 3

LOADER_RECIPE = TransformConfig()
"""The recipe of `build_loader` where none is given: crops of .08-1 of the area, flip .5,
jitter .4; centre crops of .875."""


@dataclass(frozen=True)
class PhotoEvent:
    """A photo that could not be read, or only after a repair."""

    image_id: int
    path: str
    reason: str
    recovered: bool

    def __str__(self) -> str:
        return f"{self.path} (image {self.image_id}): {self.reason}"


class BatchReader:
    """Reads any stretch of an epoch's draws into one array. Goes to the workers as a whole."""

    def __init__(self, split: Split, transform: TrainTransform | EvalTransform, seed: int) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self._draws = EpochDraws(seed, 0)

    def read(
        self,
        epoch: int,
        draws: range,
        photos: Int64[np.ndarray, "draws"],
        into: np.ndarray,
    ) -> list[tuple[int, PhotoEvent]]:
        """Writes the photos of `draws` into `into`, and gives (row, event) for the troubled."""
        # Read once: a thread of another epoch's iteration may replace it at any time.
        numbers = self._draws
        if numbers.epoch != epoch:
            numbers = self._draws = EpochDraws(self.seed, epoch)
        events = []
        for row, (k, photo) in enumerate(zip(draws, photos.tolist(), strict=True)):
            try:
                crop = self._read_one(photo, numbers[k])
            except BadPhoto as error:
                events.append((row, self._event(photo, str(error), recovered=False)))
                continue
            into[row] = crop.pixels
            if crop.recovered:
                events.append((row, self._event(photo, crop.recovered, recovered=True)))
        return events

    def batch(
        self,
        photos: Int64[np.ndarray, "draws"],
        images: Tensor,
        events: list[tuple[int, PhotoEvent]],
    ) -> Batch:
        """The batch of these photos, without the rows of the unreadable ones."""
        lost = [row for row, event in events if not event.recovered]
        if lost:
            kept = np.setdiff1d(np.arange(len(photos)), lost)
            photos, images = photos[kept], images[torch.from_numpy(kept)]
        return {
            "image": images,
            "label": torch.from_numpy(self.split.labels[photos]),
            "image_id": torch.from_numpy(self.split.image_ids[photos]),
        }

    def _read_one(self, photo: int, draw: Draw) -> Crop:
        try:
            content = self.split.path(photo).read_bytes()
        except OSError as error:
            raise BadPhoto(error.strerror or str(error)) from None
        return self.transform(content, draw)

    def _event(self, photo: int, reason: str, *, recovered: bool) -> PhotoEvent:
        return PhotoEvent(
            int(self.split.image_ids[photo]), str(self.split.path(photo)), reason, recovered
        )


@dataclass(frozen=True)
class Stretch:
    """One batch to be read: draws `draws` of epoch `epoch`, which are these photos."""

    epoch: int
    draws: range
    photos: Int64[np.ndarray, "draws"]


class Loader:
    """Iterates over the batches of the epoch set last; made by `build_loader`.

    Attributes:
        bad_photos: photos that could not be read, in the order met.
        recovered_photos: photos that were read after a repair.
        prior: class prior of the draws; None where the photos have no labels.
    """

    def __init__(
        self,
        reader: BatchReader,
        order: Callable[[int], Int64[np.ndarray, "draws"]],
        *,
        n_draws: int,
        batch_size: int,
        drop_last: bool,
        rank: int,
        world_size: int,
        workers: int,
        worker_kind: WorkerKind,
        on_bad_photo: Literal["stop", "skip"],
        prior: np.ndarray | None,
    ) -> None:
        self._reader = reader
        self._order = order
        self.n_draws = n_draws
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.worker_kind = "threads" if worker_kind == "auto" else worker_kind
        self.on_bad_photo = on_bad_photo
        self.prior = prior
        self.bad_photos: list[PhotoEvent] = []
        self.recovered_photos: list[PhotoEvent] = []
        self._epoch = 0
        self._start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The next iteration gives epoch `epoch` from draw `start` of all processes on."""
        self._epoch = epoch
        self._start = start

    @property
    def global_batch(self) -> int:
        """Photos a step over all processes."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches that the next iteration gives to this process."""
        whole, rest = divmod(max(0, self.n_draws - self._start), self.global_batch)
        return whole + (not self.drop_last and len(self._part(rest)) > 0)

    def __iter__(self) -> Iterator[Batch]:
        stretches = self._stretches()
        if self.workers == 0:
            read = self._read_here
        elif self.worker_kind == "threads":
            read = self._read_in_threads
        else:
            read = self._read_in_processes
        for batch, events in read(stretches):
            self._note(events)
            yield batch

    def _stretches(self) -> list[Stretch]:
        order = self._order(self._epoch)
        stretches = []
        for step in range(len(self)):
            first = self._start + step * self.global_batch
            # Whole global batches are cut evenly; a shorter last one too, to within one photo.
            size = min(self.global_batch, self.n_draws - first)
            part = self._part(size)
            draws = range(first + part.start, first + part.stop)
            stretches.append(Stretch(self._epoch, draws, order[draws.start : draws.stop]))
        return stretches

    def _part(self, size: int) -> range:
        """This process's part of a global batch of `size` photos."""
        return range(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def _note(self, events: Sequence[PhotoEvent]) -> None:
        for event in events:
            if event.recovered:
                self.recovered_photos.append(event)
            elif self.on_bad_photo == "stop":
                raise WorldError(
                    f"{event}; mend or remove the photo, or go on without it (on_bad_photo skip)"
                )
            else:
                self.bad_photos.append(event)

    def _read_here(self, stretches: Sequence[Stretch]) -> Iterator[tuple[Batch, list[PhotoEvent]]]:
        for stretch in stretches:
            yield read_stretch(self._reader, stretch)

    def _read_in_threads(
        self, stretches: Sequence[Stretch]
    ) -> Iterator[tuple[Batch, list[PhotoEvent]]]:
        """Each batch is cut into one piece a thread; a few batches are read ahead."""
        pool = ThreadPoolExecutor(self.workers, "inat-loader")
        waiting: deque[_Pending] = deque()
        try:
            for stretch in stretches:
                waiting.append(_Pending(self._reader, stretch, pool, self.workers))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_in_processes(
        self, stretches: Sequence[Stretch]
    ) -> Iterator[tuple[Batch, list[PhotoEvent]]]:
        yield from DataLoader(
            _Stretches(self._reader, stretches),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            # The base seed that DataLoader draws would otherwise move torch's global generator.
            generator=torch.Generator().manual_seed(0),
        )


class _Pending:
    """A batch whose pieces are being read by threads."""

    def __init__(
        self, reader: BatchReader, stretch: Stretch, pool: ThreadPoolExecutor, pieces: int
    ) -> None:
        self._reader = reader
        self._photos = stretch.photos
        self._images = empty_images(len(stretch.photos), reader.transform.size)
        into = self._images.numpy()
        edges = np.linspace(0, len(stretch.photos), pieces + 1).astype(int).tolist()
        self._pieces: list[tuple[int, Future[list[tuple[int, PhotoEvent]]]]] = [
            (
                begin,
                pool.submit(
                    reader.read,
                    stretch.epoch,
                    stretch.draws[begin:end],
                    stretch.photos[begin:end],
                    into[begin:end],
                ),
            )
            for begin, end in pairwise(edges)
        ]

    def result(self) -> tuple[Batch, list[PhotoEvent]]:
        events = [
            (begin + row, event) for begin, piece in self._pieces for row, event in piece.result()
        ]
        batch = self._reader.batch(self._photos, self._images, events)
        return batch, [event for _, event in events]


class _Stretches(Dataset[tuple[Batch, list[PhotoEvent]]]):
    """One element a batch, for torch's worker processes."""

    def __init__(self, reader: BatchReader, stretches: Sequence[Stretch]) -> None:
        self.reader = reader
        self.stretches = stretches

    def __len__(self) -> int:
        return len(self.stretches)

    def __getitem__(self, index: int) -> tuple[Batch, list[PhotoEvent]]:
        return read_stretch(self.reader, self.stretches[index], pinned=False)


def read_stretch(
    reader: BatchReader, stretch: Stretch, *, pinned: bool = True
) -> tuple[Batch, list[PhotoEvent]]:
    """Reads one batch in the calling thread."""
    images = empty_images(len(stretch.photos), reader.transform.size, pinned=pinned)
    events = reader.read(stretch.epoch, stretch.draws, stretch.photos, images.numpy())
    return reader.batch(stretch.photos, images, events), [event for _, event in events]


def empty_images(n_images: int, size: int, *, pinned: bool = True) -> Tensor:
    """Room for uint8 images `[n_images, size, size, 3]`, pinned where there is a CUDA device."""
    return torch.empty(
        (n_images, size, size, 3),
        dtype=torch.uint8,
        pin_memory=pinned and torch.cuda.is_available(),
    )


def build_loader(
    split: Split,
    *,
    image_size: int,
    training: bool,
    batch_size: int,
    workers: int | None = None,
    seed: int = 0,
    sampler: str = "instance",
    epoch_size: int | None = None,
    recipe: TransformConfig | None = None,
    rank: int = 0,
    world_size: int = 1,
    worker_kind: WorkerKind = "auto",
    on_bad_photo: Literal["stop", "skip"] = "stop",
) -> Loader:
    """A loader of batches: dicts with `image` uint8 `[B, H, W, C]`, `label` int64 `[B]` (-1
    where unknown) and `image_id` int64 `[B]`.

    Training draws by `sampler` and leaves out the last, shorter batch; otherwise every photo
    comes once, in the split's order. Which photo is draw k of epoch e and how it is cropped,
    flipped and jittered depends on (seed, e, k) alone.

    Args:
        split: the photos.
        image_size: side of the images, in pixels; takes the place of the recipe's.
        training: random crops in random order, or centre crops in order.
        batch_size: photos a batch of this process.
        workers: threads or processes that read; 0 reads in the calling thread; None: one a
            processor, at most 16.
        seed: of the order and of the crops.
        sampler: instance or class_balanced; training alone.
        epoch_size: draws an epoch; None: the number of photos; training alone.
        recipe: crops, flip and jitter; None: crops of .08-1 of the area, flip .5, jitter .4.
        rank: number of this process.
        world_size: number of processes; each gets its slice of the same global order.
        worker_kind: threads or processes; auto: threads (the decoders release the GIL).
        on_bad_photo: stop raises at the first photo that cannot be read; skip leaves it out of
            its batch and lists it in `loader.bad_photos`.

    Raises:
        InputError: a batch size below 1, an unknown sampler, no labels to draw by, an epoch
            smaller than a batch.
        WorldError: while iterating, at a photo that cannot be read.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers or 0, 0)):
        if value < least:
            raise InputError(f"{name}: {value} is less than {least}; give {least} or more")
    recipe = recipe or LOADER_RECIPE
    sizes: dict[str, Any] = {"image_size": image_size, "eval_image_size": image_size}
    recipe = TransformConfig(**{**vars(recipe), **sizes})
    transform = TrainTransform(recipe) if training else EvalTransform(recipe)
    n_draws = (epoch_size or len(split)) if training else len(split)
    if training and n_draws < batch_size * world_size:
        raise InputError(
            f"an epoch of {n_draws} photos is less than one global batch of "
            f"{batch_size * world_size}; lower batch_size or raise sampler.epoch_size"
        )
    drawn = build_sampler(sampler, split.labels, split.n_classes) if training else None
    return Loader(
        BatchReader(split, transform, seed),
        _order(drawn, n_draws, seed),
        n_draws=n_draws,
        batch_size=batch_size,
        drop_last=training,
        rank=rank,
        world_size=world_size,
        workers=default_workers() if workers is None else workers,
        worker_kind=worker_kind,
        on_bad_photo=on_bad_photo,
        prior=drawn.prior if drawn else None,
    )


def _order(
    sampler: Sampler | None, n_draws: int, seed: int
) -> Callable[[int], Int64[np.ndarray, "draws"]]:
    if sampler is None:
        return lambda epoch: np.arange(n_draws)
    return lambda epoch: epoch_order(sampler, n_draws, seed, epoch)


def default_workers() -> int:
    """One worker for each processor that this process may use, at most 16."""
    return min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        MOST_WORKERS,
    )


def to_device(
    batch: Batch,
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Tensor, "batch 3 height width"]:
    """The batch's images on `device`, normalised, float32, in channels_last memory.

    Args:
        batch: from a loader; `image` is uint8 `[B, H, W, 3]`.
        device: where to; the copy does not block from pinned memory.
        mean: of each channel, as a share of 255.
        std: of each channel, as a share of 255.
    """
    # uint8 crosses the bus; seen as [B, 3, H, W] the same bytes are channels_last.
    images = batch["image"].to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return images.mul_(scale).add_(shift.view(1, 3, 1, 1))

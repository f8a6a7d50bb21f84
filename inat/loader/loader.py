"""Batches of photos, the same for any number of workers and after any resume."""

import errno
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as TorchSampler

from inat.config.schema import TransformConfig
from inat.core.errors import InputError, WorldError
from inat.core.files import MORE_FILES
from inat.core.shared_arrays import SharedArray
from inat.core.threads import usable_processors
from inat.dataset.split import Split
from inat.loader.buffer_pool import KeptMemory
from inat.loader.photo_cache import KeptPhotos, keep_photos, refuse_too_many
from inat.loader.transforms import EpochDraws, EvalTransform, TrainTransform
from inat.loader.views import ViewTransform, parse_views
from inat.photos.decode import SLOW_SECONDS, BadPhoto, Crop, Crops
from inat.photos.sources import PhotoSource, open_photos
from inat.samplers import SamplerConfig, build_sampler
from inat.samplers.base import Sampler, epoch_order

WorkerKind = Literal["auto", "threads", "processes"]
Batch = dict[str, Tensor]

MOST_WORKERS = 16
BATCHES_AHEAD = 3

LOADER_RECIPE = TransformConfig()
"""The recipe of `build_loader` where none is given: crops of .08-1 of the area, flip .5,
jitter .4; centre crops of .875."""


@dataclass(frozen=True)
class PhotoEvent:
    """A photo that could not be read (bad), only after a repair (recovered), or only slowly."""

    image_id: int
    path: str
    reason: str
    kind: Literal["bad", "recovered", "slow"]

    def __str__(self) -> str:
        image = f" (image {self.image_id})" if self.image_id >= 0 else ""
        return f"{self.path}{image}: {self.reason}"


class BatchReader:
    """Reads any stretch of an epoch's draws into one array. Goes to the workers as a whole: of
    the split it keeps what a batch needs, in memory that they share."""

    def __init__(
        self,
        split: Split,
        transform: TrainTransform | EvalTransform | ViewTransform,
        seed: int,
        source: PhotoSource | None = None,
    ) -> None:
        self.source = source or open_photos(split.root, split.file_names)
        self.transform = transform
        self.seed = seed
        self._labels = SharedArray(split.labels)
        self._image_ids = SharedArray(split.image_ids)
        self._draws = EpochDraws(seed, 0)
        self._kept: KeptPhotos[PhotoEvent] | None = None

    def keep(self, workers: int) -> None:
        """Decodes every photo once and keeps it; what `read` writes stays the same."""
        if self._kept is not None:
            return
        transform = self._kept_by
        self._kept = keep_photos(
            lambda photo, out: self._watched(photo, partial(transform.keep, out=out)),
            len(self._labels.array),
            transform.size,
            workers,
        )

    @property
    def _kept_by(self) -> TrainTransform | EvalTransform:
        assert not isinstance(self.transform, ViewTransform)  # build_loader refuses to keep views
        return self.transform

    @property
    def needs_workers(self) -> bool:
        """Whether a batch is work for workers: kept photos are cropped and flipped at once."""
        return self._kept is None or not self._kept_by.only_crops

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
        if self._kept is not None:
            self._kept_by.finish(self._kept.pixels.array[photos], numbers, draws, into)
            noted = [self._kept.events.get(photo, []) for photo in photos.tolist()]
        else:
            noted = [
                self._watched(photo, self._decoder(photo, numbers, k, into[row]))
                for row, (k, photo) in enumerate(zip(draws, photos.tolist(), strict=True))
            ]
        return [(row, event) for row, events in enumerate(noted) for event in events]

    def _decoder(
        self, photo: int, numbers: EpochDraws, k: int, out: np.ndarray
    ) -> Callable[[bytes | memoryview], Crop | Crops]:
        if isinstance(self.transform, ViewTransform):
            return partial(self.transform, image_id=int(self._image_ids.array[photo]), out=out)
        return partial(self.transform, draw=numbers[k], out=out)

    def _watched(
        self, photo: int, decode: Callable[[bytes | memoryview], Crop | Crops]
    ) -> list[PhotoEvent]:
        """Decodes a photo and gives what is to be told of it."""
        began = time.perf_counter()
        try:
            crop = decode(self.source.read(photo))
        except BadPhoto as error:
            return [self._event(photo, str(error), "bad")]
        events = []
        if crop.recovered:
            events.append(self._event(photo, crop.recovered, "recovered"))
        seconds = time.perf_counter() - began
        if seconds > SLOW_SECONDS:
            events.append(self._event(photo, f"took {seconds:.1f} s", "slow"))
        return events

    def batch(
        self,
        photos: Int64[np.ndarray, "draws"],
        images: Tensor,
        events: list[tuple[int, PhotoEvent]],
    ) -> Batch:
        """The batch of these photos, without the rows of the unreadable ones."""
        lost = [row for row, event in events if event.kind == "bad"]
        if lost:
            kept = np.setdiff1d(np.arange(len(photos)), lost)
            photos, images = photos[kept], images[torch.from_numpy(kept)]
        views = isinstance(self.transform, ViewTransform) and self.transform.images(images)
        return {
            **(views or {"image": images}),
            "label": torch.from_numpy(self._labels.array[photos]),
            "image_id": torch.from_numpy(self._image_ids.array[photos]),
        }

    def _event(
        self, photo: int, reason: str, kind: Literal["bad", "recovered", "slow"]
    ) -> PhotoEvent:
        image_id = int(self._image_ids.array[photo])
        return PhotoEvent(image_id, self.source.path(photo), reason, kind)


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
        slow_photos: photos that took more than a second, from the file to the image.
        n_classes: species that the labels number.
        prior: class prior of the draws; None where the photos have no labels, and where it
            changes during training.
    """

    def __init__(
        self,
        reader: BatchReader,
        order: Callable[[int], Int64[np.ndarray, "draws"]],
        *,
        n_draws: int,
        n_classes: int,
        batch_size: int,
        drop_last: bool,
        rank: int,
        world_size: int,
        workers: int,
        worker_kind: WorkerKind,
        on_bad_photo: Literal["stop", "skip"],
        keep_photos: bool,
        pin_memory: bool | None,
        prior: np.ndarray | None,
    ) -> None:
        self._reader = reader
        self._order = order
        self.n_draws = n_draws
        self.n_classes = n_classes
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.worker_kind = "threads" if worker_kind == "auto" else worker_kind
        self.on_bad_photo = on_bad_photo
        self.keep_photos = keep_photos
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.prior = prior
        self.bad_photos: list[PhotoEvent] = []
        self.recovered_photos: list[PhotoEvent] = []
        self.slow_photos: list[PhotoEvent] = []
        self._epoch = 0
        self._start = 0
        self._processes: DataLoader[tuple[Batch, list[PhotoEvent]]] | None = None

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
        if self.keep_photos:
            self._reader.keep(self.workers)
        if self.workers == 0 or not self._reader.needs_workers:
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
            if event.kind == "recovered":
                self.recovered_photos.append(event)
            elif event.kind == "slow":
                self.slow_photos.append(event)
            elif self.on_bad_photo == "stop":
                raise WorldError(
                    f"{event}; fix or remove the photo, or go on without it (on_bad_photo skip)"
                )
            else:
                self.bad_photos.append(event)

    def take_events(self, earlier: "Loader") -> None:
        """Goes on with the lists of photos of a loader that this one follows."""
        self.bad_photos += earlier.bad_photos
        self.recovered_photos += earlier.recovered_photos
        self.slow_photos += earlier.slow_photos

    def _read_here(self, stretches: Sequence[Stretch]) -> Iterator[tuple[Batch, list[PhotoEvent]]]:
        for stretch in stretches:
            empty = partial(empty_images, pinned=self.pin_memory)
            yield read_stretch(self._reader, stretch, empty)

    def _read_in_threads(
        self, stretches: Sequence[Stretch]
    ) -> Iterator[tuple[Batch, list[PhotoEvent]]]:
        """Each batch is cut into one piece a thread; a few batches are read ahead."""
        pool = ThreadPoolExecutor(self.workers, "inat-loader")
        waiting: deque[_Pending] = deque()
        try:
            for stretch in stretches:
                images = empty_images(
                    len(stretch.photos), self._reader.transform.shape, pinned=self.pin_memory
                )
                waiting.append(_Pending(self._reader, stretch, images, pool, self.workers))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_in_processes(
        self, stretches: Sequence[Stretch]
    ) -> Iterator[tuple[Batch, list[PhotoEvent]]]:
        """Each worker reads whole batches. The workers stay for the next iteration; one that
        begins before this one has ended gets its own."""
        processes, self._processes = self._processes, None
        if processes is None or not _all_alive(processes):
            processes = self._start_processes()
        processes.sampler.stretches = stretches  # type: ignore[attr-defined]
        try:
            with worker_deaths():
                yield from processes
        except GeneratorExit:  # whoever iterates has stopped early
            self._processes = processes
            raise
        # After any other error, a dead worker's too, the next iteration starts new ones.
        self._processes = processes

    def _start_processes(self) -> DataLoader[tuple[Batch, list[PhotoEvent]]]:
        return DataLoader(
            _StretchReader(self._reader),
            batch_size=None,
            sampler=_Stretches(),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            persistent_workers=True,
            worker_init_fn=_own_group,
            # The base seed that DataLoader draws would otherwise move torch's global generator.
            generator=torch.Generator().manual_seed(0),
        )


def _all_alive(processes: DataLoader[tuple[Batch, list[PhotoEvent]]]) -> bool:
    iterator: Any = processes._iterator
    return iterator is None or all(worker.is_alive() for worker in iterator._workers)


def _own_group(_: int) -> None:
    """Ctrl-C and signals to the process group do not reach the workers: the training, which they
    read for, decides. To ignore them would not do: the interpreter ends workers by SIGTERM, and
    waits for them."""
    os.setpgid(0, 0)


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Reports what ended a worker process, or kept its batches from arriving. torch raises its
    error in whatever the main thread does at that moment, so this stands around the use of the
    batches too.

    Raises:
        WorldError: in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        told = f"{error} {error.__cause__ or error.__context__ or ''}"
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # The second where the limit is reached while a batch is received: its descriptors are cut.
        if any(words in told for words in (os.strerror(errno.EMFILE), "items of ancdata")):
            raise WorldError(
                f"the processes that read photos have too many open files; {MORE_FILES}"
            ) from None
        if "DataLoader worker" not in told:
            raise
        by = re.search(r"killed by signal: ([A-Za-z ]+)", told)
        cause = f"was killed by a signal ({by[1].strip()})" if by else "ended unexpectedly"
        raise WorldError(
            f"a process that reads photos {cause}, most often because memory or shared memory "
            "(/dev/shm) ran out; lower data.workers or batch_size, or set data.worker_kind threads"
        ) from None


class _Pending:
    """A batch whose pieces are being read by threads."""

    def __init__(
        self,
        reader: BatchReader,
        stretch: Stretch,
        images: Tensor,
        pool: ThreadPoolExecutor,
        pieces: int,
    ) -> None:
        self._reader = reader
        self._photos = stretch.photos
        self._images = images
        into = images.numpy()
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


class _StretchReader(Dataset[tuple[Batch, list[PhotoEvent]]]):
    """What torch's worker processes hold: its index is a stretch, its element a batch."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitem__(self, stretch: Stretch) -> tuple[Batch, list[PhotoEvent]]:
        return read_stretch(self.reader, stretch, shared_images)


class _Stretches(TorchSampler[Stretch]):
    """What torch hands to the worker processes, one at a time."""

    stretches: Sequence[Stretch] = ()

    def __iter__(self) -> Iterator[Stretch]:
        return iter(self.stretches)

    def __len__(self) -> int:
        return len(self.stretches)


def read_stretch(
    reader: BatchReader, stretch: Stretch, empty: Callable[[int, tuple[int, ...]], Tensor]
) -> tuple[Batch, list[PhotoEvent]]:
    """Reads one batch in the calling thread, into memory that `empty` gives."""
    images = empty(len(stretch.photos), reader.transform.shape)
    events = reader.read(stretch.epoch, stretch.draws, stretch.photos, images.numpy())
    return reader.batch(stretch.photos, images, events), [event for _, event in events]


def empty_images(n_photos: int, shape: tuple[int, ...], *, pinned: bool | None = None) -> Tensor:
    """Room for what each photo takes in a batch, uint8 `[n_photos, *shape]`, pinned for a CUDA
    device; None: where there is one."""
    pinned = torch.cuda.is_available() if pinned is None else pinned
    return torch.empty((n_photos, *shape), dtype=torch.uint8, pin_memory=pinned)


def shared_images(n_photos: int, shape: tuple[int, ...]) -> Tensor:
    """Room for what each photo takes in a batch, uint8 `[n_photos, *shape]`, that goes to another
    process without a copy, as in torch's own default_collate."""
    n_bytes = n_photos * math.prod(shape)
    storage = torch.UntypedStorage._new_shared(n_bytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(n_photos, *shape)


def build_loader(
    split: Split,
    *,
    image_size: int,
    training: bool,
    batch_size: int,
    workers: int | None = None,
    seed: int = 0,
    sampler: str | SamplerConfig | Sampler = "instance",
    epoch_size: int | None = None,
    epochs: int | None = None,
    first_epoch: int = 0,
    recipe: TransformConfig | None = None,
    views: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    worker_kind: WorkerKind = "auto",
    on_bad_photo: Literal["stop", "skip"] = "stop",
    keep_photos: bool = False,
    source: PhotoSource | None = None,
    pin_memory: bool | None = None,
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
        sampler: a name (instance, class_balanced, square_root ...), or a config with the
            sampler's options; training alone.
        epoch_size: draws an epoch; None: what the config or else the sampler says, most often the
            number of photos; training alone.
        epochs: of the training, or of a stage of it; needed by samplers that change during it.
        first_epoch: the one with which these epochs begin.
        recipe: crops, flip and jitter; None: crops of .08-1 of the area, flip .5, jitter .4.
        views: what to show of each photo, such as ten-crop or scales:224,256+flip
            (`inat.loader.views`); instead of `image` a batch then has `views_224` uint8
            `[B, V, 224, 224, 3]`, one for each size; None: one centre crop; evaluation alone.
        rank: number of this process.
        world_size: number of processes; each gets its slice of the same global order.
        worker_kind: threads or processes; auto: threads (the decoders release the GIL).
        on_bad_photo: stop raises at the first photo that cannot be read; skip leaves it out of
            its batch and lists it in `loader.bad_photos`.
        keep_photos: decode every photo once, by threads, and keep it in memory; training needs a
            recipe of crop pad for that. The batches are the same.
        source: the bytes of each photo; None: what lies below the split's root.
        pin_memory: lay batches in memory from which a copy to a CUDA device does not block; None:
            where there is one.

    Raises:
        InputError: a batch size below 1, an unknown sampler, no labels to draw by, draws that
            change over an unknown number of epochs, an epoch smaller than a batch, photos that
            cannot be kept, a bad spec of views.
        WorldError: while iterating, at a photo that cannot be read.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers or 0, 0)):
        if value < least:
            raise InputError(f"{name}: {value} is less than {least}; give {least} or more")
    recipe = recipe or LOADER_RECIPE
    sizes: dict[str, Any] = {"image_size": image_size, "eval_image_size": image_size}
    recipe = TransformConfig(**{**vars(recipe), **sizes})
    if keep_photos:
        _refuse_keeping(split, recipe, training=training)
    transform = _transform(recipe, views, training=training, keep_photos=keep_photos)
    drawn = build_sampler(sampler, split.labels, split.n_classes, epochs) if training else None
    n_draws = len(split) if drawn is None else epoch_size or drawn.epoch_size
    if training and n_draws < batch_size * world_size:
        raise InputError(
            f"an epoch of {n_draws} photos is less than one global batch of "
            f"{batch_size * world_size}; lower batch_size or raise sampler.epoch_size"
        )
    return Loader(
        BatchReader(split, transform, seed, source),
        _order(drawn, n_draws, seed, epochs, first_epoch),
        n_draws=n_draws,
        n_classes=split.n_classes,
        batch_size=batch_size,
        drop_last=training,
        rank=rank,
        world_size=world_size,
        workers=default_workers() if workers is None else workers,
        worker_kind=worker_kind,
        on_bad_photo=on_bad_photo,
        keep_photos=keep_photos,
        pin_memory=pin_memory,
        prior=drawn.prior if drawn else None,
    )


def _transform(
    recipe: TransformConfig, views: str | None, *, training: bool, keep_photos: bool
) -> TrainTransform | EvalTransform | ViewTransform:
    if views is None:
        return TrainTransform(recipe) if training else EvalTransform(recipe)
    if training or keep_photos:
        raise InputError(
            f"views {views!r} are several images of a photo, for predictions; leave views away, "
            "or set training and keep_photos false"
        )
    parsed = parse_views(views, size=recipe.test_size, crop_pct=recipe.test_crop_pct)
    return ViewTransform(parsed)


def _refuse_keeping(split: Split, recipe: TransformConfig, *, training: bool) -> None:
    if training and recipe.crop != "pad":
        raise InputError(
            f"data.keep_photos keeps photos of one size, and transforms.crop {recipe.crop} cuts "
            "from photos of any; set transforms.crop pad or data.keep_photos false"
        )
    refuse_too_many(len(split), recipe.image_size)


def _order(
    sampler: Sampler | None, n_draws: int, seed: int, epochs: int | None, first_epoch: int
) -> Callable[[int], Int64[np.ndarray, "draws"]]:
    if sampler is None:
        return lambda epoch: np.arange(n_draws)
    return lambda epoch: epoch_order(sampler, n_draws, seed, epoch, epochs, first_epoch)


def default_workers() -> int:
    """One worker for each processor that this process may use, at most 16; the processes of a
    machine (LOCAL_WORLD_SIZE, which torchrun sets) share its processors."""
    together = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(usable_processors() // together, MOST_WORKERS))


def to_device(
    batch: Batch,
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = True,
) -> Float[Tensor, "batch 3 height width"]:
    """The batch's images on `device`, normalised, float32.

    Args:
        batch: from a loader; `image` is uint8 `[B, H, W, 3]`.
        device: where to; the copy does not block from pinned memory.
        mean: of each channel, as a share of 255.
        std: of each channel, as a share of 255.
        channels_last: their memory format; else contiguous.
    """
    return normalise(batch["image"], device, mean, std, channels_last=channels_last)


def normalise(
    images: UInt8[Tensor, "batch height width 3"],
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = True,
) -> Float[Tensor, "batch 3 height width"]:
    """Images on `device`, normalised as `to_device` does a batch's."""
    # uint8 crosses the bus. A row of the image is one run of numbers with one run of factors:
    # broadcasting three of them instead takes 4 times as long on a CPU.
    images = images.to(device, non_blocking=True)
    n_images, height, width, channels = images.shape
    scale, shift = _factors(tuple(mean), tuple(std), width, images.device)
    rows = _as_floats(images.view(n_images * height, width * channels))
    torch.addcmul(shift, rows, scale, out=rows)
    # Seen as [B, 3, H, W] the same bytes are channels_last.
    normalised = rows.view(images.shape).permute(0, 3, 1, 2)
    return normalised if channels_last else normalised.contiguous()


@lru_cache(maxsize=32)
def _factors(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a row of pixels is multiplied by, and what is added to it, on the device."""
    with torch.inference_mode(False):  # for training too, whoever asks first
        scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width)
        return scale.to(device), shift.to(device)


def _as_floats(numbers: UInt8[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    if numbers.device.type != "cpu":  # whose own allocator keeps what is freed
        return numbers.float()
    return _normalised_batches.lend(tuple(numbers.shape), torch.float32).copy_(numbers)


_normalised_batches = KeptMemory()

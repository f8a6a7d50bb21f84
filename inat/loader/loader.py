"""Batches of photos, the same for any number of workers and after any resume."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64

from inat.config.schema import TransformConfig
from inat.core.errors import InputError, WorldError
from inat.core.threads import usable_processors
from inat.dataset.split import Split
from inat.loader.batches import Batch
from inat.loader.reader import BatchIndices, BatchReader, PhotoIssue
from inat.loader.transforms import EvalTransform, TrainTransform
from inat.loader.views import ViewTransform, parse_views
from inat.loader.workers import WorkerProcesses, read_here, read_in_threads
from inat.photos.sources import PhotoSource
from inat.samplers import SamplerConfig, build_sampler
from inat.samplers.base import Sampler, epoch_order

WorkerKind = Literal["auto", "threads", "processes"]

MOST_WORKERS = 16

LARGEST_SHARE = 0.5
"""Share of the machine's memory that cached photos may take: training needs the rest."""

LOADER_RECIPE = TransformConfig()
"""The recipe of `build_loader` where none is given: crops of .08-1 of the area, flip .5,
jitter .4; centre crops of .875."""


@dataclass(eq=False)
class Loader:
    """Iterates over the batches of the epoch set last; made by `build_loader`.

    Attributes:
        order: gives the photo of each draw of an epoch.
        n_classes: species that the labels number.
        prior: class prior of the draws; None where the photos have no labels, and where it
            changes during training.
        bad_photos: photos that could not be read, in the order met.
        recovered_photos: photos that were read after a repair.
        slow_photos: photos that took more than a second, from the file to the image.
    """

    reader: BatchReader
    order: Callable[[int], Int64[np.ndarray, "draws"]]
    n_draws: int
    n_classes: int
    batch_size: int
    drop_last: bool
    rank: int
    world_size: int
    workers: int
    worker_kind: WorkerKind
    on_bad_photo: Literal["stop", "skip"]
    keep_photos: bool
    pin_memory: bool
    prior: np.ndarray | None
    bad_photos: list[PhotoIssue] = field(default_factory=list)
    recovered_photos: list[PhotoIssue] = field(default_factory=list)
    slow_photos: list[PhotoIssue] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._epoch = self._start = 0
        self._processes = WorkerProcesses(self.reader, self.workers, pinned=self.pin_memory)

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
        return whole + (not self.drop_last and len(self._own(rest)) > 0)

    def __iter__(self) -> Iterator[Batch]:
        batches, pinned = self._indices(), self.pin_memory
        if self.keep_photos:
            self.reader.fill_cache(self.workers)
        if self.workers == 0 or not self.reader.needs_workers:
            read = read_here(self.reader, batches, pinned=pinned)
        elif self.worker_kind != "processes":
            read = read_in_threads(self.reader, batches, self.workers, pinned=pinned)
        else:
            read = self._processes.read(batches)
        lists = {
            "bad": self.bad_photos, "recovered": self.recovered_photos, "slow": self.slow_photos,
        }  # fmt: skip
        for batch, issues in read:
            for issue in issues:
                if issue.kind == "bad" and self.on_bad_photo == "stop":
                    raise WorldError(
                        f"{issue}; fix or remove the photo, or go on without it (on_bad_photo skip)"
                    )
                lists[issue.kind].append(issue)
            yield batch

    def _indices(self) -> list[BatchIndices]:
        """The draws and photos of each batch that the next iteration gives to this process."""
        order, batches = self.order(self._epoch), []
        for step in range(len(self)):
            first = self._start + step * self.global_batch
            # Whole global batches are cut evenly; a shorter last one too, to within one photo.
            own = self._own(min(self.global_batch, self.n_draws - first))
            draws = range(first + own.start, first + own.stop)
            batches.append(BatchIndices(self._epoch, draws, order[draws.start : draws.stop]))
        return batches

    def _own(self, size: int) -> range:
        return range(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def take_issues(self, earlier: "Loader") -> None:
        """Continues the lists of photos of a loader that this one follows."""
        self.bad_photos += earlier.bad_photos
        self.recovered_photos += earlier.recovered_photos
        self.slow_photos += earlier.slow_photos


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
        sampler: a name (instance, class_balanced, square_root ...), a config with the sampler's
            options, or a sampler of the split's labels; training alone.
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
        if training and recipe.crop != "pad":
            raise InputError(
                f"data.keep_photos keeps photos of one size, and transforms.crop {recipe.crop} "
                "cuts from photos of any; set transforms.crop pad or data.keep_photos false"
            )
        refuse_large_cache(len(split), recipe.image_size)
    transform: TrainTransform | EvalTransform | ViewTransform
    if views is None:
        transform = TrainTransform(recipe) if training else EvalTransform(recipe)
    elif training or keep_photos:
        raise InputError(
            f"views {views!r} are several images of a photo, for predictions; leave views away, "
            "or set training and keep_photos false"
        )
    else:
        parsed = parse_views(views, size=recipe.test_size, crop_pct=recipe.test_crop_pct)
        transform = ViewTransform(parsed)
    drawn = build_sampler(sampler, split.labels, split.n_classes, epochs) if training else None
    n_draws = len(split) if drawn is None else epoch_size or drawn.epoch_size
    if training and n_draws < batch_size * world_size:
        raise InputError(
            f"an epoch of {n_draws} photos is less than one global batch of "
            f"{batch_size * world_size}; lower batch_size or raise sampler.epoch_size"
        )

    def order(epoch: int) -> Int64[np.ndarray, "draws"]:
        if drawn is None:
            return np.arange(n_draws)
        return epoch_order(drawn, n_draws, seed, epoch, epochs, first_epoch)

    return Loader(
        BatchReader(split, transform, seed, source),
        order,
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
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        prior=drawn.prior if drawn else None,
    )


def default_workers() -> int:
    """One worker for each processor that this process may use, at most 16; the processes of a
    machine (LOCAL_WORLD_SIZE, which torchrun sets) share its processors."""
    together = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(usable_processors() // together, MOST_WORKERS))


def refuse_large_cache(n_photos: int, size: int) -> None:
    """Refuses photos that, decoded, would take too much of the machine's memory."""
    memory = machine_memory()
    n_bytes = n_photos * size * size * 3
    if memory is not None and n_bytes > LARGEST_SHARE * memory:
        raise InputError(
            f"data.keep_photos: {n_photos} photos of {size} x {size} pixels take "
            f"{n_bytes / 1e9:.1f} GB, more than {LARGEST_SHARE:.0%} of this machine's "
            f"{memory / 1e9:.1f} GB; set data.keep_photos false"
        )


def machine_memory() -> int | None:
    """Bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None

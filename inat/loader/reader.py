"""Reads the photos of a batch, the same for any worker.

A photo's way from its file into a batch, uint8 all along:

    content = source.read(photo)                          # bytes of the file, or of the pack
    header = read_header(content)                         # its upright size
    boxes = transform.boxes(*header.size, draw, image_id) # the crops, chosen by the draw
    crops, recovered = decode(header, boxes, sizes)       # decoded no larger than they need
    transform.write(crops, draw, out)                     # flip and colors; `out` is its row
"""

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from inat.core.shared_arrays import SharedArray
from inat.core.threads import in_order, stretches
from inat.dataset.split import Split
from inat.loader.batches import Batch
from inat.loader.transforms import Draw, EpochDraws, EvalTransform, TrainTransform, Transform
from inat.loader.views import ViewTransform
from inat.photos.decode import SLOW_SECONDS, BadPhoto, Pixels, decode, read_header
from inat.photos.sources import PhotoSource, open_photos

PHOTOS_AT_ONCE = 256
"""Photos that a thread decodes into the cache before it takes the next."""


@dataclass(frozen=True)
class PhotoIssue:
    """A photo that could not be read (bad), only after a repair (recovered), or only slowly."""

    image_id: int
    path: str
    reason: str
    kind: Literal["bad", "recovered", "slow"]

    def __str__(self) -> str:
        image = f" (image {self.image_id})" if self.image_id >= 0 else ""
        return f"{self.path}{image}: {self.reason}"


class BatchIndices(NamedTuple):
    """A batch to read: draws `draws` of epoch `epoch`, which are these photos."""

    epoch: int
    draws: range
    photos: Int64[np.ndarray, "draws"]

    def part(self, begin: int, end: int) -> "BatchIndices":
        return BatchIndices(self.epoch, self.draws[begin:end], self.photos[begin:end])


def decode_crops(
    content: bytes | memoryview, transform: Transform, draw: Draw, image_id: int
) -> tuple[list[Pixels], str]:
    """The crops of a photo that a transform wants, and what was recovered; raises BadPhoto."""
    header = read_header(content)
    boxes = transform.boxes(*header.size, draw, image_id)
    return decode(header, boxes, transform.sizes, spare=transform.spare)


class BatchReader:
    """Reads the photos of a batch into one array.

    Workers get a copy: of the split it keeps what a batch needs, in memory that they share.
    """

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
        self._cache: SharedArray | None = None  # uint8 [photos, size, size, 3], black if bad
        self._cached_issues: dict[int, list[PhotoIssue]] = {}

    def fill_cache(self, workers: int) -> None:
        """Decodes every photo once, by so many threads; what `read` writes stays the same."""
        if self._cache is not None:
            return
        draw, n_photos = self._draws[0], len(self._labels.array)  # cached crops depend on no draw
        pixels = np.zeros((n_photos, *self.transform.shape), np.uint8)

        def decode_some(photos: range) -> list[tuple[int, list[PhotoIssue]]]:
            return [(n, self._read_photo(n, draw, pixels[n], cached=True)) for n in photos]

        for found in in_order(decode_some, stretches(n_photos, PHOTOS_AT_ONCE), workers):
            self._cached_issues |= {photo: issues for photo, issues in found if issues}
        self._cache = SharedArray(pixels)

    @property
    def needs_workers(self) -> bool:
        """Whether a batch is work for workers: cached photos are cropped and flipped at once."""
        return self._cache is None or not self._cacheable.only_crops

    @property
    def _cacheable(self) -> TrainTransform | EvalTransform:
        assert not isinstance(self.transform, ViewTransform)  # build_loader refuses to cache views
        return self.transform

    def read(self, indices: BatchIndices, into: np.ndarray) -> list[tuple[int, PhotoIssue]]:
        """Writes the photos into the rows of `into`; returns (row, issue) pairs."""
        epoch, draws, photos = indices
        # Read once: a thread of another epoch's iteration may replace it at any time.
        numbers = self._draws
        if numbers.epoch != epoch:
            numbers = self._draws = EpochDraws(self.seed, epoch)
        if self._cache is not None:
            self._cacheable.write_cached(self._cache.array[photos], numbers, draws, into)
            found = [self._cached_issues.get(photo, []) for photo in photos.tolist()]
        else:
            found = [
                self._read_photo(photo, numbers[k], into[row])
                for row, (k, photo) in enumerate(zip(draws, photos.tolist(), strict=True))
            ]
        return [(row, issue) for row, issues in enumerate(found) for issue in issues]

    def _read_photo(
        self, photo: int, draw: Draw, out: np.ndarray, *, cached: bool = False
    ) -> list[PhotoIssue]:
        """Writes a photo into `out`, for the cache as it is decoded."""
        began = time.perf_counter()
        image_id, path = int(self._image_ids.array[photo]), self.source.path(photo)
        try:
            content = self.source.read(photo)
            crops, recovered = decode_crops(content, self.transform, draw, image_id)
        except BadPhoto as error:
            return [PhotoIssue(image_id, path, str(error), "bad")]
        if cached:
            out[:] = crops[0]
        else:
            self.transform.write(crops, draw, out)
        issues = []
        if recovered:
            issues.append(PhotoIssue(image_id, path, recovered, "recovered"))
        seconds = time.perf_counter() - began
        if seconds > SLOW_SECONDS:
            issues.append(PhotoIssue(image_id, path, f"took {seconds:.1f} s", "slow"))
        return issues

    def batch(
        self,
        photos: Int64[np.ndarray, "draws"],
        images: Tensor,
        issues: list[tuple[int, PhotoIssue]],
    ) -> Batch:
        """Leaves out the rows of the unreadable photos."""
        bad = [row for row, issue in issues if issue.kind == "bad"]
        if bad:
            good = np.setdiff1d(np.arange(len(photos)), bad)
            photos, images = photos[good], images[torch.from_numpy(good)]
        views = isinstance(self.transform, ViewTransform) and self.transform.images(images)
        return {
            **(views or {"image": images}),
            "label": torch.from_numpy(self._labels.array[photos]),
            "image_id": torch.from_numpy(self._image_ids.array[photos]),
        }

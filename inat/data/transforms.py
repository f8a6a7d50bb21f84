"""What is done to a photo on its way into a batch, drawn so that draw k is always the same.

Crop, flip and whether a photo is jittered at all are drawn as arrays from (seed, epoch) and
indexed by k. The jitter itself is albumentations', reseeded for each photo it is used on.
"""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from inat.config import TransformConfig
from inat.data.photos import Box, Crop, Pixels, read_crop
from inat.data.samplers import CROPS, TRANSFORM_SEEDS, stream

BLOCK = 1024
ATTEMPTS = 10
N_TRANSFORMS = 1  # albumentations transforms that a recipe can hold: the jitter


class Draw(NamedTuple):
    """The random numbers of one draw.

    Attributes:
        shape: uniform in [0, 1), a row an attempt: area and aspect of the crop.
        place: uniform in [0, 1): top and left of the crop.
        flip: uniform in [0, 1).
        use: uniform in [0, 1), whether each transform is used.
        seeds: seed of each transform.
    """

    shape: Float32[np.ndarray, "attempts 2"]
    place: Float32[np.ndarray, "2"]
    flip: float
    use: Float32[np.ndarray, "transforms"]
    seeds: np.ndarray


class EpochDraws:
    """The random numbers of all draws of an epoch, made a block at a time when they are asked for.

    A block's generator is keyed by (seed, epoch, block): reading draw k costs the same anywhere
    in the epoch, and no worker holds more than a block.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed = seed
        self.epoch = epoch
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    def __getitem__(self, k: int) -> Draw:
        # Threads share this object: they read the tuple once, and replace it as a whole.
        block = self._block
        if block is None or block[0] != k // BLOCK:
            block = self._block = self._make(k // BLOCK)
        numbers, seeds = block[1][k % BLOCK], block[2][k % BLOCK]
        shape = numbers[: 2 * ATTEMPTS].reshape(ATTEMPTS, 2)
        rest = numbers[2 * ATTEMPTS :]
        return Draw(shape, rest[:2], float(rest[2]), rest[3:], seeds)

    def _make(self, block: int) -> tuple[int, np.ndarray, np.ndarray]:
        n_columns = 2 * ATTEMPTS + 3 + N_TRANSFORMS
        crops = stream(self.seed, self.epoch, CROPS, block)
        seeds = stream(self.seed, self.epoch, TRANSFORM_SEEDS, block)
        return (
            block,
            crops.random((BLOCK, n_columns), np.float32),
            seeds.integers(2**63, size=(BLOCK, N_TRANSFORMS)),
        )


def random_resized_crop(
    height: int, width: int, draw: Draw, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A crop of random area and aspect at a random place (Szegedy et al. 2015).

    As torchvision draws it: area uniform in `scale`, aspect log-uniform in `ratio`, up to ten
    attempts until it fits, else the largest centre crop of an allowed aspect.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for u_area, u_aspect in draw.shape.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        aspect = math.exp(low + (high - low) * u_aspect)
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draw.place[0] * (height - crop_height + 1))
            left = int(draw.place[1] * (width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def centre_crop(height: int, width: int, crop_pct: float) -> Box:
    """The centre square whose side is `crop_pct` of the short side."""
    side = min(height, width) * crop_pct
    return Box((height - side) / 2, (width - side) / 2, side, side)


class TrainTransform:
    """Random crop, flip and jitter of one photo; the same for the same draw."""

    def __init__(self, recipe: TransformConfig) -> None:
        self.recipe = recipe
        self.size = recipe.image_size
        self._local = threading.local()

    def __call__(self, content: bytes, draw: Draw) -> Crop:
        recipe = self.recipe
        crop = read_crop(
            content,
            lambda h, w: random_resized_crop(h, w, draw, recipe.scale, recipe.ratio),
            self.size,
        )
        pixels = crop.pixels
        if draw.flip < recipe.flip:
            pixels = pixels[:, ::-1]
        if recipe.jitter and draw.use[0] < recipe.jitter_probability:
            pixels = self._jitter(np.ascontiguousarray(pixels), int(draw.seeds[0]))
        return Crop(pixels, crop.recovered)

    def _jitter(self, pixels: Pixels, seed: int) -> Pixels:
        transform = self._transform()
        transform.set_random_seed(seed)
        jittered: Pixels = transform(image=pixels)["image"]
        return jittered

    def _transform(self) -> Any:
        # One object a thread: an albumentations transform keeps its generators in itself.
        if not hasattr(self._local, "transform"):
            with _albumentations() as albumentations:
                strength = self.recipe.jitter
                self._local.transform = albumentations.ColorJitter(
                    brightness=(1 - strength, 1 + strength),
                    contrast=(1 - strength, 1 + strength),
                    saturation=(1 - strength, 1 + strength),
                    hue=(0, 0),
                    p=1,
                )
        return self._local.transform

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class EvalTransform:
    """The resized centre crop of one photo."""

    def __init__(self, recipe: TransformConfig) -> None:
        self.recipe = recipe
        self.size = recipe.test_size

    def __call__(self, content: bytes, draw: Draw) -> Crop:
        del draw  # nothing is random here
        return read_crop(content, lambda h, w: centre_crop(h, w, self.recipe.crop_pct), self.size)


_importing = threading.Lock()


@contextmanager
def _albumentations() -> Iterator[Any]:
    """Imports albumentations without the question to its server that an import asks."""
    with _importing:
        before = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        try:
            import albumentations

            yield albumentations
        finally:
            if before is None:
                del os.environ["NO_ALBUMENTATIONS_UPDATE"]
            else:
                os.environ["NO_ALBUMENTATIONS_UPDATE"] = before

"""What is done to a photo on its way into a batch, drawn so that draw k is always the same.

Crop, flip, jitter and whether a transform is used at all are drawn as arrays from (seed, epoch)
and indexed by k. What follows the jitter is albumentations', reseeded for each photo it is used on.
"""

import math
import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from inat.config.schema import TransformConfig
from inat.photos.decode import BadPhoto, Box, Pixels
from inat.samplers.base import CROPS, TRANSFORM_SEEDS, stream

BLOCK = 1024
BLOCKS_KEPT = 4  # threads that read ahead stand in neighbouring blocks
ATTEMPTS = 10
EXTRAS = ("blur", "grayscale")
"""The albumentations transforms of a recipe, each a probability in `transforms`."""

EVAL_SPARE = 1.5
"""How much larger than the test image its JPEG is decoded at least (see `decode`)."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey of a pixel (ITU-R BT.601)."""


class Draw(NamedTuple):
    shape: Float32[np.ndarray, "attempts 2"]  # area and aspect of the crop, uniform
    place: Float32[np.ndarray, "2"]  # uniform in [0, 1): top and left of the crop
    flip: float  # uniform in [0, 1)
    # uniform in [0, 1): whether there is one; brightness, contrast, saturation
    jitter: Float32[np.ndarray, "4"]
    use: Float32[np.ndarray, "extras"]  # uniform in [0, 1), whether each of `EXTRAS` is used
    seeds: np.ndarray  # seed of each of `EXTRAS`, and last that of the policy


class EpochDraws:
    """The random numbers of all draws of an epoch, made a block at a time when they are asked for.

    A block's generator is keyed by (seed, epoch, block): reading draw k costs the same anywhere
    in the epoch, and no worker holds more than a few blocks.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed = seed
        self.epoch = epoch
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getitem__(self, k: int) -> Draw:
        number, row = divmod(k, BLOCK)
        block = self._block(number)
        numbers, seeds = block[0][row], block[1][row]
        shape = numbers[: 2 * ATTEMPTS].reshape(ATTEMPTS, 2)
        rest = numbers[2 * ATTEMPTS :]
        return Draw(shape, rest[:2], float(rest[2]), rest[3:7], rest[7:], seeds)

    def places_and_flips(
        self, draws: range
    ) -> tuple[Float32[np.ndarray, "draws 2"], Float64[np.ndarray, "draws"]]:
        first = draws.start // BLOCK
        blocks = [self._block(number)[0] for number in range(first, draws.stop // BLOCK + 1)]
        begin = draws.start - first * BLOCK
        numbers = np.concatenate(blocks)[begin : begin + len(draws), 2 * ATTEMPTS :]
        # In double precision, as a single draw's: a probability is compared with it.
        return numbers[:, :2], numbers[:, 2].astype(np.float64)

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        # Threads share this object: they read the dict once, and replace it as a whole.
        block = self._blocks.get(number)
        if block is None:
            n_columns = 2 * ATTEMPTS + 7 + len(EXTRAS)
            crops = stream(self.seed, self.epoch, CROPS, number)
            seeds = stream(self.seed, self.epoch, TRANSFORM_SEEDS, number)
            block = (
                crops.random((BLOCK, n_columns), np.float32),
                seeds.integers(2**63, size=(BLOCK, len(EXTRAS) + 1)),
            )
            kept = list(self._blocks.items())[1 - BLOCKS_KEPT :]
            self._blocks = dict([*kept, (number, block)])
        return block


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


def pad_crops(
    photos: UInt8[np.ndarray, "photos size size 3"],
    places: Float32[np.ndarray, "photos 2"],
    pad: int,
) -> UInt8[np.ndarray, "photos size size 3"]:
    """A crop of each photo in its own size, from the photo with a border of `pad` zero pixels.

    The augmentation of CIFAR (He et al. 2016, sec. 4.2). `places` are top and left, in [0, 1).
    """
    n_photos, size = photos.shape[:2]
    # np.pad takes 3 times as long.
    padded = np.zeros((n_photos, size + 2 * pad, size + 2 * pad, 3), np.uint8)
    padded[:, pad : pad + size, pad : pad + size] = photos
    # 2 pad + 1 is odd, so that even the largest number below 1 is not rounded up to it.
    tops, lefts = (places * np.float32(2 * pad + 1)).astype(np.int64).T
    # All crops of all photos, as one view: [photos, tops, lefts, 1, size, size, 3].
    windows = sliding_window_view(padded, (size, size, 3), axis=(1, 2, 3))
    crops: np.ndarray = windows[np.arange(n_photos), tops, lefts, 0]
    return crops


def centre_crop(height: int, width: int, crop_pct: float) -> Box:
    """The centre square whose side is `crop_pct` of the short side."""
    side = min(height, width) * crop_pct
    return Box((height - side) / 2, (width - side) / 2, side, side)


def jitter_matrix(
    brightness: float, contrast: float, saturation: float, channel_means: Sequence[float]
) -> Float32[np.ndarray, "3 4"]:
    """Brightness, contrast and saturation jitter as one affine map of a pixel's color; a factor of
    1 changes nothing.

    Each is a blend, as in torchvision's ColorJitter: with black, with the photo's mean gray, with
    the pixel's own gray. Blends of colors are affine, and these three commute, since none moves
    another's anchor; so one pass rounds and clips once, where three would do so three times.
    """
    # Plain numbers: on a dozen of them NumPy would cost as much as the map itself.
    strength = brightness * contrast
    own = strength * saturation
    red, green, blue = (strength * (1 - saturation) * weight for weight in LUMA)
    mean_grey = sum(weight * mean for weight, mean in zip(LUMA, channel_means, strict=True))
    shift = (1 - contrast) * brightness * mean_grey
    rows = (
        (red + own, green, blue, shift),
        (red, green + own, blue, shift),
        (red, green, blue + own, shift),
    )
    return np.array(rows, np.float32)


@runtime_checkable  # beartype checks it while tests run
class Transform(Protocol):
    """What happens to a photo between its file and its place in a batch (see `loader.reader`)."""

    shape: tuple[int, ...]  # of a photo's place in a batch, uint8
    sizes: list[int]  # side of each crop that is decoded, in pixels
    spare: float  # how much larger than that a JPEG is decoded at least (`photos.decode.decode`)

    def boxes(self, height: int, width: int, draw: Draw, image_id: int) -> list[Box]:
        """The crops of an upright photo of this size."""

    def write(self, crops: list[Pixels], draw: Draw, out: np.ndarray) -> None:
        """Writes the decoded crops into the photo's place in the batch."""


class TrainTransform:
    """Random crop, flip and colors of one photo; the same for the same draw."""

    spare = 1.0

    def __init__(self, recipe: TransformConfig) -> None:
        self.recipe = recipe
        self.size = recipe.image_size
        self.sizes = [self.size]
        self.shape: tuple[int, ...] = (self.size, self.size, 3)
        changes_colors = recipe.jitter or recipe.policy != "none"
        # whether nothing but crop and flip is done to a photo
        self.only_crops = not (changes_colors or any(getattr(recipe, name) for name in EXTRAS))
        self._local = threading.local()

    def boxes(self, height: int, width: int, draw: Draw, image_id: int) -> list[Box]:
        """One random crop; with crop pad the whole photo, which must be of the image size
        (BadPhoto)."""
        del image_id
        recipe = self.recipe
        if recipe.crop != "pad":
            return [random_resized_crop(height, width, draw, recipe.scale, recipe.ratio)]
        if (height, width) != (self.size, self.size):
            raise BadPhoto(
                f"{width} x {height} pixels, and transforms.crop pad takes "
                f"{self.size} x {self.size} alone"
            )
        return [Box(0, 0, height, width)]

    def write(self, crops: list[Pixels], draw: Draw, out: Pixels) -> None:
        (pixels,) = crops
        if self.recipe.crop == "pad":
            pixels = pad_crops(pixels[None], draw.place[None], self.recipe.pad)[0]
        self._write_colored(pixels, draw, out)

    def write_cached(
        self,
        photos: UInt8[np.ndarray, "draws size size 3"],
        numbers: EpochDraws,
        draws: range,
        out: UInt8[np.ndarray, "draws size size 3"],
    ) -> None:
        """From whole photos, as crop pad takes them."""
        places, flips = numbers.places_and_flips(draws)
        crops = pad_crops(photos, places, self.recipe.pad)
        if not self.only_crops:
            for row, k in enumerate(draws):
                self._write_colored(crops[row], numbers[k], out[row])
            return
        out[:] = crops
        flipped = flips < self.recipe.flip
        if flipped.any():
            # As one tall image: NumPy's own reversed copy takes ten times as long.
            tall = cv2.flip(crops[flipped].reshape(-1, self.size, 3), 1)
            out[flipped] = tall.reshape(-1, *crops.shape[1:])

    def _write_colored(self, pixels: Pixels, draw: Draw, out: Pixels) -> None:
        recipe = self.recipe
        if recipe.policy != "none":
            # It brings torchvision, whose import takes as long as torch's own.
            from inat.loader.policies import apply_steps, draw_steps

            rng = np.random.Generator(np.random.Philox(int(draw.seeds[-1])))
            pixels = apply_steps(pixels, draw_steps(recipe, rng))
        if recipe.jitter and draw.jitter[0] < recipe.jitter_probability:
            brightness, contrast, saturation = (
                1 + recipe.jitter * (2 * u - 1) for u in draw.jitter[1:].tolist()
            )
            matrix = jitter_matrix(brightness, contrast, saturation, cv2.mean(pixels)[:3])
            pixels = cv2.transform(pixels, matrix)
        for place, name in enumerate(EXTRAS):
            if draw.use[place] < getattr(recipe, name):
                # One object per thread: an albumentations transform keeps its own generators.
                if not hasattr(self._local, name):
                    setattr(self._local, name, _extra(name))
                transform = getattr(self._local, name)
                transform.set_random_seed(int(draw.seeds[place]))
                pixels = transform(image=pixels)["image"]
        if draw.flip < recipe.flip:
            pixels = cv2.flip(pixels, 1, dst=out)
        if pixels is not out:
            out[:] = pixels

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class EvalTransform:
    """The resized center crop of one photo; nothing is random."""

    only_crops = True
    spare = EVAL_SPARE

    def __init__(self, recipe: TransformConfig) -> None:
        self.recipe = recipe
        self.size = recipe.test_size
        self.sizes = [self.size]
        self.shape: tuple[int, ...] = (self.size, self.size, 3)

    def boxes(self, height: int, width: int, draw: Draw, image_id: int) -> list[Box]:
        del draw, image_id
        return [centre_crop(height, width, self.recipe.test_crop_pct)]

    def write(self, crops: list[Pixels], draw: Draw, out: Pixels) -> None:
        del draw
        out[:] = crops[0]

    def write_cached(
        self,
        photos: UInt8[np.ndarray, "draws size size 3"],
        numbers: EpochDraws,
        draws: range,
        out: UInt8[np.ndarray, "draws size size 3"],
    ) -> None:
        """The cached crops are the images."""
        del numbers, draws
        out[:] = photos


_importing = threading.Lock()


def _extra(name: str) -> Any:
    with _importing:
        # Else its import asks its server for a newer version.
        before = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        try:
            import albumentations
        finally:
            if before is None:
                del os.environ["NO_ALBUMENTATIONS_UPDATE"]
            else:
                os.environ["NO_ALBUMENTATIONS_UPDATE"] = before
    if name == "blur":  # SimCLR's (Chen et al. 2020, appendix A)
        return albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=1)
    return albumentations.ToGray(p=1)

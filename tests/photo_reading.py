"""Photos decoded by the kit's plain calls, in one."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inat.loader.reader import decode_crops
from inat.loader.transforms import Draw, Transform
from inat.photos.decode import Box, Pixels, decode, decode_whole, read_header

Choose = Callable[[int, int], Box]


class Decoded(NamedTuple):
    """Pixels, and what was recovered."""

    pixels: Pixels
    recovered: str


class Whole(NamedTuple):
    """A whole photo, its upright size, and that before EXIF turned it."""

    pixels: Pixels
    recovered: str
    size: tuple[int, int]
    stored_size: tuple[int, int]


def read_crop(
    content: bytes | memoryview, choose: Choose, size: int, *, spare: float = 1.0
) -> Decoded:
    """One crop, chosen by height and width of the upright photo."""
    header = read_header(content)
    (pixels,), recovered = decode(header, [choose(*header.size)], [size], spare=spare)
    return Decoded(pixels, recovered)


def read_whole(content: bytes | memoryview, factor: int = 1) -> Whole:
    """The whole photo; a JPEG at 1 / factor of its size."""
    header = read_header(content)
    pixels, recovered = decode_whole(header, factor)
    return Whole(pixels, recovered, header.size, header.stored_size)


def transformed(
    transform: Transform, content: bytes | memoryview, draw: Draw, image_id: int = 0
) -> Decoded:
    """What a transform writes into a batch."""
    out = np.zeros(transform.shape, np.uint8)
    crops, recovered = decode_crops(content, transform, draw, image_id)
    transform.write(crops, draw, out)
    return Decoded(out, recovered)

"""From the bytes of a photo to an RGB crop: crop first, then decode no more than it needs."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

LARGEST_PHOTO = 80_000_000
"""Pixels; a photo whose header asks for more is refused before it is decoded. The largest
camera photos have 60 million, and Pillow warns from 89 million on."""

MOST_SCANS = 500
"""Scans of a progressive JPEG; cameras write about 10, a file made to be slow has thousands."""

# An MPO is opened by the JPEG reader; Pillow has none of that name and would raise at it.
PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
"""Endings, in lower case, of the files that a search for photos takes."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")

# Height and width have no names: a crop comes out of its function in another size.
Pixels = UInt8[np.ndarray, "_ _ 3"]


class BadPhoto(Exception):
    """A photo that cannot be used; the text is the reason."""


class Box(NamedTuple):
    """A crop in pixels of the upright photo; may be fractional."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class Crop:
    """A decoded crop.

    Attributes:
        pixels: RGB, `[size, size, 3]`.
        recovered: what was wrong with a file that could be decoded all the same, or "".
    """

    pixels: Pixels
    recovered: str


def read_crop(content: bytes, choose: Callable[[int, int], Box], size: int) -> Crop:
    """Decodes one square crop of a photo.

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 at which the crop is no
    smaller than `size`; the rest of the way is resized with an area filter, so that no pixel of
    the crop is skipped.

    Args:
        content: the file's bytes; the format is told from them, not from a name.
        choose: called with the upright photo's height and width, gives the crop.
        size: side of the result, in pixels.

    Raises:
        BadPhoto: the file is empty, no photo, cut off, or too large.
    """
    if not content:
        raise BadPhoto("the file is empty")
    if content[:3] == b"\xff\xd8\xff":
        return _read_jpeg_crop(content, choose, size)
    upright = _read_with_pillow(content)
    return Crop(_resized(upright, choose(*upright.shape[:2]), size), "")


def _read_jpeg_crop(content: bytes, choose: Callable[[int, int], Box], size: int) -> Crop:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError as error:
        raise BadPhoto(f"broken JPEG header: {error}") from None
    _refuse_enormous(height, width)
    if content.count(b"\xff\xda") > MOST_SCANS:
        raise BadPhoto(f"more than {MOST_SCANS} scans; save it as an ordinary JPEG")
    orientation = _orientation(content)
    turned = orientation >= 5
    box = choose(width, height) if turned else choose(height, width)
    if colorspace in ("CMYK", "YCCK"):
        # Only Pillow knows that these files store inverted ink.
        return Crop(_resized(_read_with_pillow(content), box, size), "")
    factor = _decode_factor(box, size)
    pixels, recovered = _decode_jpeg(content, height, width, factor)
    upright = _upright(pixels, orientation)
    scale_y = upright.shape[0] / (width if turned else height)
    scale_x = upright.shape[1] / (height if turned else width)
    scaled = Box(box.top * scale_y, box.left * scale_x, box.height * scale_y, box.width * scale_x)
    return Crop(_resized(upright, scaled, size), recovered)


def _decode_factor(box: Box, size: int) -> int:
    # Only powers of two: libjpeg's 5/8, 6/8 and 7/8 cost more than a whole decode.
    room = min(box.height, box.width) / size
    return 8 if room >= 8 else 4 if room >= 4 else 2 if room >= 2 else 1


def _decode_jpeg(content: bytes, height: int, width: int, factor: int) -> tuple[Pixels, str]:
    scale = {
        "min_height": -(-height // factor),
        "min_width": -(-width // factor),
        "min_factor": factor,
    }
    try:
        return simplejpeg.decode_jpeg(content, "RGB", **scale), ""
    except ValueError as error:
        reason = str(error)
    # Strict decoding refuses files that every viewer opens whole. Two kinds are whole: those
    # that only lack the end marker, and those with stray bytes between the segments.
    try:
        if "Premature end of JPEG file" in reason:
            return simplejpeg.decode_jpeg(content + b"\xff\xd9", "RGB", **scale), "no end marker"
        if "extraneous bytes" in reason and _has_end_marker(content):
            return simplejpeg.decode_jpeg(content, "RGB", strict=False, **scale), "stray bytes"
    except ValueError as error:
        reason = str(error)
    raise BadPhoto("cut off or damaged: " + reason)


def _has_end_marker(content: bytes) -> bool:
    """Whether the last scan ends: without `strict`, stray bytes would excuse a cut-off file."""
    return content.find(b"\xff\xd9", content.rfind(b"\xff\xda")) > 0


def _orientation(content: bytes) -> int:
    """EXIF orientation 1..8; 1 (upright) where the file does not say."""
    if b"Exif\0" not in content[:200_000]:
        return 1
    try:
        orientation = Image.open(io.BytesIO(content), formats=FORMATS).getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block does not make the photo unreadable
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation >= 5:  # 5 to 8 swap the axes
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _read_with_pillow(content: bytes) -> Pixels:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _refuse_enormous(image.height, image.width)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"more than {LARGEST_PHOTO} pixels") from None
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(f"no photo of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's readers raise nearly everything on broken files
        raise BadPhoto(f"no photo, or damaged: {' '.join(str(error).split())}") from None
    return _eight_bit_rgb(image)


def _eight_bit_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image.convert("RGB"))


def _refuse_enormous(height: int, width: int) -> None:
    if height * width > LARGEST_PHOTO:
        raise BadPhoto(f"{width} x {height} are more than {LARGEST_PHOTO} pixels")


def _resized(pixels: Pixels, box: Box, size: int) -> Pixels:
    height, width = pixels.shape[:2]
    top = min(max(round(box.top), 0), height - 1)
    left = min(max(round(box.left), 0), width - 1)
    bottom = min(max(round(box.top + box.height), top + 1), height)
    right = min(max(round(box.left + box.width), left + 1), width)
    crop = pixels[top:bottom, left:right]
    # INTER_AREA is a filter only where both axes shrink; so the axes that shrink go first.
    shrunk = (min(size, crop.shape[1]), min(size, crop.shape[0]))
    if shrunk != crop.shape[1::-1]:
        crop = cv2.resize(crop, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(crop)

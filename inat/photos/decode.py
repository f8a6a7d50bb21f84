"""From the bytes of a photo to RGB crops: choose the crops first, then decode only what they need.

header = read_header(content)  # the size, which the crops are chosen by
crops, recovered = decode(header, boxes, sizes)
"""

import io
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from inat.photos.jpeg import (
    MOST_SCANS,
    SCAN_MARKERS,
    Damaged,
    Scans,
    mended,
    segments,
    without_oddities,
)
from inat.photos.search import FORMATS

LARGEST_PHOTO = 80_000_000
"""Pixels that are decoded; a photo whose header asks for more is refused before. A larger JPEG is
decoded at a smaller scale."""

LARGEST_JPEG = 250_000_000
"""Pixels of a JPEG before it is scaled. Phones write 200 million."""

LARGEST_PROGRESSIVE = 120_000_000
"""Pixels of a JPEG in several scans: at any scale the decoder keeps all its coefficients, up to 6
bytes for each pixel."""

LARGEST_ROOM = 16_000_000
"""Bytes of a picture for which a thread keeps the memory from photo to photo."""

SLOW_SECONDS = 1.0
"""A photo that takes longer to read and decode is reported: an epoch of such ones would crawl."""

SAMPLE_FORMAT = 339
"""TIFF tag: 1 unsigned (also where it is missing), 2 signed, 3 floating point."""

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


class Header(NamedTuple):
    size: tuple[int, int]  # height and width of the upright photo
    stored_size: tuple[int, int]  # height and width before EXIF turns it
    content: bytes | memoryview  # the file's bytes; of a JPEG with its headers put in order
    orientation: int = 1  # of EXIF, 1..8
    complete: bool = True  # whether a JPEG's scans bring all coefficients
    recovered: str = ""  # what is wrong with headers that can be read all the same, or ""
    pixels: Pixels | None = None  # the upright photo, if only Pillow decodes it


def read_header(content: bytes | memoryview) -> Header:
    """Reads the header of a JPEG; decodes a photo of any other format, which Pillow does. The bytes
    decide the format. Raises BadPhoto."""
    if not len(content):
        raise BadPhoto("the file is empty")
    if content[:3] != b"\xff\xd8\xff":
        upright, stored_size = _read_with_pillow(content)
        return Header(upright.shape[:2], stored_size, content, pixels=upright)
    orientation, scans = 1, Scans()
    for segment in segments(content):
        marker, _, begin, end = segment
        if marker == 0xE1 and content[begin : begin + 6] == b"Exif\0\0" and not scans.n:
            orientation = _orientation(bytes(content[begin:end]))
        if marker in SCAN_MARKERS:  # only these: a photo has a dozen others
            scans.see(content, segment)
        # In an ordinary photo a search behind the first scan would cost a tenth of the decoding.
        if scans.one:
            break
        if scans.n > MOST_SCANS:
            raise BadPhoto(f"more than {MOST_SCANS} scans; save it as an ordinary JPEG")
    in_order, recovered = content, ""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        in_order, recovered = without_oddities(bytes(content)), "odd header"
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(in_order)
        except ValueError as error:
            raise BadPhoto(f"broken JPEG header: {error}") from None
    _refuse_enormous(height, width, LARGEST_JPEG if scans.one else LARGEST_PROGRESSIVE)
    size = (width, height) if orientation >= 5 else (height, width)
    # Only Pillow knows that CMYK files store inverted ink.
    pixels = _read_with_pillow(content)[0] if colorspace in ("CMYK", "YCCK") else None
    return Header(size, (height, width), in_order, orientation, scans.complete, recovered, pixels)


def decode(
    header: Header, boxes: Sequence[Box], sizes: Sequence[int], *, spare: float = 1.0
) -> tuple[list[Pixels], str]:
    """Decodes a photo once and resizes crops of it to squares of these sizes, RGB, in pixels.

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 at which every crop is still
    `spare` times as large as its result; the crops' edges are then rounded to pixels of that
    scale. Its own half scale is sharper than a resize to half; with `spare` 1.5 it is resized
    enough afterwards for the difference not to count. The rest of the way is an antialiased
    bilinear resize, Pillow's to within rounding, so that no pixel of a crop is skipped.

    Also returns what was wrong with a file that could be decoded all the same, or "". Raises
    BadPhoto if the file is cut off or damaged.
    """
    factor = min(decode_factor(box, size, spare) for box, size in zip(boxes, sizes, strict=True))
    pixels, recovered, factor = _decode_at(header, factor)
    if factor > 1:
        boxes = [Box(*(side / factor for side in box)) for box in boxes]
    crops = [_resized(pixels, box, size) for box, size in zip(boxes, sizes, strict=True)]
    return crops, recovered


def decode_whole(header: Header, factor: int) -> tuple[Pixels, str]:
    """Decodes a whole photo, a JPEG at 1 / factor (1, 2, 4, 8) of its size; its entropy-coded data
    are read to the end at any scale.

    The upright photo, RGB, may be overwritten by the next one that the thread decodes. Also returns
    what was wrong with a file that could be decoded all the same, or "". Raises BadPhoto if it is
    cut off or damaged.
    """
    pixels, recovered, _ = _decode_at(header, factor)
    return pixels, recovered


def decode_factor(box: Box, size: int, spare: float) -> int:
    """The scale, 1 / factor, at which a JPEG is decoded for a crop."""
    # Only powers of two: libjpeg's 5/8, 6/8 and 7/8 cost more than a whole decode.
    room = min(box.height, box.width) / (size * spare)
    return 8 if room >= 8 else 4 if room >= 4 else 2 if room >= 2 else 1


def shrink(pixels: Pixels, height: int, width: int) -> Pixels:
    """Antialiased, as crops are."""
    return _antialiased(np.ascontiguousarray(pixels), height, width)


def _decode_at(header: Header, factor: int) -> tuple[Pixels, str, int]:
    """The upright photo, what was recovered, and the factor, which a limit may have raised."""
    if header.pixels is not None:
        return header.pixels, header.recovered, 1
    (height, width), content = header.stored_size, header.content
    while -(-height // factor) * -(-width // factor) > LARGEST_PHOTO:
        factor *= 2
    scale = {
        "min_height": -(-height // factor),
        "min_width": -(-width // factor),
        "min_factor": factor,
        "buffer": _room("decoded", -(-height // factor) * -(-width // factor) * 3),
    }
    recovered = header.recovered
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", **scale)
        if not header.complete:
            recovered = f"{recovered}, unfinished scans" if recovered else "unfinished scans"
    except ValueError as error:
        # Strict decoding refuses files that every viewer opens whole.
        if height * width > LARGEST_PHOTO:
            raise BadPhoto(f"cut off or damaged: {error}") from None
        in_order = without_oddities(bytes(content))
        try:
            whole, recovered = mended(in_order, lambda data: simplejpeg.decode_jpeg(data, "RGB"))
            pixels = simplejpeg.decode_jpeg(whole, "RGB", **scale)
        except (Damaged, ValueError) as fault:
            raise BadPhoto(f"cut off or damaged: {fault}") from None
        recovered = recovered or "odd header"
    if header.orientation >= 5:  # 5 to 8 swap the axes
        pixels = pixels.transpose(1, 0, 2)
    if header.orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if header.orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels, recovered, factor


def _orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(0x0112, 1)
    except Exception:  # a broken EXIF block does not make the photo unreadable
        return 1
    return orientation if orientation in range(1, 9) else 1


def _read_with_pillow(content: bytes | memoryview) -> tuple[Pixels, tuple[int, int]]:
    """The upright photo, and its height and width before EXIF turned it."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        stored_size = (image.height, image.width)
        _refuse_enormous(image.height, image.width, LARGEST_PHOTO)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _eight_bit_rgb(image), stored_size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"more than {LARGEST_PHOTO} pixels") from None
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(f"no photo of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's readers raise nearly everything on broken files
        raise BadPhoto(f"no photo, or damaged: {' '.join(str(error).split())}") from None


def _eight_bit_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_eight_bit_grey(image)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _eight_bit_grey(image: Image.Image) -> UInt8[np.ndarray, "_ _"]:
    """Grey of 16 or 32 bits, or of floats, in 8 bits.

    White is the largest number of 16 bits. Files of 32 bits and of floats do not say what white
    is; it is the smallest of the usual values that no pixel exceeds: 1 (floats alone), 255,
    65,535, the largest number of 32 bits. What is negative is black.
    """
    grey = np.asarray(image)
    if image.mode == "F":
        grey = np.nan_to_num(grey.astype(np.float64), posinf=0, neginf=0)
        white = next((w for w in (1.0, 255.0, 65535.0) if grey.max() <= w), grey.max())
        scaled = grey * (255 / white) + 0.5
    else:
        bits = 16
        if image.mode == "I":
            if getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (1,))[0] == 1:
                grey = grey.view(np.uint32)  # Pillow keeps unsigned numbers as signed ones
            all_bits = 32 if grey.dtype == np.uint32 else 31
            bits = next((n for n in (8, 16) if grey.max() < 1 << n), all_bits)
        scaled = grey.astype(np.int64) >> (bits - 8)
    eight: UInt8[np.ndarray, "_ _"] = np.clip(scaled, 0, 255).astype(np.uint8)
    return eight


def _refuse_enormous(height: int, width: int, most: int) -> None:
    if height * width > most:
        raise BadPhoto(f"{width} x {height} are more than {most} pixels")


def _resized(pixels: Pixels, box: Box, size: int) -> Pixels:
    height, width = pixels.shape[:2]
    top = min(max(round(box.top), 0), height - 1)
    left = min(max(round(box.left), 0), width - 1)
    bottom = min(max(round(box.top + box.height), top + 1), height)
    right = min(max(round(box.left + box.width), left + 1), width)
    view = pixels[top:bottom, left:right]
    if view.shape[:2] == (size, size):
        return np.array(view)
    # Copied by NumPy: torch would copy with its own threads, which disturb those of a loader.
    crop = _room("crop", view.size).reshape(view.shape)
    crop[:] = view
    return _antialiased(crop, size, size)


def _antialiased(pixels: Pixels, height: int, width: int) -> Pixels:
    import torch  # here: help and checks of a command line never wait for it
    from torch.nn.functional import interpolate

    # Seen as [1, 3, H, W] the same bytes are channels_last. On uint8 this is the vector code
    # that Pillow-SIMD brought: 4 to 6 times as fast as Pillow or OpenCV's INTER_AREA.
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = interpolate(images, (height, width), mode="bilinear", antialias=True)
    out: Pixels = resized.permute(0, 2, 3, 1)[0].numpy()
    return out


_rooms = threading.local()


def _room(name: str, n_bytes: int) -> UInt8[np.ndarray, "_"]:
    """Bytes to write to, the same for each photo that a thread reads.

    A fresh megabyte costs its page faults: measured, half the time of decoding a small JPEG.
    """
    if n_bytes > LARGEST_ROOM:
        return np.empty(n_bytes, np.uint8)
    room: np.ndarray | None = getattr(_rooms, name, None)
    if room is None or len(room) < n_bytes:
        room = np.empty(n_bytes, np.uint8)
        setattr(_rooms, name, room)
    return room[:n_bytes]

"""From bytes to a crop: what is read, what is recovered, what is refused and in which words."""

import io
import re
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from inat.data import photos
from inat.data.photos import MOST_SCANS, BadPhoto, Box, read_crop

HEIGHT, WIDTH = 96, 128


def smooth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Three slow gradients: no corner is like another."""
    y, x = np.mgrid[:height, :width]
    bands = (250 * x / width, 250 * y / height, 60 + 120 * (x / width) * (y / height))
    return np.stack(bands, axis=2).astype(np.uint8)


def textured(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Gradients with stripes and grain, as feathers and leaves have them."""
    y, x = np.mgrid[:height, :width]
    stripes = 50 * np.sin(x / 1.7) * np.sin((x + 2 * y) / 3.1)
    grain = np.random.default_rng(0).normal(0, 15, (height, width, 3))
    return np.clip(smooth(height, width) * 0.6 + 50 + stripes[:, :, None] + grain, 0, 255).astype(
        np.uint8
    )


def jpeg(pixels: np.ndarray) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95)
    return content


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def middle(height: int, width: int) -> Box:
    """A square of 32 pixels: read at size 32 it is not resized."""
    return Box((height - 32) // 2, (width - 32) // 2, 32, 32)


def cut_out(pixels: np.ndarray) -> np.ndarray:
    box = middle(*pixels.shape[:2])
    return pixels[int(box.top) : int(box.top) + 32, int(box.left) : int(box.left) + 32]


def refusal(content: bytes) -> str:
    with pytest.raises(BadPhoto) as caught:
        read_crop(content, whole, 32)
    return str(caught.value)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# Whole photos of every kind


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_every_format_gives_the_same_picture(form: str) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    crop = read_crop(saved(Image.fromarray(smooth()), form, **options), middle, 32)
    assert crop.recovered == ""
    assert crop.pixels.dtype == np.uint8
    assert crop.pixels.flags.c_contiguous
    assert largest_difference(crop.pixels, cut_out(smooth())) <= (8 if form == "JPEG" else 0)


def test_a_gif_is_read_as_its_first_picture() -> None:
    frames = [Image.fromarray(np.full((40, 40), value, np.uint8)) for value in (200, 10)]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(read_crop(content, whole, 32).pixels).tolist() == [200]


def test_a_format_is_told_from_the_bytes_and_not_from_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(Image.fromarray(smooth()), "PNG"))
    crop = read_crop(path.read_bytes(), middle, 32)
    assert np.array_equal(crop.pixels, cut_out(smooth()))


def test_a_grayscale_jpeg_has_three_equal_channels() -> None:
    grey = smooth()[:, :, 0]
    pixels = read_crop(saved(Image.fromarray(grey), "JPEG", quality=95), middle, 32).pixels
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 1])
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])
    assert largest_difference(pixels[:, :, 0], cut_out(grey[:, :, None])[:, :, 0]) <= 4


def test_a_cmyk_jpeg_has_the_colours_of_its_rgb_original() -> None:
    content = saved(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    assert simplejpeg.decode_jpeg_header(content)[2] in ("CMYK", "YCCK")
    assert difference(read_crop(content, middle, 32).pixels, cut_out(smooth())) < 2


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return np.round(pixels * share + 255 * (1 - share))


def test_an_rgba_png_lies_over_white() -> None:
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    content = saved(Image.fromarray(np.dstack([smooth(), alpha])), "PNG")
    pixels = read_crop(content, middle, 32).pixels
    assert largest_difference(pixels, cut_out(over_white(smooth(), alpha))) <= 1


def test_grey_with_transparency_lies_over_white() -> None:
    grey = smooth()[:, :, 0]
    alpha = np.tile(np.linspace(255, 0, WIDTH).astype(np.uint8), (HEIGHT, 1))
    content = saved(Image.fromarray(np.dstack([grey, alpha])), "PNG")
    assert Image.open(io.BytesIO(content)).mode == "LA"
    expected = over_white(np.repeat(grey[:, :, None], 3, axis=2), alpha)
    assert largest_difference(read_crop(content, middle, 32).pixels, cut_out(expected)) <= 1


def test_a_transparent_palette_colour_is_white() -> None:
    index = np.zeros((32, 32), np.uint8)
    index[:, 16:] = 1
    image = Image.fromarray(index, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    pixels = read_crop(saved(image, "PNG", transparency=0), whole, 32).pixels
    assert np.unique(pixels[:, :16].reshape(-1, 3), axis=0).tolist() == [[255, 255, 255]]
    assert np.unique(pixels[:, 16:].reshape(-1, 3), axis=0).tolist() == [[200, 100, 50]]


def test_sixteen_bits_of_grey_keep_their_upper_eight() -> None:
    grey = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    content = saved(Image.fromarray(grey), "PNG")
    pixels = read_crop(content, whole, 32).pixels
    assert np.array_equal(pixels, np.repeat((grey // 256)[:, :, None], 3, axis=2))


# EXIF orientation


def oriented(orientation: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    return saved(Image.fromarray(smooth()), form, exif=exif, **options)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_before_it_is_cropped(orientation: int, form: str) -> None:
    content = oriented(orientation, form)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    asked = []

    def off_centre(height: int, width: int) -> Box:
        asked.append((height, width))
        return Box(10, 41, 40, 40)

    crop = read_crop(content, off_centre, 40)
    assert asked == [upright.shape[:2]]
    assert largest_difference(crop.pixels, upright[10:50, 41:81]) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_decoded_at_a_smaller_scale_is_turned_the_same_way(orientation: int) -> None:
    content = oriented(orientation, "JPEG")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    crop = read_crop(content, lambda h, w: Box(8, 16, 66, 64), 16)
    expected = upright.resize((16, 16), Image.Resampling.BOX, box=(16, 8, 80, 74))
    assert difference(crop.pixels, np.asarray(expected)) < 2


def test_a_broken_or_absurd_orientation_means_upright() -> None:
    content = oriented(6, "JPEG")
    at = content.index(b"Exif\0\0") + 6
    broken = content[:at] + b"\xff" * 8 + content[at + 8 :]
    upright = read_crop(oriented(1, "JPEG"), middle, 32).pixels
    for bad in (oriented(42, "JPEG"), oriented(0, "JPEG"), broken):
        assert np.array_equal(read_crop(bad, middle, 32).pixels, upright)


# Bad photos


def test_an_empty_file_is_refused() -> None:
    assert refusal(b"") == "the file is empty"


@pytest.mark.parametrize("content", [b"hello", b"\0" * 1000, b"<html>gone</html>", b"%PDF-1.4"])
def test_a_file_that_is_no_photo_is_refused(content: bytes) -> None:
    assert refusal(content) == "no photo of a known format (JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF)"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_jpeg_is_refused(share: float) -> None:
    content = jpeg(textured())
    assert refusal(content[: int(len(content) * share)]) == (
        "cut off or damaged: Corrupt JPEG data: premature end of data segment"
    )


def test_a_jpeg_cut_off_within_its_header_is_refused() -> None:
    assert refusal(jpeg(textured())[:100]).startswith("broken JPEG header: ")
    assert refusal(b"\xff\xd8\xff").startswith("broken JPEG header: ")


def test_a_truncated_png_is_refused() -> None:
    content = saved(Image.fromarray(textured()), "PNG")
    assert refusal(content[: len(content) // 2]) == (
        "no photo, or damaged: image file is truncated"
    )


def png_header(height: int, width: int) -> bytes:
    """A PNG whose header promises a size and that has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def test_an_enormous_png_is_refused_before_it_is_decoded() -> None:
    assert refusal(png_header(9000, 9001)) == "9001 x 9000 are more than 80000000 pixels"
    for side in (10_000, 60_000):  # here Pillow itself warns, and raises
        assert refusal(png_header(side, side)) == "more than 80000000 pixels"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "BMP"])
def test_an_enormous_picture_of_a_few_bytes_is_refused_before_it_is_decoded(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(Image.new("L", (150, 100)), form)
    monkeypatch.setattr(photos, "LARGEST_PHOTO", 14_999)
    monkeypatch.setattr(Image.Image, "load", None)
    assert refusal(content) == "150 x 100 are more than 14999 pixels"


def test_an_enormous_jpeg_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(photos.simplejpeg, "decode_jpeg", decode)
    content = bytearray(jpeg(smooth()))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 50_000, 60_000)
    assert refusal(bytes(content)) == "60000 x 50000 are more than 80000000 pixels"


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(photos.simplejpeg, "decode_jpeg", None)
    message = "more than 500 scans; save it as an ordinary JPEG"
    progressive = saved(Image.fromarray(smooth()), "JPEG", progressive=True)
    assert refusal(progressive + b"\xff\xda" * MOST_SCANS) == message
    ordinary = jpeg(smooth())
    assert photos._look_through(ordinary + b"\xff\xda" * MOST_SCANS) == 1
    components = ordinary.index(b"\xff\xda") + 4
    a_scan_a_channel = ordinary[:components] + b"\1" + ordinary[components + 1 :]
    arithmetic = ordinary.replace(b"\xff\xc0", b"\xff\xca", 1)
    # The decoder skips stray bytes; a walk that ends at them has seen no scan's header.
    hidden = progressive[:2] + b"\0" + progressive[2:]
    for content in (a_scan_a_channel, arithmetic, hidden):
        with pytest.raises(BadPhoto) as caught:
            photos._look_through(content + b"\xff\xda" * MOST_SCANS)
        assert str(caught.value) == message


def test_the_decoder_itself_refuses_a_second_scan_of_an_ordinary_jpeg() -> None:
    content = jpeg(smooth())
    scan = content[content.index(b"\xff\xda") : -2]
    assert refusal(content[:-2] + scan + content[-2:]) == (
        "cut off or damaged: Didn't expect more than one scan"
    )


# Recovered photos


def test_a_jpeg_without_end_marker_is_recovered_whole() -> None:
    content = jpeg(textured())
    assert content.endswith(b"\xff\xd9")
    crop = read_crop(content[:-2], whole, 32)
    assert crop.recovered == "no end marker"
    assert np.array_equal(crop.pixels, read_crop(content, whole, 32).pixels)


def test_a_jpeg_with_stray_bytes_is_recovered_whole() -> None:
    content = jpeg(textured())
    crop = read_crop(content[:-2] + b"\0" * 20 + content[-2:], whole, 32)
    assert crop.recovered == "stray bytes"
    assert np.array_equal(crop.pixels, read_crop(content, whole, 32).pixels)


def test_stray_bytes_do_not_excuse_a_jpeg_that_is_cut_off() -> None:
    content = saved(Image.fromarray(textured()), "JPEG", progressive=True, quality=90)
    scans = [match.start() for match in re.finditer(b"\xff\xda", content)]
    # A scan later begins a table; the bytes between two scans are no one's.
    for scan, following in pairwise(scans[1:]):
        table = content.rfind(b"\xff\xc4", 0, scan)
        stray = content[:table] + b"\1\2\3\4" + content[table:]
        with pytest.raises(BadPhoto, match=r"^(cut off or damaged|broken JPEG header): "):
            read_crop(stray[: (scan + following) // 2], whole, 32)


def test_bytes_behind_the_end_of_a_jpeg_are_nothing_to_report() -> None:
    content = jpeg(textured())
    crop = read_crop(content + b"\0" * 100, whole, 32)
    assert crop.recovered == ""
    assert np.array_equal(crop.pixels, read_crop(content, whole, 32).pixels)


# The scaled decode


def test_a_crop_is_never_enlarged_where_the_photo_has_the_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    height, width = 203, 301  # odd: the scaled pictures are rounded up
    content = jpeg(smooth(height, width))
    resize = photos.interpolate
    sources: list[tuple[int, int]] = []

    def spy(images: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sources.append(tuple(images.shape[2:]))
        return resize(images, *arguments, **options)

    monkeypatch.setattr(photos, "interpolate", spy)
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(4, 60)) * 2
        crop_height, crop_width = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        sources.clear()
        box = Box(top, left, crop_height, crop_width)
        pixels = read_crop(content, lambda h, w, box=box: box, size).pixels
        assert pixels.shape == (size, size, 3)
        for taken, asked in zip(sources[0] if sources else (size, size), box[2:], strict=True):
            assert taken >= min(asked, size), (box, size, sources)


@pytest.mark.parametrize(
    ("box_height", "box_width", "size", "factor"),
    [
        (64, 64, 64, 1), (127, 200, 64, 1), (128, 200, 64, 2), (200, 127, 64, 1),
        (255, 300, 64, 2), (256, 300, 64, 4), (511, 600, 64, 4), (512, 512, 64, 8),
        (5000, 5000, 64, 8), (20, 30, 64, 1), (1000, 20, 64, 1), (127.9, 128, 64, 1),
    ],
)  # fmt: skip
def test_the_scale_is_the_smallest_power_of_two_that_leaves_the_crop_large_enough(
    box_height: float, box_width: float, size: int, factor: int
) -> None:
    assert photos.decode_factor(Box(0, 0, box_height, box_width), size, 1) == factor
    assert photos.decode_factor(Box(0, 0, 1.5 * box_height, 1.5 * box_width), size, 1.5) == factor
    fits = [f for f in (1, 2, 4, 8) if min(box_height, box_width) / f >= size]
    assert factor == max(fits, default=1)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_at_the_chosen_scale_and_no_other(factor: int) -> None:
    content = jpeg(smooth(203, 301))
    pixels, recovered = photos._decode_jpeg(content, 203, 301, factor)
    assert pixels.shape == (-(-203 // factor), -(-301 // factor), 3)
    assert recovered == ""


def pillows(content: bytes, box: Box, size: int, filter_: Image.Resampling) -> np.ndarray:
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    crop = Image.open(io.BytesIO(content)).crop(edges)
    return np.asarray(crop.resize((size, size), filter_))


BOXES = [
    (Box(0, 0, 384, 512), 32),
    (Box(36, 100, 222, 302), 64),
    (Box(20, 30, 130, 140), 64),
    (Box(11, 7, 70, 75), 64),
    (Box(4, 64, 256, 256), 112),
    (Box(4, 6, 80, 16), 32),
    (Box(4, 6, 16, 100), 32),
]


@pytest.mark.parametrize(("box", "size"), BOXES)
def test_a_crop_that_is_decoded_whole_is_pillows_antialiased_resize(box: Box, size: int) -> None:
    for form in ("JPEG", "PNG"):
        content = saved(Image.fromarray(textured(384, 512)), form)
        crop = read_crop(content, lambda h, w: box, size, spare=100).pixels
        expected = pillows(content, box, size, Image.Resampling.BILINEAR)
        assert largest_difference(crop, expected) <= 1


@pytest.mark.parametrize(("box", "size"), BOXES)
@pytest.mark.parametrize(("draw", "bound"), [(smooth, 1.0), (textured, 6.0)])
def test_a_crop_that_is_decoded_at_a_smaller_scale_looks_like_pillows_resize(
    draw: Any, bound: float, box: Box, size: int
) -> None:
    content = jpeg(draw(384, 512))
    crop = read_crop(content, lambda h, w: box, size).pixels
    expected = pillows(content, box, size, Image.Resampling.BILINEAR)
    assert difference(crop, expected) < bound
    if draw is textured and min(box[2:]) > size:  # what skipping pixels would do
        aliased = pillows(content, box, size, Image.Resampling.NEAREST)
        assert difference(aliased, expected) > 2.5 * difference(crop, expected)


def triangle(n: int, size: int) -> np.ndarray:
    """The weight of each of `n` pixels in each of `size`: a tent as wide as two new pixels."""
    scale = n / size
    weights = np.zeros((size, n))
    for new in range(size):
        for old in range(n):
            distance = abs(old + 0.5 - (new + 0.5) * scale) / max(scale, 1)
            weights[new, old] = max(0, 1 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


def test_every_pixel_of_a_shrunk_crop_counts_by_its_distance() -> None:
    content = saved(Image.fromarray(textured()), "PNG")
    crop = read_crop(content, lambda h, w: Box(11, 7, 70, 75), 32).pixels
    original = textured()[11:81, 7:82]
    expected = np.einsum("yr,rsc,xs->yxc", triangle(70, 32), original, triangle(75, 32))
    assert np.abs(crop - expected).max() <= 1


def test_a_photo_smaller_than_the_crop_is_enlarged() -> None:
    content = jpeg(smooth(10, 12))
    crop = read_crop(content, whole, 64).pixels
    expected = Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.BILINEAR)
    assert difference(crop, np.asarray(expected)) < 1

"""From bytes to a crop: what is read, what is recovered, what is refused and in which words."""

import contextlib
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
from photo_reading import read_crop, read_whole
from PIL import Image, ImageOps

from inat.photos import decode as photos
from inat.photos.decode import BadPhoto, Box
from inat.photos.jpeg import MOST_SCANS

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


def tiff(values: np.ndarray, sample_format: int) -> bytes:
    """A TIFF of one row of numbers of 32 bits; Pillow writes no unsigned ones."""
    tags = {256: len(values), 257: 1, 258: 32, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1}
    tags |= {279: 4 * len(values), 339: sample_format}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize(
    ("values", "sample_format", "expected"),
    [
        (np.array([0, 255, 256, 40_000, 65_535], np.uint32), 1, [0, 0, 1, 156, 255]),
        (np.array([0, 1, 128, 255], np.uint32), 1, [0, 1, 128, 255]),
        (np.array([0, 1 << 24, 1 << 31, (1 << 32) - 1], np.uint32), 1, [0, 1, 128, 255]),
        (np.array([-5, 0, 300, 65_535], np.int32), 2, [0, 0, 1, 255]),
        (np.array([-(1 << 31), 1 << 23, (1 << 31) - 1], np.int32), 2, [0, 1, 255]),
        (np.array([0, 0.25, 0.5, 1], np.float32), 3, [0, 64, 128, 255]),
        (np.array([0, 1, 99.6, 255], np.float32), 3, [0, 1, 100, 255]),
        (np.array([0, 257, 65_535], np.float32), 3, [0, 1, 255]),
        (np.array([-3, 0, 1e6, 2e6], np.float32), 3, [0, 0, 128, 255]),
        (np.array([np.nan, -np.inf, np.inf, 1], np.float32), 3, [0, 0, 0, 255]),
        (np.array([0, 0, -1], np.float32), 3, [0, 0, 0]),
    ],
)
def test_thirty_two_bits_of_grey_are_scaled_by_the_range_that_they_use(
    values: np.ndarray, sample_format: int, expected: list[int]
) -> None:
    pixels = read_whole(tiff(values, sample_format)).pixels
    assert pixels.shape == (1, len(values), 3)
    assert pixels[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled_by_all_their_range(form: str) -> None:
    grey = np.array([[0, 255, 256, 4095, 32_768, 65_535]], np.uint16)
    pixels = read_whole(saved(Image.fromarray(grey), form)).pixels
    assert pixels[0].tolist() == [[value] * 3 for value in (0, 0, 1, 15, 128, 255)]


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
    assert refusal(bytes(content)) == "60000 x 50000 are more than 250000000 pixels"


def progressive(quality: int = 90) -> bytes:
    return saved(Image.fromarray(textured()), "JPEG", progressive=True, quality=quality)


def with_scans(content: bytes, n: int) -> bytes:
    """So many more headers of scans before the end marker."""
    at = content.rindex(b"\xff\xda")
    header = content[at : at + 2 + content[at + 3]]
    return content[:-2] + header * n + content[-2:]


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(photos.simplejpeg, "decode_jpeg", None)
    message = "more than 500 scans; save it as an ordinary JPEG"
    ordinary = jpeg(smooth())
    components = ordinary.index(b"\xff\xda") + 4
    a_scan_a_channel = ordinary[:components] + b"\1" + ordinary[components + 1 :]
    arithmetic = ordinary.replace(b"\xff\xc0", b"\xff\xca", 1)
    # The decoder skips stray bytes, so the search for scans must not end at them.
    stray = progressive()[:20] + b"\0" + progressive()[20:]
    for content in (progressive(), a_scan_a_channel, arithmetic, stray):
        assert refusal(with_scans(content, MOST_SCANS)) == message


def test_scans_are_counted_up_to_the_end_marker_and_in_its_video_they_are_none() -> None:
    video = np.random.default_rng(0).bytes(500_000) + b"\xff\xda" * MOST_SCANS
    for content in (progressive(), jpeg(textured())):
        crop = read_crop(content + video, whole, 32)
        assert crop.recovered == ""
        assert np.array_equal(crop.pixels, read_crop(content, whole, 32).pixels)


def test_of_a_sequential_jpeg_with_a_second_scan_the_first_is_the_picture() -> None:
    content = jpeg(textured())
    crop = read_crop(with_scans(content, 3), whole, 32)
    assert crop.recovered == "no end marker"
    assert np.array_equal(crop.pixels, read_crop(content, whole, 32).pixels)


# Recovered photos


def noise(n: int) -> bytes:
    """Bytes of which none is FF: among them no marker stands."""
    return np.random.default_rng(1).integers(0, 255, n, np.uint8).tobytes()


KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "own tables": {"optimize": True},
    "restart markers": {"restart_marker_rows": 1},
    "no subsampling": {"subsampling": 0},
    "grey": {},
    "progressive": {"progressive": True},
}

TRAILERS = {
    "nothing": b"",
    "zeros": bytes(5000),
    "a video": b"\0\0\0\x18ftypmp42" + np.random.default_rng(2).bytes(20_000),
    "a maker's block": b"\0\0\x30\x0a\x0ePanorama_Shot_Info" + noise(20_000) + b"SEFT",
    "text": b"Saved by a viewer that had a word to say. " * 40,
    "segments": b"\xff\xe1\0\x08abcdef" + bytes(300),
}


def of_kind(kind: str) -> bytes:
    pixels = textured()[:, :, 0] if kind == "grey" else textured()
    return saved(Image.fromarray(pixels), "JPEG", quality=90, **KINDS[kind])


def same_as_pillow(content: bytes, reference: bytes) -> str:
    """What was recovered of a photo that has all the pixels that Pillow finds in another."""
    expected = np.asarray(Image.open(io.BytesIO(reference)).convert("RGB"))
    found = read_whole(content)
    assert np.array_equal(found.pixels, expected)
    for factor in (2, 8):
        assert read_whole(content, factor).recovered == found.recovered
    return found.recovered


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trailer", TRAILERS)
def test_a_jpeg_that_only_lacks_the_end_marker_has_all_its_pixels(kind: str, trailer: str) -> None:
    content = of_kind(kind)
    assert content.endswith(b"\xff\xd9")
    assert same_as_pillow(content[:-2] + TRAILERS[trailer], content) == "no end marker"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stray", [bytes(20), bytes(5000), noise(20)], ids=["few", "many", "any"])
def test_a_jpeg_with_stray_bytes_before_the_end_marker_has_all_its_pixels(
    kind: str, stray: bytes
) -> None:
    content = of_kind(kind)
    assert same_as_pillow(content[:-2] + stray + content[-2:], content) == "stray bytes"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_what_fills_up_a_jpeg_that_is_cut_off_does_not_make_it_whole(
    kind: str, share: float
) -> None:
    content = of_kind(kind)
    begin = content.index(b"\xff\xda") + 20
    cut = content[: begin + int(share * (len(content) - begin))]
    lost = len(content) - len(cut)
    text = TRAILERS["text"] * 20
    for filling in (b"", bytes(2 * lost), text, noise(4 * lost), content[begin:-2] * 2):
        ends = [b"\xff\xd9"] if filling in (text, noise(4 * lost)) else [b"", b"\xff\xd9", bytes(9)]
        for end in ends:
            with pytest.raises(BadPhoto, match=r"^cut off or damaged: "):
                read_whole(cut + filling + end)


def test_a_photo_with_a_damaged_byte_that_leaves_bytes_over_is_not_called_whole() -> None:
    content = jpeg(textured())
    begin = content.index(b"\xff\xda") + 14
    recovered = 0
    for at in range(begin, len(content) - 40, 97):
        damaged = content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        with contextlib.suppress(BadPhoto):
            recovered += read_whole(damaged).recovered != ""
    assert recovered == 0


def scan_ends(content: bytes) -> list[int]:
    """Where each scan of a JPEG ends and the tables of the next begin."""
    scans = [match.start() for match in re.finditer(b"\xff\xda", content)]
    tables = [content.rfind(b"\xff\xc4", 0, scan) for scan in scans[1:]]
    return [max(t, 0) if t > s else n for s, n, t in zip(scans, scans[1:], tables, strict=False)]


@pytest.mark.parametrize("behind", [b"", bytes(50), b"Saved by a viewer. " * 300])
def test_a_progressive_jpeg_that_ends_between_two_scans_is_cut_off(behind: bytes) -> None:
    content = progressive()
    ends = scan_ends(content)
    assert len(ends) == 9
    for end in ends:
        with pytest.raises(BadPhoto, match=r"^cut off or damaged: "):
            read_whole(content[:end] + behind)


def test_a_progressive_jpeg_that_was_closed_too_early_is_reported() -> None:
    content = progressive()
    for end in scan_ends(content):
        early = content[:end] + b"\xff\xd9"
        assert same_as_pillow(early, early) == "unfinished scans"


def test_a_scan_for_each_channel_is_whole_with_the_last_of_them() -> None:
    by_channel = sequential_by_channel()
    assert same_as_pillow(by_channel, by_channel) == ""
    assert same_as_pillow(by_channel[:-2], by_channel) == "no end marker"
    with pytest.raises(BadPhoto, match="its last scans are missing"):
        read_whole(by_channel[: by_channel.rindex(b"\xff\xda")])


def sequential_by_channel() -> bytes:
    """A sequential JPEG of three scans, each of which repeats the coded data of a grey photo."""
    grey = saved(Image.fromarray(textured()[:, :, 0]), "JPEG", quality=90)
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    data = grey[scan + 10 : -2]
    size = grey[frame + 5 : frame + 9]
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    frame_of_three = b"\xff\xc0\0\x11\x08" + size + b"\3" + components
    scans = (b"\xff\xda\0\x08\1" + bytes([n, 0, 0, 63, 0]) + data for n in (1, 2, 3))
    tables = grey[frame + 2 + grey[frame + 3] : scan]
    return grey[:frame] + frame_of_three + tables + b"".join(scans) + b"\xff\xd9"


def odd_headers() -> dict[str, tuple[bytes, bytes]]:
    """Files that libjpeg warns of, each with the one in order that has its pixels."""
    good = jpeg(textured())
    jfif = good.index(b"JFIF\0")
    scan = good.index(b"\xff\xda")
    tail = scan + 2 + good[scan + 3] - 3  # the parameters that only a progressive file needs
    no_jfif = good[:2] + good[20:]
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0"
    icc = b"\xff\xe2\0\x12ICC_PROFILE\0\5\1ab"
    grey = saved(Image.fromarray(textured()[:, :, 0]), "JPEG", restart_marker_rows=1)
    grey_tail = grey.index(b"\xff\xda") + 7
    return {
        "scan parameters": (good[:tail] + b"\0\0\0" + good[tail + 3 :], good),
        "scan parameters of grey": (grey[:grey_tail] + b"\1\x20\x12" + grey[grey_tail + 3 :], grey),
        "JFIF 2.01": (good[: jfif + 5] + b"\2" + good[jfif + 6 :], good),
        "Adobe's transform 5": (no_jfif[:2] + adobe + b"\5" + no_jfif[2:], good),
        "a bad profile": (good[:20] + icc + good[20:], good),
        "stray bytes": (good[:20] + b"\1\2\3" + good[20:], good),
    }


@pytest.mark.parametrize("name", odd_headers())
def test_a_header_that_libjpeg_only_warns_of_leaves_the_pixels_as_they_are(name: str) -> None:
    odd, good = odd_headers()[name]
    with pytest.raises(ValueError, match=r"\w"):
        simplejpeg.decode_jpeg(odd)
    assert same_as_pillow(odd, good) == "odd header"


def test_an_odd_header_does_not_excuse_a_jpeg_that_is_cut_off() -> None:
    for odd, _ in odd_headers().values():
        with pytest.raises(BadPhoto, match=r"^cut off or damaged: "):
            read_whole(odd[: len(odd) * 2 // 3])


def test_a_photo_with_an_odd_header_is_still_turned_upright() -> None:
    content = oriented(6, "JPEG")
    jfif = content.index(b"JFIF\0")
    odd = content[: jfif + 5] + b"\2" + content[jfif + 6 :]
    found, expected = (read_whole(c) for c in (odd, content))
    assert found.recovered == "odd header"
    assert (found.size, found.stored_size) == (expected.size, expected.stored_size)


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
    resize = torch.nn.functional.interpolate
    sources: list[tuple[int, int]] = []

    def spy(images: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sources.append(tuple(images.shape[2:]))
        return resize(images, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", spy)
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
    pixels, recovered, used = photos._decode_at(photos.read_header(content), factor)
    assert pixels.shape == (-(-203 // factor), -(-301 // factor), 3)
    assert (recovered, used) == ("", factor)


def test_a_jpeg_larger_than_the_limit_is_decoded_at_a_scale_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = smooth(200, 304)
    content = jpeg(pixels)
    monkeypatch.setattr(photos, "LARGEST_PHOTO", 200 * 304 // 4)
    found = read_whole(content)
    assert (found.size, found.pixels.shape) == ((200, 304), (100, 152, 3))
    crop = read_crop(content, lambda h, w: Box(100, 20, 64, 64), 32).pixels
    close = read_crop(content, lambda h, w: Box(100, 20, 64, 64), 64).pixels
    assert crop.shape == (32, 32, 3)
    reference = np.asarray(Image.fromarray(pixels[100:164, 20:84]).resize((32, 32)))
    assert difference(crop, reference) < 2
    assert difference(close, pixels[100:164, 20:84]) < 3
    monkeypatch.setattr(photos, "LARGEST_JPEG", 200 * 304 - 1)
    assert refusal(content) == "304 x 200 are more than 60799 pixels"


def test_a_progressive_jpeg_is_held_to_the_memory_of_all_its_coefficients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(photos, "LARGEST_PROGRESSIVE", HEIGHT * WIDTH - 1)
    assert refusal(progressive()) == "128 x 96 are more than 12287 pixels"
    assert read_crop(jpeg(textured()), whole, 32).recovered == ""


def test_a_photo_of_two_hundred_megapixels_is_read() -> None:
    # Repeated coded data of one block each: the file is made without its pixels.
    block = saved(Image.new("L", (8, 8), 90), "JPEG")
    frame, scan = block.index(b"\xff\xc0"), block.index(b"\xff\xda") + 10
    side = struct.pack(">HH", 12_240, 16_320)
    header = block[: frame + 5] + side + block[frame + 9 : scan]
    restart = b"\xff\xdd\0\4\0\1"
    n = 12_240 * 16_320 // 64
    data = b"".join(block[scan:-2] + bytes([0xFF, 0xD0 + i]) for i in range(8)) * (n // 8)
    at = header.index(b"\xff\xda")
    content = header[:at] + restart + header[at:] + data[:-2] + b"\xff\xd9"
    found = read_whole(content, 8)
    assert (found.size, found.recovered) == ((12_240, 16_320), "")
    assert found.pixels.shape == (1530, 2040, 3)
    assert np.unique(found.pixels).tolist() == [90]


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

"""Searches a person's own folders for photos: content decides, and what is not taken is listed."""

import importlib.util
import io
import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from PIL import Image, JpegImagePlugin

from inat.core.errors import WorldError, one_line
from inat.core.files import TOO_MANY_FILES, UnfitFile, open_file, read_file
from inat.core.progress import first_few

LARGEST_PHOTO = 2**29
"""Bytes; 80 million pixels of 16 bits without compression are as many."""

# An MPO is opened by the JPEG reader; Pillow has none of that name and would raise at it.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""Formats of photos, by Pillow's names."""

ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".webp", ".tif", ".tiff"),
    *(".bmp", ".gif", ".avif"),
}  # fmt: skip
"""Endings of photos, in lower case: a file that has one and is not a photo is called unreadable."""

HEIC_ENDINGS = {".heic", ".heif", ".hif"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

# Most are TIFF files, whose first picture is a thumbnail.
RAW_ENDINGS = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf"),
    *(".srw", ".x3f"),
}  # fmt: skip

SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information", "__pycache__"),
}  # fmt: skip
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}

Kind = Literal[
    "unreadable", "heic", "raw", "other", "system file", "system folder", "broken link", "loop"
]

# What a line says of each kind; {s} is the plural's ending.
WORDS: dict[Kind, str] = {
    "unreadable": "photo{s} that cannot be read",
    "heic": "HEIC photo{s}; pip install 'inat[heic]' and try again, or save as JPEG",
    "raw": "camera raw file{s}; save as JPEG",
    "other": "other file{s}",
    "system file": "system or hidden file{s}",
    "system folder": "system or hidden folder{s}",
    "broken link": "link{s} without a target",
    "loop": "link{s} to a folder that was searched already",
}

NOT_TEXT = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class FoundPhoto:
    """A photo whose header could be read."""

    path: Path
    height: int  # in pixels, as the header states it, before EXIF turns the photo
    width: int  # in pixels
    linked: bool  # whether it is a link or below one
    is_heic: bool  # whether it must be converted (`jpeg_of_heic`) before it can be decoded


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that was not taken."""

    path: Path  # the file or folder
    kind: Kind
    reason: str = ""  # of an unreadable photo, why; else ""


@dataclass
class PhotoFolder:
    path: Path
    photos: list[FoundPhoto] = field(default_factory=list)  # the photos that lie directly in it
    folders: list["PhotoFolder"] = field(default_factory=list)  # by name, without system folders
    passed_over: list[PassedOver] = field(default_factory=list)  # all else in it

    def below(self) -> Iterator["PhotoFolder"]:
        yield self
        for folder in self.folders:
            yield from folder.below()

    def all_photos(self) -> list[FoundPhoto]:
        found = [photo for folder in self.below() for photo in folder.photos]
        return sorted(found, key=lambda photo: photo.path)

    def all_passed_over(self) -> list[PassedOver]:
        return [one for folder in self.below() for one in folder.passed_over]


def search_photos(path: Path) -> PhotoFolder:
    """Everything below a folder (OSError if one cannot be listed); links are followed, except into
    a loop."""
    found = PhotoFolder(path)
    root = _identity(path.stat())
    for entry in _entries(path):
        # Two folders at the top may show the same photos, one of them as a link. Below one of
        # them no folder is searched twice: links between folders would multiply the paths.
        _sort_in(entry, found, {root}, linked=False)
    return found


def look_at_photo(path: Path, *, linked: bool = False) -> FoundPhoto | PassedOver:
    """One file: a photo, or why it is not one. The content decides; a name only where the content
    does not tell."""
    ending = path.suffix.lower()
    if ending in RAW_ENDINGS:
        return PassedOver(path, "raw")
    try:
        with open_file(path, LARGEST_PHOTO) as file:
            head = file.read(64)
            file.seek(0)
            named_heic = ending in HEIC_ENDINGS and not head.startswith(b"\xff\xd8")
            is_heic = named_heic or _is_heic(head)
            if is_heic and importlib.util.find_spec("pillow_heif") is None:
                return PassedOver(path, "heic")
            if is_heic:
                from pillow_heif import open_heif

                width, height = open_heif(file).size
            else:
                height, width = _size(file, head)
    except UnfitFile as error:
        return PassedOver(path, "unreadable", error.reason)
    # Pillow's readers raise nearly everything on broken files.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
            raise
        if ending not in ENDINGS | HEIC_ENDINGS:
            return PassedOver(path, "other")
        if isinstance(error, OSError) and error.strerror:
            return PassedOver(path, "unreadable", error.strerror)
        is_page = head.lstrip().lower().startswith((b"<!doctype html", b"<html"))
        reason = "a web page" if is_page else "not a photo, or damaged"
        return PassedOver(path, "unreadable", reason if head else "the file is empty")
    return FoundPhoto(path, height, width, linked, is_heic)


def passed_over_lines(passed_over: Sequence[PassedOver]) -> list[str]:
    """One line for each kind of what was passed over."""
    lines = []
    for kind, words in WORDS.items():
        those = [one for one in passed_over if one.kind == kind]
        if not those:
            continue
        if kind in ("other", "raw"):
            endings = Counter(readable(one.path.suffix.lower()) or "no ending" for one in those)
            listed = [f"{ending} {n:,}" for ending, n in endings.most_common()]
        elif kind in ("system file", "system folder"):
            listed = [readable(name) for name in dict.fromkeys(one.path.name for one in those)]
        else:
            listed = [
                readable(one.path) + (f" ({one.reason})" if one.reason else "") for one in those
            ]
        text = words.format(s="s" if len(those) > 1 else "")
        lines.append(f"{len(those):,} {text}: {first_few(listed, 3)}")
    return lines


def jpeg_of_heic(path: Path) -> bytes:
    """A HEIC photo as an upright JPEG with its EXIF data and color profile; WorldError if it is
    damaged."""
    from pillow_heif import open_heif

    content = read_file(path, LARGEST_PHOTO)
    try:
        image = open_heif(content).to_pillow()  # upright, and its EXIF data say so
    except Exception as error:
        raise WorldError(
            f"{readable(path)}: the HEIC photo is damaged ({one_line(error)}); remove it, or save "
            "it as JPEG"
        ) from None
    kept = {key: image.info[key] for key in ("exif", "icc_profile") if image.info.get(key)}
    if "A" in image.getbands():
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    converted = io.BytesIO()
    image.convert("RGB").save(converted, "JPEG", quality=95, **kept)
    return converted.getvalue()


def readable(name: Path | str) -> str:
    """A name for a message or a JSON file: bytes that are not UTF-8 and control characters as
    %XX."""
    return NOT_TEXT.sub(
        lambda found: "".join(f"%{b:02X}" for b in os.fsencode(found[0])), str(name)
    )


def same_name(name: str) -> str:
    """The form in which names are compared: a Mac writes é as two characters."""
    return unicodedata.normalize("NFC", readable(name))


def is_system(name: str, *, folder: bool) -> bool:
    """Whether a name is one of those that systems and programs leave, or hidden."""
    return name.startswith(".") or name.lower() in (SYSTEM_FOLDERS if folder else SYSTEM_FILES)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _sort_in(
    entry: os.DirEntry[str], found: PhotoFolder, searched: set[tuple[int, int]], *, linked: bool
) -> None:
    """Puts one entry where it belongs in `found`; of a folder all that is below it."""
    path, linked = found.path / entry.name, linked or entry.is_symlink()
    try:
        status = entry.stat()
    except OSError:
        found.passed_over.append(PassedOver(path, "broken link"))
        return
    is_folder = stat.S_ISDIR(status.st_mode)
    if is_system(entry.name, folder=is_folder):
        kind: Kind = "system folder" if is_folder else "system file"
        found.passed_over.append(PassedOver(path, kind))
    elif is_folder:
        if _identity(status) in searched:
            found.passed_over.append(PassedOver(path, "loop"))
            return
        searched.add(_identity(status))
        inner = PhotoFolder(path)
        found.folders.append(inner)
        for below in _entries(path):
            _sort_in(below, inner, searched, linked=linked)
    elif not stat.S_ISREG(status.st_mode):
        found.passed_over.append(PassedOver(path, "other"))
    else:
        seen = look_at_photo(path, linked=linked)
        if isinstance(seen, FoundPhoto):
            found.photos.append(seen)
        else:
            found.passed_over.append(seen)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_heic(head: bytes) -> bool:
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
    return bool(brands & HEIC_BRANDS) and not brands & {b"avif", b"avis"}


def _size(file: IO[bytes], head: bytes) -> tuple[int, int]:
    if not head.startswith(b"\xff\xd8\xff"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, of odd tags
            with Image.open(file, formats=FORMATS) as image:
                return image.height, image.width
    try:
        # Not `Image.open`, which refuses the largest phones' photos; they are decoded shrunk.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jpeg = JpegImagePlugin.JpegImageFile(file)
        return jpeg.height, jpeg.width
    except Exception:  # what decodes photos takes some headers that Pillow does not
        import simplejpeg

        file.seek(0)
        height, width, _, _ = simplejpeg.decode_jpeg_header(file.read())
        return height, width

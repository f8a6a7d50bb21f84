"""Where the bytes of a split's photos come from: files below a folder, or a pack of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa

from inat.core.errors import WorldError
from inat.core.files import TOO_MANY_FILES, UnfitFile, leads_out, read_file
from inat.core.shared_arrays import SharedStrings
from inat.photos.decode import BadPhoto
from inat.photos.pack import PackedPhotos, is_pack
from inat.photos.search import LARGEST_PHOTO, FoundPhoto, jpeg_of_heic, readable


@runtime_checkable  # beartype checks it while tests run
class PhotoSource(Protocol):
    """The bytes of a list of photos, by position."""

    def read(self, index: int) -> bytes | memoryview:
        """The encoded photo; raises BadPhoto, whose text is the reason."""

    def path(self, index: int) -> str:
        """What a message calls the photo."""


class PhotoFiles:
    """Photos as files below a folder.

    The folder and the folders in it may be links, to a larger disk say; below those a link is
    followed only to where its own top folder is: a data set from a stranger shows no other files.
    Nor does a name lead out of the folder.
    """

    def __init__(self, root: Path, file_names: pa.StringArray) -> None:
        self._root = str(root)
        self._names = SharedStrings(file_names)
        self._leads_out: dict[str, bool] = {}  # of a photo's folders, each looked at once

    def path(self, index: int) -> str:
        return f"{self._root}/{self._names[index]}"

    def read(self, index: int) -> bytes:
        """The file's bytes. Raises BadPhoto where they cannot or must not be read, and OSError
        where this process has too many open files, which says nothing of the photo."""
        path = self.path(index)
        self._refuse_way_out(path, self._names[index])
        try:
            return read_file(path, LARGEST_PHOTO)
        except UnfitFile as error:
            raise BadPhoto(error.reason) from None
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            reason = error.strerror or str(error)
            if isinstance(error, FileNotFoundError) and "\\" in path:
                reason += "; its name has backslashes, and '/' separates folders"
            raise BadPhoto(reason) from None

    def _refuse_way_out(self, path: str, name: str) -> None:
        # To follow all links of every path would cost 40 us a photo; this costs 2.
        folders, _, _ = name.rpartition("/")
        if ".." in name and ".." in name.split("/"):
            raise BadPhoto(f"its name leads out of {self._root}")
        top = f"{self._root}/{folders.partition('/')[0]}".rstrip("/")
        if folders not in self._leads_out:
            self._leads_out[folders] = leads_out(f"{self._root}/{folders}", top)
        is_link = os.path.islink(path)  # noqa: PTH114
        if self._leads_out[folders] or (is_link and leads_out(path, top)):
            raise BadPhoto(f"a link leads out of {top}; put the photo in its place")


class OwnPhotos:
    """Photos of one's own, anywhere on the machine: links are followed, any name will do."""

    def __init__(self, photos: Sequence[FoundPhoto]) -> None:
        self._photos = photos

    def path(self, index: int) -> str:
        return readable(self._photos[index].path)

    def read(self, index: int) -> bytes:
        """The file's bytes, those of a HEIC photo as a JPEG; raises BadPhoto."""
        photo = self._photos[index]
        try:
            if photo.is_heic:
                return jpeg_of_heic(photo.path)
            return read_file(photo.path, LARGEST_PHOTO)
        except UnfitFile as error:
            raise BadPhoto(error.reason) from None
        except WorldError:
            raise BadPhoto("the HEIC photo is damaged") from None
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            raise BadPhoto(error.strerror or str(error)) from None


def open_photos(root: Path, file_names: pa.StringArray) -> PhotoSource:
    """The photos of these names below `root`, which is a folder of files or a pack."""
    if is_pack(root):
        return PackedPhotos(root, file_names)
    return PhotoFiles(root, file_names)

"""Where the bytes of a split's photos come from: files below a folder, or a pack of them."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa

from inat.data.pack import PackedPhotos, is_pack
from inat.data.photos import BadPhoto
from inat.data.shared_arrays import SharedStrings


@runtime_checkable  # beartype checks it while tests run
class PhotoSource(Protocol):
    """The bytes of a list of photos, by position."""

    def read(self, index: int) -> bytes | memoryview:
        """The encoded photo.

        Raises:
            BadPhoto: it cannot be read; the text is the reason.
        """
        ...

    def path(self, index: int) -> str:
        """What a message calls the photo."""
        ...


class PhotoFiles:
    """Photos as files below a folder.

    Args:
        root: the folder.
        file_names: path of each photo below it.
    """

    def __init__(self, root: Path, file_names: pa.StringArray) -> None:
        self._root = str(root)
        self._names = SharedStrings(file_names)

    def path(self, index: int) -> str:
        """The file's path."""
        return f"{self._root}/{self._names[index]}"

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            BadPhoto: there is no such file, or the disk gives an error.
        """
        try:
            with open(self.path(index), "rb", buffering=0) as handle:  # noqa: PTH123
                return handle.read()
        except OSError as error:
            raise BadPhoto(error.strerror or str(error)) from None


def open_photos(root: Path, file_names: pa.StringArray) -> PhotoSource:
    """The photos of these names below `root`, which is a folder of files or a pack.

    Raises:
        InputError: the pack is cut off, of another version, or lacks one of the photos.
    """
    if is_pack(root):
        return PackedPhotos(root, file_names)
    return PhotoFiles(root, file_names)

"""Archives from strangers: nothing of them lands outside the data root, and no links at all."""

import errno
import filecmp
import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from inat.core.competitions import Archive
from inat.core.errors import InputError, WorldError
from inat.core.files import leads_out, open_packed
from inat.core.progress import say

PIECE = 2**18
MOST_BETWEEN = 2**22
"""Bytes of an unpacked tar file that belong to no member: a header, or what follows the last."""

LARGEST_MEMBER = 2**32
"""Bytes of a file in an archive; the annotations of 2.7 million photos have 1.3 GB."""

BROKEN = (
    EOFError,
    zlib.error,
    OSError,  # without a number gzip's; EINVAL where a zip file sends to before its first byte
    tarfile.TarError,
    zipfile.BadZipFile,
    NotImplementedError,  # a kind of compression that zipfile does not know
    UnicodeDecodeError,  # a name that is not what it says it is
    struct.error,
)
FETCH_AGAIN = "remove it, and the same command fetches it again"


@dataclass(frozen=True)
class _Member:
    name: str
    size: int  # in bytes
    kind: str  # "file", "folder", or what else it is
    open: Callable[[], IO[bytes]]  # to be called before the next member is asked for


def unpack(path: Path, archive: Archive, root: Path, advance: Callable[[int], object]) -> int:
    """Writes what an archive brings below the data root; returns the number of its files.

    A photo that is there in the right size stays, so that an interrupted call resumes. Mode bits,
    owners, dates and files that the archive is not to bring are not taken over. The root and the
    photo folders in it may be links. `advance` gets the number of bytes of the archive that were
    read.

    Raises:
        WorldError: the archive is cut off or damaged, lacks what it is to bring, or has a member
            that leads out of the root or is not a plain file or folder.
        InputError: a file is there already, with other content.
    """
    unpacking = _Unpacking(path, archive, root)
    try:
        for member in (_zip_members if path.suffix == ".zip" else _tar_members)(path, advance):
            unpacking.take(member)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's fault
        raise WorldError(f"{path}: cut off or damaged: {error}; {FETCH_AGAIN}") from None
    return unpacking.finish()


class _Unpacking:
    def __init__(self, path: Path, archive: Archive, root: Path) -> None:
        self._path = path
        self._archive = archive
        self._root = root
        self._n_files = 0
        self._folders: set[Path] = set()
        self._lacking = {archive.folder, *archive.files} - {""}
        self._left_out: list[str] = []

    def take(self, member: _Member) -> None:
        """Writes the member, where it is one of those that the archive is to bring."""
        parts = _checked_parts(self._path, member)
        if member.kind == "folder":
            return
        if self._archive.folder and parts[0] == self._archive.folder and len(parts) > 1:
            self._put_photo(member, self._root.joinpath(*parts))
        elif parts[-1] in self._archive.files:
            self._put_file(member, self._root / parts[-1])
        else:
            self._left_out.append(member.name)
            return
        self._n_files += 1

    def finish(self) -> int:
        if self._lacking:
            names = " and no ".join(sorted(self._lacking))
            raise WorldError(f"{self._path}: holds no {names}; {FETCH_AGAIN}")
        if self._left_out:
            say(
                f"{self._path}: left out {len(self._left_out)} files that are no data (first: "
                f"{self._left_out[0]!r:.80})"
            )
        return self._n_files

    def _put_photo(self, member: _Member, target: Path) -> None:
        self._lacking.discard(self._archive.folder)
        with suppress(FileNotFoundError, NotADirectoryError):
            state = target.lstat()
            if stat.S_ISREG(state.st_mode) and state.st_size == member.size:
                return
        if target.parent not in self._folders:
            # The top folder itself may be a link to a larger disk.
            top = self._root / self._archive.folder
            if leads_out(target.parent, top):
                raise WorldError(
                    f"{self._path}: member {member.name!r:.120} would be written through a link "
                    f"out of {top}; put a folder in the place of the link"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(target.parent)
        _written(member, target).replace(target)

    def _put_file(self, member: _Member, target: Path) -> None:
        copied = _written(member, target)
        self._lacking.discard(target.name)
        if not target.exists():
            copied.replace(target)
            return
        is_same = filecmp.cmp(copied, target, shallow=False)
        copied.unlink()
        if not is_same:
            raise InputError(
                f"{target}: is there already, and is not what {self._path.name} holds; move it "
                "away, or give another --root"
            )


def _checked_parts(path: Path, member: _Member) -> tuple[str, ...]:
    """The parts of a member's name; refused where they lead out of the root, and links at all."""
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if not parts and member.kind != "folder":
        why = "has no name"
    # Of "//a" the first part is "//".
    elif parts and (parts[0].startswith("/") or ".." in parts or ":" in parts[0]):
        why = "leads out of the data root"
    elif "\0" in member.name:
        why = "has a zero byte in its name"
    elif member.kind not in ("file", "folder"):
        why = f"is {member.kind}"
    elif member.size > LARGEST_MEMBER:
        why = f"has {member.size:,} bytes, more than any file of a data set"
    else:
        return parts
    raise WorldError(
        f"{path}: member {member.name!r:.120} {why}; such an archive is not unpacked: remove it "
        "and fetch it from elsewhere (--base-url)"
    )


def _written(member: _Member, target: Path) -> Path:
    """The member's bytes in a file next to the target.

    Not inat.core.files.atomic_file: flushing half a million photos one by one takes an hour, and a
    random name would leave a file behind after every kill. Here the next try overwrites it.
    """
    copied = target.with_name(f".partial-{target.name}")
    try:
        with member.open() as source, copied.open("wb") as copy:
            shutil.copyfileobj(source, copy, PIECE)
    except BaseException:
        copied.unlink(missing_ok=True)
        raise
    return copied


class _Bounded(gzip.GzipFile):
    """Gives no more than `left` bytes: tarfile reads a header of any length into memory, and a few
    megabytes may unpack to gigabytes behind the last member."""

    left = MOST_BETWEEN

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError(f"more than {MOST_BETWEEN:,} bytes that belong to no member")
        return content


def _tar_members(path: Path, advance: Callable[[int], object]) -> Iterator[_Member]:
    with open_packed(path) as packed, _Bounded(fileobj=packed) as unpacked:
        told = 0
        # "r|": nothing is sought backwards, which would unpack everything once more.
        with tarfile.open(fileobj=unpacked, mode="r|", bufsize=2**16, encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                unpacked.left = MOST_BETWEEN + (member.size if member.isreg() else 0)
                # None is for links and folders, which are not opened.
                content = cast("Callable[[], IO[bytes]]", partial(tar.extractfile, member))
                kinds = {
                    "folder": member.isdir(),
                    "a sparse file": member.issparse(),  # bytes that may stand for a full disk
                    "file": member.isreg(),
                    "a symbolic link": member.issym(),
                    "a hard link": member.islnk(),
                    "a pipe": member.isfifo(),
                    "a device": member.isdev(),
                }
                kind = next((kind for kind, is_so in kinds.items() if is_so), "of an unknown kind")
                yield _Member(member.name, member.size, kind, content)
                # Half a million of them take half a gigabyte.
                tar.members.clear()  # type: ignore[attr-defined]
                advance(packed.tell() - told)
                told = packed.tell()
        unpacked.left = MOST_BETWEEN
        while unpacked.read(PIECE):  # to the end, where the checksum stands
            pass
        advance(packed.tell() - told)


def _zip_members(path: Path, advance: Callable[[int], object]) -> Iterator[_Member]:
    with open_packed(path) as file, zipfile.ZipFile(file) as packed:
        for info in packed.infolist():
            mode = info.external_attr >> 16  # Unix bits; 0 from other systems
            # Not info.is_dir, which fails at an empty name.
            kind = "folder" if info.filename.endswith("/") else "file"
            if stat.S_ISLNK(mode):
                kind = "a symbolic link"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a device or a pipe"
            elif info.flag_bits & 1:
                kind = "encrypted"
            yield _Member(info.filename, info.file_size, kind, partial(packed.open, info))
            advance(info.compress_size)

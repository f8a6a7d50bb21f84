"""Whole files or none: one way to open what a stranger made, atomic writes, JSON, checksums."""

import ctypes
import errno
import glob
import gzip
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson

from inat.core.errors import InputError, WorldError, one_line

if sys.platform != "win32":
    import fcntl

Kind = TypeVar("Kind")

CHECKSUMS = "checksums.json"
LARGEST_HASHED = 2**36
"""Bytes of an optimizer's state for the largest weights that are read."""

RENAME_EXCHANGE = 2  # renameat2's flag, and that of macOS' renamex_np
AT_FDCWD = -100
MORE_FILES = "allow more (ulimit -n 4096), lower data.workers, or set data.worker_kind threads"
"""What helps where a process has as many open files as it may."""
LARGEST_TEXT = 2**28
"""Bytes of a JSON or CSV file; annotations may have more."""

MOST_SINGLE = 2**18
MOST_AT_ONCE = 2**29
"""Bytes; a zip file's list of a million photos has 100 MB."""

# The second keeps an open from waiting for a pipe's other end; the third is Windows'.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class UnfitFile(InputError):
    """What is at a path is not a file, or has more bytes than such a file can have; `reason` is the
    text without the path."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}; give another")
        self.reason = reason


def open_file(path: Path | str, most: int | None = None) -> BufferedReader:
    """Opens a file for reading that a stranger may have made; links are followed. UnfitFile if it
    is not a file or larger than `most` bytes, else the errors of `open`.

    A pipe, a device, a socket or a folder is refused before it is opened, for opening it may wait
    for ever and reading it may never end. What opens a path by itself (NumPy, Arrow, torch) is
    called while this holds the file.
    """
    _refuse_unfit(path, os.stat(path), most)  # noqa: PTH116
    handle = os.open(path, OPEN_FLAGS)
    try:
        _refuse_unfit(path, os.fstat(handle), most)  # it may be another by now
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


class PackedFile(BufferedReader):
    """A file for gzip and zipfile to read, which trust its claims about its own size.

    gzip skips zeros between its streams byte by byte, a minute for 200 MB; zipfile reads the whole
    list of members at once, however long the file claims it is.
    """

    _n_single = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """BadGzipFile after MOST_SINGLE reads of one byte; BadZipFile above MOST_AT_ONCE."""
        self._n_single = self._n_single + 1 if size == 1 else 0
        if self._n_single > MOST_SINGLE:
            raise gzip.BadGzipFile(f"more than {MOST_SINGLE:,} bytes of padding")
        if size is not None and size > MOST_AT_ONCE:
            raise zipfile.BadZipFile(f"a list of members of {size:,} bytes")
        return super().read(size)


def open_packed(path: Path | str, most: int | None = None) -> PackedFile:
    """Opens a gzip or zip file, as `open_file`."""
    return PackedFile(open_file(path, most).detach())


def read_file(path: Path | str, most: int | None = LARGEST_TEXT) -> bytes:
    """The bytes of a file, opened as by `open_file`."""
    with open_file(path, most) as handle:
        # No more than it said: a file of /proc has no bytes, and may go on for ever.
        return handle.read(os.fstat(handle.fileno()).st_size)


def _refuse_unfit(path: Path | str, state: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise UnfitFile(path, f"{KINDS.get(stat.S_IFMT(state.st_mode), 'something')}, not a file")
    if most is not None and state.st_size > most:
        raise UnfitFile(path, f"{state.st_size:,} bytes, more than the {most:,} of such a file")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on leaving without an error it becomes `path`, after a
    flush to the disk: a power cut leaves the old file or the new one, never a part."""
    with _partial_beside(path, Path.touch) as partial:
        try:
            yield partial
            _flush(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Gives an empty folder beside `path`; on leaving without an error it takes `path`'s place.

    At every moment there is a whole folder at `path`, a kill included: the two change places in
    one step, where the file system can do that. Where `path` is a link, the folder that it points
    to is replaced, on the disk where that lies. What was at `path` moves to `keep`, where that is
    given, and else goes away.
    """
    named, path = path, path.resolve()
    _put_back(path)
    with _partial_beside(path, Path.mkdir, named) as partial:
        try:
            yield partial
            for written in partial.rglob("*"):
                if written.is_file():
                    _flush(written)
            _put(partial, path)
            if keep is not None and partial.exists():
                _put(partial, keep)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _naming(path: Path, partial: Path) -> Iterator[None]:
    """Has errors of the disk name `path`, which the user knows, and not `partial`, or nothing; they
    have an error number and a file name."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if told := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
            number = int(told[1])
        elif "requested and" in str(error):  # NumPy: "512 requested and 0 written"
            number = errno.ENOSPC
        name = getattr(error, "filename", None)
        if number is not None and (
            Path(name).is_relative_to(partial)
            if isinstance(name, str | os.PathLike)
            else number in (*FULL, errno.EFBIG)
        ):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


@contextmanager
def _partial_beside(
    path: Path, make: Callable[[Path], None], named: Path | None = None
) -> Iterator[Path]:
    """Gives a new file or folder beside `path`, locked, which tells it from the leftovers of killed
    writers of `path`: those are removed. Errors call it `named`, or else `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_beside(path, "partial"):
        lock = _lock(left, wait=False)
        if lock is not None:
            _remove(left)
            _unlock(lock)
    while True:
        # The suffix stays at the end: writers such as numpy.save and savefig go by it.
        partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
        with _naming(named or path, partial):
            make(partial)
        lock = _lock(partial, wait=True)
        if partial.exists():  # else another writer took it for a leftover before it was locked
            break
        _unlock(lock)
    try:
        with _naming(named or path, partial):
            yield partial
    finally:
        _unlock(lock)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Locks a file or folder; None where a living process holds it, and where it cannot be known,
    since the system (Windows) or the file system has no such locks."""
    if sys.platform == "win32":
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if sys.platform != "win32" and lock is not None:
        fcntl.flock(lock, fcntl.LOCK_UN)  # forked workers may hold the descriptor, too
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Removes a folder, where `path` is a link the one that it points to; a kill leaves it whole or
    gone, and a leftover beside it."""
    path = path.resolve()
    if path.exists():
        partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
        path.replace(partial)
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what writers of the folder `path` that were killed left beside it; for those who
    know that nobody else writes it now."""
    path = path.resolve()
    _put_back(path)
    for kind in ("partial", "old"):
        for left in _left_beside(path, kind):
            _remove(left)


def _left_beside(path: Path, kind: str) -> list[Path]:
    return sorted(path.parent.glob(f".{kind}-????????-{glob.escape(path.name)}"))


def _put(folder: Path, path: Path) -> None:
    """Moves a folder to `path`; what was there is then where the folder was."""
    if not path.exists():
        folder.replace(path)
    elif not _exchange(folder, path):
        old = path.with_name(f".old-{secrets.token_hex(4)}-{path.name}")
        path.replace(old)
        try:
            folder.replace(path)
        except BaseException:
            old.replace(path)
            raise
        old.replace(folder)


def _put_back(path: Path) -> None:
    """Ends what a kill between the renames of `_put` has left: a folder moved aside, no other."""
    if not path.exists():
        for old in _left_beside(path, "old")[:1]:
            old.replace(path)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two paths change places in one step; False where the system does not offer that."""
    paths = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            status = library.renamex_np(*paths, ctypes.c_uint(RENAME_EXCHANGE))
        else:
            here = ctypes.c_int(AT_FDCWD)
            flag = ctypes.c_uint(RENAME_EXCHANGE)
            status = library.renameat2(here, paths[0], here, paths[1], flag)
    except (OSError, AttributeError, TypeError):  # Windows, an old C library
        return False
    # Some network file systems refuse; a real fault shows again in the renames that follow.
    return bool(status == 0)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any, *, indent: bool = True) -> None:
    """Writes JSON (NumPy arrays and numbers included) whole or not at all."""
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    write_bytes(path, orjson.dumps(content, option=options) + b"\n")


def to_plain(facts: Any) -> Any:
    """A struct as dicts and lists for `write_json`; NumPy's numbers, as callers pass them, too."""
    return msgspec.to_builtins(facts, enc_hook=lambda value: value.tolist())


def read_json(path: Path) -> Any:
    """Reads a JSON file; an InputError if it is missing, not JSON (cut off, say), or not a file."""
    try:
        return parse_json(path, read_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None


def read_json_as(path: Path, kind: type[Kind], remedy: str) -> Kind:
    """Reads a JSON file whose fields have the types of a dataclass or msgspec struct; an InputError
    as from `read_json`, or if a field is missing or of another type."""
    try:
        return msgspec.convert(read_json(path), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(f"{path}: {error}; {remedy}") from None


def parse_json(path: Path, content: bytes) -> Any:
    """The content of the JSON file `path`; an InputError if it is not JSON."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON, or cut off: {error.msg} at line {error.lineno}, "
            f"column {error.colno}; fetch or write the file again"
        ) from None


def leads_out(path: Path | str, top: Path | str) -> bool:
    """Whether `path`, all links followed, lies outside `top`, which may itself be a link."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))


def sha256(path: Path) -> str:
    """64 hexadecimal digits; UnfitFile if the file is larger than any of the kit's."""
    with open_file(path, LARGEST_HASHED) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of each file of a folder into its checksums.json."""
    write_json(folder / CHECKSUMS, {path.name: sha256(path) for path in sorted(folder.iterdir())})


def damaged_files(folder: Path, only: str | None = None) -> list[str]:
    """The files of a folder that are missing or not what its checksums.json says; that file itself
    where it is missing or no list of checksums: nothing is known to be whole without it. `only`
    checks one file instead of all."""
    try:
        expected = read_json(folder / CHECKSUMS)
    except InputError:
        return [CHECKSUMS]
    if not isinstance(expected, dict):
        return [CHECKSUMS]
    return [
        name
        for name, digest in expected.items()
        if name == (only or name)
        and not ((folder / name).is_file() and sha256(folder / name) == digest)
    ]


def md5(path: Path, advance: Callable[[int], object]) -> str:
    """The file's MD5 as 32 hexadecimal digits; `advance` gets the size of each piece read."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in read_pieces(path):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def read_pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes, a megabyte at a time."""
    with open_file(path) as handle:
        while piece := handle.read(2**20):
            yield piece


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds the lock file `path` until the process ends, however it ends; a WorldError with the
    text `busy` if another process holds it. The empty file stays: removing it would let two
    processes hold two files of one name."""
    # Costs 0.1 s, which those who only read or write need not pay.
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            # NFS without locks, Lustre without flock: a file that names its process does too.
            path = path.with_name(f"{path.name}.soft")
            busy += f" (or remove {path} where nothing works there, on this machine or another)"
            lock = SoftFileLock(path)
            lock.acquire(timeout=0)
    except Timeout:
        raise WorldError(busy) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_remedies(place: Path | str, kept: str) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into a WorldError with the remedy; `kept` says
    for a full disk what holds of the rest: "the checkpoint before is whole; ..."."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise WorldError(f"{place}: the disk is full; {kept}") from None
        if error.errno in READ_ONLY:
            raise WorldError(system_sentence(error, str(place))) from None
        raise


def system_sentence(error: OSError, place: str = "") -> str:
    """What the system refused, of which file (else `place`), and what helps, in one sentence."""
    place = str(error.filename or place)
    named = f"{place}: " if place else ""
    told = named + (error.strerror or one_line(error))
    if error.errno in FULL:
        return f"{named}the disk is full; make room, or give another place"
    if error.errno == errno.EFBIG:
        return f"{told}; raise the limit (ulimit -f), or give a place on another disk"
    if error.errno in READ_ONLY:
        return f"{told}; make it writable, or give another place"
    if error.errno in TOO_MANY_FILES:
        return f"{told}; {MORE_FILES}"
    return told


def reserve(path: Path) -> None:
    """Reserves disk space for a file with holes, where the system can; an OSError if the disk is
    full. Otherwise writing into a mapped hole would end the process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _flush(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())

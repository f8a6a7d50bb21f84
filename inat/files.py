"""Whole files or none: atomic writes, JSON in and out, checksums."""

import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from inat.errors import InputError, WorldError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on leaving without an error it becomes `path`.

    The bytes are flushed to the disk before the rename, so that a power cut leaves the old
    file or the new one, never a part of either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end: writers such as numpy.save and savefig go by it.
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`; on leaving without an error it takes `path`'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    partial = path.with_name(f".partial-{token}-{path.name}")
    old = path.with_name(f".old-{token}-{path.name}")
    partial.mkdir()
    try:
        yield partial
        for written in partial.rglob("*"):
            if written.is_file():
                _flush(written)
        if path.exists():
            path.replace(old)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what writers of the folder `path` that were killed left beside it; for those who
    know that nobody else writes it now."""
    for kind in ("partial", "old"):
        for left in path.parent.glob(f".{kind}-????????-{glob.escape(path.name)}"):
            shutil.rmtree(left, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any, *, indent: bool = True) -> None:
    """Writes JSON (NumPy arrays and numbers included) whole or not at all."""
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    write_bytes(path, orjson.dumps(content, option=options) + b"\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: the file is missing, or is not JSON (cut off, say).
    """
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON, or cut off: {error.msg} at line {error.lineno}, "
            f"column {error.colno}; fetch or write the file again"
        ) from None


def leads_out(path: Path | str, top: Path | str) -> bool:
    """Whether `path`, all links followed, lies outside `top`, which may itself be a link."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def md5(path: Path, advance: Callable[[int], object]) -> str:
    """The file's MD5 as 32 hexadecimal digits.

    Args:
        path: the file.
        advance: told the size of each piece that was read, in bytes.
    """
    digest = hashlib.md5(usedforsecurity=False)
    for piece in read_pieces(path):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def read_pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes, a megabyte at a time."""
    with path.open("rb") as handle:
        while piece := handle.read(2**20):
            yield piece


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds the lock file `path`; a process that ends, however it ends, lets go of it.

    The empty file stays: removing it would let two processes hold two files of one name.

    Raises:
        WorldError: another process holds it; the text is `busy`.
    """
    # Costs 0.1 s, which those who only read or write need not pay.
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise WorldError(busy) from None
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())

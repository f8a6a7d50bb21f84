"""Hypothesis strategies that damage a valid file: its bytes, the values of its JSON, or the whole
file, which becomes a pipe, a huge file that takes no room, or one that unpacks to gigabytes."""

import copy
import gzip
import io
import json
import os
import signal
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2, 255, 2**31, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30]
TEXTS = ["", " ", ".", "..", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "é", "\ud800",
         "NaN", "1e999", "9" * 400, "2018-99-99", "<b>", "null", "uniform"]  # fmt: skip
LONG = "a number of 5,000 digits"  # Python itself writes 4,300 at most
DEEP: Any = None
for _ in range(60):
    DEEP = [DEEP]
VALUES = [None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), LONG,
          [], {}, [[]], [{}], [None], {"id": 1}, [1, 2], DEEP, *NUMBERS, *TEXTS]  # fmt: skip
WORDS = [struct.pack(form, number % 2**32) for number in NUMBERS for form in ("<I", ">I")]

odd_values = st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=6)


@st.composite
def damaged_bytes(
    draw: st.DrawFn, valid: bytes, words: tuple[bytes, ...] = (), keep: int = 0
) -> bytes:
    """`valid` with one to four changes: bits, a cut, bytes put in, taken out or repeated.

    Half of the changes are near the beginning, where headers stand; the first `keep` bytes, by
    which a file is known, stay mostly as they are.
    """
    content = bytearray(valid)
    pieces = st.sampled_from([*WORDS, *words, b"\0", b"\xff"]) | st.binary(max_size=6)
    for _ in range(draw(st.integers(1, 4))):
        low = min(keep, len(content)) if draw(st.integers(0, 29)) else 0
        near = st.integers(low, min(len(content), low + 200))
        far = st.integers(low, len(content))
        at, length = draw(near | far), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["bit", "bit", "over", "over", "in", "out", "again", "cut"]))
        if kind == "bit" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "over":
            piece = draw(pieces)
            content[at : at + len(piece)] = piece
        elif kind == "in":
            content[at:at] = draw(pieces)
        elif kind == "out":
            del content[at : at + length]
        elif kind == "again":
            content[at:at] = content[at : at + length]
        elif kind == "cut":
            del content[at:]
    return bytes(content)


@st.composite
def damaged_tree(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value with one to three of its values replaced, taken out, repeated or moved."""
    tree = {"": copy.deepcopy(valid)}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(["odd", "odd", "odd", "out", "other", "again"]))
        if kind == "odd":
            holder[key] = copy.deepcopy(draw(odd_values))  # else a later change would stay
        elif kind == "out" and holder is not tree:
            del holder[key]
        elif kind == "other":
            giver, name = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(giver[name])
        elif kind == "again" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == "again":
            holder[draw(st.sampled_from(TEXTS))] = copy.deepcopy(holder[key])
    return tree.get("")


def damaged_json(valid: Any) -> st.SearchStrategy[bytes]:
    """A JSON file with other values, or with damaged bytes."""
    trees = damaged_tree(valid).map(json_bytes)
    return trees | trees | damaged_bytes(json_bytes(valid))


def json_bytes(tree: Any) -> bytes:
    """JSON with all that a stranger may write: NaN, lone surrogates, a number of 5,000 digits."""
    return json.dumps(tree).replace(f'"{LONG}"', "9" * 5000).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


# --- the whole file --------------------------------------------------------------------------


@dataclass(frozen=True)
class Replaced:
    """What takes the place of a file, made by `make` at its path; it begins with `start`."""

    name: str
    make: Callable[[Path], object]
    start: bytes = b""


Content = bytes | Replaced


def put(path: Path, content: Content) -> None:
    """Writes a file, in whose place a pipe may lie."""
    path.unlink(missing_ok=True)
    if isinstance(content, Replaced):
        content.make(path)
    else:
        path.write_bytes(content)


def huge(start: bytes, n_bytes: int = 100 * 2**30) -> Replaced:
    """A file of `n_bytes` with this beginning; the rest takes no room on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(n_bytes)

    return Replaced(f"{n_bytes:,} bytes", make, start)


PIPE = Replaced("a pipe", os.mkfifo)


def with_replaced(contents: st.SearchStrategy[Content]) -> st.SearchStrategy[Content]:
    """The contents, and now and then a pipe or one that goes on for 100 GB of zeros."""
    grown = contents.map(lambda content: huge(content) if isinstance(content, bytes) else content)
    return now_and_then(grown | st.just(PIPE), contents, 8)


def now_and_then(
    few: st.SearchStrategy[Content], many: st.SearchStrategy[Content], draws: int
) -> st.SearchStrategy[Content]:
    """One of the few in so many draws; `one_of` takes each strategy once."""
    return st.integers(1, draws).flatmap(lambda drawn: few if drawn == draws else many)


@cache
def csv_bombs() -> list[bytes]:
    """Submissions that gzip unpacks to 2 GiB: of blank lines, of rows, of one long cell."""
    pieces = [b"\n" * 2**24, b"1,2\n" * 2**22, b"2 " * 2**23]
    header = gzip.compress(b"id,predicted\n")
    return [*(header + gzip.compress(piece) * 128 for piece in pieces), padded(header, 2**27)]


def padded(packed: bytes, n_bytes: int = 100 * 2**30) -> Replaced:
    """A gzip file followed by zeros and one more stream."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(packed)
            file.seek(n_bytes)
            file.write(gzip.compress(b""))

    return Replaced(f"padded to {n_bytes:,} bytes", make, packed)


def row_bombs(header: bytes) -> list[bytes]:
    """CSV files of 32 MB: of eight million rows without a text, and of one row."""
    row = header.count(b",") * b"," + b"\n"
    return [header + row * ((2**25 - len(header)) // len(row)), header + b"," * 2**24]


def tar_bombs(tar: bytes) -> list[Content]:
    """A tar.gz file with zeros behind it, packed and not, and one with a name of 2 GiB."""
    name = tarfile.TarInfo("name")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**31
    zeros = gzip.compress(bytes(2**24)) * 128
    whole = gzip.compress(tar)
    return [
        whole + zeros,
        huge(whole),
        padded(whole),
        gzip.compress(name.tobuf(tarfile.GNU_FORMAT)) + zeros,
    ]


def zip_bomb() -> Replaced:
    """A zip file with a list of members of 4 GiB."""
    n_bytes = 2**32 - 2
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, n_bytes, 0, 0)

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.seek(n_bytes)
            file.write(end)

    return Replaced("a list of 4 GiB", make, b"PK")


@cache
def parquet_bombs(valid: bytes) -> list[bytes]:
    """The table with many more rows of its kind, and with one text of 1 MB 4,000 times."""
    table = pq.read_table(io.BytesIO(valid))
    many, long = io.BytesIO(), io.BytesIO()
    rows = pa.table({name: pa.nulls(10**6, table[name].type) for name in table.column_names})
    with pq.ParquetWriter(many, rows.schema) as writer:
        for _ in range(50):
            writer.write_table(rows)
    texts = pa.DictionaryArray.from_arrays(np.zeros(4000, np.int32), ["x" * 10**6])
    zeros = pa.array(np.zeros(4000, np.int64))
    columns = {
        name: texts if pa.types.is_string(table[name].type) else zeros
        for name in table.column_names
    }
    pq.write_table(pa.table(columns), long, store_schema=False)
    return [many.getvalue(), long.getvalue()]


def array_bombs() -> list[Replaced]:
    """Arrays of float16 and int64 of hundreds of gigabytes, which are all there."""
    made = []
    for dtype, shape in (("<f2", (10**7, 10**4)), ("<f2", (4, 10**11)), ("<i8", (10**11,))):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype, "fortran_order": False, "shape": shape}
        )
        n_bytes = file.tell() + int(dtype[-1]) * int(np.prod(shape, dtype=object))
        made.append(huge(file.getvalue(), n_bytes))
    return made


# --- guards ----------------------------------------------------------------------------------


class Hung(BaseException):  # readers turn what is an Exception into their own errors
    """A reader did not return."""


@contextmanager
def ending(seconds: int = 60) -> Iterator[None]:
    """Fails where the block waits forever, as a read of a pipe does."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hung(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_below(n_bytes: int) -> Iterator[None]:
    """Fails where the block takes more memory at any time (on Linux; not looked at elsewhere)."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        yield
        return
    reset.write_text("5")  # the peak begins again
    before = _status_bytes("VmRSS")
    yield
    taken = _status_bytes("VmHWM") - before
    assert taken < n_bytes, f"took {taken:,} bytes"


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

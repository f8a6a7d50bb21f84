"""Reads the rows of a submission, all of them right, or says which are wrong."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from inat.core.competitions import Competition
from inat.core.errors import FaultsFound, InputError
from inat.core.files import LARGEST_TEXT, UnfitFile, open_packed

MOST_FAULTS_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the rows of a submission must hold: one row for each of `ids`, whose photos a message
    calls `photo` and `photos`, and guesses out of `categories`; None: any possible category id."""

    photo: str
    photos: str
    ids: Int64[np.ndarray, "photos"]
    categories: Int64[np.ndarray, "classes"] | None


def read_rows(path: Path, spec: Competition, wanted: Wanted) -> Int64[np.ndarray, "rows columns"]:
    """The rows of a CSV or CSV.gz in their order: the photo's id, then the guesses that count.
    FaultsFound names the first lines of each kind of fault; an InputError if the file cannot be
    read."""
    content = _content(path)
    rows = _plain_rows(content, spec)
    if rows is None or not _are_right(rows, spec, wanted):
        # Slower, and knows the lines; it also takes what is right and not plain, such as quotes.
        rows = _read_one_by_one(path, content, spec, wanted)
    return rows[:, : 1 + spec.n_scored]


def _content(path: Path) -> bytes:
    try:
        with open_packed(path, LARGEST_TEXT) as handle:
            unpacked = gzip.GzipFile(fileobj=handle) if path.suffix == ".gz" else handle
            content = unpacked.read(LARGEST_TEXT + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such submission file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not compressed by gzip, or cut off ({error!s:.80})") from None
    if len(content) > LARGEST_TEXT:
        raise UnfitFile(path, f"unpacks to more than the {LARGEST_TEXT:,} bytes of such a file")
    return content


def _plain_rows(content: bytes, spec: Competition) -> Int64[np.ndarray, "rows columns"] | None:
    """The numbers of a file that holds nothing but the header and rows as `write` makes them,
    with any line ends; None of any other."""
    number = rb"(?:0|[1-9]\d{0,17}+)"  # what int64 holds for sure
    row = number + b"," + b" ".join([number] * spec.n_guesses) + rb"\r?\n"
    header = re.escape(spec.header.encode()) + rb"\r?\n"
    if not content.endswith(b"\n"):
        content += b"\n"
    # Possessive repeats: the regex engine keeps no way back, and so no memory, for each row.
    if re.fullmatch(header + b"(?:" + row + b")*+", content) is None:
        return None
    numbers = content[content.index(b"\n") + 1 :].replace(b",", b" ")
    if not numbers:
        return np.empty((0, 1 + spec.n_guesses), np.int64)
    return np.fromstring(numbers, np.int64, sep=" ").reshape(-1, 1 + spec.n_guesses)


def _are_right(rows: Int64[np.ndarray, "rows columns"], spec: Competition, wanted: Wanted) -> bool:
    ordered = np.sort(rows[:, 1:], axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        return False
    known = (
        ordered >= spec.one_based
        if wanted.categories is None
        else np.isin(ordered, wanted.categories)
    )
    return bool(known.all()) and np.array_equal(np.sort(rows[:, 0]), np.sort(wanted.ids))


def _read_one_by_one(
    path: Path, content: bytes, spec: Competition, wanted: Wanted
) -> Int64[np.ndarray, "rows columns"]:
    faults = _Faults()
    ids, is_category = set(map(str, wanted.ids.tolist())), _category_test(spec, wanted)
    rows: dict[str, list[str]] = {}
    for line, cells in _lines(path, content, spec, faults):
        image_id = cells[0]
        if image_id in rows:
            faults.add("duplicate id", line, image_id)
        elif image_id not in ids:
            faults.add(f"id that is no {wanted.photo}", line, image_id)
        rows[image_id] = guesses = cells[-1].split(" ")
        if len(cells) != 2:
            faults.add("not two columns", line, ",".join(cells))
        else:
            _check_guesses(guesses, spec, is_category, line, faults)
    missing = sorted(ids - rows.keys(), key=int)
    if missing:
        faults.add(f"{len(missing)} of {len(ids)} {wanted.photos} have no row", None, missing[0])
    if faults.found:
        raise FaultsFound(f"{path}: " + faults.text())
    numbers = [[image_id, *guesses[: spec.n_scored]] for image_id, guesses in rows.items()]
    return np.array(numbers, np.int64).reshape(-1, 1 + spec.n_scored)


def _category_test(spec: Competition, wanted: Wanted) -> Callable[[str], object]:
    """What tells whether a guess can be a category; ids are compared as text, so 028 is none."""
    if wanted.categories is not None:
        return set(map(str, wanted.categories.tolist())).__contains__
    number = r"[1-9]\d{0,17}" if spec.one_based else r"0|[1-9]\d{0,17}"
    return re.compile(number, re.ASCII).fullmatch


def _lines(
    path: Path, content: bytes, spec: Competition, faults: "_Faults"
) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header with their line numbers; a wrong header is a fault."""
    try:
        header, _, body = content.decode().partition("\n")
        if header.rstrip("\r") != spec.header:
            faults.add(f"the header must be {spec.header!r}", 1, header.rstrip("\r"))
        rows = csv.reader(io.StringIO(body, newline=""))
        for cells in rows:
            if cells:
                yield rows.line_num + 1, cells
            else:
                faults.add("empty line", rows.line_num + 1, "")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file of plain text ({error!s:.80})") from None


def _check_guesses(
    guesses: Sequence[str],
    spec: Competition,
    is_category: Callable[[str], object],
    line: int,
    faults: "_Faults",
) -> None:
    n = spec.n_guesses
    if len(guesses) < n or (len(guesses) > n and not spec.more_guesses) or "" in guesses:
        count = f"at least {n}" if spec.more_guesses else str(n)
        what = "guess" if n == 1 else "guesses separated by one space"
        faults.add(f"not {count} {what}", line, " ".join(guesses))
        return
    if len(set(guesses)) < len(guesses):
        faults.add("a guess twice in a row", line, " ".join(guesses))
    for category in guesses:
        if not is_category(category):
            counted = " (they count from 1)" if spec.one_based else ""
            faults.add(f"a guess that is no category{counted}", line, category)


class _Faults:
    """Faults by kind, each with its first offending lines."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, line: int | None, value: str) -> None:
        where = "first" if line is None else f"line {line}"
        self.found.setdefault(kind, []).append(f"{where}: {value!r:.60}")

    def text(self) -> str:
        parts = []
        for kind, places in self.found.items():
            more = len(places) - MOST_FAULTS_SHOWN
            shown = "; ".join(places[:MOST_FAULTS_SHOWN]) + (f"; {more} more" if more > 0 else "")
            parts.append(f"{kind} ({shown})")
        return ". ".join(parts)

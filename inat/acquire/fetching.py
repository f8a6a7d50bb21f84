"""Files over HTTP: a fetch that was cut off goes on where it stopped."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import IncompleteRead
from pathlib import Path
from typing import TypeVar

import requests
import urllib3

from inat.core.errors import InputError, WorldError, one_line
from inat.core.files import read_json, read_pieces, write_json
from inat.core.progress import say

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # without a byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try, until more bytes have come
PIECE = 2**18

T = TypeVar("T")


class _Passing(Exception):
    """A fault that another try may not meet: a connection that broke, an answer of 5xx."""


@dataclass(frozen=True)
class Remote:
    """A file on a server, as it is now."""

    url: str
    size: int | None  # in bytes, where the server states it
    etag: str  # "" where the server states none
    last_modified: str  # "" where the server states none

    @property
    def version(self) -> dict[str, int | str | None]:
        """What changes when the file does."""
        return {"size": self.size, "etag": self.etag, "last_modified": self.last_modified}


def open_session() -> requests.Session:
    """Connections to be kept open from one file to the next."""
    session = requests.Session()
    # Neither a length nor a range means anything of bytes that are packed on the way.
    session.headers["Accept-Encoding"] = "identity"
    return session


def look_up(session: requests.Session, url: str) -> Remote:
    def ask() -> Remote:
        with _answer(session, "HEAD", url, {}) as response:
            return _remote(url, response)

    return _patiently(url, ask, lambda: 0)


class Part:
    """The bytes of a file that arrived so far, kept for a later call, next to a note of the version
    on the server that they are of; bytes of another version than `remote` are removed."""

    def __init__(self, path: Path, remote: Remote) -> None:
        self.path = path
        self._note = path.with_name(path.name + ".json")
        self._remote = remote
        self._digest = hashlib.md5(usedforsecurity=False)
        self.size = path.stat().st_size if path.is_file() else 0
        try:
            noted = read_json(self._note)
        except InputError:
            noted = None
        if noted != remote.version or (remote.size is not None and self.size > remote.size):
            self._restart(remote)

    @property
    def md5(self) -> str:
        """Of what is there, as 32 hexadecimal digits; `check` comes first."""
        return self._digest.hexdigest()

    def check(self, advance: Callable[[int], object]) -> None:
        """Reads what is there into the MD5."""
        for piece in read_pieces(self.path):
            self._digest.update(piece)
            advance(len(piece))

    def fetch(self, session: requests.Session, advance: Callable[[int], object]) -> None:
        """Fetches what is missing; `advance` gets the number of bytes that arrived, negative where
        some had to go. What arrived is kept when the server refuses or the connection breaks too
        often."""
        _patiently(self._remote.url, lambda: self._fetch_once(session, advance), lambda: self.size)

    def rename(self, path: Path) -> None:
        """Gives the file, flushed to the disk, its last name."""
        with self.path.open("rb") as whole:
            os.fsync(whole.fileno())
        self.path.replace(path)
        self._note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Throws away what came."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _restart(self, remote: Remote) -> None:
        self.path.write_bytes(b"")
        self.size = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        self._remote = remote
        write_json(self._note, remote.version)

    def _fetch_once(self, session: requests.Session, advance: Callable[[int], object]) -> None:
        if self.size == self._remote.size:
            return
        headers = {}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            # A weak ETag does not promise the same bytes.
            etag = "" if self._remote.etag.startswith("W/") else self._remote.etag
            if validator := etag or self._remote.last_modified:
                headers["If-Range"] = validator
        with _answer(session, "GET", self._remote.url, headers) as response:
            # Is the answer the rest of the very file that the bytes so far are of?
            stated = response.headers.get("Content-Range", "")
            place = re.match(r"bytes (\d+)-", stated)
            whole = re.search(r"/(\d+)$", stated)
            if (
                response.status_code != 206
                or place is None
                or int(place[1]) != self.size
                or (whole and int(whole[1]) != self._remote.size)
            ):
                advance(-self.size)
                self._restart(_remote(self._remote.url, response))
                if response.status_code != 200:
                    raise _Passing(f"it answered {_status(response)} to a request for the rest")
            self._take(response, advance)
        if self._remote.size not in (None, self.size):
            raise _Passing("the connection was cut")

    def _take(self, response: requests.Response, advance: Callable[[int], object]) -> None:
        with self.path.open("ab") as handle:
            while True:
                try:
                    # read1: with read, bytes that came just before a cut would be lost.
                    piece = response.raw.read1(PIECE, decode_content=False)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    raise _Passing(_reason(error)) from None
                if not piece:
                    return
                handle.write(piece)
                self._digest.update(piece)
                self.size += len(piece)
                advance(len(piece))


def _patiently(url: str, attempt: Callable[[], T], n_bytes: Callable[[], int]) -> T:
    """Tries again after passing faults, with longer and longer pauses while no more bytes come."""
    furthest, n_faults = n_bytes(), 0
    while True:
        try:
            return attempt()
        except _Passing as fault:
            if n_bytes() > furthest:
                furthest, n_faults = n_bytes(), 0
            if n_faults == len(PAUSES):
                raise WorldError(
                    f"{url}: {fault}; gave up after {n_faults + 1} tries; what came is kept: "
                    "the same command goes on from there"
                ) from None
            pause = PAUSES[n_faults]
            n_faults += 1
            say(f"{url}: {fault}; trying again in {pause:g} s")
            time.sleep(pause)


def _answer(
    session: requests.Session, method: str, url: str, headers: dict[str, str]
) -> requests.Response:
    """The server's answer, its body still to come: 200, 206 or 416."""
    try:
        response = session.request(
            method,
            url,
            headers=headers,
            stream=True,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=True,
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Passing(_reason(error)) from None
    except requests.RequestException as error:
        raise WorldError(f"{url}: {one_line(error)}; look at the address (--base-url)") from None
    if response.status_code in (200, 206, 416):
        return response
    response.close()
    if response.status_code >= 500:
        raise _Passing(f"the server answered {_status(response)}")
    raise WorldError(
        f"{url}: the server answered {_status(response)}; look at the address, or give that of a "
        "mirror (--base-url)"
    )


def _remote(url: str, response: requests.Response) -> Remote:
    length = response.headers.get("Content-Length", "")
    return Remote(
        url=url,
        size=int(length) if length.isdecimal() else None,
        etag=response.headers.get("ETag", ""),
        last_modified=response.headers.get("Last-Modified", ""),
    )


def _status(response: requests.Response) -> str:
    return one_line(f"{response.status_code} {response.reason or ''}")


def _reason(error: BaseException) -> str:
    """What broke, in the operating system's words where it said something."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, (requests.Timeout, urllib3.exceptions.ReadTimeoutError)):
        return f"nothing came for {READ_SECONDS:g} s"
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, IncompleteRead):
        return "the connection was cut"
    said = error.strerror if isinstance(error, OSError) else None
    return said or one_line(error)

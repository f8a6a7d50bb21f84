"""A download's server on loopback, with archives of a few kilobytes, that breaks when told to."""

import hashlib
import io
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inat.acquire import fetching
from inat.acquire.download import Downloaded, download
from inat.core.competitions import COMPETITIONS
from inat.core.errors import InatError, WorldError

SLUG = "inaturalist-2018"
SPEC = COMPETITIONS[SLUG]
PHOTOS, TRAIN, CATEGORIES = (
    "train_val2018.tar.gz",
    "train2018.json.tar.gz",
    "categories.json.tar.gz",
)
LOCATIONS = "inat2018_locations.zip"
DATE = "Wed, 01 Aug 2018 00:00:00 GMT"


class Mirror(ThreadingHTTPServer):
    """Files on loopback; each fault is switched on by an attribute.

    Attributes:
        files: content by name.
        log: what was asked, as "GET name" and the Range and If-Range that came with it.
        statuses: answers to come before the good ones, by "GET name".
        cuts: bytes after which the next answers with a body are cut, by name.
        headers: to send in place of the ordinary ones; None leaves one out.
        ranges: whether Range is heeded.
        before: called with "GET name" before each answer.
    """

    daemon_threads = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._monkeypatch = monkeypatch
        self.files: dict[str, bytes] = {}
        self.log: list[str] = []
        self.statuses: dict[str, list[int]] = {}
        self.cuts: dict[str, list[int]] = {}
        self.headers: dict[str, str | None] = {}
        self.ranges = True
        self.before: Callable[[str], object] = lambda asked: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/2018/"

    def offer(self, files: Mapping[str, bytes]) -> None:
        """Serves these archives, and puts their MD5s into the competition's facts."""
        self.files = dict(files)
        archives = []
        for archive in SPEC.archives:
            if archive.name in files:
                digest = hashlib.md5(files[archive.name]).hexdigest()
                archives.append(replace(archive, md5=archive.md5 and digest))
        spec = replace(SPEC, archives=tuple(archives), download_url=self.url)
        self._monkeypatch.setitem(COMPETITIONS, SLUG, spec)

    def handle_error(self, *where: Any) -> None:
        """A client that was killed is no fault of the mirror."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*where)

    def etag(self, name: str) -> str:
        return f'"{hashlib.md5(self.files[name]).hexdigest()[:8]}"'

    def asked(self) -> list[str]:
        """What was asked since the last call."""
        log, self.log = self.log, []
        return log


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        name = self.path.removeprefix("/2018/")
        asked = f"{self.command} {name}"
        conditions = [self.headers.get("Range"), self.headers.get("If-Range")]
        self.server.log.append(" ".join([asked, *filter(None, conditions)]))
        self.server.before(asked)
        if statuses := self.server.statuses.get(asked):
            self.send_error(statuses.pop(0))
        elif name not in self.server.files:
            self.send_error(404)
        else:
            self.send_file(name, *conditions)

    def send_file(self, name: str, wanted: str | None, version: str | None) -> None:
        content, etag = self.server.files[name], self.server.etag(name)
        begin = 0
        if wanted and self.server.ranges and version in (None, etag, DATE):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Length": str(len(content) - begin), "ETag": etag, "Last-Modified": DATE}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if begin else 200)
        for key, value in (headers | self.server.headers).items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cuts = self.server.cuts.get(name)
            self.wfile.write(content[begin:][: cuts.pop(0) if cuts else None])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror of nothing yet; no pauses between tries, and no flush of the machine's disks."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(os, "sync", lambda: None)
    with Mirror(monkeypatch) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tarred(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    """A tar.gz of files, and of whatever else a TarInfo says."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return packed.getvalue()


def photo(number: int, size: int = 3000) -> tuple[str, bytes]:
    """A member of the photos' archive; its bytes do not pack."""
    return f"train_val2018/Aves/{number % 3}/{number}.jpg", noise(number, size)


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, the lock and the record's times aside."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (".download.lock", "download.json")
    }


def fault(call: Callable[[], object], kind: type[InatError] = WorldError) -> str:
    """The one line of a call that gives up."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fetch(root: Path, **options: Any) -> Downloaded:
    return download(SLUG, root, **options)


def give_up(root: Path, mirror: Mirror, n_bytes: int) -> str:
    """Lets the mirror cut every connection, the first after so many bytes."""
    mirror.cuts[PHOTOS] = [n_bytes, 0, 0, 0]
    return fault(lambda: fetch(root))

"""Brings a competition's data from its server to the data root, and goes on where it stopped."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests

from inat.acquire.fetching import Part, Remote, look_up, open_session
from inat.acquire.unpacking import FETCH_AGAIN, unpack
from inat.core.competitions import Archive, Competition, find_competition
from inat.core.errors import InputError, WorldError, unknown_name
from inat.core.files import locked, md5, read_json, write_json
from inat.core.progress import progress_bar

RECORD_NAME = "download.json"  # of the archives that are whole and unpacked
LOCK_NAME = ".download.lock"
# Bytes on the disk for each byte of an archive: photos do not shrink, JSON does.
PHOTOS_UNPACKED = 1.03
FILES_UNPACKED = 10.0
MEGABYTE = 10**6


@dataclass(frozen=True)
class Downloaded:
    root: Path  # the data root
    fetched: tuple[str, ...]  # the archives that it unpacked
    complete: tuple[str, ...]  # the archives that were there already
    n_files: int  # files that the former brought

    def lines(self) -> list[str]:
        return [
            f"{self.root}: {self.n_files:,} files of {len(self.fetched)} archives, "
            f"{len(self.complete)} archives were there already"
        ]


def download(
    competition: str,
    root: Path | str,
    *,
    only: Literal["annotations", "train_val", "test", "locations"] | None = None,
    base_url: str | None = None,
    keep_archives: bool = False,
) -> Downloaded:
    """Fetches a competition's archives, checks their MD5s and unpacks them.

    An interrupted call resumes when it is made again; what is complete, as ROOT/download.json
    lists it, is not requested again.

    Args:
        competition: Kaggle name: inaturalist-2018 (160 GB).
        root: folder for the data; it, train_val2018 and test2018 in it may be links to folders
            on a larger disk. An archive that is in it already is not fetched.
        only: annotations, train_val (photos), test (photos) or locations; None: all.
        base_url: address of a mirror; None: the organisers'.
        keep_archives: keep the archives after unpacking them.

    Raises:
        InputError: an option is wrong, or a file of the same name and other content is there.
        WorldError: the network, the server or the disk fails, the MD5 is wrong, an archive is
            not safe to unpack, or another call is at work in `root`.
    """
    spec = find_competition(competition)
    if not spec.archives:
        raise InputError(
            f"{spec.slug} is not fetched by this verb; fetch its files by hand from "
            f"https://www.kaggle.com/c/{spec.slug}/data into {root}"
        )
    parts = {archive.part for archive in spec.archives}
    if only is not None and only not in parts:
        raise InputError(unknown_name("--only", only, parts))
    wanted = [archive for archive in spec.archives if only in (None, archive.part)]
    base = _checked_address(spec.download_url if base_url is None else base_url)
    root = Path(root)
    _refuse_no_folder(root)
    n_files = 0
    if todo := _incomplete(root, spec, wanted):
        busy = f"{root}: another inat data download is at work there; wait until it is done"
        with _disk_faults(root):
            root.mkdir(parents=True, exist_ok=True)
            with locked(root / LOCK_NAME, busy):
                todo = _incomplete(root, spec, wanted)  # the other one may just have done it
                n_files = _bring_all(root, spec, todo, base, keep_archives=keep_archives)
    fetched = tuple(archive.name for archive in todo)
    complete = tuple(archive.name for archive in wanted if archive.name not in fetched)
    return Downloaded(root, fetched, complete, n_files)


def _bring_all(
    root: Path, spec: Competition, todo: Sequence[Archive], base: str, *, keep_archives: bool
) -> int:
    """Fetches and unpacks; gives the number of files. The record of each archive comes last."""
    n_files = 0
    with open_session() as session:
        # Before the first byte is fetched: a file that is not there, or too small a disk.
        remotes = {
            archive.name: look_up(session, base + archive.name)
            for archive in todo
            if not (root / archive.name).exists()
        }
        _refuse_full_disk(root, todo, remotes, keep_archives=keep_archives)
        for archive in todo:
            path = root / archive.name
            if remote := remotes.get(archive.name):
                digest = _fetched(session, remote, path, archive)
            else:
                with _megabytes(f"{path.name}: checking", path.stat().st_size) as advance:
                    digest = md5(path, advance)
                if archive.md5 not in (None, digest):
                    raise WorldError(
                        f"{path}: its MD5 is {digest}, and {archive.md5} was published; "
                        f"{FETCH_AGAIN}"
                    )
            size = path.stat().st_size
            with (
                _disk_faults(root / archive.folder),
                _megabytes(f"{path.name}: unpacking", size) as advance,
            ):
                n_members = unpack(path, archive, root, advance)
            entry = {
                "url": base + archive.name,
                "md5": digest,
                "members": n_members,
                "size": size,
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            archives = _read_record(root, spec) | {archive.name: entry}
            # The record must not reach the disk before the photos, which were not flushed.
            os.sync()
            write_json(root / RECORD_NAME, {"competition": spec.slug, "archives": archives})
            if not keep_archives:
                path.unlink()
            n_files += n_members
    return n_files


def _fetched(session: requests.Session, remote: Remote, path: Path, archive: Archive) -> str:
    """Fetches an archive to `path` and returns its MD5, which is the published one."""
    part = Part(path.with_name(path.name + ".part"), remote)
    with _megabytes(f"{path.name}: checking what is there", part.size) as advance:
        part.check(advance)
    with _megabytes(path.name, (remote.size or 0) - part.size) as advance:
        part.fetch(session, advance)
    if archive.md5 not in (None, part.md5):
        part.remove()
        raise WorldError(
            f"{remote.url}: its MD5 is {part.md5}, and {archive.md5} was published; what came was "
            "removed: run the same command again, or give another --base-url"
        )
    part.rename(path)
    return part.md5


@contextmanager
def _megabytes(title: str, n_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar in whole megabytes that is told bytes."""
    rest = 0
    with progress_bar(title, max(1, round(n_bytes / MEGABYTE)), "MB") as bar:

        def advance(count: int) -> None:
            nonlocal rest
            whole, rest = divmod(rest + count, MEGABYTE)
            if whole:
                bar.advance(whole)

        yield advance


def _refuse_full_disk(
    root: Path, todo: Sequence[Archive], remotes: Mapping[str, Remote], *, keep_archives: bool
) -> None:
    """Adds up what lies on each file system when it is fullest."""
    places: dict[int, Path] = {}
    held: Counter[Path] = Counter()
    peak: Counter[Path] = Counter()
    for archive in todo:
        path, folder = root / archive.name, root / archive.folder
        _refuse_no_folder(folder)
        home = folder if folder.is_dir() else root
        archives, files = (places.setdefault(place.stat().st_dev, place) for place in (root, home))
        if remote := remotes.get(archive.name):
            size, part = (
                remote.size or archive.about_bytes or 0,
                path.with_name(path.name + ".part"),
            )
            missing = max(0, size - (part.stat().st_size if part.is_file() else 0))
        else:
            size, missing = path.stat().st_size, 0
        held[archives] += missing
        if archive.folder:
            there = (file.stat().st_size for file in home.rglob("*") if file.is_file())
            unpacked = round(size * PHOTOS_UNPACKED) - (0 if home == root else sum(there))
        else:
            unpacked = round(size * FILES_UNPACKED)
        held[files] += max(0, unpacked)
        peak |= held
        if not keep_archives:
            held[archives] -= size
    for place, needed in peak.items():
        free = shutil.disk_usage(place).free
        if needed > free:
            raise WorldError(
                f"{place}: {_shown(needed)} are needed there and {_shown(free)} are free; make "
                "room, or put a link to a folder on a larger disk in its place"
            )


def _shown(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes} bytes"


def _checked_address(url: str) -> str:
    if "@" in url:  # a password or token would stand in messages and in the record
        raise InputError("--base-url holds a user name or a password; put it into ~/.netrc")
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise InputError(
            f"--base-url {url!r:.120} is no address of a folder; it looks like https://host/2018/"
        )
    return url.rstrip("/") + "/"


def _refuse_no_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.is_symlink():
        raise InputError(f"{path}: is a link to a folder that is not there; make it or mount it")
    if path.exists():
        raise InputError(f"{path}: is no folder; the data needs one there")


def _incomplete(root: Path, spec: Competition, wanted: Sequence[Archive]) -> list[Archive]:
    recorded = _read_record(root, spec)
    return [
        archive
        for archive in wanted
        if (entry := recorded.get(archive.name)) is None
        or archive.md5 not in (None, entry["md5"])
        or not all((root / name).is_file() for name in archive.files)
        or not (root / archive.folder).is_dir()
    ]


def _read_record(root: Path, spec: Competition) -> dict[str, dict[str, Any]]:
    path = root / RECORD_NAME
    if not path.exists():
        return {}
    document = read_json(path)
    try:
        competition, archives = document["competition"], document["archives"]
        has_md5s = all("md5" in entry for entry in archives.values())
    except (KeyError, TypeError, AttributeError):
        has_md5s = False
    if not has_md5s:
        raise InputError(f"{path}: is no record of inat data download; move it away")
    if competition != spec.slug:
        raise InputError(f"{root}: holds the data of {competition}; give another --root")
    return dict(archives)


@contextmanager
def _disk_faults(place: Path) -> Iterator[None]:
    """Says what the disk did in one line; of a write the system does not name the file."""
    try:
        yield
    except OSError as error:
        raise WorldError(
            f"{error.filename or place}: {error.strerror or error}; mend that, and the same "
            "command goes on from there"
        ) from None

"""Packs the photos of a data set into shards, one part at a time.

A part is a stretch of the sorted file names: each machine then walks folders of its own. A shard
holds a fixed number of them, so that each can be made without the others and has the same bytes
whatever was interrupted before.
"""

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import simplejpeg

from inat.acquire.parts import (
    Finding,
    load_splits,
    names_digest,
    naming_disk_faults,
    parse_part,
    part_range,
    photo_names,
)
from inat.core.competitions import Competition, find_competition
from inat.core.errors import InputError
from inat.core.files import (
    atomic_file,
    locked,
    read_json,
    read_json_as,
    sha256,
    to_plain,
    write_json,
)
from inat.core.progress import Bar, progress_bar
from inat.core.threads import in_order, stretches, usable_processors
from inat.photos.decode import BadPhoto, Box, decode_factor, decode_whole, read_header, shrink
from inat.photos.pack import (
    FACTS,
    FORMAT_VERSION,
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    MISSING,
    PHOTOS_FOLDER,
    SHARD_SCHEMA,
    PackedPhotos,
    PackFile,
    Part,
    Settings,
    checksum,
    part_folder,
    part_folders,
    read_settings,
    refuse_other_settings,
    shard_name,
)
from inat.photos.sources import PhotoSource, open_photos

PHOTOS_PER_SHARD = 8192
"""About 600 MB of photos of 384 px; a process that reads the whole of iNat-2018 maps 75 files."""

PHOTOS_PER_BATCH = 128
"""Photos that the writer holds at once, besides those read ahead."""

SPARE = 1.5
"""A JPEG is decoded at a scale at which it is still so many times as large as the result."""

LONGEST_SIDE = 65_500
"""Pixels; a JPEG has no room for more."""

SETTINGS = "settings.json"
Trouble = Literal["missing", "bad", "recovered"]
TROUBLES: tuple[Trouble, ...] = ("missing", "bad", "recovered")


class _ShardFinding(msgspec.Struct):
    """A troubled photo of a shard; `position` counts within the shard."""

    position: int
    file_name: str
    reason: str


class _ShardFacts(msgspec.Struct):
    """A finished shard: its file, the place of its first photo in the part, its troubled photos."""

    file: PackFile
    first: int
    n_reduced: int
    missing: list[_ShardFinding]
    bad: list[_ShardFinding]
    recovered: list[_ShardFinding]


@dataclass(frozen=True)
class Packed:
    """A part of a pack that was made."""

    root: Path  # the pack
    manifest: Path  # the part's list of shards and troubled photos
    part: str  # which part of how many
    n_photos: int  # photos of the part
    n_reduced: int  # those that were shrunk; the others were stored as they are
    n_bytes: int  # size of its shards
    # Photos that could not be read; the pack says so when it is asked for them
    missing: list[Finding]
    bad: list[Finding]  # photos that cannot be decoded; stored as they are
    recovered: list[Finding]  # photos that were decoded after a repair

    def lines(self) -> list[str]:
        return [
            f"{self.root}: part {self.part}, {self.n_photos:,} photos, {self.n_reduced:,} reduced, "
            f"{len(self.recovered):,} recovered, {self.n_bytes / 1e6:,.1f} MB"
        ]

    def faults(self) -> str:
        """What is wrong with the photos, in one line; "" where nothing is."""
        if not self.missing and not self.bad:
            return ""
        first = str((self.missing or self.bad)[0])
        return (
            f"{self.root}: part {self.part} is packed, but of its {self.n_photos:,} photos "
            f"{len(self.missing):,} missing, {len(self.bad):,} bad (first: {first}); all are "
            f"listed in {self.manifest}; mend them and run the same command again"
        )


def pack_photos(
    root: Path | str,
    out: Path | str,
    *,
    short_side: int = 384,
    quality: int = 92,
    part: str = "1/1",
    workers: int | None = None,
    competition: str = "inaturalist-2018",
) -> Packed:
    """Packs the photos of a data set into large files, which every verb takes for the folder.

    An interrupted call resumes when it is made again; N machines each pack one part. A photo whose
    short side is at most `short_side` is stored as it is, byte for byte. A larger one is turned
    upright, shrunk and encoded as a JPEG with 4:2:0 chroma, as cameras do; EXIF data and color
    profiles, which no loader here uses, are left out. Bad photos are stored as they are, so that
    reading them fails as before.

    Args:
        root: folder of the data set, or a pack of it.
        out: folder of the pack; the annotation files are linked or copied there.
        short_side: short side of the shrunk photos, in pixels.
        quality: JPEG quality of the shrunk photos, 1 to 100.
        part: I/N: the I-th of N equal stretches of the sorted file names.
        workers: threads that read, shrink and encode; 0 does it in this one; None: one per
            processor. The bytes are the same for any number.
        competition: Kaggle name; it decides the names of the annotation files.

    Raises:
        InputError: an option is wrong, or `out` holds something else, or parts that were made
            with other settings.
        WorldError: another process packs this part, or the disk is full.
    """
    root, out = Path(root), Path(out)
    if short_side < 1:
        raise InputError(f"--short-side {short_side} is less than 1; 384 serves crops of 224")
    if not 1 <= quality <= 100:
        raise InputError(f"--quality {quality} is not from 1 to 100; 92 is hardly seen")
    if workers is not None and workers < 0:
        raise InputError(f"--workers {workers} is less than 0; give 0 or more")
    number, n_parts = parse_part(part)
    spec = find_competition(competition)
    all_names = photo_names(load_splits(root, spec))
    settings = Settings(FORMAT_VERSION, short_side, quality, names_digest(all_names))
    folder = part_folder(out, number, n_parts)
    _refuse_place(root, out, folder, n_parts, settings)
    with naming_disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    span = part_range(len(all_names), number, n_parts)
    names = all_names.slice(span.start, len(span))
    threads = usable_processors() if workers is None else workers
    busy = f"{folder}: another process packs this part; wait for it, or pack another part"
    with locked(folder / ".lock", busy):
        _Writer(root, out, folder, spec, settings).write(names, number, n_parts, threads)
    document = read_json(folder / MANIFEST)
    found = {kind: [Finding(**finding) for finding in document[kind]] for kind in TROUBLES}
    n_bytes = sum(shard["n_bytes"] for shard in document["shards"])
    n_photos, n_reduced = document["n_photos"], document["n_reduced"]
    return Packed(out, folder / MANIFEST, part, n_photos, n_reduced, n_bytes, **found)


@dataclass(frozen=True)
class _Photo:
    """A photo as it goes into a shard, and what was wrong with it."""

    file_name: str
    content: bytes | memoryview | None = None
    size: tuple[int, int] = (0, 0)
    original_size: tuple[int, int] = (0, 0)
    reduced: bool = False
    trouble: Trouble | None = None
    reason: str = ""

    def row(self) -> dict[str, Any]:
        content = self.content
        return {
            "file_name": self.file_name,
            "checksum": 0 if content is None else checksum(self.file_name, content),
            "height": self.size[0],
            "width": self.size[1],
            "original_height": self.original_size[0],
            "original_width": self.original_size[1],
            "reduced": self.reduced,
            "content": content,
        }


@dataclass(frozen=True, eq=False)
class _Preparer:
    """Reads a photo and converts it to what is stored."""

    source: PhotoSource
    names: pa.StringArray
    settings: Settings

    def __call__(self, index: int) -> _Photo:
        name = str(self.names[index])
        try:
            content = self.source.read(index)
        except BadPhoto as error:
            return _Photo(name, trouble="missing", reason=str(error))
        try:
            header = read_header(content)
            pixels, recovered = decode_whole(header, self._factor(*header.size))
        except BadPhoto as error:
            return _Photo(name, content, trouble="bad", reason=str(error))
        original_size = header.size
        if isinstance(self.source, PackedPhotos):
            original_size = self.source.original_size(index)
        trouble: Trouble | None = "recovered" if recovered else None
        size = target_size(*header.size, self.settings.short_side)
        if reduced := size != header.size:
            content = simplejpeg.encode_jpeg(
                shrink(pixels, *size), self.settings.quality, colorsubsampling="420", fastdct=False
            )
        return _Photo(name, content, size, original_size, reduced, trouble, recovered)

    def _factor(self, height: int, width: int) -> int:
        short_side = self.settings.short_side
        if target_size(height, width, short_side) == (height, width):
            return 8  # only looked at whether it can be decoded
        return decode_factor(Box(0, 0, height, width), short_side, SPARE)


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size at which a photo is stored: its own, or one with this short side."""
    scale = short_side / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return size if scale < 1 and max(size) <= LONGEST_SIDE else (height, width)


@dataclass(frozen=True)
class _Writer:
    """Writes the missing shards of a part, its index and, last, its manifest."""

    root: Path
    out: Path
    folder: Path
    spec: Competition
    settings: Settings

    def write(self, names: pa.StringArray, number: int, n_parts: int, threads: int) -> None:
        for left_over in self.folder.glob(".partial-*"):
            left_over.unlink()
        self._write_json(SETTINGS, asdict(self.settings))
        place_annotations(self.root, self.out, self.spec)
        prepare = _Preparer(open_photos(self.root, names), names, self.settings)
        shards = dict(enumerate(stretches(len(names), PHOTOS_PER_SHARD)))
        wanted = {
            shard: photos
            for shard, photos in shards.items()
            if not self._is_whole(shard, photos, prepare)
        }
        if wanted:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        with progress_bar(f"pack {number}/{n_parts}", len(names), "photos") as bar:
            bar.advance(len(names) - sum(map(len, wanted.values())))
            indices = chain.from_iterable(wanted.values())
            # One queue for all shards: the threads do not wait while a shard is finished.
            with closing(in_order(prepare, indices, threads)) as prepared:
                for shard, photos in wanted.items():
                    self._write_shard(shard, photos.start, islice(prepared, len(photos)), bar)
        self._finish(len(shards), number, n_parts)

    def _is_whole(self, shard: int, photos: range, prepare: _Preparer) -> bool:
        """Whether the shard is there, and its missing and bad photos are still what they were."""
        path = self.folder / shard_name(shard)
        if not path.is_file() or not _facts_path(path).is_file():
            return False
        facts = _read_facts(path)
        same_photos = (facts.first, facts.file.n_photos) == (photos.start, len(photos))
        if not same_photos or path.stat().st_size != facts.file.n_bytes:
            return False
        for trouble, findings in (("missing", facts.missing), ("bad", facts.bad)):
            for finding in findings:
                now = prepare(photos[finding.position])
                if (now.trouble, now.reason) != (trouble, finding.reason):
                    return False
        return True

    def _write_shard(self, shard: int, first: int, photos: Iterator[_Photo], bar: Bar) -> None:
        path = self.folder / shard_name(shard)
        # What is known of an older shard of that name must not be taken for this one's.
        _facts_path(path).unlink(missing_ok=True)
        found: dict[Trouble, list[_ShardFinding]] = {trouble: [] for trouble in TROUBLES}
        n_photos = n_reduced = 0
        with (
            naming_disk_faults(path),
            atomic_file(path) as partial,
            pa.OSFile(os.fspath(partial), "wb") as sink,
            pa.ipc.new_file(sink, SHARD_SCHEMA) as writer,
        ):
            while batch := list(islice(photos, PHOTOS_PER_BATCH)):
                rows = [photo.row() for photo in batch]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, SHARD_SCHEMA))
                for position, photo in enumerate(batch, n_photos):
                    if photo.trouble:
                        finding = _ShardFinding(position, photo.file_name, photo.reason)
                        found[photo.trouble].append(finding)
                n_photos += len(batch)
                n_reduced += sum(photo.reduced for photo in batch)
                bar.advance(len(batch))
        facts = _ShardFacts(_described(path, n_photos), first, n_reduced, **found)
        self._write_json(_facts_path(path).name, to_plain(facts))

    def _finish(self, n_shards: int, number: int, n_parts: int) -> None:
        paths = [self.folder / shard_name(shard) for shard in range(n_shards)]
        facts = [_read_facts(path) for path in paths]
        index = self.folder / INDEX
        tables = [shard_index(path, shard) for shard, path in enumerate(paths)]
        table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables])
        columns = [column.combine_chunks() for column in table.columns]
        with (
            naming_disk_faults(index),
            atomic_file(index) as partial,
            pa.OSFile(os.fspath(partial), "wb") as sink,
            pa.ipc.new_file(sink, INDEX_SCHEMA) as writer,
        ):
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=INDEX_SCHEMA))
        part = Part(
            folder=self.folder,
            number=number,
            n_parts=n_parts,
            settings=self.settings,
            shards=tuple(fact.file for fact in facts),
            index=_described(index, len(table)),
        )
        found = {
            trouble: [
                {"file_name": finding.file_name, "reason": finding.reason}
                for fact in facts
                for finding in getattr(fact, trouble)
            ]
            for trouble in TROUBLES
        }
        n_reduced = sum(fact.n_reduced for fact in facts)
        self._write_json(MANIFEST, part.manifest(n_photos=len(table), n_reduced=n_reduced, **found))

    def _write_json(self, name: str, content: Any) -> None:
        path = self.folder / name
        with naming_disk_faults(path):
            write_json(path, content)


def place_annotations(root: Path, out: Path, spec: Competition) -> None:
    """Links the annotation files into the pack, or copies them where links cannot be had."""
    names = [*spec.annotation_files.values(), *spec.locations_files.values(), "categories.json"]
    for name in names:
        source, target = root / name, out / name
        if not source.is_file() or (target.is_file() and filecmp.cmp(source, target)):
            continue
        with naming_disk_faults(target), atomic_file(target) as partial:
            try:
                partial.unlink()
                os.link(source.resolve(), partial)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(source, partial)


def shard_index(path: Path, shard: int) -> pa.Table:
    """A row of the index for each photo of a shard, read from the shard."""
    content = pa.memory_map(os.fspath(path)).read_buffer()
    reader = pa.ipc.open_file(content)
    batches = []
    for batch in map(reader.get_batch, range(reader.num_record_batches)):
        photos = batch["content"]
        _, edges, packed = photos.buffers()
        edges = np.frombuffer(edges, np.int64)[: len(photos) + 1]
        first = packed.address - content.address if packed is not None else 0
        is_missing = photos.is_null().to_numpy(zero_copy_only=False)
        places = [
            pa.array(np.full(len(photos), shard, np.int32)),
            # Where no photo of a batch is there, Arrow's empty buffer lies anywhere in memory.
            pa.array(np.where(is_missing, 0, first + edges[:-1])),
            pa.array(np.where(is_missing, MISSING, np.diff(edges))),
        ]
        facts = [batch[name] for name, _ in FACTS]
        batches.append(pa.RecordBatch.from_arrays([*facts, *places], schema=INDEX_SCHEMA))
    return pa.Table.from_batches(batches, INDEX_SCHEMA)


def _described(path: Path, n_photos: int) -> PackFile:
    return PackFile(path.name, n_photos, path.stat().st_size, sha256(path))


def _facts_path(shard: Path) -> Path:
    """The file that says that a shard is whole, and what is in it; written after it."""
    return shard.with_suffix(".json")


def _read_facts(shard: Path) -> _ShardFacts:
    return read_json_as(_facts_path(shard), _ShardFacts, "delete it, and the shard is packed again")


def _refuse_place(root: Path, out: Path, folder: Path, n_parts: int, settings: Settings) -> None:
    """Refuses a folder that is no pack, or one begun with another cut or other settings."""
    if out.resolve() == root.resolve():
        raise InputError(f"{out}: is the data set's own folder; give another --out")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is no folder; give another --out")
    begun_parts = part_folders(out)
    if out.is_dir() and not begun_parts:
        # Another process may just have begun the pack.
        others = [path.name for path in out.iterdir() if path.name != PHOTOS_FOLDER]
        if others:
            raise InputError(
                f"{out}: the folder is not empty and holds no pack (but {others[0]}); give a new "
                "--out"
            )
    for (_, cut), begun in begun_parts.items():
        if cut != n_parts:
            raise InputError(
                f"{begun} is one of {cut} parts, but {folder.name} was asked for; use the same "
                "number of parts, or give another --out"
            )
        if (begun / SETTINGS).is_file():
            theirs = read_settings(begun / SETTINGS, read_json(begun / SETTINGS))
            refuse_other_settings(begun, theirs, f"{folder.name} is to be", settings)

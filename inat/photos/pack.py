"""A pack of photos: Arrow IPC shards, memory-mapped, with a checksum for every photo.

`PACK/photos/part-0001-of-0004/` holds the shards with the photos (`shard-00000.arrow`, ...),
`index.arrow` with the place of each photo in them, and `manifest.json`, which is written last.
The annotation files stand in `PACK` itself. The parts of a pack are joined by reading their
manifests.
"""

import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from xxhash import xxh3_64_intdigest

from inat.core.errors import InputError
from inat.core.files import leads_out, open_file, read_json
from inat.photos.decode import BadPhoto

FORMAT_VERSION = 1
PHOTOS_FOLDER = "photos"
MANIFEST = "manifest.json"
INDEX = "index.arrow"

FACTS = [
    ("file_name", pa.string()),
    ("checksum", pa.uint64()),  # of name and content
    ("height", pa.int32()),  # of the stored photo, upright; 0 where it is bad or missing
    ("width", pa.int32()),
    ("original_height", pa.int32()),  # of the file that was packed, upright
    ("original_width", pa.int32()),
    ("reduced", pa.bool_()),  # shrunk and encoded anew; else the file, byte for byte
]
SHARD_SCHEMA = pa.schema([*FACTS, ("content", pa.large_binary())])  # null: the file was missing
INDEX_SCHEMA = pa.schema(
    [*FACTS, ("shard", pa.int32()), ("offset", pa.int64()), ("length", pa.int64())]
)
MISSING = -1  # the length of a photo that was missing


@dataclass(frozen=True)
class Settings:
    """What must be the same in all parts of a pack."""

    format_version: int  # of the files
    short_side: int  # of the reduced photos, in pixels
    quality: int  # of the reduced photos, 1..100
    photos: str  # SHA-256 of the list of all photos, which the annotations decide

    def __str__(self) -> str:
        return (
            f"format {self.format_version}, short side {self.short_side}, "
            f"quality {self.quality}, list of photos {self.photos[:12]}"
        )


@dataclass(frozen=True)
class PackFile:
    name: str
    n_photos: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    folder: Path
    number: int  # counted from 1
    n_parts: int  # parts of the whole pack
    settings: Settings
    shards: tuple[PackFile, ...]  # the files with the photos
    index: PackFile  # the file with their places

    @property
    def files(self) -> tuple[PackFile, ...]:
        return (*self.shards, self.index)

    def manifest(self, **more: Any) -> dict[str, Any]:
        return {
            **asdict(self.settings),
            "part": self.number,
            "parts": self.n_parts,
            "shards": self.shards,
            "index": self.index,
            **more,
        }

    @property
    def remedy(self) -> str:
        return (
            f"pack part {self.number}/{self.n_parts} again (inat data pack ROOT "
            f"--out {self.folder.parents[1]} --short-side {self.settings.short_side} "
            f"--quality {self.settings.quality} --part {self.number}/{self.n_parts})"
        )


class PackedPhotos:
    """Photos of a pack, by their position in a list of names.

    Threads may share it. Pickled it is a row number a photo: the other process maps the files
    anew, the shards when they are first read. Raises InputError where parts do not belong together,
    are cut off, or lack one of the photos.
    """

    _rows: Int64[np.ndarray, "photos"]  # in the joined list of all parts

    def __init__(self, root: Path, file_names: pa.StringArray) -> None:
        self._open(root)
        names = pa.chunked_array([part.names for part in self._parts], pa.string())
        rows = pc.index_in(file_names, value_set=names)
        # The hash table took 250 bytes a name; Arrow would keep them for its next one.
        pa.default_memory_pool().release_unused()
        if rows.null_count:
            first = file_names[pc.index(pc.is_null(rows), True).as_py()]
            raise InputError(
                f"{root}: the pack lacks {rows.null_count:,} of {len(rows):,} photos of the "
                f"annotations (first: {first}); pack them into a new folder"
            )
        self._rows = rows.to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, index: int) -> str:
        part, row = self._place(index)
        return f"{self._root}/{part.names[row]}"

    def read(self, index: int) -> memoryview:
        """The bytes of the photo, which are those of the mapped file; nothing is copied. Raises
        BadPhoto where it was missing when the pack was made, or is not what was packed."""
        part, row = self._place(index)
        return part.read(row)

    def is_missing(self, index: int) -> bool:
        part, row = self._place(index)
        return int(part.length[row]) == MISSING

    def original_size(self, index: int) -> tuple[int, int]:
        """Height and width of the file that was packed, upright; 0 where it was bad."""
        part, row = self._place(index)
        return int(part.original_height[row]), int(part.original_width[row])

    def shard_path(self, index: int) -> Path:
        part, row = self._place(index)
        return part.shard_path(int(part.shard[row]))

    def _open(self, root: Path) -> None:
        self._root = root
        self._parts = [_MappedPart(part) for part in read_parts(root)]
        sizes = [len(part.names) for part in self._parts]
        self._starts = list(accumulate(sizes, initial=0))[:-1]
        self._identity = [part.identity for part in self._parts]

    def _place(self, index: int) -> tuple["_MappedPart", int]:
        row = int(self._rows[index])
        part = bisect_right(self._starts, row) - 1
        return self._parts[part], row - self._starts[part]

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self._root, "rows": self._rows, "identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["root"])
        if self._identity != state["identity"]:
            raise InputError(
                f"{self._root}: the pack was replaced while it was in use; start again"
            )
        self._rows = state["rows"]


class _MappedPart:
    """The index of a part and, once they are read, its shards, as mapped memory."""

    def __init__(self, part: Part) -> None:
        for file in part.files:
            _check_size(part, file)
        self._part = part
        self.identity = part.index.sha256
        index = _read_index(part)
        self.names: pa.StringArray = index["file_name"]
        self.length = index["length"].to_numpy()
        self.original_height = index["original_height"].to_numpy()
        self.original_width = index["original_width"].to_numpy()
        self.shard = index["shard"].to_numpy()
        self._offset = index["offset"].to_numpy()
        self._checksum = index["checksum"].to_numpy()
        self._maps: list[memoryview | None] = [None] * len(part.shards)

    def shard_path(self, shard: int) -> Path:
        return self._part.folder / self._part.shards[shard].name

    def read(self, row: int) -> memoryview:
        length, offset = int(self.length[row]), int(self._offset[row])
        if length == MISSING:
            raise BadPhoto("it was missing when the pack was made")
        shard = int(self.shard[row])
        content = self._map(shard)[offset : offset + length]
        # The first touch waits for the disk. NumPy lets other threads go on meanwhile; xxhash
        # and the decoder's header reader would not. Costs 5 us.
        np.bitwise_xor.reduce(np.frombuffer(content, np.uint8))
        if checksum(str(self.names[row]), content) != int(self._checksum[row]):
            raise BadPhoto(
                f"its checksum is not the one that was packed; delete {self.shard_path(shard)} "
                f"and {self._part.remedy}"
            )
        return content

    def _map(self, shard: int) -> memoryview:
        # Two threads may both map a shard that is new to them: the later one is kept.
        mapped = self._maps[shard]
        if mapped is None:
            path = self.shard_path(shard)
            try:
                with open_file(path) as handle:
                    mapped = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as error:  # ValueError: the file is empty
                reason = getattr(error, "strerror", None) or error
                raise BadPhoto(f"{path}: {reason}") from None
            self._maps[shard] = mapped
        return mapped


def is_pack(root: Path) -> bool:
    """Whether the folder is a pack, finished or begun."""
    return bool(part_folders(root))


def part_folder(root: Path, number: int, n_parts: int) -> Path:
    return root / PHOTOS_FOLDER / f"part-{number:04}-of-{n_parts:04}"


def part_folders(root: Path) -> dict[tuple[int, int], Path]:
    """The folder of each part that is there or begun, by (number, number of parts)."""
    folders = {}
    for path in sorted((root / PHOTOS_FOLDER).glob("part-*-of-*")):
        if match := re.fullmatch(r"part-(\d{4,})-of-(\d{4,})", path.name):
            folders[int(match[1]), int(match[2])] = path
    return folders


def shard_name(shard: int) -> str:
    return f"shard-{shard:05}.arrow"


def checksum(name: str, content: bytes | memoryview) -> int:
    """xxh3_64 of the content, seeded with that of the name: a photo in another's place differs.
    Takes 10 us for 100 KB."""
    return xxh3_64_intdigest(content, xxh3_64_intdigest(name.encode()))


def read_parts(root: Path) -> list[Part]:
    """The parts of a pack, in order; raises InputError where one is missing or is not like the
    first."""
    folders = part_folders(root)
    if not folders:
        raise InputError(f"{root}: holds no pack; make one with inat data pack")
    cuts = {n_parts: path for (_, n_parts), path in folders.items()}
    if len(cuts) > 1:
        first, second, *_ = cuts.values()
        raise InputError(
            f"{root}: {first.name} and {second.name} are parts of different cuts; delete one"
        )
    (n_parts,) = cuts
    finished = [number for number, _ in folders if (folders[number, n_parts] / MANIFEST).is_file()]
    missing = [number for number in range(1, n_parts + 1) if number not in finished]
    if missing == [1] and n_parts == 1:
        raise InputError(f"{root}: the pack is not finished; run its inat data pack command again")
    if missing:
        some = "part" if len(missing) == 1 else "parts"
        raise InputError(
            f"{root}: {some} {_listed(missing)} of {n_parts} missing or not finished; "
            f"pack with --part {missing[0]}/{n_parts}{' and so on' * (len(missing) > 1)}"
        )
    parts = [_read_part(folders[number, n_parts]) for number in range(1, n_parts + 1)]
    for part in parts:
        refuse_other_settings(
            parts[0].folder, parts[0].settings, f"{part.folder} was", part.settings
        )
    return parts


def refuse_other_settings(first: Path, theirs: Settings, second: str, ours: Settings) -> None:
    if ours != theirs:
        raise InputError(
            f"{first} was packed with {theirs}, but {second} with {ours}; the parts of a pack "
            "must agree: use the same settings and annotations, or give another --out"
        )


def _listed(numbers: Sequence[int], most: int = 20) -> str:
    words = [str(number) for number in numbers[:most]]
    if len(numbers) > most:
        words.append(f"{len(numbers) - most} more")
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _read_part(folder: Path) -> Part:
    path = folder / MANIFEST
    document = read_json(path)
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: a pack of format {version}, this inat reads format {FORMAT_VERSION}; pack "
            "the photos again, or read them with the inat that packed them"
        )
    try:
        part = Part(
            folder=folder,
            number=msgspec.convert(document["part"], int),
            n_parts=msgspec.convert(document["parts"], int),
            settings=read_settings(path, document),
            shards=msgspec.convert(document["shards"], tuple[PackFile, ...]),
            index=msgspec.convert(document["index"], PackFile),
        )
    except (KeyError, msgspec.ValidationError) as error:
        raise InputError(
            f"{path}: no manifest of a pack ({error}); delete it and pack that part again"
        ) from None
    names = [shard_name(shard) for shard in range(len(part.shards))] + [INDEX]
    if [file.name for file in part.files] != names:
        raise InputError(
            f"{path}: names other files than {', '.join(names[-2:])}; delete it and {part.remedy}"
        )
    return part


def read_settings(path: Path, document: Any) -> Settings:
    """The settings in a manifest or in the settings.json that a begun part has."""
    try:
        return msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: no settings of a pack ({error}); delete it and pack that part again"
        ) from None


def _check_size(part: Part, file: PackFile) -> None:
    path = part.folder / file.name
    if leads_out(path, part.folder.parent):
        raise InputError(
            f"{path}: a link leads out of {part.folder.parent}; put the file in its place"
        )
    try:
        with open_file(path) as handle:
            n_bytes = os.fstat(handle.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {part.remedy}") from None
    if n_bytes != file.n_bytes:
        raise InputError(
            f"{path}: has {n_bytes:,} bytes of {file.n_bytes:,}, it was cut off or replaced; "
            f"{part.remedy}"
        )


def _read_index(part: Part) -> pa.RecordBatch:
    path = part.folder / part.index.name
    try:
        index = pa.ipc.open_file(pa.memory_map(os.fspath(path))).get_batch(0)
        index.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: damaged ({' '.join(str(error).split())}); delete it and {part.remedy}"
        ) from None
    if index.schema != INDEX_SCHEMA:
        raise InputError(f"{path}: is no index of a pack; delete it and {part.remedy}")
    if any(column.null_count for column in index.columns):
        raise InputError(f"{path}: damaged (it has gaps); delete it and {part.remedy}")
    # Other damage shows in the photos' checksums.
    if not np.isin(index["shard"].to_numpy(), np.arange(len(part.shards))).all():
        raise InputError(f"{path}: damaged (it names no shard); delete it and {part.remedy}")
    return index

"""Tables made from annotation files, kept as Parquet so that the JSON is parsed only once.

They lie beside the data set, in `ROOT/.inat/`, or where that cannot be written in the user's
cache folder. A table is found by its key alone: a hash of the bytes of all files it was made of.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from inat.core.arrays import LARGEST_TABLE, MOST_ROWS
from inat.core.files import atomic_file, open_file
from inat.core.progress import say
from inat.dataset.annotation_files import LARGEST_ANNOTATIONS

FORMAT = 3
"""Goes up whenever the same files would give other tables: those kept before are then ignored."""

FOLDER = ".inat"
STAMP = b"inat"


def digest(path: Path) -> str:
    """Hash of the file's bytes; "" where there is no such file."""
    # xxHash, as it costs a tenth of reading the file; SHA-256 costs as much again. Nobody gains
    # by a collision: who can write a cache can write the annotations.
    try:
        with open_file(path, LARGEST_ANNOTATIONS) as handle:
            return hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest()
    except FileNotFoundError:
        return ""


def digest_of(content: bytes | None) -> str:
    """The `digest` of a file with this content; None: of no file."""
    return "" if content is None else xxhash.xxh3_128_hexdigest(content)


def key_of(*parts: str) -> str:
    """The key of a table that is made of files (or tables) with these digests (or keys)."""
    return xxhash.xxh3_128_hexdigest("\n".join((str(FORMAT), *parts)).encode())


class AnnotationCache:
    """The tables kept of one data set. New ones are found at once, but written only by `write`:
    nothing is kept of a data set with a fault, which may show in its last file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str, str], pa.Table] = {}
        self._new: list[tuple[str, str]] = []

    def find(self, name: str, key: str) -> pa.Table | None:
        """The table of that name and key; None where there is none, or a damaged one."""
        if (name, key) not in self._known:
            for path in self._places(name, key):
                if (table := _read(path, key)) is not None:
                    self._known[name, key] = table
                    break
        return self._known.get((name, key))

    def add(self, name: str, key: str, table: pa.Table) -> None:
        """Takes a table whose columns are numbers or texts without nulls."""
        self._known[name, key] = table.combine_chunks()
        self._new.append((name, key))

    def write(self) -> None:
        """Keeps the tables added since, or says once that they cannot be kept."""
        for name, key in self._new:
            self._write(name, key, self._known[name, key])
        self._new.clear()

    def _write(self, name: str, key: str, table: pa.Table) -> None:
        stamped = table.replace_schema_metadata({STAMP: _stamp(key, table)})
        reasons = []
        for path in self._places(name, key):
            try:
                with atomic_file(path) as partial:
                    # lz4: a third of the time of zstd in reading, for twice the size.
                    pq.write_table(
                        stamped, partial, compression="lz4", row_group_size=max(1, len(table)),
                        use_dictionary=False, write_statistics=False,
                    )  # fmt: skip
                return
            except OSError as error:
                reasons.append(f"{path.parent}: {error.strerror or error}")
        _say_once(
            f"{self._root}: its annotations are parsed anew each time, for the result can be "
            f"kept nowhere ({'; '.join(reasons)}); make room in one of these folders"
        )

    def _places(self, name: str, key: str) -> Iterator[Path]:
        # Beside the data one table of a name, which follows the files; elsewhere one of a key.
        yield self._root / FOLDER / f"{name}.parquet"
        user_cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        with suppress(RuntimeError):  # a container's user without a home
            folder = user_cache if user_cache.is_absolute() else Path.home() / ".cache"
            yield folder / "inat" / f"{name}-{key}.parquet"


def _read(path: Path, key: str) -> pa.Table | None:
    try:
        # Not `read_table`, to which a folder `a=1` above the file would be a column.
        with open_file(path), pq.ParquetFile(path) as file:
            if not (file.schema_arrow.metadata or {}).get(STAMP, b"").startswith(key.encode()):
                return None
            # Written without dictionaries, with which a small file may hold one text many times.
            groups = [file.metadata.row_group(at) for at in range(file.num_row_groups)]
            columns = [group.column(at) for group in groups for at in range(group.num_columns)]
            if file.metadata.num_rows > MOST_ROWS or any(
                column.has_dictionary_page for column in columns
            ):
                return None
            if sum(column.total_uncompressed_size for column in columns) > LARGEST_TABLE:
                return None
            table = file.read().combine_chunks()
        return table if table.schema.metadata[STAMP] == _stamp(key, table) else None
    except Exception:  # Arrow's readers raise nearly everything on broken files
        return None


def _stamp(key: str, table: pa.Table) -> bytes:
    """The key and a hash of the content, one chunk per column: Parquet misses a changed number."""
    content = xxhash.xxh3_128()
    for field, column in zip(table.schema, table.columns, strict=True):
        content.update(f"{field.name} {field.type} {len(column)}\n".encode())
        array = column.chunk(0)
        if not pa.types.is_string(array.type):
            content.update(array.to_numpy().data)
            continue
        _, offsets, text = array.buffers()
        ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        content.update((ends - ends[0]).data)
        content.update(np.frombuffer(text or b"", np.uint8)[ends[0] : ends[-1]].data)
    return f"{key} {content.hexdigest()}".encode()


@functools.cache
def _say_once(line: str) -> None:
    say(line)

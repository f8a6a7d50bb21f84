"""Arrays and tables from strangers: .npy, Parquet and CSV, looked at before they are believed."""

import csv
import io
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64
from numpy.lib.format import open_memmap

from inat.core.errors import InputError, shown
from inat.core.files import UnfitFile, open_file, read_file

NO_ARRAY = (
    *(ValueError, EOFError, OSError, OverflowError, FloatingPointError, MemoryError),
    *(TypeError, SyntaxError, tokenize.TokenError, RecursionError),  # the header is read as Python
)
MOST_ROWS = 10_000_000
"""Of an array or table; the largest competition has 2.7 million photos."""

LARGEST_TABLE = 2**30
"""Bytes of a table in memory."""

LARGEST_CSV = 2**25
MOST_CSV_ROWS = 1_000_000
"""Of a solution or prior, which becomes Python's lists first; the largest has 149,394 photos."""

TYPES = {
    "whole numbers": (pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    "texts": (pa.string(), pa.large_string()),
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
SIMPLE = (*TYPES["texts"], pa.null())


def read_array(path: Path, remedy: str, *dtypes: type, ndim: int) -> np.memmap:
    """Maps a .npy file; nothing is unpickled, and no memory is taken that the file does not fill.
    An axis has at most MOST_ROWS elements. An InputError ends with `remedy`."""
    try:
        # Not numpy.load, which also opens zip files, and believes a header about the size. Of an
        # overflow in a hostile shape NumPy only warns.
        with open_file(path) as file, np.errstate(all="raise"):
            array = open_memmap(path, mode="r")
            if file.seek(0, io.SEEK_END) != array.offset + array.nbytes:
                raise ValueError("there is more behind the array")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {remedy}") from None
    except UnfitFile:
        raise
    except NO_ARRAY as error:
        raise InputError(f"{path}: no array, or cut off ({_line(error)}); {remedy}") from None
    if array.dtype not in dtypes:
        expected = " or ".join(dtype.__name__ for dtype in dtypes)
        raise InputError(f"{path}: holds {array.dtype}, not {expected}; {remedy}")
    if array.ndim != ndim:
        raise InputError(f"{path}: holds {array.ndim} axes, not {ndim}; {remedy}")
    if max(array.shape) > MOST_ROWS:
        raise InputError(f"{path}: holds {array.shape} numbers, too many; {remedy}")
    return array


def read_table(
    path: Path, remedy: str, columns: Mapping[str, str], n_rows: int | None = None
) -> pd.DataFrame:
    """Reads a Parquet file, if it has no more rows than `n_rows` (or MOST_ROWS); `columns` are
    those that there must be, and what each holds: integers or text. An InputError ends with
    `remedy`."""
    try:
        # Not pandas.read_parquet: it follows what the file says of pandas, and to it a folder
        # `a=1` above the file is a column.
        with open_file(path, LARGEST_TABLE):
            table = _read_bounded(path, remedy, n_rows)
        table.validate(full=True)
        frame: pd.DataFrame = table.to_pandas()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {remedy}") from None
    except InputError:
        raise
    except Exception as error:  # Arrow's readers raise nearly everything on broken files
        raise InputError(f"{path}: no table, or cut off ({_line(error)}); {remedy}") from None
    for name, kind in columns.items():
        if table.column_names.count(name) != 1:
            raise InputError(f"{path}: has no column {name}; {remedy}")
        column = table[name]
        # A column of no rows may have been written without a type.
        if len(column) and (column.type not in TYPES[kind] or column.null_count):
            raise InputError(f"{path}: column {name} does not hold {kind}; {remedy}")
    return frame


def _read_bounded(path: Path, remedy: str, n_rows: int | None) -> pa.Table:
    """The table, whose size is looked at before it is unpacked: a file of 2 MB may hold 200 million
    rows, or one long text many times."""
    with pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    for field in schema:
        if not (pa.types.is_primitive(field.type) or field.type in SIMPLE):
            raise InputError(f"{path}: has {field.type} in the column {field.name!r}; {remedy}")
    found = metadata.num_rows
    if found > MOST_ROWS or n_rows not in (None, found):
        expected = f"not {n_rows:,}" if n_rows is not None else f"more than {MOST_ROWS:,}"
        raise InputError(f"{path}: has {found:,} rows, {expected}; {remedy}")
    n_bytes = sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))
    texts = [field.name for field in schema if field.type in TYPES["texts"]]
    if n_bytes <= LARGEST_TABLE:
        # As dictionaries, where a text that is there twice takes the room of one.
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
            table = file.read()
        for chunk in (chunk for name in set(texts) for chunk in table[name].chunks):
            lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
            n_bytes += pc.sum(lengths).as_py() or 0
    if n_bytes > LARGEST_TABLE:
        raise InputError(f"{path}: unpacks to {n_bytes:,} bytes, too many; {remedy}")
    return table.cast(schema).replace_schema_metadata()


def positions(
    ids: Int64[np.ndarray, "ids"], wanted: Int64[np.ndarray, "some"]
) -> Int64[np.ndarray, "some"]:
    """Where each of `wanted` is in `ids`, which may be in any order and must hold all of them."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids, wanted, sorter=order)]


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a CSV of at most MOST_CSV_ROWS rows with this header as text, indexed by line number; a
    FileNotFoundError if it is missing, an InputError if it is anything else."""
    header = ",".join(columns)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        text = read_file(path, LARGEST_CSV).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""))
        found = next(reader)
        if found != [*columns]:
            raise InputError(f"{path}: the header is {','.join(found)!r:.60}, it must be {header}")
        for row in filter(None, reader):
            if len(row) != len(columns):
                raise InputError(
                    f"{path}: line {reader.line_num}: {len(row)} cells, not {len(columns)}"
                )
            if len(rows) == MOST_CSV_ROWS:
                raise InputError(f"{path}: has more than {MOST_CSV_ROWS:,} rows; give another")
            lines.append(reader.line_num)
            rows.append(row)
    except (UnicodeDecodeError, csv.Error, StopIteration):
        raise InputError(f"{path}: not a CSV file with the header {header}") from None
    return pd.DataFrame(rows, index=lines, columns=[*columns], dtype=str)


def csv_cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table to be written as CSV: its texts as a terminal may show them, and no formula to a
    spreadsheet, which takes a text behind `'` for what it is."""
    safe = table.copy()
    for name in safe.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in safe.dtypes]]:
        safe[name] = [csv_cell(value) if isinstance(value, str) else value for value in safe[name]]
    return safe


def csv_cell(text: str) -> str:
    """A text as `csv_cells` has it; tabs stay: they neither end a cell nor move the cursor back."""
    return ("'" if text.startswith(FORMULA) else "") + "\t".join(map(shown, text.split("\t")))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:80]


SPECIES = {"category_id": "whole numbers", "name": "texts", "train_count": "whole numbers"}
"""The columns that every table of species has."""


def read_species(path: Path, remedy: str, n_classes: int | None = None) -> pd.DataFrame:
    """The species table of a run or prediction; a missing rank is "". Errors as `read_table`."""
    table = read_table(path, remedy, SPECIES, n_classes)
    for name in table.columns.difference([*SPECIES]):
        if not all(isinstance(value, str) for value in table[name]):
            raise InputError(f"{path}: column {name} does not hold texts; {remedy}")
    return table

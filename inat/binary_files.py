"""Arrays and tables from strangers: .npy and Parquet files, looked at before they are believed."""

import tokenize
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap

from inat.errors import InputError

NO_ARRAY = (
    *(ValueError, EOFError, OSError, OverflowError, FloatingPointError, MemoryError),
    *(TypeError, SyntaxError, tokenize.TokenError, RecursionError),  # the header is read as Python
)
TYPES = {
    "whole numbers": (pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    "texts": (pa.string(), pa.large_string()),
}


def read_array(path: Path, remedy: str, *dtypes: type, ndim: int) -> np.memmap:
    """Maps a .npy file; nothing is unpickled, and no memory is taken that the file does not fill.

    Args:
        path: the file.
        remedy: what mends a damaged one, for the message.
        *dtypes: those that are taken, in this machine's byte order.
        ndim: number of axes.

    Raises:
        InputError: it is missing, cut off, no array, or one of another kind.
    """
    try:
        # Not numpy.load, which also opens zip files, and believes a header about the size. Of an
        # overflow in a hostile shape NumPy only warns.
        with np.errstate(all="raise"):
            array = open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {remedy}") from None
    except NO_ARRAY as error:
        raise InputError(f"{path}: no array, or cut off ({_line(error)}); {remedy}") from None
    if array.dtype not in dtypes:
        expected = " or ".join(dtype.__name__ for dtype in dtypes)
        raise InputError(f"{path}: holds {array.dtype}, not {expected}; {remedy}")
    if array.ndim != ndim:
        raise InputError(f"{path}: holds {array.ndim} axes, not {ndim}; {remedy}")
    return array


def read_table(path: Path, remedy: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Reads a Parquet file.

    Args:
        path: the file.
        remedy: what mends a damaged one, for the message.
        columns: those that there must be, and what each holds: whole numbers or texts.

    Raises:
        InputError: it is missing, cut off, no table, or lacks one of the columns, or values in it.
    """
    try:
        # Not pandas.read_parquet: it follows what the file says of pandas, and to it a folder
        # `a=1` above the file is a column.
        with pq.ParquetFile(path) as file:
            table = file.read().replace_schema_metadata()
        table.validate(full=True)
        frame: pd.DataFrame = table.to_pandas()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {remedy}") from None
    except Exception as error:  # Arrow's readers raise nearly everything on broken files
        raise InputError(f"{path}: no table, or cut off ({_line(error)}); {remedy}") from None
    if any(pa.types.is_nested(field.type) for field in table.schema):
        raise InputError(f"{path}: has lists in a column; {remedy}")
    for name, kind in columns.items():
        if table.column_names.count(name) != 1:
            raise InputError(f"{path}: has no column {name}; {remedy}")
        column = table[name]
        if column.type not in TYPES[kind] or column.null_count:
            raise InputError(f"{path}: column {name} does not hold {kind}; {remedy}")
    return frame


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:80]

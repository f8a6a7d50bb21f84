"""The organisers' solution file: `id,expected,usage` with usage Public or Private."""

from pathlib import Path

import pandas as pd

from inat.core.arrays import read_csv
from inat.core.errors import InputError

COLUMNS = ["id", "expected", "usage"]


def read_solution(path: Path | str) -> pd.DataFrame:
    """Reads a solution: columns id and expected (int64) and usage (Public or Private)."""
    path = Path(path)
    try:
        table = read_csv(path, COLUMNS)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such solution file") from None
    for column in ("id", "expected"):
        wrong = ~table[column].str.fullmatch(r"-?\d{1,18}")
        if wrong.any():
            line = table.index[int(wrong.argmax())]
            raise InputError(
                f"{path}: line {line}: {column} is {table[column][line]!r:.40}, not a number"
            )
        table[column] = table[column].astype("int64")
    twice = table["id"].duplicated()
    if twice.any():
        raise InputError(f"{path}: line {table.index[int(twice.argmax())]}: the id stands twice")
    wrong = ~table["usage"].isin(["Public", "Private"])
    if wrong.any():
        line = table.index[int(wrong.argmax())]
        raise InputError(
            f"{path}: line {line}: usage is {table['usage'][line]!r:.40}; "
            "it must be Public or Private"
        )
    return table.reset_index(drop=True)

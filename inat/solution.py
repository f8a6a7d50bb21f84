"""The organisers' solution file: `id,expected,usage` with usage Public or Private."""

from pathlib import Path

import pandas as pd

from inat.errors import InputError

COLUMNS = ["id", "expected", "usage"]


def read_solution(path: Path | str) -> pd.DataFrame:
    """Reads a solution: columns id and expected (int64) and usage (Public or Private).

    Raises:
        InputError: missing, another header, an id that is no number or there twice, a usage that
            is neither Public nor Private.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such solution file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise InputError(f"{path}: not a CSV file with the header id,expected,usage") from None
    if list(table.columns) != COLUMNS:
        raise InputError(
            f"{path}: the header is {','.join(table.columns)!r:.60}, it must be id,expected,usage"
        )
    # Of rows with a cell too many pandas makes the first cell their name.
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: has rows of more than {len(COLUMNS)} cells; remove the rest")
    for column in ("id", "expected"):
        wrong = ~table[column].str.fullmatch(r"-?\d{1,18}")
        if wrong.any():
            line = int(wrong.argmax()) + 2
            raise InputError(
                f"{path}: line {line}: {column} is {table[column][line - 2]!r:.40}, not a number"
            )
        table[column] = table[column].astype("int64")
    twice = table["id"].duplicated()
    if twice.any():
        raise InputError(f"{path}: line {int(twice.argmax()) + 2}: the id stands twice")
    wrong = ~table["usage"].isin(["Public", "Private"])
    if wrong.any():
        line = int(wrong.argmax()) + 2
        raise InputError(
            f"{path}: line {line}: usage is {table['usage'][line - 2]!r:.40}; "
            "it must be Public or Private"
        )
    return table

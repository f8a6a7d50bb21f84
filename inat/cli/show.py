"""What a verb leaves on the terminal."""

import sys
from typing import Any, TextIO

from inat.core.errors import FaultsFound, shown


def print_line(line: str, file: TextIO | None = None) -> None:
    """One line for a terminal, to which names from strangers in it do no harm."""
    print(shown(line), file=file or sys.stdout)


def show(result: Any) -> None:
    """Prints the lines of a result, or of each of a list; FaultsFound if it lists faults."""
    for one in result if isinstance(result, list) else [result]:
        for line in one.lines():
            print_line(line)
        if hasattr(one, "faults") and (faults := one.faults()):
            raise FaultsFound(faults)

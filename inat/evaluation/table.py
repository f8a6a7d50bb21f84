"""Evaluations as a table for a terminal."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from inat.bands import BANDS
from inat.evaluation.evaluate import Evaluation
from inat.metrics import Interval

PLAIN_WIDTH = 200


def evaluation_table(results: Mapping[str, Evaluation]) -> Table:
    """A row an evaluation: top-1, top-3 error, mean class accuracy and shot bands, in per cent.

    Behind ± stands half the width of the 95 % interval; an empty band is –.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("top-1", "top-3 error", "mean class", *BANDS):
        sizes = {result.band_species.get(name) for result in results.values()}
        count = f"\n{sizes.pop()} species" if name in BANDS and len(sizes) == 1 else "\n%"
        table.add_column(name + count, justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(
            name,
            percent(result.top1),
            f"{100 * result.top3_error:.1f}",
            percent(result.mean_class_accuracy),
            *(percent(result.bands[band]) for band in BANDS),
        )
    return table


def percent(interval: Interval | None) -> str:
    """81.4 ±2.1, or – where there is nothing to measure."""
    if interval is None:
        return "–"
    if interval.half_width is None:
        return f"{100 * interval.value:.1f}"
    return f"{100 * interval.value:.1f} ±{100 * interval.half_width:.1f}"


def print_table(table: Table) -> None:
    """Prints to standard output; wide enough never to cut a figure when that is a file."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    Console(width=width).print(table)


def plain_lines(table: Table, width: int = PLAIN_WIDTH) -> Sequence[str]:
    """The table as lines of text."""
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]

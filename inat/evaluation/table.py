"""Evaluations and comparisons as tables for a terminal."""

import sys
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table

from inat.core.bands import BANDS
from inat.core.errors import shown
from inat.core.intervals import Interval
from inat.evaluation.compare import Comparison
from inat.evaluation.evaluate import Evaluation

PLAIN_WIDTH = 200
NAME_WIDTH = 8
"""Characters that a folded name has in a line at least."""

BAR_WIDTH = 10
EIGHTHS = " ▏▎▍▌▋▊▉█"


def evaluation_table(results: Mapping[str, Evaluation]) -> Table:
    """A row per evaluation: top-1, top-3 error, mean class accuracy and shot bands, in per cent,
    each above its 95 % interval, a band's also above a bar from 0 to 100 %; an empty band is –."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("top-1", "top-3 error", "mean class", *BANDS):
        sizes = {result.band_species.get(name) for result in results.values()}
        count = f"\n{sizes.pop()} species" if name in BANDS and len(sizes) == 1 else "\n%"
        table.add_column(name + count, justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(
            shown(name),
            percent(result.top1),
            percent(result.top3_error_interval),
            percent(result.mean_class_accuracy),
            *(f"{percent(result.bands[band])}\n{_bar(result.bands[band])}" for band in BANDS),
        )
    return table


def _bar(interval: Interval | None) -> str:
    """████████▊░ for 88 %; nothing where there is nothing to measure."""
    if interval is None:
        return ""
    whole, eighths = divmod(round(8 * BAR_WIDTH * interval.value), 8)
    bar = "█" * whole + EIGHTHS[eighths].strip()
    return bar + "░" * (BAR_WIDTH - len(bar))


def further_figures(result: Evaluation) -> str:
    """Lineage, calibration and favoured bands in one line, as far as the data tells them."""
    parts = [f"{rank.rank} right {100 * rank.accuracy.value:.1f} %" for rank in result.ranks[:3]]
    if result.mistake_distance is not None and result.mistake_distance.mean is not None:
        parts.append(f"mistakes {result.mistake_distance.mean:.2f} ranks away")
    parts.append(f"macro F1 {100 * result.means.macro_f1:.1f} %")
    if (overall := result.reliability["all"]) is not None:
        parts.append(f"ECE {100 * overall.ece:.1f} %")
    parts += [
        f"{band} predicted {bias.ratio:.2f} x as often as they occur"
        for band, bias in result.prediction_bias.items()
        if bias.ratio is not None
    ]
    return "; ".join(parts)


def comparison_table(comparison: Comparison) -> Table:
    """A row a measure: both accuracies and their difference in per cent, photos won and lost, p."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("first", "second", "difference", "95 % interval", "won", "lost", "McNemar p"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = {"top-1": comparison.top1, "mean class": comparison.mean_class_accuracy}
    for name, found in (rows | comparison.bands).items():
        if found is None:
            table.add_row(name, *["–"] * 7)
            continue
        gain = found.gain
        table.add_row(
            name,
            f"{100 * found.first:.1f}",
            f"{100 * found.second:.1f}",
            f"{100 * gain.value:+.1f}",
            f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}",
            f"{found.n_gained:,}",
            f"{found.n_lost:,}",
            f"{found.p_value:.2g}",
        )
    return table


def moved_species_lines(comparison: Comparison) -> list[str]:
    """The species that gained and lost most, a line each."""
    lines = []
    for title, n_species, moved in (
        ("gained", comparison.n_species_gained, comparison.gained),
        ("lost", comparison.n_species_lost, comparison.lost),
    ):
        shown = f", the first {len(moved)}" if n_species > len(moved) else ""
        lines.append(f"{n_species:,} species {title}{shown}{':' if n_species else ''}")
        lines += [
            f"  {row.name} ({row.train_count} training photos): {row.first} -> {row.second} of "
            f"{row.n} right"
            for row in moved.itertuples(index=False)
        ]
    return lines


def percent(interval: Interval | None) -> str:
    """81.4 and below it 79.2–83.3, or – where there is nothing to measure."""
    if interval is None:
        return "–"
    return f"{100 * interval.value:.1f}\n{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def print_table(table: Table) -> None:
    """Prints to standard output; wide enough never to cut a figure when that is a file. On a
    terminal that is too narrow for the figures it prints a list, one line per figure."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, emoji=False)
    if sum(map(_least_width, table.columns)) + len(table.columns) <= console.width:
        console.print(table)
        return
    headers = [" ".join(_lines(column.header)) for column in table.columns]
    for name, *figures in zip(*(column.cells for column in table.columns), strict=True):
        print(*_lines(name))
        for header, figure in zip(headers[1:], figures, strict=True):
            texts = [line for line in _lines(figure) if line.strip(f"{EIGHTHS}░")]  # no bars
            print(f"  {header}: {' '.join(texts)}")


def _least_width(column: Column) -> int:
    """Figures are never cut; names may be folded."""
    texts = [column.header, *column.cells]
    width = max(cell_len(line) for text in texts for line in _lines(text) or [""])
    return width if column.justify == "right" else min(width, NAME_WIDTH)


def _lines(cell: RenderableType) -> list[str]:
    return str(cell).splitlines()


def plain_lines(table: Table, width: int = PLAIN_WIDTH) -> Sequence[str]:
    """The table as lines of text."""
    console = Console(
        width=width, markup=False, emoji=False, color_system=None, force_terminal=False
    )
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]

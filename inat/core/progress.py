"""Progress on the terminal: a bar where it is one, now and then a plain line where it is not."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inat.core.errors import shown

PLAIN_LINE_SECONDS = 20.0

_silent: ContextVar[bool] = ContextVar("silent", default=False)


class Bar:
    """What a loop tells of itself."""

    def __init__(self, title: str, total: int, unit: str, display: Progress | None) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._display = display
        self._task = display.add_task(shown(title), total=total, note="") if display else None
        self._done = 0
        self._began = self._last_line = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` stands behind the rate."""
        self._done += count
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        text = (f"{rate:.0f} {self._unit}/s {note}" if self._unit else note).rstrip()
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=count, note=text)
        elif time.monotonic() - self._last_line > PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / max(rate, 1e-9)
            say(f"{self._title}: {self._done}/{self._total}  {text}  {left:.0f} s left")


@contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar over `total` units on standard error; without a `unit` it shows no rate."""
    if _silent.get() or sys.stderr is None or not sys.stderr.isatty():
        yield Bar(title, total, unit, None)
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as display:
        yield Bar(title, total, unit, display)


def say(line: str) -> None:
    """One line for the person who watches, on standard error."""
    if not _silent.get() and sys.stderr is not None:
        print(shown(line), file=sys.stderr, flush=True)


@contextmanager
def silence(silent: bool) -> Iterator[None]:
    """Keeps `say` and the bars quiet, where another process says the same."""
    token = _silent.set(silent)
    try:
        yield
    finally:
        _silent.reset(token)


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list that may be long, for a line of text."""
    return ", ".join(names[:limit]) + (" ..." if len(names) > limit else "")

"""SIGINT, SIGTERM or SIGHUP during a training: it ends its step, writes a checkpoint, leaves."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from inat.core.errors import InatError
from inat.training.processes import LateGreatest, greatest

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                 if hasattr(signal, name))  # fmt: skip
"""Windows has no SIGHUP."""


class Stopped(InatError):
    """A signal asked the training to stop; what was done is kept."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; --resume goes on from the last checkpoint")
        self.exit_status = 128 + number


class StopSignals:
    def __init__(self) -> None:
        # the first that came to this process, None before
        self.received: signal.Signals | None = None
        self._asks = LateGreatest()

    def any_asks(self, is_due: bool) -> bool:
        """Whether in any process a signal has come or a checkpoint is due; all processes ask at
        the same step and hear the same. Several hear what was so at the step before, so that none
        waits for the step of another."""
        return self._asks(int(is_due or self.received is not None)) > 0

    def forget(self) -> None:
        """Drops what was asked for before a checkpoint that all processes have written now; a
        signal stays."""
        self._asks.clear()

    def check(self) -> None:
        """Raises Stopped in all processes if any has received a signal; all call it at the same
        moment, at which the state is consistent."""
        number = greatest(self.received or 0)
        if number:
            raise Stopped(signal.Signals(number))


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listens to SIGINT, SIGTERM and SIGHUP (the terminal was closed, or ssh lost). A second SIGINT
    stops at once, as without this; further SIGTERMs do nothing, since schedulers and torchrun each
    send their own. SIGHUP stays ignored under nohup. Outside of the main thread it listens to
    nothing."""
    stops = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before: dict[signal.Signals, Any] = {}

    def restore(number: signal.Signals) -> None:
        handler = before[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(number: int, _: FrameType | None) -> None:
        restore(signal.SIGINT)
        _let_go_of_closed_terminal()
        stops.received = stops.received or signal.Signals(number)

    try:
        for number in STOPPING:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
        yield stops
    finally:
        for number in before:
            restore(number)


def _let_go_of_closed_terminal() -> None:
    """Sends the output of a terminal that is gone to nowhere: an error at the next line that is
    printed would keep the checkpoint from being written."""
    if sys.platform == "win32":
        return
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

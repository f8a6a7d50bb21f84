"""SIGINT and SIGTERM during a training: it ends its step, writes a checkpoint and leaves."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from inat.errors import InatError
from inat.training.processes import LateGreatest, greatest


class Stopped(InatError):
    """A signal asked the training to stop; what was done is kept."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; --resume goes on from the last checkpoint")
        self.exit_status = 128 + number


class StopSignals:
    """What has come of SIGINT and SIGTERM; made by `stop_signals`.

    Attributes:
        received: the first that came to this process, None before.
    """

    def __init__(self) -> None:
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
        """Raises Stopped in all processes if a signal has come to any; all call it at the same
        moment, at which all is in order."""
        number = greatest(self.received or 0)
        if number:
            raise Stopped(signal.Signals(number))


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listens to SIGINT and SIGTERM. A second SIGINT does what it did before, which is to leave at
    once; further SIGTERMs do nothing, since schedulers and torchrun each send their own. Outside
    of the main thread nothing is listened to."""
    stops = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before: dict[signal.Signals, Any] = {}

    def restore(*numbers: signal.Signals) -> None:
        for number in numbers:
            handler = before[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, _handler(stops, restore))
        yield stops
    finally:
        restore(*before)


def _handler(
    stops: StopSignals, restore: Callable[[signal.Signals], None]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, _: FrameType | None) -> None:
        restore(signal.SIGINT)
        stops.received = stops.received or signal.Signals(number)

    return handle

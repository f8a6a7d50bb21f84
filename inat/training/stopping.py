"""SIGINT and SIGTERM during a training: it ends its step, writes a checkpoint and leaves."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from inat.errors import InatError


class Stopped(InatError):
    """A signal asked the training to stop; what was done is kept."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; --resume goes on from the last checkpoint")
        self.exit_status = 128 + number


class StopSignals:
    """What has come of SIGINT and SIGTERM; made by `stop_signals`.

    Attributes:
        received: the first that came, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._leaves_now = False

    def check(self) -> None:
        """Raises Stopped if a signal has come; for moments at which all is in order."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal ends at any moment, since nothing of it is kept."""
        self._leaves_now = True
        try:
            self.check()
            yield
        finally:
            self._leaves_now = False

    def receive(self, number: signal.Signals) -> None:
        """Takes note of a signal; within `at_once` raises Stopped."""
        self.received = number
        if self._leaves_now:
            raise Stopped(number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listens to SIGINT and SIGTERM. Only the first waits for its checkpoint: a second does what
    it did before, which is to leave at once. Outside of the main thread nothing is listened to."""
    stops = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, _handler(stops, restore))
        yield stops
    finally:
        restore()


def _handler(
    stops: StopSignals, restore: Callable[[], None]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, _: FrameType | None) -> None:
        restore()
        stops.receive(signal.Signals(number))

    return handle

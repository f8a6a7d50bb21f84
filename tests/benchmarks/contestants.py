"""Two loops timed in turn, each in a process of its own, so that neither lives on the other."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

Step = Callable[[], None]


def endless(loader: Any) -> Iterator[Any]:
    """The loader's batches, epoch after epoch."""
    while True:
        yield from loader


class Contestant:
    """A process that makes a step function once and times it when it is told to."""

    def __init__(self, make_step: Callable[..., Iterator[Step]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make_step, arguments))
        self._process.start()

    def seconds(self, n_steps: int) -> float:
        """Wall time of so many steps."""
        self._pipe.send(n_steps)
        return float(self._pipe.recv())

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.send(0)
        self._process.join()


def _serve(pipe: Connection, make_step: Callable[..., Iterator[Step]], arguments: Any) -> None:
    made = make_step(*arguments)
    step = next(made)
    while n_steps := pipe.recv():
        began = time.perf_counter()
        for _ in range(n_steps):
            step()
        pipe.send(time.perf_counter() - began)


def alternate(
    ours: Contestant, theirs: Contestant, *, rounds: int, n_steps: int, warm_up: int
) -> list[tuple[float, float]]:
    """Seconds of each, round by round, in turn."""
    for contestant in (ours, theirs):
        contestant.seconds(warm_up)
    times = [(ours.seconds(n_steps), theirs.seconds(n_steps)) for _ in range(rounds)]
    for contestant in (ours, theirs):
        contestant.stop()
    return times


def spread(values: list[float]) -> str:
    """Median with minimum and maximum."""
    return f"{median(values):.2f} (min {min(values):.2f}, max {max(values):.2f})"

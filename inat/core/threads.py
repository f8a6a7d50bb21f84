"""The processors that this process may use, and threads that work in order."""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

READ_AHEAD = 128
"""Results that wait to be taken, besides those being worked on."""

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

OF_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def share_processors() -> None:
    """Makes OpenMP's threads, which torch computes with, sleep while they wait, and limits them to
    the container's processors, unless the user's environment says otherwise. Call it in one's own
    process before torch is imported.

    By default they spin, which next to other busy processes takes time from the thread that they
    wait for (`tests/benchmarks/busy_table.py`).
    """
    if not any(name in os.environ for name in OF_WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
    usable = usable_processors()
    if "OMP_NUM_THREADS" not in os.environ and usable < processors():
        os.environ["OMP_NUM_THREADS"] = str(usable)


def processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_processors() -> int:
    """Processors that this process may use: those it may run on, and no more than the time that
    its containers are given (cgroup quotas), rounded up."""
    return max(1, min([processors(), *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """The processors' worth of time of the process's control groups and of those around them."""
    groups = []
    with suppress(OSError):  # outside of Linux there are none
        for line in OWN_CGROUPS.read_text().splitlines():
            # Version 1 has a tree for each set of controllers, version 2 one that names none.
            _, controllers, path = line.split(":", 2)
            tree = CGROUPS / controllers
            group = tree / path.strip("/")
            groups += [folder for folder in (group, *group.parents) if folder.is_relative_to(tree)]
    for group, names in product(groups, (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):
        with suppress(OSError):  # a group of the other version, or seen from within a container
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def stretches(n_photos: int, length: int) -> list[range]:
    """The positions of the photos, cut every `length` of them."""
    return [range(at, min(at + length, n_photos)) for at in range(0, n_photos, length)]


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """`function` of each item, in their order, worked out ahead by `workers` threads."""
    if workers == 0:
        yield from map(function, items)
        return
    # Here: this module is imported at every start of the command line, before anything else.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers, "inat-photos")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > READ_AHEAD + 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

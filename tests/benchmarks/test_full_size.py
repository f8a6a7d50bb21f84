"""A rehearsal at the real size: 8,142 species, 437,513 rows, through the loader and `describe`.

INAT_BENCH_WORLD names a world of `inat data synth --profile inat2018`; without it one is made
whose rows share 2,000 photo files. Memory is what Linux counts as anonymous: of a process's own,
not of mapped files or of arrays in shared memory.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inat.dataset.split import Split, load_split
from inat.loader.loader import Loader, build_loader
from inat.synthetic.world import synth

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "INAT_BENCH_WORLD" in os.environ:
        return Path(os.environ["INAT_BENCH_WORLD"])
    return synth(tmp_path_factory.mktemp("full") / "world", profile="inat2018", photos=2000).root


@pytest.fixture(scope="module")
def train(root: Path) -> Split:
    return load_split(root)


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


class PeakMemory:
    """The largest sum of the anonymous memory of this process and its children, every 0.2 s."""

    def __enter__(self) -> "PeakMemory":
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            processes = [os.getpid(), *children(os.getpid())]
            self.bytes = max(self.bytes, sum(map(anonymous, processes)))


def one_epoch(train: Split, worker_kind: str) -> tuple[float, int]:
    """Images a second and peak anonymous bytes of an epoch of class-balanced draws at 64 px."""
    loader = build_loader(
        train,
        image_size=64,
        training=True,
        batch_size=256,
        workers=2,
        sampler="class_balanced",
        worker_kind=worker_kind,  # type: ignore[arg-type]
    )
    began, seen = time.perf_counter(), 0
    with PeakMemory() as peak:
        for batch in loader:
            seen += len(batch["label"])
    return seen / (time.perf_counter() - began), peak.bytes


@pytest.mark.parametrize("worker_kind", ["threads", "processes"])
def test_an_epoch_of_class_balanced_draws(
    train: Split, worker_kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rate, peak = one_epoch(train, worker_kind)
    with capsys.disabled():
        print(
            f"\nfull size, {len(train):,} class-balanced draws at 64 px, 2 {worker_kind}: "
            f"{rate:.0f} images/s, peak anonymous memory of all processes {peak / MEBIBYTE:.0f} MiB"
        )


def test_describe(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "inat", "data", "describe", str(root)]
    command += ["--plot", str(tmp_path / "profile.png")]
    times = []
    for _ in range(6):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    with capsys.disabled():
        print(f"\ninat data describe, full size: {np.median(times[1:]):.2f} s", end="")
        print(f" (min {min(times[1:]):.2f}, max {max(times[1:]):.2f}); first {times[0]:.2f} s")


def workers_memory(loader: Loader) -> Iterator[int]:
    """Anonymous bytes of the loader's worker processes."""
    assert loader._processes._idle is not None
    for worker in loader._processes._idle._iterator._workers:  # type: ignore[union-attr]
        yield anonymous(worker.pid)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_memory_of_a_worker_process(
    train: Split, start_method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(start_method, force=True)
    try:
        memory = {}
        for name, split in (("idle", train.select(np.arange(64))), ("full size", train)):
            loader = build_loader(
                split,
                image_size=64,
                training=True,
                batch_size=32,
                workers=2,
                epoch_size=64 if name == "idle" else 6400,
                worker_kind="processes",
            )
            list(loader)
            memory[name] = np.mean(list(workers_memory(loader))) / MEBIBYTE
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    with capsys.disabled():
        print(
            f"\nanonymous memory of a worker ({start_method}): full-size index "
            f"{memory['full size']:.0f} MiB, 64 photos {memory['idle']:.0f} MiB, "
            f"more {memory['full size'] - memory['idle']:.0f} MiB"
        )

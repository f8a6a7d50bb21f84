"""Kills workers of process loaders; in a process of its own, since torch raises a worker's death in
whatever the main thread does at that moment.

python loader_processes.py WORLD amid|idle: prints what was told, and then the batches of the next
iteration, as JSON.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import orjson

from inat.core.errors import WorldError
from inat.dataset.split import load_split
from inat.loader.loader import build_loader
from inat.loader.workers import worker_deaths


def kill_workers() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join(60)


def main(world: Path, when: str) -> None:
    loader = build_loader(
        load_split(world), image_size=32, training=True, batch_size=2, workers=2,
        worker_kind="processes",
    )  # fmt: skip
    told = ""
    try:
        with worker_deaths():
            for _ in loader:
                if when == "amid":
                    kill_workers()
            kill_workers()
            for _ in range(1000):  # torch's handler runs between two of these
                os.getpid()
    except WorldError as error:
        told = str(error)
    batches = [batch["image_id"].tolist() for batch in loader]
    sys.stdout.buffer.write(orjson.dumps({"told": told, "batches": batches}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Predictions in processes of their own, which may be killed."""

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import inat

# Started once, with everything imported and before torch has started a thread: its children are
# there at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["prediction_processes", "inat.predictions.predict"])


def start(run: Path, split: str, *, pause: float = 0, part_images: int, **options: Any) -> Any:
    """A process that predicts in parts of so many images, and rests after each."""
    process = context.Process(target=_predict, args=(run, split, pause, part_images, options))
    process.start()
    return process


def _predict(
    run: Path, split: str, pause: float, part_images: int, options: dict[str, Any]
) -> None:
    import torch

    from inat.predictions import predict as module
    from inat.predictions.parts import Parts

    torch.set_num_threads(1)
    module.PART_IMAGES = part_images  # type: ignore[attr-defined]
    write = Parts.write

    def write_and_rest(self: Parts, *part: Any) -> None:
        write(self, *part)
        time.sleep(pause)

    Parts.write = write_and_rest  # type: ignore[method-assign]
    inat.predict(run, split, **options)


def finish(*processes: BaseProcess) -> None:
    """Waits for processes that must end well."""
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def content(prediction: Path) -> dict[str, bytes]:
    """Every file of a prediction."""
    return {path.name: path.read_bytes() for path in sorted(prediction.iterdir())}

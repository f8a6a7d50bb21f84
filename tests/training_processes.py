"""Tiny trainings and predictions in processes of their own, which may be signalled and killed."""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import orjson

import inat

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "data.workers": 0,
    "data.holdout": "0.3",
    "transforms.image_size": 32,
    "model.backbone": "test_efficientnet",
    "model.weights": "none",
    "model.dropout": 0.3,
    "model.drop_path": 0.1,
    "optim.warmup_epochs": 0.5,
    "optim.ema_decay": 0.9,
    "runtime.log_every": 3,
    "runtime.checkpoint_steps": 2,
}

# Started once, with everything imported and before torch has started a thread: its children are
# there at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["training_processes", "inat.training.loop", "inat.predictions.predict", "timm"]
)


def start(verb: str, world: Path, run: Path, settings: dict[str, Any], pause: float = 0) -> Any:
    """A process that trains (going on where there is a run) or predicts, and rests `pause`
    seconds after each step, each batch of a validation and each file of a checkpoint."""
    process = context.Process(target=_work, args=(verb, world, run, settings, pause))
    process.start()
    return process


def _work(verb: str, world: Path, run: Path, settings: dict[str, Any], pause: float) -> None:
    import torch

    torch.set_num_threads(1)
    rest_between(run.with_name(f"{run.name}.now"), pause)
    with run.with_name(f"{run.name}.log").open("a") as log, redirect_stderr(log):
        if verb == "predict":
            inat.predict(run, "train", name="killed", batch_size=1)
            return
        config = run.with_name("empty.yaml")
        config.write_text("")
        overrides = {**SETTINGS, "data.root": str(world), **settings}
        try:
            inat.train(config, run, overrides=overrides, resume=True)
        except inat.core.errors.InatError as error:
            print(error, file=log, flush=True)
            os._exit(error.exit_status)


def rest_between(now: Path, pause: float) -> None:
    """Slows down what is done, and notes in the file `now` what that is, a line each: kills then
    hit all of it as often, and know what they hit."""
    from inat.predictions import predict
    from inat.predictions.parts import Parts
    from inat.training import checkpoint, loop, validation

    def resting(work: Callable[..., Any], what: str) -> Callable[..., Any]:
        def rest(*arguments: Any, **options: Any) -> Any:
            with now.open("a") as notes:
                notes.write(f"{what}\n")
            done = work(*arguments, **options)
            time.sleep(pause)
            return done

        return rest

    loop.take_step = resting(loop.take_step, "training")
    checkpoint.save_file = resting(checkpoint.save_file, "checkpoint")
    checkpoint.write_json = resting(checkpoint.write_json, "checkpoint")
    validation.top_k = resting(validation.top_k, "validation")
    predict.PART_IMAGES = 1  # type: ignore[attr-defined]
    Parts.write = resting(Parts.write, "prediction")  # type: ignore[method-assign]


def finish(process: Any) -> None:
    """Waits for a process that must end well."""
    process.join(120)
    assert process.exitcode == 0


def kill_amid(process: Any, run: Path, draw: random.Random, pause: float) -> str:
    """Kills a process amid one of its next works, whichever the draw says; gives what that was.

    Works are counted, not seconds: a kill hits a process that works, however slow the machine.
    """
    now = run.with_name(f"{run.name}.now")
    now.unlink(missing_ok=True)
    works = draw.randint(0, 9)
    while process.is_alive() and len(_noted(now)) < works:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, pause))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "ended before it was killed"
    return ["start", *_noted(now)][-1]


def _noted(now: Path) -> list[str]:
    return now.read_text().splitlines() if now.is_file() else []


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every tensor file of a run's checkpoints."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("checkpoints/*/*.safetensors"))
        if path.parent.name in ("last", "best")
    }


def log_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    lines = [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    clock = ("time", "images_per_second", "waiting_share")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def train_with_kills(
    world: Path, run: Path, settings: dict[str, Any], kills: int, draw: random.Random, pause: float
) -> list[str]:
    """Trains, killed so often at random moments, to the end; gives what each kill hit."""
    hit = []
    for _ in range(kills):
        hit.append(kill_amid(start("train", world, run, settings, pause), run, draw, pause))
    finish(start("train", world, run, settings))
    return hit

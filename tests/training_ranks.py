"""Processes that train together, as torchrun starts them; what each has to tell."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "data.workers": 0,
    "data.holdout": "0.3",
    "transforms.image_size": 32,
    "model.backbone": "test_vit",
    "model.weights": "none",
    "optim.warmup_epochs": 0.5,
    "optim.name": "sgd",
    "optim.lr_per_256": 3.0,
    "runtime.precision": "fp32",
    "runtime.device": "cpu",
    "runtime.log_every": 1,
}

DIE, HANG, TERM, DUE = "die", "hang", "SIGTERM", "a checkpoint is due"

Moment = tuple[int, int | str]
"""A rank, and the steps behind it or "validation"."""

# Started once, with everything imported and before torch has started a thread: its children are
# there at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["training_ranks", "inat.training.loop", "timm"])


@dataclass(frozen=True)
class Job:
    """A training, and what happens to whom during it."""

    run: Path
    settings: dict[str, Any]
    resume: bool
    events: Mapping[Moment, str]


@dataclass(frozen=True)
class Outcome:
    """What a process tells of a training.

    Attributes:
        status: that the command would leave with.
        text: of the error.
        batches: image ids of each batch that it trained on.
        all_sharded: whether every parameter was a DTensor.
    """

    status: int
    text: str
    batches: list[list[int]]
    all_sharded: bool


class Ranks:
    """Processes that stay, and train together what they are told to."""

    def __init__(self, count: int, patience: float | None = None) -> None:
        self.count = count
        environment = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": free_port()}
        self._pipes, self.processes = [], []
        for rank in range(count):
            pipe, other = context.Pipe()
            numbers = {**environment, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
            process = context.Process(target=_serve, args=(other, rank, numbers, patience))
            process.start()
            other.close()
            self._pipes.append(pipe)
            self.processes.append(process)

    def train(
        self,
        run: Path,
        world: Path,
        *,
        resume: bool = False,
        events: Mapping[Moment, str] | None = None,
        **settings: Any,
    ) -> list[Outcome]:
        """What each process tells, by rank; those that hang or die tell nothing."""
        events = events or {}
        (run.parent / "empty.yaml").write_text("")
        job = Job(run, {**SETTINGS, "data.root": str(world), **settings}, resume, events)
        for pipe in self._pipes:
            pipe.send(job)
        silent = {rank for (rank, _), event in events.items() if event in (DIE, HANG)}
        return [pipe.recv() for rank, pipe in enumerate(self._pipes) if rank not in silent]

    def stop(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
            process.join()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def global_order(outcomes: list[Outcome]) -> list[int]:
    """The ids of the photos in the order of the global batches."""
    steps = zip(*(outcome.batches for outcome in outcomes), strict=True)
    return [image_id for step in steps for part in step for image_id in part]


def _serve(pipe: Connection, rank: int, numbers: dict[str, int], patience: float | None) -> None:
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    import torch

    from inat.training import accelerator, processes

    torch.set_num_threads(1)
    if patience is not None:
        accelerator.PATIENCE = processes.PATIENCE = timedelta(seconds=patience)
    while True:
        pipe.send(_train(pipe.recv(), rank))


def _train(job: Job, rank: int) -> Outcome:
    import inat
    from inat.core.errors import InatError

    batches: list[list[int]] = []
    sharded: list[bool] = []
    status, text = 0, ""
    with _watched(job, rank, batches, sharded):
        try:
            config = job.run.parent / "empty.yaml"
            inat.train(config, job.run, overrides=job.settings, resume=job.resume)
        except InatError as error:
            status, text = error.exit_status, str(error)
    return Outcome(status, text, batches, bool(sharded) and all(sharded))


@contextmanager
def _watched(job: Job, rank: int, batches: list[list[int]], sharded: list[bool]) -> Iterator[None]:
    """Notes what each step works on, and lets the job's events happen."""
    from torch.distributed.tensor import DTensor

    from inat.training import loop, validation
    from inat.training.run_files import CheckpointSchedule

    step, top_k, is_due = loop.take_step, validation.top_k, CheckpointSchedule.is_due

    def seeing(trainer: Any, taken: Any, state: Any) -> Any:
        batches.extend(batch["image_id"].tolist() for batch in taken)
        sharded.extend(isinstance(p, DTensor) for p in trainer.network.parameters())
        _happen(job.events.get((rank, state.step)))
        return step(trainer, taken, state)

    def scoring(*arguments: Any) -> Any:
        _happen(job.events.get((rank, "validation")))
        return top_k(*arguments)

    def due(keeper: Any, config: Any, state: Any) -> bool:
        return job.events.get((rank, state.step)) == DUE or is_due(keeper, config, state)

    loop.take_step, validation.top_k, CheckpointSchedule.is_due = seeing, scoring, due
    try:
        yield
    finally:
        loop.take_step, validation.top_k, CheckpointSchedule.is_due = step, top_k, is_due


def _happen(event: str | None) -> None:
    if event == DIE:
        os._exit(9)
    if event == HANG:
        time.sleep(3600)
    if event == TERM:
        os.kill(os.getpid(), signal.SIGTERM)

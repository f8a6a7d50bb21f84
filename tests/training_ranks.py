"""Trainings in several processes, as torchrun starts them, on a tiny world; what each saw."""

import multiprocessing
import os
import socket
import time
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

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

# Started once, with everything imported and before torch has started a thread: its children are
# there at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["training_ranks", "inat.training.loop"])


def start(run: Path, world: Path, n_processes: int, **settings: Any) -> list[BaseProcess]:
    """The processes of one training, by rank."""
    (run.parent / "empty.yaml").write_text("")
    port = free_port()
    overrides = {**SETTINGS, "data.root": str(world), **settings}
    started = []
    for rank in range(n_processes):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes}
        environment = {**numbers, "LOCAL_WORLD_SIZE": n_processes, "MASTER_PORT": port}
        process = context.Process(target=_train, args=(run, rank, environment, overrides))
        process.start()
        started.append(process)
    return started


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def order_path(run: Path, rank: int) -> Path:
    """Where a process leaves the ids of the photos that it trained on, a row a batch."""
    return run.parent / f"{run.name}-order-{rank}.npy"


def _train(run: Path, rank: int, environment: dict[str, int], overrides: dict[str, Any]) -> None:
    for name, value in environment.items():
        os.environ[name] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if environment["WORLD_SIZE"] == 1:
        for name in environment:
            del os.environ[name]
    import torch

    import inat
    from inat.errors import InatError
    from inat.training import loop, processes

    torch.set_num_threads(1)
    die_at, hang_at = overrides.pop("die_at", None), overrides.pop("hang_at", None)
    if patience := overrides.pop("patience", 0):
        loop.PATIENCE = processes.PATIENCE = timedelta(seconds=patience)
    step, seen = loop._step, []

    def seeing(trainer: Any, batches: Any, state: Any) -> Any:
        seen.extend(batch["image_id"].numpy() for batch in batches)
        if die_at is not None and die_at == (rank, state.step):
            os._exit(9)
        if hang_at is not None and hang_at == (rank, state.step):
            time.sleep(60)
        if overrides.get("runtime.shard"):
            from torch.distributed.tensor import DTensor

            assert all(isinstance(p, DTensor) for p in trainer.network.parameters())
            told = run.parent / f"{run.name}-sharded-{rank}"
            told.write_text("all parameters are DTensors")
        return step(trainer, batches, state)

    loop._step = seeing
    try:
        inat.train(run.parent / "empty.yaml", run, overrides=overrides)
    except InatError as error:
        (run.parent / f"{run.name}-told-{rank}").write_text(str(error))
        os._exit(error.exit_status)
    np.save(order_path(run, rank), np.concatenate(seen))
    np.save(run.parent / f"{run.name}-sizes-{rank}.npy", [len(ids) for ids in seen])


def finish(processes: list[BaseProcess]) -> None:
    """Waits for processes that must end well."""
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def global_order(run: Path, n_processes: int) -> list[int]:
    """The ids of the photos in the order of the global batches."""
    ids = [np.load(order_path(run, rank)) for rank in range(n_processes)]
    sizes = [np.load(run.parent / f"{run.name}-sizes-{rank}.npy") for rank in range(n_processes)]
    parts = [np.split(of, np.cumsum(cut)[:-1]) for of, cut in zip(ids, sizes, strict=True)]
    return [int(i) for step in zip(*parts, strict=True) for part in step for i in part]

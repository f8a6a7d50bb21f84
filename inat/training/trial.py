"""A dry run: the plan, a step of each stage, and the speed of network and loader."""

import sys
import time

import torch

from inat.config.schema import Config
from inat.models.device import memory_remedies
from inat.training.accelerator import build_accelerator
from inat.training.checkpoint import LoopState
from inat.training.loop import SMALLER_BATCHES
from inat.training.plan import Plan, make_plan
from inat.training.processes import on_rank_zero, peer_failures_reported
from inat.training.step import accumulated, take_step
from inat.training.trainer import Trainer, build_trainer, describe_device, next_trainer

LIMIT_SECONDS = 2.0
"""How long a dry run measures the network, and the loader."""


def try_run(config: Config) -> list[str]:
    plan = make_plan(config)
    with (
        peer_failures_reported(),
        memory_remedies(SMALLER_BATCHES),
        build_accelerator(config) as (accelerator, precision),
    ):
        trainer = build_trainer(plan, accelerator, precision)
        lines = [
            *plan.describe(),
            f"weights    {trainer.backbone.source}",
            *describe_device(trainer),
            _one_step(trainer),
            _limits(trainer, plan),
        ]
        for stage in plan.stages[1:]:
            trainer = next_trainer(trainer, stage)
            lines.append(_one_step(trainer))
        return lines


def _one_step(trainer: Trainer) -> str:
    trainer.network.train()
    trainer.backbone.still_if_frozen()
    began = time.monotonic()
    trainer.loader.set_epoch(trainer.plan.first_epoch)
    batches, _ = next(accumulated(trainer))
    loss = take_step(trainer, batches, LoopState(epoch=trainer.plan.first_epoch)).loss.item()
    return (
        f"one batch  loss {loss:.3f} after {time.monotonic() - began:.1f} s, "
        f"peak memory {_peak_memory(trainer.accelerator.device)}"
    )


def _limits(trainer: Trainer, plan: Plan) -> str:
    """Photos per second of the network and of the loader, each alone."""
    batches, _ = next(accumulated(trainer))
    state = LoopState(epoch=trainer.plan.first_epoch)

    def timed(n_steps: int) -> float:
        began = time.monotonic()
        losses = [take_step(trainer, batches, state).loss for _ in range(n_steps)]
        losses[-1].item()  # the device is done
        return time.monotonic() - began

    first = timed(1)
    # All processes take the same number.
    n_steps = on_rank_zero(lambda: max(1, min(20, int(LIMIT_SECONDS / first))))
    network = n_steps * trainer.plan.global_batch / timed(n_steps)
    began, n_photos = time.monotonic(), 0
    for batch in trainer.loader:
        n_photos += len(batch["label"]) * trainer.accelerator.num_processes
        if time.monotonic() - began > LIMIT_SECONDS:
            break
    loader = n_photos / (time.monotonic() - began)
    # A CPU does both in turns.
    is_cpu = trainer.accelerator.device.type == "cpu"
    together = 1 / (1 / network + 1 / loader) if is_cpu else min(network, loader)
    hours = sum(stage.n_steps * stage.global_batch for stage in plan.stages) / together / 3600
    return (
        f"limits     the network takes {network:.0f} photos/s, the loader gives {loader:.0f}: "
        f"about {hours:.1f} hours in all"
    )


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB on {device}"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown on this system"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"

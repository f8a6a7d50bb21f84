"""The accelerator of a training: device, processes and precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from inat.config.schema import Config
from inat.core.errors import InputError, one_line
from inat.core.progress import say
from inat.models.device import (
    can_run,
    fast_kernels,
    freed_memory_kept,
    pick_device,
    resolve_precision,
)
from inat.runs.run import Run
from inat.training.processes import PATIENCE


@contextmanager
def build_accelerator(
    config: Config, begun: Run | None = None
) -> Iterator[tuple[Accelerator, str]]:
    """accelerate's Accelerator and the precision, which `auto` keeps from the run being resumed
    (`begun`). On leaving, torch's generators and settings are as they were."""
    runtime = config.runtime
    device = pick_device(runtime.device)
    precision = _precision(config, device, begun)
    # Before CUDA starts, which then reads what is wanted of it.
    with fast_kernels(runtime.fast_kernels, deterministic=runtime.deterministic):
        try:
            accelerator = Accelerator(
                mixed_precision="no" if precision == "fp32" else precision,
                cpu=device.type == "cpu",
                kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
            )
        except (NotImplementedError, ValueError) as error:  # cards without P2P, its environment
            raise InputError(f"accelerate refuses this machine: {one_line(error):.300}") from None
        if accelerator.gradient_accumulation_steps != 1:
            raise InputError(
                f"accelerate would divide every loss by {accelerator.gradient_accumulation_steps} "
                "(--gradient_accumulation_steps, or ACCELERATE_GRADIENT_ACCUMULATION_STEPS); leave "
                "that out, and set optim.accumulate"
            )
        cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
        try:
            # The loop seeds torch's generators in each step.
            with torch.random.fork_rng(devices=cuda), freed_memory_kept():
                yield accelerator, precision
        finally:
            # A second training of another precision in this process would be refused otherwise.
            AcceleratorState._reset_state(False)


def _precision(config: Config, device: torch.device, begun: Run | None) -> str:
    asked = config.runtime.precision
    precision = resolve_precision("auto", device)
    if asked != "auto" and can_run(asked, device):
        precision = asked
    elif begun is not None:
        kept, kind = begun.facts.precision, begun.facts.device
        if device.type == kind and can_run(kept, device):
            precision = kept
        elif precision != kept:
            remedy = f"; runtime.precision {kept} would keep it" if can_run(kept, device) else ""
            say(
                f"warning: {begun.path} was begun on {kind} in {kept}, and goes on on "
                f"{device.type} in {precision}{remedy}"
            )
    elif asked == "fp16" and device.type == "cpu":
        raise InputError(
            "runtime.precision: a CPU trains in bf16 or fp32, not fp16; give one of them, or auto"
        )
    elif asked != "auto":
        raise InputError(
            f"runtime.precision: this {device.type} device has no {asked}; give auto, which is "
            f"{precision} here"
        )
    if precision == "fp16" and config.runtime.shard:
        raise InputError(
            "runtime.shard spreads the weights over processes, which fp16 cannot go with, and auto "
            "is fp16 on this GPU; set runtime.precision fp32, or runtime.shard false"
        )
    return precision

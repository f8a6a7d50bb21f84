"""What a training moves: network, optimiser, schedule and loaders, made anew for each stage."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from inat.config.schema import Config
from inat.core.competitions import find_competition
from inat.core.errors import InputError, one_line
from inat.core.metrics import Validation
from inat.core.progress import say
from inat.loader.loader import Batch, Loader, build_loader
from inat.losses import build_loss
from inat.losses.base import Loss
from inat.models.backbone import (
    Backbone,
    build_backbone,
    frozen,
    renew_head,
    rule_warning,
    set_image_size,
    try_batch,
)
from inat.models.device import (
    can_run,
    fast_kernels,
    freed_memory_kept,
    pick_device,
    prefers_channels_last,
    resolve_precision,
    to_device_format,
)
from inat.runs.run import Run
from inat.training.average import MovingAverage
from inat.training.optim import build_optimizer, build_schedule
from inat.training.plan import Plan, StagePlan
from inat.training.processes import (
    PATIENCE,
    BatchPart,
    gathered,
    is_sharded,
    micro_batches,
    shard,
)

FEW_PHOTOS = 64

PART_SIZES = "part_sizes"
"""Key of a batch under which its part's sizes are kept."""


@dataclass
class Trainer:
    """Everything that the loop moves in one stage; made by `build_trainer` and `next_trainer`.

    Attributes:
        plan: of the stage.
        network: as accelerate prepared it; the bare one is `backbone.network`.
        ema: moving average of the weights, or None.
        channels_last: memory format of images and convolutions; else they are contiguous.
        validated: the last validation of this process, or None.
    """

    plan: StagePlan
    accelerator: Accelerator
    backbone: Backbone
    network: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: Scheduler
    ema: MovingAverage | None
    loader: Loader
    held_out_loader: Loader | None
    precision: str
    channels_last: bool
    validated: Validation | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the moving average, where there is one."""
        return self.backbone.network if self.ema is None else self.ema.module

    @property
    def averaged(self) -> nn.Module | None:
        """The moving average's own network, or None."""
        return None if self.ema is None else self.ema.module

    @property
    def n_batches(self) -> int:
        """Batches of this process whose gradients are added up for a step."""
        return micro_batches(self.plan.config, self.accelerator.num_processes)[0]

    @property
    def loaders(self) -> list[Loader]:
        """That of training, and that of the held-out part where there is one."""
        both = (self.loader, self.held_out_loader)
        return [loader for loader in both if loader is not None]

    def part_of(self, batch: Batch) -> BatchPart:
        """Which part of its global batch a batch is."""
        n_images, rank = len(batch["label"]), self.accelerator.process_index
        if self.loader.on_bad_photo == "stop":
            return BatchPart((n_images,) * self.accelerator.num_processes, rank)
        if PART_SIZES not in batch:  # unreadable photos are left out; asked for once
            batch[PART_SIZES] = torch.tensor(gathered(n_images))
        return BatchPart(tuple(batch[PART_SIZES].tolist()), rank)


@contextmanager
def engine(config: Config, begun: Run | None = None) -> Iterator[tuple[Accelerator, str]]:
    """accelerate's engine and the precision; leaves no generator or setting of torch changed.

    Args:
        config: of the training.
        begun: the run that is gone on with, whose precision an auto means.

    Raises:
        InputError: the device has no such precision, or is not there.
    """
    runtime = config.runtime
    device = pick_device(runtime.device)
    precision = _precision(config, device, begun)
    # Before CUDA starts, which then reads what is wanted of it.
    with fast_kernels(runtime.fast_kernels, deterministic=runtime.deterministic):
        accelerator = _accelerator(device, precision)
        cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
        try:
            # The loop seeds torch's generators anew each step.
            with torch.random.fork_rng(devices=cuda), freed_memory_kept():
                yield accelerator, precision
        finally:
            # A second training of another precision in this process would be refused otherwise.
            AcceleratorState._reset_state(False)


def _accelerator(device: torch.device, precision: str) -> Accelerator:
    try:
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=device.type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (NotImplementedError, ValueError) as error:  # of cards without P2P, of its environment
        raise InputError(f"accelerate refuses this machine: {one_line(error):.300}") from None
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            f"accelerate would divide every loss by {accelerator.gradient_accumulation_steps} "
            "(--gradient_accumulation_steps, or ACCELERATE_GRADIENT_ACCUMULATION_STEPS); leave "
            "that out, and set optim.accumulate"
        )
    return accelerator


def _precision(config: Config, device: torch.device, begun: Run | None) -> str:
    precision = _precision_here(config, device, begun)
    if precision == "fp16" and config.runtime.shard:
        raise InputError(
            "runtime.shard spreads the weights over processes, which fp16 cannot go with, and auto "
            "is fp16 on this GPU; set runtime.precision fp32, or runtime.shard false"
        )
    return precision


def _precision_here(config: Config, device: torch.device, begun: Run | None) -> str:
    asked = config.runtime.precision
    if asked != "auto" and can_run(asked, device):
        return asked
    if begun is None:
        if asked == "fp16" and device.type == "cpu":
            raise InputError(
                "runtime.precision: a CPU trains in bf16 or fp32, not fp16; give one of them, or "
                "auto"
            )
        if asked != "auto":
            raise InputError(
                f"runtime.precision: this {device.type} device has no {asked}; give auto, which is "
                f"{resolve_precision('auto', device)} here"
            )
        return resolve_precision("auto", device)
    kept, kind = begun.facts.precision, begun.facts.device
    if device.type == kind and can_run(kept, device):
        return kept
    precision = resolve_precision("auto", device)
    if precision != kept:
        remedy = f"; runtime.precision {kept} would keep it" if can_run(kept, device) else ""
        say(
            f"warning: {begun.path} was begun on {kind} in {kept}, and goes on on {device.type} in "
            f"{precision}{remedy}"
        )
    return precision


def describe_device(trainer: "Trainer") -> list[str]:
    """Lines for a person: device, precision, memory format and number of processes, as they were
    chosen, and the GPUs that nothing is given to."""
    accelerator, device = trainer.accelerator, trainer.accelerator.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    layout = "channels_last" if trainer.channels_last else "contiguous"
    count = accelerator.num_processes
    each = f", {count} processes" if count > 1 else ""
    n_batches, size = trainer.n_batches, trainer.loader.batch_size
    lines = [f"device     {device.type}{name}, {trainer.precision}, {layout}{each}"]
    added = f"{n_batches} x " if n_batches > 1 else ""
    lines.append(f"batches    {added}{size} photos a process and step")
    if device.type == "cuda" and count > 1 and size < FEW_PHOTOS:
        lines[-1] += (
            f"; below {FEW_PHOTOS} a GPU waits for its host: raise batch_size (the learning rate "
            "follows), add up fewer batches (optim.accumulate auto), or set runtime.compile true"
        )
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    used = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if n_gpus > used:
        lines.append(
            f"device     {n_gpus - used} of {n_gpus} GPUs are idle; to use all: torchrun "
            f"--nproc-per-node {n_gpus} -m -- inat train CONFIG --run RUN"
        )
    return lines


def build_trainer(plan: Plan, accelerator: Accelerator, precision: str) -> Trainer:
    """The trainer of the first stage, with the network and its moving average."""
    config = plan.config
    backbone = build_backbone(
        config.model, plan.trained.n_classes, config.seed, config.transforms.image_size
    )
    try_batch(backbone, config.transforms.image_size, config.batch_size)
    warning = rule_warning(config.model, backbone.source, find_competition(config.data.competition))
    if warning:
        say(f"warning: {warning}")
    if config.runtime.gradient_checkpointing:
        _checkpoint_gradients(backbone.network, config.model.backbone)
    sharded = config.runtime.shard and accelerator.num_processes > 1
    channels_last = config.runtime.channels_last and prefers_channels_last(
        accelerator.device, precision
    )
    to_device_format(
        backbone.network,
        accelerator.device,
        # fully_shard takes contiguous weights alone.
        channels_last=channels_last and not sharded,
    )
    if sharded:
        shard(backbone.network, accelerator.device, precision)
    trainer = _stage_trainer(
        plan.stages[0], accelerator, backbone, None, precision, channels_last=channels_last
    )
    if config.optim.ema_decay is not None:
        trainer.ema = MovingAverage(backbone.network, config.optim.ema_decay)
    return trainer


def next_trainer(trainer: Trainer, stage: StagePlan) -> Trainer:
    """The trainer of a later stage: the network goes on, and so does its moving average unless the
    stage begins it again; all else is new."""
    config, backbone = stage.config, trainer.backbone
    networks = [backbone.network] + ([] if trainer.ema is None else [trainer.ema.module])
    if config.transforms.image_size != trainer.plan.config.transforms.image_size:
        for network in networks:
            set_image_size(network, config.transforms.image_size)
    if stage.new_head:
        renew_head(networks, config.model, config.seed)
    average = trainer.ema
    if average is not None:
        assert config.optim.ema_decay is not None
        kept = None if stage.begins_average else average.module
        average = MovingAverage(backbone.network, config.optim.ema_decay, kept)
    # Else accelerate would go on unscaling the gradients of the optimiser before.
    trainer.accelerator.free_memory()
    started = _stage_trainer(
        stage,
        trainer.accelerator,
        frozen(backbone, config.model.freeze),
        average,
        trainer.precision,
        channels_last=trainer.channels_last,
    )
    for loader, before in zip(started.loaders, trainer.loaders, strict=True):
        loader.take_events(before)
    started.validated = trainer.validated
    return started


def try_later_stages(trainer: Trainer, plan: Plan) -> None:
    """Goes through the later stages on a copy of the network, so that what is wrong with one is
    said now and not after days of training."""
    if len(plan.stages) == 1:
        return
    backbone = replace(trainer.backbone, network=deepcopy(trainer.backbone.network).eval())
    copy = replace(trainer, backbone=backbone, ema=None)
    for stage in plan.stages[1:]:
        copy = next_trainer(copy, stage)
        config = stage.config
        try_batch(copy.backbone, config.transforms.image_size, config.batch_size)
    trainer.accelerator.free_memory()
    trainer.accelerator.prepare_optimizer(trainer.optimizer)  # again, after free_memory


def _stage_trainer(
    stage: StagePlan,
    accelerator: Accelerator,
    backbone: Backbone,
    ema: MovingAverage | None,
    precision: str,
    *,
    channels_last: bool,
) -> Trainer:
    config = stage.config
    bare_optimizer = build_optimizer(config.optim, backbone, stage.learning_rate)
    schedule = build_schedule(
        config.optim, bare_optimizer, steps_per_epoch=stage.steps_per_epoch, epochs=config.epochs
    )
    network = _prepared(accelerator, backbone.network)
    optimizer = accelerator.prepare_optimizer(bare_optimizer)
    return Trainer(
        plan=stage,
        accelerator=accelerator,
        backbone=backbone,
        network=_compiled(network) if config.runtime.compile else network,
        loss=build_loss(
            config.loss,
            prior=stage.loss_prior,
            counts=stage.trained.class_counts,
            head_scale=config.model.head_scale,
            epochs=config.epochs,
        ).to(accelerator.device),
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
        loader=_loader(stage, accelerator, training=True),
        held_out_loader=_loader(stage, accelerator, training=False) if stage.held_out else None,
        precision=precision,
        channels_last=channels_last,
    )


def _compiled(network: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(network, dynamic=False)
    assert isinstance(compiled, nn.Module)  # its declared type says no more than callable
    return compiled


def _prepared(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    # Weights that are sharded bring their gradients together themselves.
    prepared: nn.Module = accelerator.prepare_model(network, evaluation_mode=is_sharded(network))
    if isinstance(prepared, DistributedDataParallel):
        # Running statistics are averaged after each step, not those of rank 0 sent before it.
        prepared.broadcast_buffers = False
    return prepared


def _checkpoint_gradients(network: Any, name: str) -> None:
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # timm asserts where a network cannot
        raise InputError(
            f"runtime.gradient_checkpointing: {name} has no such way; set it false, or lower "
            "batch_size and raise optim.accumulate"
        ) from None


def _loader(plan: StagePlan, accelerator: Accelerator, *, training: bool) -> Loader:
    config = plan.config
    split = plan.trained if training else plan.held_out
    assert split is not None
    world_size = accelerator.num_processes
    _, batch_size = micro_batches(config, world_size)
    return build_loader(
        split,
        image_size=config.transforms.image_size if training else config.transforms.test_size,
        training=training,
        batch_size=batch_size * (1 if training else 2),
        workers=config.data.workers,
        seed=config.seed,
        sampler=config.sampler,
        epochs=config.epochs,
        first_epoch=plan.first_epoch,
        recipe=config.transforms,
        rank=accelerator.process_index,
        world_size=world_size,
        worker_kind=config.data.worker_kind,
        on_bad_photo=config.data.on_bad_photo,
        keep_photos=config.data.keep_photos,
        pin_memory=accelerator.device.type == "cuda",
    )

"""The state of one training stage: network, optimizer, schedule, loaders."""

import os
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.core.metrics import Validation
from inat.core.progress import say
from inat.loader.loader import Loader, build_loader
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
from inat.models.device import prefers_channels_last, to_device_format
from inat.runs.trained import TrainedModel
from inat.training.averages import MovingAverage
from inat.training.optim import build_optimizer, build_schedule
from inat.training.plan import Plan, StagePlan
from inat.training.processes import is_sharded, micro_batches, shard

FEW_PHOTOS = 64


@dataclass
class Trainer:
    """Everything that the loop moves in one stage."""

    plan: StagePlan
    accelerator: Accelerator
    backbone: Backbone
    network: nn.Module  # as accelerate prepared it; the bare one is `backbone.network`
    loss: Loss
    optimizer: Optimizer
    schedule: Scheduler
    ema: MovingAverage | None  # moving average of the weights, or None
    loader: Loader
    held_out_loader: Loader | None
    n_batches: int  # micro-batches of this process whose gradients are added up for a step
    precision: str
    channels_last: bool  # memory format of images and convolutions; else they are contiguous
    validated: Validation | None = None

    @property
    def evaluated(self) -> TrainedModel:
        """The network whose accuracy counts: the moving average, if there is one."""
        backbone = self.backbone
        network = backbone.network if self.ema is None else self.ema.module
        return TrainedModel(
            network, backbone.mean, backbone.std, self.precision, self.channels_last
        )

    @property
    def averaged(self) -> nn.Module | None:
        return None if self.ema is None else self.ema.module


def describe_device(trainer: "Trainer") -> list[str]:
    """Includes the GPUs that are left idle."""
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
    config = plan.config
    backbone = build_backbone(
        config.model, plan.trained.n_classes, config.seed, config.transforms.image_size
    )
    try_batch(backbone, config.transforms.image_size, config.batch_size)
    warning = rule_warning(config.model, backbone.source, find_competition(config.data.competition))
    if warning:
        say(f"warning: {warning}")
    if config.runtime.gradient_checkpointing:
        network: Any = backbone.network
        try:
            network.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):  # timm asserts where a network cannot
            raise InputError(
                f"runtime.gradient_checkpointing: {config.model.backbone} has no such way; set it "
                "false, or lower batch_size and raise optim.accumulate"
            ) from None
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
    started.loader.take_issues(trainer.loader)
    if started.held_out_loader and trainer.held_out_loader:
        started.held_out_loader.take_issues(trainer.held_out_loader)
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
    # Sharded weights bring their gradients together themselves.
    sharded = is_sharded(backbone.network)
    network: nn.Module = accelerator.prepare_model(backbone.network, evaluation_mode=sharded)
    if isinstance(network, DistributedDataParallel):
        # Running statistics are averaged after each step, not those of rank 0 sent before it.
        network.broadcast_buffers = False
    if config.runtime.compile:
        compiled: Any = torch.compile(network, dynamic=False)
        network = compiled
    optimizer = accelerator.prepare_optimizer(bare_optimizer)
    return Trainer(
        plan=stage,
        accelerator=accelerator,
        backbone=backbone,
        network=network,
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
        n_batches=micro_batches(config, accelerator.num_processes)[0],
        precision=precision,
        channels_last=channels_last,
    )


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

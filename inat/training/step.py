"""One optimiser step, which waits for no device."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from inat.loader.loader import Batch, to_device
from inat.samplers.base import BATCHES, stream
from inat.training.checkpoint import LoopState
from inat.training.mixing import erased, mixed
from inat.training.processes import average_statistics, summed
from inat.training.trainer import Trainer
from inat.training.window import Step


def accumulated(trainer: Trainer) -> Iterator[tuple[list[Batch], int]]:
    """The batches of one step after another, and how many were read for them; a rest of fewer is
    left out."""
    group: list[Batch] = []
    n_read = 0
    for batch in trainer.loader:
        n_read += 1
        if min(trainer.part_of(batch).sizes):  # else all photos of a process were unreadable
            group.append(batch)
        if len(group) == trainer.n_batches:
            yield group, n_read
            group, n_read = [], 0


def take_step(trainer: Trainer, batches: list[Batch], state: LoopState) -> Step:
    """One optimiser step; its loss is still on the device."""
    config, accelerator, optimizer = trainer.plan.config, trainer.accelerator, trainer.optimizer
    trainer.schedule.step_update(state.stage_step + 1)
    total = torch.zeros((), device=accelerator.device)
    weight = _step_weight(trainer, batches)
    bare = trainer.backbone.network
    for place, batch in enumerate(batches):
        is_last = place == len(batches) - 1
        if isinstance(bare, FSDPModule):  # of which accelerate's no_sync does not know
            bare.set_requires_gradient_sync(is_last)
            is_last = True
        with nullcontext() if is_last else accelerator.no_sync(trainer.network):
            loss = _loss(trainer, batch, state, place, weight)
            accelerator.backward(loss)
        total += loss.detach()
    if config.optim.clip_grad_norm is not None:
        accelerator.clip_grad_norm_(trainer.network.parameters(), config.optim.clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # So that every process holds the same state after each step, and a checkpoint all of it.
    average_statistics(trainer.backbone.network)
    if trainer.ema is not None:
        trainer.ema.update(state.step - state.average_began)
    return Step(
        number=state.step + 1,
        learning_rate=min(group["lr"] for group in optimizer.param_groups),
        loss=total,
        image_ids=[batch["image_id"] for batch in batches],
        n_images=sum(len(batch["label"]) for batch in batches) * accelerator.num_processes,
        skipped=bool(getattr(optimizer, "step_was_skipped", False)),
    )


def _step_weight(trainer: Trainer, batches: list[Batch]) -> Tensor:
    """What the step's mean divides by, over all its batches and processes. Partners of mixup are
    a permutation, so the labels tell it before anything is mixed."""
    device = trainer.accelerator.device
    labels = [batch["label"].to(device, non_blocking=True) for batch in batches]
    return summed(trainer.loss.weight_of(torch.cat(labels)))


def _loss(trainer: Trainer, batch: Batch, state: LoopState, place: int, weight: Tensor) -> Tensor:
    """This process's share of the loss of the batch that is number `place` of its step, times the
    number of processes, since these average their gradients."""
    config, device = trainer.plan.config, trainer.accelerator.device
    part = trainer.part_of(batch)
    # What is random depends on (seed, stage, epoch, step, place) alone, so a resume repeats it:
    # dropout, drop path and the noise of erased boxes by torch's generator, which is each
    # process's own, the rest by `rng`, which is the same in all.
    block = state.stage_step * trainer.n_batches + place
    own_block = block * len(part.sizes) + part.rank
    torch.manual_seed(_block_seed(config.seed, own_block, trainer.plan.number - 1))
    rng = stream(config.seed, state.epoch, BATCHES, block)
    images = to_device(
        batch,
        device,
        trainer.backbone.mean,
        trainer.backbone.std,
        channels_last=trainer.channels_last,
    )
    labels = batch["label"].to(device, non_blocking=True)
    images = erased(images, config.transforms, rng, part)
    n_classes = trainer.plan.trained.n_classes
    images, targets = mixed(images, labels, n_classes, config.transforms, rng, part)
    loss: Tensor = trainer.loss(trainer.network(images), targets)
    return loss * (trainer.loss.weight_of(targets) / weight * len(part.sizes))


def _block_seed(seed: int, block: int, stage: int) -> int:
    return int(np.random.SeedSequence((seed, block, stage)).generate_state(1, np.uint64)[0] >> 1)

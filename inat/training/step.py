"""One optimizer step, which never waits for the device."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from inat.loader.batches import Batch, normalize
from inat.samplers.base import BATCHES, stream
from inat.training.averages import Step, average_statistics
from inat.training.checkpoint import LoopState
from inat.training.mixing import GlobalBatch, erase_images, mix_images
from inat.training.processes import gathered, summed
from inat.training.trainer import Trainer

SIZES = "sizes"
"""Key under which a batch keeps how many images each process has of it."""


def accumulated(trainer: Trainer) -> Iterator[tuple[list[Batch], int]]:
    """Yields the micro-batches of each step, and how many batches were read for them.

    Left out are an incomplete last step, and batches of which a process has no readable photo.
    """
    group: list[Batch] = []
    n_read = 0
    for batch in trainer.loader:
        n_read += 1
        if min(_sizes(trainer, batch)):
            group.append(batch)
        if len(group) == trainer.n_batches:
            yield group, n_read
            group, n_read = [], 0


def take_step(trainer: Trainer, batches: list[Batch], state: LoopState) -> Step:
    """Takes one optimizer step over this process's micro-batches; its loss stays on the device.

    Normalization. The loss of a step is one mean over the targets i of all micro-batches of all P
    processes: sum_i w_i l_i / W, with W = sum_i w_i and w_i = 1 without class weights. A loss
    module returns the mean of one micro-batch b, m_b = sum_{i in b} w_i l_i / W_b. backward()
    adds up the gradients of a process's micro-batches; DDP and FSDP then average those of the
    processes, that is, add them up and divide by P. So each micro-batch must backpropagate
    m_b * (W_b / W * P): 1/P * sum_b m_b (W_b / W * P) = sum_i w_i l_i / W, whatever the sizes of
    the micro-batches and the weights of their targets.
    """
    config, accelerator, optimizer = trainer.plan.config, trainer.accelerator, trainer.optimizer
    device, n_processes = accelerator.device, accelerator.num_processes
    rank, recipe, backbone = accelerator.process_index, config.transforms, trainer.backbone
    stage_step = state.step - state.first_step
    trainer.schedule.step_update(stage_step + 1)

    # W, from the labels: mixup's partners are a permutation of the global batch.
    labels = [batch["label"].to(device, non_blocking=True) for batch in batches]
    weight = trainer.loss.weight_of(torch.cat(labels))
    if n_processes > 1:
        weight = summed(weight)

    total = torch.zeros((), device=device)
    for place, (batch, targets) in enumerate(zip(batches, labels, strict=True)):
        # What is random depends on (seed, stage, epoch, step, micro-batch) alone, so a resume
        # repeats it: dropout, drop path and erasing's noise by torch's generator, which differs
        # between processes; the rest by `rng`, which is the same in all.
        block = stage_step * trainer.n_batches + place
        key = (config.seed, block * n_processes + rank, trainer.plan.number - 1)
        torch.manual_seed(np.random.SeedSequence(key).generate_state(1, np.uint64).item() >> 1)
        images = normalize(
            batch["image"], device, backbone.mean, backbone.std, channels_last=trainer.channels_last
        )
        if recipe.mixup or recipe.cutmix or recipe.erasing or recipe.cutout:
            rng = stream(config.seed, state.epoch, BATCHES, block)
            whole = GlobalBatch(_sizes(trainer, batch), rank)
            images = erase_images(images, recipe, rng, whole)
            n_classes = trainer.plan.trained.n_classes
            images, targets = mix_images(images, targets, n_classes, recipe, rng, whole)

        # Processes exchange gradients once per step, after the last micro-batch.
        is_last = place == len(batches) - 1
        sync = nullcontext() if is_last else accelerator.no_sync(trainer.network)
        if isinstance(backbone.network, FSDPModule):  # which accelerate's no_sync does not know
            backbone.network.set_requires_gradient_sync(is_last)
            sync = nullcontext()
        with sync:
            loss = trainer.loss(trainer.network(images), targets)
            loss = loss * (trainer.loss.weight_of(targets) / weight * n_processes)
            accelerator.backward(loss)
        total += loss.detach()

    if config.optim.clip_grad_norm is not None:
        accelerator.clip_grad_norm_(trainer.network.parameters(), config.optim.clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if n_processes > 1:  # so that all processes hold the same state, which a checkpoint keeps
        average_statistics(backbone.network)
    if trainer.ema is not None:
        trainer.ema.update(state.step - state.average_began)
    return Step(
        number=state.step + 1,
        learning_rate=min(group["lr"] for group in optimizer.param_groups),
        loss=total,
        image_ids=[batch["image_id"] for batch in batches],
        n_images=sum(len(batch["label"]) for batch in batches) * n_processes,
        skipped=bool(getattr(optimizer, "step_was_skipped", False)),
    )


def _sizes(trainer: Trainer, batch: Batch) -> tuple[int, ...]:
    """Images of the batch in each process; they differ if unreadable ones are skipped."""
    n_images, n_processes = len(batch["label"]), int(trainer.accelerator.num_processes)
    if trainer.loader.on_bad_photo == "stop":
        return (n_images,) * n_processes
    if SIZES not in batch:  # asked for once
        batch[SIZES] = torch.tensor(gathered(n_images))
    return tuple(batch[SIZES].tolist())

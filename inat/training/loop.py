"""Trains a backbone: the loop, and what is done once an epoch."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from inat.competitions import find_competition
from inat.config import MAY_DIFFER, Config
from inat.config_files import build, read_config
from inat.config_values import merge
from inat.data.loader import (
    Batch,
    Loader,
    PhotoEvent,
    build_loader,
    default_workers,
    to_device,
    worker_deaths,
)
from inat.data.samplers import BATCHES, stream
from inat.errors import InputError, WorldError
from inat.files import (
    atomic_file,
    atomic_folder,
    disk_remedies,
    locked,
    read_json,
    remove_leftovers,
    write_json,
)
from inat.losses import Loss, build_loss
from inat.models.backbone import (
    Backbone,
    build_backbone,
    frozen,
    renew_head,
    rule_warning,
    set_image_size,
    try_image_size,
)
from inat.models.device import (
    freed_memory_kept,
    pick_device,
    resolve_precision,
    to_device_format,
)
from inat.prediction.processes import this_process
from inat.progress import progress_bar, say, silence
from inat.run_folder import Run, create_run, differing_fields, is_run
from inat.training.checkpoint import (
    LoopState,
    load_checkpoint,
    read_state,
    save_checkpoint,
    settle_checkpoints,
)
from inat.training.mixing import erased, mixed
from inat.training.optim import build_optimizer, build_schedule
from inat.training.plan import Plan, StagePlan, make_plan
from inat.training.processes import (
    PATIENCE,
    BatchPart,
    average_statistics,
    by_first,
    gathered,
    is_sharded,
    others_alive,
    shard,
    shared_batch,
    summed,
    weights_together,
)
from inat.training.stopping import Stopped, StopSignals, stop_signals
from inat.training.tracking import MetricsLog, NoLog
from inat.training.validation import Validation, validate
from inat.training.window import Step, Window


@dataclass
class Trainer:
    """Everything that the loop moves in one stage; made by `_build_trainer` and `_next_trainer`.

    Attributes:
        plan: of the stage.
        network: as accelerate prepared it; the bare one is `backbone.network`.
        ema: moving average of the weights, or None.
        validated: the last validation of this process, or None.
    """

    plan: StagePlan
    accelerator: Accelerator
    backbone: Backbone
    network: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    loader: Loader
    held_out_loader: Loader | None
    precision: str
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
    def loaders(self) -> list[Loader]:
        """That of training, and that of the held-out part where there is one."""
        both = (self.loader, self.held_out_loader)
        return [loader for loader in both if loader is not None]

    def part_of(self, batch: Batch) -> BatchPart:
        """Which part of its global batch a batch is."""
        n_images, rank = len(batch["label"]), self.accelerator.process_index
        if self.loader.on_bad_photo == "stop":
            return BatchPart((n_images,) * self.accelerator.num_processes, rank)
        return BatchPart(tuple(gathered(n_images)), rank)  # unreadable photos are left out


def train(
    config: Path | str | Config,
    run: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Trains what a config says and leaves a run folder.

    Args:
        config: a YAML file of `configs/`, or a Config.
        run: the run folder; None: runs/ and the config file's name.
        overrides: dotted fields laid over the config, {"optim.lr_per_256": 1e-3}.
        resume: go on from the last whole checkpoint of a run of the same config.
        overwrite: throw away what the run folder holds.

    Raises:
        InputError: anything wrong with config or data; a run folder that holds something else.
        WorldError: the loss is not finite, a photo cannot be read, the disk is full, or another
            training works in the run folder.
        Stopped: SIGINT or SIGTERM came to any of the processes; the checkpoint is written.
    """
    config, path = resolved(config, run, overrides)
    if resume and overwrite:
        raise InputError("--resume keeps a run and --overwrite throws it away; give one of them")
    kept = "the checkpoint before is whole; make room and go on with --resume"
    with silence(this_process(None, None).rank > 0), others_alive(), disk_remedies(path, kept):
        plan = make_plan(config)
        with _engine(config) as (accelerator, precision), ExitStack() as lock:

            def is_finished() -> bool:
                lock.enter_context(_locked(path))
                return _is_finished(path, plan, resume=resume, overwrite=overwrite)

            if by_first(is_finished):
                say(f"{path}: this config is trained already; --overwrite trains it again")
            else:
                _train(plan, path, accelerator, precision, overwrite=overwrite)
    return Run(path)


def _locked(path: Path) -> AbstractContextManager[None]:
    """Keeps other trainings out of a run folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: another training works there; wait for it, or give another --run"
    # Beside the folder, which --overwrite replaces.
    return locked(path.resolve().with_name(f".{path.resolve().name}.lock"), busy)


def _train(
    plan: Plan, path: Path, accelerator: Accelerator, precision: str, *, overwrite: bool
) -> None:
    for line in plan.describe():
        say(line)
    trainer = _build_trainer(plan, accelerator, precision)
    say(f"weights    {trainer.backbone.source}")
    say(f"device     {_describe_device(accelerator, precision)}")
    with _memory_remedies():
        _try_later_stages(trainer, plan)
        # Not before here: what is wrong with model or weights must not cost the old run.
        by_first(lambda: _make_run(path, plan.config, overwrite=overwrite))
        _run_epochs(trainer, plan, Run(path))


def dry_run(
    config: Path | str | Config, *, overrides: Mapping[str, Any] | None = None
) -> list[str]:
    """The plan of a training in lines, with the peak memory that one batch of it took, and one of
    each of its later stages."""
    config, _ = resolved(config, None, overrides)
    plan = make_plan(config)
    with others_alive(), _engine(config) as (accelerator, precision):
        trainer = _build_trainer(plan, accelerator, precision)
        lines = [
            *plan.describe(),
            f"weights    {trainer.backbone.source}",
            f"device     {_describe_device(accelerator, precision)}",
            _one_step(trainer),
        ]
        for stage in plan.stages[1:]:
            trainer = _next_trainer(trainer, stage)
            lines.append(_one_step(trainer))
        return lines


def _one_step(trainer: Trainer) -> str:
    """Takes the first step of a stage, and says what it cost."""
    trainer.network.train()
    trainer.backbone.still_if_frozen()
    began = time.monotonic()
    trainer.loader.set_epoch(trainer.plan.first_epoch)
    batches, _ = next(_accumulated(trainer))
    with _memory_remedies():
        loss = _step(trainer, batches, LoopState(epoch=trainer.plan.first_epoch)).loss.item()
    return (
        f"one batch  loss {loss:.3f} after {time.monotonic() - began:.1f} s, "
        f"peak memory {_peak_memory(trainer.accelerator.device)}"
    )


@contextmanager
def _memory_remedies() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise WorldError(
            f"the device's memory is full ({str(error).splitlines()[0]:.100}); halve batch_size "
            "and double optim.accumulate, or set runtime.gradient_checkpointing true; --resume "
            "goes on from the last checkpoint"
        ) from None


def resolved(
    config: Path | str | Config, run: Path | str | None, overrides: Mapping[str, Any] | None
) -> tuple[Config, Path]:
    if isinstance(config, Config):
        built = (
            build(merge(config.to_dict(), overrides or {}), "overrides") if overrides else config
        )
        if run is None:
            run = Path("runs") / built.digest
        return built, Path(run)
    return read_config(config, overrides), Path(run or Path("runs") / Path(config).stem)


def _is_finished(path: Path, plan: Plan, *, resume: bool, overwrite: bool) -> bool:
    """Whether there is nothing left to train.

    Raises:
        InputError: the folder holds anything that this training may not go on with.
    """
    remove_leftovers(path)
    if not is_run(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"{path}: the folder is not empty and holds no run; give another --run"
            )
        return False
    if overwrite:
        return False
    run = Run(path)
    if (path / "model.json").is_file() and run.made_by != "inat train":
        raise InputError(
            f"{path}: the run there was made by {run.made_by}; give another --run, or "
            "--overwrite to throw it away"
        )
    differing = differing_fields(run.config, plan.config)
    free = [name for name in differing if name in MAY_DIFFER]
    if run.config.digest != plan.config.digest:
        fields = ", ".join(name for name in differing if name not in free)
        allowed = f"; {', '.join(free)} may differ" if free else ""
        raise InputError(
            f"{path}: the run there was made with other settings ({fields}{allowed}); "
            "give another --run, or --overwrite to throw it away"
        )
    if (path / "model.json").is_file() and run.model["trained"] != plan.trained.fingerprint:
        raise InputError(
            f"{path}: the run there was trained on other photos than those of "
            f"{plan.config.data.root}; give another --run, or --overwrite to throw it away"
        )
    last = run.checkpoint("last")
    if settle_checkpoints(last, run.checkpoint_before) and read_state(last).epoch == plan.epochs:
        return True
    if not resume:
        raise InputError(
            f"{path}: there is an unfinished run; --resume goes on with it, --overwrite starts anew"
        )
    if free:
        say(f"settings   other than before, as they may be: {', '.join(free)}")
    return False


def _make_run(path: Path, config: Config, *, overwrite: bool) -> None:
    if overwrite or not is_run(path):
        with atomic_folder(path) as partial:
            create_run(partial, config)


def _describe_device(accelerator: Accelerator, precision: str) -> str:
    count = accelerator.num_processes
    each = f", {count} processes" if count > 1 else ""
    return f"{accelerator.device.type}, {precision}{each}"


@contextmanager
def _engine(config: Config) -> Iterator[tuple[Accelerator, str]]:
    """accelerate's engine and the precision; leaves no generator or allocator setting changed."""
    device = pick_device(config.runtime.device)
    precision = resolve_precision(config.runtime.precision, device)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    try:
        # The loop seeds torch's generators anew each step.
        with torch.random.fork_rng(devices=cuda), freed_memory_kept():
            yield accelerator, precision
    finally:
        # A second training of another precision in this process would be refused otherwise.
        AcceleratorState._reset_state(False)


def _build_trainer(plan: Plan, accelerator: Accelerator, precision: str) -> Trainer:
    """The trainer of the first stage, with the network and its moving average."""
    config = plan.config
    backbone = build_backbone(
        config.model, plan.trained.n_classes, config.seed, config.transforms.image_size
    )
    warning = rule_warning(config.model, backbone.source, find_competition(config.data.competition))
    if warning:
        say(f"warning: {warning}")
    if config.runtime.gradient_checkpointing:
        _checkpoint_gradients(backbone.network, config.model.backbone)
    sharded = config.runtime.shard and accelerator.num_processes > 1
    to_device_format(
        backbone.network,
        accelerator.device,
        # fully_shard takes contiguous weights alone.
        channels_last=config.runtime.channels_last and not sharded,
    )
    if sharded:
        shard(backbone.network, accelerator.device)
    trainer = _stage_trainer(plan.stages[0], accelerator, backbone, None, precision)
    if config.optim.ema_decay is not None:
        trainer.ema = ModelEmaV3(backbone.network, decay=config.optim.ema_decay)
    return trainer


def _next_trainer(trainer: Trainer, stage: StagePlan) -> Trainer:
    """The trainer of a later stage: network and moving average go on, all else begins anew."""
    config, backbone = stage.config, trainer.backbone
    networks = [backbone.network] + ([] if trainer.ema is None else [trainer.ema.module])
    if config.transforms.image_size != trainer.plan.config.transforms.image_size:
        for network in networks:
            set_image_size(network, config.transforms.image_size)
    if stage.new_head:
        renew_head(networks, config.model, config.seed)
    # Else accelerate would go on unscaling the gradients of the optimiser before.
    trainer.accelerator.free_memory()
    started = _stage_trainer(
        stage,
        trainer.accelerator,
        frozen(backbone, config.model.freeze),
        trainer.ema,
        trainer.precision,
    )
    for loader, before in zip(started.loaders, trainer.loaders, strict=True):
        loader.take_events(before)
    started.validated = trainer.validated
    return started


def _stage_trainer(
    stage: StagePlan,
    accelerator: Accelerator,
    backbone: Backbone,
    ema: ModelEmaV3 | None,
    precision: str,
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
    )


def _compiled(network: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(network)
    assert isinstance(compiled, nn.Module)  # its declared type says no more than callable
    return compiled


def _prepared(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    # Weights that are sharded bring their gradients together themselves.
    prepared: nn.Module = accelerator.prepare_model(network, evaluation_mode=is_sharded(network))
    if isinstance(prepared, DistributedDataParallel):
        # Running statistics are averaged after each step, not those of rank 0 sent before it.
        prepared.broadcast_buffers = False
    return prepared


def _try_later_stages(trainer: Trainer, plan: Plan) -> None:
    """Goes through the later stages on a copy of the network, so that what is wrong with one is
    said now and not after days of training."""
    if len(plan.stages) == 1:
        return
    backbone = replace(trainer.backbone, network=deepcopy(trainer.backbone.network).eval())
    copy = replace(trainer, backbone=backbone, ema=None)
    for stage in plan.stages[1:]:
        copy = _next_trainer(copy, stage)
        try_image_size(backbone.network, stage.config.transforms.image_size)
    trainer.accelerator.free_memory()
    trainer.accelerator.prepare_optimizer(trainer.optimizer)  # again, after free_memory


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
    batch_size = shared_batch(config.batch_size, world_size)
    return build_loader(
        split,
        image_size=config.transforms.image_size if training else config.transforms.test_size,
        training=training,
        batch_size=batch_size * (1 if training else 2),
        workers=_workers(config.data.workers),
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
    )


def _workers(given: int | None) -> int:
    """Workers of this process; the processes of a machine share its processors."""
    if given is not None:
        return given
    return max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _write_facts(run: Run, trainer: Trainer) -> None:
    plan, backbone = trainer.plan, trainer.backbone
    species = plan.trained.taxonomy.table.assign(train_count=plan.trained.train_counts)
    with atomic_file(run.path / "species.parquet") as partial:
        species.to_parquet(partial, index=False)
    write_json(
        run.path / "model.json",
        {
            "backbone": plan.config.model.backbone,
            "mean": backbone.mean,
            "std": backbone.std,
            "weights_source": backbone.source,
            "precision": trainer.precision,
            "device": trainer.accelerator.device.type,
            "trained": plan.trained.fingerprint,
            "learning_rate": plan.learning_rate,
            "category_ids": plan.trained.taxonomy.category_ids,
            "draws_prior": plan.draws_prior,
            "logits_prior": plan.logits_prior,
        },
    )


@dataclass
class _Keeper:
    """What a training is kept by: its run, its log, and when a checkpoint was written last."""

    run: Run
    log: MetricsLog
    stops: StopSignals
    saved_at: float
    saved_step: int

    def is_due(self, config: Config, state: LoopState) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        runtime = config.runtime
        if time.monotonic() - self.saved_at >= 60 * runtime.checkpoint_minutes:
            return True
        steps = runtime.checkpoint_steps
        return steps is not None and state.step - self.saved_step >= steps

    def save(self, trainer: Trainer, state: LoopState, *, is_best: bool = False) -> None:
        """Writes the checkpoint."""
        _save(trainer, state, self.run, is_best=is_best)
        self.saved_at, self.saved_step = time.monotonic(), state.step


def _run_epochs(trainer: Trainer, plan: Plan, run: Run) -> None:
    trainer, state = _resumed(trainer, plan, run)
    by_first(lambda: _write_facts(run, trainer))
    is_main = trainer.accelerator.is_main_process
    log = MetricsLog(run.metrics_path, keep_bytes=state.metrics_bytes) if is_main else NoLog()
    try:
        with stop_signals() as stops:
            keeper = _Keeper(run, log, stops, time.monotonic(), state.step)
            while state.epoch < plan.epochs:
                if state.epoch == trainer.plan.end_epoch:
                    trainer = _next_trainer(trainer, plan.stage_after(state.epoch))
                    # Best is best of a stage: priors and sizes differ between them.
                    state.first_step, state.best_score = state.step, None
                    say(f"stage      {trainer.plan.number} of {len(plan.stages)}")
                _run_epoch(trainer, state, keeper, plan.epochs)
                stops.check()
    finally:
        log.close()


def _run_epoch(trainer: Trainer, state: LoopState, keeper: _Keeper, epochs: int) -> None:
    """Trains an epoch, or the rest of one, and validates; a signal leaves a checkpoint of the
    middle of it."""
    try:
        with worker_deaths():
            _train_epoch(trainer, state, keeper, epochs)
            result = _validate(trainer, keeper.stops)
    except Stopped:
        keeper.save(trainer, state)
        raise
    state.epoch, state.batches = state.epoch + 1, 0
    is_best = _note_validation(trainer, result, state, keeper.log)
    state.metrics_bytes = keeper.log.n_bytes
    keeper.save(trainer, state, is_best=is_best)


def _resumed(trainer: Trainer, plan: Plan, run: Run) -> tuple[Trainer, LoopState]:
    """The trainer of the stage that the last checkpoint is of, and where it stands."""
    folder = run.checkpoint("last")
    if not folder.is_dir():
        return trainer, LoopState()
    stage = plan.stage_after(read_state(folder).begun_epochs - 1)
    if stage is not plan.stages[0]:
        trainer = _next_trainer(trainer, stage)
    state = load_checkpoint(
        folder, trainer.backbone.network, trainer.averaged, trainer.optimizer, trainer.loss
    )
    if trainer.accelerator.scaler is not None and state.loss_scale is not None:
        trainer.accelerator.scaler.load_state_dict(state.loss_scale)
    _recall_bad_photos(trainer, run)
    within = f", in epoch {state.begun_epochs}" if state.batches else ""
    say(f"resumed    after step {state.step}, {state.epoch} whole epochs{within}")
    return trainer, state


def _save(trainer: Trainer, state: LoopState, run: Run, *, is_best: bool) -> None:
    _list_bad_photos(trainer, run)
    scaler = trainer.accelerator.scaler
    state.loss_scale = None if scaler is None else scaler.state_dict()
    # best first: a last that knows the best score must never stand alone.
    for name in ("best", "last") if is_best else ("last",):
        if name == "last":  # the stage may be another than that of the last before
            by_first(lambda: _write_facts(run, trainer))
        save_checkpoint(
            run.path / "checkpoints" / name,
            state,
            trainer.backbone.network,
            trainer.averaged,
            trainer.optimizer,
            trainer.loss,
            keep=run.checkpoint_before if name == "last" else None,
        )


def _train_epoch(trainer: Trainer, state: LoopState, keeper: _Keeper, epochs: int) -> None:
    plan, config = trainer.plan, trainer.plan.config
    window = Window(state.losses)
    trainer.network.train()
    trainer.backbone.still_if_frozen()
    trainer.loader.set_epoch(state.epoch, start=state.batches * trainer.loader.global_batch)
    trainer.loss.set_progress((state.epoch - plan.first_epoch) / config.epochs)
    title = f"epoch {state.epoch + 1}/{epochs}"
    with progress_bar(title, plan.steps_per_epoch * plan.global_batch, "images") as bar:
        for batches, n_read in _accumulated(trainer):
            step = _step(trainer, batches, state)
            state.step, state.batches = step.number, state.batches + n_read
            window.add(step)
            if state.step % config.runtime.log_every == 0:
                _log_window(trainer, state, keeper.log, window)
            if keeper.stops.any_asks(keeper.is_due(config, state)):
                state.losses, state.metrics_bytes = window.read(), keeper.log.n_bytes
                keeper.stops.check()
                keeper.save(trainer, state)
            bar.advance(step.n_images, window.note)
    if not window.is_empty:
        _log_window(trainer, state, keeper.log, window)
    state.losses, state.metrics_bytes = [], keeper.log.n_bytes
    say(f"{title}  {window.note}  {window.epoch_rate:.0f} images/s")


def _accumulated(trainer: Trainer) -> Iterator[tuple[list[Batch], int]]:
    """The batches of one step after another, and how many were read for them; a rest of fewer is
    left out."""
    group: list[Batch] = []
    n_read = 0
    for batch in trainer.loader:
        n_read += 1
        if min(trainer.part_of(batch).sizes):  # else all photos of a process were unreadable
            group.append(batch)
        if len(group) == trainer.plan.config.optim.accumulate:
            yield group, n_read
            group, n_read = [], 0


def _step(trainer: Trainer, batches: list[Batch], state: LoopState) -> Step:
    """One optimiser step; its loss is still on the device."""
    config, accelerator, optimizer = trainer.plan.config, trainer.accelerator, trainer.optimizer
    trainer.schedule.step_update(state.stage_step + 1)
    total = torch.zeros((), device=accelerator.device)
    weight = _step_weight(trainer, batches)
    for place, batch in enumerate(batches):
        is_last = place == len(batches) - 1
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
        trainer.ema.update(trainer.backbone.network)
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
    block = state.stage_step * config.optim.accumulate + place
    own_block = block * len(part.sizes) + part.rank
    torch.manual_seed(_block_seed(config.seed, own_block, trainer.plan.number - 1))
    rng = stream(config.seed, state.epoch, BATCHES, block)
    images = to_device(batch, device, trainer.backbone.mean, trainer.backbone.std)
    labels = batch["label"].to(device, non_blocking=True)
    images = erased(images, config.transforms, rng, part)
    n_classes = trainer.plan.trained.n_classes
    images, targets = mixed(images, labels, n_classes, config.transforms, rng, part)
    loss: Tensor = trainer.loss(trainer.network(images), targets)
    return loss * (trainer.loss.weight_of(targets) / weight * len(part.sizes))


def _block_seed(seed: int, block: int, stage: int) -> int:
    return int(np.random.SeedSequence((seed, block, stage)).generate_state(1, np.uint64)[0] >> 1)


def _log_window(trainer: Trainer, state: LoopState, log: MetricsLog, window: Window) -> None:
    loss, rate = window.close()
    learning_rate = min(group["lr"] for group in trainer.optimizer.param_groups)
    shown = "none" if loss is None else f"{loss:.3f}"
    window.note = f"loss {shown}  lr {learning_rate:.2e}"
    log.write(
        "train",
        epoch=state.epoch + 1,
        step=state.step,
        loss=loss,
        learning_rate=learning_rate,
        images_per_second=rate,
    )


def _validate(trainer: Trainer, stops: StopSignals) -> Validation | None:
    """Scores the held-out part, if there is one."""
    if trainer.held_out_loader is None:
        return None
    with weights_together(trainer.evaluated):
        return validate(
            trainer.evaluated,
            trainer.held_out_loader,
            check=stops.check,
            mean=trainer.backbone.mean,
            std=trainer.backbone.std,
            precision=trainer.precision,
            train_counts=trainer.plan.trained.train_counts,
            band_edges=trainer.plan.config.data.band_edges,
        )


def _note_validation(
    trainer: Trainer, result: Validation | None, state: LoopState, log: MetricsLog
) -> bool:
    """Writes a validation into log and state; says whether this epoch is the best so far."""
    if result is None:
        return False
    say(f"           {result.since(trainer.validated)}")
    trainer.validated = result
    log.write("validation", epoch=state.epoch, step=state.step, **vars(result))
    if state.best_score is not None and result.mean_class_accuracy <= state.best_score:
        return False
    state.best_score = result.mean_class_accuracy
    return True


def _list_bad_photos(trainer: Trainer, run: Run) -> None:
    """Writes the photos that made trouble into the run, and stops it if they are too many."""
    loaders = trainer.loaders
    bad = _unique([event for loader in loaders for event in loader.bad_photos])
    listed = {
        "skipped": bad,
        "recovered": _unique([e for loader in loaders for e in loader.recovered_photos]),
        "slow": _unique([e for loader in loaders for e in loader.slow_photos]),
    }
    if any(listed.values()):
        by_first(lambda: write_json(run.path / "bad_photos.json", listed))
    plan = trainer.plan
    n_photos = len(plan.trained) + (len(plan.held_out) if plan.held_out else 0)
    if len(bad) > plan.config.data.bad_photo_limit * n_photos:
        raise WorldError(
            f"{len(bad)} of {n_photos} photos cannot be read, more than data.bad_photo_limit "
            f"allows; they are listed in {run.path / 'bad_photos.json'}"
        )


def _recall_bad_photos(trainer: Trainer, run: Run) -> None:
    """Goes on with the photos that made trouble before."""
    path = run.path / "bad_photos.json"
    if path.is_file():
        told, loader = read_json(path), trainer.loader
        loader.bad_photos += [PhotoEvent(**event) for event in told["skipped"]]
        loader.recovered_photos += [PhotoEvent(**event) for event in told["recovered"]]
        loader.slow_photos += [PhotoEvent(**event) for event in told["slow"]]


def _unique(events: list[PhotoEvent]) -> list[PhotoEvent]:
    """The events of all processes, one a photo."""
    everywhere = [event for those in gathered(events) for event in those]
    return list({event.image_id: event for event in everywhere}.values())


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

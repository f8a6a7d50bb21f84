"""Trains a backbone: the loop, and what is done once an epoch."""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from inat.config.schema import MAY_DIFFER, Config
from inat.core.errors import InputError, WorldError
from inat.core.files import (
    atomic_file,
    atomic_folder,
    disk_remedies,
    remove_folder,
    remove_leftovers,
    write_bytes,
    write_json,
)
from inat.core.metrics import Validation
from inat.core.progress import progress_bar, say, silence
from inat.loader.loader import worker_deaths
from inat.models.device import device_facts, memory_remedies
from inat.predictions.processes import this_process
from inat.runs.facts import RunFacts, WeightsFacts, write_run_facts
from inat.runs.metrics_log import MetricsLog, NoLog
from inat.runs.run import Run, create_run, differing_fields, is_run, writing
from inat.training.bad_photos import list_bad_photos, recall_bad_photos
from inat.training.checkpoint import (
    LoopState,
    load_checkpoint,
    read_state,
    save_checkpoint,
    settle_checkpoints,
)
from inat.training.earlier_prior import EarlierPriorShare
from inat.training.plan import Plan, StagePlan, loss_prior_files, make_plan
from inat.training.processes import by_first, others_alive, weights_together
from inat.training.step import accumulated, take_step
from inat.training.stopping import Stopped, StopSignals, stop_signals
from inat.training.trainer import (
    Trainer,
    build_trainer,
    describe_device,
    engine,
    next_trainer,
    try_later_stages,
)
from inat.training.validation import validate
from inat.training.window import LossNotFinite, Window

LIMIT_SECONDS = 2.0
"""How long a dry run measures the network, and the loader."""

SMALLER_BATCHES = (
    "halve batch_size and double optim.accumulate (or halve optim.device_batch), or set "
    "runtime.gradient_checkpointing true; --resume goes on from the last checkpoint"
)


def train_run(config: Config, path: Path, *, resume: bool, overwrite: bool) -> Run:
    """Trains a config and leaves a run folder; see `verbs.train`."""
    kept = "the checkpoint before is whole; make room and go on with --resume"
    with silence(this_process(None, None).rank > 0), others_alive(), disk_remedies(path, kept):
        plan = make_plan(config)
        begun = _begun(path) if resume else None
        with engine(config, begun) as (accelerator, precision), ExitStack() as lock:

            def is_finished() -> bool:
                lock.enter_context(writing(path))
                return _is_finished(path, plan, resume=resume, overwrite=overwrite)

            if by_first(is_finished):
                say(f"{path}: this config is trained already; --overwrite trains it again")
            else:
                _train(plan, path, accelerator, precision, overwrite=overwrite)
    return Run(path)


def _begun(path: Path) -> Run | None:
    """The run that is there, if it has got as far as to know its model."""
    return Run(path) if is_run(path) and (path / "model.json").is_file() else None


def _train(
    plan: Plan, path: Path, accelerator: Accelerator, precision: str, *, overwrite: bool
) -> None:
    for line in plan.describe():
        say(line)
    with memory_remedies(SMALLER_BATCHES):
        trainer = build_trainer(plan, accelerator, precision)
        say(f"weights    {trainer.backbone.source}")
        for line in describe_device(trainer):
            say(line)
        try_later_stages(trainer, plan)
        # Not before here: what is wrong with model or weights must not cost the old run.
        by_first(lambda: _make_run(path, plan.config, overwrite=overwrite))
        _run_epochs(trainer, plan, Run(path))


def try_run(config: Config) -> list[str]:
    """The plan of a training in lines, with what one batch of each stage took."""
    plan = make_plan(config)
    with (
        others_alive(),
        memory_remedies(SMALLER_BATCHES),
        engine(config) as (accelerator, precision),
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
    """Takes the first step of a stage, and says what it cost."""
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
    """Says how fast the network takes photos and how fast the loader gives them, each alone."""
    batches, _ = next(accumulated(trainer))
    state = LoopState(epoch=trainer.plan.first_epoch)

    def timed(n_steps: int) -> float:
        began = time.monotonic()
        losses = [take_step(trainer, batches, state).loss for _ in range(n_steps)]
        losses[-1].item()  # the device is done
        return time.monotonic() - began

    first = timed(1)
    # All processes take as many.
    n_steps = by_first(lambda: max(1, min(20, int(LIMIT_SECONDS / first))))
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
    if (path / "model.json").is_file() and run.facts.trained != plan.trained.fingerprint:
        raise InputError(
            f"{path}: the run there was trained on other photos than those of "
            f"{plan.config.data.root}; give another --run, or --overwrite to throw it away"
        )
    _refuse_another_prior(run, plan)
    last = run.checkpoint("last")
    remove_leftovers(run.checkpoint("best"))
    if settle_checkpoints(last, run.checkpoint_before) and read_state(last).epoch == plan.epochs:
        remove_folder(run.checkpoint_before)  # where a kill kept the training from doing so
        return True
    if not resume:
        raise InputError(
            f"{path}: there is an unfinished run; --resume goes on with it, --overwrite starts anew"
        )
    if free:
        say(f"settings   other than before, as they may be: {', '.join(free)}")
    return False


def _refuse_another_prior(run: Run, plan: Plan) -> None:
    digest = plan.stages[0].loss_prior_sha256
    if not (run.path / "model.json").is_file():
        return
    if run.facts.loss_prior_sha256 not in (None, digest):  # older runs do not say it
        files = " and ".join(map(str, loss_prior_files(plan.config)))
        raise InputError(
            f"{run.path}: the run there was trained with another prior than {files} holds now "
            "(loss.prior); put back what was there, give another --run, or --overwrite to throw "
            "the run away"
        )


def _make_run(path: Path, config: Config, *, overwrite: bool) -> None:
    if overwrite or not is_run(path):
        with atomic_folder(path) as partial:
            create_run(partial, config, device_facts())
    elif Run(path).config != config:  # in fields that may differ: predictions go by the newest
        write_bytes(path / "config.yaml", config.to_yaml().encode())


def _write_facts(run: Run, trainer: Trainer) -> None:
    plan, backbone = trainer.plan, trainer.backbone
    species = plan.trained.taxonomy.table.assign(train_count=plan.trained.train_counts)
    with atomic_file(run.path / "species.parquet") as partial:
        species.to_parquet(partial, index=False)
    facts = RunFacts(
        backbone=plan.config.model.backbone,
        mean=backbone.mean,
        std=backbone.std,
        weights_source=backbone.source,
        precision=trainer.precision,
        device=trainer.accelerator.device.type,
        world_size=trainer.accelerator.num_processes,
        process_batch=trainer.loader.batch_size,
        trained=plan.trained.fingerprint,
        category_ids=plan.trained.taxonomy.category_ids.tolist(),
        loss_prior_sha256=plan.loss_prior_sha256,
    )
    write_run_facts(run.path, facts)


@dataclass
class _Keeper:
    """What a training is kept by: its run, its log, and when a checkpoint was written last."""

    run: Run
    log: MetricsLog
    stops: StopSignals
    saved_at: float
    saved_step: int
    stamp: bytes

    def is_due(self, config: Config, state: LoopState) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        runtime = config.runtime
        if time.monotonic() - self.saved_at >= 60 * runtime.checkpoint_minutes:
            return True
        steps = runtime.checkpoint_steps
        return steps is not None and state.step - self.saved_step >= steps

    def save(self, trainer: Trainer, state: LoopState, *, is_best: bool = False) -> None:
        """Writes the checkpoint.

        Raises:
            WorldError: another run lies in the folder by now.
        """
        by_first(self._refuse_another_run)
        self.log.flush()
        _save(trainer, state, self.run, is_best=is_best)
        self.stops.forget()
        self.saved_at, self.saved_step = time.monotonic(), state.step

    def _refuse_another_run(self) -> None:
        # Locks do not hold on every file system, and no lock keeps out rm and mv.
        if self.run.read_stamp() != self.stamp:
            raise WorldError(
                f"{self.run.path}: the run folder was removed or replaced while this training "
                "worked in it, so it stops; train again, with another --run where something else "
                "lies there"
            )


def _run_epochs(trainer: Trainer, plan: Plan, run: Run) -> None:
    trainer, state = _resumed(trainer, plan, run)
    by_first(lambda: _write_facts(run, trainer))
    stamp = by_first(run.read_stamp)
    is_main = trainer.accelerator.is_main_process
    log = MetricsLog(run.metrics_path, keep_bytes=state.metrics_bytes) if is_main else NoLog()
    try:
        with stop_signals() as stops:
            keeper = _Keeper(run, log, stops, time.monotonic(), state.step, stamp)
            while state.epoch < plan.epochs:
                if state.epoch == trainer.plan.end_epoch:
                    trainer = next_trainer(trainer, plan.stage_after(state.epoch))
                    # Best is best of a stage: priors and sizes differ between them.
                    state.first_step, state.best_score = state.step, None
                    state.shows_prior = False
                    if trainer.plan.begins_average:
                        state.average_began = state.step
                    say(f"stage      {trainer.plan.number} of {len(plan.stages)}")
                _run_epoch(trainer, state, keeper, plan.epochs)
                stops.check()
            # Nothing is left to resume: a finished run need not be three times its size.
            by_first(lambda: remove_folder(run.checkpoint_before))
    finally:
        log.close()


def _run_epoch(trainer: Trainer, state: LoopState, keeper: _Keeper, epochs: int) -> None:
    """Trains an epoch, or the rest of one, and validates; a signal leaves a checkpoint of the
    middle of it."""
    try:
        with worker_deaths():
            _train_epoch(trainer, state, keeper, epochs)
            result = _validate(trainer, state, keeper)
    except Stopped:
        keeper.save(trainer, state)
        raise
    except LossNotFinite as error:
        path = keeper.run.path / "non_finite.json"
        by_first(lambda: write_json(path, {"step": error.step, "image_ids": error.image_ids}))
        raise LossNotFinite(
            f"{error}; all images of the step are in {path}", error.step, error.image_ids
        ) from None
    state.epoch, state.batches, state.draws = state.epoch + 1, 0, 0
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
        trainer = next_trainer(trainer, stage)
    state = load_checkpoint(
        folder, trainer.backbone.network, trainer.averaged, trainer.optimizer, trainer.loss
    )
    if trainer.accelerator.scaler is not None and state.loss_scale is not None:
        trainer.accelerator.scaler.load_state_dict(state.loss_scale)
    recall_bad_photos(trainer, run)
    within = f", in epoch {state.begun_epochs}" if state.batches else ""
    say(f"resumed    after step {state.step}, {state.epoch} whole epochs{within}")
    return trainer, state


def _save(trainer: Trainer, state: LoopState, run: Run, *, is_best: bool) -> None:
    list_bad_photos(trainer, run)
    scaler = trainer.accelerator.scaler
    state.loss_scale = None if scaler is None else scaler.state_dict()
    state.weights = _weights_facts(trainer.plan, state)
    if state.best_score is None:  # none, or that of the stage before, of other priors
        by_first(lambda: remove_folder(run.checkpoint("best")))
    save_checkpoint(
        run.checkpoint("last"),
        state,
        trainer.backbone.network,
        trainer.averaged,
        trainer.optimizer,
        trainer.loss,
        keep=run.checkpoint_before,
        best=run.checkpoint("best") if is_best else None,
    )


def _weights_facts(plan: StagePlan, state: LoopState) -> WeightsFacts:
    is_known = not plan.starts_from_other_prior or state.shows_prior
    priors = plan.draws_prior, plan.logits_prior if is_known else None
    draws, logits = (None if prior is None else prior.tolist() for prior in priors)
    return WeightsFacts(
        stage=plan.number,
        image_size=plan.config.transforms.image_size,
        draws_prior=draws,
        logits_prior=logits,
    )


def _train_epoch(trainer: Trainer, state: LoopState, keeper: _Keeper, epochs: int) -> None:
    plan, config = trainer.plan, trainer.plan.config
    window = Window(state.losses)
    trainer.network.train()
    trainer.backbone.still_if_frozen()
    trainer.loader.set_epoch(state.epoch, start=state.draws)
    trainer.loss.set_progress((state.epoch - plan.first_epoch) / config.epochs)
    title = f"epoch {state.epoch + 1}/{epochs}"
    with progress_bar(title, plan.steps_per_epoch * plan.global_batch, "images") as bar:
        for batches, n_read in window.timed(accumulated(trainer)):
            step = take_step(trainer, batches, state)
            state.step, state.batches = step.number, state.batches + n_read
            state.draws += n_read * trainer.loader.global_batch
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
    say(
        f"{title}  {window.note}  {window.epoch_rate:.0f} images/s, "
        f"{window.epoch_waiting:.0%} of the time waiting for photos"
    )


def _log_window(trainer: Trainer, state: LoopState, log: MetricsLog, window: Window) -> None:
    loss, rate, waiting = window.close()
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
        waiting_share=round(waiting, 4),
    )


def _validate(trainer: Trainer, state: LoopState, keeper: _Keeper) -> Validation | None:
    """Scores the held-out part, if there is one."""
    plan = trainer.plan
    if trainer.held_out_loader is None:
        return None
    share, earlier = None, plan.earlier_prior
    if plan.starts_from_other_prior and earlier is not None and plan.logits_prior is not None:
        share = EarlierPriorShare(earlier, plan.logits_prior)
    with weights_together(trainer.evaluated):
        result = validate(
            trainer.evaluated,
            trainer.held_out_loader,
            check=keeper.stops.check,
            earlier_prior=share,
            mean=trainer.backbone.mean,
            std=trainer.backbone.std,
            precision=trainer.precision,
            channels_last=trainer.channels_last,
            train_counts=plan.trained.train_counts,
            band_edges=plan.config.data.band_edges,
        )
    if share is not None:
        state.shows_prior = share.is_gone()
        said = "gone" if state.shows_prior else "not gone, so the logits' prior is unknown"
        say(f"prior      share of the earlier one that is left: {share}: {said}")
        keeper.log.write("prior", epoch=state.epoch + 1, step=state.step, **share.facts())
    return result


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

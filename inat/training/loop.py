"""The training loop: setup, then stages and epochs, then what happens once in a while."""

from contextlib import ExitStack, closing
from pathlib import Path

from accelerate import Accelerator

from inat.config.schema import Config
from inat.core.errors import InputError
from inat.core.files import disk_remedies, remove_folder, remove_leftovers, write_json
from inat.core.metrics import Validation
from inat.core.progress import progress_bar, say, silence
from inat.loader.workers import worker_deaths
from inat.models.device import memory_remedies
from inat.predictions.processes import this_process
from inat.runs.metrics_log import MetricsLog, NoLog
from inat.runs.run import Run, is_run, writing
from inat.training.accelerator import build_accelerator
from inat.training.averages import LossMeter, LossNotFinite
from inat.training.checkpoint import LoopState
from inat.training.earlier_prior import EarlierPriorShare
from inat.training.existing_run import ExistingRun, existing_run
from inat.training.plan import Plan, make_plan
from inat.training.processes import on_rank_zero, peer_failures_reported, weights_together
from inat.training.run_files import CheckpointSchedule, create_or_update, resume_from, write_facts
from inat.training.step import accumulated, take_step
from inat.training.stopping import Stopped, stop_signals
from inat.training.trainer import (
    Trainer,
    build_trainer,
    describe_device,
    next_trainer,
    try_later_stages,
)
from inat.training.validation import validate

SMALLER_BATCHES = (
    "halve batch_size and double optim.accumulate (or halve optim.device_batch), or set "
    "runtime.gradient_checkpointing true; --resume goes on from the last checkpoint"
)


def train_run(config: Config, path: Path, *, resume: bool, overwrite: bool) -> Run:
    made = Run(path)
    last, before, best = made.checkpoint("last"), made.checkpoint_before, made.checkpoint("best")
    kept = "the checkpoint before is whole; make room and go on with --resume"
    with (
        silence(this_process(None, None).rank > 0),
        peer_failures_reported(),
        disk_remedies(path, kept),
        ExitStack() as lock,
    ):
        plan = make_plan(config)
        begun = resume and is_run(path) and (path / "model.json").is_file()
        accelerator, precision = lock.enter_context(
            build_accelerator(config, Run(path) if begun else None)
        )

        def claim() -> ExistingRun:
            lock.enter_context(writing(path))
            for folder in (path, last, before, best):
                remove_leftovers(folder)
            return existing_run(path, plan, resume=resume, overwrite=overwrite)

        found = on_rank_zero(claim)
        if found.status == "refused":
            raise InputError(found.reason)
        if found.damage:
            say(f"warning: {found.damage}; going on from the checkpoint before it")
            on_rank_zero(remove_folder, last)
            on_rank_zero(before.replace, last)
        if found.status == "finished":
            on_rank_zero(remove_folder, before)  # a kill may have left it
            say(f"{path}: this config is trained already; --overwrite trains it again")
            return made
        if found.changed:
            fields = ", ".join(found.changed)
            say(f"settings   other than before, as they may be: {fields}")
        with memory_remedies(SMALLER_BATCHES):
            _train(plan, made, accelerator, precision, overwrite=overwrite)
    return made


def _train(
    plan: Plan, run: Run, accelerator: Accelerator, precision: str, *, overwrite: bool
) -> None:
    # ---- Setup
    for line in plan.describe():
        say(line)
    trainer = build_trainer(plan, accelerator, precision)
    say(f"weights    {trainer.backbone.source}")
    for line in describe_device(trainer):
        say(line)
    try_later_stages(trainer, plan)
    # Not before here: what is wrong with model or weights must not cost the old run.
    on_rank_zero(create_or_update, run, plan.config, overwrite=overwrite)
    trainer, state = resume_from(run, trainer, plan)
    on_rank_zero(write_facts, run, trainer)
    is_main = accelerator.is_main_process
    log = MetricsLog(run.metrics_path, keep_bytes=state.metrics_bytes) if is_main else NoLog()

    with closing(log), stop_signals() as stops:
        checkpoints = CheckpointSchedule(run, log, stops, state)
        while state.epoch < plan.epochs:
            # ---- Next stage
            if state.epoch == trainer.plan.end_epoch:
                trainer = next_trainer(trainer, plan.stage_after(state.epoch))
                state.begin_stage(begins_average=trainer.plan.begins_average)
                say(f"stage      {trainer.plan.number} of {len(plan.stages)}")

            # ---- Train and validate; a signal leaves a checkpoint of the middle of the epoch
            try:
                with worker_deaths():
                    _train_epoch(trainer, state, checkpoints, plan.epochs)
                    result = _validate(trainer, state, checkpoints)
            except Stopped:
                checkpoints.save(trainer, state)
                raise
            except LossNotFinite as error:
                path = run.path / "non_finite.json"
                step, images = error.step, error.image_ids
                on_rank_zero(write_json, path, {"step": step, "image_ids": images})
                text = f"{error}; all images of the step are in {path}"
                raise LossNotFinite(text, step, images) from None
            state.epoch, state.batches, state.draws = state.epoch + 1, 0, 0

            # ---- Log and checkpoint
            is_best = False
            if result is not None:
                say(f"           {result.since(trainer.validated)}")
                trainer.validated = result
                log.write("validation", epoch=state.epoch, step=state.step, **vars(result))
                is_best = state.improves(result.mean_class_accuracy)
            state.metrics_bytes = log.n_bytes
            checkpoints.save(trainer, state, is_best=is_best)
            stops.check()
        # Nothing is left to resume: a finished run need not be three times its size.
        on_rank_zero(remove_folder, run.checkpoint_before)


def _train_epoch(
    trainer: Trainer, state: LoopState, checkpoints: CheckpointSchedule, n_epochs: int
) -> None:
    plan, config, log, stops = trainer.plan, trainer.plan.config, checkpoints.log, checkpoints.stops
    meter = LossMeter(state.losses)
    trainer.network.train()
    trainer.backbone.still_if_frozen()
    trainer.loader.set_epoch(state.epoch, start=state.draws)
    trainer.loss.set_progress((state.epoch - plan.first_epoch) / config.epochs)
    title = f"epoch {state.epoch + 1}/{n_epochs}"
    with progress_bar(title, plan.steps_per_epoch * plan.global_batch, "images") as bar:
        for batches, n_read in meter.timed(accumulated(trainer)):
            step = take_step(trainer, batches, state)
            state.step, state.batches = step.number, state.batches + n_read
            state.draws += n_read * trainer.loader.global_batch
            meter.add(step)
            if state.step % config.runtime.log_every == 0:
                _log_losses(trainer, state, log, meter)
            if stops.any_asks(checkpoints.is_due(config.runtime, state)):
                state.losses, state.metrics_bytes = meter.read(), log.n_bytes
                stops.check()
                checkpoints.save(trainer, state)
            bar.advance(step.n_images, meter.note)
    if not meter.is_empty:
        _log_losses(trainer, state, log, meter)
    state.losses, state.metrics_bytes = [], log.n_bytes
    say(
        f"{title}  {meter.note}  {meter.epoch.rate:.0f} images/s, "
        f"{meter.epoch.waiting:.0%} of the time waiting for photos"
    )


def _log_losses(trainer: Trainer, state: LoopState, log: MetricsLog, meter: LossMeter) -> None:
    loss, speed = meter.close()
    learning_rate = min(group["lr"] for group in trainer.optimizer.param_groups)
    shown = "none" if loss is None else f"{loss:.3f}"
    meter.note = f"loss {shown}  lr {learning_rate:.2e}"
    log.write(
        "train",
        epoch=state.epoch + 1,
        step=state.step,
        loss=loss,
        learning_rate=learning_rate,
        images_per_second=speed.rate,
        waiting_share=round(speed.waiting, 4),
    )


def _validate(
    trainer: Trainer, state: LoopState, checkpoints: CheckpointSchedule
) -> Validation | None:
    plan = trainer.plan
    if trainer.held_out_loader is None:
        return None
    share, earlier = None, plan.earlier_prior
    if plan.starts_from_other_prior and earlier is not None and plan.logits_prior is not None:
        share = EarlierPriorShare(earlier, plan.logits_prior)
    with weights_together(trainer.evaluated.network):
        result = validate(
            trainer.evaluated,
            trainer.held_out_loader,
            check=checkpoints.stops.check,
            earlier_prior=share,
            train_counts=plan.trained.train_counts,
            band_edges=plan.config.data.band_edges,
        )
    if share is not None:
        state.shows_prior = share.is_gone()
        said = "gone" if state.shows_prior else "not gone, so the logits' prior is unknown"
        say(f"prior      share of the earlier one that is left: {share}: {said}")
        checkpoints.log.write("prior", epoch=state.epoch + 1, step=state.step, **share.facts())
    return result

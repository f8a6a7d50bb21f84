"""What a training reads from its run folder and writes into it."""

import time
from dataclasses import dataclass

from inat.config.schema import Config, RuntimeConfig
from inat.core.errors import WorldError
from inat.core.files import (
    atomic_file,
    atomic_folder,
    read_json_as,
    remove_folder,
    write_bytes,
    write_json,
)
from inat.core.progress import say
from inat.loader.reader import PhotoIssue
from inat.models.device import device_facts
from inat.runs.facts import RunFacts, WeightsFacts, write_run_facts
from inat.runs.metrics_log import MetricsLog
from inat.runs.run import Run, create_run, is_run
from inat.training.checkpoint import LoopState, load_checkpoint, read_state, save_checkpoint
from inat.training.plan import Plan
from inat.training.processes import gathered, on_rank_zero
from inat.training.stopping import StopSignals
from inat.training.trainer import Trainer, next_trainer


def create_or_update(run: Run, config: Config, *, overwrite: bool) -> None:
    """Creates the run folder; in that of a run that is resumed, states the newest config, whose
    free fields (data.root and the like) predictions go by."""
    if overwrite or not is_run(run.path):
        with atomic_folder(run.path) as partial:
            create_run(partial, config, device_facts())
    elif run.config != config:
        write_bytes(run.path / "config.yaml", config.to_yaml().encode())


def write_facts(run: Run, trainer: Trainer) -> None:
    """Writes species.parquet and model.json: what all checkpoints have in common."""
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


def resume_from(run: Run, trainer: Trainer, plan: Plan) -> tuple[Trainer, LoopState]:
    """Loads the last checkpoint, if there is one, into the trainer of the stage that it is of."""
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
    path = run.path / "bad_photos.json"
    if path.is_file():
        listed = read_json_as(path, _ListedPhotos, "delete it to resume without it")
        trainer.loader.bad_photos += listed.skipped
        trainer.loader.recovered_photos += listed.recovered
        trainer.loader.slow_photos += listed.slow
    within = f", in epoch {state.begun_epochs}" if state.batches else ""
    say(f"resumed    after step {state.step}, {state.epoch} whole epochs{within}")
    return trainer, state


class CheckpointSchedule:
    """Decides when a checkpoint is due and writes it, which answers all requests for one."""

    def __init__(self, run: Run, log: MetricsLog, stops: StopSignals, state: LoopState) -> None:
        self.run, self.log, self.stops = run, log, stops
        self._stamp = on_rank_zero(run.read_stamp)
        self._saved_at, self._saved_step = time.monotonic(), state.step

    def is_due(self, runtime: RuntimeConfig, state: LoopState) -> bool:
        if time.monotonic() - self._saved_at >= 60 * runtime.checkpoint_minutes:
            return True
        steps = runtime.checkpoint_steps
        return steps is not None and state.step - self._saved_step >= steps

    def save(self, trainer: Trainer, state: LoopState, *, is_best: bool = False) -> None:
        # Locks do not hold on every file system, and no lock keeps out rm and mv.
        if on_rank_zero(self.run.read_stamp) != self._stamp:
            raise WorldError(
                f"{self.run.path}: the run folder was removed or replaced while this training "
                "worked in it, so it stops; train again, with another --run where something else "
                "lies there"
            )
        self.log.flush()
        list_bad_photos(self.run, trainer)
        scaler, plan = trainer.accelerator.scaler, trainer.plan
        state.loss_scale = None if scaler is None else scaler.state_dict()
        is_known = not plan.starts_from_other_prior or state.shows_prior
        priors = plan.draws_prior, plan.logits_prior if is_known else None
        draws, logits = (None if prior is None else prior.tolist() for prior in priors)
        state.weights = WeightsFacts(
            stage=plan.number,
            image_size=plan.config.transforms.image_size,
            draws_prior=draws,
            logits_prior=logits,
        )
        if state.best_score is None:  # none, or that of the stage before, of other priors
            on_rank_zero(remove_folder, self.run.checkpoint("best"))
        save_checkpoint(
            self.run.checkpoint("last"),
            state,
            trainer.backbone.network,
            trainer.averaged,
            trainer.optimizer,
            trainer.loss,
            keep=self.run.checkpoint_before,
            best=self.run.checkpoint("best") if is_best else None,
        )
        self.stops.forget()
        self._saved_at, self._saved_step = time.monotonic(), state.step


@dataclass(frozen=True)
class _ListedPhotos:
    skipped: list[PhotoIssue]
    recovered: list[PhotoIssue]
    slow: list[PhotoIssue]


def list_bad_photos(run: Run, trainer: Trainer) -> None:
    """Lists the photos with problems, of all processes and each once, in bad_photos.json; refuses
    more than the config allows."""
    loaders = [trainer.loader, *([trainer.held_out_loader] if trainer.held_out_loader else [])]

    def everywhere(own: list[list[PhotoIssue]]) -> list[PhotoIssue]:
        events = [event for lists in gathered(own) for those in lists for event in those]
        return list({event.image_id: event for event in events}.values())

    listed = _ListedPhotos(
        everywhere([loader.bad_photos for loader in loaders]),
        everywhere([loader.recovered_photos for loader in loaders]),
        everywhere([loader.slow_photos for loader in loaders]),
    )
    path, plan = run.path / "bad_photos.json", trainer.plan
    if any((listed.skipped, listed.recovered, listed.slow)):
        on_rank_zero(write_json, path, listed)
    n_photos = len(plan.trained) + (len(plan.held_out) if plan.held_out else 0)
    plan.config.data.refuse_too_many(listed.skipped, n_photos, str(path))

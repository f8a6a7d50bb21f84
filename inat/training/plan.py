"""What a training is going to do, worked out before it starts."""

from dataclasses import dataclass, replace
from pathlib import Path

from inat.config.schema import Config
from inat.config.stages import Stage
from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.core.files import sha256
from inat.core.priors import Prior, count_prior, read_prior, same_prior
from inat.dataset.split import Split, count_mates, load_split
from inat.losses import LossConfig
from inat.losses.base import Tail
from inat.runs.trained import training_photos
from inat.samplers import build_sampler

LARGE_SHARE = 0.1
"""decay^steps from which a moving average is said to be longer than its training."""


FROZEN = (
    "frozen     all but the classifier, batch norm at its stored statistics; after one epoch",
    "           inat stage-two ends in the same place, on features extracted once",
)


@dataclass(frozen=True)
class StagePlan:
    """The numbers of one stage of a training; most trainings have one."""

    number: int  # counted from 1
    config: Config  # of this stage, with the data root as an absolute path
    new_head: bool  # whether the classifier begins anew
    trained: Split  # photos that are trained on
    held_out: Split | None  # photos that are validated on; None with holdout none
    first_epoch: int  # epochs of the training before this stage
    epoch_size: int  # draws an epoch
    global_batch: int  # photos a step, over all processes
    steps_per_epoch: int  # whole global batches in an epoch
    learning_rate: float  # the backbone's peak learning rate
    draws_prior: Prior | None  # class prior of the draws; None where it changes during the stage
    # class prior that the loss takes off, if it takes one off; None where that is the draws' and
    # they have none
    loss_prior: Prior | None
    # of the file that the losses of the training take their prior from; of several, for other
    # stages, one behind the other; None without one
    loss_prior_sha256: str | None
    # class prior that the trained model's logits carry; None where no formula says which
    logits_prior: Prior | None
    # whether it goes on with a classifier whose logits carry another prior; `logits_prior` then
    # holds once held-out photos show it
    starts_from_other_prior: bool = False
    earlier_prior: Prior | None = None  # that other prior; None where it is not known
    # whether the moving average of the weights begins again, since that of the stage before is of
    # another prior or another classifier
    begins_average: bool = True

    @property
    def end_epoch(self) -> int:
        """Epochs of the training when this stage is over."""
        return self.first_epoch + self.config.epochs

    @property
    def n_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def tail(self) -> Tail:
        return Tail(self.trained.class_counts, self.loss_prior, self.draws_prior)

    def describe(self) -> list[str]:
        config, loss, optim = self.config, self.config.loss, self.config.optim
        head = f", classifier x{optim.head_lr_factor:g}" if optim.head_lr_factor != 1 else ""
        weights = config.model.weights if self.number == 1 else "of the stage before"
        anew = ", new classifier" if self.new_head else ""
        return [
            f"draws      {config.sampler}, {self.epoch_size} an epoch",
            f"model      {config.model.backbone} at {config.transforms.image_size} px, "
            f"weights {weights}{anew}",
            *(FROZEN if config.model.freeze == "backbone" else ()),
            f"loss       {loss.method.describe(loss, self.tail, str(config.sampler))}",
            f"optimiser  {optim.name}, peak learning rate {self.learning_rate:.3g} "
            f"({optim.lr_per_256:g} per 256, {optim.lr_scaling}, batch {self.global_batch}){head}",
            f"steps      {config.epochs} epochs x {self.steps_per_epoch} = {self.n_steps} steps, "
            f"{self.n_steps * self.global_batch} photos",
            *self._describe_average(),
            *self._describe_prior(),
        ]

    def _describe_average(self) -> list[str]:
        decay = self.config.optim.ema_decay
        if decay is None:
            return []
        again = ", begins again" if self.begins_average and self.number > 1 else ""
        left = decay**self.n_steps
        if left < LARGE_SHARE or not self.begins_average:
            return [f"average    of the weights, decay {decay:g}{again}"] if again else []
        return [
            f"average    of the weights{again}: {self.n_steps} steps are few for decay {decay:g} "
            f"(decay^steps is {left:.2g}), so it is raised step by step, (1 + n) / (10 + n)"
        ]

    def _describe_prior(self) -> list[str]:
        if not self.starts_from_other_prior or self.logits_prior is None:
            return []
        if self.earlier_prior is not None and self.held_out is not None:
            return ["prior      changes in this stage; it is stated once held-out photos show it"]
        why = "nothing is held out" if self.held_out is None else "the earlier one is not known"
        return [
            f"prior      changes in this stage, and {why} to measure it by: it will be unknown, so "
            "adjust will need --from-prior"
        ]


@dataclass(frozen=True)
class Plan:
    config: Config  # of the whole training, with the data root as an absolute path
    stages: tuple[StagePlan, ...]  # at least one, in the order in which they are trained
    # the line that counts held-out and val photos with a copy or another photo of their observation
    # among those trained on; "" where the annotations state neither digests nor groups
    copies: str = ""

    @property
    def trained(self) -> Split:
        return self.stages[0].trained

    @property
    def epochs(self) -> int:
        return self.stages[-1].end_epoch

    def stage_after(self, epochs: int) -> StagePlan:
        """The stage that goes on when so many epochs of the training, not all, are over."""
        return next(stage for stage in self.stages if epochs < stage.end_epoch)

    def describe(self) -> list[str]:
        held_out = self.stages[0].held_out
        held = f"{len(held_out)} held out" if held_out else "none held out"
        lines = [
            f"data       {self.config.data.root}: {self.trained.n_classes} species, "
            f"{len(self.trained)} photos trained on, {held}",
            *([self.copies] if self.copies else []),
        ]
        if self.trained.n_classes == 1:
            lines.append("warning    one species alone: there is nothing to tell apart")
        for stage in self.stages:
            if len(self.stages) > 1:
                lines.append(f"stage      {stage.number} of {len(self.stages)}")
            lines += stage.describe()
        return lines


def make_plan(config: Config) -> Plan:
    """Reads the annotations and works out what `config` means for them; refuses (InputError) what
    cannot be trained."""
    data = config.data
    if data.root is None:
        raise InputError("data.root is not set; give the data set's folder: --data.root DIR")
    if config.model.head in ("scaled", "nearest_mean"):
        raise InputError(
            f"model.head {config.model.head} is what inat stage-two leaves, and cannot be trained "
            "from the start; set model.head linear or cosine"
        )
    root = Path(data.root).resolve()
    config = replace(config, data=replace(data, root=root))
    trained, held_out = training_photos(config.data)
    digest = " ".join(map(sha256, loss_prior_files(config))) or None
    stages: list[StagePlan] = []
    for stage in config.all_stages:
        first_epoch = stages[-1].end_epoch if stages else 0
        planned = _plan_stage(stage, len(stages) + 1, first_epoch, trained, held_out, digest)
        stages.append(_after(stages[-1], planned) if stages else planned)
    return Plan(config, tuple(stages), _describe_copies(config, trained, held_out))


def _describe_copies(config: Config, trained: Split, held_out: Split | None) -> str:
    data = config.data
    assert data.root is not None
    if trained.digests is None and trained.groups is None:
        return ""
    others = {"held-out": held_out}
    if data.train_on == "train" and find_competition(data.competition).has_split(data.root, "val"):
        others["val"] = load_split(data.root, "val", competition=data.competition)
    counts = [
        f"{count_mates(split, trained):,} of {len(split):,} {name}"
        for name, split in others.items()
        if split is not None
    ]
    if not counts:
        return ""
    return (
        f"copies     {' and '.join(counts)} photos have a copy, or another photo of their "
        "observation, among those trained on"
    )


def _after(before: StagePlan, stage: StagePlan) -> StagePlan:
    """A stage with what it takes over from the one before."""
    keeps_prior = same_prior(before.logits_prior, stage.logits_prior)
    keeps_draws = same_prior(before.draws_prior, stage.draws_prior)
    if stage.new_head:
        return stage
    return replace(
        stage,
        starts_from_other_prior=before.starts_from_other_prior or not keeps_prior,
        earlier_prior=before.earlier_prior if keeps_prior else before.logits_prior,
        begins_average=not (keeps_prior and keeps_draws),
    )


def loss_prior_files(config: Config) -> list[Path]:
    """The files whose priors the losses of a training take off, each once, in the stages' order."""
    losses = [stage.config.loss for stage in config.all_stages]
    found = [_loss_prior_file(loss) for loss in losses if loss.takes_prior_off]
    return list(dict.fromkeys(path for path in found if path is not None))


def _plan_stage(
    stage: Stage,
    number: int,
    first_epoch: int,
    trained: Split,
    held_out: Split | None,
    loss_prior_sha256: str | None,
) -> StagePlan:
    config = stage.config
    sampler = build_sampler(config.sampler, trained.labels, trained.n_classes, config.epochs)
    epoch_size = sampler.epoch_size
    global_batch = config.global_batch
    if epoch_size < global_batch:
        raise InputError(
            f"an epoch of {epoch_size} photos is less than one global batch of {global_batch}; "
            "lower batch_size or raise sampler.epoch_size"
        )
    loss = config.loss
    prior = sampler.prior if loss.prior == "draws" else count_prior(trained.class_counts)
    if (path := _loss_prior_file(loss)) is not None:
        prior = read_prior(path, trained.taxonomy.category_ids)
    tail = Tail(trained.class_counts, prior, sampler.prior)
    changes = sampler.prior is None or loss.after is not None
    return StagePlan(
        number=number,
        config=config,
        new_head=stage.new_head,
        trained=trained,
        held_out=held_out,
        first_epoch=first_epoch,
        epoch_size=epoch_size,
        global_batch=global_batch,
        steps_per_epoch=epoch_size // global_batch,
        learning_rate=config.optim.learning_rate(global_batch),
        draws_prior=sampler.prior,
        loss_prior=prior,
        loss_prior_sha256=loss_prior_sha256,
        logits_prior=None if changes else loss.method.logits_prior(loss, tail),
    )


def _loss_prior_file(loss: LossConfig) -> Path | None:
    if loss.prior in ("draws", "counts"):
        return None
    path = Path(loss.prior)
    if not path.is_file():
        raise InputError(
            f"loss.prior: {loss.prior!r} is neither draws nor counts, nor a file; give a CSV "
            "category_id,prior"
        )
    return path

"""What a training is going to do, worked out before it starts."""

from dataclasses import dataclass, replace
from pathlib import Path

from inat.config import Config
from inat.data.annotations import Split, cut_holdout, load_split
from inat.data.samplers import build_sampler
from inat.errors import InputError
from inat.priors import Prior, count_prior, prior_left


@dataclass(frozen=True)
class Plan:
    """The numbers of a training.

    Attributes:
        config: with the data root as an absolute path.
        trained: photos that are trained on.
        held_out: photos that are validated on; None with holdout none.
        epoch_size: draws an epoch.
        global_batch: photos a step, over all processes.
        steps_per_epoch: whole global batches in an epoch.
        learning_rate: the backbone's peak learning rate.
        draws_prior: class prior of the draws.
        loss_prior: class prior that the loss takes off with strength tau.
        logits_prior: class prior that the trained model's logits carry.
    """

    config: Config
    trained: Split
    held_out: Split | None
    epoch_size: int
    global_batch: int
    steps_per_epoch: int
    learning_rate: float
    draws_prior: Prior
    loss_prior: Prior
    logits_prior: Prior

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self.config.epochs

    def describe(self) -> list[str]:
        """Lines for a person: data, draws, loss, optimiser, steps."""
        config, optim = self.config, self.config.optim
        held = f"{len(self.held_out)} held out" if self.held_out else "none held out"
        # A loss that adjusts by the draws' own uniform prior is plain cross-entropy.
        loss: str = config.loss.name
        if loss == "logit_adjusted":
            loss += f" (tau {config.loss.tau:g}, prior of the {config.loss.prior})"
            if config.sampler.is_balanced and config.loss.prior == "draws":
                loss += f", which is plain ce under {config.sampler.name} draws"
        head = f", classifier x{optim.head_lr_factor:g}" if optim.head_lr_factor != 1 else ""
        return [
            f"data       {config.data.root}: {self.trained.n_classes} species, "
            f"{len(self.trained)} photos trained on, {held}",
            f"draws      {config.sampler.name}, {self.epoch_size} an epoch",
            f"model      {config.model.backbone} at {config.transforms.image_size} px, "
            f"weights {config.model.weights}",
            f"loss       {loss}",
            f"optimiser  {optim.name}, peak learning rate {self.learning_rate:.3g} "
            f"({optim.lr_per_256:g} per 256, {optim.lr_scaling}, batch {self.global_batch}){head}",
            f"steps      {config.epochs} epochs x {self.steps_per_epoch} = {self.n_steps} steps, "
            f"{self.n_steps * self.global_batch} photos",
        ]


def make_plan(config: Config, world_size: int = 1) -> Plan:
    """Reads the annotations and works out what `config` means for them.

    Raises:
        InputError: no data root, broken annotations, a holdout that holds nothing out, an epoch
            smaller than a batch.
    """
    data = config.data
    if data.root is None:
        raise InputError("data.root is not set; give the data set's folder: --data.root DIR")
    root = Path(data.root).resolve()
    config = replace(config, data=replace(data, root=root))
    trained = load_split(root, data.train_on, competition=data.competition)
    held_out = None
    if data.holdout != "none":
        trained, held_out = cut_holdout(trained, data.holdout, data.holdout_seed)
    epoch_size = config.sampler.epoch_size or len(trained)
    global_batch = config.batch_size * world_size
    if epoch_size < global_batch:
        raise InputError(
            f"an epoch of {epoch_size} photos is less than one global batch of {global_batch}; "
            "lower batch_size or raise sampler.epoch_size"
        )
    draws_prior = build_sampler(config.sampler.name, trained.labels, trained.n_classes).prior
    loss_prior = draws_prior
    if config.loss.prior == "counts":
        loss_prior = count_prior(trained.class_counts)
    adjusts = config.loss.name == "logit_adjusted"
    return Plan(
        config=config,
        trained=trained,
        held_out=held_out,
        epoch_size=epoch_size,
        global_batch=global_batch,
        steps_per_epoch=epoch_size // global_batch,
        learning_rate=config.optim.learning_rate(global_batch),
        draws_prior=draws_prior,
        loss_prior=loss_prior,
        logits_prior=prior_left(draws_prior, loss_prior if adjusts else None, config.loss.tau),
    )

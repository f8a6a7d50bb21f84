"""A new head on a trained run's frozen backbone, as a run of its own."""

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from msgspec import structs
from torch import nn

from inat.config.schema import CheckpointName, Config, Precision, Weights
from inat.core.errors import InputError
from inat.core.priors import Prior, same_prior
from inat.core.progress import first_few, say
from inat.geo.run import make_geo_run
from inat.losses import LossConfig
from inat.models.device import device_facts, fast_kernels, memory_remedies
from inat.models.heads import put_classifier
from inat.runs.facts import (
    CheckpointFacts,
    StageTwoFacts,
    WeightsFacts,
    write_run_facts,
)
from inat.runs.metrics_log import MetricsLog
from inat.runs.run import (
    Run,
    create_run,
    new_run_folder,
    with_root,
    write_species,
)
from inat.runs.trained import find_checkpoint, write_weights
from inat.stage_two import crt, lws
from inat.stage_two.batches import CachedBatches, FeatureBatches, LiveBatches
from inat.stage_two.body import Body, take_body
from inat.stage_two.features import cached_features
from inat.stage_two.head_training import HeadRecipe, train_head
from inat.stage_two.held_out import score_cached, score_live
from inat.stage_two.ncm import nearest_mean_head
from inat.stage_two.options import TRAINED_HEADS, Options
from inat.stage_two.tau_norm import GRID, score_grid, tau_normalised
from inat.training.checkpoint import CHOSEN_ON
from inat.training.earlier_prior import EarlierPriorShare

FEW_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class NewHead:
    """What a method made.

    Attributes:
        module: features to logits, on the CPU or the body's device.
        name: its name in `model.head`.
        epochs: epochs that it was trained.
        steps: steps that it was trained.
        draws_prior: of the draws it was trained on; None: it was not trained.
        prior: that its logits carry; None where it is not known.
        facts: numbers for model.json.
        chosen: what was chosen on the held-out photos.
    """

    module: nn.Module
    name: Literal["linear", "scaled", "nearest_mean"]
    epochs: int = 0
    steps: int = 0
    draws_prior: Prior | None = None
    prior: Prior | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)


def make_run(
    opened: Run,
    out: Path,
    options: Options,
    *,
    checkpoint: CheckpointName,
    weights: Weights,
    root: Path | str | None,
    workers: int | None,
    precision: Precision | None,
    feature_batch_size: int | None,
    overwrite: bool,
) -> Run:
    """Makes the run of a stage two; see `verbs.train_stage_two`."""
    _refuse_head(opened, options)
    # Whole or not at all: what is interrupted leaves nothing at `out`.
    with new_run_folder(out, [opened], overwrite=overwrite) as partial:
        start = find_checkpoint(opened, checkpoint, weights)
        config = start.config(with_root(opened.config, root))
        if options.method == "geo_prior":
            recipe = options.geo_recipe(config.seed)
            make_geo_run(opened, config, partial, recipe, dataclasses.asdict(options))
            return Run(out)
        runtime = config.runtime
        with (
            memory_remedies(
                "give a smaller --feature-batch-size, with --live a smaller --batch-size"
            ),
            fast_kernels(runtime.fast_kernels, deterministic=runtime.deterministic),
        ):
            body = take_body(
                opened,
                config,
                start,
                batch_size=feature_batch_size,
                workers=workers,
                precision=precision,
            )
            _make_head_run(body, partial, options)
    return Run(out)


def _make_head_run(body: Body, path: Path, options: Options) -> None:
    checkpoint = body.checkpoint
    say(f"stage two  {options.method} on {body.run.path} ({checkpoint.name}, {checkpoint.weights})")
    cuda = [body.device] if body.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        log = MetricsLog(path / "metrics.jsonl")
        try:
            head = _make_head(body, options, log)
            head.module.to(body.device)
            head = _scored(body, head, options, log)
        finally:
            log.close()
        put_classifier(body.network, head.module)
        made = create_run(path, _config_with(body.config, head), device_facts())
        _write_facts(made, body, head, options)
        state = CheckpointFacts(head.epochs, head.steps, _weights_facts(body, head))
        write_weights(made.checkpoint("last"), body.network, state)


def _config_with(config: Config, head: NewHead) -> Config:
    """The config of a run with that head on a frozen backbone. The loss that trained the old head
    stays only where it can train such a head: ldam cannot do without cosines."""
    model = replace(config.model, freeze="backbone", head=head.name)
    loss = config.loss if head.name == config.model.head else LossConfig()
    return replace(config, model=model, loss=loss)


def _refuse_head(run: Run, options: Options) -> None:
    head = run.config.model.head
    if options.method in ("lws", "tau_norm") and head != "linear":
        raise InputError(
            f"{run.path}: {options.method} starts from a linear head, and this one is {head}; "
            "use --method crt or ncm"
        )
    if options.method == "tau_norm" and options.tau is None and run.config.data.holdout == "none":
        raise InputError(
            f"{run.path}: nothing was held out (data.holdout none), so there are no photos to "
            "choose tau on; give --tau T"
        )


def _make_head(body: Body, options: Options, log: MetricsLog) -> NewHead:
    if options.method in TRAINED_HEADS:
        return _trained_head(body, options, log)
    if options.method == "tau_norm":
        return _tau_head(body, options.tau, log)
    features = cached_features(body, body.trained, options.feature_views)
    return NewHead(
        module=nearest_mean_head(features),
        name="nearest_mean",
        facts={"bad_photos": features.bad_photos},
    )


def _trained_head(body: Body, options: Options, log: MetricsLog) -> NewHead:
    recipe = options.recipe(len(body.trained), body.config.seed)
    batches = _batches(body, options, recipe)
    say(
        f"head       {recipe.epochs} epochs x {recipe.steps_per_epoch} steps of "
        f"{recipe.batch_size} class-balanced draws, learning rate {recipe.learning_rate:.3g}"
    )
    if recipe.n_steps < FEW_STEPS:
        say(
            f"head       {recipe.n_steps} steps are few (published on iNat-2018: 25,620); give "
            "more with --epochs or --epoch-size, or a smaller --batch-size"
        )
    module: nn.Module
    if options.method == "crt":
        module = crt.fresh_head(body.n_features, body.trained.n_classes, recipe.seed)
    else:
        assert isinstance(body.head, nn.Linear)
        module = lws.scaled_head(body.head)
    train_head(module.to(body.device), batches, recipe, log)
    return NewHead(
        module=module,
        name="linear" if options.method == "crt" else "scaled",
        epochs=recipe.epochs,
        steps=recipe.n_steps,
        draws_prior=batches.prior,
        prior=batches.prior,
        facts={**dataclasses.asdict(recipe), "bad_photos": batches.bad_photos},
    )


def _batches(body: Body, options: Options, recipe: HeadRecipe) -> FeatureBatches:
    sizes = {"epoch_size": recipe.epoch_size, "batch_size": recipe.batch_size, "seed": recipe.seed}
    if options.live:
        say("batch norm statistics of each batch, gathered on, as published; weights are frozen")
        return LiveBatches(body, **sizes)
    features = cached_features(body, body.trained, options.feature_views)
    return CachedBatches(features, body.device, **sizes)


def _tau_head(body: Body, tau: float | None, log: MetricsLog) -> NewHead:
    assert isinstance(body.head, nn.Linear)
    chosen = {}
    if tau is None:
        tau = _choose_tau(body, body.head, log)
        chosen = {"tau": CHOSEN_ON}
    say(f"head       tau {tau:g}; the bias of the classifier is dropped")
    module = tau_normalised(body.head, tau)
    return NewHead(module=module, name="linear", facts={"tau": tau}, chosen=chosen)


def _choose_tau(body: Body, linear: nn.Linear, log: MetricsLog) -> float:
    """The first of the best taus, by the mean over the species that have held-out photos."""
    assert body.held_out is not None
    scores = score_grid(linear, cached_features(body, body.held_out, 1))
    for tau, score in zip(GRID, scores, strict=True):
        log.write("tau", tau=round(float(tau), 3), mean_class_accuracy=score)
    best = round(float(GRID[scores.argmax()]), 3)
    never = np.flatnonzero(body.held_out.class_counts == 0)
    names = body.held_out.taxonomy.table["name"].iloc[never].tolist()
    say(
        f"tau        {best:g} of {GRID[0]:g} to {GRID[-1]:g} has the best mean class accuracy on "
        f"{len(body.held_out)} held-out photos, {scores.max():.3f} (0: {scores[0]:.3f})"
    )
    if names:
        say(f"tau        {len(names)} species have none there: {first_few(names)}")
    return best


def _scored(body: Body, head: NewHead, options: Options, log: MetricsLog) -> NewHead:
    """Prints and logs how well the held-out part, if there is one, is recognized. A head that
    starts from the old one keeps its prior only where these photos show it."""
    earlier = body.checkpoint.facts.logits_prior
    may_carry_old = options.method == "lws" and not same_prior(earlier, head.prior)
    share = None
    if may_carry_old and body.held_out is not None and earlier is not None:
        assert head.prior is not None
        share = EarlierPriorShare(np.array(earlier), head.prior)
    if body.held_out is not None:
        score = score_live if options.live else score_cached
        result = score(body, head.module, share)
        say(f"           {result}" + (" (tau was chosen on them)" if head.chosen else ""))
        numbers = {**vars(result), **({} if share is None else share.facts())}
        log.write("validation", epoch=head.epochs, step=head.steps, chosen=head.chosen, **numbers)
    if not may_carry_old:
        return head
    if share is not None and share.is_gone():
        say(f"prior      uniform; share of the old head's prior that is left: {share}")
        return head
    say(f"prior      unknown, so adjust needs --from-prior: {_why_unknown(body, share)}")
    return replace(head, prior=None)


def _why_unknown(body: Body, share: EarlierPriorShare | None) -> str:
    if share is not None:
        return f"share of the old head's prior that is left: {share}; train with more steps"
    if body.held_out is None:
        return "nothing was held out (data.holdout none) to measure what the old head left"
    return "that of the old head is not known either"


def _write_facts(made: Run, body: Body, head: NewHead, options: Options) -> None:
    run = body.run
    write_species(made, run)
    facts = StageTwoFacts(
        run=str(run.path),
        checkpoint=body.checkpoint.name,
        checkpoint_sha256=body.checkpoint.digest,
        weights=body.checkpoint.weights,
        **{**dataclasses.asdict(options), **head.facts},
    )
    write_run_facts(made.path, structs.replace(run.facts, stage_two=facts))


def _weights_facts(body: Body, head: NewHead) -> WeightsFacts:
    facts = body.checkpoint.facts
    draws = facts.draws_prior if head.draws_prior is None else head.draws_prior.tolist()
    return WeightsFacts(
        image_size=facts.image_size,
        draws_prior=draws,
        logits_prior=None if head.prior is None else head.prior.tolist(),
        chosen=facts.chosen | head.chosen,
    )

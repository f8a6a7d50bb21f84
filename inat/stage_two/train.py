"""A new head on a trained run's frozen backbone, as a run of its own."""

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from msgspec import structs
from torch import nn

from inat.config.schema import CheckpointName, Config, LossConfig, Precision, Weights
from inat.core.errors import InputError
from inat.core.priors import Prior, same_prior
from inat.core.progress import first_few, say
from inat.geo.run import make_geo_run
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
    open_run,
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


def train_stage_two(
    run: Path | str,
    out: Path | str,
    *,
    method: str,
    epochs: int | None = None,
    epoch_size: int | None = None,
    batch_size: int | None = None,
    lr_per_256: float | None = None,
    weight_decay: float | None = None,
    tau: float | None = None,
    feature_views: int = 2,
    live: bool = False,
    seed: int | None = None,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    root: Path | str | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    feature_batch_size: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Gives a trained run a new head, and leaves a run that all verbs take (Kang et al. 2020);
    or makes a geo prior of its photos' places (Mac Aodha et al. 2019), to be predicted likewise.

    The backbone's weights stay as they are. Features are extracted once, with batch norm at its
    stored statistics, and kept in RUN/features. With `live`, the published form, each step passes
    newly augmented photos through the network in training mode, so that batch norm goes on
    gathering statistics; the new run has those.

    Args:
        run: a folder that `inat train` made.
        out: the new run.
        method: crt, a new linear head on class-balanced draws; lws, one scale a species on the
            old head's logits, trained likewise; tau_norm, the old head's weights divided by their
            length to the power tau, without its bias; ncm, the nearest class mean; geo_prior, a
            network that gives the presence of each species at a place and date.
        epochs: of crt and geo_prior (None: 30) and lws (None: 5).
        epoch_size: draws an epoch of crt and lws; None: the number of photos trained on.
        batch_size: draws a step of crt and lws (None: 512), at most an epoch, and of geo_prior
            (None: 1,024).
        lr_per_256: learning rate for a batch of 256, in proportion for others: of crt and lws
            (None: 0.1), where it falls to zero as a cosine, and of geo_prior (None: 1.25e-4),
            where it falls by 2 % an epoch.
        weight_decay: of crt and lws (None: 1e-4), biases and scales included.
        tau: of tau_norm; None: the one of 0, 0.1 ... 2 with the best mean class accuracy on the
            held-out part.
        feature_views: features a photo for crt, lws and ncm: 1 the centre crop, 2 its mirror
            image too, more: passes of the run's own training recipe too.
        live: augment as crt or lws trains, and keep no features.
        seed: of the draws and of a new head's weights; None: the run's.
        checkpoint: last, or best on the held-out part.
        weights: ema or raw; auto: the moving average where the run kept one.
        root: data folder, where it is another than the run's.
        workers: threads or processes that read photos; None: the run's.
        precision: of the backbone's forward passes: fp32, bf16, fp16, or auto, what the device
            does best; None: the run's, where the device has it.
        feature_batch_size: photos a forward pass of the backbone while features are extracted or
            the head is scored; None: twice those of a process of the training, at most 512.
        overwrite: throw away the run that `out` holds.

    Raises:
        InputError: no such run or checkpoint, an option that the method does not take, no
            held-out part to choose tau on, a head that the method cannot start from, no
            locations, `out` exists.
        WorldError: a photo cannot be read, the loss is not finite, another process writes `out`.
    """
    out = Path(out)
    options = Options(
        method=method,
        epochs=epochs,
        epoch_size=epoch_size,
        batch_size=batch_size,
        lr_per_256=lr_per_256,
        weight_decay=weight_decay,
        tau=tau,
        feature_views=feature_views,
        live=live,
        seed=seed,
    )
    opened = open_run(run)
    _refuse_head(opened, options)
    # Whole or not at all: what is interrupted leaves nothing at `out`.
    with new_run_folder(out, [opened], overwrite=overwrite) as partial:
        start = find_checkpoint(opened, checkpoint, weights)
        config = start.config(with_root(opened.config, root))
        if method == "geo_prior":
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

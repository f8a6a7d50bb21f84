"""A new head on a trained run's frozen backbone, as a run of its own."""

import dataclasses
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from msgspec import structs
from torch import nn

from inat.core.errors import InputError
from inat.core.metrics import Validation, score_guesses, top_k
from inat.core.priors import Prior, same_prior
from inat.core.progress import first_few, say
from inat.geo.run import make_geo_run
from inat.losses import LossConfig
from inat.models.heads import build_head, put_classifier
from inat.runs.checkpoints import write_trained_run
from inat.runs.facts import CheckpointFacts, StageTwoFacts
from inat.runs.metrics_log import MetricsLog
from inat.runs.run import Run, new_run_folder
from inat.runs.trained import TrainedRun
from inat.stage_two.batches import CachedBatches, FeatureBatches, LiveBatches
from inat.stage_two.extractor import FeatureExtractor, feature_extractor
from inat.stage_two.features import cached_features
from inat.stage_two.head_training import train_head
from inat.stage_two.heads import TAUS, nearest_mean_head, scaled_head, score_taus, tau_normalized
from inat.stage_two.options import TRAINED_HEADS, Options
from inat.training.checkpoint import CHOSEN_ON
from inat.training.earlier_prior import EarlierPriorShare
from inat.training.validation import validate_held_out

FEW_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class NewHead:
    module: nn.Module  # features to logits, on the CPU or the extractor's device
    name: Literal["linear", "scaled", "nearest_mean"]  # its name in `model.head`
    epochs: int = 0  # epochs that it was trained
    steps: int = 0  # steps that it was trained
    draws_prior: Prior | None = None  # of the draws it was trained on; None: it was not trained
    prior: Prior | None = None  # that its logits carry; None where it is not known
    facts: dict[str, Any] = field(default_factory=dict)  # numbers for model.json
    chosen: dict[str, str] = field(default_factory=dict)  # what was chosen on the held-out photos


def make_run(source: TrainedRun, out: Path, options: Options, *, overwrite: bool) -> Run:
    _refuse_head(source.run, options)
    # Whole or not at all: what is interrupted leaves nothing at `out`.
    with new_run_folder(out, [source.run], overwrite=overwrite) as partial:
        if options.method == "geo_prior":
            recipe = options.geo_recipe(source.config.seed)
            make_geo_run(source, partial, recipe, dataclasses.asdict(options))
            return Run(out)
        remedy = "give a smaller --feature-batch-size, with --live a smaller --batch-size"
        with source.machine(remedy):
            _ = source.trained  # other photos are refused before anything is computed
            extractor = feature_extractor(source)
            say(
                f"stage two  {options.method} on {source.run.path} "
                f"({source.checkpoint.name}, {source.checkpoint.weights})"
            )
            cuda = [extractor.device] if extractor.device.type == "cuda" else []
            with (
                torch.random.fork_rng(devices=cuda),
                closing(MetricsLog(partial / "metrics.jsonl")) as log,
            ):
                head = _make_head(extractor, options, log)
                head.module.to(extractor.device)
                head = _scored(extractor, head, options, log)
            put_classifier(extractor.network, head.module)
            _write_run(partial, extractor, head, options)
    return Run(out)


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


def _make_head(extractor: FeatureExtractor, options: Options, log: MetricsLog) -> NewHead:
    if options.method in TRAINED_HEADS:
        return _trained_head(extractor, options, log)
    if options.method == "tau_norm":
        assert isinstance(extractor.head, nn.Linear)
        tau = options.tau
        if tau is None:
            tau = _choose_tau(extractor, extractor.head, log)
        say(f"head       tau {tau:g}; the bias of the classifier is dropped")
        return NewHead(
            module=tau_normalized(extractor.head, tau),
            name="linear",
            facts={"tau": tau},
            chosen={"tau": CHOSEN_ON} if options.tau is None else {},
        )
    features = cached_features(extractor, extractor.source.trained, options.feature_views)
    return NewHead(
        module=nearest_mean_head(features),
        name="nearest_mean",
        facts={"bad_photos": features.bad_photos},
    )


def _trained_head(extractor: FeatureExtractor, options: Options, log: MetricsLog) -> NewHead:
    photos = extractor.source.trained
    recipe = options.recipe(len(photos), extractor.source.config.seed)
    sizes = {"epoch_size": recipe.epoch_size, "batch_size": recipe.batch_size, "seed": recipe.seed}
    batches: FeatureBatches
    if options.live:
        say("batch norm statistics of each batch, gathered on, as published; weights are frozen")
        batches = LiveBatches(extractor, **sizes)
    else:
        features = cached_features(extractor, photos, options.feature_views)
        batches = CachedBatches(features, extractor.device, **sizes)
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
    if options.method == "crt":  # classifier re-training: a new linear head
        module = build_head("linear", extractor.n_features, photos.n_classes, seed=recipe.seed)
    else:
        assert isinstance(extractor.head, nn.Linear)
        module = scaled_head(extractor.head)
    train_head(module.to(extractor.device), batches, recipe, log)
    return NewHead(
        module=module,
        name="linear" if options.method == "crt" else "scaled",
        epochs=recipe.epochs,
        steps=recipe.n_steps,
        draws_prior=batches.prior,
        prior=batches.prior,
        facts={**dataclasses.asdict(recipe), "bad_photos": batches.bad_photos},
    )


def _choose_tau(extractor: FeatureExtractor, linear: nn.Linear, log: MetricsLog) -> float:
    """The first of the best taus, by the mean over the species that have held-out photos."""
    held_out = extractor.source.held_out
    assert held_out is not None
    scores = score_taus(linear, cached_features(extractor, held_out, 1))
    for tau, score in zip(TAUS, scores, strict=True):
        log.write("tau", tau=round(float(tau), 3), mean_class_accuracy=score)
    best = round(float(TAUS[scores.argmax()]), 3)
    never = np.flatnonzero(held_out.class_counts == 0)
    names = held_out.taxonomy.table["name"].iloc[never].tolist()
    say(
        f"tau        {best:g} of {TAUS[0]:g} to {TAUS[-1]:g} has the best mean class accuracy on "
        f"{len(held_out)} held-out photos, {scores.max():.3f} (0: {scores[0]:.3f})"
    )
    if names:
        say(f"tau        {len(names)} species have none there: {first_few(names)}")
    return best


def _scored(
    extractor: FeatureExtractor, head: NewHead, options: Options, log: MetricsLog
) -> NewHead:
    """Prints and logs how well the held-out part, if there is one, is recognized. A head that
    starts from the old one keeps its prior only where these photos show it."""
    source = extractor.source
    earlier = source.checkpoint.facts.logits_prior
    may_carry_old = options.method == "lws" and not same_prior(earlier, head.prior)
    share = None
    if may_carry_old and source.held_out is not None and earlier is not None:
        assert head.prior is not None
        share = EarlierPriorShare(np.array(earlier), head.prior)
    if source.held_out is not None:
        if options.live:  # the network is no longer the one that the features are of
            put_classifier(extractor.network, head.module)
            result = validate_held_out(source, share)
        else:
            result = _validate_cached(extractor, head.module, share)
        say(f"           {result}" + (" (tau was chosen on them)" if head.chosen else ""))
        numbers = {**vars(result), **({} if share is None else share.facts())}
        log.write("validation", epoch=head.epochs, step=head.steps, chosen=head.chosen, **numbers)
    if not may_carry_old:
        return head
    if share is not None and share.is_gone():
        say(f"prior      uniform; share of the old head's prior that is left: {share}")
        return head
    why = "that of the old head is not known either"
    if share is not None:
        why = f"share of the old head's prior that is left: {share}; train with more steps"
    elif source.held_out is None:
        why = "nothing was held out (data.holdout none) to measure what the old head left"
    say(f"prior      unknown, so adjust needs --from-prior: {why}")
    return replace(head, prior=None)


def _validate_cached(
    extractor: FeatureExtractor, head: nn.Module, earlier_prior: EarlierPriorShare | None
) -> Validation:
    source = extractor.source
    assert source.held_out is not None
    guesses, labels = [], []
    for features, true in cached_features(extractor, source.held_out, 1).chunks():
        with torch.inference_mode():
            logits = head(features.to(extractor.device)).cpu().numpy()
        guesses.append(top_k(logits, 3))
        labels.append(true.numpy())
        if earlier_prior is not None:
            earlier_prior.add(logits, labels[-1])
    return score_guesses(
        np.concatenate(guesses),
        np.concatenate(labels),
        source.trained.train_counts,
        source.config.data.band_edges,
    )


def _write_run(path: Path, extractor: FeatureExtractor, head: NewHead, options: Options) -> None:
    source, config = extractor.source, extractor.source.config
    # The loss that trained the old head stays only where it can train such a head: ldam cannot do
    # without cosines.
    loss = config.loss if head.name == config.model.head else LossConfig()
    model = replace(config.model, freeze="backbone", head=head.name)
    facts = StageTwoFacts(
        run=str(source.run.path),
        checkpoint=source.checkpoint.name,
        checkpoint_sha256=source.checkpoint.digest,
        weights=source.checkpoint.weights,
        **{**dataclasses.asdict(options), **head.facts},
    )
    earlier = source.checkpoint.facts
    weights = replace(
        earlier,
        stage=1,  # of the new run, which has no other
        logits_prior=None if head.prior is None else head.prior.tolist(),
        chosen=earlier.chosen | head.chosen,
    )
    if head.draws_prior is not None:
        weights = replace(weights, draws_prior=head.draws_prior.tolist())
    write_trained_run(
        path,
        replace(config, model=model, loss=loss),
        extractor.network,
        source=source.run,
        facts=structs.replace(source.run.facts, stage_two=facts),
        state=CheckpointFacts(head.epochs, head.steps, weights),
    )

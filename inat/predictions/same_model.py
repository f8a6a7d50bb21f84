"""Whether two predictions come from the same model, views and adjustments, and how they differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec.structs import replace

from inat.predictions.meta import Origin

OutOfFold: TypeAlias = Literal["another", "own folds", "same config"]
"""Whether an out-of-fold prediction is of the model that it is compared with: never; where that
model is one of its folds, or an ensemble of them; also where both were trained by one config."""

MADE_BY = ("competition", "checkpoint", "weights", "views", "view_mean", "how")
"""What two predictions of one model have in common, beside the checkpoint's bytes."""

SHARE = ("weight", "temperature")
"""What two ensembles give a member."""

UNTOLD = ("competition", "history of adjustments")
"""Differences that make no other model."""


def differences(one: Origin, other: Origin, out_of_fold: OutOfFold = "another") -> Iterator[str]:
    """The names of what two predictions have otherwise, those of an ensemble's members included.
    `out_of_fold` says whether a prediction out of the folds of the model's training differs."""
    if one.members and other.folds and out_of_fold != "another":
        yield from _unlike_folds(one, other, out_of_fold)
        return
    if len(one.members) != len(other.members):
        yield "number of members"
        return
    if not _same_weights(one, other, out_of_fold):
        yield "run"
    for name in (*MADE_BY, *SHARE):
        if getattr(one, name) != getattr(other, name):
            yield name
    if one.history != other.history:
        yield "history of adjustments"
    for pair in zip(one.members, other.members, strict=True):
        yield from (f"members' {what}" for what in differences(*pair, out_of_fold))


def told_of_fit(one: Origin, fit: Origin, named: str) -> str | None:
    """What to report of a choice for `one` that was made on `fit`, a prediction of another model or
    other views (`named` where it is of no run): the end of a sentence; None: they are one model's.
    """
    found = set(differences(one, fit, "own folds"))
    other_views = {what for what in found if what.endswith(("views", "view_mean"))}
    other_model = {what for what in found - other_views if not what.endswith(UNTOLD)}
    views = "of other views" if other_views else ""
    if other_model:
        model = f"of another model, {fit.run or named}"
        return f"the prediction {model}, and {views}" if views else f"the prediction {model}"
    return f"a prediction {views}, {named}" if views else None


def _unlike_folds(ensemble: Origin, oof: Origin, out_of_fold: OutOfFold) -> Iterator[str]:
    """What keeps an ensemble from being one of fold runs whose photos out of fold are at hand.

    Each member's logits must be on the scale of the folds' own, as ranks and what a temperature
    divided are not.
    """
    if ensemble.how == "rank":
        yield "how"
    for name in SHARE:
        if getattr(ensemble, name) != getattr(oof, name):
            yield name
    for member in ensemble.members:
        if member.temperature not in (None, 1):
            yield "members' temperature"
        alone = replace(
            member,
            adjusted=[*member.adjusted, *ensemble.adjusted],
            weight=oof.weight,
            temperature=oof.temperature,
        )
        yield from (f"members' {what}" for what in differences(alone, oof, out_of_fold))


def _same_weights(one: Origin, other: Origin, out_of_fold: OutOfFold) -> bool:
    if not other.folds or (not one.folds and out_of_fold == "another"):
        return _same_run(one, other)
    if one.folds:
        return len(one.folds) == len(other.folds) and all(map(_same_run, one.folds, other.folds))
    digest = one.config_digest_without_holdout
    same_config = bool(digest) and digest == other.config_digest_without_holdout
    return any(_same_run(one, fold) for fold in other.folds) or (
        same_config and out_of_fold == "same config"
    )


def _same_run(one: Origin, other: Origin) -> bool:
    """By the checkpoints' checksums, or by the runs' folders where one has none."""
    if one.checkpoint_sha256 and other.checkpoint_sha256:
        return one.checkpoint_sha256 == other.checkpoint_sha256
    return Path(one.run).resolve() == Path(other.run).resolve()

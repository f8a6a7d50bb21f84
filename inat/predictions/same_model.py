"""In what two predictions differ beside their photos: in the model, its views, its adjustments."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

Meta: TypeAlias = dict[str, Any]
"""A prediction's meta.json, or what an ensemble's says of a member."""

OutOfFold: TypeAlias = Literal["another", "own folds", "same config"]
"""Whether an out-of-fold prediction is of the model that it is compared with: never; where that
model is one of its folds, or an ensemble of them; also where both were trained by one config."""

MADE_BY = ("competition", "checkpoint", "weights", "views", "view_mean", "how")
"""What two predictions of one model have in common, beside the checkpoint's bytes."""

SHARE = ("weight", "temperature")
"""What two ensembles give a member."""

OF_THE_PHOTOS = ("of", "geo", "n_without_place", "presence_power")
"""In a step of the history, what differs from split to split."""

UNTOLD = ("competition", "history of adjustments")
"""Differences that make no other model."""

CONFIG = "config_digest_without_holdout"
"""Field of meta.json: equal for the runs of one config, whatever each held out."""


def differences(one: Meta, other: Meta, out_of_fold: OutOfFold = "another") -> Iterator[str]:
    """The names of what two predictions have otherwise, those of an ensemble's members included.

    Args:
        one: of the model.
        other: of the same model, or out of the folds of its training.
        out_of_fold: whether the latter is a difference.
    """
    members, others = one.get("members", []), other.get("members", [])
    if members and "folds" in other and out_of_fold != "another":
        yield from _unlike_folds(one, other, out_of_fold)
        return
    if len(members) != len(others):
        yield "number of members"
        return
    if not _same_weights(one, other, out_of_fold):
        yield "run"
    for key in (*MADE_BY, *SHARE):
        if one.get(key) != other.get(key):
            yield key
    if history(one) != history(other):
        yield "history of adjustments"
    for pair in zip(members, others, strict=True):
        yield from (f"members' {what}" for what in differences(*pair, out_of_fold))


def told_of_fit(one: Meta, fit: Meta, named: str) -> str | None:
    """What to say of a choice made on a prediction that is another model's or of other views.

    Args:
        one: of the model that it was made for.
        fit: of the photos that it was made on.
        named: what to call these where they are of no run.

    Returns:
        The end of a sentence, from "the prediction of" on; None: they are the model's own.
    """
    found = set(differences(one, fit, "own folds"))
    other_views = {what for what in found if what.endswith(("views", "view_mean"))}
    other_model = {what for what in found - other_views if not what.endswith(UNTOLD)}
    views = "of other views" if other_views else ""
    if other_model:
        model = f"of another model, {fit.get('run', named)}"
        return f"the prediction {model}, and {views}" if views else f"the prediction {model}"
    return f"a prediction {views}, {named}" if views else None


def history(meta: Meta) -> list[dict[str, Any]]:
    """What was done to the logits, without the names of the files and the count of the photos."""
    return [
        {key: value for key, value in step.items() if key not in OF_THE_PHOTOS}
        for step in meta.get("adjusted", [])
    ]


def _unlike_folds(ensemble: Meta, oof: Meta, out_of_fold: OutOfFold) -> Iterator[str]:
    """What keeps an ensemble from being one of fold runs whose photos out of fold are at hand.

    Each member's logits must be on the scale of the folds' own, as ranks and what a temperature
    divided are not.
    """
    if ensemble.get("how") == "rank":
        yield "how"
    for key in SHARE:
        if ensemble.get(key) != oof.get(key):
            yield key
    for member in ensemble["members"]:
        if member.get("temperature", 1) != 1:
            yield "members' temperature"
        steps = [*member.get("adjusted", []), *ensemble.get("adjusted", [])]
        alone = {**member, "adjusted": steps} | {key: oof.get(key) for key in SHARE}
        yield from (f"members' {what}" for what in differences(alone, oof, out_of_fold))


def _same_weights(one: Meta, other: Meta, out_of_fold: OutOfFold) -> bool:
    folds, of_other = one.get("folds", []), other.get("folds", [])
    if not of_other or (not folds and out_of_fold == "another"):
        return _same_run(one, other)
    if folds:
        return len(folds) == len(of_other) and all(map(_same_run, folds, of_other))
    same_config = bool(one.get(CONFIG)) and one.get(CONFIG) == other.get(CONFIG)
    return any(_same_run(one, fold) for fold in of_other) or (
        same_config and out_of_fold == "same config"
    )


def _same_run(one: Meta, other: Meta) -> bool:
    """By the checkpoints' checksums, or by the runs' folders where one has none."""
    digests = [meta.get("checkpoint_sha256") for meta in (one, other)]
    if all(digests):
        return digests[0] == digests[1]
    runs = [Path(meta.get("run", "")).resolve() for meta in (one, other)]
    return runs[0] == runs[1]

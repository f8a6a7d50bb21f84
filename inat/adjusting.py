"""Moves the prior of a prediction file's logits, without a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from inat.errors import InputError
from inat.files import atomic_file
from inat.prediction_file import PredictionFile, read_prediction, store, write_prediction
from inat.prior_estimate import LabelShift, estimate_label_shift
from inat.priors import (
    Prior,
    count_prior,
    is_uniform,
    normalised,
    read_prior,
    target_shift,
    tau_shift,
    temper,
    uniform_prior,
)

ESTIMATED_PRIOR = "estimated_prior.csv"
"""In the new prediction file; --target FILE takes it."""

SAME_MODEL = ("competition", "checkpoint", "weights", "views")
"""What calibration photos and adjusted photos must have in common, beside run and species."""


@dataclass(frozen=True, eq=False)
class Move:
    """What becomes of the logits z: z / temperature + shift.

    Attributes:
        shift: what is added.
        prior: what the moved logits carry.
        what: for the history in meta.json.
        temperature: what they are divided by.
        notes: sentences about it.
    """

    shift: Float64[np.ndarray, "classes"]
    prior: Prior
    what: dict[str, Any]
    temperature: float = 1.0
    notes: list[str] = field(default_factory=list)


def adjust(
    prediction: Path | str | PredictionFile,
    out: Path | str,
    *,
    tau: float | None = None,
    target: Path | str | None = None,
    from_prior: Path | str | None = None,
    calibrate_on: Path | str | PredictionFile | None = None,
    overwrite: bool = False,
) -> tuple[PredictionFile, list[str]]:
    """Writes a prediction file whose logits carry another class prior.

    Args:
        prediction: the prediction file to start from; it is left as it is.
        out: the new prediction file.
        tau: subtract tau log(prior that the logits carry); 1 makes it uniform (Menon et al.
            2021, eq. 9).
        target: uniform, a CSV `category_id,prior`, or estimated: the prior to move to. The
            estimate is made from these predictions, which need no labels
            (`inat.prior_estimate.estimate_label_shift`), and stands in OUT/estimated_prior.csv.
        from_prior: what the logits carry, where the file does not know: uniform, counts (of
            the train split), or a CSV.
        calibrate_on: for target estimated, a prediction file of the same model for labelled
            photos that were not trained on (holdout, out of fold, val): their labels calibrate
            the logits, tell the prior that these carry, and check the estimate.
        overwrite: replace what stands at `out`.

    Returns:
        The new file, and sentences about what the adjustment did.

    Raises:
        InputError: both or none of tau and target; an unknown prior without `from_prior`; `out`
            exists; calibration photos of another model, without labels, or trained on.
    """
    if not isinstance(prediction, PredictionFile):
        prediction = read_prediction(prediction)
    out = Path(out)
    if (tau is None) == (target is None):
        raise InputError("adjust takes one of --tau T and --target uniform|estimated|FILE")
    if calibrate_on is not None and str(target) != "estimated":
        raise InputError("--calibrate-on goes with --target estimated alone")
    _refuse_out(prediction, out, overwrite=overwrite)
    held_out = None if calibrate_on is None else _read_held_out(prediction, calibrate_on)
    if held_out is not None and out.resolve() == held_out.path.resolve():
        raise InputError(f"{out}: adjust does not write over --calibrate-on; give another --out")
    if str(target) == "estimated":
        move = _estimated_move(prediction, held_out, from_prior)
    else:
        move = _named_move(prediction, tau, target, from_prior)
    _write(prediction, out, move, held_out)
    if str(target) == "estimated":
        move.notes.append(f"the estimated prior is in {_write_prior(prediction, out, move.prior)}")
    return read_prediction(out), move.notes


def _refuse_out(prediction: PredictionFile, out: Path, *, overwrite: bool) -> None:
    if out.resolve() == prediction.path.resolve():
        raise InputError(f"{out}: adjust does not write over its input; give another --out")
    if prediction.path.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: holds the prediction that is adjusted; give another --out")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists already; give another --out, or --overwrite")


def _write(
    prediction: PredictionFile, out: Path, move: Move, held_out: PredictionFile | None
) -> None:
    meta: dict[str, Any] = dict(prediction.meta)
    meta["logits_prior"] = move.prior.tolist()
    meta["adjusted"] = [*meta.get("adjusted", []), {"of": str(prediction.path), **move.what}]
    photos = prediction.photos
    if held_out is not None:
        meta["chosen"] = meta["chosen"] | {
            "calibration": f"negative log-likelihood on the {len(held_out)} photos of "
            f"{held_out.path}"
        }
        # Image ids are unique within a data set alone, file names tell its parts apart too.
        chosen_on = photos["file_name"].isin(held_out.photos["file_name"])
        photos = photos.assign(role=photos["role"].mask(chosen_on, "chosen on"))
    with write_prediction(
        out,
        ids=prediction.ids,
        labels=prediction.labels,
        species=prediction.species,
        photos=photos,
        meta=meta,
    ) as rows:
        for chunk in prediction.chunks():
            moved = prediction.logits[chunk].astype(np.float32) / np.float32(move.temperature)
            rows[chunk] = store(moved + move.shift)


def _write_prior(prediction: PredictionFile, out: Path, prior: Prior) -> Path:
    table = pd.DataFrame({"category_id": prediction.category_ids, "prior": prior})
    with atomic_file(out / ESTIMATED_PRIOR) as partial:
        table.to_csv(partial, index=False)
    return out / ESTIMATED_PRIOR


def _named_move(
    prediction: PredictionFile,
    tau: float | None,
    target: Path | str | None,
    from_prior: Path | str | None,
) -> Move:
    """To a prior that is known, or away from the one that the logits carry."""
    prior = _carried_prior(prediction, from_prior)
    if target is not None:
        wanted = _named_prior(prediction, target)
        move = Move(target_shift(prior, wanted), wanted, {"target": str(target)})
    else:
        assert tau is not None
        if not 0 <= tau <= 10:
            raise InputError(f"--tau {tau:g} is not within 0 and 10; 1 takes the whole prior off")
        move = Move(tau_shift(prior, tau), temper(prior, 1 - tau), {"tau": tau})
    if np.ptp(move.shift) < 1e-6:
        move.notes.append(
            "this changes nothing: the logits carry a uniform prior already"
            if is_uniform(prior)
            else "this changes nothing: the shift is the same for all species"
        )
    return move


def _carried_prior(
    prediction: PredictionFile, from_prior: Path | str | None, or_else: str = ""
) -> Prior:
    known = prediction.logits_prior
    if from_prior is not None:
        assumed = (
            count_prior(prediction.train_counts)
            if str(from_prior) == "counts"
            else _named_prior(prediction, from_prior)
        )
        if not (assumed > 0).all():
            raise InputError(
                f"--from-prior {from_prior}: the prior of {(assumed <= 0).sum()} species is 0, "
                "which cannot be taken off; give every species a prior above 0"
            )
        if known is not None and not np.allclose(known, assumed, rtol=1e-4):
            raise InputError(
                f"{prediction.path}: which prior its logits carry is known, and --from-prior "
                f"{from_prior} is another: that would correct twice, or wrongly; leave it away"
            )
        return assumed
    if known is None:
        raise InputError(
            f"{prediction.path}: which prior its logits carry is not known; "
            f"say what to assume: --from-prior uniform|counts|FILE{or_else}"
        )
    if not (known > 0).all():
        raise InputError(
            f"{prediction.path}: its logits carry a prior of 0 for {(known <= 0).sum()} species, "
            "which cannot be taken off; adjust the prediction that it was made from"
        )
    return known


def _named_prior(prediction: PredictionFile, name: Path | str) -> Prior:
    if str(name) == "uniform":
        return uniform_prior(prediction.n_classes)
    return read_prior(Path(name), prediction.category_ids)


def _read_held_out(
    prediction: PredictionFile, calibrate_on: Path | str | PredictionFile
) -> PredictionFile:
    """Labelled photos of the same model that were not trained on."""
    if not isinstance(calibrate_on, PredictionFile):
        calibrate_on = read_prediction(calibrate_on)
    held_out, n_photos = calibrate_on, len(calibrate_on)
    if differing := _difference(prediction, held_out):
        raise InputError(
            f"{held_out.path}: its {differing} is not that of {prediction.path}; "
            "calibrate on a prediction of the same model, made and adjusted in the same way"
        )
    if n_photos == 0 or (held_out.labels < 0).any():
        raise InputError(
            f"{held_out.path}: {(held_out.labels < 0).sum()} of its {n_photos} photos have no "
            "label; calibrate on the held-out part or val"
        )
    if trained_on := int((held_out.photos["role"] == "trained on").sum()):
        raise InputError(
            f"{held_out.path}: {trained_on} of its {n_photos} photos were trained on, where a "
            "model is surer than elsewhere; calibrate on the held-out part or val"
        )
    return held_out


def _difference(one: PredictionFile, other: PredictionFile) -> str | None:
    """The first thing in which the models or the making of two predictions differ."""
    if one.category_ids.tolist() != other.category_ids.tolist():
        return "list of species"
    if not _same_weights(one, other):
        return "run"
    for key in SAME_MODEL:
        if one.meta.get(key) != other.meta.get(key):
            return key
    if _history(one) != _history(other):
        return "history of adjustments"
    return None


def _same_weights(one: PredictionFile, other: PredictionFile) -> bool:
    """By the checkpoints' checksums, or by the runs' folders where one has none."""
    digests = [file.meta.get("checkpoint_sha256") for file in (one, other)]
    if all(digests):
        return digests[0] == digests[1]
    runs = [Path(file.meta.get("run", "")).resolve() for file in (one, other)]
    return runs[0] == runs[1]


def _history(prediction: PredictionFile) -> list[dict[str, Any]]:
    """What was done to the logits, without the names of the files."""
    return [
        {key: value for key, value in step.items() if key != "of"}
        for step in prediction.meta.get("adjusted", [])
    ]


def _estimated_move(
    prediction: PredictionFile, held_out: PredictionFile | None, from_prior: Path | str | None
) -> Move:
    """To the prior that the photos' own predictions speak for."""
    if len(prediction) < 2:
        raise InputError(
            f"{prediction.path}: {len(prediction)} photo tells nothing of the species' shares; "
            "give --target uniform|FILE"
        )
    if held_out is not None and from_prior is not None:
        raise InputError(
            "--calibrate-on measures which prior the logits carry; leave --from-prior away"
        )
    source = None
    if held_out is None:
        source = _carried_prior(prediction, from_prior, " (or measure it: --calibrate-on FILE)")
    found = estimate_label_shift(
        prediction.logits,
        # A species without training photos is taken to have had half of one.
        normalised(np.maximum(prediction.train_counts, 0.5)),
        source=source,
        held_out=None if held_out is None else (held_out.logits, held_out.labels),
    )
    if held_out is not None and not (found.source > 0).all():
        raise InputError(
            f"{held_out.path}: {(found.source <= 0).sum()} species have probability 0 on all of "
            "its photos, which no prior can move; adjust the prediction that it was made from"
        )
    return Move(
        shift=found.calibration.bias + target_shift(found.source, found.prior),
        prior=found.prior,
        what={
            "target": "estimated",
            "calibrated_on": None if held_out is None else str(held_out.path),
            "not_held_out": []
            if held_out is None
            else _not_held_out(held_out)["category_id"].tolist(),
            **_figures(found),
        },
        temperature=found.calibration.temperature,
        notes=_notes(found, prediction, held_out),
    )


def _figures(found: LabelShift) -> dict[str, Any]:
    return {
        "temperature": found.calibration.temperature,
        "pseudo_photos": found.smoothing.pseudo_photos,
        "iterations": found.n_iterations,
        "gain": found.gain,
        "shift": found.shift,
        "spread": found.spread,
        "unexplained": found.unexplained,
        "unexplained_by_chance": found.unexplained_by_chance,
    }


def _notes(
    found: LabelShift, prediction: PredictionFile, held_out: PredictionFile | None
) -> list[str]:
    notes = [
        "not calibrated, and not checked by BBSE: that takes labelled photos that were not trained "
        "on (--calibrate-on HOLDOUT)"
    ]
    if held_out is not None:
        notes = [_calibration_note(found, held_out), *_not_held_out_note(held_out)]
    strength = found.smoothing.pseudo_photos / len(found.prior)
    smoothing = f"smoothed as by {strength:g} photos a species" if strength else "not smoothed"
    notes.append(
        f"estimated by {found.n_iterations} steps of EM, {smoothing}: {found.shift:.1%} of the "
        f"prior is moved, ±{found.spread:.1%} by the choice of photos"
    )
    return notes + [f"warning: {sentence}" for sentence in _warnings(found, len(prediction))]


def _calibration_note(found: LabelShift, held_out: PredictionFile) -> str:
    calibration = found.calibration
    return (
        f"calibrated on the {len(held_out):,} photos of {held_out.path}: temperature "
        f"{calibration.temperature:.2f}, negative log-likelihood {calibration.nll_before:.3f} -> "
        f"{calibration.nll:.3f}"
    )


def _not_held_out(held_out: PredictionFile) -> pd.DataFrame:
    counts = np.bincount(held_out.labels, minlength=held_out.n_classes)
    absent: pd.DataFrame = held_out.species[counts == 0]
    return absent


def _not_held_out_note(held_out: PredictionFile) -> list[str]:
    names = _not_held_out(held_out)["name"].tolist()
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        f"{len(names)} of {held_out.n_classes} species have no photo there, so their calibration "
        f"rests on those of the others: {shown}"
    ]


def _warnings(found: LabelShift, n_photos: int) -> list[str]:
    warnings = []
    if not found.converged:
        warnings.append(f"EM still moves after {found.n_iterations} steps; the estimate is rough")
    if not found.is_borne_out:
        warnings.append(
            f"the estimate is unstable, the {n_photos:,} photos bear out no shift: moved "
            f"{found.shift:.1%}, by their choice alone ±{found.spread:.1%}, gain on photos left "
            f"out {found.gain:.3f} nats"
        )
    if not found.agrees:
        warnings.append(
            f"EM and BBSE disagree: EM's prior leaves {found.unexplained:.1%} of the guesses "
            "unexplained, where a pure shift of the species' shares leaves at most "
            f"{found.unexplained_by_chance:.1%}; either these photos look other than the held-out "
            "ones, or too few of the tail's are held out to know how it looks"
        )
    return warnings

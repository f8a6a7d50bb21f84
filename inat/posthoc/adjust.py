"""Moves the prior of a prediction file's logits, without a model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64
from msgspec import structs

from inat.core.errors import InputError
from inat.core.files import atomic_file
from inat.core.priors import (
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
from inat.posthoc.calibration_photos import calibration_logits, check_calibration_photos
from inat.posthoc.label_shift import LabelShift, estimate_label_shift
from inat.posthoc.product_rule import add_log_presence
from inat.posthoc.tau_search import choose_tau, refuse_other_model
from inat.predictions.file import (
    PredictionFile,
    read_prediction,
    refuse_place,
    store,
    write_prediction,
)
from inat.predictions.meta import Adjustment, Role, ShiftCheck
from inat.predictions.same_model import told_of_fit

ESTIMATED_PRIOR = "estimated_prior.csv"
"""In the new prediction file; --target FILE takes it."""


@dataclass(frozen=True, eq=False)
class Move:
    """What becomes of the logits z: z / temperature + shift."""

    shift: Float64[np.ndarray, "classes"]
    prior: Prior  # that the moved logits carry
    step: Adjustment  # for the history in meta.json
    temperature: float = 1.0
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)  # what was, and by what on which photos
    chosen_on: PredictionFile | None = None  # those photos


def adjust(
    prediction: Path | str | PredictionFile,
    out: Path | str | None = None,
    *,
    tau: float | Literal["search"] | None = None,
    target: Path | str | None = None,
    from_prior: Path | str | None = None,
    fit: Path | str | PredictionFile | None = None,
    geo: Path | str | PredictionFile | None = None,
    overwrite: bool = False,
) -> PredictionFile:
    """Moves a prediction's logits to another class prior (post-hoc logit adjustment).

    Or adds a geo prior's log presence to them. The 2018 test set has no locations. The result is a
    new prediction file; its notes state what the adjustment did.

    Args:
        prediction: the prediction file to start from; it is left as it is.
        out: the new prediction file; None: PREDICTION-adjusted, next to the old one.
        tau: subtract tau log(prior that the logits carry); 1 takes the whole prior off (Menon et
            al. 2021, eq. 9). search: the one of 0, 0.1 ... 2 with the best mean class accuracy on
            photos that were held out, which count as chosen on from then on.
        target: the prior to move to: uniform, a CSV category_id,prior, or estimated: from these
            photos' predictions alone, without labels; the estimate is written to
            OUT/estimated_prior.csv.
        from_prior: the prior that the logits carry, where the file does not know: uniform, counts
            (of the train split), or a CSV.
        fit: the same model's prediction of labeled photos that were not trained on (holdout, oof).
            With tau search: what tau is chosen on; None: the prediction itself. With target
            estimated: its labels calibrate the logits, measure the prior that they carry, and
            check the estimate; an oof must be that of the folds that made the prediction, or of
            its config. Where it is another model's, a note says so.
        geo: a geo prior's prediction of the same photos: instead of moving the prior, add its log
            presence (Mac Aodha et al. 2019); photos without a place keep their logits. tau and
            target are separate adjustments, before or after.
        overwrite: replace what is at `out`.

    Raises:
        InputError: not one of tau, target and geo; an unknown prior without `from_prior`; `out`
            exists; photos of `fit` of another model, without labels, or trained on; a geo
            prior's prediction of other photos or species.
    """
    prediction = read_prediction(prediction)
    fit = None if fit is None else read_prediction(fit)
    out = Path(out or f"{prediction.path}-adjusted")
    if geo is not None:
        if any(given is not None for given in (tau, target, from_prior, fit)):
            raise InputError("--geo goes alone; adjust once more for --tau or --target")
        return add_log_presence(prediction, geo, out, overwrite=overwrite)
    if (tau is None) == (target is None):
        raise InputError(
            "adjust takes one of --tau T|search, --target uniform|estimated|FILE and --geo GEO_PRED"
        )
    estimated = str(target) == "estimated"
    if fit is not None and not (estimated or tau == "search"):
        raise InputError("--fit goes with --tau search and --target estimated alone")
    refuse_place(out, [prediction, fit or prediction], "adjust", overwrite=overwrite)
    if estimated:
        move = _estimated_move(prediction, fit, from_prior)
    else:
        prior = carried_prior(prediction, from_prior)
        if tau == "search":
            move = _searched_move(prediction, prior, fit, from_prior)
        elif tau is not None:
            move = _tau_move(prior, tau)
        else:
            wanted = _named_prior(prediction, str(target))
            move = Move(target_shift(prior, wanted), wanted, Adjustment(target=str(target)))
        if np.ptp(move.shift) < 1e-6:
            move.notes.append(
                "this changes nothing: the logits carry a uniform prior already"
                if is_uniform(prior)
                else "this changes nothing: the shift is the same for all species"
            )
    _write(prediction, out, move)
    if estimated:
        table = pd.DataFrame({"category_id": prediction.category_ids, "prior": move.prior})
        with atomic_file(out / ESTIMATED_PRIOR) as partial:
            table.to_csv(partial, index=False)
        move.notes.append(f"the estimated prior is in {out / ESTIMATED_PRIOR}")
    return read_prediction(out).with_notes(move.notes)


def _write(prediction: PredictionFile, out: Path, move: Move) -> None:
    before, step = prediction.meta, structs.replace(move.step, of=str(prediction.path))
    meta = structs.replace(
        before,
        logits_prior=move.prior.tolist(),
        adjusted=[*before.adjusted, step],
        chosen=before.chosen | move.chosen,
    )
    photos, chosen_keys = prediction.photos, [prediction.chosen_keys]
    if move.chosen_on is not None:
        here = photos["key"].isin(move.chosen_on.photos["key"])
        here &= photos["role"] != Role.TRAINED_ON
        photos = photos.assign(role=photos["role"].mask(here, Role.CHOSEN_ON.value))
        chosen_keys += [move.chosen_on.chosen_keys, move.chosen_on.photos["key"].to_numpy()]
    with write_prediction(
        out,
        ids=prediction.ids,
        labels=prediction.labels,
        species=prediction.species,
        photos=photos,
        meta=meta,
        dtype=prediction.logits.dtype,
        chosen_keys=chosen_keys,
    ) as rows:
        for chunk in prediction.chunks():
            moved = prediction.read(chunk) / np.float32(move.temperature)
            rows[chunk] = store(moved + move.shift, rows.dtype)


def _tau_move(prior: Prior, tau: float) -> Move:
    if not 0 <= tau <= 10:
        raise InputError(f"--tau {tau:g} is not within 0 and 10; 1 takes the whole prior off")
    return Move(tau_shift(prior, tau), temper(prior, 1 - tau), Adjustment(tau=tau))


def _searched_move(
    prediction: PredictionFile,
    prior: Prior,
    fit: PredictionFile | None,
    from_prior: Path | str | None,
) -> Move:
    fit_prior = prior
    if fit is not None:
        fit_prior = carried_prior(fit, from_prior)
        refuse_other_model(prediction, prior, fit, fit_prior)
    choice = choose_tau(fit or prediction, fit_prior)
    fit_path = str(choice.photos.path)
    told = told_of_fit(prediction.meta, choice.photos.meta, fit_path)
    move = _tau_move(prior, choice.tau)
    before = prediction.meta.chosen
    return replace(
        move,
        step=structs.replace(move.step, fit=fit_path, never_held_out=choice.never_held_out),
        notes=[*choice.notes(), *([f"tau was chosen on {told}"] if told else [])],
        chosen={"tau": (f"{before['tau']}, then " if "tau" in before else "") + choice.how},
        chosen_on=choice.photos,
    )


def carried_prior(prediction: PredictionFile, from_prior: Path | str | None) -> Prior:
    """The prior that a prediction's logits carry, or the one to assume where it does not know:
    uniform, counts, or a CSV. An InputError if neither says it, they disagree, or a species' is
    0."""
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
            "say what to assume: --from-prior uniform|counts|FILE"
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


def _estimated_move(
    prediction: PredictionFile, held_out: PredictionFile | None, from_prior: Path | str | None
) -> Move:
    n_photos = len(prediction)
    if n_photos < 2:
        raise InputError(
            f"{prediction.path}: {n_photos} photo tells nothing of the species' shares; "
            "give --target uniform|FILE"
        )
    source, labelled = None, None
    if held_out is None:
        source = carried_prior(prediction, from_prior)
    elif from_prior is not None:
        raise InputError("--fit measures which prior the logits carry; leave --from-prior away")
    else:
        check_calibration_photos(prediction, held_out)
        labelled = (calibration_logits(prediction, held_out), held_out.labels)
    for photos in (prediction, held_out or prediction):
        for chunk in photos.chunks():
            photos.read(chunk)  # refuses what is not finite, which the estimate does not look for
    found = estimate_label_shift(
        prediction.logits,
        # A species without training photos is taken to have had half of one.
        normalised(np.maximum(prediction.train_counts, 0.5)),
        source=source,
        held_out=labelled,
    )
    if not (found.source > 0).all():
        assert held_out is not None
        raise InputError(
            f"{held_out.path}: {(found.source <= 0).sum()} species have probability 0 on all of "
            "its photos, which no prior can move; adjust the prediction that it was made from"
        )
    chosen = {}
    if held_out is not None:
        by = f"negative log-likelihood on the {len(held_out)} photos of {held_out.path}"
        chosen["calibration"] = by
    return Move(
        shift=found.calibration.bias + target_shift(found.source, found.prior),
        prior=found.prior,
        step=_adjustment(found, n_photos, held_out),
        temperature=found.calibration.temperature,
        notes=_notes(found, n_photos, held_out),
        chosen=chosen,
        chosen_on=held_out,
    )


def _adjustment(found: LabelShift, n_photos: int, held_out: PredictionFile | None) -> Adjustment:
    step = Adjustment(
        target="estimated",
        temperature=found.calibration.temperature,
        pseudo_counts=found.pseudo_counts,
        iterations=found.n_iterations,
        gain=found.gain,
        shift=found.shift,
        spread=found.spread,
        warnings=found.warnings(n_photos),
    )
    if held_out is not None:
        step.calibrated_on = str(held_out.path)
        step.not_held_out = held_out.absent_species["category_id"].tolist()
    if found.check is not None:
        step.bbse = ShiftCheck(found.check.unexplained, found.check.by_chance)
    return step


def _notes(found: LabelShift, n_photos: int, held_out: PredictionFile | None) -> list[str]:
    """What was done, then the warnings."""
    said = []
    if held_out is None:
        said.append(
            "not calibrated, and not checked by BBSE: that takes labelled photos that were not "
            "trained on (--fit HOLDOUT)"
        )
    else:
        calibration, names = found.calibration, held_out.absent_species["name"].tolist()
        said.append(
            f"calibrated on the {len(held_out):,} photos of {held_out.path}: temperature "
            f"{calibration.temperature:.2f}, negative log-likelihood "
            f"{calibration.nll_before:.3f} -> {calibration.nll:.3f}"
        )
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(
                f"{len(names)} of {held_out.n_classes} species have no photo there, so their "
                f"calibration rests on those of the others: {', '.join(names[:3])}{more}"
            )
    strength = found.pseudo_counts
    smoothing = f"smoothed as by {strength:g} photos a species" if strength else "not smoothed"
    said.append(
        f"estimated by {found.n_iterations} steps of EM, {smoothing}: {found.shift:.1%} of the "
        f"prior is moved, ±{found.spread:.1%} by the choice of photos"
    )
    return said + [f"warning: {sentence}" for sentence in found.warnings(n_photos)]

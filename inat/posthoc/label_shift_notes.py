"""What is said of an estimated prior: figures for meta.json, sentences and warnings for people."""

from inat.posthoc.label_shift import LabelShift
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Adjustment, ShiftCheck


def as_adjustment(found: LabelShift, n_photos: int, held_out: PredictionFile | None) -> Adjustment:
    """For the history of adjustments in meta.json."""
    step = Adjustment(
        target="estimated",
        temperature=found.calibration.temperature,
        pseudo_counts=found.pseudo_counts,
        iterations=found.n_iterations,
        gain=found.gain,
        shift=found.shift,
        spread=found.spread,
        warnings=warnings(found, n_photos),
    )
    if held_out is not None:
        step.calibrated_on = str(held_out.path)
        step.not_held_out = held_out.absent_species["category_id"].tolist()
    if found.check is not None:
        check = found.check
        step.bbse = ShiftCheck(check.distance, check.unexplained, check.by_chance)
    return step


def notes(found: LabelShift, n_photos: int, held_out: PredictionFile | None) -> list[str]:
    """What was done, then the warnings."""
    said = [
        "not calibrated, and not checked by BBSE: that takes labelled photos that were not trained "
        "on (--fit HOLDOUT)"
    ]
    if held_out is not None:
        said = [_calibration_note(found, held_out), *_not_held_out_note(held_out)]
    strength = found.pseudo_counts
    smoothing = f"smoothed as by {strength:g} photos a species" if strength else "not smoothed"
    said.append(
        f"estimated by {found.n_iterations} steps of EM, {smoothing}: {found.shift:.1%} of the "
        f"prior is moved, ±{found.spread:.1%} by the choice of photos"
    )
    return said + [f"warning: {sentence}" for sentence in warnings(found, n_photos)]


def warnings(found: LabelShift, n_photos: int) -> list[str]:
    """What speaks against the estimate."""
    said = []
    if not found.converged:
        said.append(f"EM still moves after {found.n_iterations} steps; the estimate is rough")
    if not found.is_stable:
        said.append(
            f"the estimate is unstable, the {n_photos:,} photos bear out no shift: moved "
            f"{found.shift:.1%}, by their choice alone ±{found.spread:.1%}, gain on photos left "
            f"out {found.gain:.3f} nats"
        )
    if found.check is not None and not found.check.agrees:
        said.append(
            f"EM and BBSE disagree: EM's prior leaves {found.check.unexplained:.1%} of the "
            "predicted species unexplained, where a pure shift of the species' shares leaves at "
            f"most {found.check.by_chance:.1%}; these photos may look other than the held-out "
            "ones, or the model knows the tail too badly to be calibrated"
        )
    return said


def _calibration_note(found: LabelShift, held_out: PredictionFile) -> str:
    calibration = found.calibration
    return (
        f"calibrated on the {len(held_out):,} photos of {held_out.path}: temperature "
        f"{calibration.temperature:.2f}, negative log-likelihood {calibration.nll_before:.3f} -> "
        f"{calibration.nll:.3f}"
    )


def _not_held_out_note(held_out: PredictionFile) -> list[str]:
    names = held_out.absent_species["name"].tolist()
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        f"{len(names)} of {held_out.n_classes} species have no photo there, so their calibration "
        f"rests on those of the others: {shown}"
    ]

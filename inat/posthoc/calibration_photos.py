"""The labelled photos that a prediction is calibrated on: of the same model, never trained on."""

import numpy as np
from jaxtyping import Float

from inat.core.errors import InputError
from inat.core.priors import drawn_shift
from inat.predictions.file import PredictionFile, store
from inat.predictions.meta import Role
from inat.predictions.same_model import differences


def check_calibration_photos(prediction: PredictionFile, held_out: PredictionFile) -> None:
    """Refuses photos of another model, predicted in another way, without a label, or trained on."""
    n_photos, folds = len(held_out), held_out.meta.folds
    first = next(differences(prediction.meta, held_out.meta, "same config"), None)
    wrong = f"its {first} is not that of {prediction.path}" if first else ""
    if prediction.category_ids.tolist() != held_out.category_ids.tolist():
        wrong = f"its list of species is not that of {prediction.path}"
    elif first in ("run", "members' run") and folds:
        wrong = (
            f"its {len(folds)} folds are neither what made {prediction.path} nor known to be of "
            "the same config"
        )
    elif not wrong and (prediction.logits_prior is None) != (held_out.logits_prior is None):
        wrong = f"which prior its logits carry is known of it or of {prediction.path} alone"
    if wrong:
        raise InputError(
            f"{held_out.path}: {wrong}; "
            "calibrate on a prediction of the same model, made and adjusted in the same way"
        )
    if n_photos < 2:
        raise InputError(f"{held_out.path}: has {n_photos} photos, too few to calibrate on")
    if (held_out.labels < 0).any():
        raise InputError(
            f"{held_out.path}: {(held_out.labels < 0).sum()} of its {n_photos} photos have no "
            "label; calibrate on the held-out part or val"
        )
    if trained_on := int((held_out.roles == Role.TRAINED_ON).sum()):
        raise InputError(
            f"{held_out.path}: {trained_on} of its {n_photos} photos were trained on, where a "
            "model is surer than elsewhere; calibrate on the held-out part or val"
        )


def calibration_logits(
    prediction: PredictionFile, held_out: PredictionFile
) -> Float[np.ndarray, "held classes"]:
    """The logits to calibrate on, at the class prior that the prediction's carry: out-of-fold
    logits carry the mean of the folds' priors, and are then copied."""
    carried, wanted = held_out.logits_prior, prediction.logits_prior
    if carried is None or wanted is None or np.allclose(carried, wanted, rtol=1e-6):
        return held_out.logits
    shift = drawn_shift(carried, wanted)
    moved = np.empty_like(held_out.logits)
    for chunk in held_out.chunks():
        moved[chunk] = store(held_out.read(chunk) + shift, moved.dtype)
    return moved

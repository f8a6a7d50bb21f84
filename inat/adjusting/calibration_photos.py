"""The labelled photos that a prediction is calibrated on: of the same model, never trained on."""

from inat.errors import InputError
from inat.prediction_file import PredictionFile
from inat.same_model import differences


def check_calibration_photos(prediction: PredictionFile, held_out: PredictionFile) -> None:
    """Refuses photos that a prediction cannot be calibrated on.

    Raises:
        InputError: they are of another model or were predicted in another way; a photo has no
            label or was trained on.
    """
    n_photos = len(held_out)
    if differing := _difference(prediction, held_out):
        raise InputError(
            f"{held_out.path}: its {differing} is not that of {prediction.path}; "
            "calibrate on a prediction of the same model, made and adjusted in the same way"
        )
    if n_photos < 2:
        raise InputError(f"{held_out.path}: has {n_photos} photos, too few to calibrate on")
    if (held_out.labels < 0).any():
        raise InputError(
            f"{held_out.path}: {(held_out.labels < 0).sum()} of its {n_photos} photos have no "
            "label; calibrate on the held-out part or val"
        )
    if trained_on := int((held_out.photos["role"] == "trained on").sum()):
        raise InputError(
            f"{held_out.path}: {trained_on} of its {n_photos} photos were trained on, where a "
            "model is surer than elsewhere; calibrate on the held-out part or val"
        )


def calibrated_how(held_out: PredictionFile) -> str:
    """What the calibration was chosen by, for `chosen` in meta.json."""
    return f"negative log-likelihood on the {len(held_out)} photos of {held_out.path}"


def _difference(one: PredictionFile, other: PredictionFile) -> str | None:
    """The first thing in which the models or the making of two predictions differ."""
    if one.category_ids.tolist() != other.category_ids.tolist():
        return "list of species"
    return next(differences(one.meta, other.meta), None)

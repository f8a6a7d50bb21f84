"""Which score to expect of a submission: that of the same model on photos with known species."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inat.core.competitions import Competition
from inat.core.errors import InputError
from inat.core.intervals import Interval, accuracy_interval
from inat.core.metrics import hits_at, macro_f1
from inat.evaluation.seen_photos import roles_for
from inat.predictions.file import PredictionFile, read_prediction
from inat.predictions.meta import Role
from inat.predictions.same_model import differences


@dataclass(frozen=True)
class Estimate:
    """The score to expect, in the competition's metric.

    Attributes:
        metric: top-3 error, macro F1 ...
        value: the score on the photos at hand.
        low: lower end of its 95 % interval, found as `evaluate` does.
        high: upper end.
        prediction: path of the prediction that was scored.
        photos: how many photos it has.
        role: what the model knew of them: unseen, held out (of train), chosen on (something was
            chosen on them, so that the estimate flatters).
        mean_over: photos, or species where the photos were held out of train: train's long tail
            is not the test's.
        species_without_photo: how many species have none there.
        made_otherwise: in what the prediction that was scored was made otherwise than the one that
            is submitted: run, views, history of adjustments ...
    """

    metric: str
    value: float
    low: float
    high: float
    prediction: str
    photos: int
    role: str
    mean_over: str
    species_without_photo: int
    made_otherwise: tuple[str, ...] = ()

    def line(self) -> str:
        """The estimate as one sentence."""
        flatters = "; chosen on them, it flatters" if self.role == Role.CHOSEN_ON else ""
        lacking = (
            f"; {self.species_without_photo} species have none there"
            if self.species_without_photo
            else ""
        )
        differs = (
            "; that prediction differs from the submitted one in "
            f"{', '.join(self.made_otherwise)}, and so may the score"
            if self.made_otherwise
            else ""
        )
        return (
            f"expected {self.metric}: {self.value:.4f} (95 % interval {self.low:.4f} to "
            f"{self.high:.4f}), mean over {self.mean_over}, on the {self.photos:,} {self.role} "
            f"photos of {self.prediction}{flatters}{lacking}{differs}"
        )


def estimate(
    prediction: PredictionFile, spec: Competition, on: Path | str | PredictionFile | None = None
) -> Estimate | str:
    """The score that a submission of this prediction may expect, or why nothing tells it.

    Args:
        prediction: of the test split.
        spec: the competition.
        on: labelled prediction; what is made otherwise in it is said. None: the prediction itself
            if its labels are known, or else the best of those in the same folder that the same
            checkpoint, views and adjustments made.

    Raises:
        InputError: `on` has other species, lacks labels, or was trained on.
    """
    if on is None:
        found = [
            (other, role)
            for other in _beside(prediction)
            if (role := _role(other, prediction)) is not None
        ]
        if not found:
            return (
                f"no labelled prediction of the same making lies beside {prediction.path}; predict "
                "val or holdout in the same way, or name one by --estimate-on"
            )
        best = min(found, key=lambda one: (one[1].rank, -len(one[0])))
        return _score(*best, spec)
    source = read_prediction(on)
    role = _role(source, prediction)
    if role is None:
        raise InputError(
            f"--estimate-on {source.path}: its photos have no labels, or were trained on; predict "
            "val or holdout"
        )
    if not np.array_equal(source.category_ids, prediction.category_ids):
        raise InputError(f"--estimate-on {source.path}: its species are not {prediction.path}'s")
    otherwise = dict.fromkeys(differences(prediction.meta, source.meta, "same config"))
    return _score(source, role, spec, tuple(otherwise))


def _beside(prediction: PredictionFile) -> Iterator[PredictionFile]:
    """The prediction itself, and those of the same making in its folder."""
    yield prediction
    for meta_path in sorted(prediction.path.parent.glob("*/meta.json")):
        if meta_path.parent.name == prediction.path.name:
            continue
        try:
            other = read_prediction(meta_path.parent)
        except InputError:  # whatever else lies there is none of ours
            continue
        if _is_alike(other, prediction):
            yield other


def _is_alike(other: PredictionFile, prediction: PredictionFile) -> bool:
    if not np.array_equal(other.category_ids, prediction.category_ids):
        return False
    if other.meta.logits_prior != prediction.meta.logits_prior:
        return False
    return next(differences(other.meta, prediction.meta), None) is None


def _role(source: PredictionFile, submitted: PredictionFile) -> Role | None:
    """The worst role of its photos; None where a score on them would say nothing."""
    worst = max(map(Role, np.unique(roles_for(source, submitted))), key=lambda role: role.rank)
    return None if worst == Role.TRAINED_ON or (source.labels < 0).any() else worst


def _score(
    source: PredictionFile, role: Role, spec: Competition, made_otherwise: tuple[str, ...] = ()
) -> Estimate:
    labels, guesses = source.labels, source.top_k(spec.n_scored)
    over = "photos" if role == Role.UNSEEN else "species"
    interval: Interval | None
    if spec.metric == "macro F1":
        over, interval = "species", macro_f1(guesses[:, 0], labels)
    else:
        errors = ~hits_at(guesses, labels, spec.n_scored)
        interval = accuracy_interval(
            errors, labels, over="images" if over == "photos" else "classes"
        )
    assert interval is not None
    return Estimate(
        metric=spec.metric_name,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        prediction=str(source.path),
        photos=len(source),
        role=role,
        mean_over=over,
        species_without_photo=source.n_classes - len(np.unique(labels)),
        made_otherwise=made_otherwise,
    )

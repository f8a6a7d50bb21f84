"""Which score to expect of a submission: that of the same model on photos with known species."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inat.core.competitions import Competition, find_competition
from inat.core.errors import InputError
from inat.core.intervals import Interval, accuracy_interval
from inat.core.metrics import hits_at, macro_f1
from inat.evaluation.seen_photos import roles_for
from inat.predictions.file import PredictionFile, read_prediction
from inat.predictions.meta import Role
from inat.predictions.same_model import differences


@dataclass(frozen=True)
class Estimate:
    """The score to expect, in the competition's metric."""

    metric: str  # top-3 error, macro F1 ...
    # On the photos at hand with its 95 % interval, found as `evaluate` does: that of a test whose
    # photos have the species mix of these photos.
    expected: Interval
    # The same as a mean over species: that of a test with as many photos of each; None for macro
    # F1, which is a mean over species already.
    balanced: Interval | None
    prediction: str  # path of the prediction that was scored
    photos: int
    role: str  # unseen, held out (of train), chosen on (something was, so the estimate flatters)
    species_without_photo: int
    # How the scored prediction differs from the submitted one: run, views, adjustments ...
    made_otherwise: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The estimate, what it assumes, and that of a balanced test, for a terminal."""
        text = (
            f"expected {self.metric}: {_with_interval(self.expected)} on the {self.photos:,} "
            f"{self.role} photos of {self.prediction}"
        )
        if self.role == Role.CHOSEN_ON:
            text += "; chosen on them, it flatters"
        if self.species_without_photo:
            text += f"; {self.species_without_photo} species have none there"
        if self.made_otherwise:
            text += (
                "; that prediction differs from the submitted one in "
                f"{', '.join(self.made_otherwise)}, and so may the score"
            )
        lines = [text, "  this holds if the test photos have the species mix of these photos"]
        if self.balanced is not None:
            lines.append(
                f"  mean over species: {_with_interval(self.balanced)}, for a test with as many "
                "photos of each species"
            )
        return lines


def _with_interval(score: Interval) -> str:
    return f"{score.value:.4f} (95 % interval {score.low:.4f} to {score.high:.4f})"


def estimate_score(
    prediction: Path | str | PredictionFile,
    *,
    on: Path | str | PredictionFile | None = None,
    competition: str | None = None,
) -> Estimate:
    """Estimates the score of a submission: that of the same model on labeled photos.

    It holds if the test photos have the species mix of these photos; the mean over species is the
    score of a test with as many photos of each species.

    Args:
        prediction: a prediction file of the test split.
        on: a labeled prediction, of photos that were not trained on (val, holdout, oof); in what
            it was made otherwise is stated. None: the prediction itself if its labels are known,
            or else the best of those in the same folder that the same checkpoint, views and
            adjustments made.
        competition: Kaggle name; None: the prediction's own.

    Raises:
        InputError: there is no such prediction; `on` has other species, lacks labels, or was
            trained on.
    """
    prediction = read_prediction(prediction)
    spec = find_competition(competition or prediction.meta.competition)
    if on is None:
        found = [
            (other, role)
            for other in _beside(prediction)
            if (role := _role(other, prediction)) is not None
        ]
        if not found:
            raise InputError(
                f"no labelled prediction of the same making lies beside {prediction.path}; predict "
                "val or holdout in the same way, or name one by --on"
            )
        return _score(*min(found, key=lambda one: (one[1].rank, -len(one[0]))), spec)
    source = read_prediction(on)
    role = _role(source, prediction)
    if role is None:
        raise InputError(
            f"--on {source.path}: its photos have no labels, or were trained on; predict val or "
            "holdout"
        )
    if not np.array_equal(source.category_ids, prediction.category_ids):
        raise InputError(f"--on {source.path}: its species are not {prediction.path}'s")
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
        if (
            np.array_equal(other.category_ids, prediction.category_ids)
            and other.meta.logits_prior == prediction.meta.logits_prior
            and next(differences(other.meta, prediction.meta), None) is None
        ):
            yield other


def _role(source: PredictionFile, submitted: PredictionFile) -> Role | None:
    """The worst role of its photos; None where a score on them would say nothing."""
    worst = max(map(Role, np.unique(roles_for(source, submitted))), key=lambda role: role.rank)
    return None if worst == Role.TRAINED_ON or (source.labels < 0).any() else worst


def _score(
    source: PredictionFile, role: Role, spec: Competition, made_otherwise: tuple[str, ...] = ()
) -> Estimate:
    labels, guesses = source.labels, source.top_k(spec.n_scored)
    balanced = None
    if spec.metric == "macro F1":
        expected = macro_f1(guesses[:, 0], labels)
    else:
        errors = ~hits_at(guesses, labels, spec.n_scored)
        expected = accuracy_interval(errors, labels, over="images")
        balanced = accuracy_interval(errors, labels, over="classes")
    assert expected is not None
    return Estimate(
        metric=spec.metric_name,
        expected=expected,
        balanced=balanced,
        prediction=str(source.path),
        photos=len(source),
        role=role,
        species_without_photo=source.n_classes - len(np.unique(labels)),
        made_otherwise=made_otherwise,
    )

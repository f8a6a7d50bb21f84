"""Chooses how much of the class prior to take off logits, on photos that were held out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from inat.core.errors import InputError
from inat.core.intervals import Interval, gain_interval
from inat.core.metrics import class_means, mean_of
from inat.core.priors import Prior
from inat.core.progress import first_few
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Role

GRID = np.linspace(0, 2, 21)
"""What tau is chosen from."""

FARTHEST_PRIOR = 0.1
"""Total variation between the priors of a model's predictions; the folds of one training, and a
run on all of their photos, differ by less."""


@dataclass(frozen=True, eq=False)
class TauChoice:
    tau: float  # the first of the best of GRID
    scores: Float64[np.ndarray, "taus"]  # mean class accuracy, over the species that have photos
    gain: Interval  # over tau 0, on the same photos: the fewer they are, the more optimistic
    photos: PredictionFile  # that it was chosen on

    @property
    def never_held_out(self) -> list[int]:
        """Category ids of the species that had no say in it."""
        return self.photos.absent_species["category_id"].tolist()

    @property
    def how(self) -> str:
        return f"mean class accuracy on the {len(self.photos):,} photos of {self.photos.path}"

    def notes(self) -> list[str]:
        lines = [
            f"tau {self.tau:g} of {GRID[0]:g} to {GRID[-1]:g} has the best {self.how}: "
            f"{self.scores.max():.3f} (tau 0: {self.scores[0]:.3f}; {self.gain.points()}, "
            "flattered by the choice)"
        ]
        names = self.photos.absent_species["name"].tolist()
        if names:
            lines.append(
                f"species never held out, which had no say in it: {len(names)} ({first_few(names)})"
            )
        return lines


def choose_tau(photos: PredictionFile, prior: Prior) -> TauChoice:
    """The tau with the best mean class accuracy of `argmax f - tau log prior` on photos that were
    held out; the prior is above 0 throughout."""
    if not len(photos) or (photos.labels < 0).any():
        raise InputError(
            f"{photos.path}: {(photos.labels < 0).sum()} of its {len(photos)} photos have no "
            "label; choose tau on a prediction of holdout or oof (--fit)"
        )
    roles = photos.photos["role"]
    other = roles[~roles.isin((Role.HELD_OUT.value, Role.CHOSEN_ON.value))]
    if len(other):
        raise InputError(
            f"{photos.path}: {len(other)} of its {len(photos)} photos were not held out but "
            f"{other.iloc[0]}; choose tau on a prediction of holdout or oof (--fit), so that val "
            "and test stay unseen"
        )
    hits = hits_of_taus(photos, prior)
    everyone = np.ones(photos.n_classes, bool)
    by_class = [class_means(row, photos.labels, photos.n_classes) for row in hits]
    scores = np.array([mean_of(means, everyone) for means in by_class])
    best = int(scores.argmax())
    gain = gain_interval(hits[0], hits[best], photos.labels)
    assert gain is not None  # there are photos
    return TauChoice(round(float(GRID[best]), 3), scores, gain, photos)


def hits_of_taus(photos: PredictionFile, prior: Prior) -> Bool[np.ndarray, "taus photos"]:
    """The photos that each tau of GRID gets right."""
    log_prior = np.log(prior).astype(np.float32)
    hits = np.empty((len(GRID), len(photos)), bool)
    for chunk in photos.chunks():
        logits = photos.read(chunk)
        moved = np.empty_like(logits)
        for row, tau in enumerate(GRID):
            np.subtract(logits, np.float32(tau) * log_prior, out=moved)
            hits[row, chunk] = moved.argmax(axis=1) == photos.labels[chunk]
    return hits


def refuse_other_model(
    prediction: PredictionFile, prior: Prior, fit: PredictionFile, fit_prior: Prior
) -> None:
    """Refuses to choose tau on predictions of other species or another prior."""
    if prediction.category_ids.tolist() != fit.category_ids.tolist():
        raise InputError(
            f"{fit.path}: its species are not those of {prediction.path}; "
            "give --fit a prediction of the same model"
        )
    distance = np.abs(prior - fit_prior).sum() / 2
    if distance > FARTHEST_PRIOR:
        raise InputError(
            f"{fit.path}: its logits carry another class prior than those of {prediction.path} "
            f"({distance:.2f} apart in total variation); give --fit a prediction of the same "
            "model, adjusted in the same way"
        )

"""The members of an ensemble, put in one order, and how their guesses become one.

Each rule is a weighted mean of what it makes of a member's logits, and a last step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from inat.core.errors import InputError
from inat.core.priors import tau_shift
from inat.posthoc.adjust import carried_prior
from inat.predictions.file import PredictionFile, rows_of_photos
from inat.predictions.meta import Role

RANK_DEPTH = 100
"""Guesses of a member that are told apart by their rank: deep ranks are noise at 8,142 species."""


@dataclass(frozen=True, eq=False)
class Member:
    prediction: PredictionFile
    rows: Int64[np.ndarray, "images"] | None  # of the ensemble's photos; None: the same order
    shift: Float32[np.ndarray, "classes"]  # that moves its logits to the uniform prior

    def logits(self, chunk: slice) -> Float32[np.ndarray, "rows classes"]:
        """Logits of a few of the ensemble's photos, moved to the uniform prior: a copy."""
        logits = self.prediction.read(chunk if self.rows is None else self.rows[chunk])
        logits += self.shift
        return logits

    @property
    def labels(self) -> Int64[np.ndarray, "images"]:
        """True labels in the ensemble's order, -1 where unknown."""
        labels = self.prediction.labels
        return labels if self.rows is None else labels[self.rows]

    @property
    def roles(self) -> np.ndarray:
        """The role of each of the ensemble's photos, as text."""
        roles = self.prediction.roles
        return roles if self.rows is None else roles[self.rows]


def align(
    predictions: Sequence[PredictionFile], from_prior: Path | str | None = None
) -> list[Member]:
    """The predictions as members, photos in the first one's order; an InputError if two differ in
    photos, labels, species, competition or training photos, one is a geo prior's, or a prior is not
    known."""
    for prediction in predictions:
        if prediction.meta.is_log_presence:
            raise InputError(
                f"{prediction.path}: is of a geo prior, whose log presence is added to logits and "
                "not averaged with them; add it to the ensemble with inat adjust --geo"
            )
    members: list[Member] = []
    for prediction in predictions:
        rows = rows_of_photos(prediction, predictions[0])
        in_order = np.array_equal(rows, np.arange(len(rows)))
        is_known = prediction.logits_prior is not None
        prior = carried_prior(prediction, None if is_known else from_prior)
        shift = tau_shift(prior, 1.0).astype(np.float32)
        members.append(Member(prediction, None if in_order else rows, shift))
    for member in members[1:]:
        _refuse_another_truth(member, members[0])
    return members


def _refuse_another_truth(member: Member, first: Member) -> None:
    path, other = member.prediction.path, first.prediction.path
    competitions = [m.prediction.meta.competition for m in (member, first)]
    if competitions[0] != competitions[1]:
        raise InputError(
            f"{path}: it is of competition {competitions[0]}, and {other} of {competitions[1]}; "
            "give predictions of one"
        )
    if not np.array_equal(member.prediction.train_counts, first.prediction.train_counts):
        raise InputError(
            f"{path}: its species' train counts are not those of {other}; "
            "give predictions of runs on one data set"
        )
    known = (member.labels >= 0) & (first.labels >= 0)
    wrong = known & (member.labels != first.labels)
    if wrong.any():
        raise InputError(
            f"{path}: photo {first.prediction.ids[wrong][0]} has another label there than in "
            f"{other}; give predictions of runs on one data set"
        )
    differing: Bool[np.ndarray, images] = (member.roles == Role.TRAINED_ON) != (
        first.roles == Role.TRAINED_ON
    )
    if differing.any():
        raise InputError(
            f"{path}: {differing.sum()} of its {len(first.prediction)} photos were trained on by "
            f"one and held out by the other of it and {other}; give runs with the same "
            "data.holdout and data.holdout_seed"
        )


def pool(
    how: str,
    members: Iterable[Float32[np.ndarray, "images classes"]],
    weights: Sequence[float],
    temperatures: Sequence[float],
) -> Float32[np.ndarray, "images classes"]:
    """The ensemble's scores, up to a constant per row; works in the members' own memory, one at a
    time; the weights sum to 1.

    mean_logprob is sum_m w_m log softmax(z_m / T_m), mean_prob is log sum_m w_m softmax(z_m / T_m),
    rank is -sum_m w_m min(rank_m, 100), where rank_m is the number of classes that member m puts
    above: 0 is its best, and ties share the better rank.
    """
    total: Float32[np.ndarray, "images classes"] | None = None
    for logits, weight, temperature in zip(members, weights, temperatures, strict=True):
        # mean_logprob: a log-probability is the logit less a constant of the row.
        part = logits
        if how == "rank":
            part = minus_rank(logits)
        else:
            part /= np.float32(temperature)
        if how == "mean_prob":
            part -= part.max(axis=1, keepdims=True)
            np.exp(part, out=part)
            part /= part.sum(axis=1, keepdims=True)
        part *= np.float32(weight)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return finish(how, total)


def finish(how: str, mean: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The last step of a rule, in place: mean_prob's logarithm."""
    if how == "mean_prob":
        np.maximum(mean, np.finfo(np.float32).tiny, out=mean)
        np.log(mean, out=mean)
    return mean


def minus_rank(
    logits: Float32[np.ndarray, "images classes"],
) -> Float32[np.ndarray, "images classes"]:
    """Minus the number of classes above each class, at most RANK_DEPTH."""
    depth = min(RANK_DEPTH, logits.shape[1])
    ranks = np.full_like(logits, -depth)
    for row, minus in zip(ranks, -logits, strict=True):
        best = np.sort(np.partition(minus, depth - 1)[:depth])
        among = np.flatnonzero(minus <= best[-1])
        row[among] = -np.searchsorted(best, minus[among])
    return ranks

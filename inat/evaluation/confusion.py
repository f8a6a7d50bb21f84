"""What is taken for what: confused pairs, the tail's worst mistakes, favoured bands."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from inat.evaluation.outcomes import Outcomes

N_PAIRS = 100
N_MISTAKES = 100
N_PHOTOS = 4


@dataclass(frozen=True)
class ConfusedSpecies:
    category_id: int
    n: int  # its photos here
    mistaken: int  # those that are taken for the other
    image_ids: list[int]  # up to four: the mistaken ones first, the most confident before


@dataclass(frozen=True)
class ConfusedPair:
    """Two species that are taken for each other, the one more often mistaken first."""

    n: int  # photos of either that are taken for the other
    first: ConfusedSpecies
    second: ConfusedSpecies


@dataclass(frozen=True)
class Mistake:
    image_id: int
    category_id: int  # of the true species
    guessed: int  # category id of the first guess
    confidence: float  # probability of the first guess
    true_probability: float  # of the true species


@dataclass(frozen=True)
class PredictionBias:
    """Whether a band's species are predicted as often as they occur."""

    occurring: float  # share of the photos that are of the band's species
    predicted: float  # share of the first guesses that are
    ratio: float | None  # predicted / occurring; None where no photo is of the band


def confused_pairs(
    outcomes: Outcomes, category_ids: Int64[np.ndarray, "classes"]
) -> list[ConfusedPair]:
    """The 100 pairs of species with the most photos mistaken for each other, the most first; of
    equals, the pair with the lower category ids."""
    wrong = np.flatnonzero(~outcomes.hits)
    true, guessed = outcomes.labels[wrong].tolist(), outcomes.guessed[wrong].tolist()
    taken = Counter(zip(true, guessed, strict=True))
    pairs = Counter((min(a, b), max(a, b)) for a, b in zip(true, guessed, strict=True))
    most = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:N_PAIRS]
    order = np.argsort(outcomes.labels, kind="stable")
    first = np.searchsorted(outcomes.labels[order], np.arange(len(category_ids) + 1))

    def side(one: int, other: int) -> ConfusedSpecies:
        photos = order[first[one] : first[one + 1]]
        is_right = outcomes.guessed[photos] != other
        shown = photos[np.lexsort((-outcomes.confidence[photos], is_right))][:N_PHOTOS]
        image_ids = outcomes.ids[shown].tolist()
        return ConfusedSpecies(int(category_ids[one]), len(photos), taken[one, other], image_ids)

    return [
        ConfusedPair(
            pairs[pair], *sorted((side(*pair), side(*pair[::-1])), key=lambda s: -s.mistaken)
        )
        for pair in most
    ]


def worst_mistakes(
    outcomes: Outcomes,
    category_ids: Int64[np.ndarray, "classes"],
    members: Bool[np.ndarray, "classes"],
) -> list[Mistake]:
    """The 100 wrong photos of the member species whose wrong guess is the most confident."""
    wrong = np.flatnonzero(~outcomes.hits & members[outcomes.labels])
    worst = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:N_MISTAKES]
    return [
        Mistake(
            image_id=int(outcomes.ids[row]),
            category_id=int(category_ids[outcomes.labels[row]]),
            guessed=int(category_ids[outcomes.guessed[row]]),
            confidence=float(outcomes.confidence[row]),
            true_probability=float(outcomes.true_probability[row]),
        )
        for row in worst
    ]


def prediction_bias(outcomes: Outcomes, members: Bool[np.ndarray, "classes"]) -> PredictionBias:
    """How often the member species are predicted against how often they occur."""
    occurring = float(members[outcomes.labels].mean())
    predicted = float(members[outcomes.guessed].mean())
    return PredictionBias(occurring, predicted, predicted / occurring if occurring else None)

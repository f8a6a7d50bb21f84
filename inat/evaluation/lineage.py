"""How far from the truth the mistakes are in the tree of life."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from inat.core.intervals import Interval, accuracy_interval
from inat.dataset.taxonomy import RANKS, Taxonomy
from inat.evaluation.outcomes import Outcomes


@dataclass(frozen=True)
class RankAccuracy:
    """How often the guessed species is of the true one's group at a rank."""

    rank: str  # genus, family, order, class, phylum or kingdom
    n_groups: int
    accuracy: Interval  # share of the photos whose guess is of the right group
    of_mistakes: float | None  # the same of the photos whose species is wrong


@dataclass(frozen=True)
class MistakeDistance:
    """How far the guessed species of the wrong photos are from the true ones: the height of the
    lowest common ancestor above the species (Bertinetto et al. 2020, arXiv 1912.09393), counted in
    the ranks that the data set gives: 1 for a species of the same genus, 2 of the same family, and
    one more than there are ranks for another kingdom."""

    mean: float | None  # over the wrong photos
    counts: dict[str, int]  # wrong photos by the rank of the lowest common ancestor, root last


def given_ranks(species: pd.DataFrame) -> list[str]:
    return [rank for rank in reversed(RANKS) if rank in species and (species[rank] != "").any()]


def rank_accuracies(outcomes: Outcomes, species: pd.DataFrame) -> list[RankAccuracy]:
    """The accuracy at each rank that the data set gives, from genus up. A group is known by its
    whole lineage; a species whose rank is not given shares its group with no other."""
    found = []
    for rank in given_ranks(species):
        right = _same_group(outcomes, species, rank)
        accuracy = accuracy_interval(right, outcomes.labels, over="images")
        assert accuracy is not None
        mistakes = right[~outcomes.hits]
        n_groups = len(np.unique(_groups(species, rank)[(species[rank] != "").to_numpy(bool)]))
        of_mistakes = float(mistakes.mean()) if len(mistakes) else None
        found.append(RankAccuracy(rank, n_groups, accuracy, of_mistakes))
    return found


def mistake_distance(outcomes: Outcomes, species: pd.DataFrame) -> MistakeDistance | None:
    """The distance of the mistakes; None where the data set gives no ranks."""
    ranks = given_ranks(species)
    if not ranks:
        return None
    wrong = ~outcomes.hits
    height = np.full(int(wrong.sum()), len(ranks) + 1)
    for place in range(len(ranks), 0, -1):  # the lowest rank that agrees has the last word
        height[_same_group(outcomes, species, ranks[place - 1])[wrong]] = place
    counts = np.bincount(height, minlength=len(ranks) + 2)[1:]
    return MistakeDistance(
        mean=float(height.mean()) if len(height) else None,
        counts=dict(zip([*ranks, "root"], counts.tolist(), strict=True)),
    )


def _same_group(outcomes: Outcomes, species: pd.DataFrame, rank: str) -> Bool[np.ndarray, "images"]:
    groups = _groups(species, rank)
    given = (species[rank] != "").to_numpy(bool)
    true, guessed = outcomes.labels, outcomes.guessed
    same = groups[true] == groups[guessed]
    return (same & given[true]) | outcomes.hits


def _groups(species: pd.DataFrame, rank: str) -> Int64[np.ndarray, "classes"]:
    # Ranks above that the file lacks are one name for all: they tell no two groups apart.
    whole = species.assign(**{name: "" for name in RANKS if name not in species})
    return Taxonomy(whole).rank_groups(rank)[0]

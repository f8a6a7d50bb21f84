"""Accuracy of groups of species: deciles of their train count, supercategories."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from inat.core.intervals import Interval, accuracy_interval
from inat.evaluation.outcomes import Outcomes


@dataclass(frozen=True)
class GroupAccuracy:
    """How well a group of species is recognised.

    Attributes:
        name: of the group.
        n_species: species of the group that have photos here.
        train_count_min: fewest training photos of a species of the group.
        train_count_max: most training photos of a species of the group.
        accuracy: mean over its species of their top-1 accuracy; None where none has a photo.
    """

    name: str
    n_species: int
    train_count_min: int
    train_count_max: int
    accuracy: Interval | None


def decile_accuracies(
    outcomes: Outcomes, train_counts: Int64[np.ndarray, "classes"]
) -> list[GroupAccuracy]:
    """Accuracies of ten groups of equally many species, from the fewest training photos on.

    Species of equal count are taken in the order of their category id; what cannot be shared
    equally goes to the first deciles. Fewer than ten species make fewer groups.
    """
    order = np.argsort(train_counts, kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    return [
        _group_accuracy(str(place), outcomes, train_counts, _members(part, len(train_counts)))
        for place, part in enumerate(parts, start=1)
    ]


def supercategory_accuracies(outcomes: Outcomes, species: pd.DataFrame) -> list[GroupAccuracy]:
    """Accuracies of the supercategories, by name; none where the species have no supercategory."""
    if "supercategory" not in species:
        return []
    train_counts = species["train_count"].to_numpy(np.int64)
    return [
        _group_accuracy(
            name, outcomes, train_counts, (species["supercategory"] == name).to_numpy(bool)
        )
        for name in sorted(set(species["supercategory"]) - {""})
    ]


def _members(labels: Int64[np.ndarray, "some"], n_classes: int) -> Bool[np.ndarray, "classes"]:
    members = np.zeros(n_classes, bool)
    members[labels] = True
    return members


def _group_accuracy(
    name: str,
    outcomes: Outcomes,
    train_counts: Int64[np.ndarray, "classes"],
    members: Bool[np.ndarray, "classes"],
) -> GroupAccuracy:
    return GroupAccuracy(
        name=name,
        n_species=len(np.unique(outcomes.labels[members[outcomes.labels]])),
        train_count_min=int(train_counts[members].min()),
        train_count_max=int(train_counts[members].max()),
        accuracy=accuracy_interval(outcomes.hits, outcomes.labels, members),
    )

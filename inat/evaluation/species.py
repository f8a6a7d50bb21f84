"""How well each species and each group of species is recognized, and means over all of them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from inat.core.intervals import Interval, accuracy_interval, wilson_bounds
from inat.core.metrics import class_means
from inat.evaluation.outcomes import Outcomes

LOWEST = 1e-3
"""What an accuracy of 0 counts as in the harmonic and the geometric mean, which it would make 0."""

N_WORST = 20


@dataclass(frozen=True)
class SpeciesMeans:
    """Means over the species that have photos here."""

    macro_f1: float  # species count too that are predicted and have no photos
    harmonic: float  # of their accuracies (Du and Wu 2023), 0 counting as 0.001
    geometric: float  # of their accuracies, 0 counting as 0.001
    never_right: int  # number of species of which no photo is right


def species_table(
    species: pd.DataFrame, outcomes: Outcomes, bands: dict[str, Bool[np.ndarray, "classes"]]
) -> pd.DataFrame:
    """A row a species, in the order of the labels.

    After the columns of `species` (category_id, name, lineage, train_count):

    - band: its shot band;
    - n: its photos here;
    - hits, top3_hits: those whose first guess, one of whose first three guesses is right;
    - accuracy: hits / n, with low and high: its 95 % interval (Wilson), none below two photos;
    - predicted: photos here whose first guess it is;
    - precision: hits / predicted; f1: 2 hits / (n + predicted);
    - true_probability: mean probability that its photos give it.
    """
    n_classes, labels = len(species), outcomes.labels
    n = np.bincount(labels, minlength=n_classes)
    hits = np.bincount(labels[outcomes.hits], minlength=n_classes)
    predicted = np.bincount(outcomes.guessed, minlength=n_classes)
    accuracy = _quotient(hits, n)
    low, high = wilson_bounds(accuracy, np.where(n > 1, n, np.nan))
    return species.assign(
        band=np.select(list(bands.values()), list(bands), ""),
        n=n,
        hits=hits,
        top3_hits=np.bincount(labels[outcomes.hits_at(3)], minlength=n_classes),
        accuracy=accuracy,
        low=low,
        high=high,
        predicted=predicted,
        precision=_quotient(hits, predicted),
        f1=_quotient(2 * hits, n + predicted),
        true_probability=class_means(outcomes.true_probability, labels, n_classes),
    )


def species_means(table: pd.DataFrame) -> SpeciesMeans:
    tested = table[table["n"] > 0]
    accuracy = np.maximum(tested["accuracy"].to_numpy(np.float64), LOWEST)
    return SpeciesMeans(
        macro_f1=float(table["f1"].mean()),
        harmonic=float(1 / np.mean(1 / accuracy)),
        geometric=float(np.exp(np.mean(np.log(accuracy)))),
        never_right=int((tested["hits"] == 0).sum()),
    )


def worst_species(table: pd.DataFrame) -> list[int]:
    """Category ids of the 20 species with the lowest accuracy, the worst first; of equals, the one
    whose photos give it the least probability."""
    tested = table[table["n"] > 0]
    worst = tested.sort_values(["accuracy", "true_probability", "category_id"])[:N_WORST]
    return [int(category_id) for category_id in worst["category_id"]]


def _quotient(
    part: Int64[np.ndarray, "classes"], whole: Int64[np.ndarray, "classes"]
) -> Float64[np.ndarray, "classes"]:
    quotient: Float64[np.ndarray, classes] = np.full(len(part), np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient


@dataclass(frozen=True)
class GroupAccuracy:
    name: str
    n_species: int  # species of the group that have photos here
    train_count_min: int  # fewest training photos of a species of the group
    train_count_max: int
    accuracy: Interval | None  # mean over its species of top-1; None where none has a photo


def decile_accuracies(
    outcomes: Outcomes, train_counts: Int64[np.ndarray, "classes"]
) -> list[GroupAccuracy]:
    """Accuracies of ten groups of equally many species (fewer below ten), from the fewest training
    photos on; equal counts go by category id, a remainder to the first deciles."""
    order = np.argsort(train_counts, kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    members = [np.isin(np.arange(len(order)), part) for part in parts]
    return [
        _group_accuracy(str(place), outcomes, train_counts, of_part)
        for place, of_part in enumerate(members, start=1)
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

"""How well each species is recognised, and what one number can say of all of them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from inat.core.intervals import wilson_bounds
from inat.core.metrics import class_means
from inat.evaluation.outcomes import Outcomes

LOWEST = 1e-3
"""What an accuracy of 0 counts as in the harmonic and the geometric mean, which it would make 0."""

N_WORST = 20


@dataclass(frozen=True)
class SpeciesMeans:
    """Means over the species that have photos here.

    Attributes:
        macro_f1: of the species' F1, species counting too that are predicted and have no photos.
        harmonic: harmonic mean of their accuracies (Du and Wu 2023), 0 counting as 0.001.
        geometric: geometric mean of their accuracies, 0 counting as 0.001.
        never_right: number of species of which no photo is right.
    """

    macro_f1: float
    harmonic: float
    geometric: float
    never_right: int


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
    """The means of a species table."""
    tested = table[table["n"] > 0]
    accuracy = np.maximum(tested["accuracy"].to_numpy(np.float64), LOWEST)
    return SpeciesMeans(
        macro_f1=float(table["f1"].mean()),
        harmonic=float(1 / np.mean(1 / accuracy)),
        geometric=float(np.exp(np.mean(np.log(accuracy)))),
        never_right=int((tested["hits"] == 0).sum()),
    )


def worst_species(table: pd.DataFrame) -> list[int]:
    """Category ids of the 20 species with the lowest accuracy, the worst first.

    Among equals the one whose photos give it the least probability is worse.
    """
    tested = table[table["n"] > 0]
    worst = tested.sort_values(["accuracy", "true_probability", "category_id"])[:N_WORST]
    return [int(category_id) for category_id in worst["category_id"]]


def _quotient(
    part: Int64[np.ndarray, "classes"], whole: Int64[np.ndarray, "classes"]
) -> Float64[np.ndarray, "classes"]:
    quotient: Float64[np.ndarray, classes] = np.full(len(part), np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient

"""Evaluates a prediction file against its own labels or the organisers' solution."""

from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from inat.core.arrays import csv_cells
from inat.core.bands import BAND_EDGES, BANDS, FEW_BELOW, MANY_ABOVE, BandName
from inat.core.errors import InputError, unknown_name
from inat.core.files import atomic_file, write_json
from inat.core.intervals import Interval, accuracy_interval
from inat.core.metrics import shot_bands
from inat.evaluation.confusion import (
    ConfusedPair,
    Mistake,
    PredictionBias,
    confused_pairs,
    prediction_bias,
    worst_mistakes,
)
from inat.evaluation.lineage import MistakeDistance, RankAccuracy, mistake_distance, rank_accuracies
from inat.evaluation.outcomes import Outcomes, look_at
from inat.evaluation.reliability import Kept, Reliability, kept_at_thresholds, reliability
from inat.evaluation.seen_photos import refuse_seen_photos
from inat.evaluation.solution import read_solution
from inat.evaluation.species import (
    GroupAccuracy,
    SpeciesMeans,
    decile_accuracies,
    species_means,
    species_table,
    supercategory_accuracies,
    worst_species,
)
from inat.predictions.file import PredictionFile, read_prediction
from inat.predictions.meta import Role

FORMAT = 1
TOP_K = (1, 3, 5)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one prediction, as shares; intervals are of 95 %."""

    prediction: Path  # path of the prediction file
    n_images: int  # photos that were scored
    top1: Interval  # share of the photos whose first guess is right
    # Share of the photos whose species is among the first k guesses, by k: 1, 3, 5
    top_k: dict[int, Interval]
    top3_error: float  # share of photos whose species is not among the first three guesses
    mean_class_accuracy: Interval  # mean over the species that have photos of their top-1
    means: SpeciesMeans  # other means over these species
    # Mean class accuracy of each shot band; None where a band has no photo
    bands: dict[str, Interval | None]
    band_species: dict[str, int]  # number of species with photos in each band
    band_edges: tuple[int, int]  # few is below the first, many above the second
    # Mean class accuracy of tenths of the species by train count, the rarest first
    deciles: list[GroupAccuracy]
    supercategories: list[GroupAccuracy]  # mean class accuracy of each supercategory, by name
    ranks: list[RankAccuracy]  # accuracy at each rank of the lineage, from genus up
    # How far the mistakes are from the truth in the lineage; None where the data set gives no
    # lineage
    mistake_distance: MistakeDistance | None
    # Confidence against accuracy of all photos and of each band's; None where a band has no photo
    reliability: dict[str, Reliability | None]
    # Coverage and accuracy at confidence thresholds, of all photos and each band's
    kept_at: dict[str, list[Kept]]
    # How often each band is predicted against how often it occurs
    prediction_bias: dict[str, PredictionBias]
    worst_species: list[int]  # category ids of the species with the lowest accuracy
    # The pairs of species that are most often taken for each other
    confused_pairs: list[ConfusedPair]
    worst_mistakes: list[Mistake]  # the few band's most confident mistakes
    per_class: pd.DataFrame  # a row a species, see `species_table`
    outcomes: Outcomes  # guesses and probabilities of each photo
    notes: list[str]  # sentences that belong beside the figures
    chosen: dict[str, str]  # what was chosen to get the prediction, and on which photos

    @property
    def hits(self) -> Bool[np.ndarray, "images"]:
        """Whether the first guess of each scored photo is right."""
        return self.outcomes.hits

    @property
    def labels(self) -> Int64[np.ndarray, "images"]:
        """The species of each scored photo."""
        return self.outcomes.labels

    @property
    def top3_error_interval(self) -> Interval:
        """The top-3 error with its interval."""
        right = self.top_k[3]
        return Interval(self.top3_error, 1 - right.high, 1 - right.low)

    def to_dict(self) -> dict[str, Any]:
        """The figures as they stand in metrics.json.

        An object with `format` (1) and the attributes of this class but `per_class` and
        `outcomes`, each as its class names its fields: an interval is {value, low, high}.
        `species` holds the columns of `per_class`, each a list in the order of the labels. What is
        unknown is null: the accuracy of a species or band without photos. Species go by category
        id, photos by image id.
        """
        plain = {
            name: plain_json(value)
            for name, value in vars(self).items()
            if name not in ("prediction", "per_class", "outcomes")
        }
        return {
            "format": FORMAT,
            "prediction": str(self.prediction),
            **plain,
            "species": {
                name: column.astype(object).where(column.notna(), None).tolist()
                for name, column in self.per_class.items()
            },
        }

    def save(self, folder: Path) -> None:
        """Writes metrics.json and per_class.csv."""
        write_json(folder / "metrics.json", self.to_dict())
        with atomic_file(folder / "per_class.csv") as partial:
            csv_cells(self.per_class).to_csv(partial, index=False)


def plain_json(value: Any) -> Any:
    """Dataclasses, tuples and keys that are numbers as JSON has them."""
    if isinstance(value, dict):
        return {str(key): plain_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def refuse_other_edges(one: Evaluation, other: Evaluation) -> None:
    if one.band_edges != other.band_edges:
        raise InputError(
            f"{one.prediction} has the band edges {one.band_edges[0]} {one.band_edges[1]} and "
            f"{other.prediction} {other.band_edges[0]} {other.band_edges[1]}; say which: "
            "--bands literature"
        )


def evaluate(
    prediction: Path | str | PredictionFile,
    *,
    solution: Path | str | None = None,
    bands: BandName | None = None,
    band_edges: tuple[int, int] | None = None,
    chosen_here: bool = False,
) -> Evaluation:
    """Measures accuracy, top-3 error, shot bands and more of a prediction.

    Args:
        prediction: a prediction file.
        solution: the organisers' CSV id,expected,usage, for photos whose labels the prediction
            does not know.
        bands: named band edges: literature (few < 20, many > 100) or mislas (few <= 20).
        band_edges: few has fewer training photos than the first, many has more than the second;
            None: the run's data.band_edges.
        chosen_here: evaluate even on photos on which something was chosen; a note says so.

    Raises:
        InputError: no labels, ids that do not match the solution's; half of the photos or more
            were trained on, or had something chosen on them (fewer are copies, and are counted in
            a note); logits that are not finite.
    """
    prediction = read_prediction(prediction)
    edges = _edges(prediction, bands, band_edges)
    labels = _labels(prediction, solution)
    notes = refuse_seen_photos(prediction, chosen_here=chosen_here)
    outcomes = look_at(prediction, labels)
    seen = prediction.roles == Role.TRAINED_ON
    if seen.any():
        notes.append(
            f"{seen.sum():,} of {len(seen):,} photos are copies of photos that were trained on; "
            f"without them top-1 is {outcomes.hits[~seen].mean():.1%}"
        )
    species, category_ids = prediction.species, prediction.category_ids
    members = shot_bands(prediction.train_counts, few_below=edges[0], many_above=edges[1])
    table = species_table(species, outcomes, members)
    photos = {"all": np.ones(len(labels), bool)} | {b: m[labels] for b, m in members.items()}
    accuracy_at = {k: _accuracy(outcomes.hits_at(k), labels, over="images") for k in TOP_K}
    return Evaluation(
        prediction=prediction.path,
        n_images=len(labels),
        top1=accuracy_at[1],
        top_k=accuracy_at,
        top3_error=1 - accuracy_at[3].value,
        mean_class_accuracy=_accuracy(outcomes.hits, labels, over="classes"),
        means=species_means(table),
        bands={b: accuracy_interval(outcomes.hits, labels, m) for b, m in members.items()},
        band_species={b: int((table["n"][m] > 0).sum()) for b, m in members.items()},
        band_edges=edges,
        deciles=decile_accuracies(outcomes, prediction.train_counts),
        supercategories=supercategory_accuracies(outcomes, species),
        ranks=rank_accuracies(outcomes, species),
        mistake_distance=mistake_distance(outcomes, species),
        reliability={name: reliability(outcomes, chosen) for name, chosen in photos.items()},
        kept_at={name: kept_at_thresholds(outcomes, chosen) for name, chosen in photos.items()},
        prediction_bias={b: prediction_bias(outcomes, m) for b, m in members.items()},
        worst_species=worst_species(table),
        confused_pairs=confused_pairs(outcomes, category_ids),
        worst_mistakes=worst_mistakes(outcomes, category_ids, members["few"]),
        per_class=table,
        outcomes=outcomes,
        notes=[*notes, *_notes_on_counts(table)],
        chosen=dict(prediction.meta.chosen),
    )


def _edges(
    prediction: PredictionFile, bands: str | None, edges: tuple[int, int] | None
) -> tuple[int, int]:
    if bands is not None and edges is not None:
        raise InputError(f"bands {bands} and band edges {edges[0]} {edges[1]}: give one of them")
    if bands is not None:
        if bands not in BAND_EDGES:
            raise InputError(unknown_name("bands", bands, BAND_EDGES))
        return BAND_EDGES[bands]
    few_below, many_above = edges or prediction.meta.band_edges or (FEW_BELOW, MANY_ABOVE)
    if not 0 < few_below <= many_above:
        raise InputError(
            f"band edges {few_below} {many_above}: give two numbers above 0, the smaller first"
        )
    return few_below, many_above


def _accuracy(
    hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    *,
    over: Literal["classes", "images"],
) -> Interval:
    interval = accuracy_interval(hits, labels, over=over)
    assert interval is not None  # a prediction without photos was refused
    return interval


def _notes_on_counts(table: pd.DataFrame) -> list[str]:
    notes = []
    alone = table["band"][table["n"] == 1].value_counts()
    if len(alone):
        by_band = ", ".join(f"{band} {alone[band]}" for band in BANDS if band in alone)
        notes.append(
            f"species with one photo here: {alone.sum()} ({by_band}); the intervals take how much "
            "their photos vary from species with as few photos, so they may be a little wide"
        )
    if untested := int((table["n"] == 0).sum()):
        notes.append(f"{untested} of {len(table)} species have no photo here")
    return notes


def _labels(prediction: PredictionFile, solution: Path | str | None) -> Int64[np.ndarray, "images"]:
    if solution is None:
        if (prediction.labels < 0).any():
            raise InputError(
                f"{prediction.path}: {(prediction.labels < 0).sum()} of its photos have no label; "
                "give the organisers' solution (--solution solution.csv)"
            )
        return prediction.labels
    table = read_solution(solution).set_index("id")
    absent = np.setdiff1d(prediction.ids, table.index)
    if len(absent):
        raise InputError(
            f"{solution}: has no row for {len(absent)} of the {len(prediction)} photos of "
            f"{prediction.path} (first: {absent[0]})"
        )
    expected = table.loc[prediction.ids, "expected"].to_numpy()
    place: Int64[np.ndarray, images] = np.minimum(
        np.searchsorted(prediction.category_ids, expected), prediction.n_classes - 1
    )
    stray = prediction.category_ids[place] != expected
    if stray.any():
        raise InputError(
            f"{solution}: expects category {expected[stray][0]}, which {prediction.path} "
            "does not know"
        )
    return place

"""Evaluates a prediction file against its own labels or the organisers' solution."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from inat.bands import FEW_BELOW, MANY_ABOVE
from inat.errors import InputError
from inat.files import atomic_file, write_json
from inat.metrics import (
    Interval,
    bootstrap_interval,
    class_means,
    hits_at,
    shot_bands,
    top_k,
)
from inat.prediction_file import PredictionFile, read_prediction
from inat.solution import read_solution


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one prediction, as shares.

    Attributes:
        prediction: path of the prediction file.
        n_images: photos that were scored.
        top1: mean over photos, with its interval.
        top3_error: share of photos whose species is not among the first three guesses.
        mean_class_accuracy: mean over the species that have photos of their top-1.
        bands: the same over the species of each shot band; None where a band has no photo.
        band_species: number of species with photos in each band.
        band_edges: few is below the first, many above the second.
        per_class: a row a species: category_id, name, lineage, train_count, band, n, hits.
        hits: top-1 hit of each scored photo.
        labels: species of each scored photo.
        notes: sentences that belong beside the figures.
        chosen: what was chosen to get the prediction, and on which photos.
    """

    prediction: Path
    n_images: int
    top1: Interval
    top3_error: float
    mean_class_accuracy: Interval
    bands: dict[str, Interval | None]
    band_species: dict[str, int]
    band_edges: tuple[int, int]
    per_class: pd.DataFrame
    hits: Bool[np.ndarray, "images"]
    labels: Int64[np.ndarray, "images"]
    notes: list[str]
    chosen: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The figures as they stand in metrics.json."""
        return {
            "prediction": str(self.prediction),
            "n_images": self.n_images,
            "top1": vars(self.top1),
            "top3_error": self.top3_error,
            "mean_class_accuracy": vars(self.mean_class_accuracy),
            "bands": {b: None if i is None else vars(i) for b, i in self.bands.items()},
            "band_species": self.band_species,
            "band_edges": list(self.band_edges),
            "notes": self.notes,
            "chosen": self.chosen,
        }

    def save(self, folder: Path) -> None:
        """Writes metrics.json and per_class.csv."""
        write_json(folder / "metrics.json", self.to_dict())
        with atomic_file(folder / "per_class.csv") as partial:
            self.per_class.to_csv(partial, index=False)


def evaluate(
    prediction: Path | str | PredictionFile,
    *,
    solution: Path | str | None = None,
    band_edges: tuple[int, int] | None = None,
    chosen_here: bool = False,
) -> Evaluation:
    """Scores a prediction.

    Args:
        prediction: a prediction file.
        solution: CSV `id,expected,usage` for photos whose labels the prediction does not know.
        band_edges: few has fewer training photos than the first, many has more than the second;
            None: the run's data.band_edges.
        chosen_here: evaluate even on photos on which something was chosen, and say so.

    Raises:
        InputError: no labels, ids that do not match the solution's, photos that were trained on,
            or on which something was chosen.
    """
    if not isinstance(prediction, PredictionFile):
        prediction = read_prediction(prediction)
    few_below, many_above = band_edges or prediction.meta.get("band_edges", (FEW_BELOW, MANY_ABOVE))
    if not 0 < few_below <= many_above:
        raise InputError(
            f"band edges {few_below} {many_above}: give two numbers above 0, the smaller first"
        )
    labels = _labels(prediction, solution)
    notes = _refuse_seen_photos(prediction, chosen_here=chosen_here)
    guesses = guess(prediction, 3)
    hits = hits_at(guesses, labels, 1)
    bands = shot_bands(prediction.train_counts, few_below=few_below, many_above=many_above)
    tested = np.bincount(labels, minlength=prediction.n_classes)
    mean_class = _interval(hits, labels, np.ones(prediction.n_classes, bool))
    assert mean_class is not None
    if alone := int((tested == 1).sum()):
        notes.append(
            f"species with one photo here: {alone}; they count in the figures, but nothing tells "
            "their spread, so the intervals (±) are too narrow by theirs"
        )
    if untested := int((tested == 0).sum()):
        notes.append(f"{untested} of {prediction.n_classes} species have no photo here")
    return Evaluation(
        prediction=prediction.path,
        n_images=len(labels),
        top1=_photo_interval(hits, labels),
        top3_error=1 - float(hits_at(guesses, labels, 3).mean()),
        mean_class_accuracy=mean_class,
        bands={band: _interval(hits, labels, members) for band, members in bands.items()},
        band_species={band: int((members & (tested > 0)).sum()) for band, members in bands.items()},
        band_edges=(few_below, many_above),
        per_class=_per_class(prediction, hits, labels, bands),
        hits=hits,
        labels=labels,
        notes=notes,
        chosen=dict(prediction.meta["chosen"]),
    )


def _interval(
    hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"],
) -> Interval | None:
    interval = bootstrap_interval(hits, labels, members)
    return None if interval is None else interval.within(0, 1)


def guess(prediction: PredictionFile, k: int) -> Int64[np.ndarray, "images k"]:
    """The k likeliest labels of every photo, best first; ties go to the lower category id."""
    return np.concatenate([top_k(prediction.logits[rows], k) for rows in prediction.chunks()])


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


def _refuse_seen_photos(prediction: PredictionFile, *, chosen_here: bool) -> list[str]:
    roles = prediction.photos["role"]
    trained_on = int((roles == "trained on").sum())
    if trained_on:
        raise InputError(
            f"{prediction.path}: {trained_on} of its {len(prediction)} photos were trained on, "
            "and a score on them says nothing; predict val, test or the held-out part"
        )
    chosen_on = int((roles == "chosen on").sum())
    if not chosen_on:
        return []
    chosen = "; ".join(f"{what} by {how}" for what, how in prediction.meta["chosen"].items())
    if not chosen_here:
        raise InputError(
            f"{prediction.path}: on {chosen_on} of its photos something was chosen ({chosen}), so "
            "a score on them flatters; predict val or test, or say --chosen-here"
        )
    return [f"chosen on these very photos: {chosen}; the figures flatter"]


def _photo_interval(
    hits: Bool[np.ndarray, "images"], labels: Int64[np.ndarray, "images"]
) -> Interval:
    """Interval of the mean over photos: photos within a species, species weighted by photos."""
    counts = np.bincount(labels)
    weight = len(counts[counts > 0]) * counts / len(labels)
    interval = bootstrap_interval(hits * weight[labels], labels)
    assert interval is not None
    return interval.within(0, 1)


def _per_class(
    prediction: PredictionFile,
    hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    bands: dict[str, Bool[np.ndarray, "classes"]],
) -> pd.DataFrame:
    n_classes = prediction.n_classes
    band = np.select(list(bands.values()), list(bands), "")
    accuracy = class_means(hits, labels, n_classes)
    return prediction.species.assign(
        band=band,
        n=np.bincount(labels, minlength=n_classes),
        hits=np.bincount(labels, weights=hits, minlength=n_classes).astype(int),
        accuracy=accuracy,
    )

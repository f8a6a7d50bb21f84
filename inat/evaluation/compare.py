"""Compares two predictions of the same photos, photo by photo."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from inat.core.arrays import positions
from inat.core.bands import BandName
from inat.core.errors import InputError
from inat.core.files import write_json
from inat.core.metrics import shot_bands
from inat.evaluation.difference import Difference, paired_difference
from inat.evaluation.evaluate import Evaluation, evaluate
from inat.evaluation.seen_photos import refuse_seen_photos
from inat.evaluation.sentence import comparison_sentence
from inat.predictions.file import PredictionFile, read_prediction, refuse_other_photos

FORMAT = 1
N_SPECIES = 10


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two predictions side by side.

    Attributes:
        first: path of the prediction that is compared with.
        second: path of the prediction that may be better.
        n_images: photos of both.
        top1: difference of the share of photos whose first guess is right.
        mean_class_accuracy: difference of the mean over species.
        bands: the same within each shot band; None where a band has no photo.
        band_edges: few is below the first, many above the second.
        gained: the ten species that gained most: category_id, name, train_count, band, n, and
            first, second: photos that each prediction has right.
        lost: the ten that lost most.
        n_species_gained: species of which the second has more photos right.
        n_species_lost: species of which it has fewer right.
    """

    first: Path
    second: Path
    n_images: int
    top1: Difference
    mean_class_accuracy: Difference
    bands: dict[str, Difference | None]
    band_edges: tuple[int, int]
    gained: pd.DataFrame
    lost: pd.DataFrame
    n_species_gained: int
    n_species_lost: int

    def sentence(self) -> str:
        """What can be said of the difference, to be quoted."""
        return comparison_sentence(self.first, self.second, self.top1, self.bands)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON has it: the attributes of this class, and the sentence."""
        return {
            "format": FORMAT,
            "first": str(self.first),
            "second": str(self.second),
            "sentence": self.sentence(),
            "n_images": self.n_images,
            "top1": asdict(self.top1),
            "mean_class_accuracy": asdict(self.mean_class_accuracy),
            "bands": {band: found and asdict(found) for band, found in self.bands.items()},
            "band_edges": list(self.band_edges),
            "gained": self.gained.to_dict("records"),
            "lost": self.lost.to_dict("records"),
            "n_species_gained": self.n_species_gained,
            "n_species_lost": self.n_species_lost,
        }

    def save(self, path: Path) -> None:
        """Writes the comparison as JSON."""
        write_json(path, self.to_dict())


def compare(
    first: Path | str | PredictionFile,
    second: Path | str | PredictionFile,
    *,
    solution: Path | str | None = None,
    bands: BandName | None = None,
    band_edges: tuple[int, int] | None = None,
    chosen_here: bool = False,
) -> Comparison:
    """Says whether the second prediction is better than the first, overall and in each shot band.

    The rows of the two may stand in different orders.

    Args:
        first: the prediction to compare with.
        second: the prediction that may be better.
        solution: CSV `id,expected,usage` for photos whose labels the predictions do not know.
        bands: named band edges: literature (few < 20, many > 100) or mislas (few <= 20).
        band_edges: few has fewer training photos than the first, many has more than the second;
            None, and no `bands`: the runs' data.band_edges.
        chosen_here: compare even on photos on which something was chosen.

    Raises:
        InputError: other photos, species, labels, train counts or band edges in the two; what
            `evaluate` refuses.
    """
    opened = [*map(read_prediction, (first, second))]
    _refuse_others(*opened)
    for places in (0, 1), (1, 0):
        refuse_seen_photos(*(opened[place] for place in places), chosen_here=chosen_here)
    one, other = (
        evaluate(p, solution=solution, bands=bands, band_edges=band_edges, chosen_here=chosen_here)
        for p in opened
    )
    if one.band_edges != other.band_edges:
        raise InputError(
            f"{one.prediction} has the band edges {one.band_edges[0]} {one.band_edges[1]} and "
            f"{other.prediction} {other.band_edges[0]} {other.band_edges[1]}; say which: "
            "--bands literature"
        )
    return _paired(one, other)


def _refuse_others(one: PredictionFile, other: PredictionFile) -> None:
    for what, ids, others in (
        ("photos", one.ids, other.ids),
        ("species", one.category_ids, other.category_ids),
    ):
        apart = np.setxor1d(ids, others)
        if len(apart):
            raise InputError(
                f"{one.path} and {other.path} are of other {what}: {len(apart)} stand in one of "
                f"them alone (first: {apart[0]}); predict the same split with both"
            )
    refuse_other_photos(other, one)
    counts, new_counts = (
        p.species.set_index("category_id")["train_count"].sort_index() for p in (one, other)
    )
    recounted = counts.index[counts != new_counts]
    if len(recounted):
        raise InputError(
            f"{one.path} and {other.path} have other train counts for {len(recounted)} species "
            f"(first: {recounted[0]}), so they have no bands in common; predict with models of "
            "the same data set"
        )


def _paired(one: Evaluation, other: Evaluation) -> Comparison:
    table, labels = one.per_class, one.labels
    place = positions(other.outcomes.ids, one.outcomes.ids)
    theirs = other.per_class["category_id"].to_numpy()[other.labels[place]]
    if (apart := table["category_id"].to_numpy()[labels] != theirs).any():
        raise InputError(
            f"{one.prediction} and {other.prediction} know other labels for {apart.sum()} photos "
            f"(first: {one.outcomes.ids[apart.argmax()]}); give the organisers' solution "
            "(--solution solution.csv)"
        )
    hits, new_hits = one.hits, other.hits[place]
    few_below, many_above = one.band_edges
    members = shot_bands(
        table["train_count"].to_numpy(np.int64), few_below=few_below, many_above=many_above
    )
    everyone = np.ones(len(table), bool)
    top1 = paired_difference(hits, new_hits, labels, everyone, over_photos=True)
    mean_class_accuracy = paired_difference(hits, new_hits, labels, everyone)
    assert top1 is not None
    assert mean_class_accuracy is not None
    moved = _moved_species(table, np.bincount(labels[new_hits], minlength=len(table)))
    return Comparison(
        first=one.prediction,
        second=other.prediction,
        n_images=len(labels),
        top1=top1,
        mean_class_accuracy=mean_class_accuracy,
        bands={b: paired_difference(hits, new_hits, labels, m) for b, m in members.items()},
        band_edges=one.band_edges,
        gained=_most(moved, 1),
        lost=_most(moved, -1),
        n_species_gained=int((moved["second"] > moved["first"]).sum()),
        n_species_lost=int((moved["second"] < moved["first"]).sum()),
    )


def _moved_species(table: pd.DataFrame, new_hits: Int64[np.ndarray, "classes"]) -> pd.DataFrame:
    columns = ["category_id", "name", "train_count", "band", "n"]
    return table[columns].assign(first=table["hits"], second=new_hits)[table["n"] > 0]


def _most(moved: pd.DataFrame, sign: int) -> pd.DataFrame:
    """The ten species that moved most that way; among equals the rarer one stands first."""
    gain = sign * (moved["second"] - moved["first"]) / moved["n"]
    ranked = moved.assign(gain=gain)[gain > 0].sort_values(
        ["gain", "train_count", "category_id"], ascending=[False, True, True], ignore_index=True
    )
    return ranked.drop(columns="gain")[:N_SPECIES]

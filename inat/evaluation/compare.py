"""Compares two predictions of the same photos, photo by photo, and says so in a sentence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from inat.core.arrays import positions
from inat.core.bands import BandName
from inat.core.errors import InputError
from inat.core.files import write_json
from inat.core.intervals import Interval, gain_interval
from inat.core.metrics import class_means, mean_of, shot_bands
from inat.evaluation.evaluate import Evaluation, evaluate, plain_json, refuse_other_edges
from inat.evaluation.seen_photos import refuse_seen_photos
from inat.predictions.file import PredictionFile, read_prediction, refuse_other_photos

FORMAT = 1
N_SPECIES = 10
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """How much better the second prediction is, as a share."""

    first: float  # the first prediction's accuracy
    second: float  # the second prediction's accuracy
    gain: Interval  # second - first, with its 95 % interval, paired (`gain_interval`)
    n_gained: int  # photos that the second alone has right
    n_lost: int  # photos that the first alone has right
    # Of McNemar's exact test: that of n_gained under a fair coin thrown n_gained + n_lost times,
    # two-sided (McNemar 1947)
    p_value: float

    @property
    def is_seen(self) -> bool:
        """Whether the interval excludes 0 and p is below 0.05: a few photos that all moved one way
        make such an interval, but McNemar's test knows that three heads in a row are no proof."""
        return self.p_value < LEVEL and not self.gain.low <= 0 <= self.gain.high


@dataclass(frozen=True, eq=False)
class Comparison:
    first: Path  # path of the prediction that is compared with
    second: Path  # path of the prediction that may be better
    n_images: int  # photos of both
    top1: Difference  # difference of the share of photos whose first guess is right
    mean_class_accuracy: Difference  # difference of the mean over species
    # The same within each shot band; None where a band has no photo
    bands: dict[str, Difference | None]
    band_edges: tuple[int, int]  # few is below the first, many above the second
    # The ten species that gained most: category_id, name, train_count, band, n, and first, second:
    # photos that each prediction has right
    gained: pd.DataFrame
    lost: pd.DataFrame  # the ten that lost most
    n_species_gained: int  # species of which the second has more photos right
    n_species_lost: int  # species of which it has fewer right

    def sentence(self) -> str:
        """Whether the second prediction is better (`Difference.is_seen`), and in which bands."""
        one, other = short_names(self.first, self.second)
        p_value, gain = self.top1.p_value, self.top1.gain
        test = "McNemar p < 0.0001" if p_value < 1e-4 else f"McNemar p = {p_value:.2g}"
        if self.top1.is_seen:
            overall = (
                f"{other} is {_moved(gain, one)} points of top-1, 95 % interval {_size(gain)} "
                f"({test})"
            )
        else:
            overall = (
                f"no difference between {other} and {one} can be seen (top-1 {gain.points()}, "
                f"{test})"
            )
        present = {band: found for band, found in self.bands.items() if found is not None}
        moved = [
            f"in the {band} band {other} is {_moved(found.gain)} points ({_size(found.gain)})"
            for band, found in present.items()
            if found.is_seen
        ]
        alike = [band for band, found in present.items() if not found.is_seen]
        if alike:
            # many band; many and medium bands; many, medium and few bands
            listed = f"{', '.join(alike[:-1])} and {alike[-1]} bands"
            listed = listed if len(alike) > 1 else f"{alike[0]} band"
            moved.append(f"in the {listed} no difference can be seen")
        return "; ".join([overall, *moved])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON has it: the attributes of this class, and the sentence."""
        plain = {
            name: value.to_dict("records") if isinstance(value, pd.DataFrame) else plain_json(value)
            for name, value in vars(self).items()
        }
        paths = {"first": str(self.first), "second": str(self.second)}
        return {"format": FORMAT, **paths, "sentence": self.sentence(), **plain, **paths}

    def save(self, path: Path) -> None:
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
    """Tests whether the second prediction is better than the first, and for which species.

    Both are of the same photos, in any order. A difference is claimed where its paired 95 %
    interval excludes 0 and McNemar's p is below 0.05.

    Args:
        first: the prediction to compare with.
        second: the prediction that may be better.
        solution: the organisers' CSV id,expected,usage, for photos whose labels the predictions
            do not know.
        bands: named band edges: literature (few < 20, many > 100) or mislas (few <= 20).
        band_edges: few has fewer training photos than the first, many has more than the second;
            None: the runs' data.band_edges.
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
    refuse_other_edges(one, other)
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
    moved = table[["category_id", "name", "train_count", "band", "n"]].assign(
        first=table["hits"], second=np.bincount(labels[new_hits], minlength=len(table))
    )[table["n"] > 0]
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


def _most(moved: pd.DataFrame, sign: int) -> pd.DataFrame:
    """The ten species that moved most that way; among equals the rarer one stands first."""
    gain = sign * (moved["second"] - moved["first"]) / moved["n"]
    ranked = moved.assign(gain=gain)[gain > 0].sort_values(
        ["gain", "train_count", "category_id"], ascending=[False, True, True], ignore_index=True
    )
    return ranked.drop(columns="gain")[:N_SPECIES]


def paired_difference(
    hits: Bool[np.ndarray, "images"],
    new_hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"],
    *,
    over_photos: bool = False,
) -> Difference | None:
    """The difference between two models' hits on the same photos, as a mean over the members
    (species) of their means or over their photos; None where no member has a photo."""
    counted = members[labels]
    gain = gain_interval(
        hits, new_hits, labels, members, over="images" if over_photos else "classes"
    )
    if gain is None:
        return None
    first, second = (
        float(each[counted].mean())
        if over_photos
        else mean_of(class_means(each, labels, len(members)), members)
        for each in (hits, new_hits)
    )
    assert first is not None
    assert second is not None
    n_gained = int((new_hits & ~hits & counted).sum())
    n_lost = int((hits & ~new_hits & counted).sum())
    return Difference(first, second, gain, n_gained, n_lost, mcnemar(n_gained, n_lost))


def mcnemar(n_gained: int, n_lost: int) -> float:
    """The p-value of McNemar's exact test, of photos that only one model has right; 1 for none."""
    from scipy.stats import binomtest  # here: slow to import

    n = n_gained + n_lost
    return float(binomtest(n_gained, n).pvalue) if n else 1.0


def _moved(gain: Interval, than: str = "") -> str:
    """better than A by 1.3, or worse by 0.4."""
    word = "better" if gain.value > 0 else "worse"
    return f"{word}{than and f' than {than}'} by {100 * abs(gain.value):.1f}"


def _size(gain: Interval) -> str:
    """The interval of the size of a gain or a loss, in points: 0.6 to 2.0."""
    low, high = (gain.low, gain.high) if gain.value > 0 else (-gain.high, -gain.low)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """What tells two paths apart: runs/a/predictions/val and runs/b/predictions/val are a and b."""
    one, other = first.parts, second.parts
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    if not one or not other:  # one path is the other, or lies in it
        return str(first), str(second)
    return str(Path(*one)), str(Path(*other))

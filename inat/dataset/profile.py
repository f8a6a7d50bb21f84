"""The tail profile of a data set: counts, bands, imbalance, ranks of its lineage, places."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from inat.core.bands import FEW_BELOW, MANY_ABOVE
from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.core.files import atomic_file
from inat.core.metrics import shot_bands
from inat.dataset.annotation_tables import AnnotationTables, taxonomy_of
from inat.dataset.dates import Known
from inat.dataset.taxonomy import RANKS

COLOURS = {"many": "#4c78a8", "medium": "#72b7b2", "few": "#e45756"}


@dataclass(frozen=True)
class PlaceCounts:
    """What a locations file gives of a split's photos."""

    split: str  # train, val or test
    n_photos: int
    n_placed: int  # with a latitude and a longitude
    n_dated: int
    n_in_part: int  # with a month, a year or a long interval instead of a date
    not_understood: Int64[np.ndarray, "photos"]  # image ids whose date is in no known notation

    def line(self) -> str:
        text = (
            f"{self.split}: {self.n_placed:,} of {self.n_photos:,} photos have a place, "
            f"{self.n_dated:,} a date"
        )
        if self.n_in_part:
            text += f"; {self.n_in_part:,} only a month, a year or a long interval"
        if len(self.not_understood):
            text += (
                f"; {len(self.not_understood):,} dates were not understood (first: image "
                f"{self.not_understood[0]})"
            )
        return text


@dataclass(frozen=True)
class TailProfile:
    """What `inat data describe` prints."""

    root: Path  # the data set's folder
    split_sizes: dict[str, int]  # photos of each split that is there
    counts: Int64[np.ndarray, "classes"]  # training photos of each species, by label
    bands: dict[str, int]  # number of species in each shot band
    head_share: float  # share of the photos that the largest tenth of the species hold
    ranks: dict[str, int]  # number of groups at each rank that the data set gives
    places: list[PlaceCounts]  # of each split that has locations

    @property
    def imbalance_factor(self) -> float:
        return float(self.counts.max() / self.counts.min())

    def lines(self) -> list[str]:
        counts = self.counts
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.split_sizes.items())
        bands = ", ".join(f"{band} {n:,}" for band, n in self.bands.items())
        ranks = ", ".join(f"{rank} {n:,}" for rank, n in self.ranks.items()) or "not given"
        return [
            f"data set          {self.root}",
            f"photos            {sizes}",
            f"species           {len(counts):,}",
            f"photos a species  min {counts.min():,}, median {np.median(counts):g}, "
            f"mean {counts.mean():.1f}, max {counts.max():,}",
            f"imbalance factor  {self.imbalance_factor:.1f}",
            f"shot bands        {bands} (many > {MANY_ABOVE}, few < {FEW_BELOW})",
            f"head              the largest 10 % of the species hold {self.head_share:.0%} "
            "of the photos",
            f"ranks             {ranks}",
            *(f"places            {counted.line()}" for counted in self.places),
        ]


def describe(root: Path | str, *, competition: str = "inaturalist-2018") -> TailProfile:
    """The tail profile of a data set: how many photos its species have.

    Args:
        root: folder of the data set.
        competition: Kaggle name; it decides the names of the annotation files.

    Raises:
        InputError: the annotations are missing or broken.
    """
    root, spec = Path(root), find_competition(competition)
    # Not `load_split`: it would read train again for val and for test.
    tables = AnnotationTables(root, spec)
    _, species, _ = tables.read("train")
    sizes, places = {}, []
    for name in ("train", "val", "test"):
        if name != "train" and not spec.has_split(root, name):
            continue
        photos, _, key = tables.read(name)
        sizes[name] = len(photos)
        if (located := tables.places(name, photos, key)) is not None:
            known = located["date_known"].to_numpy()
            has_date = known == Known.DAY
            if "date_c" in located.column_names:
                has_date = has_date | ~np.isnan(located["date_c"].to_numpy())
            lat, lon = (located[column].to_numpy() for column in ("lat", "lon"))
            counted = PlaceCounts(
                split=name,
                n_photos=len(photos),
                n_placed=int((~np.isnan(lat) & ~np.isnan(lon)).sum()),
                n_dated=int(has_date.sum()),
                n_in_part=int((known == Known.PART).sum()),
                not_understood=photos["image_id"].to_numpy()[known == Known.NOT_UNDERSTOOD],
            )
            places.append(counted)
    tables.keep()
    counts = species["train_count"].to_numpy()
    taxonomy = taxonomy_of(species)
    n_head = max(1, round(len(counts) / 10))
    return TailProfile(
        root=root,
        split_sizes=sizes,
        counts=counts,
        bands={band: int(members.sum()) for band, members in shot_bands(counts).items()},
        head_share=float(np.sort(counts)[-n_head:].sum() / counts.sum()),
        ranks={
            rank: taxonomy.rank_groups(rank)[1]
            for rank in RANKS
            if (taxonomy.table[rank] != "").any()
        },
        places=places,
    )


def draw_profile(profile: TailProfile, path: Path) -> None:
    """Draws the sorted counts, coloured by shot band, to a PNG."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the picture is a PNG; let its name end in .png")
    from matplotlib.figure import Figure  # here: slow to import, and no other verb draws
    from matplotlib.ticker import LogFormatter

    counts = np.sort(profile.counts)[::-1]
    figure = Figure(figsize=(9, 4.5), dpi=120)
    # A fixed frame and plain numbers: matplotlib's own layout and its 10^2 take twice the time.
    axes = figure.subplots(gridspec_kw={"left": 0.09, "bottom": 0.12, "right": 0.985, "top": 0.93})
    for band, members in shot_bands(counts).items():
        places = np.flatnonzero(members)
        if len(places):
            axes.fill_between(
                np.append(places, places[-1] + 1),
                np.append(counts[places], counts[places[-1]]),
                step="post",
                color=COLOURS[band],
                label=f"{band}: {len(places):,} species, {counts[places].sum():,} photos",
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(LogFormatter())  # labels where there is one power of ten
    axes.set_ylim(bottom=0.8)
    axes.set_xlim(0, len(counts))
    axes.set_xlabel("species, by number of training photos")
    axes.set_ylabel("training photos (log scale)")
    axes.set_title(
        f"{len(counts):,} species, {counts.sum():,} training photos, "
        f"imbalance factor {profile.imbalance_factor:.0f}"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_file(path) as partial:
        figure.savefig(partial)

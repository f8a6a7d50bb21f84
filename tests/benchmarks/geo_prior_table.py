"""Prints what a geo prior gains on the synthetic world, and what the true ranges would.

For every seed it takes the world and the cross-entropy run that `inat demo --out OUT --seed S`
leaves. The world's val has 3 photos a species; so that the intervals are narrower, the 16 test
photos a species take its place, each at a place and date drawn from its species' range and season
in `truth.json`, by the law that drew those of train. The geo prior is trained on the places of
train alone. The truth is the same law as a prior: log p(place, date | species).

python tests/benchmarks/geo_prior_table.py OUT SEED [SEED ...]
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

import inat
from inat.core.bands import FEW_BELOW
from inat.core.files import read_json, write_json
from inat.core.intervals import Interval, accuracy_interval, gain_interval
from inat.dataset.locations import have_place, places_of
from inat.predictions.file import PredictionFile, store, write_prediction
from inat.predictions.meta import LOG_PRESENCE
from inat.synthetic import world as synthetic

RECIPE: dict[str, Any] = {"epochs": 100, "batch_size": 64, "lr_per_256": 4e-3}
TAU = 1.0


@dataclass(frozen=True, eq=False)
class Hits:
    """Top-1 hits on one world's photos by method, with what the intervals need."""

    by_method: dict[str, np.ndarray]
    labels: np.ndarray
    few: np.ndarray


def main() -> None:
    """Trains what is missing and prints the table."""
    out = Path(sys.argv[1])
    worlds = {seed: hits_of(out / f"seed-{seed}") for seed in map(int, sys.argv[2:])}
    for seed, hits in worlds.items():
        print_table(f"seed {seed}, {len(hits.labels)} photos", [hits])
    print_table(f"mean of {len(worlds)} seeds", list(worlds.values()))


def hits_of(folder: Path) -> Hits:
    """The hits of all methods on one seed's world."""
    root = world_with_more_places(folder)
    run = inat.open_run(folder / "ce")
    geo = folder / "geo"
    if not (geo / "model.json").is_file():
        inat.train_stage_two(run.path, geo, method="geo_prior", root=root, seed=0, **RECIPE)
    options: dict[str, Any] = {"root": root, "name": "places", "overwrite": True}
    photos = inat.predict(run.path, "val", **options)
    learned = inat.predict(geo, "val", **options)
    true = true_prediction(folder / "world" / "truth.json", root, learned, geo)
    plain = inat.adjust(photos, folder / "adjusted", tau=TAU, overwrite=True)
    found = {"place and date alone, learned": learned, "place and date alone, true": true}
    for name, start in (("CE", photos), ("CE, tau 1", plain)):
        found[name] = start
        for kind, prior in (("learned", learned), ("true", true)):
            target = folder / f"{start.path.name}-{kind}"
            found[f"{name} + {kind}"] = inat.adjust(start, target, geo=prior, overwrite=True)
    labels = photos.labels
    return Hits(
        {name: (p.logits.argmax(axis=1) == labels).astype(float) for name, p in found.items()},
        labels,
        photos.train_counts < FEW_BELOW,
    )


def world_with_more_places(folder: Path) -> Path:
    """The seed's world with its test photos as val, each with a place and a date."""
    world, root = folder / "world", folder / "world-with-places"
    root.mkdir(exist_ok=True)
    for name in ("train_val2018", "test2018", "train2018.json", "train2018_locations.json"):
        if not (root / name).exists():
            (root / name).symlink_to((world / name).resolve())
    truth = read_json(world / "truth.json")["species"]
    with (world / "solution.csv").open() as handle:
        expected = {int(row["id"]): int(row["expected"]) for row in csv.DictReader(handle)}
    images = read_json(world / "test2018.json")["images"]
    ids = [image["id"] for image in images]
    place_of = {species["id"]: place for place, species in enumerate(truth)}
    rows = synthetic._location_rows(
        synthetic.Split(
            np.array(ids), np.array([place_of[expected[i]] for i in ids]), np.arange(len(ids))
        ),
        species_of(truth),
        np.random.default_rng(0),
    )
    write_json(root / "val2018_locations.json", list(rows))
    annotations = [{"id": i, "image_id": i, "category_id": expected[i]} for i in ids]
    categories = read_json(world / "train2018.json")["categories"]
    write_json(
        root / "val2018.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
    return root


def species_of(truth: list[dict[str, Any]]) -> synthetic.Species:
    """Ranges and seasons of truth.json as the generator has them."""

    def column(part: str, field: str) -> np.ndarray:
        return np.array([species[part][field] for species in truth])

    return synthetic.Species(
        category_id=np.array([species["id"] for species in truth]),
        n_train=np.array([species["n_train"] for species in truth]),
        plan=[species["plan"] for species in truth],
        latent=np.empty((len(truth), 0)),
        lat=column("range", "lat"),
        lon=column("range", "lon"),
        range_degrees=column("range", "spread_degrees"),
        season_day=column("season", "peak_day"),
        season_days=column("season", "spread_days"),
    )


def true_prediction(truth: Path, root: Path, learned: PredictionFile, geo: Path) -> PredictionFile:
    """log p(place, date | species) of the world's own law, as a geo prior's prediction."""
    species = species_of(read_json(truth)["species"])
    places = places_of(inat.load_split(root, "val")).astype(np.float64)
    density = log_density(species, 180 * places[:, 0], 90 * places[:, 1], places[:, 2])
    density[~have_place(places.astype(np.float32))] = 0
    order = np.argsort(species.category_id)
    with write_prediction(
        geo / "predictions" / "true",
        ids=learned.ids,
        labels=learned.labels,
        species=learned.species,
        photos=learned.photos,
        meta=replace(learned.meta, logits=LOG_PRESENCE),
    ) as rows:
        rows[:] = store(density[:, order])
    return inat.read_prediction(geo / "predictions" / "true")


def log_density(
    species: synthetic.Species, lon: np.ndarray, lat: np.ndarray, date: np.ndarray
) -> np.ndarray:
    """Of a normal distribution each for latitude, longitude x cos(latitude of the range) and day,
    `[photos, species]`; without a date, of the place alone. Days are counted in years of 365."""
    day = (date[:, None] + 1) / 2 * 365
    north = lat[:, None] - species.lat
    east = ((lon[:, None] - species.lon + 180) % 360 - 180) * np.cos(np.deg2rad(species.lat))
    late = (day - species.season_day + 182.5) % 365 - 182.5
    of_place = -(north**2 + east**2) / (2 * species.range_degrees**2)
    of_place = of_place - 2 * np.log(species.range_degrees)
    of_day = -(late**2) / (2 * species.season_days**2) - np.log(species.season_days)
    return of_place + np.nan_to_num(of_day)


def print_table(title: str, worlds: list[Hits]) -> None:
    """A row a method: mean class accuracy, all and few, in per cent with 95 % intervals; the gain
    over the photos alone is paired."""
    print(f"\n{title}")
    print(f"{'':32}{'all':>23}{'few':>23}{'gain':>23}{'gain in few':>23}")
    for name in worlds[0].by_method:
        print(f"{name:32}", end="")
        start = name.split(" + ")[0]
        for few in (False, True):
            print(f"{shown(accuracy(worlds, name, few=few)):>23}", end="")
        for few in (False, True) if start != name else ():
            print(f"{shown(accuracy(worlds, name, start, few=few), '+'):>23}", end="")
        print()
    for start in ("CE", "CE, tau 1"):
        reached = [reached_share(worlds, start, few=few) for few in (False, True)]
        print(f"{start}: of the gain that the truth allows, {reached[0]:.0%} is reached, "
              f"in few {reached[1]:.0%}")  # fmt: skip


def reached_share(worlds: list[Hits], start: str, *, few: bool) -> float:
    """The learned prior's gain over the true one's."""
    learned, true = (
        accuracy(worlds, f"{start} + {kind}", start, few=few).value for kind in ("learned", "true")
    )
    return learned / true


def shown(found: Interval, sign: str = "") -> str:
    """62.6 (60.1 to 65.0)."""
    ends = f"{100 * found.low:{sign}.1f} to {100 * found.high:{sign}.1f}"
    return f"{100 * found.value:{sign}.1f} ({ends})"


def accuracy(worlds: list[Hits], name: str, less: str | None = None, *, few: bool) -> Interval:
    """A method's mean over worlds and species, or what it gains over another, with the interval
    over the photos of each species and world."""
    n_species = len(worlds[0].few)
    hits = np.concatenate([world.by_method[name] for world in worlds])
    labels = np.concatenate([k * n_species + world.labels for k, world in enumerate(worlds)])
    members = np.concatenate([world.few | (not few) for world in worlds])
    if less is None:
        found = accuracy_interval(hits, labels, members)
    else:
        others = np.concatenate([world.by_method[less] for world in worlds])
        found = gain_interval(others, hits, labels, members)
    assert found is not None
    return found


if __name__ == "__main__":
    main()

"""Prints how often the 95 % intervals hold the truth, in worlds whose truth is known.

Each experiment draws other photos of the same species and asks whether the interval holds the mean
of the species' true chances; for macro F1 whether it holds the mean over the experiments.
A row is a world, with the mean over its species and that over its photos: coverage, how often the
truth lies below and above the interval, and the interval's mean width, all in per cent. The
interval of a shot band or of any other subset of species is that of a world of these species.

python tests/benchmarks/interval_table.py [EXPERIMENTS]
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inat.core.intervals import accuracy_interval, gain_interval, score_bounds
from inat.core.metrics import macro_f1

N_EXPERIMENTS = 4000
SLOW = 10  # as many times fewer experiments, of all species and of macro F1, which are slow
CHUNK_CELLS = 10_000
SIZES = (5, 20, 64, 500)
ALL_SPECIES = 8142


@dataclass(frozen=True)
class World:
    """Species with their photos and the chances of a photo.

    Attributes:
        name: what the table calls it.
        n: photos of each species.
        up: chance that a photo is right; of two models, that the second alone is right.
        down: of two models, the chance that the first alone is right; None for one model.
    """

    name: str
    n: np.ndarray
    up: np.ndarray
    down: np.ndarray | None = None


@dataclass(frozen=True)
class Coverage:
    """What became of a world's intervals, as shares."""

    covered: float
    below: float
    above: float
    width: float
    n_experiments: int

    def __str__(self) -> str:
        return (
            f"{100 * self.covered:6.1f} {100 * self.below:5.1f} {100 * self.above:5.1f}"
            f" {100 * self.width:6.1f}"
        )


def of_groups(name: str, *groups: tuple[int, int, float]) -> World:
    """Groups of species: how many, photos of each, chance."""
    n = np.repeat([photos for _, photos, _ in groups], [species for species, _, _ in groups])
    up = np.repeat([chance for _, _, chance in groups], [species for species, _, _ in groups])
    return World(name, n, up)


def holdout(band: str) -> World:
    """A fifth of a tail of 180 to 2 training photos, of 64 species; or of one shot band."""
    counts = np.round(np.geomspace(180, 2, 64))
    n = np.maximum(np.round(0.2 * counts), 1).astype(int)
    chances = 0.25 + 0.7 * np.log(counts / 2) / np.log(90)
    few, many = counts < 20, counts > 100
    chosen = {"all": counts > 0, "few": few, "medium": ~few & ~many, "many": many}[band]
    return World(f"holdout of a tail, {band}", n[chosen], chances[chosen])


def photo_counts(n_species: int, shape: str) -> np.ndarray:
    """1 or 3 photos of each species, or a tail from 1 to 200."""
    place = np.linspace(0, 1, n_species)
    tail = np.maximum(np.round(200 ** (place**1.5)), 1).astype(int)
    return {"1": np.full(n_species, 1), "3": np.full(n_species, 3), "1 to 200": tail}[shape]


def uneven_worlds() -> Iterator[World]:
    """Species that differ in difficulty and in photos."""
    yield of_groups("1 x 1,000 at 1, 1 x 2 at .4", (1, 1000, 1.0), (1, 2, 0.4))
    yield of_groups("1 x 1,000 at .999, 1 x 2 at .2", (1, 1000, 0.999), (1, 2, 0.2))
    yield of_groups("4 x 200 at .999, 4 x 2 at .4", (4, 200, 0.999), (4, 2, 0.4))
    yield of_groups("10 x 500 at .95, 10 x 2 at .2", (10, 500, 0.95), (10, 2, 0.2))
    yield of_groups("10 x 20 at .97, 10 x 1 at .5", (10, 20, 0.97), (10, 1, 0.5))
    yield from (holdout(band) for band in ("all", "many", "medium", "few"))


def accuracy_worlds(n_species: int) -> Iterator[World]:
    """Photo counts by chances: alike, rising with the count, and scattered about that rise."""
    place = np.linspace(0, 1, n_species)
    rising = 0.1 + 0.85 * place
    scattered = np.random.default_rng(1).beta(3 * rising, 3 - 3 * rising)
    even = {"at .5": np.full(n_species, 0.5), "at .97": np.full(n_species, 0.97)}
    for shape in ("1", "3", "1 to 200"):
        for kind, chances in (even | {".1 to .95": rising, "scattered": scattered}).items():
            yield World(f"{n_species:,} x {shape}, {kind}", photo_counts(n_species, shape), chances)


def gain_worlds(n_species: int) -> Iterator[World]:
    """Gains of 0, 2 and 10 points; along a tail the rare species gain and the frequent lose."""
    place = np.linspace(0, 1, n_species)
    for shape in ("1", "3", "1 to 200"):
        for up, down in ((0.01, 0.01), (0.04, 0.02), (0.15, 0.05)):
            rare = 2 * (1 - place) if shape == "1 to 200" else np.ones(n_species)
            name = f"{n_species:,} x {shape}, won {up:.0%} lost {down:.0%}"
            yield World(name, photo_counts(n_species, shape), up * rare, down * (2 - rare))


def sparse_gain_worlds() -> Iterator[World]:
    """Pairs of models that hardly differ."""
    for n_species in (20, 60):
        n, up, down = (np.full(n_species, each) for each in (3, 0.02, 0.005))
        yield World(f"{n_species} x 3, won 2% lost .5%", n, up, down)


def coverage(world: World, over: str, n_experiments: int, seed: int = 0) -> Coverage:
    """What becomes of the intervals of a world's mean over classes or images."""
    rng = np.random.default_rng(seed)
    n = world.n.astype(float)
    weights = n / n.sum() if over == "images" else np.full(len(n), 1 / len(n))
    down = np.zeros(len(n)) if world.down is None else world.down
    truth = weights @ (world.up - down)
    if len(n) == ALL_SPECIES:
        ends = np.array([one_at_a_time(rng, world, over) for _ in range(n_experiments)])
    else:
        chunk = max(CHUNK_CELLS // len(n), 1)
        sizes = np.diff([*range(0, n_experiments, chunk), n_experiments])
        made_up = (0.5, 0.5) if world.down is None else (0.0, 1.0)
        found = []
        for size in sizes:
            up = rng.binomial(world.n, world.up, (size, len(n)))
            lost = rng.binomial(world.n - up, down / np.maximum(1 - world.up, 1e-9))
            found.append(np.stack(score_bounds(
                n, (up - lost).astype(float), (up + lost).astype(float), weights, made_up=made_up
            ), axis=1))  # fmt: skip
        ends = np.concatenate(found)
    return judged(ends, truth)


def judged(ends: np.ndarray, truth: float) -> Coverage:
    below = float(np.mean(truth < ends[:, 0] - 1e-9))
    above = float(np.mean(truth > ends[:, 1] + 1e-9))
    width = float(np.mean(ends[:, 1] - ends[:, 0]))
    return Coverage(1 - below - above, below, above, width, len(ends))


def one_at_a_time(rng: np.random.Generator, world: World, over: str) -> tuple[float, float]:
    """One experiment photo by photo, through the functions that the kit calls."""
    labels = np.repeat(np.arange(len(world.n)), world.n)
    throw = rng.random(len(labels))
    won = throw < world.up[labels]
    if world.down is None:
        found = accuracy_interval(won, labels, over=over)  # type: ignore[arg-type]
    else:
        lost = throw > 1 - world.down[labels]
        found = gain_interval(lost, won, labels, over=over)  # type: ignore[arg-type]
    assert found is not None
    return found.low, found.high


def f1_coverage(world: World, n_experiments: int, seed: int = 0) -> Coverage:
    """A wrong photo is taken for a species like its own, a few places up or down."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(world.n)), world.n)
    found = []
    for _ in range(n_experiments):
        others = (labels + rng.choice([-3, -2, -1, 1, 2, 3], len(labels))) % len(world.n)
        right = rng.random(len(labels)) < world.up[labels]
        found.append(macro_f1(np.where(right, labels, others), labels, n_resamples=100))
    ends = np.array([(each.low, each.high) for each in found if each is not None])
    return judged(ends, float(np.mean([each.value for each in found if each is not None])))


def print_rows(title: str, worlds: Iterator[World], n_experiments: int) -> list[Coverage]:
    every = []
    print(f"\n{title}\n{'':38}{'mean over species':>25}{'mean over photos':>27}")
    print(f"{'':38}" + "  ".join(["covers below above  width"] * 2))
    for world in worlds:
        means = ("classes", "images") if (world.n != world.n[0]).any() else ("classes",)
        found = [coverage(world, over, n_experiments) for over in means]
        print(f"{world.name:38}" + "  ".join(map(str, found)), flush=True)
        every += found
    return every


def main(n_experiments: int) -> tuple[list[Coverage], list[Coverage]]:
    """Prints the table and returns what it says of means and of macro F1."""
    print(f"95 % intervals, {n_experiments:,} experiments a row, per cent")
    found = print_rows("accuracy, uneven species", uneven_worlds(), n_experiments)
    found += print_rows("gain, few photos moved", sparse_gain_worlds(), n_experiments)
    fewer = n_experiments // SLOW
    for n_species in (*SIZES, ALL_SPECIES):
        n = fewer if n_species == ALL_SPECIES else n_experiments
        title = f"{n_species:,} species, {n:,} experiments"
        found += print_rows(f"accuracy, {title}", accuracy_worlds(n_species), n)
        found += print_rows(f"gain, {title}", gain_worlds(n_species), n)
    print(f"\nmacro F1, {fewer:,} experiments\n{'':38}covers below above  width")
    of_f1 = []
    for world in (*uneven_worlds(), *accuracy_worlds(20), *accuracy_worlds(64)):
        if len(world.n) > 7:  # fewer have no three neighbors on either side
            of_f1.append(f1_coverage(world, fewer))
            print(f"{world.name:38}{of_f1[-1]}", flush=True)
    return found, of_f1


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else N_EXPERIMENTS)

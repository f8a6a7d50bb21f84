"""One epoch's order of full-size class-balanced draws, against the published loop, in turn.

437,513 draws of 8,142 species with the real shape of counts. The loop is the class-aware sampler
of the reference code of Kang et al. 2020: a shuffled cycle over the species, one over the photos
of each, four photos of a species in a row. The index of photos by species stands outside the
clock on both sides.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from contestants import spread

from inat.samplers import build_sampler
from inat.samplers.base import epoch_order
from inat.synthetic.world import PROFILES, train_counts

N_DRAWS = 437_513
ROUNDS = 5


class Cycle:
    """Elements of a list, shuffled anew each time that it ends."""

    def __init__(self, elements: list[Any], rng: random.Random) -> None:
        self.elements = elements
        self.rng = rng
        self.at = len(elements) - 1

    def __next__(self) -> Any:
        self.at += 1
        if self.at == len(self.elements):
            self.at = 0
            self.rng.shuffle(self.elements)
        return self.elements[self.at]


def class_aware_loop(photos: list[list[int]], n_draws: int, in_a_row: int = 4) -> Iterator[int]:
    """The reference algorithm."""
    rng = random.Random(0)
    species = Cycle(list(range(len(photos))), rng)
    lists = [Cycle(of_species, rng) for of_species in photos]
    drawn, j = 0, 0
    row: list[int] = []
    while drawn < n_draws:
        if j >= in_a_row:
            j = 0
        if j == 0:
            of_species = lists[next(species)]
            row = [next(of_species) for _ in range(in_a_row)]
        yield row[j]
        drawn += 1
        j += 1


@pytest.mark.parametrize("name", ["class_balanced", "class_balanced_cycling"])
def test_the_order_of_an_epoch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    counts = train_counts(PROFILES["inat2018"])
    assert counts.sum() == N_DRAWS
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    sampler = build_sampler(name, labels, len(counts))
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    photos = [part.tolist() for part in by_class]
    ours, theirs = [], []
    for epoch in range(ROUNDS):
        ours.append(seconds(lambda epoch=epoch: epoch_order(sampler, N_DRAWS, 0, epoch)))
        theirs.append(seconds(lambda: np.array(list(class_aware_loop(photos, N_DRAWS)))))
    with capsys.disabled():
        print(f"\n{name}, {N_DRAWS:,} draws of {len(counts):,} species")
        print(f"kit {spread([1000 * s for s in ours])} ms", end=", ")
        print(f"loop {spread([1000 * s for s in theirs])} ms")
        print(f"loop / kit  {spread([b / a for a, b in zip(ours, theirs, strict=True)])}")


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

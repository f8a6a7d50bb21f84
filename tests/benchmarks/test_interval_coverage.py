"""How often a 95 % interval covers the truth: 4,000 experiments at 3 and at 12 photos a species.

Species have chances of their own to be recognised; an experiment photographs each n times and
asks whether the interval of the mean over species holds the mean of the chances.
"""

import numpy as np
import pytest

from inat.metrics import Interval, accuracy_interval, bootstrap_interval

N_EXPERIMENTS = 4000


def chances_of(n_species: int) -> np.ndarray:
    """From hopeless to certain, as the species of a long tail are."""
    return np.linspace(0.02, 0.99, n_species)


def covered(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def share_covered(chances: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> float:
    """How often the interval of species with so many photos each holds the mean of the chances."""
    labels = np.repeat(np.arange(len(counts)), counts)
    experiments = (
        accuracy_interval(rng.random(len(labels)) < chances[labels], labels)
        for _ in range(N_EXPERIMENTS)
    )
    return float(np.mean([covered(interval, chances.mean()) for interval in experiments]))


@pytest.mark.parametrize("n_photos", [3, 12])
@pytest.mark.parametrize("n_species", [20, 60, 400])
def test_coverage_of_an_accuracy(
    n_species: int, n_photos: int, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = np.full(n_species, n_photos)
    share = share_covered(chances_of(n_species), counts, np.random.default_rng(0))
    with capsys.disabled():
        print(
            f"\n95 % interval of an accuracy, {n_photos} photos of each of {n_species} species: "
            f"covers the truth in {share:.2%} of {N_EXPERIMENTS:,} experiments"
        )
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("alone", [0.2, 0.6])
def test_coverage_where_species_have_one_photo(
    alone: float, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, n_species = np.random.default_rng(2), 200
    chances = rng.permutation(chances_of(n_species))
    counts = np.where(np.arange(n_species) < alone * n_species, 1, 3)
    share = share_covered(chances, counts, rng)
    with capsys.disabled():
        print(
            f"\n95 % interval of an accuracy, one photo of {alone:.0%} of {n_species} species, 3 "
            f"of the others: covers the truth in {share:.2%} of {N_EXPERIMENTS:,} experiments"
        )
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize(("alike", "least"), [(0.6, 0.93), (1.0, 0.92)])
@pytest.mark.parametrize("n_photos", [3, 12])
def test_coverage_of_a_paired_difference(
    n_photos: int, alike: float, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models that share the luck of a photo, or a share of the photos.

    Where all luck is shared they differ in a handful of photos alone, all of a species one way;
    the interval is then a little narrow, which is why a claim needs McNemar's test too.
    """
    rng = np.random.default_rng(1)
    n_species = 60
    chances = chances_of(n_species)
    new_chances = chances + np.linspace(0.3, -0.1, n_species) * chances * (1 - chances)
    truth = float((new_chances - chances).mean())
    labels = np.repeat(np.arange(n_species), n_photos)
    n_covered, n_apart = 0, 0
    for _ in range(N_EXPERIMENTS):
        luck, other = rng.random((2, len(labels)))
        new_luck = np.where(rng.random(len(labels)) < alike, luck, other)
        old, new = luck < chances[labels], new_luck < new_chances[labels]
        n_apart += int((old != new).sum())
        n_covered += covered(bootstrap_interval(new.astype(float) - old, labels), truth)
    share = n_covered / N_EXPERIMENTS
    with capsys.disabled():
        print(
            f"\n95 % interval of a paired difference, {n_photos} photos of each of {n_species} "
            f"species, {n_apart / N_EXPERIMENTS:.0f} photos that one model alone has right: covers "
            f"the truth in {share:.2%} of {N_EXPERIMENTS:,} experiments"
        )
    assert least <= share <= 0.97

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


@pytest.mark.parametrize("n_photos", [3, 12])
@pytest.mark.parametrize("n_species", [20, 60, 400])
def test_coverage_of_an_accuracy(
    n_species: int, n_photos: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    chances = chances_of(n_species)
    labels = np.repeat(np.arange(n_species), n_photos)
    share = np.mean(
        [
            covered(
                accuracy_interval(rng.random(len(labels)) < chances[labels], labels), chances.mean()
            )
            for _ in range(N_EXPERIMENTS)
        ]
    )
    with capsys.disabled():
        print(
            f"\n95 % interval of an accuracy, {n_photos} photos of each of {n_species} species: "
            f"covers the truth in {share:.2%} of {N_EXPERIMENTS:,} experiments"
        )
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("n_photos", [3, 12])
def test_coverage_of_a_paired_difference(n_photos: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    chances, n_species = chances_of(60), 60
    gains = np.linspace(0.3, -0.1, n_species) * chances * (1 - chances)
    labels = np.repeat(np.arange(n_species), n_photos)
    shares = []
    for _ in range(N_EXPERIMENTS):
        # One draw decides for both, so that their hits go together.
        luck = rng.random(len(labels))
        old, new = luck < chances[labels], luck < (chances + gains)[labels]
        shares.append(covered(bootstrap_interval(new.astype(float) - old, labels), gains.mean()))
    share = np.mean(shares)
    with capsys.disabled():
        print(
            f"\n95 % interval of a paired difference, {n_photos} photos of each of {n_species} "
            f"species: covers the truth in {share:.2%} of {N_EXPERIMENTS:,} experiments"
        )
    assert 0.93 <= share <= 0.97

"""Samplers: which photos an epoch draws, and the prior of its draws."""

import numpy as np
import pytest
from scipy import stats

from inat.data.samplers import SAMPLERS, build_sampler, epoch_order, stream
from inat.errors import InputError

COUNTS = (40, 12, 5, 0, 2, 1)  # of species 3 there is no photo
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))
N = len(LABELS)


def order(name: str, n_draws: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return epoch_order(build_sampler(name, LABELS, 6), n_draws, seed, epoch)


def test_instance_draws_every_photo_once_an_epoch() -> None:
    drawn = order("instance", N)
    assert sorted(drawn.tolist()) == list(range(N))
    assert drawn.tolist() != list(range(N))


def test_an_instance_epoch_larger_than_the_photos_repeats_none_before_all_were_drawn() -> None:
    drawn = order("instance", 2 * N + 7)
    assert sorted(drawn[:N].tolist()) == list(range(N))
    assert sorted(drawn[N : 2 * N].tolist()) == list(range(N))
    assert drawn[:N].tolist() != drawn[N : 2 * N].tolist()
    assert len(drawn) == 2 * N + 7
    assert len(set(drawn[2 * N :].tolist())) == 7


def test_an_instance_epoch_smaller_than_the_photos_repeats_none() -> None:
    drawn = order("instance", 11)
    assert len(set(drawn.tolist())) == len(drawn) == 11


def test_class_balanced_frequencies_are_uniform_over_species_and_over_their_photos() -> None:
    drawn = order("class_balanced", 30_000)
    per_species = np.bincount(LABELS[drawn], minlength=6)
    prior = build_sampler("class_balanced", LABELS, 6).prior
    present = np.flatnonzero(COUNTS)
    assert np.flatnonzero(per_species).tolist() == present.tolist()
    expected = prior * len(drawn)
    assert stats.chisquare(per_species[present], expected[present]).pvalue > 1e-3
    per_photo = np.bincount(drawn, minlength=N)
    for species in present:
        of_species = per_photo[species == LABELS]
        if len(of_species) > 1:
            assert stats.chisquare(of_species).pvalue > 1e-3


def slow_cycle(drawn: np.ndarray) -> None:
    """Checks an order against the rules of the class-aware loop, draw by draw."""
    species_left: set[int] = set()
    photos_left: dict[int, set[int]] = {}
    for photo in drawn.tolist():
        species = int(LABELS[photo])
        species_left = species_left or {s for s in range(6) if COUNTS[s]}
        assert species in species_left
        species_left.remove(species)
        if not photos_left.get(species):
            photos_left[species] = set(np.flatnonzero(species == LABELS).tolist())
        assert photo in photos_left[species]
        photos_left[species].remove(photo)


@pytest.mark.parametrize("n_draws", [1, 4, 5, 23, 60, 400])
def test_cycling_repeats_no_species_and_no_photo_before_all_were_drawn(n_draws: int) -> None:
    drawn = order("class_balanced_cycling", n_draws)
    assert len(drawn) == n_draws
    slow_cycle(drawn)


def test_cycling_draws_the_same_photos_again_in_another_order() -> None:
    drawn = order("class_balanced_cycling", 5 * 12 * 2)  # twice the 12 photos of species 1
    of_species = drawn[LABELS[drawn] == 1]
    assert sorted(of_species[:12].tolist()) == sorted(of_species[12:].tolist())
    assert of_species[:12].tolist() != of_species[12:].tolist()


def test_cycling_draws_every_photo_of_a_species_equally_often() -> None:
    firsts = [order("class_balanced_cycling", 5, seed=seed) for seed in range(2000)]
    per_photo = np.bincount(np.concatenate(firsts), minlength=N)
    for species in np.flatnonzero(COUNTS):
        of_species = per_photo[species == LABELS]
        assert of_species.sum() == 2000
        if len(of_species) > 1:
            assert stats.chisquare(of_species).pvalue > 1e-3


def test_the_prior_is_the_probability_that_a_draw_is_of_each_species() -> None:
    instance = build_sampler("instance", LABELS, 6).prior
    balanced = build_sampler("class_balanced", LABELS, 6).prior
    np.testing.assert_allclose(instance, np.array(COUNTS) / N)
    np.testing.assert_allclose(balanced, [0.2, 0.2, 0.2, 0, 0.2, 0.2])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_prior_sums_to_one(name: str) -> None:
    assert build_sampler(name, LABELS, 6).prior.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_order_is_a_pure_function_of_seed_and_epoch(name: str) -> None:
    first = order(name, N, seed=3, epoch=5)
    order(name, N, seed=9, epoch=1)  # another one in between changes nothing
    assert np.array_equal(first, order(name, N, seed=3, epoch=5))
    assert not np.array_equal(first, order(name, N, seed=3, epoch=6))
    assert not np.array_equal(first, order(name, N, seed=4, epoch=5))
    assert not np.array_equal(first, order(name, N, seed=5, epoch=3))


def test_streams_of_two_purposes_or_blocks_share_no_numbers() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    numbers = [stream(*key).random(100) for key in keys]
    assert len(np.unique(np.concatenate(numbers))) == 100 * len(keys)


def test_an_unknown_sampler_lists_the_valid_ones() -> None:
    with pytest.raises(InputError) as caught:
        build_sampler("class_balance", LABELS, 6)
    assert str(caught.value) == (
        "sampler: unknown name 'class_balance'; did you mean class_balanced? "
        "valid: class_balanced, class_balanced_cycling, instance"
    )


def test_photos_without_labels_cannot_be_drawn_from() -> None:
    with pytest.raises(InputError) as caught:
        build_sampler("instance", np.array([0, -1, -1]), 6)
    assert str(caught.value) == ("sampler instance: 2 photos have no label; draw from train or val")

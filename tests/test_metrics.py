"""Guesses, class means, shot bands and macro F1 against loops that a reader can check."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import f1_score

from inat.core.metrics import (
    class_f1,
    class_means,
    hits_at,
    macro_f1,
    mean_of,
    shot_bands,
    top_k,
)


def slow_top_k(row: Sequence[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda label: (-row[label], label))[:k]


# --- guesses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_equals_a_slow_sort_where_ties_go_to_the_lower_label(k: int) -> None:
    logits = np.random.default_rng(0).integers(0, 3, (60, 6)).astype(np.float32)
    expected = [slow_top_k(row, k) for row in logits.tolist()]
    assert top_k(logits, k).tolist() == expected


def test_top_k_of_float16_equals_a_slow_sort_and_leaves_its_input_alone() -> None:
    logits = np.random.default_rng(1).normal(0, 0.01, (40, 30)).astype(np.float16)
    before = logits.copy()
    guesses = top_k(logits, 3)
    assert guesses.dtype == np.int64
    assert guesses.tolist() == [slow_top_k(row, 3) for row in before.tolist()]
    assert (logits == before).all()


def test_top_k_beyond_the_number_of_classes_gives_every_class_once() -> None:
    assert top_k(np.array([[1.0, 3.0, 2.0]], np.float32), 5).tolist() == [[1, 2, 0]]


def test_top_k_never_gives_a_label_twice_even_where_logits_are_minus_infinity() -> None:
    logits = np.array([[-np.inf, 2.0, -np.inf, -np.inf]], np.float32)
    assert top_k(logits, 3).tolist() == [[1, 0, 2]]


def test_hits_at_looks_at_the_first_k_guesses_alone() -> None:
    guesses = np.array([[4, 1, 2], [1, 4, 2], [1, 2, 4], [1, 2, 3]])
    labels = np.array([4, 4, 4, 4])
    assert hits_at(guesses, labels, 1).tolist() == [True, False, False, False]
    assert hits_at(guesses, labels, 2).tolist() == [True, True, False, False]
    assert hits_at(guesses, labels, 3).tolist() == [True, True, True, False]


# --- classes and bands -----------------------------------------------------------------------


def test_class_means_are_over_each_class_and_nan_for_a_class_without_images() -> None:
    hits = np.array([True, False, True, True, False])
    means = class_means(hits, np.array([2, 2, 2, 0, 0]), 4)
    assert means[[0, 2]].tolist() == [0.5, 2 / 3]
    assert np.isnan(means[[1, 3]]).all()


def test_shot_bands_turn_exactly_at_20_and_above_100() -> None:
    bands = shot_bands(np.array([2, 19, 20, 100, 101, 1000]))
    assert list(bands) == ["many", "medium", "few"]
    assert bands["few"].tolist() == [True, True, False, False, False, False]
    assert bands["medium"].tolist() == [False, False, True, True, False, False]
    assert bands["many"].tolist() == [False, False, False, False, True, True]


def test_every_species_is_in_exactly_one_band_for_any_edges() -> None:
    counts = np.arange(1, 200)
    for few_below, many_above in ((20, 100), (21, 100), (5, 5), (1, 300)):
        bands = shot_bands(counts, few_below=few_below, many_above=many_above)
        assert np.sum(list(bands.values()), axis=0).tolist() == [1] * len(counts)


def test_mean_of_skips_classes_without_images_and_is_none_where_none_is_left() -> None:
    values = np.array([1.0, np.nan, 0.5, np.nan])
    assert mean_of(values, np.array([True, True, True, False])) == 0.75
    assert mean_of(values, np.array([False, True, False, True])) is None
    assert mean_of(values, np.zeros(4, bool)) is None


# --- macro F1 --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_macro_f1_equals_scikit_learn_s(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    labels, guesses = rng.integers(n_classes, size=(2, 60))
    found = macro_f1(guesses, labels)
    assert found is not None
    assert found.value == pytest.approx(f1_score(labels, guesses, average="macro"), abs=1e-15)
    own = class_f1(guesses, labels)
    assert own[~np.isnan(own)] == pytest.approx(f1_score(labels, guesses, average=None))


def test_the_interval_of_macro_f1_is_that_of_resampling_photos_within_species() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 30)
    right = rng.random(240) < np.repeat(np.linspace(0.3, 0.95, 8), 30)
    guesses = np.where(right, labels, rng.integers(8, size=240))
    again = []
    for _ in range(2000):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(labels == label), 30) for label in range(8)]
        )
        again.append(np.nanmean(class_f1(guesses[drawn], labels[drawn])))
    found = macro_f1(guesses, labels)
    assert found is not None
    wanted = 1.96 * np.std(again) * math.sqrt(30 / 29)
    assert (found.high - found.low) / 2 == pytest.approx(wanted, rel=0.08)


def test_macro_f1_of_few_photos_all_right_or_none_right_is_not_certain() -> None:
    none = np.empty(0, np.int64)
    assert macro_f1(none, none) is None
    for n_photos, widest in ((1, 0.95), (3, 0.5)):
        labels = np.repeat(np.arange(3), n_photos)
        for guesses, value in ((labels, 1.0), ((labels + 1) % 3, 0.0)):
            found = macro_f1(guesses, labels)
            assert found is not None
            assert found.value == value
            assert 0 <= found.low <= value <= found.high <= 1
            assert 0.2 < found.high - found.low < widest

"""Guesses, class means, shot bands and intervals against loops that a reader can check."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import f1_score

from inat.metrics import (
    Interval,
    bootstrap_interval,
    class_f1,
    class_means,
    hits_at,
    macro_f1,
    mean_of,
    photo_interval,
    shot_bands,
    top_k,
)


def slow_top_k(row: Sequence[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda label: (-row[label], label))[:k]


def slow_interval(
    values: Sequence[float], labels: Sequence[int], n_resamples: int, *, widened: bool = True
) -> Interval:
    """The interval photo by photo, from the same draws: classes by their number of photos."""
    photos_of: dict[int, list[float]] = {}
    for value, label in zip(values, labels, strict=True):
        photos_of.setdefault(label, []).append(value)
    means = {label: sum(photos) / len(photos) for label, photos in photos_of.items()}
    totals = [0.0] * n_resamples
    rng = np.random.default_rng(0)
    for n in sorted({len(photos) for photos in photos_of.values()} - {1}):
        group = sorted(label for label, photos in photos_of.items() if len(photos) == n)
        drawn = rng.integers(n, size=(n_resamples, len(group), n))
        for resample in range(n_resamples):
            for place, label in enumerate(group):
                again = sum(photos_of[label][i] for i in drawn[resample, place]) / n
                factor = math.sqrt(n / (n - 1)) if widened else 1.0
                totals[resample] += factor * (again - means[label])
    value = sum(means.values()) / len(means)
    low, high = np.quantile([value + total / len(means) for total in totals], (0.025, 0.975))
    return Interval(value, float(low), float(high))


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


# --- intervals -------------------------------------------------------------------------------


def test_the_interval_equals_a_slow_bootstrap_within_species() -> None:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(7), [3, 3, 1, 5, 3, 2, 5]))
    hits = np.random.default_rng(6).random(len(labels)) < 0.6
    expected = slow_interval(hits.tolist(), labels.tolist(), 50)
    found = bootstrap_interval(hits, labels, n_resamples=50)
    assert found is not None
    assert vars(found) == pytest.approx(vars(expected), abs=1e-12)
    assert found.low < found.value < found.high


def test_at_3_photos_a_species_the_interval_is_widened_by_the_root_of_3_over_2() -> None:
    labels = np.repeat(np.arange(8), 3)
    hits = np.random.default_rng(2).random(24) < 0.5
    plain = slow_interval(hits.tolist(), labels.tolist(), 60, widened=False)
    found = bootstrap_interval(hits, labels, n_resamples=60)
    assert found is not None
    assert found.high - found.value == pytest.approx(math.sqrt(1.5) * (plain.high - plain.value))
    assert found.value - found.low == pytest.approx(math.sqrt(1.5) * (plain.value - plain.low))


def test_the_interval_covers_the_truth_about_95_times_in_100_at_3_photos_a_species() -> None:
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.1, 0.95, 40)
    labels = np.repeat(np.arange(40), 3)
    n_covered, n_experiments = 0, 400
    for _ in range(n_experiments):
        found = bootstrap_interval(rng.random(120) < chances[labels], labels, n_resamples=300)
        assert found is not None
        n_covered += found.low <= chances.mean() <= found.high
    assert 0.91 <= n_covered / n_experiments <= 0.98


def test_the_value_is_the_mean_over_species_and_not_over_photos() -> None:
    labels = np.array([0, 0, 0, 0, 1, 3])
    found = bootstrap_interval(np.array([1, 1, 1, 0, 0, 1], bool), labels, np.ones(5, bool))
    assert found is not None
    assert found.value == pytest.approx((0.75 + 0 + 1) / 3)


def test_members_choose_the_species_that_count() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    hits = np.array([1, 1, 0, 1, 0, 0], bool)
    both = bootstrap_interval(hits, labels, np.array([False, True, True]))
    alone = bootstrap_interval(hits[2:], labels[2:] - 1)
    assert both == alone
    assert both is not None
    assert both.value == 0.25


def test_species_with_one_photo_count_in_the_value_and_not_in_the_width() -> None:
    found = bootstrap_interval(np.array([True, False, True]), np.array([0, 1, 2]))
    assert found == Interval(2 / 3, None, None)


def test_no_photo_gives_no_interval() -> None:
    assert bootstrap_interval(np.zeros(0, bool), np.zeros(0, np.int64)) is None
    hits, labels = np.array([True, True]), np.array([0, 0])
    assert bootstrap_interval(hits, labels, np.array([False, True])) is None


def test_the_same_seed_gives_the_same_interval_and_numpy_s_global_generator_is_left_alone() -> None:
    labels = np.repeat(np.arange(5), 3)
    hits = np.arange(15) % 4 > 0
    before = str(np.random.get_state())
    first = bootstrap_interval(hits, labels, seed=3)
    assert first == bootstrap_interval(hits, labels, seed=3)
    assert str(np.random.get_state()) == before


def test_paired_differences_of_two_models_are_narrower_than_each_model_alone() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(30), 4)
    hits = rng.random(120) < 0.5
    better = hits.copy()
    better[np.flatnonzero(~hits)[:6]] = True
    alone = bootstrap_interval(hits, labels)
    paired = bootstrap_interval(better.astype(float) - hits, labels)
    assert alone is not None
    assert paired is not None
    assert paired.value == pytest.approx(6 / 120)
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_the_difference_of_a_model_to_itself_is_exactly_nothing() -> None:
    labels = np.repeat(np.arange(4), 3)
    assert bootstrap_interval(np.zeros(12), labels) == Interval(0.0, 0.0, 0.0)


# --- means over photos, and macro F1 ----------------------------------------------------------


def test_a_photo_interval_is_the_mean_over_photos_with_its_spread_within_species() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [2, 5, 40, 3])
    values = rng.random(50)
    found = photo_interval(values, labels)
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    variance = sum(
        values[labels == label].var(ddof=1) * (labels == label).sum() for label in range(4)
    )
    spread = 1.96 * math.sqrt(variance) / 50
    assert found.half_width == pytest.approx(spread, rel=0.1)


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
    assert found.half_width == pytest.approx(1.96 * np.std(again) * math.sqrt(30 / 29), rel=0.08)


def test_macro_f1_without_photos_or_with_one_a_species() -> None:
    none = np.empty(0, np.int64)
    assert macro_f1(none, none) is None
    found = macro_f1(np.array([0, 2]), np.array([0, 1]))
    assert found == Interval(1 / 3, None, None)

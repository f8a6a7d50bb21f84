"""Guesses, class means, shot bands and intervals against loops that a reader can check."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from inat.metrics import (
    Interval,
    accuracy_interval,
    bootstrap_interval,
    class_f1,
    class_means,
    hits_at,
    macro_f1,
    mean_of,
    photo_interval,
    shot_bands,
    top_k,
    wilson_bounds,
)


def slow_top_k(row: Sequence[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda label: (-row[label], label))[:k]


def slow_interval(values: Sequence[float], labels: Sequence[int], n_resamples: int) -> Interval:
    """The interval photo by photo: every class draws as many of its own photos as it has."""
    photos_of: dict[int, list[float]] = {}
    for value, label in zip(values, labels, strict=True):
        photos_of.setdefault(label, []).append(value)
    means = {label: sum(photos) / len(photos) for label, photos in photos_of.items()}
    rng = random.Random(0)
    spreads = [np.var(photos, ddof=1) for photos in photos_of.values() if len(photos) > 1]
    alone = math.sqrt(sum(spreads) / len(spreads))  # of a photo without others of its class
    totals = []
    for _ in range(n_resamples):
        total = 0.0
        for label, photos in photos_of.items():
            n = len(photos)
            if n > 1:
                again = sum(rng.choice(photos) for _ in photos) / n
                total += math.sqrt(n / (n - 1)) * (again - means[label])
            else:
                total += rng.gauss(0, alone)
        totals.append(total / len(means))
    value = sum(means.values()) / len(means)
    low, high = np.quantile(totals, (0.025, 0.975))
    n_alone = sum(len(photos) == 1 for photos in photos_of.values())
    return Interval(value, value + float(low), value + float(high), n_alone)


def standard_error(values: np.ndarray, labels: np.ndarray) -> float:
    """Of the mean of class means: the root of sum s^2 / n over C (Cochran 1977, eq. 5.14)."""
    classes = [values[labels == label] for label in np.unique(labels)]
    return math.sqrt(sum(each.var(ddof=1) / len(each) for each in classes)) / len(classes)


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


def test_the_interval_is_that_of_a_slow_bootstrap_within_species() -> None:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(24), [3, 3, 1, 5, 2, 8] * 4))
    hits = np.random.default_rng(6).random(len(labels)) < 0.6
    expected = slow_interval(hits.tolist(), labels.tolist(), 3000)
    found = bootstrap_interval(hits, labels, n_resamples=100_000)
    assert found is not None
    assert found.value == pytest.approx(expected.value)
    assert found.left_out == expected.left_out == 4
    # The ends of 3,000 resamples are known to 0.003.
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)
    assert expected.high - expected.low > 0.15


@pytest.mark.parametrize("n", [2, 3, 12])
@pytest.mark.parametrize("kind", ["hits", "differences", "numbers"])
def test_the_interval_is_1_96_standard_errors_wide_on_either_side(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    labels = rng.permutation(np.repeat(np.arange(120), n))
    values = {
        "hits": (rng.random(len(labels)) < 0.7).astype(float),
        "differences": rng.choice([-1.0, 0.0, 1.0], len(labels), p=[0.1, 0.7, 0.2]),
        "numbers": rng.normal(size=len(labels)),
    }[kind]
    found = bootstrap_interval(values, labels, n_resamples=10_000)
    assert found is not None
    wanted = 1.96 * standard_error(values, labels)
    assert found.high - found.value == pytest.approx(wanted, rel=0.06)
    assert found.value - found.low == pytest.approx(wanted, rel=0.06)


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


def test_species_with_one_photo_have_the_spread_of_the_others() -> None:
    found = bootstrap_interval(np.array([True, False, True]), np.array([0, 1, 2]))
    assert found == Interval(2 / 3, None, None, 3)
    more = bootstrap_interval(np.array([True, False, True, False]), np.array([0, 1, 2, 2]))
    assert more is not None
    assert (more.value, more.left_out) == (0.5, 2)
    # A photo's variance is 1/2, as that of species 2: sqrt(1/2 / 2 + 1/2 + 1/2) over 3 species.
    assert more.half_width == pytest.approx(1.96 * math.sqrt(1.25) / 3, rel=0.08)
    by_photo = photo_interval(np.array([True, False, True, False]), np.array([0, 1, 2, 2]))
    assert by_photo is not None
    assert (by_photo.value, by_photo.left_out) == (0.5, 2)
    assert by_photo.half_width == pytest.approx(1.96 * math.sqrt(4 * 0.5) / 4, rel=0.08)


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


def test_the_interval_of_a_mean_over_photos_weighs_species_by_their_photos() -> None:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(90), [2, 3, 10] * 30))
    hits = np.random.default_rng(4).random(len(labels)) < 0.6
    members = np.arange(90) >= 30
    found = photo_interval(hits, labels, members)
    assert found is not None
    counted = members[labels]
    assert found.value == pytest.approx(hits[counted].mean())
    variance = sum(
        len(own) * own.var(ddof=1)
        for own in (hits[labels == label].astype(float) for label in np.flatnonzero(members))
    )
    half_width = 1.96 * math.sqrt(variance) / counted.sum()
    assert found.half_width == pytest.approx(half_width, rel=0.08)


def test_photos_of_no_member_give_no_interval_over_photos() -> None:
    hits, labels = np.array([True, True]), np.array([0, 0])
    assert photo_interval(hits, labels, np.array([False, True])) is None
    assert photo_interval(np.zeros(0, bool), np.zeros(0, np.int64)) is None


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("over", ["classes", "images"])
def test_all_right_or_all_wrong_is_not_certain(right: bool, over: str) -> None:
    labels = np.repeat(np.arange(4), 3)
    hits = np.full(12, right)
    hits[:3] = not right  # of the class that does not count
    found = accuracy_interval(hits, labels, np.arange(4) > 0, over=over)  # type: ignore[arg-type]
    wilson = binomtest(9 * right, 9).proportion_ci(method="wilson")
    assert found is not None
    assert found.value == float(right)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))


@pytest.mark.parametrize("over", ["classes", "images"])
def test_classes_each_all_right_or_all_wrong_are_not_certain(over: str) -> None:
    labels = np.repeat(np.arange(4), 3)
    hits = np.repeat([True, False, True, True], 3)
    found = accuracy_interval(hits, labels, over=over)  # type: ignore[arg-type]
    wilson = binomtest(9, 12).proportion_ci(method="wilson")
    assert found is not None
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))


def test_an_accuracy_s_interval_stays_within_0_and_1() -> None:
    labels = np.repeat(np.arange(3), 2)
    found = accuracy_interval(np.array([1, 1, 1, 1, 0, 1], bool), labels)
    assert found is not None
    assert found.high == 1
    assert accuracy_interval(np.array([True]), np.array([0])) == Interval(1.0, None, None, 1)


def test_wilson_bounds_equal_scipy_s_and_are_unknown_below_two_photos() -> None:
    n_hits, n = np.array([0, 1, 0, 1, 3, 3, 17]), np.array([0, 1, 1, 3, 3, 8, 40])
    low, high = wilson_bounds(n_hits, n)
    assert np.isnan([low[:3], high[:3]]).all()
    for place in range(3, 7):
        expected = binomtest(n_hits[place], n[place]).proportion_ci(method="wilson")
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high))


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
    assert found.half_width == pytest.approx(1.96 * np.std(again) * math.sqrt(30 / 29), rel=0.08)


def test_macro_f1_without_photos_or_with_one_a_species() -> None:
    none = np.empty(0, np.int64)
    assert macro_f1(none, none) is None
    found = macro_f1(np.array([0, 2]), np.array([0, 1]))
    assert found == Interval(1 / 3, None, None)

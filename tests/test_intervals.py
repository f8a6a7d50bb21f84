"""Intervals: exact small cases, the limit of many photos, and how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from inat.core.intervals import (
    Interval,
    accuracy_interval,
    gain_interval,
    score_bounds,
    wilson_bounds,
)

HITS, GAINS = (0.5, 0.5), (0.0, 1.0)
Z95 = 1.959964


def standard_error(values: np.ndarray, labels: np.ndarray) -> float:
    """Of the mean of class means: the root of sum s^2 / n over C (Cochran 1977, eq. 5.14)."""
    classes = [values[labels == label] for label in np.unique(labels)]
    return math.sqrt(sum(each.var(ddof=1) / len(each) for each in classes)) / len(classes)


def slow_bounds(n_hits: int, n: int) -> tuple[float, float]:
    """One species: the chances from which the share is 1.96 standard errors away, or as much
    farther as the skewness of its distribution makes that tail longer, found by walking."""
    share, step, ends = n_hits / n, 1e-5, []
    for side in (-1, 1):
        chance = share
        while 0 < chance + side * step < 1:
            chance += side * step
            variance = chance * (1 - chance) / n
            skew = chance * (1 - chance) * (1 - 2 * chance) / n**2
            longer = max(0, -side * (Z95**2 - 1) / 6 * skew / variance)
            if abs(chance - share) > Z95 * math.sqrt(variance) + longer:
                break
        ends.append(chance)
    return ends[0], ends[1]


def one_species(n_hits: int, n: int) -> Interval:
    found = accuracy_interval(np.arange(n) < n_hits, np.zeros(n, np.int64))
    assert found is not None
    return found


@pytest.mark.parametrize(("n_hits", "n"), [(0, 1), (1, 3), (2, 3), (4, 40), (20, 40), (37, 40)])
def test_one_species_has_wilson_s_interval_lengthened_on_the_side_of_the_skew(
    n_hits: int, n: int
) -> None:
    found = one_species(n_hits, n)
    assert (found.low, found.high) == pytest.approx(slow_bounds(n_hits, n), abs=2e-5)
    wilson = binomtest(n_hits, n).proportion_ci(method="wilson")
    assert found.low <= wilson.low + 1e-6
    assert found.high >= wilson.high - 1e-6


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
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-6)


def test_two_photos_do_not_borrow_certainty_from_another_species_thousand() -> None:
    labels = np.repeat([0, 1], [1000, 2])
    found = accuracy_interval(labels == 0, labels)
    alone = one_species(0, 2)
    assert found is not None
    assert found.value == 0.5
    assert found.high == pytest.approx((1 + alone.high) / 2, abs=0.01)


@pytest.mark.parametrize("n", [3, 12])
@pytest.mark.parametrize("kind", ["accuracy", "gain"])
def test_of_many_photos_the_interval_is_1_96_standard_errors_on_either_side(
    n: int, kind: str
) -> None:
    rng = np.random.default_rng(n)
    labels = rng.permutation(np.repeat(np.arange(600), n))
    chances = rng.beta(2, 1, 600)[labels]
    hits, new_hits = rng.random(len(labels)) < chances, rng.random(len(labels)) < chances
    if kind == "accuracy":
        found, values = accuracy_interval(hits, labels), hits.astype(float)
    else:
        found, values = gain_interval(hits, new_hits, labels), new_hits.astype(float) - hits
    assert found is not None
    wanted = 1.96 * standard_error(values, labels)
    assert found.high - found.value == pytest.approx(wanted, rel=0.05)
    assert found.value - found.low == pytest.approx(wanted, rel=0.05)


def test_species_of_one_photo_have_the_variance_of_species_with_few() -> None:
    labels = np.arange(400)
    hits = np.arange(400) % 2 == 0
    found = accuracy_interval(hits, labels)
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.03)


def test_the_mean_is_over_species_or_over_photos() -> None:
    labels = np.array([0, 0, 0, 0, 1, 3])
    hits = np.array([1, 1, 1, 0, 0, 1], bool)
    by_class, by_image = (
        accuracy_interval(hits, labels, np.ones(5, bool), over=over)
        for over in ("classes", "images")
    )
    assert by_class is not None
    assert by_image is not None
    assert by_class.value == pytest.approx((0.75 + 0 + 1) / 3)
    assert by_image.value == pytest.approx(4 / 6)


def test_members_choose_the_species_that_count() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    hits = np.array([1, 1, 0, 1, 0, 0], bool)
    both = accuracy_interval(hits, labels, np.array([False, True, True]))
    assert both == accuracy_interval(hits[2:], labels[2:] - 1)
    assert both is not None
    assert both.value == 0.25


def test_no_photo_gives_no_interval() -> None:
    nothing, none = np.zeros(0, bool), np.zeros(0, np.int64)
    hits, labels, stranger = np.array([True, True]), np.array([0, 0]), np.array([False, True])
    for over in ("classes", "images"):
        assert accuracy_interval(nothing, none, over=over) is None
        assert gain_interval(nothing, nothing, none, over=over) is None
        assert accuracy_interval(hits, labels, stranger, over=over) is None


def test_identical_hits_leave_a_difference_possible() -> None:
    for n_species, n in ((1, 30), (10, 3), (30, 1)):
        labels = np.repeat(np.arange(n_species), n)
        for hits in (np.zeros(30, bool), np.arange(30) % 3 > 0):
            found = gain_interval(hits, hits, labels)
            assert found is not None
            assert found.value == 0
            assert found.high == pytest.approx(-found.low)
            # Tango's (1998) without discordant pairs: z^2 / (n + z^2), 0.114 of 30
            assert 0.1 < found.high < 0.2


def test_a_loss_is_the_mirror_image_of_a_gain() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(9), [1, 1, 2, 3, 5, 5, 8, 20, 40])
    hits, new_hits = rng.random(len(labels)) < 0.5, rng.random(len(labels)) < 0.8
    gain, loss = gain_interval(hits, new_hits, labels), gain_interval(new_hits, hits, labels)
    assert gain is not None
    assert loss is not None
    assert (loss.value, -loss.high, -loss.low) == pytest.approx((-gain.value, gain.low, gain.high))


def test_paired_gains_are_narrower_than_each_model_alone() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(30), 4)
    hits = rng.random(120) < 0.5
    better = hits.copy()
    better[np.flatnonzero(~hits)[:6]] = True
    alone, paired = accuracy_interval(hits, labels), gain_interval(hits, better, labels)
    assert alone is not None
    assert paired is not None
    assert paired.value == pytest.approx(6 / 120)
    assert paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["classes", "images"]),
)
def test_ends_enclose_the_estimate_within_what_is_possible_whatever_the_order(
    photos: list[tuple[int, bool, bool]], over: str
) -> None:
    labels, hits, new_hits = (np.array(column) for column in zip(*photos, strict=True))
    accuracy = accuracy_interval(hits, labels, over=over)  # type: ignore[arg-type]
    gain = gain_interval(hits, new_hits, labels, over=over)  # type: ignore[arg-type]
    assert accuracy is not None
    assert gain is not None
    assert 0 <= accuracy.low <= accuracy.value + 1e-9
    assert accuracy.value - 1e-9 <= accuracy.high <= 1
    assert -1 <= gain.low <= gain.value + 1e-9
    assert gain.value - 1e-9 <= gain.high <= 1
    assert accuracy.high - accuracy.low > 0.03
    assert gain.high - gain.low > 0.03
    assert accuracy_interval(hits[::-1], labels[::-1], over=over) == accuracy  # type: ignore[arg-type]


def test_wilson_bounds_equal_scipy_s_and_are_unknown_of_an_unknown_number() -> None:
    n_hits, n = np.array([0, 1, 0, 3, 8, 17]), np.array([2, 3, 3, 3, 8, 40])
    low, high = wilson_bounds(n_hits / n, n.astype(float))
    for place in range(len(n)):
        expected = binomtest(n_hits[place], n[place]).proportion_ci(method="wilson")
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high))
    assert np.isnan(wilson_bounds(np.array([0.5]), np.array([np.nan]))).all()


# --- how often they hold the truth -----------------------------------------------------------

WORLDS = {
    "a sure species and one of two photos": ([1000, 2], [1.0, 0.4], None),
    "a nearly sure one and a hard one": ([1000, 2], [0.999, 0.2], None),
    "sure ones and hard ones": ([200, 2] * 4, [0.999, 0.4] * 4, None),
    "frequent ones and hard ones": ([500, 2] * 10, [0.95, 0.2] * 10, None),
    "easy ones and hard ones of one photo": ([20, 1] * 10, [0.97, 0.5] * 10, None),
    "three photos each, nearly all right": ([3] * 40, [0.97] * 40, None),
    "three photos each, uneven": ([3] * 40, np.linspace(0.1, 0.95, 40), None),
    "hardly a difference": ([3] * 20, [0.02] * 20, [0.005] * 20),
    "hardly a difference, more species": ([3] * 60, [0.02] * 60, [0.005] * 60),
    "a gain": ([3] * 40, [0.15] * 40, [0.05] * 40),
    "a gain where photos are few": (
        [1, 1, 2, 3, 5, 9, 15, 30, 60, 120], np.linspace(0.3, 0, 10), np.linspace(0, 0.1, 10)
    ),
}  # fmt: skip


@pytest.mark.parametrize("over", ["classes", "images"])
@pytest.mark.parametrize("name", WORLDS)
def test_the_interval_holds_the_truth_in_at_least_93_of_100_experiments(
    name: str, over: str
) -> None:
    n, up, down = (np.array(each if each is not None else 0, float) for each in WORLDS[name])
    rng, size = np.random.default_rng(0), (1000, len(n))
    won = rng.binomial(n.astype(int), up, size)
    lost = rng.binomial(n.astype(int) - won, down / np.maximum(1 - up, 1e-9), size)
    weights = n / n.sum() if over == "images" else np.full(len(n), 1 / len(n))
    low, high = score_bounds(
        n, (won - lost).astype(float), (won + lost).astype(float), weights,
        made_up=HITS if WORLDS[name][2] is None else GAINS,
    )  # fmt: skip
    truth = weights @ (up - down)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93 - 0.016  # two standard errors


def test_the_ends_of_many_experiments_at_once_are_those_of_each() -> None:
    rng = np.random.default_rng(1)
    n = np.array([1.0, 2, 2, 7, 30])
    labels = np.repeat(np.arange(5), n.astype(int))
    hits, new_hits = rng.random((2, 6, len(labels))) < 0.6
    for over in ("classes", "images"):
        weights = n / n.sum() if over == "images" else np.full(5, 0.2)
        gains = new_hits.astype(float) - hits
        totals, squares = (
            np.array([np.bincount(labels, weights=each) for each in values])
            for values in (gains, gains**2)
        )
        ends = np.transpose(score_bounds(n, totals, squares, weights, made_up=GAINS))
        for place, (old, new) in enumerate(zip(hits, new_hits, strict=True)):
            found = gain_interval(old, new, labels, over=over)  # type: ignore[arg-type]
            assert found is not None
            assert (found.low, found.high) == pytest.approx(tuple(ends[place]), abs=1e-6)

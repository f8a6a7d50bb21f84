"""EM against slow loops, and what an estimated prior recovers in worlds of known shift."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import softmax
from shift_worlds import ShiftWorld, accuracy

from inat.core.priors import temper, total_variation
from inat.posthoc import calibration, label_shift
from inat.posthoc.calibration import Calibration
from inat.posthoc.label_shift import (
    N_RESAMPLES,
    PSEUDO_COUNTS,
    LabelShift,
    choose_pseudo_counts,
    em,
    estimate_label_shift,
    fit_power,
    likelihood_ratios,
    log_likelihood,
    resampled_priors,
    shifts_by_halves,
    strongest_within_error,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (30, 4))
SOURCE = np.array([0.4, 0.3, 0.2, 0.1])
AS_THEY_ARE = Calibration(1.0, np.zeros(4))
RATIOS = likelihood_ratios(LOGITS, AS_THEY_ARE, SOURCE)

EXACT = ShiftWorld(5, 3, 2000)
DISTORTED = ShiftWorld(20, 5, 2000, overconfidence=1.6, bias_spread=0.5)


def slow_em_step(
    logits: np.ndarray, source: list[float], prior: list[float], pseudo: list[float]
) -> list[float]:
    """Saerens et al. 2002, eq. 2.9, photo by photo; `pseudo` photos count with the others."""
    photos = list(pseudo)
    for row in logits.tolist():
        f = softmax(row).tolist()
        weighted = [f_j * p / pi for f_j, p, pi in zip(f, prior, source, strict=True)]
        for label, share in enumerate(weighted):
            photos[label] += share / sum(weighted)
    return [n / sum(photos) for n in photos]


def em_prior(
    ratios: np.ndarray, start: np.ndarray, pseudo_counts: np.ndarray | None = None, **options: Any
) -> np.ndarray:
    """One estimate."""
    pseudo_counts = np.zeros(len(start)) if pseudo_counts is None else pseudo_counts
    return em(ratios, start, pseudo_counts, **options).priors[:, 0]


# --- likelihood ratios -----------------------------------------------------------------------


def test_likelihood_ratios_are_probabilities_over_the_source_prior() -> None:
    for row, ratios in zip(LOGITS.tolist(), RATIOS.tolist(), strict=True):
        expected = [f / pi for f, pi in zip(softmax(row).tolist(), SOURCE.tolist(), strict=True)]
        assert ratios == pytest.approx(expected, rel=1e-12)


def test_a_class_of_source_prior_0_has_no_ratios() -> None:
    found = likelihood_ratios(LOGITS, AS_THEY_ARE, np.array([0.5, 0.0, 0.3, 0.2]))
    assert (found[:, 1] == 0).all()
    assert np.isfinite(found).all()


def test_of_many_ratios_those_below_the_floor_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_shift, "DENSE_RATIOS", 0)
    monkeypatch.setattr(calibration, "BLOCK_ENTRIES", 28)
    found = likelihood_ratios(3 * LOGITS, AS_THEY_ARE, SOURCE)
    whole = Calibration(1.0, np.zeros(4)).probabilities(3 * LOGITS) / SOURCE
    assert sp.issparse(found)
    assert 0 < found.nnz < whole.size
    assert found.toarray() == pytest.approx(np.where(whole > 1e-3, whole, 0), rel=1e-12)
    dense, sparse = em_prior(whole, SOURCE), em_prior(found, SOURCE)
    assert sparse == pytest.approx(dense, rel=5e-3, abs=1e-6)
    monkeypatch.setattr(label_shift, "MAX_RATIOS", found.nnz - 1)
    fewer = likelihood_ratios(3 * LOGITS, AS_THEY_ARE, SOURCE)
    assert fewer.toarray() == pytest.approx(np.where(whole > 1e-2, whole, 0), rel=1e-12)


# --- EM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [[0.4, 0.3, 0.2, 0.1], [0.1, 0.0, 0.2, 0.7]])
@pytest.mark.parametrize("pseudo", [[0.0] * 4, [0.7, 1.4, 2.1, 2.8]])
def test_a_step_of_em_equals_a_slow_loop(prior: list[float], pseudo: list[float]) -> None:
    found = em(RATIOS, np.array(prior), np.array(pseudo), max_iterations=1)
    expected = slow_em_step(LOGITS, SOURCE.tolist(), prior, pseudo)
    assert found.priors[:, 0].tolist() == pytest.approx(expected, rel=1e-12)
    assert (found.n_iterations, found.converged) == (1, False)


def test_em_stays_where_it_came_to_rest_and_no_neighbour_is_likelier() -> None:
    found = em(RATIOS, SOURCE, np.zeros(4), tolerance=1e-10, max_iterations=100_000)
    assert found.converged
    prior = found.priors[:, 0]
    assert em_prior(RATIOS, prior, max_iterations=1) == pytest.approx(prior, abs=1e-9)
    best = log_likelihood(RATIOS, found.priors).sum()
    for to in range(4):
        moved = 0.99 * prior + 0.01 * np.eye(4)[to]
        assert log_likelihood(RATIOS, moved[:, None]).sum() <= best + 1e-9


def test_no_step_lowers_the_likelihood_and_where_em_starts_does_not_matter() -> None:
    prior, before = SOURCE, -math.inf
    for _ in range(50):
        now = log_likelihood(RATIOS, prior[:, None]).sum()
        assert now >= before - 1e-12
        prior, before = em_prior(RATIOS, prior, max_iterations=1), now
    ends = [em_prior(RATIOS, start, tolerance=1e-9) for start in (SOURCE, SOURCE[::-1].copy())]
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_photos_that_leave_no_doubt_are_counted() -> None:
    logits = 1000 * np.eye(4)[[0, 0, 0, 1, 3, 3, 3, 3]]
    found = em(likelihood_ratios(logits, AS_THEY_ARE, SOURCE), SOURCE, np.zeros(4))
    assert found.priors[:, 0].tolist() == pytest.approx([3 / 8, 1 / 8, 0, 4 / 8])
    assert (found.n_iterations, found.converged) == (2, True)


def test_logits_at_the_floor_of_float16_stay_finite() -> None:
    logits = np.full((6, 4), np.finfo(np.float16).min, np.float16)
    logits[:, 0] = 0
    found = em_prior(likelihood_ratios(logits, AS_THEY_ARE, SOURCE), SOURCE)
    assert found.tolist() == [1, 0, 0, 0]


def test_one_photo_gives_plain_em_one_species_and_smoothed_em_all() -> None:
    ratios = RATIOS[:1]
    plain = em_prior(ratios, SOURCE, tolerance=1e-12, max_iterations=100_000)
    assert plain.max() == pytest.approx(1, abs=1e-3)
    smoothed = em_prior(ratios, SOURCE, 9 * SOURCE)
    assert (smoothed >= 0.9 * SOURCE - 1e-12).all()


def test_a_class_that_starts_at_0_stays_there_unless_the_smoothing_lifts_it() -> None:
    start = np.array([0.5, 0.0, 0.3, 0.2])
    assert em_prior(RATIOS, start)[1] == 0
    assert em_prior(RATIOS, start, 4 * SOURCE)[1] > 0.01


def test_a_class_that_no_photo_speaks_for_keeps_the_share_of_the_smoothing() -> None:
    ratios = RATIOS.copy()
    ratios[:, 2] = 0
    assert em_prior(ratios, SOURCE)[2] == 0
    assert em_prior(ratios, SOURCE, 10 * SOURCE)[2] == pytest.approx(10 * 0.2 / (30 + 10))


def test_columns_are_the_estimates_that_each_has_alone() -> None:
    weights = RNG.integers(0, 3, (30, 3)).astype(np.float64)
    pseudo = np.array([0.0, 2.0, 50.0]) * SOURCE[:, None]
    together = em(RATIOS, SOURCE, pseudo, weights)
    assert together.converged
    slowest = 0
    for column in range(3):
        photos = np.repeat(np.arange(30), weights[:, column].astype(int))
        alone = em(RATIOS[photos], SOURCE, pseudo[:, column])
        assert together.priors[:, column] == pytest.approx(alone.priors[:, 0], abs=1e-12)
        slowest = max(slowest, alone.n_iterations)
    assert together.n_iterations == slowest


# --- smoothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0, -1.0])
def test_the_power_of_the_training_shares_is_found(power: float) -> None:
    world = ShiftWorld(20, 6, 2000)
    logits = world.photos(world.draw(temper(world.source, power), 1000))
    ratios = likelihood_ratios(logits, Calibration(1.0, np.zeros(20)), world.source)
    assert fit_power(ratios, world.source) == pytest.approx(power, abs=0.15)


def test_without_a_word_from_the_photos_the_power_is_1() -> None:
    assert fit_power(np.ones((5, 4)), SOURCE) == pytest.approx(1, abs=1e-3)


def test_few_photos_are_smoothed_and_many_of_an_odd_prior_are_not() -> None:
    few = ShiftWorld(50, 6, 2000)
    logits = few.photos(few.draw(few.source, 100))
    ratios = likelihood_ratios(logits, Calibration(1.0, np.zeros(50)), few.source)
    pseudo_counts, gain = choose_pseudo_counts(ratios, few.source)
    assert pseudo_counts >= 3 * 50
    assert gain < 0.05
    many = ShiftWorld(4, 4, 2000)
    odd = np.array([0.05, 0.6, 0.05, 0.3])
    logits = many.photos(many.draw(odd, 2000))
    ratios = likelihood_ratios(logits, Calibration(1.0, np.zeros(4)), many.source)
    pseudo_counts, gain = choose_pseudo_counts(ratios, many.source)
    assert pseudo_counts <= 30 * 4
    assert gain > 0.1
    assert pseudo_counts / 4 in PSEUDO_COUNTS


# --- what is recovered -----------------------------------------------------------------------


def estimated(
    world: ShiftWorld, shift: str, n_held: int, n_target: int
) -> tuple[LabelShift, float, float]:
    """The estimate, and what it and the true prior gain in accuracy over the source prior.

    The gain is measured on 20,000 other photos: on the few that the estimate is made from, the
    chance of which guesses change is as large.
    """
    held_out = world.held_out(n_held)
    target = world.target(shift)
    logits = world.photos(world.draw(target, n_target))
    found = estimate_label_shift(logits, world.source, held_out=held_out)
    labels = world.draw(target, 20_000)
    calibrated = found.calibration.logits(world.photos(labels))
    source, oracle, estimate = (
        accuracy(calibrated, found.source, prior, labels)
        for prior in (found.source, target, found.prior)
    )
    return found, estimate - source, oracle - source


@pytest.mark.parametrize(
    ("world", "n_held", "n_target"), [(EXACT, 1000, 500), (DISTORTED, 1500, 1000)]
)
@pytest.mark.parametrize(
    ("shift", "least"),
    # The first two are powers of the training shares, the last is any shares: which of two
    # species that look alike has them is known badly.
    [("uniform", 0.9), ("reversed", 0.9), ("dirichlet", 0.7)],
)
def test_most_of_the_oracles_gain_is_recovered(
    world: ShiftWorld, n_held: int, n_target: int, shift: str, least: float
) -> None:
    gained, possible = 0.0, 0.0
    for seed in range(2):
        found, gain, oracle = estimated(replace(world, seed=seed), shift, n_held, n_target)
        assert found.is_stable
        assert found.check is not None
        assert found.check.agrees
        assert gain > 0
        gained, possible = gained + gain, possible + oracle
    assert least * possible < gained < 1.02 * possible


@pytest.mark.parametrize("world", [EXACT, DISTORTED])
def test_where_nothing_has_shifted_little_is_lost_and_the_estimate_is_called_unstable(
    world: ShiftWorld,
) -> None:
    gains, stable = [], 0
    for seed in range(3):
        found, gain, _ = estimated(replace(world, seed=seed), "none", 1000, 500)
        gains.append(gain)
        stable += found.is_stable
    assert min(gains) > -0.01, gains
    assert np.mean(gains) > -0.003, gains
    assert stable <= 1


def test_the_strongest_smoothing_within_one_standard_error_of_the_best_is_taken() -> None:
    best = np.array([0.0, 1.0, 2.0, 3.0])
    ahead = np.array([0.1, 0.3, 0.1, 0.3])  # 0.2 in the mean, with a standard error of 0.05
    chance = np.array([-0.9, 1.1, -0.9, 1.1])  # 0.1 in the mean, with a standard error of 0.5
    assert strongest_within_error(np.stack([best - ahead, best], axis=1)) == 1
    assert strongest_within_error(np.stack([best - chance, best], axis=1)) == 0
    assert strongest_within_error(np.stack([best - ahead, best, best - chance], axis=1)) == 1
    assert strongest_within_error(np.stack([best - ahead, best - chance, best], axis=1)) == 1
    assert strongest_within_error(np.stack([best, best], axis=1)) == 0


def test_with_few_photos_a_species_smoothing_saves_what_plain_em_loses() -> None:
    world = ShiftWorld(100, 8, 1000)
    held_out = world.held_out(2000)
    labels = world.draw(world.source, 300)
    logits = world.photos(labels)
    found = estimate_label_shift(logits, world.source, held_out=held_out)
    plain = em_prior(likelihood_ratios(logits, found.calibration, found.source), found.source)
    calibrated = found.calibration.logits(logits)
    source, smoothed, unsmoothed = (
        accuracy(calibrated, found.source, prior, labels)
        for prior in (found.source, found.prior, plain)
    )
    assert abs(smoothed - source) < 0.02
    assert unsmoothed < source - 0.03


def test_blurred_photos_make_em_and_bbse_disagree_and_sharp_ones_do_not() -> None:
    """Features halfway to their mean: no shares of species make up what is predicted of them."""
    for seed in range(2):
        world = ShiftWorld(10, 4, 2000, imbalance=2, seed=seed)
        held_out = world.held_out(6000)
        means = world.means[world.draw(world.source, 1000)]
        features = means + np.random.default_rng(seed).normal(size=means.shape)
        for sharpness, agrees in ((1.0, True), (0.5, False)):
            found = estimate_label_shift(
                world.logits(sharpness * features), world.source, held_out=held_out
            )
            assert found.check is not None
            assert found.check.agrees is agrees


def test_without_held_out_photos_the_logits_are_taken_as_they_are_and_bbse_is_not_asked() -> None:
    uniform = np.full(5, 0.2)
    world = replace(EXACT, seed=0)
    logits = world.photos(world.draw(uniform, 1000))
    found = estimate_label_shift(logits, world.source, source=world.source)
    assert (found.calibration.temperature, found.check) == (1.0, None)
    assert (found.source == world.source).all()
    assert total_variation(found.prior, uniform) < 0.08


def test_the_spread_joins_resampled_photos_and_halved_held_out_ones_and_falls_with_both() -> None:
    spreads = []
    for n_photos in (50, 2000):
        world = replace(EXACT, seed=3)
        held_out = world.held_out(4 * n_photos)
        logits = world.photos(world.draw(np.full(5, 0.2), n_photos))
        found = estimate_label_shift(logits, world.source, held_out=held_out)
        ratios = likelihood_ratios(logits, found.calibration, found.source)
        smoothing = world.source, 5 * found.pseudo_counts
        again = resampled_priors(ratios, found.prior, *smoothing)
        by_photos = sum(total_variation(column, found.prior) for column in again.T) / N_RESAMPLES
        halves = shifts_by_halves(logits, held_out, found.prior, *smoothing)
        by_held_out = total_variation(*halves) / 2
        assert found.spread == pytest.approx(math.hypot(by_photos, by_held_out))
        spreads.append(found.spread)
    assert spreads[0] > 2 * spreads[1]


def test_the_same_seed_gives_the_same_estimate() -> None:
    world = replace(EXACT, seed=0)
    held_out = world.held_out(300)
    logits = world.photos(world.draw(world.source, 200))
    one, other = (estimate_label_shift(logits, world.source, held_out=held_out) for _ in range(2))
    assert one.prior.tolist() == other.prior.tolist()
    assert (one.pseudo_counts, one.gain, one.spread) == (
        other.pseudo_counts, other.gain, other.spread
    )  # fmt: skip

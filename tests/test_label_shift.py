"""Calibration, EM and BBSE against slow loops, and what they recover in worlds of known shift."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from shift_worlds import ShiftWorld, accuracy

from inat import calibration, label_shift
from inat.calibration import Calibration, calibrate, mean_probability
from inat.label_shift import (
    PSEUDO_PHOTOS,
    Smoothing,
    bbse_prior,
    bbse_weights,
    choose_smoothing,
    confusion_matrix,
    em_columns,
    em_prior,
    em_step,
    fit_power,
    hard_predictions,
    likelihood_ratios,
    log_likelihood,
    power_prior,
    total_variation,
    unexplained_shares,
)
from inat.prior_estimate import LabelShift, bootstrap_priors, estimate_label_shift

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (30, 4))
LABELS = (LOGITS + RNG.normal(0, 2, (30, 4))).argmax(axis=1)
SOURCE = np.array([0.4, 0.3, 0.2, 0.1])
AS_THEY_ARE = Calibration(1.0, np.zeros(4))
RATIOS = likelihood_ratios(LOGITS, AS_THEY_ARE, SOURCE)

EXACT = ShiftWorld(5, 3, 2000)
DISTORTED = ShiftWorld(20, 5, 2000, overconfidence=1.6, bias_spread=0.5)


def slow_softmax(row: list[float]) -> list[float]:
    best = max(row)
    total = sum(math.exp(z - best) for z in row)
    return [math.exp(z - best) / total for z in row]


def slow_nll(logits: np.ndarray, labels: np.ndarray, temperature: float, bias: np.ndarray) -> float:
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        moved = [z / temperature + b for z, b in zip(row, bias.tolist(), strict=True)]
        losses.append(-math.log(slow_softmax(moved)[label]))
    return sum(losses) / len(losses)


def slow_em_step(
    logits: np.ndarray, source: list[float], prior: list[float], pseudo: list[float]
) -> list[float]:
    """Saerens et al. 2002, eq. 2.9, photo by photo; `pseudo` photos count with the others."""
    photos = list(pseudo)
    for row in logits.tolist():
        weighted = [f * p / pi for f, p, pi in zip(slow_softmax(row), prior, source, strict=True)]
        for label, share in enumerate(weighted):
            photos[label] += share / sum(weighted)
    return [n / sum(photos) for n in photos]


def slow_confusion(predicted: np.ndarray, labels: np.ndarray, n_classes: int) -> list[list[float]]:
    shares = [[0.0] * n_classes for _ in range(n_classes)]
    for guess, label in zip(predicted.tolist(), labels.tolist(), strict=True):
        shares[guess][label] += 1 / len(labels)
    return shares


def slow_solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss-Jordan elimination."""
    rows = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]


# --- calibration -----------------------------------------------------------------------------


def test_calibrated_probabilities_are_softmax_of_z_over_t_plus_b() -> None:
    bias = np.array([0.5, -1.0, 0.0, 2.0])
    found = Calibration(1.7, bias).probabilities(LOGITS.astype(np.float16))
    for row, probabilities in zip(LOGITS.astype(np.float16).tolist(), found, strict=True):
        moved = [z / 1.7 + b for z, b in zip(row, bias.tolist(), strict=True)]
        assert probabilities.tolist() == pytest.approx(slow_softmax(moved), rel=1e-12)


def test_calibration_states_the_nll_before_and_after_as_a_slow_loop_finds_it() -> None:
    found = calibrate(LOGITS, LABELS)
    assert found.nll_before == pytest.approx(slow_nll(LOGITS, LABELS, 1.0, np.zeros(4)))
    assert found.nll == pytest.approx(slow_nll(LOGITS, LABELS, found.temperature, found.bias))
    assert found.nll < found.nll_before


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_no_neighbour_of_the_calibration_has_a_smaller_penalised_nll(penalty: float) -> None:
    def loss(slope: float, bias: np.ndarray) -> float:
        squares = (slope - 1) ** 2 + float(bias @ bias)
        return slow_nll(LOGITS, LABELS, 1 / slope, bias) + penalty / 2 * squares / len(LABELS)

    found = calibrate(LOGITS, LABELS, penalty=penalty)
    slope, least = 1 / found.temperature, loss(1 / found.temperature, found.bias)
    for step in (0.02, -0.02):
        assert loss(slope + step, found.bias) > least
        for direction in np.eye(4):
            assert loss(slope, found.bias + step * direction) > least


def test_calibration_takes_overconfidence_and_bias_off_and_nll_falls_on_new_photos() -> None:
    found = calibrate(*DISTORTED.held_out(3000))
    assert found.temperature == pytest.approx(1.6, abs=0.1)
    logits, labels = DISTORTED.held_out(2000)
    after = slow_nll(logits, labels, found.temperature, found.bias)
    assert after < slow_nll(logits, labels, 1.0, np.zeros(20)) - 0.1
    assert after == pytest.approx(found.nll, abs=0.1)


def test_exact_posteriors_are_left_as_they_are() -> None:
    found = calibrate(*ShiftWorld(5, 3, 2000, seed=1).held_out(5000))
    assert found.temperature == pytest.approx(1.0, abs=0.06)
    assert np.abs(found.bias).max() < 0.2


def test_with_hardly_a_penalty_the_mean_probability_is_the_share_of_the_labels() -> None:
    found = calibrate(LOGITS, LABELS, penalty=1e-6)
    shares = [LABELS.tolist().count(label) / 30 for label in range(4)]
    assert mean_probability(LOGITS, found) == pytest.approx(shares, abs=1e-3)


def test_a_species_without_a_held_out_photo_has_a_finite_bias_and_some_of_the_prior() -> None:
    some = LABELS != 2
    found = calibrate(LOGITS[some], LABELS[some])
    assert -5 < found.bias[2] < 0
    assert mean_probability(LOGITS[some], found)[2] > 0.01


def test_one_photo_and_photos_that_are_all_right_give_a_finite_calibration() -> None:
    one = calibrate(LOGITS[:1], LABELS[:1])
    assert 0.5 < one.temperature < 2
    assert np.abs(one.bias).max() < 1
    right = calibrate(20 * np.eye(4), np.arange(4))
    assert 0 < right.temperature <= 1
    assert np.isfinite(right.bias).all()


def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate(LOGITS, LABELS)
    prior = mean_probability(LOGITS, whole)
    monkeypatch.setattr(calibration, "BLOCK_ENTRIES", 28)
    parts = calibrate(LOGITS, LABELS)
    assert parts.temperature == pytest.approx(whole.temperature, rel=1e-6)
    assert parts.bias == pytest.approx(whole.bias, abs=1e-6)
    assert mean_probability(LOGITS, whole) == pytest.approx(prior, rel=1e-12)


# --- likelihood ratios -----------------------------------------------------------------------


def test_likelihood_ratios_are_probabilities_over_the_source_prior() -> None:
    for row, ratios in zip(LOGITS.tolist(), RATIOS.tolist(), strict=True):
        expected = [f / pi for f, pi in zip(slow_softmax(row), SOURCE.tolist(), strict=True)]
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
    dense, sparse = em_prior(whole, SOURCE).prior, em_prior(found, SOURCE).prior
    assert sparse == pytest.approx(dense, rel=5e-3, abs=1e-6)
    monkeypatch.setattr(label_shift, "MAX_RATIOS", found.nnz - 1)
    fewer = likelihood_ratios(3 * LOGITS, AS_THEY_ARE, SOURCE)
    assert fewer.toarray() == pytest.approx(np.where(whole > 1e-2, whole, 0), rel=1e-12)


# --- EM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [[0.4, 0.3, 0.2, 0.1], [0.1, 0.0, 0.2, 0.7]])
def test_a_step_of_em_equals_a_slow_loop(prior: list[float]) -> None:
    expected = slow_em_step(LOGITS, SOURCE.tolist(), prior, [0.0] * 4)
    assert em_step(RATIOS, np.array(prior)).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_step_with_pseudo_photos_equals_a_slow_loop() -> None:
    centre = np.array([0.1, 0.2, 0.3, 0.4])
    found = em_prior(RATIOS, SOURCE, Smoothing(centre, 7.0), max_iterations=1)
    expected = slow_em_step(LOGITS, SOURCE.tolist(), SOURCE.tolist(), (7 * centre).tolist())
    assert found.prior.tolist() == pytest.approx(expected, rel=1e-12)
    assert (found.n_iterations, found.converged) == (1, False)


def test_em_stays_where_it_came_to_rest_and_no_neighbour_is_likelier() -> None:
    found = em_prior(RATIOS, SOURCE, tolerance=1e-10, max_iterations=100_000)
    assert found.converged
    assert em_step(RATIOS, found.prior) == pytest.approx(found.prior, abs=1e-9)
    best = log_likelihood(RATIOS, found.prior[:, None]).sum()
    for to in range(4):
        moved = 0.99 * found.prior + 0.01 * np.eye(4)[to]
        assert log_likelihood(RATIOS, moved[:, None]).sum() <= best + 1e-9


def test_no_step_lowers_the_likelihood_and_where_em_starts_does_not_matter() -> None:
    prior, before = SOURCE, -math.inf
    for _ in range(50):
        now = log_likelihood(RATIOS, prior[:, None]).sum()
        assert now >= before - 1e-12
        prior, before = em_step(RATIOS, prior), now
    ends = [em_prior(RATIOS, start, tolerance=1e-9) for start in (SOURCE, SOURCE[::-1].copy())]
    assert ends[0].prior == pytest.approx(ends[1].prior, abs=1e-5)


def test_photos_that_leave_no_doubt_are_counted() -> None:
    logits = 1000 * np.eye(4)[[0, 0, 0, 1, 3, 3, 3, 3]]
    found = em_prior(likelihood_ratios(logits, AS_THEY_ARE, SOURCE), SOURCE)
    assert found.prior.tolist() == pytest.approx([3 / 8, 1 / 8, 0, 4 / 8])
    assert found.n_iterations == 2


def test_logits_at_the_floor_of_float16_stay_finite() -> None:
    logits = np.full((6, 4), np.finfo(np.float16).min, np.float16)
    logits[:, 0] = 0
    found = em_prior(likelihood_ratios(logits, AS_THEY_ARE, SOURCE), SOURCE)
    assert found.prior.tolist() == [1, 0, 0, 0]


def test_one_photo_gives_plain_em_one_species_and_smoothed_em_all() -> None:
    ratios = RATIOS[:1]
    plain = em_prior(ratios, SOURCE, tolerance=1e-12, max_iterations=100_000).prior
    assert plain.max() == pytest.approx(1, abs=1e-3)
    smoothed = em_prior(ratios, SOURCE, Smoothing(SOURCE, 9.0)).prior
    assert (smoothed >= 0.9 * SOURCE - 1e-12).all()


def test_a_class_that_starts_at_0_stays_there_unless_the_smoothing_lifts_it() -> None:
    start = np.array([0.5, 0.0, 0.3, 0.2])
    assert em_prior(RATIOS, start).prior[1] == 0
    assert em_prior(RATIOS, start, Smoothing(SOURCE, 4.0)).prior[1] > 0.01


def test_a_class_that_no_photo_speaks_for_keeps_the_share_of_the_smoothing() -> None:
    ratios = RATIOS.copy()
    ratios[:, 2] = 0
    assert em_prior(ratios, SOURCE).prior[2] == 0
    found = em_prior(ratios, SOURCE, Smoothing(SOURCE, 10.0))
    assert found.prior[2] == pytest.approx(10 * 0.2 / (30 + 10))


def test_columns_are_the_estimates_that_each_has_alone() -> None:
    weights = RNG.integers(0, 3, (30, 3)).astype(np.float64)
    pseudo = np.array([0.0, 2.0, 50.0]) * SOURCE[:, None]
    starts = np.repeat(SOURCE[:, None], 3, axis=1)
    together, n_iterations, converged = em_columns(RATIOS, starts, weights, pseudo)
    assert converged
    for column in range(3):
        photos = np.repeat(np.arange(30), weights[:, column].astype(int))
        strength = float(pseudo[:, column].sum())
        alone = em_prior(RATIOS[photos], SOURCE, Smoothing(SOURCE, strength), tolerance=1e-5)
        assert together[:, column] == pytest.approx(alone.prior, abs=1e-12)
        assert alone.n_iterations <= n_iterations


def test_rescaled_ratios_are_those_of_another_source_prior() -> None:
    other = np.array([0.1, 0.2, 0.3, 0.4])
    ones, none = np.ones((30, 1)), np.zeros((4, 1))
    found, _, _ = em_columns(
        RATIOS, SOURCE[:, None], ones, none, (SOURCE / other)[:, None], tolerance=1e-8
    )
    expected = em_prior(likelihood_ratios(LOGITS, AS_THEY_ARE, other), SOURCE, tolerance=1e-8)
    assert found[:, 0] == pytest.approx(expected.prior, abs=1e-6)


# --- smoothing -------------------------------------------------------------------------------


def test_powers_of_a_prior() -> None:
    assert power_prior(SOURCE, 1.0) == pytest.approx(SOURCE)
    assert power_prior(SOURCE, 0.0) == pytest.approx([0.25] * 4)
    inverse = [1 / p for p in SOURCE]
    assert power_prior(SOURCE, -1.0) == pytest.approx([w / sum(inverse) for w in inverse])


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0, -1.0])
def test_the_power_of_the_training_shares_is_found(power: float) -> None:
    world = ShiftWorld(20, 6, 2000)
    logits = world.photos(world.draw(power_prior(world.source, power), 1000))
    ratios = likelihood_ratios(logits, Calibration(1.0, np.zeros(20)), world.source)
    assert fit_power(ratios, world.source) == pytest.approx(power, abs=0.15)


def test_without_a_word_from_the_photos_the_power_is_1() -> None:
    assert fit_power(np.ones((5, 4)), SOURCE) == pytest.approx(1, abs=1e-3)


def test_few_photos_are_smoothed_and_many_of_an_odd_prior_are_not() -> None:
    few = ShiftWorld(50, 6, 2000)
    logits = few.photos(few.draw(few.source, 100))
    ratios = likelihood_ratios(logits, Calibration(1.0, np.zeros(50)), few.source)
    smoothing, gain = choose_smoothing(ratios, few.source)
    assert smoothing.pseudo_photos >= 3 * 50
    assert gain < 0.05
    many = ShiftWorld(4, 4, 2000)
    odd = np.array([0.05, 0.6, 0.05, 0.3])
    logits = many.photos(many.draw(odd, 2000))
    ratios = likelihood_ratios(logits, Calibration(1.0, np.zeros(4)), many.source)
    smoothing, gain = choose_smoothing(ratios, many.source)
    assert smoothing.pseudo_photos <= 30 * 4
    assert gain > 0.1
    assert smoothing.pseudo_photos / 4 in PSEUDO_PHOTOS


# --- BBSE ------------------------------------------------------------------------------------


def test_the_confusion_matrix_and_the_hard_predictions_equal_slow_loops() -> None:
    predicted = hard_predictions(LOGITS, AS_THEY_ARE, SOURCE)
    for row, guess in zip(LOGITS.tolist(), predicted.tolist(), strict=True):
        ratios = [z - math.log(pi) for z, pi in zip(row, SOURCE.tolist(), strict=True)]
        assert guess == ratios.index(max(ratios))
    found = confusion_matrix(predicted, LABELS, 4).toarray()
    assert found == pytest.approx(np.array(slow_confusion(predicted, LABELS, 4)))
    weights = RNG.integers(1, 4, 30).astype(np.float64)
    again = np.repeat(np.arange(30), weights.astype(int))
    weighted = confusion_matrix(predicted, LABELS, 4, weights).toarray()
    assert weighted == pytest.approx(np.array(slow_confusion(predicted[again], LABELS[again], 4)))


def test_bbse_weights_equal_a_slow_elimination_with_negative_ones_set_to_0() -> None:
    predicted = np.where(RNG.random(400) < 0.6, LABELS.repeat(14)[:400], RNG.integers(4, size=400))
    labels = LABELS.repeat(14)[:400]
    shares = np.array([0.7, 0.05, 0.15, 0.1])
    expected = slow_solve(slow_confusion(predicted, labels, 4), shares.tolist())
    assert min(expected) < 0
    found = bbse_weights(confusion_matrix(predicted, labels, 4), shares)
    assert found.tolist() == pytest.approx([max(w, 0) for w in expected], abs=1e-8)


def test_bbse_solves_the_exact_case_exactly() -> None:
    given = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])  # P(predicted | true)
    source, target = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.2, 0.7])
    weights = bbse_weights(sp.csr_array(given * source), given @ target)
    assert weights == pytest.approx(target / source, rel=1e-8)
    many = 10**12, 10**12
    assert bbse_prior(sp.csr_array(given * source), given @ target, source, many) == pytest.approx(
        target, rel=1e-6
    )
    assert unexplained_shares(sp.csr_array(given * source), given @ target, target) < 1e-12


def test_a_species_never_held_out_or_never_predicted_keeps_a_weight_near_1() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    predicted = np.where(labels == 2, 0, labels)
    confusion = confusion_matrix(predicted, labels, 4)
    shares = np.array([0.7, 0.3, 0.0, 0.0])
    found = bbse_weights(confusion, shares, (100, 1000))
    assert found == pytest.approx([1, 1, 1, 1], abs=1e-9)
    moved = bbse_weights(confusion, np.array([0.4, 0.6, 0.0, 0.0]), (100, 1000))
    assert moved[1] == pytest.approx(2, abs=0.05)
    assert moved[3] == 1


def test_unexplained_shares_equal_a_slow_loop_over_the_species_that_are_held_out() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    predicted = np.array([0, 0, 0, 1, 2, 1, 1, 0, 2, 3])
    prior, shares = np.array([0.2, 0.3, 0.4, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    matrix = slow_confusion(predicted, labels, 4)
    implied = [0.0] * 4
    for label in range(3):
        held = sum(row[label] for row in matrix)
        for guess in range(4):
            implied[guess] += matrix[guess][label] / held * prior[label] / 0.9
    expected = sum(abs(a - b) for a, b in zip(implied, shares.tolist(), strict=True)) / 2
    confusion = confusion_matrix(predicted, labels, 4)
    assert unexplained_shares(confusion, shares, prior) == pytest.approx(expected)


def test_total_variation_is_the_share_that_would_have_to_move() -> None:
    assert total_variation(np.array([0.5, 0.5]), np.array([0.2, 0.8])) == pytest.approx(0.3)
    columns = total_variation(np.eye(2), np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert columns.tolist() == [0, 1]


# --- what is recovered -----------------------------------------------------------------------


def estimated(
    world: ShiftWorld, shift: str, n_held: int, n_target: int
) -> tuple[LabelShift, float, float, float]:
    """The estimate, and the accuracy under the source, the true and the estimated prior."""
    held_out = world.held_out(n_held)
    target = world.target(shift)
    labels = world.draw(target, n_target)
    logits = world.photos(labels)
    found = estimate_label_shift(logits, world.source, held_out=held_out)
    calibrated = found.calibration.logits(logits)
    source, oracle, em = (
        accuracy(calibrated, found.source, prior, labels)
        for prior in (found.source, target, found.prior)
    )
    return found, source, oracle, em


@pytest.mark.parametrize(
    ("world", "n_held", "n_target", "median", "least"),
    [(EXACT, 1000, 500, 0.9, 0.75), (DISTORTED, 1500, 1000, 0.75, 0.6)],
)
@pytest.mark.parametrize("shift", ["uniform", "reversed", "dirichlet"])
def test_most_of_the_oracles_gain_is_recovered_on_every_seed(
    world: ShiftWorld, n_held: int, n_target: int, median: float, least: float, shift: str
) -> None:
    shares, warned = [], 0
    for seed in range(5):
        found, source, oracle, em = estimated(replace(world, seed=seed), shift, n_held, n_target)
        assert oracle > source
        shares.append((em - source) / (oracle - source))
        assert found.is_borne_out
        warned += not found.agrees
    assert np.median(shares) > median, shares
    assert min(shares) > least, shares
    assert warned <= 1


@pytest.mark.parametrize("world", [EXACT, DISTORTED])
def test_a_target_equal_to_the_source_changes_almost_nothing_and_is_not_borne_out(
    world: ShiftWorld,
) -> None:
    unstable = 0
    for seed in range(4):
        found, source, _, em = estimated(replace(world, seed=seed), "none", 1000, 500)
        assert abs(em - source) < 0.012
        assert found.shift < 0.1
        unstable += not found.is_borne_out
    assert unstable >= 3


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
        for prior in (found.source, found.prior, plain.prior)
    )
    assert abs(smoothed - source) < 0.02
    assert unsmoothed < source - 0.03


def test_photos_that_look_other_than_the_held_out_ones_make_em_and_bbse_disagree() -> None:
    world = ShiftWorld(5, 3, 2000, seed=2)
    held_out = world.held_out(2000)
    rng = np.random.default_rng(0)
    features = world.means[world.draw(world.source, 2000)] + rng.normal(size=(2000, 3))
    found = estimate_label_shift(
        world.logits(features + np.array([1.0, -1.0, 1.0])), world.source, held_out=held_out
    )
    assert not found.agrees
    assert found.unexplained is not None
    assert found.unexplained_by_chance is not None
    assert found.unexplained > 1.5 * found.unexplained_by_chance


def test_without_held_out_photos_the_logits_are_taken_as_they_are_and_bbse_is_not_asked() -> None:
    labels = EXACT.draw(np.full(5, 0.2), 1000)
    logits = EXACT.photos(labels)
    found = estimate_label_shift(logits, EXACT.source, source=EXACT.source)
    assert (found.calibration.temperature, found.bbse, found.unexplained) == (1.0, None, None)
    assert found.agrees
    assert found.source is EXACT.source or (found.source == EXACT.source).all()
    assert total_variation(found.prior, np.full(5, 0.2)) < 0.08


def test_the_spread_is_the_mean_distance_of_resampled_estimates_and_falls_with_photos() -> None:
    spreads = []
    for n_photos in (50, 2000):
        world = replace(EXACT, seed=3)
        logits = world.photos(world.draw(np.full(5, 0.2), n_photos))
        found = estimate_label_shift(logits, world.source, source=world.source)
        ratios = likelihood_ratios(logits, found.calibration, found.source)
        again = bootstrap_priors(ratios, found.prior, found.smoothing, world.source)
        distances = [float(total_variation(column, found.prior)) for column in again.T]
        assert found.spread == pytest.approx(sum(distances) / 20)
        spreads.append(found.spread)
    assert spreads[0] > 2 * spreads[1]


def test_the_same_seed_gives_the_same_estimate() -> None:
    held_out = EXACT.held_out(300)
    logits = EXACT.photos(EXACT.draw(EXACT.source, 200))
    one, other = (estimate_label_shift(logits, EXACT.source, held_out=held_out) for _ in range(2))
    assert one.prior.tolist() == other.prior.tolist()
    assert (one.spread, one.unexplained_by_chance) == (other.spread, other.unexplained_by_chance)

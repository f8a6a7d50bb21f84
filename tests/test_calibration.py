"""Bias-corrected temperature scaling against slow loops, and what it takes off."""

import math

import numpy as np
import pytest
from shift_worlds import ShiftWorld

from inat.posthoc import calibration
from inat.posthoc.calibration import Calibration, calibrate, mean_probability

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (30, 4))
LABELS = (LOGITS + RNG.normal(0, 2, (30, 4))).argmax(axis=1)
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

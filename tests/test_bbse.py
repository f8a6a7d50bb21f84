"""BBSE's equation against slow loops, and what chance leaves of it."""

import math

import numpy as np
import pytest
import scipy.sparse as sp

from inat.posthoc.bbse import (
    check_by_bbse,
    confusion_matrix,
    explained_shares,
    hard_predictions,
)
from inat.posthoc.calibration import Calibration

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (30, 4))
LABELS = (LOGITS + RNG.normal(0, 2, (30, 4))).argmax(axis=1)
SOURCE = np.array([0.4, 0.3, 0.2, 0.1])
AS_THEY_ARE = Calibration(1.0, np.zeros(4))


def slow_confusion(predicted: np.ndarray, labels: np.ndarray, n_classes: int) -> list[list[float]]:
    shares = [[0.0] * n_classes for _ in range(n_classes)]
    for guess, label in zip(predicted.tolist(), labels.tolist(), strict=True):
        shares[guess][label] += 1 / len(labels)
    return shares


def test_the_confusion_matrix_and_the_hard_predictions_equal_slow_loops() -> None:
    predicted = hard_predictions(LOGITS, AS_THEY_ARE, SOURCE)
    for row, guess in zip(LOGITS.tolist(), predicted.tolist(), strict=True):
        ratios = [z - math.log(pi) for z, pi in zip(row, SOURCE.tolist(), strict=True)]
        assert guess == ratios.index(max(ratios))
    found = confusion_matrix(predicted, LABELS, 4).toarray()
    assert found == pytest.approx(np.array(slow_confusion(predicted, LABELS, 4)))


def test_the_exact_case_is_explained_exactly() -> None:
    given = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])  # P(predicted | true)
    source, target = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.2, 0.7])
    explained, _ = explained_shares(sp.csr_array(given * source), target, 10**12)
    assert explained == pytest.approx(given @ target, rel=1e-12)


def test_explained_shares_and_their_variance_equal_slow_loops_over_the_species_held_out() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2])
    predicted = np.array([0, 0, 0, 1, 2, 1, 1, 0, 2])
    prior = np.array([0.2, 0.3, 0.4, 0.1])  # nothing is held out of the last
    explained, variance = explained_shares(confusion_matrix(predicted, labels, 4), prior, 9)
    for guess in range(4):
        share, error = 0.0, 0.0
        for label, n_held in enumerate((5, 3, 1)):
            c = ((predicted == guess) & (labels == label)).sum() / n_held
            share += c * prior[label]
            spread = c * (1 - c) / (n_held - 1) if n_held > 1 else c
            error += prior[label] ** 2 * spread
        assert explained[guess] == pytest.approx(share, abs=1e-12)
        assert variance[guess] == pytest.approx(error, abs=1e-12)


def test_by_chance_is_four_deviations_above_the_mean_variation_of_normal_differences() -> None:
    """Confusions that are known, and shares that are drawn from 500 photos."""
    labels = np.repeat(np.arange(3), 100)
    mu = np.array([0.5, 0.3, 0.2])
    predicted = np.repeat(np.arange(3), (500 * mu).astype(int))
    found = check_by_bbse(mu, (labels, labels), predicted)
    error = np.sqrt(mu * (1 - mu) / 500)
    drawn = np.abs(np.random.default_rng(0).normal(size=(200_000, 3)) * error).sum(axis=1) / 2
    assert found.by_chance == pytest.approx(drawn.mean() + 4 * drawn.std(), rel=0.01)
    assert found.unexplained == pytest.approx(0, abs=1e-12)
    assert found.agrees


def test_an_estimate_that_bbse_contradicts_does_not_agree() -> None:
    labels = np.repeat(np.arange(3), 100)
    predicted = np.repeat(np.arange(3), [250, 150, 100])
    found = check_by_bbse(np.array([0.4, 0.4, 0.2]), (labels, labels), predicted)
    assert found.unexplained == pytest.approx(0.1)
    assert not found.agrees


def test_predictions_of_species_that_are_not_held_out_are_no_contradiction() -> None:
    """A third of the photos is of species 2, which none is held out of, and all are known."""
    labels = np.repeat(np.arange(2), 100)
    predicted = np.repeat(np.arange(3), 100)
    for estimate, unexplained in (([1 / 3, 1 / 3, 1 / 3], 0.0), ([0.5, 0.3, 0.2], 1 / 6)):
        found = check_by_bbse(np.array(estimate), (labels, labels), predicted)
        assert found.unexplained == pytest.approx(unexplained, abs=1e-12)
        assert found.agrees is (unexplained == 0)

"""Which prior logits carry, and that moving it is Bayes' rule."""

from pathlib import Path

import numpy as np
import pytest

from inat.core.errors import InputError
from inat.core.priors import (
    count_prior,
    is_uniform,
    log_softmax,
    normalised,
    prior_left,
    read_prior,
    target_shift,
    tau_shift,
    temper,
    total_variation,
    uniform_prior,
)

COUNTS = np.array([60, 30, 8, 2])
NO_NUMBERS = "priors must be numbers from 0 on with a finite sum above 0"
CATEGORY_IDS = np.array([2, 10, 28])


def slow_normalised(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


# --- what a loss leaves of the draws' prior --------------------------------------------------


def test_cross_entropy_leaves_the_prior_of_the_draws() -> None:
    assert count_prior(COUNTS).tolist() == [0.6, 0.3, 0.08, 0.02]
    assert (prior_left(count_prior(COUNTS), None, 1.0) == count_prior(COUNTS)).all()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_a_tau_loss_leaves_the_prior_to_the_power_of_1_minus_tau(tau: float) -> None:
    prior = count_prior(COUNTS)
    left = prior_left(prior, prior, tau)
    expected = slow_normalised([float(n) ** (1 - tau) for n in COUNTS])
    assert left == pytest.approx(expected)
    assert temper(prior, 1 - tau) == pytest.approx(expected)


def test_a_tau_1_loss_leaves_a_uniform_prior() -> None:
    assert is_uniform(prior_left(count_prior(COUNTS), count_prior(COUNTS), 1.0))


def test_taking_counts_off_class_balanced_draws_corrects_twice_and_favours_the_rare() -> None:
    left = prior_left(uniform_prior(4), count_prior(COUNTS), 1.0)
    assert left == pytest.approx(slow_normalised([1 / 60, 1 / 30, 1 / 8, 1 / 2]))


def test_uniform_is_told_from_nearly_uniform() -> None:
    assert is_uniform(uniform_prior(8142))
    assert not is_uniform(normalised(np.array([1.0, 1.0, 1.01])))
    assert not is_uniform(count_prior(COUNTS))


# --- moving logits ---------------------------------------------------------------------------


def test_tau_shift_is_minus_tau_log_prior() -> None:
    expected = [-0.5 * np.log(p) for p in (0.6, 0.3, 0.08, 0.02)]
    assert tau_shift(count_prior(COUNTS), 0.5) == pytest.approx(expected)


def test_tau_1_is_the_move_to_a_uniform_prior_but_for_a_constant() -> None:
    prior = count_prior(COUNTS)
    difference = tau_shift(prior, 1.0) - target_shift(prior, uniform_prior(4))
    assert np.ptp(difference) < 1e-12


def test_there_and_back_again_changes_nothing() -> None:
    prior, other = count_prior(COUNTS), normalised(np.array([1.0, 2.0, 3.0, 4.0]))
    there, back = target_shift(prior, other), target_shift(other, prior)
    assert there + back == pytest.approx(np.zeros(4), abs=1e-12)


def test_moving_a_posterior_to_another_prior_is_bayes_rule() -> None:
    likelihood = np.array([[0.7, 0.1, 0.2], [0.2, 0.6, 0.3], [0.1, 0.3, 0.5]])  # p(x | class)
    prior, target = np.array([0.8, 0.15, 0.05]), np.array([0.2, 0.3, 0.5])
    logits = np.log(likelihood * prior) + np.array([[3.0], [-1.0], [0.5]])
    moved = np.exp(log_softmax(logits + target_shift(prior, target)))
    for x in range(3):
        joint = [likelihood[x, j] * target[j] for j in range(3)]
        assert moved[x] == pytest.approx(slow_normalised(joint), rel=1e-5)


def test_a_class_whose_target_is_0_is_never_predicted() -> None:
    shift = target_shift(np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    assert shift[0] == -np.inf
    assert np.isfinite(shift[1])


def test_total_variation_is_the_share_that_would_have_to_move() -> None:
    assert total_variation(np.array([0.5, 0.5]), np.array([0.2, 0.8])) == pytest.approx(0.3)
    columns = total_variation(np.eye(2), np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert columns.tolist() == [0, 1]


def test_log_softmax_equals_a_slow_loop_and_holds_for_huge_logits() -> None:
    logits = np.array([[1.0, 2.0, -3.0], [60_000.0, 59_999.0, 0.0]])
    expected = [np.exp(v) / sum(np.exp(w) for w in logits[0]) for v in logits[0]]
    assert np.exp(log_softmax(logits)[0]) == pytest.approx(expected, rel=1e-6)
    assert np.exp(log_softmax(logits)[1]) == pytest.approx([0.731059, 0.268941, 0], abs=1e-5)
    assert logits[0, 0] == 1.0


# --- a prior from a file ---------------------------------------------------------------------


def test_a_prior_file_is_read_by_category_id_in_any_order_and_scaled(tmp_path: Path) -> None:
    path = tmp_path / "prior.csv"
    path.write_text("category_id,prior\n28,1\n2,6\n10,3\n")
    assert read_prior(path, CATEGORY_IDS) == pytest.approx([0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; a prior is uniform or a CSV"),
        ("", "not a CSV file with the header category_id,prior"),
        ("category_id,prior\n2,1\n10,2,3\n", "line 3: 3 cells, not 2"),
        ("id,prior\n2,1\n", "the header is 'id,prior', it must be category_id,prior"),
        ("category_id,prior\n2,1\n10,1\n2,1\n", "category 2 stands twice"),
        ("category_id,prior\n2,1\n10,1\n11,1\n", "11 is no category of this prediction"),
        ("category_id,prior\n2,1\n28,1\n", "category 10 has no prior"),
        ("category_id,prior\n2,1\n10,\n28,1\n", "category 10 has no prior"),
        ("category_id,prior\n2,1\n10,x\n28,1\n", NO_NUMBERS),
        ("category_id,prior\n2,1\n10,-1\n28,1\n", NO_NUMBERS),
        ("category_id,prior\n2,1\n10,inf\n28,1\n", NO_NUMBERS),
        ("category_id,prior\n2,0\n10,0\n28,0\n", NO_NUMBERS),
        ("category_id,prior\n2,1e308\n10,1e308\n28,1e308\n", NO_NUMBERS),
    ],
)  # fmt: skip
def test_a_bad_prior_file_gives_one_clear_line(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "prior.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_prior(path, CATEGORY_IDS)
    assert str(caught.value) == f"{path}: {message}"


def test_a_binary_prior_file_gives_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "prior.csv"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(InputError, match="not a CSV file with the header category_id,prior"):
        read_prior(path, CATEGORY_IDS)

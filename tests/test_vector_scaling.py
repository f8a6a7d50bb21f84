"""The vector-scaling loss against a loop that a reader can check by eye."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from inat.config.reading import build
from inat.config.schema import Config
from inat.config.values import merge
from inat.core.errors import InputError
from inat.losses import LossConfig, VectorScalingLoss, build_loss
from inat.losses.base import Loss, Tail

COUNTS = np.array([70, 20, 6, 4])
PRIOR = COUNTS / COUNTS.sum()


def loss_of(name: str = "vector_scaling", **options: Any) -> Loss:
    return build_loss(LossConfig(name=name, **options), prior=PRIOR, counts=COUNTS)


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([0, 3, 1, 1, 2, 0])


def slow_cost(z: list[float], true: int, tau: float, gamma: float) -> float:
    """Equation 2 of Kini et al. 2021, one number at a time."""
    moved = [
        (n / 70) ** gamma * f + tau * math.log(n / 100)
        for f, n in zip(z, (70, 20, 6, 4), strict=True)
    ]
    return -math.log(math.exp(moved[true]) / sum(math.exp(f) for f in moved))


def slow_loss(logits: torch.Tensor, soft: torch.Tensor, tau: float, gamma: float) -> float:
    rows = zip(logits.tolist(), soft.tolist(), strict=True)
    costs = [t * slow_cost(z, c, tau, gamma) for z, row in rows for c, t in enumerate(row)]
    return sum(costs) / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("tau", "gamma"), [(1.0, 0.05), (0.75, 0.3), (0.0, 0.2), (1.25, 1.0)])
def test_it_equals_a_slow_loop_for_labels_and_for_soft_targets(
    tau: float, gamma: float, smoothing: float
) -> None:
    logits, labels = a_batch()
    loss = loss_of(tau=tau, scaling=gamma, label_smoothing=smoothing)
    single = torch.nn.functional.one_hot(labels, 4).double()
    mixed = 0.3 * single + 0.7 * single.flip(0)
    for targets, soft in ((labels, single), (mixed, mixed)):
        smoothed = (1 - smoothing) * soft + smoothing / 4
        expected = slow_loss(logits, smoothed, tau, gamma)
        assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    logits, labels = a_batch()
    loss = loss_of(scaling=0.3)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits.requires_grad_(True),))


def test_without_scaling_it_is_the_logit_adjusted_loss() -> None:
    logits, labels = a_batch()
    adjusted = loss_of("logit_adjusted", tau=0.5)(logits, labels)
    assert loss_of(tau=0.5, scaling=0.0)(logits, labels) == adjusted


def test_plain_arguments_make_the_loss_of_a_config() -> None:
    logits, labels = a_batch()
    plain = VectorScalingLoss(PRIOR, COUNTS, tau=0.75, scaling=0.2)
    assert plain(logits, labels) == loss_of(tau=0.75, scaling=0.2)(logits, labels)
    assert plain.state_dict() == {}


def test_no_prior_says_what_is_left_in_logits_that_were_scaled() -> None:
    tail = Tail(COUNTS, PRIOR, PRIOR)
    assert VectorScalingLoss.logits_prior(LossConfig(scaling=0.05), tail) is None
    left = VectorScalingLoss.logits_prior(LossConfig(scaling=0.0, tau=1.0), tail)
    assert left == pytest.approx(np.full(4, 0.25))


def test_a_config_names_it_with_its_options_and_the_plan_says_them() -> None:
    loss = build(merge({}, {"loss.name": "vector_scaling", "loss.scaling": "0.2"}), "test").loss
    tail = Tail(COUNTS, np.full(4, 0.25), PRIOR)
    assert loss.method.describe(loss, tail, "instance") == (
        "vector_scaling (tau 1, prior of the draws, scaling 0.2)"
    )
    with pytest.raises(InputError, match=r"^loss\.scaling: 2 is not within 0 and 1$"):
        LossConfig(name="vector_scaling", scaling=2)


def test_an_option_that_came_later_leaves_the_digest_of_other_runs_as_it_was() -> None:
    assert build(merge({}, {"loss.scaling": 0.05}), "test").digest == Config().digest
    assert build(merge({}, {"loss.scaling": 0.1}), "test").digest != Config().digest

"""The losses against loops that a reader can check by eye."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inat.config import LossConfig
from inat.errors import InputError
from inat.losses import build_loss
from inat.priors import uniform_prior

PRIOR = np.array([0.7, 0.2, 0.06, 0.04])


def a_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator)
    return logits, torch.tensor([0, 3, 1, 1, 2, 0])


def slow_softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def slow_targets(label: int, n_classes: int, smoothing: float) -> list[float]:
    even = smoothing / n_classes
    return [even + (1 - smoothing if j == label else 0.0) for j in range(n_classes)]


def slow_loss(logits: Tensor, labels: Tensor, tau: float = 0.0, smoothing: float = 0.0) -> float:
    """Mean over the batch of -sum_j target_j log softmax(f + tau log pi)_j."""
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        adjusted = [z + tau * math.log(p) for z, p in zip(row, PRIOR, strict=True)]
        targets = slow_targets(label, len(row), smoothing)
        chances = slow_softmax(adjusted)
        losses.append(-sum(t * math.log(c) for t, c in zip(targets, chances, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_with_smoothing_equals_a_slow_loop(smoothing: float) -> None:
    logits, labels = a_batch()
    loss = build_loss(LossConfig(name="ce", label_smoothing=smoothing), PRIOR)
    assert loss(logits, labels).item() == pytest.approx(
        slow_loss(logits, labels, smoothing=smoothing), rel=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjusted_equals_a_slow_loop(tau: float, smoothing: float) -> None:
    logits, labels = a_batch()
    config = LossConfig(name="logit_adjusted", tau=tau, label_smoothing=smoothing)
    expected = slow_loss(logits, labels, tau, smoothing)
    assert build_loss(config, PRIOR)(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_gradient_is_softmax_of_the_adjusted_logits_minus_the_target(tau: float) -> None:
    logits, labels = a_batch()
    logits.requires_grad_(True)
    loss = build_loss(LossConfig(name="logit_adjusted", tau=tau, label_smoothing=0.1), PRIOR)
    loss(logits, labels).backward()
    assert logits.grad is not None
    for row in range(len(labels)):
        adjusted = [z + tau * math.log(p) for z, p in zip(logits[row].tolist(), PRIOR, strict=True)]
        targets = slow_targets(int(labels[row]), 4, 0.1)
        expected = [
            (c - t) / len(labels) for c, t in zip(slow_softmax(adjusted), targets, strict=True)
        ]
        assert logits.grad[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_uniform_prior_or_tau_0_makes_logit_adjusted_plain_cross_entropy() -> None:
    logits, labels = a_batch()
    plain = build_loss(LossConfig(name="ce"), PRIOR)(logits, labels).item()
    uniform = build_loss(LossConfig(name="logit_adjusted", tau=1.0), uniform_prior(4))
    assert uniform(logits, labels).item() == pytest.approx(plain, rel=1e-6)
    tau_0 = build_loss(LossConfig(name="logit_adjusted", tau=0.0), PRIOR)
    assert tau_0(logits, labels).item() == plain


@pytest.mark.parametrize("name", ["ce", "logit_adjusted"])
def test_bf16_logits_give_a_float32_loss_close_to_that_of_float32_logits(name: str) -> None:
    logits, labels = a_batch()
    loss = build_loss(LossConfig(name=name, label_smoothing=0.1), PRIOR)  # type: ignore[arg-type]
    value = loss(logits.bfloat16(), labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits, labels).item(), rel=0.02)


def test_huge_bf16_logits_and_tiny_priors_stay_finite() -> None:
    prior = np.array([1 - 3e-6, 1e-6, 1e-6, 1e-6])
    logits = torch.tensor([[3e4, -3e4, 0.0, 0.0]], dtype=torch.bfloat16)
    loss = build_loss(LossConfig(name="logit_adjusted"), prior)
    assert loss(logits, torch.tensor([1])).isfinite()


def test_the_prior_moves_with_the_loss_and_stays_out_of_its_state() -> None:
    loss = build_loss(LossConfig(name="logit_adjusted"), PRIOR)
    assert loss.state_dict() == {}
    assert [name for name, _ in loss.named_buffers()] == ["log_prior"]


def test_a_prior_of_0_is_refused_with_the_number_of_species() -> None:
    with pytest.raises(InputError) as caught:
        build_loss(LossConfig(name="logit_adjusted"), np.array([0.5, 0.0, 0.5, 0.0]))
    assert str(caught.value) == (
        "loss logit_adjusted: the prior of 2 species is 0, and its logarithm has no value; "
        "every species needs a training photo"
    )
    build_loss(LossConfig(name="ce"), np.array([0.5, 0.0, 0.5, 0.0]))


def test_an_unknown_name_lists_the_valid_ones() -> None:
    config = LossConfig()
    object.__setattr__(config, "name", "logit_adjust")
    with pytest.raises(InputError) as caught:
        build_loss(config, PRIOR)
    assert str(caught.value) == (
        "loss.name: unknown name 'logit_adjust'; did you mean logit_adjusted? "
        "valid: ce, logit_adjusted"
    )

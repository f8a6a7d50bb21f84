"""The losses against loops that a reader can check by eye."""

import math
import pickle
from functools import partial
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from inat import losses
from inat.config.schema import LossConfig
from inat.core.errors import InputError
from inat.core.priors import Prior, uniform_prior
from inat.losses import LOSSES, build_loss
from inat.losses.base import Loss

COUNTS = np.array([70, 20, 6, 4])
PRIOR = COUNTS / COUNTS.sum()
HEAD_SCALE = 3.0
ADJUSTED = ("logit_adjusted", "balanced_softmax", "balanced_bce")
WEIGHTED = ("ce", "focal", "ldam")
SOFT = (*ADJUSTED, *WEIGHTED)  # those that take soft targets
NAMES = (*SOFT, "seesaw")
WEIGHTS = ("none", "effective_number", "inverse")


def loss_of(
    name: str, prior: Prior | None = PRIOR, epochs: int | None = None, **options: Any
) -> Loss:
    config = LossConfig(name=name, **options)  # type: ignore[arg-type]
    return build_loss(config, prior=prior, counts=COUNTS, head_scale=HEAD_SCALE, epochs=epochs)


def a_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([0, 3, 1, 1, 2, 0])


def soft_targets() -> Tensor:
    """Two species a photo, as mixup and CutMix make them, and one photo that was not mixed."""
    rows = [[0.7, 0.3, 0, 0], [0, 0.25, 0, 0.75], [0.5, 0, 0.5, 0],
            [0, 0, 0.1, 0.9], [0, 1, 0, 0], [0.6, 0, 0, 0.4]]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


# --- the formulas, one number at a time ------------------------------------------------------


def slow_softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def slow_cross_entropy(row: list[float], true: int) -> float:
    return -math.log(slow_softmax(row)[true])


def slow_cost(name: str, z: list[float], true: int, tau: float = 1.0, gamma: float = 2.0) -> float:
    """What one photo of species `true` costs."""
    if name in ("logit_adjusted", "balanced_softmax"):
        return slow_cross_entropy(
            [f + tau * math.log(p) for f, p in zip(z, PRIOR, strict=True)], true
        )
    if name == "ldam":
        margin = 0.5 * 4**0.25 / COUNTS[true] ** 0.25  # the rarest species has 4 photos
        lowered = [f - HEAD_SCALE * margin if j == true else f for j, f in enumerate(z)]
        return slow_cross_entropy(lowered, true)
    if name == "focal":
        p = slow_softmax(z)[true]
        return -((1 - p) ** gamma) * math.log(p)
    if name == "balanced_bce":
        total = 0.0
        for j, (f, pi) in enumerate(zip(z, PRIOR, strict=True)):
            chance = 1 / (1 + math.exp(-(f + math.log(pi) - math.log(1 - pi))))
            total -= math.log(chance if j == true else 1 - chance)
        return total
    assert name == "ce"
    return slow_cross_entropy(z, true)


def slow_weights(kind: str, beta: float = 0.9999) -> list[float]:
    """Of each species; they sum to the number of species."""
    of = {
        "none": lambda n: 1.0,
        "inverse": lambda n: 1 / n,
        "effective_number": lambda n: (1 - beta) / (1 - beta**n),
    }
    weights = [of[kind](n) for n in COUNTS.tolist()]
    return [4 * w / sum(weights) for w in weights]


def slow_loss(
    name: str, logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: str = "none",
    **options: float,
) -> float:  # fmt: skip
    """Sum over photos and species of target x weight x cost, by that of target x weight."""
    w = slow_weights(weights)
    total = weight = 0.0
    for z, target in zip(logits.tolist(), targets.tolist(), strict=True):
        t = target if isinstance(target, list) else [float(j == target) for j in range(4)]
        for j in range(4):
            smoothed = (1 - smoothing) * t[j] + smoothing / 4
            total += smoothed * w[j] * slow_cost(name, z, j, **options)
            weight += t[j] * w[j]
    return total / weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", SOFT)
def test_a_loss_equals_a_slow_loop_for_labels_and_for_soft_targets(
    name: str, smoothing: float
) -> None:
    logits, labels = a_batch()
    loss = loss_of(name, label_smoothing=smoothing)
    for targets in (labels, soft_targets()):
        expected = slow_loss(name, logits, targets, smoothing)
        assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["effective_number", "inverse"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighted_loss_is_the_weighted_mean_of_a_slow_loop(
    name: str, weights: str, smoothing: float
) -> None:
    logits, labels = a_batch()
    loss = loss_of(name, class_weights=weights, label_smoothing=smoothing)
    for targets in (labels, soft_targets()):
        expected = slow_loss(name, logits, targets, smoothing, weights)
        assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjusted_equals_a_slow_loop_at_every_tau(tau: float) -> None:
    logits, labels = a_batch()
    expected = slow_loss("logit_adjusted", logits, labels, 0.1, tau=tau)
    loss = loss_of("logit_adjusted", tau=tau, label_smoothing=0.1)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_equals_a_slow_loop_at_every_gamma(gamma: float) -> None:
    logits, labels = a_batch()
    expected = slow_loss("focal", logits, labels, gamma=gamma)
    assert loss_of("focal", gamma=gamma)(logits, labels).item() == pytest.approx(expected, rel=1e-6)


# --- what soft targets mean ------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", SOFT)
def test_rows_with_a_single_1_cost_what_labels_cost(name: str, weights: str) -> None:
    if weights != "none" and name not in WEIGHTED:
        return
    logits, labels = a_batch()
    loss = loss_of(name, class_weights=weights, label_smoothing=0.1)
    rows = torch.nn.functional.one_hot(labels, 4).double()
    assert loss(logits, rows).item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)


@pytest.mark.parametrize("name", SOFT)
def test_a_mixed_target_costs_the_mix_of_the_costs(name: str) -> None:
    logits, labels = a_batch()
    partners = labels.flip(0)
    rows = torch.nn.functional.one_hot
    mixed = 0.3 * rows(labels, 4).double() + 0.7 * rows(partners, 4).double()
    loss = loss_of(name)
    expected = 0.3 * loss(logits, labels) + 0.7 * loss(logits, partners)
    assert loss(logits, mixed).item() == pytest.approx(expected.item(), rel=1e-9)


def test_seesaw_takes_no_soft_targets_and_the_config_knows_it() -> None:
    logits, _ = a_batch()
    assert {name for name in NAMES if LOSSES[name].takes_soft_targets} == set(SOFT)
    with pytest.raises(InputError) as caught:
        loss_of("seesaw")(logits, soft_targets())
    assert str(caught.value) == (
        "loss seesaw takes labels, not soft targets; turn mixup and CutMix off"
    )


# --- seesaw ----------------------------------------------------------------------------------


def slow_seesaw(
    logits: Tensor, labels: Tensor, seen: list[int], p: float = 0.8, q: float = 2.0
) -> float:
    total = 0.0
    n = [max(1, count) for count in seen]
    for z, i in zip(logits.tolist(), labels.tolist(), strict=True):
        sigma = slow_softmax(z)
        below = math.exp(z[i])
        for j in range(4):
            if j != i:
                mitigation = min(1.0, (n[j] / n[i]) ** p)
                compensation = max(1.0, (sigma[j] / max(sigma[i], 0.01)) ** q)
                below += mitigation * compensation * math.exp(z[j])
        total -= math.log(math.exp(z[i]) / below)
    return total / len(labels)


@pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.0, 2.0), (0.8, 0.0), (0.0, 0.0)])
def test_seesaw_equals_a_slow_loop_and_counts_the_batch_at_hand(p: float, q: float) -> None:
    logits, labels = a_batch()
    loss = loss_of("seesaw", mitigation=p, compensation=q)
    value = loss(logits, labels)  # of labels 0, 3, 1, 1, 2, 0
    assert value.item() == pytest.approx(slow_seesaw(logits, labels, [2, 2, 1, 1], p, q), rel=1e-6)
    again = loss(logits[:2], labels[:2])
    expected = slow_seesaw(logits[:2], labels[:2], [3, 2, 1, 2], p, q)
    assert again.item() == pytest.approx(expected, rel=1e-6)


def test_an_unlikely_true_species_counts_as_one_per_cent_in_seesaw() -> None:
    logits, labels = torch.tensor([[0.0, 9.0, 1.0, 2.0]]), torch.tensor([0])
    assert torch.softmax(logits, 1)[0, 0] < 0.01
    value = loss_of("seesaw")(logits, labels).item()
    assert value == pytest.approx(slow_seesaw(logits, labels, [1, 0, 0, 0]), rel=1e-6)


def test_seesaw_without_its_factors_is_cross_entropy() -> None:
    logits, labels = a_batch()
    loss = loss_of("seesaw", mitigation=0.0, compensation=0.0)
    assert loss(logits, labels).item() == loss_of("ce")(logits, labels).item()


def test_what_seesaw_has_seen_is_its_state_and_evaluation_adds_nothing_to_it() -> None:
    logits, labels = a_batch()
    loss = loss_of("seesaw")
    loss(logits, labels)
    state = loss.state_dict()
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"seen": [2, 2, 1, 1]}
    resumed = loss_of("seesaw")
    resumed.load_state_dict(state)
    assert resumed(logits, labels).item() == loss(logits, labels).item()
    loss.eval()
    loss(logits, labels)
    assert loss.state_dict()["seen"].tolist() == [4, 4, 2, 2]


def test_no_gradient_goes_through_the_factors_of_seesaw() -> None:
    logits, labels = a_batch()
    logits.requires_grad_(True)
    loss_of("seesaw")(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    n = [2, 2, 1, 1]
    for row, i in enumerate(labels.tolist()):
        z = logits[row].tolist()
        sigma = slow_softmax(z)
        s = [
            min(1.0, (n[j] / n[i]) ** 0.8) * max(1.0, (sigma[j] / max(sigma[i], 0.01)) ** 2)
            for j in range(4)
        ]
        shifted = slow_softmax([f + math.log(s[j] if j != i else 1.0) for j, f in enumerate(z)])
        expected = [(chance - (j == i)) / len(labels) for j, chance in enumerate(shifted)]
        assert logits.grad[row].tolist() == pytest.approx(expected, abs=1e-9)


# --- ldam ------------------------------------------------------------------------------------


def test_the_margins_of_ldam_fall_with_the_fourth_root_of_the_count_from_the_largest() -> None:
    margins = loss_of("ldam").get_buffer("margins")
    expected = [HEAD_SCALE * 0.5 * (4 / n) ** 0.25 for n in (70, 20, 6, 4)]
    assert margins.tolist() == pytest.approx(expected, rel=1e-6)
    assert margins.max().item() == HEAD_SCALE * 0.5
    wide = loss_of("ldam", max_margin=0.8).get_buffer("margins")
    assert wide.tolist() == pytest.approx([m * 0.8 / 0.5 for m in expected], rel=1e-6)


def test_ldam_without_a_margin_is_cross_entropy() -> None:
    logits, labels = a_batch()
    for targets in (labels, soft_targets()):
        plain = loss_of("ce")(logits, targets).item()
        assert loss_of("ldam", max_margin=0.0)(logits, targets).item() == pytest.approx(
            plain, rel=1e-7
        )


def test_ldam_is_exact_where_the_true_species_has_all_of_the_softmax() -> None:
    # In float32 1 - p is 0 here; the cost is log(1 + 3 e^(1.5 - 40)) = 3 e^-38.5.
    logits = torch.tensor([[0.0, 0.0, 0.0, 40.0]])
    value = loss_of("ldam")(logits, torch.tensor([3])).item()
    assert value == pytest.approx(3 * math.exp(HEAD_SCALE * 0.5 - 40), rel=1e-5)


# --- class weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_weights_are_the_formula_and_sum_to_the_number_of_species(beta: float) -> None:
    for kind in ("effective_number", "inverse"):
        weights = loss_of("ce", class_weights=kind, beta=beta).get_buffer("weights").tolist()
        assert weights == pytest.approx(slow_weights(kind, beta), rel=1e-6)
        assert sum(weights) == pytest.approx(4, rel=1e-6)
    if beta == 0:
        even = loss_of("ce", class_weights="effective_number", beta=beta).get_buffer("weights")
        assert even.tolist() == [1, 1, 1, 1]


# --- deferred class weights ------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(("after", "first"), [("80%", 8), ("75%", 7), ("3", 3)])
def test_deferred_weights_are_none_before_the_switch_and_all_there_from_it_on(
    name: str, after: str, first: int
) -> None:
    logits, labels = a_batch()
    deferred = loss_of(name, epochs=10, class_weights="inverse", after=after)
    plain, weighted = loss_of(name), loss_of(name, class_weights="inverse")
    assert deferred(logits, labels).item() == plain(logits, labels).item()  # before any epoch
    for epoch in range(10):
        deferred.set_progress(epoch / 10)
        expected = weighted if epoch >= first else plain
        assert deferred(logits, labels).item() == expected(logits, labels).item(), epoch
    deferred.set_progress(0.0)  # a resume may go back
    assert deferred(logits, labels).item() == plain(logits, labels).item()


def test_deferred_weights_ask_for_the_length_of_the_training() -> None:
    with pytest.raises(InputError) as caught:
        loss_of("ce", class_weights="inverse", after="80%")
    assert str(caught.value) == ("loss.after 80%: the training's length is not known; give epochs")


# --- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", SOFT)
def test_the_gradient_is_that_of_finite_differences(name: str, weights: str) -> None:
    if weights != "none" and name not in WEIGHTED:
        return
    logits, labels = a_batch()
    logits.requires_grad_(True)
    for smoothing in (0.0, 0.1):
        loss = loss_of(name, class_weights=weights, label_smoothing=smoothing)
        for targets in (labels, soft_targets()):
            assert torch.autograd.gradcheck(lambda z, t=targets: loss(z, t), (logits,))  # noqa: B023


def test_the_gradient_of_seesaw_at_fixed_factors_is_that_of_finite_differences() -> None:
    logits, labels = a_batch()
    loss = loss_of("seesaw", compensation=0.0)  # which alone depends on the logits
    loss(logits, labels)
    loss.eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits.requires_grad_(True),))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_gradient_is_softmax_of_the_adjusted_logits_minus_the_target(tau: float) -> None:
    logits, labels = a_batch()
    logits.requires_grad_(True)
    loss_of("logit_adjusted", tau=tau)(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    for row, true in enumerate(labels.tolist()):
        z = logits[row].tolist()
        chances = slow_softmax([f + tau * math.log(p) for f, p in zip(z, PRIOR, strict=True)])
        expected = [(chance - (j == true)) / len(labels) for j, chance in enumerate(chances)]
        assert logits.grad[row].tolist() == pytest.approx(expected, abs=1e-7)


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_half_precision_cost_what_they_cost_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    logits, labels = a_batch()
    half = logits.to(dtype)
    for targets in (labels, soft_targets().float()) if name in SOFT else (labels,):
        value = loss_of(name)(half, targets)
        assert value.dtype == torch.float32
        assert value.item() == loss_of(name)(half.float(), targets).item()
        assert value.item() == pytest.approx(loss_of(name)(logits, targets).item(), rel=0.05)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_ten_thousand_and_tiny_priors_give_finite_losses_and_gradients(
    name: str, dtype: torch.dtype, gamma: float
) -> None:
    prior = np.array([1 - 3e-6, 1e-6, 1e-6, 1e-6])
    logits = torch.tensor([[1e4, -1e4, 0, 1e4], [-1e4, -1e4, -1e4, 1e4]], dtype=dtype)
    even = torch.full((2, 4), 0.25)
    for targets in (torch.tensor([1, 0]), torch.tensor([0, 3]), even)[: 3 if name in SOFT else 2]:
        given = logits.clone().requires_grad_(True)
        loss = loss_of(name, prior=prior, gamma=gamma)(given, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        assert given.grad is not None
        assert given.grad.dtype == dtype
        assert given.grad.isfinite().all()


# --- what the losses share -------------------------------------------------------------------


def test_a_uniform_prior_or_tau_0_makes_logit_adjusted_plain_cross_entropy() -> None:
    logits, labels = a_batch()
    plain = loss_of("ce")(logits, labels).item()
    uniform = loss_of("logit_adjusted", prior=uniform_prior(4))
    assert uniform(logits, labels).item() == pytest.approx(plain, rel=1e-6)
    assert loss_of("logit_adjusted", tau=0.0)(logits, labels).item() == plain


def test_balanced_softmax_is_logit_adjusted_at_tau_1() -> None:
    logits, labels = a_batch()
    adjusted = loss_of("logit_adjusted", tau=1.0)(logits, labels).item()
    assert loss_of("balanced_softmax")(logits, labels).item() == adjusted
    # As Ren et al. write it: n_y e^z_y / sum_j n_j e^z_j.
    by_counts = [
        -math.log(COUNTS[y] * math.exp(z[y]) / sum(COUNTS[j] * math.exp(z[j]) for j in range(4)))
        for z, y in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert adjusted == pytest.approx(sum(by_counts) / len(by_counts), rel=1e-6)


def test_focal_at_gamma_0_is_cross_entropy() -> None:
    logits, labels = a_batch()
    plain = loss_of("ce")(logits, labels).item()
    assert loss_of("focal", gamma=0.0)(logits, labels).item() == pytest.approx(plain, rel=1e-9)


def test_constants_move_with_the_loss_and_stay_out_of_its_state() -> None:
    buffers = {
        "ce": [], "focal": [], "ldam": ["margins"], "logit_adjusted": ["log_prior"],
        "balanced_softmax": ["log_prior"], "balanced_bce": ["shift"],
    }  # fmt: skip
    for name, expected in buffers.items():
        loss = loss_of(name)
        assert [key for key, _ in loss.named_buffers()] == expected
        assert loss.state_dict() == {}
    weighted = loss_of("ce", class_weights="inverse")
    assert [key for key, _ in weighted.named_buffers()] == ["weights"]
    assert weighted.state_dict() == {}


# --- species without photos ------------------------------------------------------------------


def with_counts(name: str, counts: list[int], **options: Any) -> Loss:
    n = np.array(counts)
    config = LossConfig(name=name, **options)  # type: ignore[arg-type]
    return build_loss(config, prior=n / n.sum(), counts=n, head_scale=HEAD_SCALE)


@pytest.mark.parametrize("name", ADJUSTED)
def test_a_prior_of_0_is_refused_with_the_number_of_species(name: str) -> None:
    with pytest.raises(InputError) as caught:
        with_counts(name, [5, 0, 5, 0])
    assert str(caught.value) == (
        f"loss {name}: the prior of 2 species is 0, and its logarithm has no value; "
        "every species needs a training photo"
    )


@pytest.mark.parametrize("name", ADJUSTED)
def test_draws_without_one_prior_are_refused_where_it_is_taken_off(name: str) -> None:
    with pytest.raises(InputError) as caught:
        loss_of(name, prior=None)
    assert str(caught.value) == (
        f"loss {name}: the draws change during training and have no one prior to take off; "
        "give loss.prior counts"
    )
    loss_of("ce", prior=None)


def test_a_species_without_photos_has_the_margin_of_the_rarest() -> None:
    margins = with_counts("ldam", [40, 0, 8, 0]).get_buffer("margins").tolist()
    assert margins == pytest.approx(
        [HEAD_SCALE * 0.5 * 0.2**0.25, *[HEAD_SCALE * 0.5] * 3], rel=1e-6
    )


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_species_without_photos_has_no_weight_and_the_others_a_mean_of_1(name: str) -> None:
    loss = with_counts(name, [30, 0, 10, 0], class_weights="inverse")
    assert loss.get_buffer("weights").tolist() == pytest.approx([0.5, 0, 1.5, 0])
    logits, _ = a_batch()
    assert loss(logits, torch.tensor([0, 2, 0, 0, 2, 0])).isfinite()


@pytest.mark.parametrize("name", ["ce", "focal", "ldam", "seesaw"])
def test_a_species_without_photos_is_pushed_down_like_any_other(name: str) -> None:
    logits, _ = a_batch()
    logits.requires_grad_(True)
    with_counts(name, [30, 0, 10, 0])(logits, torch.tensor([0, 2, 0, 0, 2, 0])).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[:, [1, 3]] > 0).all()


# --- names -----------------------------------------------------------------------------------


def test_every_name_that_a_config_may_say_has_a_loss() -> None:
    assert set(get_args(get_type_hints(LossConfig)["name"])) == LOSSES.keys() >= set(NAMES)


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(InputError) as caught:
        LossConfig(name="logit_adjust")
    assert str(caught.value) == (
        "loss.name: unknown name 'logit_adjust'; did you mean logit_adjusted? "
        f"valid: {', '.join(sorted(LOSSES))}"
    )


def test_balanced_bce_of_one_species_is_refused_and_the_other_losses_are_finite() -> None:
    for name in LOSSES:
        config = LossConfig(name=name)
        make = partial(build_loss, config, prior=np.ones(1), counts=np.array([5]), head_scale=30.0)
        if name == "balanced_bce":
            with pytest.raises(InputError, match=r"balanced_bce: .* two or more species"):
                make()
        else:
            assert torch.isfinite(make()(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)))


# --- in anybody's loop -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ce", lambda: losses.CrossEntropyLoss(label_smoothing=0.1)),
        ("logit_adjusted", lambda: losses.LogitAdjustedLoss(PRIOR, tau=1.0, label_smoothing=0.1)),
        ("balanced_softmax", lambda: losses.BalancedSoftmaxLoss(COUNTS, label_smoothing=0.1)),
        ("focal", lambda: losses.FocalLoss(2.0, label_smoothing=0.1)),
        ("ldam", lambda: losses.LDAMLoss(COUNTS, 0.5, HEAD_SCALE, label_smoothing=0.1)),
        ("seesaw", lambda: losses.SeesawLoss(4)),
        ("balanced_bce", lambda: losses.BalancedBCELoss(PRIOR, label_smoothing=0.1)),
    ],
)
def test_a_loss_made_by_plain_arguments_is_the_one_of_a_config(name: str, plain: Any) -> None:
    logits, labels = a_batch()
    made, smoothing = plain(), 0.1 if name in SOFT else 0.0
    assert isinstance(made, torch.nn.Module)
    assert type(made) is LOSSES[name]
    configured = loss_of(name, label_smoothing=smoothing)
    assert made(logits, labels).item() == configured(logits, labels).item()


def test_a_loss_survives_a_pickle() -> None:
    logits, labels = a_batch()
    loss = losses.LDAMLoss(COUNTS)
    assert pickle.loads(pickle.dumps(loss))(logits, labels) == loss(logits, labels)


def test_a_face_of_the_losses_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'HingeLoss'"):
        _ = losses.HingeLoss

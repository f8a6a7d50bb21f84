"""RandAugment and AutoAugment: what is drawn, and what torchvision's operations make of it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode

from inat.config.schema import TransformConfig
from inat.loader.policies import CIFAR10, GREY, KINDS, RAND_AUGMENT, Step, apply_steps, draw_steps

SIZE = 40
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
UNLEVELLED = {"AutoContrast", "Equalize", "Invert", "Identity"}


def steps_of(recipe: TransformConfig, n: int) -> list[list[Step]]:
    return [draw_steps(recipe, np.random.default_rng(seed)) for seed in range(n)]


def test_the_policy_for_cifar_is_torchvisions_table() -> None:
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    assert len(CIFAR10) == len(theirs) == 25
    for ours, other in zip(CIFAR10, theirs, strict=True):
        for (name, probability, level), (their_name, their_probability, their_level) in zip(
            ours, other, strict=True
        ):
            assert (name, probability) == (their_name, their_probability)
            assert their_level is None or level == their_level


@pytest.mark.parametrize("name", sorted(KINDS.keys() - UNLEVELLED))
@pytest.mark.parametrize("level", [0, 3, 9])
def test_an_operation_at_a_level_is_torchvisions(name: str, level: int) -> None:
    space = AutoAugment(AutoAugmentPolicy.CIFAR10)._augmentation_space(10, (SIZE, SIZE))
    magnitudes, is_signed = space[name]
    assert is_signed == KINDS[name].is_signed
    theirs = float(magnitudes[level])
    expected = _apply_op(
        Image.fromarray(PIXELS), name, theirs, InterpolationMode.BILINEAR, list(GREY)
    )
    got = apply_steps(PIXELS, [Step(name, KINDS[name].strength(level / 9, negative=False))])
    if name == "Solarize":  # torchvision's weakest turns white into black, the paper's nothing
        expected = ImageOps.solarize(Image.fromarray(PIXELS), round(256 * (1 - level / 9)))
    difference = np.abs(got.astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= (2 if name.startswith("Shear") else 0)  # float32 levels


@pytest.mark.parametrize("name", sorted(UNLEVELLED))
def test_an_operation_without_a_level_is_torchvisions(name: str) -> None:
    expected = _apply_op(Image.fromarray(PIXELS), name, 0.0, InterpolationMode.NEAREST, None)
    assert np.array_equal(apply_steps(PIXELS, [Step(name, 0.0)]), np.asarray(expected))


@pytest.mark.parametrize("name", sorted(KINDS.keys() - UNLEVELLED))
def test_no_magnitude_changes_nothing(name: str) -> None:
    got = apply_steps(PIXELS, [Step(name, KINDS[name].strength(0.0, negative=True))])
    assert np.array_equal(got, PIXELS)


def test_a_sign_is_turned_only_where_both_are_meant() -> None:
    assert KINDS["Rotate"].strength(0.5, negative=True) == -15
    assert KINDS["Color"].strength(0.5, negative=True) == pytest.approx(0.55)
    assert KINDS["Solarize"].strength(0.5, negative=True) == 128
    assert KINDS["Posterize"].strength(1.0, negative=True) == 4


def test_rand_augment_draws_its_operations_evenly_and_at_one_magnitude() -> None:
    recipe = TransformConfig(policy="rand_augment", policy_operations=3, policy_magnitude=15)
    drawn = steps_of(recipe, 1500)
    assert {len(steps) for steps in drawn} == {3}
    counts = np.array(
        [sum(s.name == name for steps in drawn for s in steps) for name in RAND_AUGMENT]
    )
    expected = 4500 / len(RAND_AUGMENT)
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)
    turns = [s.strength for steps in drawn for s in steps if s.name == "Rotate"]
    assert set(turns) == {-15.0, 15.0}


def test_the_policy_for_cifar_uses_each_operation_as_often_as_its_probability() -> None:
    drawn = steps_of(TransformConfig(policy="cifar10"), 5000)
    inverted = sum(step.name == "Invert" for steps in drawn for step in steps)
    expected = 5000 / 25 * sum(p for pair in CIFAR10 for name, p, _ in pair if name == "Invert")
    assert abs(inverted - expected) < 4.5 * np.sqrt(expected)
    assert max(len(steps) for steps in drawn) == 2


def test_steps_are_a_pure_function_of_their_generator_and_no_policy_draws_none() -> None:
    recipe = TransformConfig(policy="cifar10")
    assert steps_of(recipe, 20) == steps_of(recipe, 20)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert draw_steps(TransformConfig(), np.random.default_rng(0)) == []
    apply_steps(PIXELS, steps_of(recipe, 20)[3])
    assert torch.equal(torch.get_rng_state(), before)

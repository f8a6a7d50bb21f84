"""Mixup, CutMix and erased boxes: what they draw, and what they make of a batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from inat.config.schema import TransformConfig
from inat.training.mixing import (
    GlobalBatch,
    draw_cutout,
    draw_erasing,
    draw_mix,
    erase_images,
    mix_images,
    one_hot,
)

N, SIZE, CLASSES = 6, 16, 5
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
WHOLE = GlobalBatch((N,))


def batch(seed: int = 0) -> Tensor:
    """Images `[N, 3, SIZE, SIZE]` in channels_last, as `to_device` gives them."""
    images = torch.randn(N, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed))
    return images.permute(0, 3, 1, 2)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_without_mixup_and_cutmix_nothing_is_drawn_and_nothing_changes() -> None:
    generator = rng()
    before = generator.bit_generator.state
    images, targets = mix_images(batch(), LABELS, CLASSES, TransformConfig(), generator, WHOLE)
    assert torch.equal(images, batch()) and targets is LABELS
    assert generator.bit_generator.state == before


def test_mixup_is_the_weighted_mean_of_an_image_and_its_partner() -> None:
    recipe = TransformConfig(mixup=0.4)
    mix = draw_mix(recipe, N, SIZE, rng(3))
    assert mix is not None and mix.box is None
    images, targets = mix_images(batch(), LABELS, CLASSES, recipe, rng(3), WHOLE)
    for i in range(N):
        j = int(mix.partner[i])
        expected = mix.share * batch()[i] + (1 - mix.share) * batch()[j]
        torch.testing.assert_close(images[i], expected)
        label = torch.zeros(CLASSES)
        label[LABELS[i]] += mix.share
        label[LABELS[j]] += 1 - mix.share
        torch.testing.assert_close(targets[i], label)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_takes_a_box_of_the_partner_and_its_share_of_the_label(seed: int) -> None:
    recipe = TransformConfig(cutmix=1.0)
    mix = draw_mix(recipe, N, SIZE, rng(seed))
    assert mix is not None and mix.box is not None
    top, left, height, width = mix.box
    assert top >= 0 and left >= 0 and top + height <= SIZE and left + width <= SIZE
    assert mix.share == pytest.approx(1 - height * width / SIZE**2)
    images, targets = mix_images(batch(), LABELS, CLASSES, recipe, rng(seed), WHOLE)
    for i in range(N):
        expected = batch()[i].clone()
        box = (slice(None), slice(top, top + height), slice(left, left + width))
        expected[box] = batch()[int(mix.partner[i])][box]
        assert torch.equal(images[i], expected)
    assert targets.sum(dim=1).tolist() == pytest.approx([1] * N)
    torch.testing.assert_close(
        targets,
        mix.share * one_hot(LABELS, CLASSES)
        + (1 - mix.share) * one_hot(LABELS[torch.from_numpy(mix.partner)], CLASSES),
    )


def test_mixed_images_stay_in_channels_last() -> None:
    for recipe in (TransformConfig(mixup=1.0), TransformConfig(cutmix=1.0)):
        images, _ = mix_images(batch(), LABELS, CLASSES, recipe, rng(), WHOLE)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_with_both_each_is_taken_half_the_time() -> None:
    recipe = TransformConfig(mixup=0.8, cutmix=1.0)
    mixes = [draw_mix(recipe, 2, SIZE, rng(seed)) for seed in range(400)]
    share_cut = np.mean([mix is not None and mix.box is not None for mix in mixes])
    assert abs(share_cut - 0.5) < 4.5 * 0.5 / 20


def test_shares_of_mixup_follow_the_beta_distribution() -> None:
    recipe = TransformConfig(mixup=0.4)
    shares = np.array([draw_mix(recipe, 2, SIZE, rng(seed)).share for seed in range(2000)])  # type: ignore[union-attr]
    assert abs(shares.mean() - 0.5) < 4.5 * shares.std() / np.sqrt(2000)
    assert shares.var() == pytest.approx(0.25 / (2 * 0.4 + 1), rel=0.1)


def test_a_mix_is_a_pure_function_of_its_generator() -> None:
    recipe = TransformConfig(mixup=0.4, cutmix=1.0)
    first, again, other = (draw_mix(recipe, N, SIZE, rng(seed)) for seed in (1, 1, 2))
    assert str(first) == str(again) != str(other)


# Erased boxes


def test_an_erased_box_lies_in_the_image_and_has_area_and_shape_in_their_ranges() -> None:
    boxes = draw_erasing(1.0, 2000, 64, rng())
    assert (boxes.height > 0).all() and (boxes.width > 0).all()
    assert (boxes.top >= 0).all() and (boxes.top + boxes.height <= 64).all()
    assert (boxes.left >= 0).all() and (boxes.left + boxes.width <= 64).all()
    area = boxes.height * boxes.width / 64**2
    assert area.min() > 0.015 and area.max() < 0.36
    aspect = boxes.height / boxes.width
    assert aspect.min() > 0.25 and aspect.max() < 4


def test_an_image_is_erased_as_often_as_the_probability_says() -> None:
    used = (draw_erasing(0.25, 4000, 64, rng()).height > 0).mean()
    assert abs(used - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 4000)


def test_erasing_puts_noise_into_the_box_and_leaves_the_rest() -> None:
    recipe = TransformConfig(erasing=1.0)
    boxes = draw_erasing(1.0, N, SIZE, rng(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = erase_images(batch(), recipe, rng(5), WHOLE)
    for i in range(N):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        rows = slice(boxes.top[i], boxes.top[i] + boxes.height[i])
        inside[rows, boxes.left[i] : boxes.left[i] + boxes.width[i]] = True
        assert torch.equal(result[i][:, ~inside], batch()[i][:, ~inside])
        assert (result[i][:, inside] != batch()[i][:, inside]).all()
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_cutout_puts_the_mean_into_a_square_that_may_reach_over_the_edge() -> None:
    boxes = draw_cutout(8, 3000, SIZE, rng())
    assert (boxes.top >= 0).all() and (boxes.top + boxes.height <= SIZE).all()
    assert boxes.height.min() == 4 and boxes.height.max() == 8
    result = erase_images(batch(), TransformConfig(cutout=8), rng(5), WHOLE)
    drawn = draw_cutout(8, N, SIZE, rng(5))
    for i in range(N):
        zeros = (result[i] == 0).all(dim=0)
        assert zeros.sum() == drawn.height[i] * drawn.width[i]
        assert torch.equal(result[i][:, ~zeros], batch()[i][:, ~zeros])


def test_without_erasing_and_cutout_the_images_are_left_alone() -> None:
    images = batch()
    assert erase_images(images, TransformConfig(), rng(), WHOLE) is images

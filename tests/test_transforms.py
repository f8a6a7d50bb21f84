"""Crop, flip and jitter: pure functions of the draw, and within their ranges."""

import builtins
import math
import os
import pickle
import random
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
import torchvision.transforms.functional as torchvision_functional
from photo_reading import transformed

from inat.config.schema import TransformConfig
from inat.dataset.split import load_split
from inat.loader import transforms
from inat.loader.loader import build_loader
from inat.loader.policies import apply_steps, draw_steps
from inat.loader.reader import decode_crops
from inat.loader.transforms import (
    ATTEMPTS,
    BLOCK,
    EXTRAS,
    LUMA,
    Draw,
    EpochDraws,
    EvalTransform,
    TrainTransform,
    centre_crop,
    jitter_matrix,
    random_resized_crop,
)
from inat.photos.decode import Box

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
N_DRAWS = 3 * BLOCK


@pytest.fixture(scope="module")
def draws() -> list[Draw]:
    epoch = EpochDraws(0, 0)
    return [epoch[k] for k in range(N_DRAWS)]


@pytest.fixture(scope="module")
def photo() -> bytes:
    y, x = np.mgrid[:60, :80]
    pixels = np.stack([3 * x, 4 * y, 120 + x - y], axis=2).astype(np.uint8)
    content: bytes = simplejpeg.encode_jpeg(pixels, 95)
    return content


def columns(draws: list[Draw]) -> dict[str, np.ndarray]:
    """Every random number of a draw but the crops' later attempts, one array a number."""
    return {
        "area": np.array([draw.shape[0, 0] for draw in draws]),
        "aspect": np.array([draw.shape[0, 1] for draw in draws]),
        "second area": np.array([draw.shape[1, 0] for draw in draws]),
        "top": np.array([draw.place[0] for draw in draws]),
        "left": np.array([draw.place[1] for draw in draws]),
        "flip": np.array([draw.flip for draw in draws]),
        **{f"jitter {i}": np.array([draw.jitter[i] for draw in draws]) for i in range(4)},
        **{f"use {i}": np.array([draw.use[i] for draw in draws]) for i in range(len(EXTRAS))},
        **{
            f"seed {i}": np.array([int(draw.seeds[i]) / 2**63 for draw in draws])
            for i in range(len(EXTRAS))
        },
    }


def same(a: Draw, b: Draw) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# The draws


def test_draw_k_is_the_same_in_whatever_order_draws_are_read(draws: list[Draw]) -> None:
    order = np.random.default_rng(0).permutation(N_DRAWS)[:100].tolist()
    mixed = EpochDraws(0, 0)
    for k in [*order, 0, BLOCK, BLOCK - 1, N_DRAWS - 1]:
        assert same(mixed[k], draws[k])
        assert same(EpochDraws(0, 0)[k], draws[k])


def test_draws_change_with_seed_epoch_and_block(draws: list[Draw]) -> None:
    for other in (EpochDraws(1, 0)[5], EpochDraws(0, 1)[5], draws[BLOCK + 5], draws[6]):
        assert not same(other, draws[5])
        assert other.flip != draws[5].flip
        assert other.seeds[0] != draws[5].seeds[0]


def test_the_numbers_of_a_draw_are_uniform_and_uncorrelated(draws: list[Draw]) -> None:
    numbers = columns(draws)
    # Of independent columns a correlation has a spread of 1 / sqrt(n) = 0.018.
    correlations = np.corrcoef(list(numbers.values()))
    assert np.abs(correlations - np.eye(len(numbers))).max() < 4.5 / math.sqrt(N_DRAWS)
    for name, column in numbers.items():
        assert column.min() >= 0 and column.max() < 1, name
        assert abs(column.mean() - 0.5) < 4.5 * math.sqrt(1 / 12 / N_DRAWS), name
        following = np.corrcoef(column[:-1], column[1:])[0, 1]
        assert abs(following) < 4.5 / math.sqrt(N_DRAWS), name


def test_the_coins_of_flip_and_jitter_agree_half_the_time(draws: list[Draw]) -> None:
    for coin in (lambda draw: draw.jitter[0], lambda draw: draw.use[0], lambda draw: draw.use[1]):
        agree = np.mean([(draw.flip < 0.5) == (coin(draw) < 0.5) for draw in draws])
        assert abs(agree - 0.5) < 4.5 * 0.5 / math.sqrt(N_DRAWS)


def test_every_draw_has_its_own_transform_seeds(draws: list[Draw]) -> None:
    seeds = {int(seed) for draw in draws for seed in draw.seeds}
    assert len(seeds) == N_DRAWS * (len(EXTRAS) + 1)
    assert draws[0].shape.shape == (ATTEMPTS, 2)


# The crops


def slow_crop(height: int, width: int, draw: Draw, scale: tuple[float, float]) -> Box:
    """torchvision's RandomResizedCrop.get_params, line by line, with our numbers."""
    area = height * width
    for u_area, u_aspect in draw.shape:
        target_area = area * (scale[0] + (scale[1] - scale[0]) * float(u_area))
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        aspect_ratio = math.exp(low + (high - low) * float(u_aspect))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = math.floor(float(draw.place[0]) * (height - h + 1))
            j = math.floor(float(draw.place[1]) * (width - w + 1))
            return Box(i, j, h, w)
    in_ratio = width / height
    if in_ratio < min(RATIO):
        w, h = width, round(width / min(RATIO))
    elif in_ratio > max(RATIO):
        h, w = height, round(height * max(RATIO))
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


SHAPES = [(60, 80), (480, 640), (30, 400), (500, 20), (1, 1), (2, 3), (224, 224)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("scale", [SCALE, (0.3, 1.0), (1.0, 1.0)])
def test_a_random_crop_is_torchvisions_with_the_numbers_of_the_draw(
    draws: list[Draw], height: int, width: int, scale: tuple[float, float]
) -> None:
    for draw in draws[:300]:
        expected = slow_crop(height, width, draw, scale)
        assert random_resized_crop(height, width, draw, scale, RATIO) == expected


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_random_crop_lies_inside_the_photo(draws: list[Draw], height: int, width: int) -> None:
    for draw in draws:
        box = random_resized_crop(height, width, draw, SCALE, RATIO)
        assert box.height >= 1 and box.width >= 1
        assert box.top >= 0 and box.top + box.height <= height
        assert box.left >= 0 and box.left + box.width <= width


def test_area_and_aspect_of_a_random_crop_are_within_their_ranges(draws: list[Draw]) -> None:
    height, width = 480, 640
    boxes = [random_resized_crop(height, width, draw, SCALE, RATIO) for draw in draws]
    areas = np.array([box.height * box.width / (height * width) for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    slack = 1.01  # sides are whole pixels
    assert areas.min() > SCALE[0] / slack and areas.max() <= SCALE[1]
    assert aspects.min() > RATIO[0] / slack and aspects.max() < RATIO[1] * slack
    assert areas.min() < 0.1 and areas.max() > 0.9
    tops = np.array([box.top / max(1, height - box.height) for box in boxes])
    assert abs(tops.mean() - 0.5) < 0.05


def test_a_photo_in_which_no_attempt_fits_gives_its_largest_centre_crop(
    draws: list[Draw],
) -> None:
    whole = (1.0, 1.0)
    assert random_resized_crop(30, 400, draws[0], whole, RATIO) == Box(0, 180, 30, 40)
    assert random_resized_crop(400, 30, draws[0], whole, RATIO) == Box(180, 0, 40, 30)
    assert random_resized_crop(100, 100, draws[0], whole, (1.0, 1.0)) == Box(0, 0, 100, 100)


@pytest.mark.parametrize(
    ("height", "width", "crop_pct", "box"),
    [
        (100, 200, 1.0, Box(0, 50, 100, 100)),
        (200, 100, 0.5, Box(75, 25, 50, 50)),
        (64, 64, 0.875, Box(4, 4, 56, 56)),
        (5, 9, 0.5, Box(1.25, 3.25, 2.5, 2.5)),
    ],
)
def test_a_centre_crop_is_the_middle_square(
    height: int, width: int, crop_pct: float, box: Box
) -> None:
    assert centre_crop(height, width, crop_pct) == box


# The transforms


def test_the_same_draw_gives_the_same_bytes_in_any_object_and_order(
    photo: bytes, draws: list[Draw]
) -> None:
    recipe = TransformConfig(image_size=32)
    first, second = TrainTransform(recipe), TrainTransform(recipe)
    images = [transformed(first, photo, draw).pixels for draw in draws[:20]]
    for k in range(19, -1, -1):
        assert transformed(second, photo, draws[k]).pixels.tobytes() == images[k].tobytes()
    assert len({image.tobytes() for image in images}) == 20


def still(**fields: Any) -> TransformConfig:
    """A recipe that takes the whole photo, whose crop depends on no draw."""
    return TransformConfig(image_size=60, scale=(1, 1), ratio=(4 / 3, 4 / 3), **fields)


def test_a_jitter_differs_with_its_numbers_and_with_nothing_else(
    photo: bytes, draws: list[Draw]
) -> None:
    transform = TrainTransform(still(flip=0.0, jitter=0.4))
    a, b = draws[0], draws[1]
    once = transformed(transform, photo, a).pixels
    assert not np.array_equal(once, transformed(transform, photo, b).pixels)
    assert np.array_equal(once, transformed(transform, photo, b._replace(jitter=a.jitter)).pixels)


def test_a_jitter_is_used_as_often_as_its_probability_says(photo: bytes, draws: list[Draw]) -> None:
    plain = transformed(TrainTransform(still(flip=0.0, jitter=0.0)), photo, draws[0]).pixels
    transform = TrainTransform(still(flip=0.0, jitter=0.4, jitter_probability=0.25))
    for draw in draws[:60]:
        untouched = np.array_equal(transformed(transform, photo, draw).pixels, plain)
        assert untouched == (draw.jitter[0] >= 0.25)


def test_a_jitter_changes_brightness_within_its_strength(photo: bytes, draws: list[Draw]) -> None:
    plain = transformed(TrainTransform(still(flip=0.0, jitter=0.0)), photo, draws[0]).pixels
    transform = TrainTransform(still(flip=0.0, jitter=0.1))
    shares = [
        transformed(transform, photo, draw).pixels.mean() / plain.mean() for draw in draws[:60]
    ]
    assert min(shares) > 0.88 and max(shares) < 1.12
    assert min(shares) < 0.95 and max(shares) > 1.05


@pytest.mark.parametrize("order", list(permutations(("brightness", "contrast", "saturation"))))
def test_a_jitter_is_torchvisions_three_blends_in_any_order(order: tuple[str, ...]) -> None:
    # Away from black and white: torchvision clips and rounds after each blend, this at the end.
    pixels = np.random.default_rng(0).integers(90, 160, (20, 20, 3)).astype(np.uint8)
    factors = {"brightness": 1.1, "contrast": 0.8, "saturation": 1.3}
    adjusted = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    for name in order:
        adjusted = getattr(torchvision_functional, f"adjust_{name}")(adjusted, factors[name])
    expected = adjusted.permute(1, 2, 0).numpy() * 255
    matrix = jitter_matrix(**factors, channel_means=pixels.mean(axis=(0, 1)).tolist())
    assert np.abs(pixels @ matrix[:, :3].T + matrix[:, 3] - expected).max() < 0.2


def test_each_kind_of_jitter_keeps_what_it_does_not_change() -> None:
    means = [100.0, 120.0, 90.0]
    pixel = np.array([50.0, 200.0, 130.0, 1.0])
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    grey = np.dot(LUMA, pixel[:3])
    close(jitter_matrix(1, 1, 1, means) @ pixel, pixel[:3])
    close(jitter_matrix(1.5, 1, 1, means) @ pixel, 1.5 * pixel[:3])
    close(jitter_matrix(1, 0, 1, means) @ pixel, [np.dot(LUMA, means)] * 3)
    close(jitter_matrix(1, 1, 0, means) @ pixel, [grey] * 3)
    assert np.dot(LUMA, jitter_matrix(1, 1, 1.7, means) @ pixel) == pytest.approx(grey)


@pytest.mark.parametrize("name", EXTRAS)
def test_an_extra_is_used_as_often_as_its_probability_says(
    photo: bytes, draws: list[Draw], name: str
) -> None:
    plain = transformed(TrainTransform(still(flip=0.0, jitter=0.0)), photo, draws[0]).pixels
    transform = TrainTransform(still(flip=0.0, jitter=0.0, **{name: 0.25}))
    for draw in draws[:60]:
        untouched = np.array_equal(transformed(transform, photo, draw).pixels, plain)
        weak = name == "blur"  # a blur of a tenth of a pixel changes nothing
        assert untouched == (draw.use[EXTRAS.index(name)] >= 0.25) or (weak and untouched)


def test_a_grayscale_photo_has_three_equal_channels(photo: bytes, draws: list[Draw]) -> None:
    pixels = transformed(TrainTransform(still(jitter=0.0, grayscale=1.0)), photo, draws[0]).pixels
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_a_blur_differs_with_its_seed_and_with_nothing_else(
    photo: bytes, draws: list[Draw]
) -> None:
    transform = TrainTransform(still(flip=0.0, jitter=0.0, blur=1.0))
    blurred = {transformed(transform, photo, draw).pixels.tobytes() for draw in draws[:10]}
    assert len(blurred) > 5
    same_seed = draws[1]._replace(seeds=draws[0].seeds)
    once, again = (transformed(transform, photo, draw).pixels for draw in (draws[0], same_seed))
    assert np.array_equal(once, again)


@pytest.mark.parametrize("policy", ["rand_augment", "cifar10"])
def test_a_policy_does_what_its_seed_draws_and_nothing_else_decides_it(
    photo: bytes, draws: list[Draw], policy: Any
) -> None:
    recipe = still(flip=0.0, jitter=0.0, policy=policy)
    transform = TrainTransform(recipe)
    plain = transformed(TrainTransform(still(flip=0.0, jitter=0.0)), photo, draws[0]).pixels
    seen = set()
    for draw in draws[:30]:
        rng = np.random.Generator(np.random.Philox(int(draw.seeds[-1])))
        expected = apply_steps(plain, draw_steps(recipe, rng))
        pixels = transformed(transform, photo, draw).pixels
        assert np.array_equal(pixels, expected)
        seen.add(pixels.tobytes())
    assert len(seen) > 6
    same_seed = draws[1]._replace(seeds=draws[0].seeds)
    once, again = (transformed(transform, photo, draw).pixels for draw in (draws[0], same_seed))
    assert np.array_equal(once, again)


def test_an_image_is_written_where_it_is_asked_for(photo: bytes, draws: list[Draw]) -> None:
    recipe = TransformConfig(image_size=32, blur=0.5)
    for transform in (TrainTransform(recipe), EvalTransform(recipe)):
        for draw in draws[:20]:
            batch = np.full((3, 32, 32, 3), 7, np.uint8)
            crops, _ = decode_crops(photo, transform, draw, 0)
            transform.write(crops, draw, batch[1])
            assert np.array_equal(batch[1], transformed(transform, photo, draw).pixels)
            assert (batch[[0, 2]] == 7).all()


def test_a_flip_mirrors_the_crop(photo: bytes, draws: list[Draw]) -> None:
    transform = TrainTransform(still(flip=0.5, jitter=0.0))
    plain = transformed(TrainTransform(still(flip=0.0, jitter=0.0)), photo, draws[0]).pixels
    for draw in draws[:40]:
        pixels = transformed(transform, photo, draw).pixels
        assert np.array_equal(pixels, plain[:, ::-1] if draw.flip < 0.5 else plain)


def test_a_test_image_depends_on_no_draw(photo: bytes, draws: list[Draw]) -> None:
    transform = EvalTransform(TransformConfig(image_size=32, eval_image_size=48))
    crop = transformed(transform, photo, draws[0]).pixels
    assert crop.shape == (48, 48, 3)
    assert np.array_equal(crop, transformed(transform, photo, draws[1]).pixels)


def test_a_transform_goes_to_another_process_and_back(photo: bytes, draws: list[Draw]) -> None:
    transform = TrainTransform(TransformConfig(image_size=32))
    pixels = transformed(
        transform, photo, draws[3]
    ).pixels  # its albumentations object stays behind
    again = pickle.loads(pickle.dumps(transform))
    assert np.array_equal(transformed(again, photo, draws[3]).pixels, pixels)


# No global is left changed


@pytest.mark.parametrize("before", [None, "0", "yes"])
def test_the_environment_variable_of_albumentations_is_put_back(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    name = "NO_ALBUMENTATIONS_UPDATE"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    seen, import_ = [], builtins.__import__

    def watched(module: str, *rest: Any, **options: Any) -> Any:
        if module == "albumentations":
            seen.append(os.environ.get(name))
        return import_(module, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", watched)
    transforms._extra("blur")
    assert seen == ["1"]
    assert os.environ.get(name) == before


@pytest.fixture
def generators() -> Iterator[None]:
    """The global generators of Python and NumPy, put back after the test."""
    python, numpy = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)


@pytest.mark.usefixtures("generators", "unchecked")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_leaves_the_generators_of_python_and_numpy_alone(
    world: Path, workers: int
) -> None:
    loader = build_loader(
        load_split(world), image_size=16, training=True, batch_size=8, workers=workers
    )
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    images = [batch["image"].numpy().tobytes() for batch in loader]
    after = random.random(), np.random.random()
    assert after == expected
    random.seed(8)
    np.random.seed(8)
    assert [batch["image"].numpy().tobytes() for batch in loader] == images

"""Views: what a spec names, where each crop lies, one decode for all, the mean of their logits."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from photo_reading import read_crop, transformed
from worlds import make_world

from inat.config.schema import TransformConfig
from inat.core.errors import InputError
from inat.dataset.split import Split, load_split
from inat.loader.loader import build_loader
from inat.loader.transforms import EVAL_SPARE, EpochDraws
from inat.loader.views import RANDOM_AREA, RANDOM_RATIO, View, ViewTransform, parse_views
from inat.models.forward import mean_logits, refuse_sizes
from inat.photos import decode as photos_module
from inat.photos.decode import Box

PLAIN = {"size": 224, "crop_pct": 0.875}


def named(spec: str) -> list[str]:
    """The views of a spec as kind, size and a bar for the mirrored."""
    return [
        f"{view.kind}{'' if view.number is None else view.number} {view.size}{' |' * view.flip}"
        for view in parse_views(spec, **PLAIN)
    ]


CORNERS = ["top_left 224", "top_right 224", "bottom_left 224", "bottom_right 224"]


@pytest.mark.parametrize(
    ("spec", "views"),
    [
        ("centre", ["centre 224"]),
        ("flip", ["centre 224", "centre 224 |"]),
        ("five-crop", [*CORNERS, "centre 224"]),
        ("full", ["full 224"]),
        ("centre+full", ["centre 224", "full 224"]),
        ("random:2", ["random0 224", "random1 224"]),
        ("random:1 + seed:7 + flip", ["random0 224", "random0 224 |"]),
        ("scales:288,224", ["centre 224", "centre 288"]),
        (
            "scales:224,256+flip",
            ["centre 224", "centre 224 |", "centre 256", "centre 256 |"],
        ),
    ],
)
def test_a_spec_names_these_views(spec: str, views: list[str]) -> None:
    assert named(spec) == views


def test_ten_crop_is_five_crop_and_its_mirror_images() -> None:
    assert named("ten-crop") == named("five-crop+flip") == named("flip+five-crop")
    assert sorted(named("ten-crop")) == sorted(
        view + bar for view in named("five-crop") for bar in ("", " |")
    )


def test_a_spec_of_three_scales_multiplies_what_it_is_joined_to() -> None:
    views = parse_views("ten-crop+scales:224,256,288", **PLAIN)
    assert Counter(view.size for view in views) == {224: 10, 256: 10, 288: 10}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            "tencrop",
            "unknown name 'tencrop'; did you mean ten-crop? valid: centre, five-crop, flip, full, "
            "random, scales, seed, ten-crop",
        ),
        (
            "",
            "unknown name ''; valid: centre, five-crop, flip, full, random, scales, seed, ten-crop",
        ),
        ("flip+flip", "flip is given twice (ten-crop is five-crop+flip)"),
        ("ten-crop+flip", "flip is given twice (ten-crop is five-crop+flip)"),
        ("flip:2", "flip takes no number"),
        ("random", "random takes numbers (random:8)"),
        ("scales", "scales takes numbers (scales:224,256)"),
        ("random:0", "random takes one whole number from 1 on, not '0'"),
        ("random:2,3", "random takes one whole number from 1 on, not '2,3'"),
        ("random:-1", "random takes one whole number from 1 on, not '-1'"),
        ("random:²", "random takes one whole number from 1 on, not '²'"),
        ("scales:224,", "scales takes different whole numbers from 8 on, not '224,'"),
        ("scales:224,224", "scales takes different whole numbers from 8 on, not '224,224'"),
        ("scales:7", "scales takes different whole numbers from 8 on, not '7'"),
        ("flip+seed:3", "seed is of random crops; add random:N"),
        ("centre+ten-crop", "five-crop has the center already; omit centre"),
        ("random:257", "257 views are too many; at most 256"),
        ("random:100+flip+scales:32,64", "400 views are too many; at most 256"),
    ],
)
def test_a_bad_spec_gets_one_line(spec: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_views(spec, **PLAIN)
    assert str(refused.value) == f"views {spec!r}: {told}"


def test_the_facts_of_a_view_leave_out_what_is_at_its_default() -> None:
    centre, mirrored = parse_views("flip", **PLAIN)
    assert centre.facts() == {"kind": "centre", "size": 224, "crop_pct": 0.875}
    assert mirrored.facts() == {**centre.facts(), "flip": True}
    (drawn,) = parse_views("random:1", **PLAIN)
    assert drawn.facts() == {"kind": "random", "size": 224, "seed": 0, "number": 0}


@pytest.mark.parametrize("shape", [(60, 100), (100, 60)])
def test_corners_lie_in_the_corners_and_full_is_the_whole_photo(shape: tuple[int, int]) -> None:
    height, width = shape
    boxes = {
        view.kind: view.box(height, width, 0)
        for view in parse_views("full+five-crop", size=32, crop_pct=0.5)
    }
    assert boxes.pop("full") == Box(0, 0, height, width)
    assert {(box.height, box.width) for box in boxes.values()} == {(30, 30)}
    assert {kind: (box.top, box.left) for kind, box in boxes.items()} == {
        "top_left": (0, 0),
        "top_right": (0, width - 30),
        "bottom_left": (height - 30, 0),
        "bottom_right": (height - 30, width - 30),
        "centre": ((height - 30) / 2, (width - 30) / 2),
    }


def test_a_random_view_depends_on_seed_image_and_number_alone() -> None:
    def boxes(spec: str, image_id: int) -> list[Box]:
        return [view.box(600, 800, image_id) for view in parse_views(spec, **PLAIN)]

    few, many = boxes("random:2", 5), boxes("random:9", 5)
    assert many[:2] == few
    assert len(set(many)) == 9
    assert not set(many) & set(boxes("random:9", 6))
    assert not set(many) & set(boxes("random:9+seed:1", 5))
    for box in many:
        share = box.height * box.width / (600 * 800)
        assert RANDOM_AREA[0] - 0.01 < share <= RANDOM_AREA[1]
        assert RANDOM_RATIO[0] - 0.01 < box.width / box.height < RANDOM_RATIO[1] + 0.01
        assert 0 <= box.top <= 600 - box.height
        assert 0 <= box.left <= 800 - box.width


# One decode


def jpeg(height: int, width: int, grain: int = 16) -> bytes:
    """A photo of coloured spots so many pixels wide."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // grain, width // grain, 3), np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    content: bytes = simplejpeg.encode_jpeg(pixels, 92)
    return content


def shown(content: bytes, views: tuple[View, ...], image_id: int = 3) -> list[np.ndarray]:
    """Each view of a photo, all from one call."""
    transform = ViewTransform(views)
    out = transformed(transform, content, EpochDraws(0, 0)[0], image_id).pixels
    by_name = transform.images(torch.from_numpy(out)[None])
    return [image.numpy() for images in by_name.values() for image in images[0]]


def slow_view(content: bytes, view: View, image_id: int = 3) -> np.ndarray:
    """A view by itself, from a decode of its own."""
    crop = read_crop(content, lambda h, w: view.box(h, w, image_id), view.size, spare=EVAL_SPARE)
    return crop.pixels[:, ::-1] if view.flip else crop.pixels


@pytest.mark.parametrize(
    "spec", ["ten-crop", "full+random:3+flip", "scales:16,24,40+flip", "five-crop+scales:16,24"]
)
def test_every_view_is_the_one_of_a_decode_of_its_own(spec: str) -> None:
    content = jpeg(48, 64)
    views = parse_views(spec, size=32, crop_pct=0.875)
    images = shown(content, views)
    assert len(images) == len(views)
    for view, image in zip(views, images, strict=True):
        assert np.array_equal(image, slow_view(content, view)), view


def test_a_photo_is_decoded_once_for_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = []
    decode = simplejpeg.decode_jpeg

    def counted(*arguments: Any, **options: Any) -> Any:
        factors.append(options["min_factor"])
        return decode(*arguments, **options)

    monkeypatch.setattr(photos_module.simplejpeg, "decode_jpeg", counted)
    content = jpeg(480, 640)
    shown(content, parse_views("ten-crop+full+random:5+scales:16,32", size=32, crop_pct=0.875))
    assert len(factors) == 1


def test_a_photo_is_decoded_at_the_scale_of_the_most_demanding_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors = []
    decode = simplejpeg.decode_jpeg

    def noted(*arguments: Any, **options: Any) -> Any:
        factors.append(options["min_factor"])
        return decode(*arguments, **options)

    monkeypatch.setattr(photos_module.simplejpeg, "decode_jpeg", noted)
    content = jpeg(480, 640, grain=80)
    # 420 pixels of the photo for 32 and for 128: 8 and 2 times as many as 1.5 times the result.
    both = parse_views("scales:32,128", size=32, crop_pct=0.875)
    together = shown(content, both)
    alone = [shown(content, (view,))[0] for view in both]
    assert factors == [2, 8, 2]
    assert np.array_equal(together[1], alone[1])
    assert np.abs(together[0].astype(int) - alone[0]).mean() < 3


# Through the loader


@pytest.fixture(scope="module")
def val(world: Path) -> Split:
    return load_split(world, "val")


def batches_of(split: Split, **options: Any) -> list[dict[str, torch.Tensor]]:
    defaults = {"image_size": 16, "training": False, "batch_size": 5, "workers": 0}
    return list(build_loader(split, **(defaults | options)))


def test_a_batch_with_views_has_them_by_size(val: Split) -> None:
    batch, *_ = batches_of(val, views="scales:16,24+flip+centre+full")
    assert set(batch) == {"views_16", "views_24", "label", "image_id"}
    assert tuple(batch["views_16"].shape) == (5, 4, 16, 16, 3)
    assert tuple(batch["views_24"].shape) == (5, 4, 24, 24, 3)
    assert batch["views_16"].dtype == torch.uint8
    plain, *_ = batches_of(val)
    assert torch.equal(batch["views_16"][:, 0], plain["image"])
    assert torch.equal(batch["views_16"][:, 1], plain["image"].flip(2))
    assert torch.equal(batch["label"], plain["label"])


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)
@pytest.mark.parametrize(("workers", "kind"), [(2, "threads"), (1, "processes")])
def test_views_are_the_same_bytes_for_any_workers_and_ranks(
    val: Split, workers: int, kind: Any
) -> None:
    views = "random:2+full+scales:16,24"

    def by_photo(**options: Any) -> dict[int, bytes]:
        return {
            image_id: batch["views_16"][row].numpy().tobytes()
            + batch["views_24"][row].numpy().tobytes()
            for batch in batches_of(val, views=views, **options)
            for row, image_id in enumerate(batch["image_id"].tolist())
        }

    whole = by_photo()
    assert len(whole) == len(val)
    assert by_photo(workers=workers, worker_kind=kind, batch_size=3) == whole
    halves = [by_photo(rank=rank, world_size=2) for rank in range(2)]
    assert halves[0] | halves[1] == whole
    assert not halves[0].keys() & halves[1].keys()


def test_views_of_unreadable_photos_are_left_out(tmp_path: Path) -> None:
    split = load_split(make_world(tmp_path), "val")
    whole, *_ = batches_of(split, views="flip")
    split.path(1).write_bytes(b"no photo")
    batch, *_ = batches_of(split, views="flip", on_bad_photo="skip")
    kept = [0, 2, 3, 4]
    assert batch["image_id"].tolist() == split.image_ids[kept].tolist()
    assert torch.equal(batch["views_16"], whole["views_16"][kept])


@pytest.mark.parametrize("options", [{"training": True}, {"keep_photos": True}])
def test_views_are_for_predictions(val: Split, options: dict[str, bool]) -> None:
    recipe = TransformConfig(crop="pad", image_size=16)
    with pytest.raises(InputError) as refused:
        batches_of(val, views="flip", recipe=recipe, **options)
    assert str(refused.value) == (
        "views 'flip' are several images of a photo, for predictions; leave views away, or set "
        "training and keep_photos false"
    )


# The mean


def slow_mean(logits: np.ndarray, how: str) -> np.ndarray:
    """Log of the mean probability, or the mean log-probability, photo by photo."""
    rows = []
    for photo in logits.astype(np.float64):
        log_probs = [view - np.log(np.exp(view).sum()) for view in photo]
        if how == "logprob":
            rows.append(sum(log_probs) / len(log_probs))
        else:
            rows.append(np.log(sum(np.exp(view) for view in log_probs) / len(log_probs)))
    return np.stack(rows)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("how", ["logprob", "prob"])
def test_the_mean_is_that_of_a_slow_loop(how: Any) -> None:
    logits = np.random.default_rng(0).normal(0, 4, (6, 5, 7)).astype(np.float32)
    mean = mean_logits(torch.from_numpy(logits), how).numpy()
    np.testing.assert_allclose(log_softmax(mean), log_softmax(slow_mean(logits, how)), atol=1e-5)


@pytest.mark.parametrize("how", ["logprob", "prob"])
def test_the_mean_of_one_view_is_that_view(how: Any) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 4, (3, 1, 7)).astype(np.float32))
    mean = mean_logits(logits, how).numpy()
    np.testing.assert_allclose(log_softmax(mean), log_softmax(logits[:, 0].numpy()), atol=1e-5)


def test_the_mean_of_log_probabilities_commutes_with_a_shift_of_the_prior() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(0, 4, (6, 5, 7)))
    shift = torch.log(torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.06, 0.04]))
    before = mean_logits((logits - shift).float(), "logprob")
    after = mean_logits(logits.float(), "logprob") - shift
    torch.testing.assert_close(before, after.float())


def test_either_mean_keeps_a_prior_that_the_views_say_nothing_against() -> None:
    prior = torch.tensor([0.7, 0.2, 0.1])
    logits = prior.log().expand(2, 4, 3) + torch.arange(4.0)[:, None]
    for how in ("logprob", "prob"):
        torch.testing.assert_close(
            mean_logits(logits, how).softmax(1),
            prior.expand(2, 3),  # type: ignore[arg-type]
        )


def test_a_network_of_one_size_refuses_others_in_one_line() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[2] != 32:
                raise AssertionError("Input height (48) doesn't match model (32).")
            return images.mean((2, 3)) + self.weight

    views = parse_views("scales:32,48", size=32, crop_pct=1)
    with pytest.raises(InputError) as refused:
        refuse_sizes(Fixed(), views, 32, "vit_tiny")
    assert str(refused.value) == (
        "views: vit_tiny takes no images of 48 pixels (Input height (48) doesn't match model "
        "(32).); leave 48 out of scales (it was trained at 32)"
    )
    refuse_sizes(Fixed(), tuple(replace(view, size=32) for view in views), 32, "vit_tiny")

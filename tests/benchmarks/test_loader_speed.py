"""Batches through the kit against timm's `create_loader`, in turn, five rounds.

The clock stops at a normalised float batch on the device, on both sides. timm runs in its faster
mode: the prefetcher, which gets uint8 batches from worker processes and normalises them whole.
Beside each speed stands how far the pixels are from Pillow's antialiased resize of the same crop,
and how far those of a whole decode with OpenCV's INTER_AREA are.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from contestants import Contestant, Step, alternate, endless, spread
from photo_reading import read_crop
from photo_worlds import Texture, make_photo_world, mean_kilobytes
from PIL import Image

from inat.config.schema import TransformConfig
from inat.loader.transforms import EVAL_SPARE, EpochDraws, centre_crop, random_resized_crop
from inat.photos.decode import Box, decode_factor

SIZE, BATCH, WORKERS = 224, 32, 2
ROUNDS, STEPS = 5, 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def kit_batches(root: Path, training: bool, workers: int, worker_kind: str) -> Iterator[Step]:
    """The kit's loader with its own recipe."""
    import torch

    from inat.dataset.split import load_split
    from inat.loader.batches import to_device
    from inat.loader.loader import build_loader

    if workers == 0:
        pin_to_one_core()
        torch.set_num_threads(1)
    loader = build_loader(
        load_split(root),
        image_size=SIZE,
        training=training,
        batch_size=BATCH,
        workers=workers,
        worker_kind=worker_kind,  # type: ignore[arg-type]
    )
    batches = endless(loader)
    yield lambda: to_device(next(batches), "cpu", MEAN, STD)


def timm_batches(root: Path, training: bool) -> Iterator[Step]:
    """timm's loader, its dataset and its transforms."""
    import torch
    from timm.data import ImageDataset, create_loader

    # As on a user's Linux: this process was itself spawned, and its children would be too.
    torch.multiprocessing.set_start_method("fork", force=True)
    loader = create_loader(
        ImageDataset(str(root / "train_val2018")),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=training,
        scale=SCALE,
        ratio=RATIO,
        hflip=0.5,
        color_jitter=0.4,
        interpolation="bilinear",
        crop_pct=0.875,
        mean=MEAN,
        std=STD,
        num_workers=WORKERS,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    batches = endless(loader)
    yield lambda: next(batches)


def bare_decoding(root: Path) -> Iterator[Step]:
    """simplejpeg alone, from memory, at the scales that the kit's training crops need."""
    from inat.dataset.split import load_split

    pin_to_one_core()
    split = load_split(root)
    contents = [split.path(i).read_bytes() for i in range(len(split))]
    k = 0

    def step() -> None:
        nonlocal k
        for _ in range(BATCH):
            content = contents[k % len(contents)]
            height, width, _, _ = simplejpeg.decode_jpeg_header(content)
            factor = factors[k % len(factors)]
            simplejpeg.decode_jpeg(
                content,
                "RGB",
                min_height=-(-height // factor),
                min_width=-(-width // factor),
                min_factor=factor,
                buffer=room,
            )
            k += 1

    draws = EpochDraws(0, 0)
    boxes = [random_resized_crop(600, 800, draws[k], SCALE, RATIO) for k in range(1000)]
    factors = [decode_factor(box, SIZE, 1) for box in boxes]
    room = np.empty(600 * 800 * 3, np.uint8)
    yield step


def pin_to_one_core() -> None:
    """Moves this process to the first core it may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photos")
    return {
        texture: make_photo_world(folder / texture, texture) for texture in ("textured", "smooth")
    }


@pytest.fixture(scope="module")
def packs(worlds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from inat.acquire.pack import pack_photos

    folder = tmp_path_factory.mktemp("packs")
    for texture, root in worlds.items():
        pack_photos(root, folder / texture, short_side=384, quality=92)
    return {texture: folder / texture for texture in worlds}


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return say


def race(ours: Contestant, theirs: Contestant, n_steps: int = STEPS) -> tuple[str, str, str]:
    """Photos a second of both, and the ratio, each with its spread."""
    times = alternate(ours, theirs, rounds=ROUNDS, n_steps=n_steps, warm_up=8)
    photos = n_steps * BATCH
    return (
        spread([photos / a for a, _ in times]),
        spread([photos / b for _, b in times]),
        spread([b / a for a, b in times]),
    )


@pytest.mark.parametrize("texture", ["textured", "smooth"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("worker_kind", ["threads", "processes"])
def test_batches_from_files(
    worlds: dict[str, Path],
    report: Callable[[str], None],
    training: bool,
    texture: Texture,
    worker_kind: str,
) -> None:
    root = worlds[texture]
    kit, timm, ratio = race(
        Contestant(kit_batches, root, training, WORKERS, worker_kind),
        Contestant(timm_batches, root, training),
    )
    what = f"{'train' if training else 'eval'} batches, {texture}, {mean_kilobytes(root):.0f} KB"
    report(f"{what}, {WORKERS} {worker_kind}: kit {kit}, timm {timm} images/s; kit / timm {ratio}")


@pytest.mark.parametrize("texture", ["textured", "smooth"])
def test_batches_from_a_pack(
    worlds: dict[str, Path],
    packs: dict[str, Path],
    report: Callable[[str], None],
    texture: Texture,
) -> None:
    kit, timm, ratio = race(
        Contestant(kit_batches, packs[texture], True, WORKERS, "threads"),
        Contestant(timm_batches, worlds[texture], True),
    )
    sizes = [
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (packs[texture], worlds[texture])
    ]
    report(
        f"train batches from a pack, {texture}: kit {kit}, timm on the files {timm} images/s; "
        f"kit / timm {ratio}; the pack has {sizes[0] / sizes[1]:.2f} of the files' bytes"
    )


@pytest.mark.parametrize("texture", ["textured", "smooth"])
def test_one_core_without_workers(
    worlds: dict[str, Path], report: Callable[[str], None], texture: Texture
) -> None:
    root = worlds[texture]
    kit, bare, ratio = race(
        Contestant(kit_batches, root, True, 0, "auto"), Contestant(bare_decoding, root)
    )
    report(
        f"one core, no workers, {texture}: kit {kit}, simplejpeg alone {bare} images/s; "
        f"kit / simplejpeg {ratio}"
    )


def crops(height: int, width: int, training: bool) -> list[Box]:
    """Crops as the kit draws them, their edges on whole pixels of every scale."""
    if not training:
        box = centre_crop(height, width, 0.875)
        return [Box(*(2 * round(side / 2) for side in box))]
    draws = EpochDraws(1, 0)
    drawn = [random_resized_crop(height, width, draws[k], SCALE, RATIO) for k in range(12)]
    return [Box(*(8 * round(side / 8) for side in box)) for box in drawn]


def pillows(whole: np.ndarray, box: Box) -> np.ndarray:
    """Pillow's antialiased resize of a crop of the whole photo."""
    part = Image.fromarray(part_of(whole, box))
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.int64)


def opencvs(whole: np.ndarray, box: Box, interpolation: int) -> np.ndarray:
    """OpenCV's resize; axes that grow are bilinear, since INTER_AREA repeats pixels there."""
    part = part_of(whole, box)
    shrunk = (min(SIZE, part.shape[1]), min(SIZE, part.shape[0]))
    part = cv2.resize(part, shrunk, interpolation=interpolation)
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(np.int64)


def part_of(whole: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = (int(side) for side in box)
    return whole[top : top + height, left : left + width]


@pytest.mark.parametrize("texture", ["textured", "smooth"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_how_far_the_pixels_are_from_pillows(
    worlds: dict[str, Path],
    packs: dict[str, Path],
    report: Callable[[str], None],
    training: bool,
    texture: Texture,
) -> None:
    from inat.dataset.split import load_split
    from inat.photos.sources import open_photos

    split = load_split(worlds[texture])
    packed = open_photos(packs[texture], split.file_names)
    spare = 1.0 if training else EVAL_SPARE
    distances: dict[str, list[float]] = {"kit": [], "whole, INTER_AREA": [], "pack": []}
    for row in range(24):
        content = split.path(row).read_bytes()
        whole = simplejpeg.decode_jpeg(content, "RGB")
        for box in crops(*whole.shape[:2], training):
            expected = pillows(whole, box)
            small = Box(*(side * 384 / 600 for side in box))
            shown: dict[str, Any] = {
                "kit": read_crop(content, lambda h, w, box=box: box, SIZE, spare=spare).pixels,
                "whole, INTER_AREA": opencvs(whole, box, cv2.INTER_AREA),
                "pack": read_crop(
                    packed.read(row), lambda h, w, box=small: box, SIZE, spare=spare
                ).pixels,
            }
            for name, pixels in shown.items():
                distances[name].append(float(np.abs(pixels - expected).mean()))
    means = {name: float(np.mean(values)) for name, values in distances.items()}
    what = f"{'train' if training else 'eval'} crops, {texture}"
    report(
        f"{what}, mean absolute difference to Pillow's resize, of 255: "
        + ", ".join(f"{name} {value:.2f}" for name, value in means.items())
        + f"; kit / INTER_AREA {means['kit'] / means['whole, INTER_AREA']:.2f}"
    )
    assert means["kit"] <= 1.25 * means["whole, INTER_AREA"]  # no time: pixels do not waver


def test_every_recipe_field_of_timms_side_is_the_kits() -> None:
    recipe = TransformConfig()
    assert (recipe.scale, recipe.ratio) == (SCALE, RATIO)
    assert (recipe.flip, recipe.jitter, recipe.jitter_probability) == (0.5, 0.4, 1.0)
    assert recipe.crop_pct == 0.875

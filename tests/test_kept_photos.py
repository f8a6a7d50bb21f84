"""Photos decoded once and kept: the bytes, events and refusals of those read one by one."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_reading import transformed
from PIL import Image
from worlds import make_world

from inat.config.reading import build
from inat.config.schema import TransformConfig
from inat.core.errors import InputError, WorldError
from inat.dataset.split import Split, load_split
from inat.loader import loader as kept_photos
from inat.loader import reader
from inat.loader.batches import Batch
from inat.loader.loader import Loader, build_loader, machine_memory, refuse_large_cache
from inat.loader.transforms import BLOCK, EpochDraws, EvalTransform, TrainTransform, pad_crops
from inat.photos.decode import BadPhoto
from inat.photos.sources import PhotoFiles
from inat.training.verbs import train as train_config

SIZE = 16
PAD = TransformConfig(image_size=SIZE, crop="pad", pad=4, jitter=0)
COLOURS = replace(PAD, jitter=0.4, jitter_probability=0.7, grayscale=0.3, policy="rand_augment")

# Python 3.12 warns of forks beside threads, torch of more processes than processors.
forks = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)
WORKERS = [(0, "auto"), (1, "threads"), (3, "threads"), (1, "processes")]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 16 x 16 photos; not to be written to."""
    return make_world(tmp_path_factory.mktemp("small"), size=(SIZE, SIZE))


@pytest.fixture(scope="module")
def train(small: Path) -> Split:
    return load_split(small)


def loader_of(split: Split, **options: Any) -> Loader:
    defaults = {"image_size": SIZE, "training": True, "batch_size": 8, "workers": 0, "recipe": PAD}
    return build_loader(split, **{**defaults, **options})


def content(batches: list[Batch]) -> list[dict[str, bytes]]:
    return [{name: tensor.numpy().tobytes() for name, tensor in b.items()} for b in batches]


def noise(n: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


# The crop


def slow_pad_crop(photo: np.ndarray, top: int, left: int, pad: int) -> np.ndarray:
    """Pixel by pixel: black wherever the crop stands over the photo's edge."""
    size = len(photo)
    crop = np.zeros_like(photo)
    for y in range(size):
        for x in range(size):
            row, column = y + top - pad, x + left - pad
            if 0 <= row < size and 0 <= column < size:
                crop[y, x] = photo[row, column]
    return crop


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_a_pad_crop_is_the_one_that_a_slow_loop_cuts(pad: int) -> None:
    photos = noise(20)
    places = np.random.default_rng(1).random((20, 2), np.float32)
    crops = pad_crops(photos, places, pad)
    for photo, (u_top, u_left), crop in zip(photos, places.tolist(), crops, strict=True):
        top, left = int(u_top * (2 * pad + 1)), int(u_left * (2 * pad + 1))
        assert np.array_equal(crop, slow_pad_crop(photo, top, left, pad))


@pytest.mark.parametrize("pad", [1, 2, 4, 7, 8, 1000])
def test_the_smallest_and_the_largest_draw_stay_within_the_border(pad: int) -> None:
    largest = 1 - 2.0**-24  # of Generator.random(float32)
    places = np.array([[0, 0], [largest, largest]], np.float32)
    photos = noise(2, size=2)
    first, last = pad_crops(photos, places, pad)
    assert np.array_equal(first, slow_pad_crop(photos[0], 0, 0, pad))
    assert np.array_equal(last, slow_pad_crop(photos[1], 2 * pad, 2 * pad, pad))


def test_every_place_is_drawn_as_often_as_any_other() -> None:
    n = 81 * 400
    places, flips = EpochDraws(0, 0).places_and_flips(range(n))
    tops, lefts = (places * np.float32(9)).astype(int).T
    counts = np.bincount(9 * tops + lefts, minlength=81)
    # 112 is the 99 % point of chi-square with 80 degrees of freedom.
    assert ((counts - 400) ** 2 / 400).sum() < 112
    assert abs((flips < 0.5).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(n)


@pytest.mark.parametrize(
    "draws",
    [range(5), range(BLOCK - 3, BLOCK), range(BLOCK - 3, 2 * BLOCK + 2), range(7, 7)],
)
def test_the_arrays_of_many_draws_hold_the_numbers_of_each(draws: range) -> None:
    numbers = EpochDraws(3, 2)
    places, flips = numbers.places_and_flips(draws)
    assert places.shape == (len(draws), 2)
    for row, k in enumerate(draws):
        assert np.array_equal(places[row], numbers[k].place)
        assert flips[row] == numbers[k].flip


def test_training_is_the_padded_crop_and_the_flip_of_its_draw() -> None:
    photo = noise(1)[0]
    transform = TrainTransform(PAD)
    seen = set()
    for k in range(30):
        draw = EpochDraws(0, 0)[k]
        top, left = (int(np.float32(9) * u) for u in draw.place)
        expected = slow_pad_crop(photo, top, left, 4)
        if draw.flip < 0.5:
            expected = expected[:, ::-1]
        seen.add((top, left, draw.flip < 0.5))
        found = transformed(transform, png(photo), draw)
        assert found.recovered == ""
        assert np.array_equal(found.pixels, expected)
    assert len(seen) > 20


@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.0])
def test_a_test_photo_of_the_image_size_is_itself(crop_pct: float) -> None:
    photo = noise(1)[0]
    transform = EvalTransform(replace(PAD, crop_pct=crop_pct))
    assert np.array_equal(transformed(transform, png(photo), EpochDraws(0, 0)[0]).pixels, photo)


def test_a_test_photo_of_another_size_is_resized_whole() -> None:
    photo = np.repeat(np.repeat(noise(1)[0], 2, axis=0), 2, axis=1)
    pixels = transformed(EvalTransform(PAD), png(photo), EpochDraws(0, 0)[0]).pixels
    whole = EvalTransform(replace(PAD, crop="random_resized", crop_pct=1.0))
    assert np.array_equal(pixels, transformed(whole, png(photo), EpochDraws(0, 0)[0]).pixels)


def test_training_refuses_a_photo_of_another_size() -> None:
    pixels = np.zeros((SIZE, 20, 3), np.uint8)
    with pytest.raises(BadPhoto) as caught:
        transformed(TrainTransform(PAD), png(pixels), EpochDraws(0, 0)[0])
    assert str(caught.value) == "20 x 16 pixels, and transforms.crop pad takes 16 x 16 alone"


# The same bytes


@forks
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recipe", [PAD, COLOURS], ids=["crops", "colours"])
def test_kept_photos_give_the_bytes_of_photos_read_one_by_one_for_any_workers(
    train: Split, recipe: TransformConfig, training: bool
) -> None:
    plain = loader_of(train, recipe=recipe, training=training)
    for workers, kind in WORKERS:
        kept = loader_of(
            train,
            recipe=recipe,
            training=training,
            workers=workers,
            worker_kind=kind,
            keep_photos=True,
        )
        for epoch, start in ((0, 0), (3, 16), (1, 0)):
            for loader in (plain, kept):
                loader.set_epoch(epoch, start=start)
            assert content(list(kept)) == content(list(plain)), (workers, kind, epoch)


@pytest.mark.parametrize("batch_size", [1, 7, 43])
@pytest.mark.parametrize("sampler", ["instance", "class_balanced"])
def test_the_bytes_are_the_same_for_any_batch_size_and_sampler(
    train: Split, sampler: str, batch_size: int
) -> None:
    options: dict[str, Any] = {"sampler": sampler, "epoch_size": 100, "batch_size": batch_size}
    kept = content(list(loader_of(train, keep_photos=True, **options)))
    assert kept == content(list(loader_of(train, **options)))


def test_the_ranks_share_one_global_batch_of_kept_photos(train: Split) -> None:
    whole = list(loader_of(train, batch_size=8))
    parts = [
        list(loader_of(train, batch_size=4, rank=rank, world_size=2, keep_photos=True))
        for rank in range(2)
    ]
    for batch, *both in zip(whole, *parts, strict=True):
        for name, tensor in batch.items():
            assert torch.equal(tensor, torch.cat([part[name] for part in both]))


def test_two_epochs_at_the_same_time_keep_their_own_draws(train: Split) -> None:
    plain = loader_of(train)
    kept = loader_of(train, keep_photos=True)
    alone = []
    for epoch in (0, 1):
        plain.set_epoch(epoch)
        alone.append(content(list(plain)))
    first = iter(kept)
    begun = [next(first)]
    kept.set_epoch(1)
    together = [(a, b) for a, b in zip(first, kept, strict=False)]
    assert content(begun + [a for a, _ in together]) == alone[0]
    assert content([b for _, b in together]) == alone[1][:4]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_photo_is_read_once_for_all_epochs(
    train: Split, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    read: list[int] = []
    read_one = PhotoFiles.read
    monkeypatch.setattr(
        PhotoFiles, "read", lambda self, index: read.append(index) or read_one(self, index)
    )
    loader = loader_of(train, workers=workers, keep_photos=True)
    assert read == []  # a loader that is never used decodes nothing
    for epoch in range(3):
        loader.set_epoch(epoch)
        list(loader)
    assert Counter(read) == Counter(range(len(train)))


def test_a_batch_is_not_a_view_of_the_kept_photos(train: Split) -> None:
    loader = loader_of(train, training=False, keep_photos=True)
    before = content(list(loader))
    for batch in loader:
        batch["image"].zero_()
    assert content(list(loader)) == before


def test_a_training_ends_with_the_same_bits_and_its_config_counts_as_the_same(
    small: Path, tmp_path: Path
) -> None:
    ends, digests = [], []
    for kept in (False, True):
        config = build(
            {
                "epochs": 2,
                "batch_size": 8,
                "data": {"root": str(small), "workers": 0, "keep_photos": kept},
                "transforms": {"image_size": SIZE, "crop": "pad", "jitter": 0},
                "model": {"backbone": "cifar_resnet20", "weights": "none"},
                "optim": {"name": "sgd", "schedule": "step", "milestones": [1], "warmup_epochs": 0},
            },
            "test",
        )
        run = train_config(config, tmp_path / f"kept-{kept}")
        ends.append((run.checkpoint("last") / "model.safetensors").read_bytes())
        digests.append(run.config.digest)
    assert ends[0] == ends[1]
    assert digests[0] == digests[1]  # so that a resume may begin to keep them


# Troubled photos


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Train photos of which 1 is cut off, 4 gone, 6 without end marker and 9 of another size."""
    split = load_split(make_world(tmp_path_factory.mktemp("damaged"), size=(SIZE, SIZE)))
    split.path(1).write_bytes(split.path(1).read_bytes()[:-60])
    split.path(4).unlink()
    split.path(6).write_bytes(split.path(6).read_bytes()[:-2])
    split.path(9).write_bytes(png(np.zeros((20, 30, 3), np.uint8)))
    return split


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_and_recovered_photos_are_the_same_named_events(
    damaged: Split, workers: int
) -> None:
    loaders = [
        loader_of(damaged, workers=workers, on_bad_photo="skip", keep_photos=kept)
        for kept in (False, True)
    ]
    batches = []
    for loader in loaders:
        seen = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            seen += content(list(loader))
        batches.append(seen)
    plain, kept = loaders
    assert batches[0] == batches[1]
    assert kept.bad_photos == plain.bad_photos
    assert kept.recovered_photos == plain.recovered_photos
    reasons = {str(event).partition(": ")[2] for event in kept.bad_photos}
    assert reasons == {
        "cut off or damaged: Corrupt JPEG data: premature end of data segment",
        "No such file or directory",
        "30 x 20 pixels, and transforms.crop pad takes 16 x 16 alone",
    }


def test_a_bad_photo_stops_the_iteration_with_the_same_sentence(damaged: Split) -> None:
    sentences = []
    for kept in (False, True):
        with pytest.raises(WorldError) as caught:
            list(loader_of(damaged, keep_photos=kept))
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert sentences[1].endswith(
        "; fix or remove the photo, or go on without it (on_bad_photo skip)"
    )


def test_a_photo_that_was_slow_to_decode_is_reported(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SLOW_SECONDS", 0.0)
    loader = loader_of(train, training=False, keep_photos=True)
    list(loader)
    assert [event.image_id for event in loader.slow_photos] == train.image_ids.tolist()


# What is refused


def test_photos_of_one_size_are_asked_for_in_training_alone(train: Split) -> None:
    recipe = TransformConfig()
    with pytest.raises(InputError) as caught:
        loader_of(train, recipe=recipe, keep_photos=True)
    assert str(caught.value) == (
        "data.keep_photos keeps photos of one size, and transforms.crop random_resized cuts from "
        "photos of any; set transforms.crop pad or data.keep_photos false"
    )
    # What evaluation makes of a photo is the same each time, whatever the photo's size.
    options: dict[str, Any] = {"recipe": recipe, "training": False, "image_size": 12}
    assert content(list(loader_of(train, keep_photos=True, **options))) == (
        content(list(loader_of(train, **options)))
    )


def test_photos_that_would_take_too_much_memory_are_refused_before_any_is_read(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = len(train) * SIZE * SIZE * 3
    monkeypatch.setattr(kept_photos, "machine_memory", lambda: 2 * n_bytes)
    loader_of(train, keep_photos=True)
    monkeypatch.setattr(kept_photos, "machine_memory", lambda: 2 * n_bytes - 1)
    with pytest.raises(InputError, match=r"^data\.keep_photos: 43 photos of 16 x 16 pixels take "):
        loader_of(train, keep_photos=True)
    loader_of(train)
    monkeypatch.setattr(kept_photos, "machine_memory", lambda: 16_000_000_000)
    with pytest.raises(InputError) as caught:
        refuse_large_cache(437_513, 224)
    assert str(caught.value) == (
        "data.keep_photos: 437513 photos of 224 x 224 pixels take 65.9 GB, more than 50% of this "
        "machine's 16.0 GB; set data.keep_photos false"
    )
    monkeypatch.setattr(kept_photos, "machine_memory", lambda: None)
    refuse_large_cache(10**9, 1000)


def test_the_machine_has_some_memory_or_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = machine_memory()
    assert memory is None or memory > 10**8
    monkeypatch.delattr(kept_photos.os, "sysconf", raising=False)
    assert machine_memory() is None


# The array


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_every_photo_has_its_row_and_its_issues(
    train: Split, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(reader, "PHOTOS_AT_ONCE", 3)
    bad = list(range(7, len(train), 10))

    def read(self: PhotoFiles, index: int) -> bytes:
        if index in bad:
            raise BadPhoto(f"bad {index}")
        return png(np.full((SIZE, SIZE, 3), index % 251, np.uint8))

    monkeypatch.setattr(PhotoFiles, "read", read)
    made = reader.BatchReader(train, TrainTransform(PAD), seed=0)
    made.fill_cache(workers)
    assert made._cache is not None
    pixels, issues = made._cache.array, made._cached_issues
    assert pixels.shape == (len(train), SIZE, SIZE, 3) and pixels.dtype == np.uint8
    assert {n: [issue.reason for issue in of] for n, of in issues.items()} == {
        n: [f"bad {n}"] for n in bad
    }
    expected = [0 if n in bad else n % 251 for n in range(len(train))]
    assert pixels[:, 1, 1, 2].tolist() == expected

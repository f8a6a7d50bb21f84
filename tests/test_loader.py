"""Batches: the same bytes for any workers, ranks that share one order, bad photos as events."""

import hashlib
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_reading import transformed
from worlds import make_world

from inat.acquire.pack import pack_photos
from inat.config.schema import SamplerConfig, TransformConfig
from inat.core.errors import InputError, WorldError
from inat.dataset.split import Split, load_split
from inat.loader import reader as reader_module
from inat.loader.batches import Batch, to_device
from inat.loader.loader import Loader, build_loader
from inat.loader.reader import BatchIndices, BatchReader, PhotoIssue
from inat.loader.transforms import EpochDraws, TrainTransform
from inat.loader.workers import read_batch
from inat.photos.sources import PhotoFiles
from inat.samplers import SAMPLERS, ReverseSampler, build_sampler
from inat.samplers.base import epoch_order

SIZE = 16

# Python 3.12 warns of forks beside threads, torch of more processes than processors.
forks = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)
WORKERS = [(0, "auto"), (1, "threads"), (2, "threads"), (1, "processes"), (2, "processes")]


@pytest.fixture(scope="module")
def train(world: Path) -> Split:
    return load_split(world)


@pytest.fixture(scope="module")
def val(world: Path) -> Split:
    return load_split(world, "val")


def loader_of(split: Split, **options: Any) -> Loader:
    defaults = {"image_size": SIZE, "training": True, "batch_size": 8, "workers": 0}
    return build_loader(split, **{**defaults, **options})


def content(batches: list[Batch]) -> list[dict[str, bytes]]:
    return [{name: tensor.numpy().tobytes() for name, tensor in b.items()} for b in batches]


def ids(batches: list[Batch]) -> list[int]:
    return [image_id for batch in batches for image_id in batch["image_id"].tolist()]


def images(batches: list[Batch]) -> np.ndarray:
    return torch.cat([batch["image"] for batch in batches]).numpy()


# The same batches


@forks
@pytest.mark.parametrize("training", [True, False])
def test_batches_are_the_same_bytes_for_any_number_and_kind_of_workers(
    train: Split, training: bool
) -> None:
    expected = None
    for workers, kind in WORKERS:
        loader = loader_of(train, training=training, workers=workers, worker_kind=kind)
        loader.set_epoch(2)
        got = content(list(loader))
        expected = expected or got
        assert got == expected, (workers, kind)


@forks
@pytest.mark.parametrize(("workers", "kind"), [(0, "auto"), (2, "threads"), (1, "processes")])
def test_a_jump_into_an_epoch_gives_the_rest_of_its_batches(
    train: Split, workers: int, kind: Any
) -> None:
    loader = loader_of(train, workers=workers, worker_kind=kind)
    loader.set_epoch(3)
    whole = content(list(loader))
    loader.set_epoch(3, start=16)
    assert len(loader) == 3
    assert content(list(loader)) == whole[2:]
    loader.set_epoch(4)
    assert content(list(loader)) != whole


def test_a_jump_reads_no_photo_before_its_start(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_one = PhotoFiles.read
    monkeypatch.setattr(
        PhotoFiles, "read", lambda self, index: read.append(index) or read_one(self, index)
    )
    loader = loader_of(train)
    loader.set_epoch(0, start=32)
    batches = list(loader)
    assert train.image_ids[read].tolist() == ids(batches)
    assert len(read) == 8


def test_a_draw_does_not_depend_on_the_batch_it_comes_in(train: Split) -> None:
    single = list(loader_of(train, batch_size=1))
    for batch_size, start in ((8, 0), (5, 0), (7, 3)):
        loader = loader_of(train, batch_size=batch_size)
        loader.set_epoch(0, start=start)
        batches = list(loader)
        stretch = single[start : start + batch_size * len(batches)]
        assert ids(batches) == ids(stretch)
        assert np.array_equal(images(batches), images(stretch))


def test_batches_change_with_the_seed_and_the_epoch(train: Split) -> None:
    loader = loader_of(train)
    first = list(loader)
    assert content(list(loader)) == content(first)
    loader.set_epoch(1)
    assert ids(list(loader)) != ids(first)
    assert ids(list(loader_of(train, seed=1))) != ids(first)


def test_training_draws_are_those_of_the_sampler(train: Split) -> None:
    for name in SAMPLERS:
        loader = loader_of(train, sampler=name, epoch_size=64, seed=5, epochs=4)
        loader.set_epoch(2)
        sampler = build_sampler(name, train.labels, train.n_classes, 4)
        order = epoch_order(sampler, 64, 5, 2, 4)
        assert ids(list(loader)) == train.image_ids[order].tolist()
        if sampler.prior is None:
            assert loader.prior is None
        else:
            assert np.array_equal(loader.prior, sampler.prior)


def test_a_sampler_made_by_plain_arguments_draws_for_a_loader(train: Split) -> None:
    loader = loader_of(train, sampler=ReverseSampler(train.labels), epoch_size=64, seed=5)
    assert ids(list(loader)) == ids(
        list(loader_of(train, sampler="reverse", epoch_size=64, seed=5))
    )


def test_a_samplers_config_takes_the_place_of_its_name(train: Split) -> None:
    config = SamplerConfig(name="square_root", epoch_size=64, after="50%")
    with pytest.raises(InputError, match="sampler square_root after 50%: its draws change during"):
        loader_of(train, sampler=config)
    loader = loader_of(train, sampler=config, epochs=4)
    assert loader.n_draws == 64
    assert loader_of(train, sampler=config, epochs=4, epoch_size=32).n_draws == 32
    for epoch, name in ((1, "instance"), (2, "square_root")):
        loader.set_epoch(epoch)
        plain = loader_of(train, sampler=name, epoch_size=64)
        plain.set_epoch(epoch)
        assert ids(list(loader)) == ids(list(plain))


def test_the_crop_of_draw_k_is_that_of_seed_epoch_and_k(train: Split) -> None:
    loader = loader_of(train, seed=5)
    loader.set_epoch(2, start=8)
    order = epoch_order(build_sampler("instance", train.labels, 4), len(train), 5, 2)
    transform = TrainTransform(TransformConfig(image_size=SIZE))
    draws = EpochDraws(5, 2)
    expected = [
        transformed(transform, train.path(int(order[k])).read_bytes(), draws[k]).pixels
        for k in range(8, 40)
    ]
    assert np.array_equal(images(list(loader)), np.stack(expected))


def test_two_epochs_that_are_read_at_the_same_time_keep_their_own_draws(train: Split) -> None:
    loader = loader_of(train)
    alone = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        alone.append(content(list(loader)))
    loader = loader_of(train, workers=2)
    first = iter(loader)
    begun = [next(first)]
    loader.set_epoch(1)
    together = [(a, b) for a, b in zip(first, loader, strict=False)]
    assert content(begun + [a for a, _ in together]) == alone[0]
    assert content([b for _, b in together]) == alone[1][:4]


def test_an_iteration_that_is_left_early_leaves_no_thread(train: Split) -> None:
    batches = iter(loader_of(train, workers=2))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("inat-loader")]


# Ranks


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_of_a_training_step_share_one_global_batch(train: Split, world_size: int) -> None:
    whole = list(loader_of(train, batch_size=4 * world_size))
    per_rank = [
        list(loader_of(train, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in per_rank} == {len(whole)} == {43 // (4 * world_size)}
    for step, batch in enumerate(whole):
        parts = [batches[step] for batches in per_rank]
        assert [len(part["label"]) for part in parts] == [4] * world_size
        assert ids(parts) == ids([batch])
        assert np.array_equal(images(parts), images([batch]))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_in_evaluation_each_photo_comes_once_over_all_ranks_and_none_is_padded(
    val: Split, world_size: int, batch_size: int
) -> None:
    some = val.select(np.arange(11))
    per_rank = []
    for rank in range(world_size):
        loader = loader_of(
            some, training=False, batch_size=batch_size, rank=rank, world_size=world_size
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch["label"]) > 0 for batch in batches)
        per_rank.append(batches)
    everything = [image_id for batches in per_rank for image_id in ids(batches)]
    assert sorted(everything) == sorted(some.image_ids.tolist())
    if world_size == 1:
        assert everything == some.image_ids.tolist()
    sizes = [len(ids(batches)) for batches in per_rank]
    assert max(sizes) - min(sizes) <= 1


# What is in a batch


def test_a_batch_has_uint8_images_and_the_label_and_id_of_each_photo(train: Split) -> None:
    species = dict(zip(train.image_ids.tolist(), train.labels.tolist(), strict=True))
    batches = list(loader_of(train))
    assert len(batches) == 5  # 43 photos: the last three are left out
    for batch in batches:
        assert list(batch) == ["image", "label", "image_id"]
        assert (batch["image"].dtype, tuple(batch["image"].shape)) == (torch.uint8, (8, 16, 16, 3))
        for name in ("label", "image_id"):
            assert (batch[name].dtype, tuple(batch[name].shape)) == (torch.int64, (8,))
        assert [species[i] for i in batch["image_id"].tolist()] == batch["label"].tolist()


def test_evaluation_gives_every_photo_in_order_also_those_of_the_short_last_batch(
    world: Path,
) -> None:
    test = load_split(world, "test")
    loader = loader_of(test, training=False, batch_size=3)
    batches = list(loader)
    assert [len(batch["label"]) for batch in batches] == [3, 3, 2]
    assert len(loader) == 3
    assert ids(batches) == test.image_ids.tolist()
    assert [batch["label"].tolist() for batch in batches] == [[-1] * 3, [-1] * 3, [-1] * 2]
    assert loader.prior is None


def test_the_image_size_takes_the_place_of_the_recipes(train: Split) -> None:
    recipe = TransformConfig(image_size=64, eval_image_size=32, jitter=0)
    for training in (True, False):
        loader = loader_of(train, training=training, image_size=24, recipe=recipe)
        assert next(iter(loader))["image"].shape == (8, 24, 24, 3)


# Bad photos


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Split]:
    """A val split whose photos 1 (cut off), 4 (gone) and 6 (no end marker) are damaged, and
    the same split before; not to be written to."""
    folder = tmp_path_factory.mktemp("damaged")
    good = load_split(make_world(folder / "good"), "val")
    bad = load_split(make_world(folder / "bad"), "val")
    bytes_1 = bad.path(1).read_bytes()
    bad.path(1).write_bytes(bytes_1[: len(bytes_1) // 2])
    bad.path(4).unlink()
    bad.path(6).write_bytes(bad.path(6).read_bytes()[:-2])
    assert good.image_ids.tolist() == bad.image_ids.tolist()
    return bad, good


CUT_OFF = "cut off or damaged: Corrupt JPEG data: premature end of data segment"


@forks
@pytest.mark.parametrize(("workers", "kind"), WORKERS)
def test_a_bad_photo_stops_the_iteration_and_is_named_with_its_reason(
    damaged: tuple[Split, Split], workers: int, kind: Any
) -> None:
    bad, _ = damaged
    loader = loader_of(bad, training=False, batch_size=4, workers=workers, worker_kind=kind)
    with pytest.raises(WorldError) as caught:
        list(loader)
    assert str(caught.value) == (
        f"{bad.path(1)} (image {bad.image_ids[1]}): {CUT_OFF}; "
        "fix or remove the photo, or go on without it (on_bad_photo skip)"
    )
    assert caught.value.exit_status == 1


@forks
@pytest.mark.parametrize(("workers", "kind"), WORKERS)
def test_a_skipped_photo_is_left_out_of_its_batch_and_listed(
    damaged: tuple[Split, Split], workers: int, kind: Any
) -> None:
    bad, good = damaged
    options: dict[str, Any] = {"training": False, "batch_size": 4}
    whole = list(loader_of(good, **options))
    loader = loader_of(bad, **options, workers=workers, worker_kind=kind, on_bad_photo="skip")
    batches = list(loader)
    assert [len(batch["label"]) for batch in batches] == [3, 3, 4]
    kept = np.setdiff1d(np.arange(12), [1, 4])
    assert ids(batches) == good.image_ids[kept].tolist()
    assert torch.cat([b["label"] for b in batches]).tolist() == good.labels[kept].tolist()
    assert np.array_equal(images(batches), images(whole)[kept])
    assert loader.bad_photos == [
        PhotoIssue(int(bad.image_ids[1]), str(bad.path(1)), CUT_OFF, "bad"),
        PhotoIssue(int(bad.image_ids[4]), str(bad.path(4)), "No such file or directory", "bad"),
    ]


@forks
@pytest.mark.parametrize(("workers", "kind"), WORKERS)
def test_a_recovered_photo_is_used_and_listed_also_where_bad_photos_stop(
    damaged: tuple[Split, Split], workers: int, kind: Any
) -> None:
    bad, good = damaged
    some = np.array([5, 6, 7])
    loader = loader_of(
        bad.select(some), training=False, batch_size=4, workers=workers, worker_kind=kind
    )
    batches = list(loader)
    expected = list(loader_of(good.select(some), training=False, batch_size=4))
    assert content(batches) == content(expected)
    assert loader.bad_photos == []
    assert loader.recovered_photos == [
        PhotoIssue(int(bad.image_ids[6]), str(bad.path(6)), "no end marker", "recovered")
    ]


@forks
@pytest.mark.parametrize(("workers", "kind"), [(0, "auto"), (2, "threads"), (1, "processes")])
def test_a_photo_that_was_slow_is_used_and_reported_afterwards(
    train: Split, monkeypatch: pytest.MonkeyPatch, workers: int, kind: Any
) -> None:
    quick = content(list(loader_of(train, training=False)))
    read = PhotoFiles.read
    slow_one = 5

    def slowed(self: PhotoFiles, index: int) -> bytes:
        if index == slow_one:
            time.sleep(0.12)
        return read(self, index)

    monkeypatch.setattr(PhotoFiles, "read", slowed)
    monkeypatch.setattr(reader_module, "SLOW_SECONDS", 0.1)
    loader = loader_of(train, training=False, workers=workers, worker_kind=kind)
    assert content(list(loader)) == quick
    assert train.image_ids[slow_one] in [event.image_id for event in loader.slow_photos]
    event = next(e for e in loader.slow_photos if e.image_id == train.image_ids[slow_one])
    assert (event.kind, event.path) == ("slow", str(train.path(slow_one)))
    assert re.fullmatch(r"took 0\.\d s", event.reason)
    assert loader.bad_photos == []


def test_a_batch_of_bad_photos_alone_is_empty(damaged: tuple[Split, Split]) -> None:
    bad, _ = damaged
    loader = loader_of(
        bad.select(np.array([1, 4])), training=False, batch_size=4, on_bad_photo="skip"
    )
    (batch,) = loader
    assert tuple(batch["image"].shape) == (0, 16, 16, 3)
    assert len(batch["label"]) == len(batch["image_id"]) == 0


# On the device


def test_to_device_is_the_normalisation_that_a_slow_loop_gives(train: Split) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = next(iter(loader_of(train)))
    before = batch["image"].clone()
    normalised = to_device(batch, "cpu", mean, std)
    assert normalised.dtype == torch.float32
    assert tuple(normalised.shape) == (8, 3, 16, 16)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    pixels = batch["image"].numpy()
    expected = np.empty((8, 3, 16, 16))
    for channel in range(3):
        expected[:, channel] = (pixels[..., channel] / 255 - mean[channel]) / std[channel]
    np.testing.assert_allclose(normalised.numpy(), expected, atol=1e-5)
    assert torch.equal(batch["image"], before)


# No global is left changed


@forks
@pytest.mark.parametrize(("workers", "kind"), WORKERS)
def test_an_iteration_leaves_torchs_generator_and_threads_alone(
    train: Split, workers: int, kind: Any
) -> None:
    state, n_threads = torch.get_rng_state(), torch.get_num_threads()
    list(loader_of(train, workers=workers, worker_kind=kind))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads


# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 44},
         "an epoch of 43 photos is less than one global batch of 44; "
         "lower batch_size or raise sampler.epoch_size"),
        ({"batch_size": 8, "world_size": 2, "epoch_size": 15},
         "an epoch of 15 photos is less than one global batch of 16; "
         "lower batch_size or raise sampler.epoch_size"),
        ({"sampler": "uniform"},
         f"sampler.name: unknown name 'uniform'; valid: {', '.join(sorted(SAMPLERS))}"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_refused(
    train: Split, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        loader_of(train, **options)
    assert str(caught.value) == sentence


def test_training_on_photos_without_labels_is_refused(world: Path) -> None:
    with pytest.raises(InputError) as caught:
        loader_of(load_split(world, "test"), batch_size=2)
    assert str(caught.value) == ("sampler instance: 8 photos have no label; draw from train or val")


# What goes to a worker process


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after use"])
def test_a_reader_that_was_pickled_reads_the_same_bytes(train: Split, used: bool) -> None:
    reader = BatchReader(train, TrainTransform(TransformConfig(image_size=SIZE)), seed=3)
    indices = BatchIndices(5, range(1020, 1030), np.arange(10))  # over the edge of a block of draws

    def read(reader: BatchReader) -> Batch:
        return read_batch(reader, indices)[0]

    if used:
        read(reader)
    again = pickle.loads(pickle.dumps(reader))
    assert content([read(again)]) == content([read(reader)])


# Worker processes

BATCHES_IN_PROCESSES = """
import hashlib, sys, torch
from inat.dataset.split import load_split
from inat.loader.loader import build_loader

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        torch.multiprocessing.set_start_method(method, force=True)
        loader = build_loader(load_split(sys.argv[1]), image_size=16, training=True, batch_size=8,
                              workers=1, worker_kind="processes")
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            for batch in loader:
                digest = hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest()
                print(method, epoch, digest)
"""


def test_worker_processes_give_the_same_bytes_however_they_start(
    world: Path, train: Split, tmp_path: Path
) -> None:
    script = tmp_path / "batches.py"
    script.write_text(BATCHES_IN_PROCESSES)
    command = [sys.executable, str(script), str(world)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    expected = []
    loader = loader_of(train)
    for method in ("fork", "spawn"):
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            for batch in loader:
                digest = hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest()
                expected.append(f"{method} {epoch} {digest}")
    assert done.stdout.splitlines() == expected


def environment() -> dict[str, str]:
    """This process's, with the kit on the path."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@forks
def test_worker_processes_stay_from_epoch_to_epoch(train: Split) -> None:
    loader = loader_of(train, workers=1, worker_kind="processes")
    pids = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        list(loader)
        assert loader._processes._idle is not None
        pids.append([worker.pid for worker in loader._processes._idle._iterator._workers])  # type: ignore[union-attr]
    assert pids[0] == pids[1]


@forks
def test_an_epoch_that_is_left_early_does_not_reach_into_the_next(train: Split) -> None:
    loader = loader_of(train, workers=1, worker_kind="processes")
    batches = iter(loader)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    loader.set_epoch(1)
    again = loader_of(train)
    again.set_epoch(1)
    assert content(list(loader)) == content(list(again))


@forks
def test_two_epochs_read_at_the_same_time_by_processes_keep_their_own_draws(train: Split) -> None:
    loader = loader_of(train, workers=1, worker_kind="processes")
    alone = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        alone.append(content(list(loader)))
    loader.set_epoch(0)
    first = iter(loader)
    begun = [next(first)]
    loader.set_epoch(1)
    together = [(a, b) for a, b in zip(first, loader, strict=False)]
    assert content(begun + [a for a, _ in together]) == alone[0]
    assert content([b for _, b in together]) == alone[1][:4]


def test_a_pack_gives_the_batches_that_its_photos_give(world: Path, tmp_path: Path) -> None:
    pack_photos(world, tmp_path / "pack", short_side=4096)
    for name, training in (("train", True), ("test", False)):
        packed = loader_of(load_split(tmp_path / "pack", name), training=training)
        files = loader_of(load_split(world, name), training=training)
        assert content(list(packed)) == content(list(files))

"""Training in several processes is the training of one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
import training_ranks
from safetensors.torch import load_file

from inat.errors import InputError
from inat.run_folder import Run
from inat.training.processes import BatchPart, gathered, shared_batch, summed

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed": {
        "optim.accumulate": 2, "batch_size": 4, "transforms.mixup": 0.4, "transforms.cutmix": 1.0,
        "transforms.cutout": 8, "optim.clip_grad_norm": 1.0, "optim.ema_decay": 0.9,
    },
    "weighted": {"optim.accumulate": 2, "batch_size": 4, "loss.class_weights": "inverse"},
    "seesaw": {"loss.name": "seesaw"},
}  # fmt: skip


def trained(folder: Path, world: Path, n_processes: int, **settings: Any) -> Run:
    run = folder / f"of_{n_processes}"
    training_ranks.finish(training_ranks.start(run, world, n_processes, **settings))
    return Run(run)


def largest_difference(one: Run, other: Run, kind: str = "model") -> float:
    ours, theirs = (
        load_file(run.checkpoint("last") / f"{kind}.safetensors") for run in (one, other)
    )
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def log_lines(run: Run) -> list[dict[str, Any]]:
    lines = [orjson.loads(line) for line in run.metrics_path.read_bytes().splitlines()]
    return [
        {k: v for k, v in one.items() if k not in ("time", "images_per_second")} for one in lines
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_two_and_four_processes_draw_the_same_photos_and_end_with_the_same_weights(
    tmp_path: Path, world: Path, recipe: str
) -> None:
    counts = (1, 2, 4) if recipe == "mixed" else (1, 2)
    runs = {n: trained(tmp_path, world, n, **RECIPES[recipe]) for n in counts}
    alone = runs.pop(1)
    for n_processes, run in runs.items():
        theirs = training_ranks.global_order(run.path, n_processes)
        assert theirs == training_ranks.global_order(alone.path, 1)
        # The order of a sum of float32 is all that differs. (AdamW would step by the learning rate
        # where a gradient is nothing but rounding, as that of a key's bias.)
        assert largest_difference(run, alone) < 1e-5
        for line, expected in zip(log_lines(run), log_lines(alone), strict=True):
            if line["kind"] == "train":
                assert line.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
            assert line == expected


def test_sharded_weights_make_the_same_training_and_whole_checkpoints(
    tmp_path: Path, world: Path
) -> None:
    alone = trained(tmp_path, world, 1)
    sharded = trained(tmp_path, world, 2, **{"runtime.shard": True})
    assert (tmp_path / "of_2-sharded-0").read_text() == "all parameters are DTensors"
    assert largest_difference(sharded, alone) < 1e-5
    assert largest_difference(sharded, alone, "optimizer") < 1e-5
    for line, expected in zip(log_lines(sharded), log_lines(alone), strict=True):
        if line["kind"] == "train":
            assert line.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
        assert line == expected


def test_a_process_that_dies_ends_the_others_with_a_sentence(tmp_path: Path, world: Path) -> None:
    run = tmp_path / "run"
    processes = training_ranks.start(run, world, 2, die_at=(1, 2))
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, 9]
    assert (tmp_path / "run-told-0").read_text() == (
        "rank 0: another process has stopped, or has not answered for 10 minutes; see what it "
        "said itself, and start all with --resume, which goes on from the last checkpoint"
    )


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, world: Path) -> None:
    processes = training_ranks.start(tmp_path / "run", world, 2, hang_at=(1, 2), patience=3)
    processes[0].join(60)
    processes[1].kill()  # as torchrun does when one has left
    assert processes[0].exitcode == 1
    told = (tmp_path / "run-told-0").read_text()
    assert told.startswith("rank 0: another process has stopped, or has not answered for 0.05 min")


def test_running_statistics_are_the_mean_of_the_processes(tmp_path: Path, world: Path) -> None:
    # So slow that the first layer does not move: its running mean is that of the photos.
    settings = {"model.backbone": "test_efficientnet", "optim.lr_per_256": 1e-9}
    alone, run = (trained(tmp_path, world, n, **settings) for n in (1, 2))
    ours, theirs = (load_file(r.checkpoint("last") / "model.safetensors") for r in (run, alone))
    mean = "bn1.running_mean"
    torch.testing.assert_close(ours[mean], theirs[mean], rtol=1e-5, atol=1e-6)


def test_a_photo_left_out_by_one_process_changes_nothing(tmp_path: Path) -> None:
    from worlds import make_world

    world = make_world(tmp_path / "world", counts=(30, 12, 6, 4))
    image = orjson.loads((world / "train2018.json").read_bytes())["images"][0]
    path = world / image["file_name"]
    path.write_bytes(path.read_bytes()[:200])
    settings = {
        "data.on_bad_photo": "skip", "data.bad_photo_limit": 0.1, "data.holdout": "none",
        "transforms.mixup": 0.4,
    }  # fmt: skip
    alone, run = (trained(tmp_path, world, n, **settings) for n in (1, 2))
    assert largest_difference(run, alone) < 1e-5
    listed = [orjson.loads((one.path / "bad_photos.json").read_bytes()) for one in (run, alone)]
    assert listed[0] == listed[1]
    assert [photo["image_id"] for photo in listed[0]["skipped"]] == [image["id"]]


def test_torchrun_trains_and_one_process_speaks(tmp_path: Path, world: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    flags = [f"--{k}={v}" for k, v in {**training_ranks.SETTINGS, "data.root": world}.items()]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         str(training_ranks.free_port()), "-m", "--", "inat", "train", "empty.yaml", "--run",
         "run", *flags],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run: trained; next: inat predict run --split test\n"
    assert done.stderr.count("device     cpu, fp32, 2 processes\n") == 1


# What the processes tell each other, in one.


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    assert shared_batch(12, 4) == 3
    with pytest.raises(InputError) as told:
        shared_batch(10, 4)
    assert str(told.value) == (
        "batch_size 10 cannot be shared evenly by 4 processes; give a multiple of 4"
    )


def test_one_process_tells_itself_everything() -> None:
    assert gathered("x") == ["x"]
    assert summed(torch.tensor(3.0)) == 3
    part = BatchPart((3,))
    assert (part.n_images, part.own) == (3, slice(0, 3))
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(part.partners(rows, np.array([2, 0, 1])), rows[[2, 0, 1]])


def test_the_parts_of_a_batch_follow_each_other() -> None:
    assert [BatchPart((3, 2, 4), rank).own for rank in range(3)] == [
        slice(0, 3), slice(3, 5), slice(5, 9),
    ]  # fmt: skip

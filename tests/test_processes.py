"""Training in several processes is the training of one."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.run import parse_args
from training_processes import digests, log_lines
from training_ranks import DIE, DUE, HANG, TERM, Outcome, Ranks, global_order

from inat.core.errors import InputError
from inat.core.files import locked, read_json
from inat.runs.run import Run
from inat.training.mixing import GlobalBatch
from inat.training.processes import (
    averaged,
    gathered,
    greatest,
    on_rank_zero,
    shared_batch,
    summed,
)

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed": {
        "optim.accumulate": 2, "batch_size": 4, "transforms.mixup": 0.4, "transforms.cutmix": 1.0,
        "transforms.cutout": 8, "optim.clip_grad_norm": 1.0, "optim.ema_decay": 0.9,
    },
    "weighted": {"optim.accumulate": 2, "batch_size": 4, "loss.class_weights": "inverse"},
    "auto": {"optim.accumulate": "auto", "optim.device_batch": 2, "loss.class_weights": "inverse"},
    "seesaw": {"loss.name": "seesaw"},
    "staged": {
        "stages": [{"epochs": 1, "new_head": True, "sampler": {"name": "class_balanced"}}],
        "optim.ema_decay": 0.9,
    },
}  # fmt: skip

# Batch norm, dropout and bfloat16: what a process would have to itself, and rounding that shows.
OWN = {
    "model.backbone": "test_efficientnet", "model.dropout": 0.3, "runtime.precision": "bf16",
    "optim.ema_decay": 0.9, "optim.name": "adamw", "optim.lr_per_256": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """So many processes; they stay for the next test."""
    started: dict[int, Ranks] = {}

    def of(count: int) -> Ranks:
        if count not in started:
            started[count] = Ranks(count)
        return started[count]

    yield of
    for those in started.values():
        those.stop()


def ended(outcomes: list[Outcome], status: int = 0) -> list[Outcome]:
    """The outcomes, all of which must have that status."""
    assert {told.status for told in outcomes} == {status}, [told.text for told in outcomes]
    return outcomes


def largest_difference(one: Path, other: Path, kind: str = "model") -> float:
    ours, theirs = (
        load_file(Run(run).checkpoint("last") / f"{kind}.safetensors") for run in (one, other)
    )
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def assert_same_log(run: Path, other: Path) -> None:
    """But for the rounding of the losses."""
    for line, expected in zip(log_lines(run), log_lines(other), strict=True):
        if line["kind"] == "train":
            assert line.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
        assert line == expected


def last_state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_json(Run(run).checkpoint("last") / "state.json")
    return state


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_two_and_four_processes_draw_the_same_photos_and_end_with_the_same_weights(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks], recipe: str
) -> None:
    alone = ended(ranks(1).train(tmp_path / "of_1", world, **RECIPES[recipe]))
    for count in (2, 4) if recipe in ("mixed", "auto") else (2,):
        run = tmp_path / f"of_{count}"
        outcomes = ended(ranks(count).train(run, world, **RECIPES[recipe]))
        assert global_order(outcomes) == global_order(alone)
        # The order of a sum of float32 is all that differs. (AdamW would step by the learning rate
        # where a gradient is nothing but rounding, as that of a key's bias.)
        assert largest_difference(run, tmp_path / "of_1") < 1e-5
        assert_same_log(run, tmp_path / "of_1")


def test_after_a_signal_to_one_process_all_leave_with_a_checkpoint_and_go_on_to_the_same_bits(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    ended(ranks(2).train(tmp_path / "peace", world, **OWN))
    cut = ended(ranks(2).train(tmp_path / "cut", world, events={(1, 1): TERM}, **OWN), 143)
    assert {told.text for told in cut} == {
        "stopped by SIGTERM; --resume goes on from the last checkpoint"
    }
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last"]
    # Sent amid step 2, heard by all one step later.
    assert (last_state(tmp_path / "cut")["step"], last_state(tmp_path / "cut")["batches"]) == (3, 3)
    ended(ranks(2).train(tmp_path / "cut", world, resume=True, **OWN))
    assert digests(tmp_path / "cut") == digests(tmp_path / "peace")
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "peace")


def test_signals_to_all_processes_leave_one_checkpoint_also_amid_a_validation(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    everyone = {(rank, "validation"): TERM for rank in range(2)}
    ended(ranks(2).train(tmp_path / "run", world, events=everyone, batch_size=4), 143)
    assert (last_state(tmp_path / "run")["epoch"], last_state(tmp_path / "run")["step"]) == (0, 7)
    again = {(0, "validation"): TERM}
    ended(ranks(2).train(tmp_path / "run", world, resume=True, events=again, batch_size=4), 143)
    assert (last_state(tmp_path / "run")["epoch"], last_state(tmp_path / "run")["step"]) == (0, 7)


def test_a_checkpoint_that_is_due_in_one_process_is_written_at_the_same_step_by_all(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    settings = {"data.holdout": "none", "epochs": 1}
    events = {(1, 2): DUE, (0, 4): TERM}
    ended(ranks(2).train(tmp_path / "often", world, events=events, **settings), 143)
    ended(ranks(2).train(tmp_path / "once", world, **settings))
    before = read_json(tmp_path / "often" / "checkpoints" / "previous" / "state.json")
    assert (before["step"], before["batches"]) == (3, 3)  # one step after it was due
    ended(ranks(2).train(tmp_path / "often", world, resume=True, **settings))
    assert digests(tmp_path / "often") == digests(tmp_path / "once")


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        ((2, 4, 1), {}),
        ((2, 1, 2), {"runtime.shard": True}),
        ((1, 4, 2), {"optim.accumulate": "auto", "optim.device_batch": 2}),
    ],
    ids=["whole", "sharded", "auto"],
)
def test_another_number_of_processes_goes_on_with_the_same_photos_to_the_same_weights(
    tmp_path: Path,
    world: Path,
    ranks: Callable[[int], Ranks],
    counts: tuple[int, int, int],
    settings: dict[str, Any],
) -> None:
    alone = ended(ranks(1).train(tmp_path / "peace", world, **settings))
    run, order = tmp_path / "run", []
    for count, last_step in zip(counts, (1, 4, None), strict=True):
        events = {} if last_step is None else {(count - 1, last_step): TERM}
        outcomes = ranks(count).train(run, world, resume=True, events=events, **settings)
        ended(outcomes, 143 if events else 0)
        assert outcomes[0].all_sharded is ("runtime.shard" in settings and count > 1)
        order += global_order(outcomes)
    assert order == global_order(alone)
    assert largest_difference(run, tmp_path / "peace") < 1e-5
    assert_same_log(run, tmp_path / "peace")


def test_sharded_weights_make_the_same_training_and_whole_checkpoints(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    settings = {"runtime.shard": True, "optim.clip_grad_norm": 1.0, "optim.accumulate": 2,
                "batch_size": 4, "epochs": 1}  # fmt: skip
    ended(ranks(1).train(tmp_path / "alone", world, **settings))
    outcomes = ended(ranks(2).train(tmp_path / "sharded", world, **settings))
    assert all(told.all_sharded for told in outcomes)
    assert largest_difference(tmp_path / "sharded", tmp_path / "alone") < 1e-5
    assert largest_difference(tmp_path / "sharded", tmp_path / "alone", "optimizer") < 1e-5
    assert_same_log(tmp_path / "sharded", tmp_path / "alone")


def test_a_sharded_training_goes_on_to_the_same_bits(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    settings = {"runtime.shard": True, "optim.name": "adamw", "epochs": 1}
    ended(ranks(2).train(tmp_path / "peace", world, **settings))
    ended(ranks(2).train(tmp_path / "cut", world, events={(0, 1): TERM}, **settings), 143)
    ended(ranks(2).train(tmp_path / "cut", world, resume=True, **settings))
    assert digests(tmp_path / "cut") == digests(tmp_path / "peace")
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "peace")


def test_what_the_first_process_refuses_is_told_to_all(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused = ended(ranks(2).train(tmp_path / "mine", world), 2)
    assert {told.text for told in refused} == {
        f"{tmp_path / 'mine'}: the folder is not empty and holds no run; give another --run"
    }
    with locked(tmp_path / ".run.lock", "busy"):
        refused = ended(ranks(2).train(tmp_path / "run", world), 1)
    assert {told.text for told in refused} == {
        f"{tmp_path / 'run'}: another process writes there; wait for it, or give another --run"
    }


def test_a_loss_that_is_not_finite_is_told_by_all_with_the_photos_of_all(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    settings = {"optim.lr_per_256": 1e30, "optim.warmup_epochs": 0}
    told = ended(ranks(2).train(tmp_path / "run", world, **settings), 1)
    step = global_order(told)[8:16]
    assert {one.text for one in told} == {
        f"the loss is nan at step 2 (learning rate 2.3e+28, images {', '.join(map(str, step))}); "
        "train again with a lower optim.lr_per_256 or with optim.clip_grad_norm 1; all images of "
        f"the step are in {tmp_path / 'run' / 'non_finite.json'}"
    }
    assert read_json(tmp_path / "run" / "non_finite.json") == {"step": 2, "image_ids": step}


def test_a_process_that_dies_ends_the_others_with_a_sentence(tmp_path: Path, world: Path) -> None:
    ranks = Ranks(2)
    (told,) = ranks.train(tmp_path / "run", world, events={(1, 2): DIE})
    ranks.stop()
    assert ranks.processes[1].exitcode == 9
    assert told.status == 1
    assert told.text.startswith(
        "rank 0: another process has stopped, or has not answered for 10 minutes; see what it "
        "said itself, and start all with --resume, which goes on from the last checkpoint ("
    )


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, world: Path) -> None:
    ranks = Ranks(2, patience=2)
    run = tmp_path / "run"
    (told,) = ranks.train(run, world, events={(1, 2): HANG})
    ranks.stop()
    assert told.status == 1
    assert told.text.startswith(
        "rank 0: another process has stopped, or has not answered for 0.0333333 minutes; "
    )


def test_running_statistics_are_the_mean_of_the_processes(
    tmp_path: Path, world: Path, ranks: Callable[[int], Ranks]
) -> None:
    # So slow that the first layer does not move: its running mean is that of the photos.
    settings = {
        "model.backbone": "test_efficientnet", "optim.lr_per_256": 1e-9, "optim.ema_decay": 0.5,
    }  # fmt: skip
    for count in (1, 2):
        ended(ranks(count).train(tmp_path / f"of_{count}", world, **settings))
    for kind in ("model", "ema"):
        ours, theirs = (
            load_file(tmp_path / f"of_{count}/checkpoints/last/{kind}.safetensors")
            for count in (2, 1)
        )
        mean = "bn1.running_mean"
        torch.testing.assert_close(ours[mean], theirs[mean], rtol=1e-5, atol=1e-6)


def test_a_photo_left_out_by_one_process_changes_nothing(
    tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    from worlds import make_world

    world = make_world(tmp_path / "world", counts=(30, 12, 6, 4))
    image = orjson.loads((world / "train2018.json").read_bytes())["images"][0]
    path = world / image["file_name"]
    path.write_bytes(path.read_bytes()[:200])
    settings = {
        "data.on_bad_photo": "skip", "data.bad_photo_limit": 0.1, "data.holdout": "none",
        "transforms.mixup": 0.4,
    }  # fmt: skip
    for count in (1, 2):
        ended(ranks(count).train(tmp_path / f"of_{count}", world, **settings))
    assert largest_difference(tmp_path / "of_2", tmp_path / "of_1") < 1e-5
    listed = [read_json(tmp_path / f"of_{count}" / "bad_photos.json") for count in (1, 2)]
    assert listed[0] == listed[1]
    assert [photo["image_id"] for photo in listed[0]["skipped"]] == [image["id"]]


def test_the_lines_of_the_readme_give_the_kit_what_is_the_kits() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text().replace("\\\n", " ")
    lines = [line.partition("#")[0] for line in readme.splitlines() if " inat train CONFIG" in line]
    found = [shlex.split(line.partition("torchrun ")[2]) for line in lines if "torchrun " in line]
    assert len(found) == 4
    for words in found:
        read = parse_args(words)
        assert read.nproc_per_node.isdigit()
        assert (read.module, read.training_script) == (True, "inat")
        assert read.training_script_args == ["train", "CONFIG", "--run", "RUN"]


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
    assert greatest(3) == 3
    assert on_rank_zero(lambda: "x") == "x"
    assert summed(torch.tensor(3.0)) == averaged(torch.tensor(3.0)) == 3
    part = GlobalBatch((3,))
    assert (part.n_images, part.own) == (3, slice(0, 3))
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(part.partners(rows, np.array([2, 0, 1])), rows[[2, 0, 1]])


def test_the_parts_of_a_batch_follow_each_other() -> None:
    assert [GlobalBatch((3, 2, 4), rank).own for rank in range(3)] == [
        slice(0, 3), slice(3, 5), slice(5, 9),
    ]  # fmt: skip

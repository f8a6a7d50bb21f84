"""Trainings that are stopped, killed or hindered, and what is left of them."""

import errno
import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from tiny_runs import tiny_config, train_tiny
from training_processes import (
    SETTINGS,
    digests,
    finish,
    log_lines,
    start,
    train_with_kills,
)

import inat
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import damaged_files, read_json
from inat.core.metrics import top_k
from inat.dataset.split import load_split
from inat.loader.loader import build_loader
from inat.loader.workers import worker_deaths
from inat.photos.sources import open_photos
from inat.runs.run import Run
from inat.training import accelerator, checkpoint, loop, validation
from inat.training.averages import LossMeter, Step
from inat.training.checkpoint import LoopState
from inat.training.stopping import Stopped, stop_signals

FP32 = {"runtime.precision": "fp32"}  # as train_tiny has it


def trained(world: Path, path: Path, *, resume: bool = False, **settings: Any) -> Run:
    return train_tiny(path, world, resume=resume, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    """A run that nothing interrupted."""
    return trained(world, tmp_path_factory.mktemp("whole") / "run")


def signalled_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Sends a signal to this process in the midst of a step, once."""
    taken = loop.take_step

    def signalling(trainer: Any, batches: Any, state: Any) -> Step:
        if state.step + 1 == step:
            monkeypatch.setattr(loop, "take_step", taken)
            os.kill(os.getpid(), number)
        return taken(trainer, batches, state)

    monkeypatch.setattr(loop, "take_step", signalling)


# --- resume ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (3, {}),
        (8, {"runtime.precision": "bf16"}),
        (
            11,  # in the second epoch
            {
                "optim.accumulate": 2, "batch_size": 2, "transforms.mixup": 0.2,
                "sampler.name": "progressive", "loss.name": "ce",
            },
        ),
    ],
    ids=["fp32", "bf16", "recipe"],
)  # fmt: skip
def test_a_run_stopped_within_an_epoch_ends_with_the_bits_of_one_never_stopped(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Run,
    step: int,
    settings: dict[str, Any],
) -> None:
    peace = trained(world, tmp_path / "peace", **settings) if settings else whole
    signalled_at(monkeypatch, step)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "cut", **settings)
    state = read_json(tmp_path / "cut" / "checkpoints" / "last" / "state.json")
    assert state["step"] == step
    assert state["batches"] > 0
    trained(world, tmp_path / "cut", resume=True, **settings)
    assert digests(tmp_path / "cut") == digests(peace.path)
    assert log_lines(tmp_path / "cut") == log_lines(peace.path)


@pytest.mark.parametrize(
    ("workers", "kills"),
    [({}, 3), ({"data.workers": 2, "data.worker_kind": "processes"}, 1)],
    ids=["no workers", "worker processes"],
)
def test_kills_at_random_moments_change_no_bit(
    world: Path, tmp_path: Path, whole: Run, workers: dict[str, Any], kills: int
) -> None:
    settings = {**FP32, **workers}
    hit = train_with_kills(world, tmp_path / "run", settings, kills, random.Random(1), pause=0.05)
    assert len(hit) == kills
    assert digests(tmp_path / "run") == digests(whole.path)
    assert log_lines(tmp_path / "run") == log_lines(whole.path)


def test_the_last_two_checkpoints_and_the_best_are_kept_each_with_checksums(
    world: Path, tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the training lasts: at its end the last but one goes."""
    signalled_at(monkeypatch, 9)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last", "previous"]
    for name in ("best", "last", "previous"):
        assert damaged_files(folder / name) == []
        assert (folder / name / "checksums.json").is_file()
    last, before = (read_json(folder / name / "state.json") for name in ("last", "previous"))
    assert (last["epoch"], last["batches"], last["step"]) == (1, 2, 9)
    assert (before["epoch"], before["batches"], before["step"]) == (1, 0, 7)
    trained(world, tmp_path / "run", resume=True)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last"]


def test_best_is_the_weights_of_its_epoch_by_links_and_without_an_optimizer(
    world: Path, tmp_path: Path
) -> None:
    run = trained(world, tmp_path / "run", epochs=1)
    best, last = run.checkpoint("best"), run.checkpoint("last")
    assert sorted(path.name for path in best.iterdir()) == [
        "checksums.json", "ema.safetensors", "model.safetensors", "state.json",
    ]  # fmt: skip
    for name in ("model.safetensors", "ema.safetensors"):
        assert (best / name).samefile(last / name)
    assert damaged_files(best) == []
    states = read_json(best / "state.json"), read_json(last / "state.json")
    chosen = {"epoch": "mean class accuracy on the held-out part of train"}
    assert states[0] == states[1] | {"weights": states[1]["weights"] | {"chosen": chosen}}


def test_a_disk_without_hard_links_gets_copies(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    def without(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    monkeypatch.setattr(Path, "hardlink_to", without)
    run = trained(world, tmp_path / "run")
    assert digests(run.path) == digests(whole.path)
    assert damaged_files(run.checkpoint("best")) == []


def test_a_kill_between_best_and_last_leaves_both_whole_and_changes_no_bit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    write, noted, written = checkpoint._write_best, LoopState.improves, []

    def killed(best: Path, *rest: Any) -> None:
        write(best, *rest)
        written.append(best)
        if len(written) == 2:
            raise KeyboardInterrupt

    def better(state: LoopState, score: float) -> bool:
        noted(state, score)
        return True  # every epoch is the best

    monkeypatch.setattr(checkpoint, "_write_best", killed)
    monkeypatch.setattr(LoopState, "improves", better)
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "run")
    run = Run(tmp_path / "run")
    epochs = [read_json(run.checkpoint(name) / "state.json")["epoch"] for name in ("best", "last")]
    assert epochs == [2, 1]
    for name in ("best", "last"):
        assert damaged_files(run.checkpoint(name)) == []
    trained(world, run.path, resume=True)
    of_last = "checkpoints/last/model.safetensors"
    assert digests(run.path)[of_last] == digests(whole.path)[of_last]


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_and_is_named(
    world: Path, tmp_path: Path, whole: Run, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    signalled_at(monkeypatch, 9)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last"
    content = bytearray((last / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (last / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    trained(world, tmp_path / "run", resume=True)
    told = capsys.readouterr().err
    assert told.startswith(
        f"warning: {last}: model.safetensors damaged; going on from the checkpoint before it\n"
    )
    assert "resumed    after step 7, 1 whole epochs\n" in told
    assert digests(tmp_path / "run") == digests(whole.path)
    shutil.copytree(last, last.with_name("previous"))
    for name in ("last", "previous"):
        (last.with_name(name) / "state.json").write_text("{}")
    with pytest.raises(InputError) as refused:
        trained(world, tmp_path / "run", resume=True)
    assert str(refused.value) == (
        f"{last}: state.json damaged; {last.with_name('previous')}: state.json damaged; no "
        "checkpoint is whole: train with --overwrite"
    )


@pytest.mark.parametrize("lost", ["checksums.json", "model.safetensors"])
def test_a_checkpoint_that_lost_its_list_of_checksums_is_no_whole_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run, lost: str
) -> None:
    signalled_at(monkeypatch, 9)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last"
    for name in {"checksums.json", lost}:
        (last / name).unlink()
    (last.parent / ".partial-deadbeef-best").mkdir()  # as a kill leaves one
    trained(world, tmp_path / "run", resume=True)
    assert digests(tmp_path / "run") == digests(whole.path)
    assert sorted(path.name for path in last.parent.iterdir()) == ["best", "last"]


def test_a_resume_goes_on_in_the_precision_in_which_the_run_was_begun(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = {"runtime.precision": "auto"}
    here = accelerator.resolve_precision("auto", torch.device("cpu"))
    other = {"fp32": "bf16", "bf16": "fp32"}[here]
    resolve = accelerator.resolve_precision
    monkeypatch.setattr(accelerator, "resolve_precision", lambda name, device: other)
    signalled_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "cut", **auto)
    peace = trained(world, tmp_path / "peace", **auto)
    monkeypatch.setattr(accelerator, "resolve_precision", resolve)  # of another processor
    resumed = trained(world, tmp_path / "cut", resume=True, **auto)
    assert resumed.facts.precision == other
    assert digests(resumed.path) == digests(peace.path)


def test_moments_lie_in_memory_as_their_weights_after_a_resume(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "run")
    seen = []
    taken = loop.take_step

    def looking(trainer: Any, batches: Any, state: Any) -> Step:
        seen.append(
            all(
                value.stride() == weight.stride()
                for weight, entries in trainer.optimizer.state.items()
                for value in entries.values()
                if value.shape == weight.shape
            )
        )
        return taken(trainer, batches, state)

    monkeypatch.setattr(loop, "take_step", looking)
    trained(world, tmp_path / "run", resume=True)
    assert all(seen)


def test_a_resume_names_the_fields_that_differ_and_those_that_may(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signalled_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "run")
    free = {"runtime.log_every": 5, "data.workers": 1}
    with pytest.raises(InputError) as refused:
        trained(world, tmp_path / "run", resume=True, seed=4, **free)
    assert str(refused.value) == (
        f"{tmp_path / 'run'}: the run there was made with other settings (seed; data.workers, "
        "runtime.log_every may differ); give another --run, or --overwrite to throw it away"
    )
    capsys.readouterr()
    trained(world, tmp_path / "run", resume=True, **free)
    assert "settings   other than before, as they may be: data.workers, runtime.log_every\n" in (
        capsys.readouterr().err
    )
    assert Run(tmp_path / "run").config.runtime.log_every == 5


# --- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_a_signal_leaves_a_checkpoint_and_its_exit_status(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    before = signal.getsignal(number)
    signalled_at(monkeypatch, 3, number)
    config = tiny_config(**SETTINGS, **{"data.root": world})
    (tmp_path / "a.yaml").write_text(config.to_yaml())
    words = ["train", str(tmp_path / "a.yaml"), "--run", str(tmp_path / "run")]
    assert main(words) == status
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"inat: stopped by {number.name}; --resume goes on from the last checkpoint"
    )
    assert read_json(tmp_path / "run/checkpoints/last/state.json")["step"] == 3
    assert signal.getsignal(number) is before


def test_a_signal_during_validation_ends_it_and_a_resume_validates_anew(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    scored = []

    def signalling(*arguments: Any) -> Any:
        scored.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return top_k(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(validation, "top_k", signalling)
        trained(world, tmp_path / "run")
    assert len(scored) == 1  # of two batches
    state = read_json(tmp_path / "run/checkpoints/last/state.json")
    assert (state["epoch"], state["batches"]) == (0, state["step"])
    trained(world, tmp_path / "run", resume=True)
    assert digests(tmp_path / "run") == digests(whole.path)
    assert log_lines(tmp_path / "run") == log_lines(whole.path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores interrupts, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_leaves_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals() as stops:
        os.kill(os.getpid(), signal.SIGINT)
        # Not a second SIGTERM: torchrun and the scheduler above it each send one.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    found = []

    def listen() -> None:
        with stop_signals() as stops:
            found.append((signal.getsignal(signal.SIGTERM), stops.received))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGTERM), None)]


# --- faults ----------------------------------------------------------------------------------


def test_two_trainings_cannot_have_one_run_folder(world: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inat.core.files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".run.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (tmp_path / "link").symlink_to(tmp_path / "run")
        for name in ("run", "link"):
            with pytest.raises(WorldError) as refused:
                trained(world, tmp_path / name)
            assert str(refused.value) == (
                f"{tmp_path / name}: another process writes there; wait for it, or give another "
                "--run"
            )
        holder.communicate()


def window_of(*losses: float, skipped: bool = False) -> LossMeter:
    window = LossMeter([0.5])
    for place, loss in enumerate(losses):
        ids = [torch.tensor([10 * place, 10 * place + 1])]
        window.add(Step(7 + place, 0.1, torch.tensor(loss), ids, 2, skipped))
    return window


def test_the_first_loss_that_is_not_finite_is_named_with_step_rate_and_images() -> None:
    with pytest.raises(WorldError) as told:
        window_of(1.0, float("inf"), float("nan")).read()
    assert str(told.value) == (
        "the loss is inf at step 8 (learning rate 0.1, images 10, 11); train again with a lower "
        "optim.lr_per_256 or with optim.clip_grad_norm 1"
    )


def test_steps_that_the_scaler_skipped_may_have_any_loss() -> None:
    assert window_of(1.0, float("inf"), 3.0, skipped=True).read() == [0.5, 1.0, 3.0]
    assert window_of(1.0, 3.0).close()[0] == 1.5


def test_a_checkpoint_is_never_written_of_a_loss_that_is_not_finite(
    world: Path, tmp_path: Path
) -> None:
    settings = {"optim.lr_per_256": 1e30, "optim.name": "sgd", "optim.warmup_epochs": 0}
    with pytest.raises(WorldError, match=r"the loss is (nan|inf) at step 2 .*images \d+, \d+, "):
        trained(world, tmp_path / "run", **settings, **{"runtime.log_every": 1000})
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


def test_losses_are_read_only_when_they_are_logged(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = LossMeter.read
    monkeypatch.setattr(LossMeter, "read", lambda self: reads.append(1) or read(self))
    settings = {"runtime.log_every": 4, "runtime.checkpoint_steps": 1000, "data.holdout": "none"}
    run = trained(world, tmp_path / "run", epochs=1, **{"optim.warmup_epochs": 0}, **settings)
    assert len(reads) == len(log_lines(run.path)) == 3  # of 10 steps: after 4, 8 and 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(ballast: Path) -> None:
    gc.collect()  # a training that is over still maps files that are gone
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_fills_up_keeps_the_checkpoint_before_whole_and_says_so(
    world: Path, tmp_path: Path, small_disk: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_disk / "run"
    signalled_at(monkeypatch, 5)
    with pytest.raises(Stopped):
        trained(world, run)
    before = digests(run)
    fill_up(small_disk / "ballast")
    with pytest.raises(WorldError) as told:
        trained(world, run, resume=True)
    assert str(told.value) == (
        f"{run}: the disk is full; the checkpoint before is whole; make room and go on with "
        "--resume"
    )
    assert digests(run) == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last", "previous"]
    (small_disk / "ballast").unlink()
    trained(world, run, resume=True)
    assert digests(run) == digests(whole.path)


def test_a_disk_that_fills_up_during_a_prediction_keeps_the_parts_and_says_so(
    whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("inat.predictions.parts.write_bytes", full)
    with pytest.raises(WorldError) as told:
        inat.predict(whole.path, "train")
    assert str(told.value) == (
        f"{whole.path / 'predictions' / 'train'}: the disk is full; the parts made so far are "
        "whole: make room and run the same command again"
    )


def test_a_read_only_disk_is_named(world: Path, tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(WorldError) as told:
        trained(world, small_disk / "run")
    assert str(told.value) == (
        f"{small_disk / '.run.lock'}: {os.strerror(errno.EROFS)}; make it writable, or give "
        "another place"
    )


def test_a_clock_that_goes_backwards_changes_nothing_but_the_times(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run
) -> None:
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    run = trained(world, tmp_path / "run")
    assert digests(run.path) == digests(whole.path)
    assert log_lines(run.path) == log_lines(whole.path)


@pytest.mark.parametrize("when", ["amid", "idle"])
def test_a_killed_worker_is_told_and_the_next_iteration_starts_new_ones(
    world: Path, when: str
) -> None:
    script = Path(__file__).with_name("loader_processes.py")
    words = [sys.executable, str(script), str(world), when]
    done = subprocess.run(words, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = orjson.loads(done.stdout)
    # Torch knows of the signal where its handler comes before the wait for the next batch ends.
    told = {
        f"a process that reads photos {ended}, most often because memory or shared memory "
        "(/dev/shm) ran out; lower data.workers or batch_size, or set data.worker_kind threads"
        for ended in ("was killed by a signal (Killed)", "ended unexpectedly")
    }
    # Where nothing reads at that moment, the next iteration may find the death itself.
    assert found["told"] in (told | {""} if when == "idle" else told)
    loader = build_loader(load_split(world), image_size=32, training=True, batch_size=2, workers=0)
    assert found["batches"] == [batch["image_id"].tolist() for batch in loader]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        RuntimeError("received 0 items of ancdata"),
        OSError("Caught OSError in DataLoader worker process 0. [Errno 24] Too many open files"),
    ],
)
def test_too_many_open_files_are_told_with_a_remedy(error: Exception) -> None:
    with pytest.raises(WorldError) as told, worker_deaths():
        raise error
    assert "too many open files; allow more (ulimit -n 4096)" in str(told.value)


def test_a_photo_is_not_bad_where_too_many_files_are_open(world: Path) -> None:
    split = load_split(world)
    photos = open_photos(world, split.file_names)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError) as told:
            photos.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert told.value.errno == errno.EMFILE


def test_signals_to_the_group_of_the_training_do_not_reach_its_workers(world: Path) -> None:
    loader = build_loader(
        load_split(world), image_size=32, training=True, batch_size=2, workers=1,
        worker_kind="processes",
    )  # fmt: skip
    n_batches = 0
    for _ in loader:
        for child in torch.multiprocessing.active_children():
            assert child.pid is not None
            assert os.getpgid(child.pid) == child.pid != os.getpgrp()
        n_batches += 1
    assert n_batches == len(loader)


def test_a_prediction_of_a_run_within_its_first_epoch_is_of_its_first_stage(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        trained(world, tmp_path / "run")
    assert inat.predict(tmp_path / "run", "val").meta.checkpoint_epoch == 1


def test_an_ended_process_gives_its_status(world: Path, tmp_path: Path) -> None:
    process = start("train", world, tmp_path / "run", {}, pause=0.1)
    while not (tmp_path / "run" / "checkpoints" / "last").is_dir():
        time.sleep(0.05)
    process.terminate()
    process.join(60)
    assert process.exitcode == 143
    finish(start("train", world, tmp_path / "run", {}))


TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL if sys.argv[1] == "plain" else signal.SIG_IGN)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "inat", *sys.argv[2:]])
"""
"""Runs the command in the terminal that is its standard input; as under nohup, or plain."""


@pytest.mark.skipif(sys.platform == "win32", reason="needs terminals")
@pytest.mark.parametrize("kind", ["plain", "nohup"])
def test_a_closed_terminal_leaves_a_checkpoint_and_under_nohup_nothing_stops(
    world: Path, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    config = tiny_config(**{"data.root": world, "sampler.epoch_size": 400, "runtime.log_every": 1})
    (tmp_path / "tiny.yaml").write_bytes(config.to_yaml().encode())
    master, slave = os.openpty()
    words = [sys.executable, "-c", TERMINAL, kind, "train", str(tmp_path / "tiny.yaml")]
    with subprocess.Popen(
        [*words, "--run", str(run)], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as training:
        os.close(slave)
        reader = threading.Thread(target=_drained, args=(master,), daemon=True)
        reader.start()
        deadline = time.monotonic() + 300
        while training.poll() is None and not (run / "metrics.jsonl").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert training.poll() is None
        os.close(master)
        status = training.wait(300)
    state = read_json(run / "checkpoints" / "last" / "state.json")
    if kind == "plain":
        assert status == 128 + signal.SIGHUP
        assert (state["epoch"], state["batches"] > 0) == (0, True)
    else:
        assert state["epoch"] == 1


def _drained(master: int) -> None:
    with suppress(OSError):
        while os.read(master, 4096):
            pass

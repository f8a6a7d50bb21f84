"""Optimiser, schedule, checkpoints, metrics.jsonl, precision: the parts of the training loop."""

import ctypes
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from inat.config.reading import build
from inat.config.schema import ModelConfig, OptimConfig
from inat.core.errors import InputError
from inat.core.intervals import accuracy_interval
from inat.core.metrics import Validation, score_guesses
from inat.core.progress import progress_bar
from inat.models.backbone import Backbone, build_backbone
from inat.models.device import (
    autocast,
    fast_kernels,
    freed_memory_kept,
    pick_device,
    resolve_precision,
)
from inat.runs.metrics_log import MetricsLog
from inat.training.accelerator import build_accelerator
from inat.training.checkpoint import LoopState, load_checkpoint, read_state, save_checkpoint
from inat.training.optim import build_optimizer, build_schedule

CPU = torch.device("cpu")


class TinyNetwork(nn.Module):
    """A convolution, a norm and a classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": "head"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.stem(images)).relu().mean((2, 3)))
        return logits

    def no_weight_decay(self) -> set[str]:
        return {"stem.weight"}


def tiny_backbone(seed: int = 0) -> Backbone:
    return Backbone(TinyNetwork(seed), (0.5,) * 3, (0.5,) * 3, "none")


def train_steps(network: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 5, 5, generator=generator)
        labels = torch.randint(5, (6,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


# --- optimiser -------------------------------------------------------------------------------


def test_vectors_are_not_decayed_and_the_classifier_has_its_own_groups() -> None:
    backbone = build_backbone(ModelConfig(backbone="test_efficientnet", weights="none"), 5, 0)
    config = OptimConfig(weight_decay=0.3, head_lr_factor=10)
    optimizer = build_optimizer(config, backbone, 0.01)
    name_of = {id(p): name for name, p in backbone.network.named_parameters()}
    found = {
        name_of[id(p)]: (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    expected = {
        name: (0.3 if p.ndim > 1 else 0.0, 10 if name.startswith("classifier.") else 1.0)
        for name, p in backbone.network.named_parameters()
    }
    assert found == expected
    assert expected["conv_stem.weight"] == (0.3, 1.0)
    assert expected["bn1.weight"] == (0.0, 1.0)
    assert expected["classifier.weight"] == (0.3, 10)
    assert expected["classifier.bias"] == (0.0, 10)
    assert len(optimizer.param_groups) == 4
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(expected)


def test_frozen_parameters_are_left_out_and_exempt_ones_are_not_decayed() -> None:
    backbone = tiny_backbone()
    parameters = dict(backbone.network.named_parameters())
    parameters["norm.weight"].requires_grad_(False)
    optimizer = build_optimizer(OptimConfig(weight_decay=0.3), backbone, 0.01)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay.get(id(p)) for name, p in parameters.items()} == {
        "stem.weight": 0.0,  # TinyNetwork.no_weight_decay names it
        "norm.weight": None,
        "norm.bias": 0.0,
        "head.weight": 0.3,
        "head.bias": 0.0,
    }


def test_with_decay_norms_every_parameter_is_decayed() -> None:
    backbone = tiny_backbone()
    config = OptimConfig(weight_decay=0.3, decay_norms=True)
    optimizer = build_optimizer(config, backbone, 0.01)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}
    n_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    assert n_parameters == len(list(backbone.network.parameters()))


def test_momentum_is_the_first_beta_of_adamw_and_nesterov_momentum_of_sgd() -> None:
    adamw = build_optimizer(OptimConfig(name="adamw", momentum=0.8), tiny_backbone(), 0.01)
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.999)}
    sgd = build_optimizer(OptimConfig(name="sgd", momentum=0.8), tiny_backbone(), 0.01)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.8, True)}


def test_sgd_without_nesterov_moves_by_its_plain_momentum() -> None:
    config = OptimConfig(name="sgd", momentum=0.8, nesterov=False, weight_decay=0.3,
                         decay_norms=True)  # fmt: skip
    backbone = tiny_backbone()
    optimizer = build_optimizer(config, backbone, 0.01)
    weight = backbone.network.get_parameter("norm.weight")
    value, velocity = weight.detach().clone(), torch.zeros(4)
    for step in range(3):
        train_steps(backbone.network, optimizer, range(step, step + 1))
        assert weight.grad is not None
        for i in range(4):
            velocity[i] = 0.8 * velocity[i] + weight.grad[i] + 0.3 * value[i]
            value[i] -= 0.01 * velocity[i]
        torch.testing.assert_close(weight.detach(), value)


# --- schedule --------------------------------------------------------------------------------


def closed_form(step: int, n_warmup: int, n_steps: int, peak: float) -> float:
    if step < n_warmup:
        return peak * step / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup)))


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "n_warmup"),
    [(0.0, 2, 0), (1.0, 3, 7), (0.5, 2, 4), (5.0, 2, 13)],
)
def test_the_learning_rate_of_every_step_is_a_linear_warm_up_then_a_cosine_to_zero(
    warmup_epochs: float, epochs: int, n_warmup: int
) -> None:
    config = OptimConfig(warmup_epochs=warmup_epochs, head_lr_factor=3.0)
    backbone = tiny_backbone()
    optimizer = build_optimizer(config, backbone, 0.2)
    schedule = build_schedule(config, optimizer, steps_per_epoch=7, epochs=epochs)
    head = backbone.head_parameters()
    n_steps = 7 * epochs
    for step in range(n_steps + 1):
        schedule.step_update(step)
        expected = closed_form(step, n_warmup, n_steps, 0.2)
        for group in optimizer.param_groups:
            factor = 3.0 if id(group["params"][0]) in head else 1.0
            assert group["lr"] == pytest.approx(factor * expected, abs=1e-12), step
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}


def test_the_learning_rate_depends_on_the_step_alone_so_a_resume_finds_it_again() -> None:
    config = OptimConfig(warmup_epochs=1)
    rates = []
    for steps in (range(1, 10), [9]):
        optimizer = build_optimizer(config, tiny_backbone(), 0.2)
        schedule = build_schedule(config, optimizer, steps_per_epoch=5, epochs=3)
        for step in steps:
            schedule.step_update(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]


def adjust_learning_rate(epoch: int, peak: float) -> float:
    """That of LDAM's cifar_train.py, for 200 epochs."""
    epoch = epoch + 1
    if epoch <= 5:
        return peak * epoch / 5
    if epoch > 180:
        return peak * 0.0001
    if epoch > 160:
        return peak * 0.01
    return peak


def test_the_step_schedule_has_the_learning_rate_of_ldams_code_in_all_steps_of_200_epochs() -> None:
    config = OptimConfig(
        name="sgd", schedule="step", warmup_epochs=5, milestones=(160, 180), head_lr_factor=3
    )
    backbone = tiny_backbone()
    optimizer = build_optimizer(config, backbone, 0.1)
    schedule = build_schedule(config, optimizer, steps_per_epoch=3, epochs=200)
    head = backbone.head_parameters()
    for step in range(600):
        schedule.step_update(step + 1)  # as the loop asks before a step
        expected = adjust_learning_rate(step // 3, 0.1)
        for group in optimizer.param_groups:
            factor = 3.0 if id(group["params"][0]) in head else 1.0
            assert group["lr"] == pytest.approx(factor * expected, rel=1e-12), step


@pytest.mark.parametrize(
    ("warmup_epochs", "milestones", "shares"),
    [
        (0.0, (), [1, 1, 1, 1]),
        (0.5, (), [1, 1, 1, 1]),
        (2.5, (), [0.4, 0.8, 1, 1]),
        (0.0, (1, 3), [1, 0.1, 0.1, 0.01]),
        (4.0, (2,), [0.25, 0.5, 0.075, 0.1]),
    ],
)
def test_each_epoch_of_the_step_schedule_has_its_share_of_the_peak(
    warmup_epochs: float, milestones: tuple[int, ...], shares: list[float]
) -> None:
    config = OptimConfig(
        schedule="step", warmup_epochs=warmup_epochs, milestones=milestones, step_factor=0.1
    )
    optimizer = build_optimizer(config, tiny_backbone(), 0.2)
    schedule = build_schedule(config, optimizer, steps_per_epoch=1, epochs=4)
    found = []
    for step in range(4):
        schedule.step_update(step + 1)
        found.append(optimizer.param_groups[0]["lr"] / 0.2)
    assert found == pytest.approx(shares)


# --- checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [OptimConfig(name="adamw"), OptimConfig(name="sgd"),
                                    OptimConfig(name="sgd", momentum=0)])  # fmt: skip
def test_a_resumed_network_ends_with_the_same_bits_as_one_that_was_never_stopped(
    tmp_path: Path, config: OptimConfig
) -> None:
    backbone, average = tiny_backbone(), TinyNetwork(7)
    optimizer = build_optimizer(config, backbone, 0.05)
    train_steps(backbone.network, optimizer, range(3))
    state = LoopState(epoch=1, step=3, best_score=0.1 + 0.2, metrics_bytes=77)
    save_checkpoint(tmp_path / "last", state, backbone.network, average, optimizer)

    other, other_average = tiny_backbone(seed=1), TinyNetwork(8)
    other_optimizer = build_optimizer(config, other, 0.9)
    found = load_checkpoint(tmp_path / "last", other.network, other_average, other_optimizer)
    assert found == state
    assert_equal_states(other_optimizer, optimizer)
    assert bits(other_average) == bits(average)
    train_steps(backbone.network, optimizer, range(3, 6))
    train_steps(other.network, other_optimizer, range(3, 6))
    assert bits(other.network) == bits(backbone.network)
    assert_equal_states(other_optimizer, optimizer)


def bits(network: nn.Module) -> dict[str, bytes]:
    return {name: t.contiguous().numpy().tobytes() for name, t in network.state_dict().items()}


def assert_equal_states(left: Optimizer, right: Optimizer) -> None:
    mine, theirs = left.state_dict(), right.state_dict()
    assert mine["state"].keys() == theirs["state"].keys()
    for index, entries in theirs["state"].items():
        assert mine["state"][index].keys() == entries.keys()
        for name, value in entries.items():
            found = mine["state"][index][name]
            if isinstance(value, torch.Tensor):
                assert found.dtype == value.dtype
                assert torch.equal(found, value), (index, name)
            else:
                assert found == value
    for group, expected in zip(mine["param_groups"], theirs["param_groups"], strict=True):
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()}
        assert plain == {k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()}


def save_tiny(folder: Path, *, ema: bool = True) -> Optimizer:
    backbone = tiny_backbone()
    optimizer = build_optimizer(OptimConfig(), backbone, 0.05)
    train_steps(backbone.network, optimizer, range(1))
    save_checkpoint(
        folder, LoopState(), backbone.network, TinyNetwork(1) if ema else None, optimizer
    )
    return optimizer


def test_a_checkpoint_is_safetensors_and_json_and_replaces_the_one_before(tmp_path: Path) -> None:
    save_tiny(tmp_path / "last")
    parts = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "optimizer.json",
             "state.json", "checksums.json"}  # fmt: skip
    assert {path.name for path in (tmp_path / "last").iterdir()} == parts
    save_tiny(tmp_path / "last", ema=False)
    left = {path.name for path in (tmp_path / "last").iterdir()}
    assert left == parts - {"ema.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "last")
    before = {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inat.training.checkpoint.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save_tiny(tmp_path / "last")
    assert {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])

    return damage


def other_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | {"head.bias": torch.zeros(9)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        other_shape,
        *(cut(f"{name}.safetensors") for name in ("model", "ema", "optimizer")),
        lambda folder: (folder / "ema.safetensors").unlink(),
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b""),
        lambda folder: (folder / "optimizer.json").write_text("{}"),
        lambda folder: (folder / "optimizer.json").write_text("[]"),
    ],
)
def test_a_damaged_checkpoint_gives_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder, backbone = tmp_path / "last", tiny_backbone()
    save_tiny(folder)
    damage(folder)
    optimizer = build_optimizer(OptimConfig(), backbone, 0.05)
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder, backbone.network, TinyNetwork(1), optimizer)
    text = str(caught.value)
    assert text.startswith(f"{folder}: no whole checkpoint (")
    assert text.endswith("); train with --overwrite")
    assert "\n" not in text


@pytest.mark.parametrize("text", ['{"epoch": 1, "place": 2}', "[1]", '{"epoch": 1}'])
def test_a_state_of_other_fields_is_refused(tmp_path: Path, text: str) -> None:
    save_tiny(tmp_path / "last")
    path = tmp_path / "last" / "state.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_state(tmp_path / "last")
    assert str(caught.value) == (
        f"{path}: not the state of a training (its fields are not those of this version); "
        "train again"
    )


@pytest.mark.parametrize("name", ["state.json", "optimizer.json"])
def test_a_checkpoint_without_its_json_names_the_file(tmp_path: Path, name: str) -> None:
    save_tiny(tmp_path / "last")
    (tmp_path / "last" / name).unlink()
    backbone = tiny_backbone()
    optimizer = build_optimizer(OptimConfig(), backbone, 0.05)
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / "last", backbone.network, None, optimizer)
    assert str(caught.value) == f"{tmp_path / 'last' / name}: there is no such file"


# --- metrics.jsonl ---------------------------------------------------------------------------


def lines_of(path: Path) -> list[Any]:
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        assert line.pop("time") > 0
    return lines


def test_reopening_the_log_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.write("train", step=1, loss=np.float32(0.5))
    log.write("validation", bands={"few": None}, per_class=np.array([1, 2]))
    kept = log.n_bytes
    log.write("train", step=2, loss=9.0)
    log.close()
    assert kept < path.stat().st_size
    log = MetricsLog(path, keep_bytes=kept)
    assert log.n_bytes == path.stat().st_size == kept
    log.write("train", step=2, loss=0.25)
    assert log.n_bytes == path.stat().st_size  # every line is on its way to the disk at once
    log.close()
    assert lines_of(path) == [
        {"kind": "train", "step": 1, "loss": 0.5},
        {"kind": "validation", "bands": {"few": None}, "per_class": [1, 2]},
        {"kind": "train", "step": 2, "loss": 0.25},
    ]


def test_a_log_shorter_than_the_checkpoint_says_is_cut_to_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write("train", step=1)
    kept = log.n_bytes
    log.close()
    with path.open("ab") as file:
        file.write(b'{"kind":"tra')
    log = MetricsLog(path, keep_bytes=1000)
    assert log.n_bytes == path.stat().st_size == kept
    log.close()
    assert [line["step"] for line in lines_of(path)] == [1]
    assert capsys.readouterr().err == (
        f"warning: {path}: its last lines are lost ({kept + 12} bytes are left)\n"
    )


def test_a_new_run_starts_with_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("old\n")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("train", step=1)
    log.close()
    assert lines_of(tmp_path / "metrics.jsonl") == [{"kind": "train", "step": 1}]


# --- device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_auto_precision_on_a_cpu_is_bf16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert resolve_precision("auto", CPU) == ("bf16" if avx512 or amx else "fp32")


def test_auto_precision_is_fp32_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_on_cuda_asks_for_real_bf16_and_not_for_an_emulation(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    expected = "bf16" if supported else "fp16"
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_fp16_is_refused_on_a_cpu_which_would_train_in_float32() -> None:
    config = build({"runtime": {"precision": "fp16", "device": "cpu"}}, "test")
    with pytest.raises(InputError) as caught, build_accelerator(config):
        pass
    assert str(caught.value) == (
        "runtime.precision: a CPU trains in bf16 or fp32, not fp16; give one of them, or auto"
    )


def test_fast_kernels_are_put_back_as_they_were() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with fast_kernels(True):
        assert cudnn.benchmark
        assert cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    assert (cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before
    with fast_kernels(False):
        assert (cudnn.benchmark, cudnn.allow_tf32) == before[:2]


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_named_precision_and_a_named_device_are_taken_as_they_are(name: str) -> None:
    assert resolve_precision(name, CPU) == name
    assert pick_device("cpu") == CPU


def test_auto_device_prefers_cuda_to_mps_and_mps_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_computes_at_that_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype
    assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


# --- memory ----------------------------------------------------------------------------------


class FakeLibc:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append(("mallopt", option, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append(("malloc_trim", pad, 0))
        return 1


def test_memory_is_given_back_after_the_block_even_where_it_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libc = FakeLibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with pytest.raises(KeyError, match="mine"), freed_memory_kept():
        assert libc.calls == [
            ("mallopt", mmap_threshold, 2**30),
            ("mallopt", trim_threshold, 2**31 - 1),
        ]
        raise KeyError("mine")
    assert libc.calls[2:] == [
        ("mallopt", mmap_threshold, 2**25),
        ("mallopt", trim_threshold, 2**26),
        ("malloc_trim", 0, 0),
    ]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        assert torch.ones(3).sum() == 3
    with pytest.raises(KeyError, match="mine"), freed_memory_kept():
        raise KeyError("mine")


def test_keeping_freed_memory_changes_no_result_and_can_be_nested() -> None:
    data = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    expected = data @ data
    with freed_memory_kept(), freed_memory_kept():
        inside = data @ data
    assert torch.equal(inside, expected)
    assert torch.equal(data @ data, expected)


# --- progress --------------------------------------------------------------------------------


def test_progress_where_there_is_no_terminal_is_a_plain_line_now_and_then_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress_bar("epoch 1", 100, "photos") as bar:
        for seconds in (10, 10, 1, 10):
            clock[0] += seconds
            bar.advance(21, "loss 0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "epoch 1: 63/100  3 photos/s loss 0.5  12 s left\n"


def test_a_validation_s_line_says_how_the_bands_moved_since_the_one_before() -> None:
    before = Validation(0.5, 0.25, 0.4, {"many": None, "medium": 0.75, "few": None})
    now = Validation(0.625, 0.125, 0.5, {"many": None, "medium": 0.5, "few": 0.25})
    accuracies = "held out: top-1 0.625  top-3 error 0.125  mean class 0.500  "
    assert str(now) == accuracies + "many –  medium 0.500  few 0.250"
    assert now.since(before) == accuracies + "many –  medium 0.500 (-0.250)  few 0.250"
    known = replace(now, interval=(0.4412, 0.5623))
    assert str(known) == accuracies.rstrip() + " (0.441–0.562)  many –  medium 0.500  few 0.250"


def test_a_validation_has_the_interval_of_its_mean_over_species() -> None:
    true = np.repeat([0, 1, 2], 4)
    guessed = np.array([[0], [0], [1], [0], [1], [2], [2], [0], [2], [2], [2], [1]])
    found = score_guesses(guessed, true, np.array([200, 50, 5]), (20, 100))
    interval = accuracy_interval(guessed[:, 0] == true, true)
    assert interval is not None
    assert found.mean_class_accuracy == interval.value
    assert found.interval == (interval.low, interval.high)
    assert found.mean_class_accuracy == pytest.approx((3 / 4 + 1 / 4 + 3 / 4) / 3)

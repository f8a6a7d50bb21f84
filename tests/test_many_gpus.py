"""What large machines need of the loop: what limits it, what it waits for, what fails there."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import timm
import torch
from tiny_runs import tiny_config, train_tiny

import inat
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import read_json
from inat.loader import batches as loader_batches
from inat.loader.batches import empty_images, to_device
from inat.models import device as devices
from inat.runs.run import Run
from inat.training import accelerator, processes, step, trainer
from inat.training.accelerator import build_accelerator
from inat.training.averages import LossMeter
from inat.training.checkpoint import LoopState
from inat.training.plan import make_plan
from inat.training.processes import LateGreatest, micro_batches, peer_failures_reported
from inat.training.step import accumulated, take_step
from inat.training.trainer import build_trainer, describe_device

# --- what limits a training ----


def test_a_window_says_which_share_of_its_time_was_waited_for_photos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def photos() -> Any:
        for seconds in (3, 1, 0):
            clock[0] += seconds
            yield seconds

    window, shares = LossMeter(), []
    for _ in window.timed(photos()):
        clock[0] += 1
        shares.append(window.close()[1].waiting)
    assert shares == pytest.approx([3 / 4, 1 / 2, 0])
    assert window.epoch.waiting == pytest.approx(4 / 7)


def test_log_and_epoch_line_say_how_long_photos_were_waited_for(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path / "run", world, **{"runtime.log_every": 1})
    lines = [orjson.loads(line) for line in run.metrics_path.read_bytes().splitlines()]
    shares = [line["waiting_share"] for line in lines if line["kind"] == "train"]
    assert len(shares) > 2 and all(0 < share < 1 for share in shares)
    assert "% of the time waiting for photos\n" in capsys.readouterr().err


def test_a_dry_run_says_what_network_and_loader_can_do(world: Path) -> None:
    (line,) = [
        line
        for line in inat.dry_run(tiny_config(**{"data.root": world})).lines()
        if line.startswith("limits     the network takes ")
    ]
    words = line.replace(",", "").replace(":", "").split()
    network, loader = int(words[words.index("takes") + 1]), int(words[words.index("gives") + 1])
    assert network > 0 and loader > 0 and words[-3:] == ["hours", "in", "all"]


def fake_cards(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    "said",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
        "GCC version:  gcc version 11.4.0",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build",
    ],
)
def test_the_environment_of_a_run_names_gpus_and_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    fake_cards(monkeypatch, 2)
    (tmp_path / "version").write_text(said)
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "version")
    assert devices.device_facts() == {
        "gpus": ["NVIDIA H100 80GB HBM3"] * 2,
        "gpu_driver": "535.104.05",
        "cuda": torch.version.cuda,
    }


def test_a_run_of_a_machine_without_gpus_says_so(tmp_path: Path, world: Path) -> None:
    run = train_tiny(tmp_path / "run", world)
    facts = read_json(run.path / "environment.json")
    if not torch.cuda.is_available():
        assert facts["gpus"] == []
    assert {"gpu_driver", "cuda", "python"} <= set(facts)


@pytest.mark.parametrize(("used", "idle"), [(1, 7), (2, 6), (8, 0)])
def test_idle_gpus_are_named_with_the_command_that_uses_them(
    monkeypatch: pytest.MonkeyPatch, used: int, idle: int
) -> None:
    fake_cards(monkeypatch, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(used))
    found: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cuda"), num_processes=used),
        precision="bf16",
        channels_last=True,
        n_batches=1,
        loader=SimpleNamespace(batch_size=64),
    )
    each = "" if used == 1 else f", {used} processes"
    lines = describe_device(found)
    assert lines[0] == f"device     cuda (NVIDIA H100 80GB HBM3), bf16, channels_last{each}"
    assert lines[1] == "batches    64 photos a process and step"
    assert lines[2:] == (
        [f"device     {idle} of 8 GPUs are idle; to use all: torchrun --nproc-per-node 8 -m -- "
         "inat train CONFIG --run RUN"] if idle else []
    )  # fmt: skip


def test_few_photos_a_gpu_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for kind, size, told in (("cuda", 32, True), ("cuda", 64, False), ("cpu", 32, False)):
        found: Any = SimpleNamespace(
            accelerator=SimpleNamespace(device=torch.device(kind), num_processes=8),
            precision="bf16", channels_last=True, n_batches=4,
            loader=SimpleNamespace(batch_size=size),
        )  # fmt: skip
        line = describe_device(found)[1]
        assert line.startswith(f"batches    4 x {size} photos a process and step")
        assert ("raise batch_size" in line) is told


@pytest.mark.parametrize(
    ("batch_size", "device_batch", "world_size", "expected"),
    [
        (512, 128, 1, (4, 128)), (512, 128, 2, (2, 128)), (512, 128, 4, (1, 128)),
        (512, 128, 8, (1, 64)), (100, 33, 1, (4, 25)), (14, 3, 2, (7, 1)), (8, 64, 1, (1, 8)),
    ],
)  # fmt: skip
def test_accumulation_follows_the_number_of_processes_and_what_one_passes_at_once(
    batch_size: int, device_batch: int, world_size: int, expected: tuple[int, int]
) -> None:
    auto = {"optim.accumulate": "auto", "optim.device_batch": device_batch}
    config = tiny_config(batch_size=batch_size, **auto)
    assert micro_batches(config, world_size) == expected
    assert config.global_batch == batch_size == world_size * expected[0] * expected[1]


@pytest.mark.parametrize(
    "fields", [{"optim.accumulate": "auto"}, {"optim.device_batch": 4},
               {"optim.accumulate": 2, "optim.device_batch": 4}],
)  # fmt: skip
def test_auto_and_what_a_process_passes_at_once_go_together(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"optim.accumulate .* optim.device_batch .* set both"):
        tiny_config(**fields)
    with pytest.raises(InputError, match=r"optim.accumulate takes a whole number or auto"):
        tiny_config(**{"optim.accumulate": "some"})


def test_the_command_line_takes_auto(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(tiny_config(**{"data.root": world}).to_yaml())
    words = ["train", str(tmp_path / "a.yaml"), "--dry-run", "--optim.accumulate", "auto"]
    assert main([*words, "--optim.device-batch", "2"]) == 0
    assert "batches    4 x 2 photos a process and step\n" in capsys.readouterr().out


# --- what processes tell each other ----


def test_one_process_hears_its_own_number_at_once() -> None:
    asks = LateGreatest()
    assert [asks(number) for number in (0, 3, 0)] == [0, 3, 0]
    asks.clear()


def test_the_sizes_of_a_batch_s_parts_are_asked_for_once(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gathered(value: int) -> list[int]:
        asked.append(value)
        return [value]

    monkeypatch.setattr(step, "gathered", gathered)
    config = tiny_config(**{"data.root": world, "data.on_bad_photo": "skip"})
    with build_accelerator(config) as (machine, precision):
        made = build_trainer(make_plan(config), machine, precision)
        for number, (batches, _) in enumerate(accumulated(made), start=1):
            take_step(made, batches, LoopState())
            assert asked == [8] * number


def test_sharded_gradients_are_brought_together_once_a_step(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**{"data.root": world, "optim.accumulate": 3, "batch_size": 4})
    with build_accelerator(config) as (machine, precision):
        made = build_trainer(make_plan(config), machine, precision)
        network: Any = made.backbone.network
        synced: list[bool] = []
        monkeypatch.setattr(step, "FSDPModule", type(network))
        monkeypatch.setattr(
            type(network), "set_requires_gradient_sync", lambda _, on: synced.append(on),
            raising=False,
        )  # fmt: skip
        batches, _ = next(accumulated(made))
        take_step(made, batches, LoopState())
    assert synced == [False, False, True]


@pytest.mark.parametrize(
    ("backbone", "precision", "dtype"),
    [
        ("test_vit", "bf16", torch.bfloat16),
        ("test_vit", "fp32", None),
        ("test_efficientnet", "bf16", None),  # of batch norm
    ],
)
def test_sharded_weights_travel_in_the_precision_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch, backbone: str, precision: str, dtype: torch.dtype | None
) -> None:
    policies = []
    monkeypatch.setattr(processes, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(
        processes, "fully_shard", lambda *_, mp_policy, **__: policies.append(mp_policy)
    )
    network = timm.create_model(backbone, num_classes=4)
    processes.shard(network, torch.device("cpu"), precision)
    assert len(policies) > 1
    assert {policy.param_dtype for policy in policies} == {dtype}
    assert {policy.reduce_dtype for policy in policies} == {dtype and torch.float32}


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("[Rank 1] NCCL error: unhandled system error, /dev/shm is full", "; NCCL_DEBUG=INFO"),
        ("Gloo: Connection closed by peer [127.0.0.1]:2", ""),
    ],
)
def test_what_was_said_of_another_process_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, text: str, more: str
) -> None:
    monkeypatch.setattr(processes, "n_processes", lambda: 2)
    monkeypatch.setattr(processes.dist, "get_rank", lambda: 1)
    with pytest.raises(WorldError) as told, peer_failures_reported():
        raise RuntimeError(text + "\n" + "x" * 500)
    assert text in str(told.value) and len(str(told.value)) < 500
    assert ("NCCL_DEBUG=INFO" in str(told.value)) is bool(more)


def test_a_command_takes_leave_of_the_other_processes(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: left.append(True))
    (tmp_path / "a.yaml").write_text(tiny_config(**{"data.root": world}).to_yaml())
    words = ["train", str(tmp_path / "a.yaml"), "--run", str(tmp_path / "run")]
    assert main(words) == 0
    assert not left
    with monkeypatch.context() as patch:
        patch.setattr(processes, "n_processes", lambda: 2)
        patch.setattr("inat.training.train", lambda *_, **__: Run(tmp_path / "run"))
        assert main(words) == 0
    assert left == [True]


@pytest.mark.parametrize("variable", ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"])
def test_an_accumulation_that_accelerate_was_given_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(InputError, match=r"divide every loss by 4 .* set optim.accumulate"):  # noqa: SIM117
        with build_accelerator(tiny_config()):
            pass


@pytest.mark.parametrize("kind", [NotImplementedError, ValueError])
def test_what_accelerate_refuses_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(**_: Any) -> None:
        raise kind("Using RTX 4000 series doesn't support\nP2P; set NCCL_P2P_DISABLE=1")

    monkeypatch.setattr(accelerator, "Accelerator", refuse)
    with pytest.raises(InputError, match=r"accelerate .* support P2P; set NCCL_P2P_DISABLE=1$"):  # noqa: SIM117
        with build_accelerator(tiny_config()):
            pass


def test_folds_beside_each_other_are_one_a_gpu(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "a.yaml").write_text(tiny_config(**{"data.root": world}).to_yaml())
    assert main(["train", str(tmp_path / "a.yaml"), "--folds", "3"]) == 2
    assert "CUDA_VISIBLE_DEVICES=0 inat train" in capsys.readouterr().err


# --- memory ----


def test_memory_is_pinned_for_a_cuda_device_that_is_used_and_not_for_one_that_is_there(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny_config(**{"data.root": world})).stages[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for kind in ("cpu", "cuda"):
        machine: Any = SimpleNamespace(device=torch.device(kind), num_processes=1, process_index=0)
        loader = trainer._loader(plan, machine, training=True)
        assert loader.pin_memory is (kind == "cuda")
    split = inat.load_split(world, "test")
    assert inat.build_loader(split, image_size=32, training=False, batch_size=2).pin_memory
    pinned = []
    monkeypatch.setattr(loader_batches.torch, "empty", lambda *_, **options: pinned.append(options))
    empty_images(2, (4, 4, 3))
    empty_images(2, (4, 4, 3), pinned=False)
    assert [options["pin_memory"] for options in pinned] == [True, False]


def test_factors_that_a_prediction_asked_for_first_serve_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = {"image": torch.randint(256, (2, 5, 6, 3), dtype=torch.uint8)}
    loader_batches._factors.cache_clear()
    with torch.inference_mode():
        first = to_device(batch, "cpu", [0.5] * 3, [0.25] * 3).clone()
    weight = torch.ones(1, requires_grad=True)
    images = to_device(batch, "cpu", (0.5,) * 3, (0.25,) * 3)
    (images * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(images, first)
    assert loader_batches._factors.cache_info().hits == 1

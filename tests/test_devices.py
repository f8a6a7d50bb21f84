"""What a device can do and what is chosen for it, by the answers of devices that are not here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config, train_tiny

import inat
from inat.cli import main
from inat.config import TransformConfig
from inat.data import parts
from inat.data.loader import default_workers, to_device
from inat.errors import InputError
from inat.models.device import can_run, prefers_channels_last, resolve_precision
from inat.prediction import trained_model
from inat.run_folder import Run
from inat.training import trainer
from inat.training.mixing import erased, mixed
from inat.training.processes import BatchPart, on_device

CUDA, MPS, CPU = torch.device("cuda"), torch.device("mps"), torch.device("cpu")

CARDS = {"P100": (6, 0), "V100": (7, 0), "T4": (7, 5), "A100": (8, 0), "H100": (9, 0)}


def plug_in(patch: pytest.MonkeyPatch, card: str) -> None:
    """Has torch answer as it does where there is such a card."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or CARDS[card] >= (8, 0)

    patch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: CARDS[card])


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "auto"),
    [("P100", "fp32"), ("V100", "fp16"), ("T4", "fp16"), ("A100", "bf16"), ("H100", "bf16")],
)
def test_auto_is_bf16_where_it_is_native_and_fp16_where_there_are_tensor_cores_for_it(
    monkeypatch: pytest.MonkeyPatch, card: str, auto: str
) -> None:
    plug_in(monkeypatch, card)
    assert resolve_precision("auto", CUDA) == auto
    assert can_run("bf16", CUDA) is (auto == "bf16")
    assert can_run("fp16", CUDA) and can_run("fp32", CUDA)


def test_a_cpu_and_mps_run_what_they_have() -> None:
    assert [can_run(name, CPU) for name in ("fp32", "bf16", "fp16")] == [True, True, False]
    assert [can_run(name, MPS) for name in ("fp32", "bf16", "fp16")] == [True, False, False]


@pytest.mark.parametrize(
    ("card", "configured", "asked", "expected"),
    [
        ("A100", "auto", None, "bf16"),
        ("T4", "auto", None, "fp16"),
        ("P100", "auto", None, "fp32"),
        ("T4", "bf16", None, "fp16"),
        ("T4", "bf16", "fp32", "fp32"),
        ("A100", "auto", "fp16", "fp16"),
        ("A100", "bf16", "auto", "bf16"),
        ("T4", "bf16", "auto", "fp16"),
    ],
)
def test_a_bf16_run_predicts_on_every_card_and_says_in_what(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: str,
    configured: str,
    asked: Any,
    expected: str,
) -> None:
    plug_in(monkeypatch, card)
    run: Any = SimpleNamespace(
        path="RUN",
        model={"precision": "bf16", "device": "cuda"},
        config=tiny_config(**{"runtime.precision": configured}),
    )
    assert trained_model._precision(run, CUDA, asked) == expected
    told = "trained in bf16 on cuda; on this cuda device it runs in " + expected
    assert (told in capsys.readouterr().err) is (asked is None and expected != "bf16")


def test_a_precision_that_the_device_lacks_is_refused_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plug_in(monkeypatch, "T4")
    config = tiny_config(**{"runtime.precision": "bf16"})
    with pytest.raises(InputError, match=r"^runtime.precision: this cuda device has no bf16; give "
                                         r"auto, which is fp16 here$"):  # fmt: skip
        trainer._precision(config, CUDA, None)
    run = train_tiny(tmp_path / "run", world, **{"data.holdout": "none"})
    assert main(["predict", str(run.path), "--precision", "fp16"]) == 2
    assert "--precision fp16" in capsys.readouterr().err
    # Named, it is another prediction; unnamed, whichever is there is the one.
    made = inat.predict(run.path, "test", precision="bf16")
    assert made.meta["precision"] == "bf16"
    assert inat.predict(run.path, "test").meta["precision"] == "bf16"
    with pytest.raises(InputError, match="precision bf16, not fp32"):
        inat.predict(run.path, "test", precision="fp32")


def test_every_verb_that_passes_photos_through_a_network_takes_a_precision(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [train_tiny(tmp_path / f"{seed}", world, seed=seed) for seed in range(2)]
    used = []
    loaded = trained_model._precision

    def noted(run: Run, device: torch.device, asked: Any) -> str:
        used.append(loaded(run, device, asked))
        return used[-1]

    monkeypatch.setattr(trained_model, "_precision", noted)
    paths = [str(run.path) for run in runs]
    photos = str(world / "test2018")
    for words in (
        ["predict", paths[0]],
        ["predict", paths[0], "--photos", photos],
        ["soup", *paths, "--out", str(tmp_path / "soup")],
        ["stage-two", paths[0], "--method", "ncm", "--out", str(tmp_path / "ncm")],
    ):
        assert main([*words, "--precision", "bf16"]) == 0
    assert used == ["bf16"] * 4


@pytest.mark.parametrize(
    ("card", "configured", "kept", "expected"),
    [
        ("A100", "auto", "bf16", "bf16"),
        ("T4", "auto", "bf16", "fp16"),
        ("T4", "bf16", "bf16", "fp16"),
        ("A100", "auto", "fp16", "fp16"),
        ("A100", "bf16", "fp16", "bf16"),
    ],
)
def test_a_training_resumes_in_its_precision_or_what_the_card_has(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: str,
    configured: str,
    kept: str,
    expected: str,
) -> None:
    plug_in(monkeypatch, card)
    begun: Any = SimpleNamespace(path="RUN", model={"precision": kept, "device": "cuda"})
    config = tiny_config(**{"runtime.precision": configured})
    assert trainer._precision(config, CUDA, begun) == expected
    assert ("warning: RUN was begun" in capsys.readouterr().err) is (card == "T4")


def test_shard_is_refused_where_auto_is_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**{"runtime.precision": "auto", "runtime.shard": True})
    plug_in(monkeypatch, "T4")
    with pytest.raises(InputError, match=r"runtime.shard .* set runtime.precision fp32"):
        trainer._precision(config, CUDA, None)
    plug_in(monkeypatch, "A100")
    assert trainer._precision(config, CUDA, None) == "bf16"


# --- memory format ---------------------------------------------------------------------------


def test_channels_last_is_left_where_it_is_slower_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {}
    for card in CARDS:
        plug_in(monkeypatch, card)
        chosen[card] = [prefers_channels_last(CUDA, name) for name in ("fp32", "fp16")]
    assert chosen == {
        "P100": [False, True], "V100": [False, True], "T4": [False, True],
        "A100": [True, True], "H100": [True, True],
    }  # fmt: skip
    assert not prefers_channels_last(MPS, "fp32")
    assert prefers_channels_last(CPU, "fp32") and prefers_channels_last(CPU, "bf16")


def test_images_are_of_the_same_numbers_in_both_memory_formats() -> None:
    pixels = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    last, first = (
        to_device({"image": pixels}, "cpu", (0.5, 0.4, 0.3), (0.2,) * 3, channels_last=value)
        for value in (True, False)
    )
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert first.is_contiguous()
    assert torch.equal(last, first)


RECIPES = {
    "mixup": TransformConfig(mixup=1.0), "cutmix": TransformConfig(cutmix=1.0),
    "erasing": TransformConfig(erasing=1.0), "cutout": TransformConfig(cutout=4),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_done_to_a_batch_is_the_same_in_both_memory_formats_and_leaves_them(
    name: str,
) -> None:
    made = []
    for memory in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        images = torch.arange(4 * 3 * 16 * 16.0).view(4, 3, 16, 16).contiguous(memory_format=memory)
        rng, part = np.random.default_rng(1), BatchPart((4,))
        images = erased(images, RECIPES[name], rng, part)
        images, _ = mixed(images, torch.arange(4), 4, RECIPES[name], rng, part)
        assert images.is_contiguous(memory_format=memory)
        made.append(images)
    assert torch.equal(*made)
    assert not torch.equal(made[0].flatten(), torch.arange(4 * 3 * 16 * 16.0))


@pytest.mark.parametrize("fields", [{}, {"runtime.channels_last": False}], ids=["last", "first"])
def test_the_network_sees_images_in_the_memory_format_of_its_weights(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    seen = set()

    def forward(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            memory = torch.channels_last
            tensors = (inputs[0], module.weight)
            seen.add(tuple(one.is_contiguous(memory_format=memory) for one in tensors))

    handle = torch.nn.modules.module.register_module_forward_hook(forward)
    try:
        run = train_tiny(tmp_path / "run", world, **fields)
        inat.predict(run.path, "test")
        inat.predict(run.path, "test", name="flip", views="flip")
        inat.train_stage_two(run.path, tmp_path / "two", method="ncm")
        inat.train_stage_two(run.path, tmp_path / "live", method="crt", live=True, epochs=1)
        other = train_tiny(tmp_path / "other", world, seed=1, **fields)
        inat.soup([run.path, other.path], tmp_path / "soup")
    finally:
        handle.remove()
    assert seen == {(not fields, not fields)}


def test_arrays_go_to_whichever_device_is_used() -> None:
    assert on_device(np.arange(3), torch.device("meta")).device.type == "meta"
    assert on_device(np.arange(3), CPU).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", RECIPES)
def test_mixing_leaves_no_tensor_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    indexed = torch.Tensor.index_select

    def index_select(self: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        moved.append(index.device.type)
        return indexed(self, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", index_select)
    images = torch.empty(4, 3, 16, 16, device="meta")
    labels = torch.arange(4, device="meta")
    rng, part = np.random.default_rng(1), BatchPart((4,))
    images = erased(images, RECIPES[name], rng, part)
    images, targets = mixed(images, labels, 4, RECIPES[name], rng, part)
    assert images.device.type == targets.device.type == "meta"
    assert set(moved) <= {"meta"}


# --- processors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processors", "together", "workers"),
    [(128, 1, 16), (128, 2, 16), (128, 8, 16), (64, 8, 8), (16, 8, 2), (4, 8, 1)],
)
def test_the_processes_of_a_machine_share_its_processors_before_the_limit_of_each(
    monkeypatch: pytest.MonkeyPatch, processors: int, together: int, workers: int
) -> None:
    monkeypatch.setattr("inat.data.loader.usable_processors", lambda: processors)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(together))
    assert default_workers() == workers


@pytest.mark.parametrize(
    ("own", "files", "usable"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "max 100000\n"}, 8),
        ("0::/user.slice/job", {"user.slice/cpu.max": "300000 100000\n",
                                "user.slice/job/cpu.max": "max 100000\n"}, 3),
        ("0::/elsewhere", {"cpu.max": "100000 100000\n"}, 1),
        ("5:cpu,cpuacct:/docker/a", {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                                     "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 4),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "5000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (None, {}, 8),
    ],
)  # fmt: skip
def test_a_container_s_share_of_the_processors_is_what_its_control_groups_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    files: dict[str, str],
    usable: int,
) -> None:
    monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(parts, "CGROUPS", tmp_path)
    monkeypatch.setattr(parts, "OWN_CGROUPS", tmp_path / "own")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(f"7:name=systemd:/\n{own}\n")
    assert parts.usable_processors() == usable

"""What a device can do and what is chosen for it, by the answers of devices that are not here."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny_runs import tiny_config, train_tiny

import inat
from inat.__main__ import run as run_command
from inat.cli.app import main
from inat.config.schema import TransformConfig
from inat.core import threads
from inat.core.errors import InputError, WorldError
from inat.loader.batches import to_device
from inat.loader.loader import default_workers
from inat.models import forward
from inat.models.device import (
    can_run,
    fast_kernels,
    memory_remedies,
    prefers_channels_last,
    resolve_precision,
)
from inat.models.forward import iterate_logits
from inat.models.heads import classifiers_in_float32
from inat.runs import trained
from inat.runs.run import Run
from inat.training import accelerator
from inat.training.mixing import GlobalBatch, erase_images, mix_images, on_device

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
        facts=SimpleNamespace(precision="bf16", device="cuda"),
        config=tiny_config(**{"runtime.precision": configured}),
    )
    assert trained._precision(run, CUDA, asked) == expected
    told = "trained in bf16 on cuda; on this cuda device it runs in " + expected
    assert (told in capsys.readouterr().err) is (asked is None and expected != "bf16")


def test_a_precision_that_the_device_lacks_is_refused_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plug_in(monkeypatch, "T4")
    config = tiny_config(**{"runtime.precision": "bf16"})
    with pytest.raises(InputError, match=r"^runtime.precision: this cuda device has no bf16; give "
                                         r"auto, which is fp16 here$"):  # fmt: skip
        accelerator._precision(config, CUDA, None)
    run = train_tiny(tmp_path / "run", world, **{"data.holdout": "none"})
    assert main(["predict", str(run.path), "--precision", "fp16"]) == 2
    assert "--precision fp16" in capsys.readouterr().err
    # Named, it is another prediction; unnamed, whichever is there is the one.
    made = inat.predict(run.path, "test", precision="bf16")
    assert made.meta.precision == "bf16"
    assert inat.predict(run.path, "test").meta.precision == "bf16"
    with pytest.raises(InputError, match="precision bf16, not fp32"):
        inat.predict(run.path, "test", precision="fp32")


def test_every_verb_that_passes_photos_through_a_network_takes_a_precision(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [train_tiny(tmp_path / f"{seed}", world, seed=seed) for seed in range(2)]
    used = []
    loaded = trained._precision

    def noted(run: Run, device: torch.device, asked: Any) -> str:
        used.append(loaded(run, device, asked))
        return used[-1]

    monkeypatch.setattr(trained, "_precision", noted)
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
    facts = SimpleNamespace(precision=kept, device="cuda")
    begun: Any = SimpleNamespace(path="RUN", facts=facts)
    config = tiny_config(**{"runtime.precision": configured})
    assert accelerator._precision(config, CUDA, begun) == expected
    assert ("warning: RUN was begun" in capsys.readouterr().err) is (card == "T4")


def test_shard_is_refused_where_auto_is_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**{"runtime.precision": "auto", "runtime.shard": True})
    plug_in(monkeypatch, "T4")
    with pytest.raises(InputError, match=r"runtime.shard .* set runtime.precision fp32"):
        accelerator._precision(config, CUDA, None)
    plug_in(monkeypatch, "A100")
    assert accelerator._precision(config, CUDA, None) == "bf16"


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
        rng, part = np.random.default_rng(1), GlobalBatch((4,))
        images = erase_images(images, RECIPES[name], rng, part)
        images, _ = mix_images(images, torch.arange(4), 4, RECIPES[name], rng, part)
        assert images.is_contiguous(memory_format=memory)
        made.append(images)
    assert torch.equal(*made)
    assert not torch.equal(made[0].flatten(), torch.arange(4 * 3 * 16 * 16.0))


@pytest.mark.parametrize("fields", [{}, {"runtime.channels_last": False}], ids=["last", "first"])
def test_the_network_sees_images_in_the_memory_format_of_its_weights(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    seen = set()

    def looking(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        # Black images are not photos: they try out whether the network takes the size.
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3 and inputs[0].any():
            memory = torch.channels_last
            tensors = (inputs[0], module.weight)
            seen.add(tuple(one.is_contiguous(memory_format=memory) for one in tensors))

    handle = torch.nn.modules.module.register_module_forward_hook(looking)
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
    rng, part = np.random.default_rng(1), GlobalBatch((4,))
    images = erase_images(images, RECIPES[name], rng, part)
    images, targets = mix_images(images, labels, 4, RECIPES[name], rng, part)
    assert images.device.type == targets.device.type == "meta"
    assert set(moved) <= {"meta"}


# --- processors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "together", "workers"),
    [(128, 1, 16), (128, 2, 16), (128, 8, 16), (64, 8, 8), (16, 8, 2), (4, 8, 1)],
)
def test_the_processes_of_a_machine_share_its_processors_before_the_limit_of_each(
    monkeypatch: pytest.MonkeyPatch, there: int, together: int, workers: int
) -> None:
    monkeypatch.setattr("inat.loader.loader.usable_processors", lambda: there)
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
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "own")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(f"7:name=systemd:/\n{own}\n")
    assert threads.usable_processors() == usable


@pytest.fixture
def openmp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of OpenMP, four processors, no containers."""
    for name in (*threads.OF_WAITING, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setattr(threads, "usable_processors", lambda: 4)
    return monkeypatch


def openmp_settings() -> dict[str, str]:
    names = (*threads.OF_WAITING, "OMP_NUM_THREADS")
    return {name: os.environ[name] for name in names if name in os.environ}


def test_the_command_line_has_threads_sleep_while_they_wait(openmp: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    openmp.setattr("inat.__main__.take_over_streams", lambda: SimpleNamespace(error=None))
    openmp.setattr("inat.cli.app.main", lambda: seen.append(openmp_settings()) or 0)
    with pytest.raises(SystemExit):
        run_command()
    assert seen == [{"OMP_WAIT_POLICY": "passive"}]


def test_a_container_s_threads_are_no_more_than_its_share(openmp: pytest.MonkeyPatch) -> None:
    openmp.setattr(threads, "usable_processors", lambda: 2)
    threads.share_processors()
    assert openmp_settings() == {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize("name", [*threads.OF_WAITING, "OMP_NUM_THREADS"])
def test_what_the_user_says_of_threads_stays(openmp: pytest.MonkeyPatch, name: str) -> None:
    openmp.setattr(threads, "usable_processors", lambda: 2)
    openmp.setenv(name, "7")
    threads.share_processors()
    others = {"OMP_WAIT_POLICY": "passive"} if name == "OMP_NUM_THREADS" else {}
    threads_of = {} if name == "OMP_NUM_THREADS" else {"OMP_NUM_THREADS": "2"}
    assert openmp_settings() == {**others, **threads_of, name: "7"}


def test_the_library_leaves_the_environment_alone() -> None:
    told = (
        "import os; seen = lambda: [v for v in os.environ.items() if v[0][:3] in ('OMP', 'GOM')]; "
        "before = seen(); import inat.training.loop, inat.cli.app, inat.__main__; "
        "assert seen() == before"
    )
    subprocess.run([sys.executable, "-c", told], check=True, timeout=300)


# --- kernels ---------------------------------------------------------------------------------


def switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        torch.get_float32_matmul_precision(),
    )


def test_a_deterministic_training_says_so_to_cuda_before_it_starts_and_puts_all_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before, seen, real = switches(), [], accelerator.Accelerator

    def started(*arguments: Any, **options: Any) -> Any:
        seen.append(switches())
        return real(*arguments, **options)

    monkeypatch.setattr(accelerator, "Accelerator", started)
    for deterministic in (True, False):
        config = tiny_config(**{"runtime.deterministic": deterministic, "runtime.device": "cpu"})
        with accelerator.build_accelerator(config):
            assert switches() == seen[-1]
        assert switches() == before
    assert seen[0] == (False, True, True, True, False, ":4096:8", "high")
    assert seen[1] == (True, *before[1:6], "high")


def test_a_workspace_that_the_user_chose_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with fast_kernels(True, deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_predictions_soups_and_second_stages_run_with_the_kernels_of_the_training(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_tiny(tmp_path / "run", world)
    other = train_tiny(tmp_path / "other", world, seed=1)
    seen, real = [], torch.nn.Linear.forward

    def multiply(self: torch.nn.Linear, features: torch.Tensor) -> torch.Tensor:
        seen.append(switches()[0])
        return real(self, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", multiply)
    inat.predict(run.path, "test")
    inat.soup([run.path, other.path], tmp_path / "soup")
    inat.train_stage_two(run.path, tmp_path / "two", method="tau_norm", tau=1)
    assert len(seen) > 3 and all(seen)


# --- memory ----------------------------------------------------------------------------------

FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    MemoryError("Unable to allocate 3.2 GiB for an array"),
)


@pytest.mark.parametrize("error", FULL)
def test_full_memory_is_a_sentence_with_a_remedy(error: Exception) -> None:
    with pytest.raises(WorldError, match=r"^memory is full \(.*\); eat less$"):  # noqa: SIM117
        with memory_remedies("eat less"):
            raise error
    with pytest.raises(WorldError, match="memory is full"), memory_remedies("eat less"):
        torch.empty(2**50)


def test_other_errors_are_not_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), memory_remedies("eat less"):
        raise RuntimeError("shapes")


def test_every_verb_that_passes_photos_through_a_network_names_its_remedy_for_full_memory(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [train_tiny(tmp_path / f"{seed}", world, seed=seed) for seed in range(2)]
    paths = [str(run.path) for run in runs]
    (tmp_path / "a.yaml").write_text(runs[0].config.to_yaml())

    def full(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        raise FULL[1]

    monkeypatch.setattr(torch.nn.Conv2d, "forward", full)
    train = ["train", str(tmp_path / "a.yaml"), "--run", str(tmp_path / "new")]
    for words, remedy in (
        (train, "halve batch_size"),
        ([*train, "--dry-run"], "halve batch_size"),
        (["predict", paths[0]], "--batch-size than 16"),
        (["predict", paths[0], "--photos", str(world / "test2018")], "--batch-size"),
        (["soup", *paths, "--out", str(tmp_path / "soup")], "--batch-size"),
        (["stage-two", paths[0], "--method", "ncm", "--out", str(tmp_path / "ncm")],
         "--feature-batch-size"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(words) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "inat: " in line]
        assert "memory is full" in line and remedy in line, line


# --- predictions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process_batch", "expected"), [(4, 8), (None, 16), (256, 512), (1024, 512)]
)
def test_a_forward_pass_has_twice_what_a_process_of_the_training_took_and_at_most_512(
    tmp_path: Path, process_batch: int | None, expected: int
) -> None:
    run: Any = SimpleNamespace(facts=SimpleNamespace(process_batch=process_batch))
    assert trained.forward_batch(run, tiny_config()) == expected


def test_a_run_says_how_many_processes_trained_it_and_with_how_many_photos_each(
    tmp_path: Path, world: Path
) -> None:
    run = train_tiny(tmp_path / "run", world)
    assert (run.facts.world_size, run.facts.process_batch) == (1, 8)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_a_classifier_multiplies_in_float32_what_the_body_gives_in_bf16(backbone: str) -> None:
    network: Any = timm.create_model(backbone, num_classes=40).eval()
    images = torch.randn(4, 3, 96, 96) if "vit" not in backbone else torch.randn(4, 3, 160, 160)
    names, before = list(network.state_dict()), network(images)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            features = network.forward_head(network.forward_features(images), pre_logits=True)
        expected = network.get_classifier()(features.float())
    batch = {
        "image": images.permute(0, 2, 3, 1),
        "label": torch.zeros(4, dtype=torch.long),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "normalize", lambda *_, **__: images)
        ((_, logits),) = iterate_logits(
            network, [batch], n_classes=40, mean=(0.5,) * 3, std=(0.5,) * 3, precision="bf16"
        )
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, logits.bfloat16().float())
    assert torch.equal(network(images), before) and list(network.state_dict()) == names


def test_both_classifiers_of_a_distilled_network_multiply_in_float32() -> None:
    network = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2,
        num_classes=5,
    ).eval()  # fmt: skip
    with classifiers_in_float32(network), torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(2, 3, 32, 32)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(2, 3, 32, 32)).dtype == torch.bfloat16


def test_a_prediction_made_one_batch_late_as_on_a_gpu_is_the_same_byte_for_byte(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_tiny(tmp_path / "run", world)
    monkeypatch.setattr("inat.predictions.predict.PART_IMAGES", 4)
    order: list[str] = []
    sent, landed = forward._sent, forward._landed
    monkeypatch.setattr(forward, "_sent", lambda x: order.append("sent") or sent(x))
    monkeypatch.setattr(forward, "_landed", lambda *x: order.append("landed") or landed(*x))
    made = {}
    for late in (0, 1):
        monkeypatch.setattr(forward, "batches_late", lambda device, late=late: late)
        order.clear()
        made[late] = inat.predict(run.path, "test", name=f"late-{late}", batch_size=2)
        # Four parts of two batches; none is worked on before the one before is whole.
        part = ["sent", "landed"] * 2 if not late else ["sent", "sent", "landed", "landed"]
        assert order == part * 2
    assert made[0].logits.tobytes() == made[1].logits.tobytes()
    assert made[0].ids.tolist() == made[1].ids.tolist()

"""What a step must not do: wait for the device; and what compiling must not change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inat.config.reading import build, merge
from inat.core.errors import InputError
from inat.training.accelerator import build_accelerator
from inat.training.checkpoint import LoopState
from inat.training.plan import make_plan
from inat.training.step import accumulated, take_step
from inat.training.trainer import Trainer, build_trainer

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "data.workers": 0,
    "data.holdout": "none",
    "transforms.image_size": 32,
    "model.backbone": "test_efficientnet",
    "model.weights": "none",
    "runtime.precision": "fp32",
    # AdamW reads its own count of steps, which lies on the host; SGD has none.
    "optim.name": "sgd",
}

EVERYTHING = {
    "transforms.mixup": 0.4, "transforms.cutmix": 1.0, "transforms.erasing": 0.5,
    "transforms.cutout": 8, "optim.clip_grad_norm": 1.0, "optim.ema_decay": 0.9,
    "optim.accumulate": 2, "model.dropout": 0.2, "model.drop_path": 0.1,
}  # fmt: skip

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "bincount")


class WaitsForTheDevice(AssertionError):
    """An operation whose result, or its shape, must come back to the host."""


class Watch(TorchDispatchMode):
    """Refuses operations that make the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or masked:
            raise WaitsForTheDevice(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def trainer_of(world: Path, **settings: Any) -> Iterator[Trainer]:
    config = build(merge({}, {**SETTINGS, "data.root": str(world), **settings}), "test")
    with build_accelerator(config) as (accelerator, precision):
        trainer = build_trainer(make_plan(config), accelerator, precision)
        trainer.network.train()
        yield trainer


def losses(trainer: Trainer) -> list[float]:
    state, found = LoopState(), []
    for batches, _ in accumulated(trainer):
        found.append(take_step(trainer, batches, state).loss.item())
        state.step += 1
    return found


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        EVERYTHING,
        {"loss.name": "seesaw"},
        {"loss.name": "focal", "loss.class_weights": "effective_number"},
        {"loss.name": "ldam", "model.head": "cosine"},
        {"loss.name": "balanced_bce", "transforms.mixup": 0.4},
    ],
    ids=["plain", "everything", "seesaw", "focal", "ldam", "balanced_bce"],
)
def test_a_step_does_not_wait_for_the_device(world: Path, recipe: dict[str, Any]) -> None:
    with trainer_of(world, **recipe) as trainer:
        batches, _ = next(accumulated(trainer))
        with Watch():
            take_step(trainer, batches, LoopState())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_finds_nothing_to_wait_for_in_a_step(world: Path) -> None:
    with trainer_of(world, **EVERYTHING) as trainer:
        batches, _ = next(accumulated(trainer))
        take_step(trainer, batches, LoopState())  # cuDNN and cuBLAS set themselves up
        torch.cuda.set_sync_debug_mode("error")
        try:
            take_step(trainer, batches, LoopState(step=1))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), x.new_ones(())),
    ],
)
def test_the_watch_sees_what_waits(wait: Any) -> None:
    with pytest.raises(WaitsForTheDevice), Watch():
        wait(torch.randn(4))


def test_a_compiled_network_has_the_same_losses(world: Path) -> None:
    with trainer_of(world) as trainer:
        plain = losses(trainer)
    with pytest.MonkeyPatch.context() as patch:
        # Tracing alone: inductor needs a compiler, and a minute.
        compiled = torch.compile
        patch.setattr(
            torch,
            "compile",
            lambda network, **options: compiled(network, backend="aot_eager", **options),
        )
        with trainer_of(world, **{"runtime.compile": True}) as trainer:
            assert isinstance(trainer.network, torch._dynamo.OptimizedModule)
            assert losses(trainer) == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("optim.ema_decay", 0.9, "optim.ema_decay"),
        ("runtime.precision", "fp16", "runtime.precision fp16"),
        ("stages", ["{epochs: 1}"], "stages"),
    ],
)
def test_what_does_not_go_with_sharded_weights_is_named(
    field: str, value: object, named: str
) -> None:
    with pytest.raises(InputError) as told:
        build(merge({}, {"runtime.shard": True, field: value}), "test")
    assert str(told.value) == (
        f"test: runtime.shard spreads the weights over processes, which {named} cannot go "
        f"with; set runtime.shard false, or leave {named} away"
    )

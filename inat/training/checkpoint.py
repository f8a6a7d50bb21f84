"""Checkpoints: safetensors for tensors, JSON for the rest, a folder put in place as a whole."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from inat.errors import InputError
from inat.files import atomic_folder, read_json, write_json


@dataclass
class LoopState:
    """Where the training loop stands.

    Attributes:
        epoch: whole epochs behind us.
        step: optimiser steps behind us.
        first_step: those behind us when the stage of the last epoch began.
        best_score: best mean class accuracy on the held-out part in this stage, None before the
            first.
        metrics_bytes: length of metrics.jsonl; a resume cuts it there.
    """

    epoch: int = 0
    step: int = 0
    first_step: int = 0
    best_score: float | None = None
    metrics_bytes: int = 0

    @property
    def stage_step(self) -> int:
        """Optimiser steps of the stage behind us."""
        return self.step - self.first_step


def save_checkpoint(
    folder: Path,
    state: LoopState,
    network: nn.Module,
    ema: nn.Module | None,
    optimizer: Optimizer,
    loss: nn.Module | None = None,
) -> None:
    """Writes a checkpoint; the one that was there is replaced only by a whole one."""
    tensors, rest = _split_optimizer(optimizer)
    memory = {} if loss is None else loss.state_dict()
    with atomic_folder(folder) as partial:
        save_file(_owned(network.state_dict()), partial / "model.safetensors")
        if ema is not None:
            save_file(_owned(ema.state_dict()), partial / "ema.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
        if memory:  # what a loss has seen so far, as seesaw's counts
            save_file(_owned(memory), partial / "loss.safetensors")
        write_json(partial / "optimizer.json", rest)
        write_json(partial / "state.json", asdict(state))


def read_state(folder: Path) -> LoopState:
    """Where the loop stood when the checkpoint was written.

    Raises:
        InputError: state.json is missing or says something else.
    """
    path = folder / "state.json"
    try:
        return msgspec.convert(read_json(path), LoopState)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: no state of a training ({error}); train anew") from None


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    ema: nn.Module | None,
    optimizer: Optimizer,
    loss: nn.Module | None = None,
) -> LoopState:
    """Puts a checkpoint back into network, average, optimiser and loss, and gives the loop's
    state.

    Raises:
        InputError: the folder is no whole checkpoint.
    """
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
        if ema is not None:
            ema.load_state_dict(load_file(folder / "ema.safetensors"))
        if loss is not None and loss.state_dict():
            loss.load_state_dict(load_file(folder / "loss.safetensors"))
        tensors = load_file(folder / "optimizer.safetensors")
        rest = read_json(folder / "optimizer.json")
        optimizer.load_state_dict(_joined_optimizer(tensors, rest))
        return read_state(folder)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no whole checkpoint ({str(error).splitlines()[0]:.120}); "
            "train with --overwrite"
        ) from None


def _owned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors stores rows as they lie; channels_last weights are laid out anew.
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors named `<parameter>.<entry>`, and the rest as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _joined_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["numbers"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}

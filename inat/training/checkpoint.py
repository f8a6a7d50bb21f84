"""Checkpoints: safetensors for tensors, JSON for the rest, a folder put in place as a whole."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from inat.errors import InputError
from inat.files import atomic_folder, read_json, write_json
from inat.training.processes import like, whole


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
    *,
    writes: bool = True,
) -> None:
    """Writes a checkpoint; the one that was there is replaced only by a whole one.

    Where the weights are sharded all processes call it, since the whole is gathered from all; one
    of them `writes`.
    """
    tensors, rest = _split_optimizer(optimizer)
    memory = {} if loss is None else loss.state_dict()
    weights = _owned(network.state_dict())
    if not writes:
        return
    with atomic_folder(folder) as partial:
        save_file(weights, partial / "model.safetensors")
        if ema is not None:
            save_file(_owned(ema.state_dict()), partial / "ema.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
        if memory:  # what a loss has seen so far, as seesaw's counts
            save_file(_owned(memory), partial / "loss.safetensors")
        write_json(partial / "optimizer.json", rest)
        write_json(partial / "state.json", asdict(state))


def read_state(folder: Path) -> LoopState:
    """Where the loop stood when the checkpoint was written."""
    return LoopState(**read_json(folder / "state.json"))


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
        weights, own = load_file(folder / "model.safetensors"), network.state_dict()
        network.load_state_dict({name: like(weights[name], own[name]) for name in weights})
        if ema is not None:
            ema.load_state_dict(load_file(folder / "ema.safetensors"))
        if loss is not None and loss.state_dict():
            loss.load_state_dict(load_file(folder / "loss.safetensors"))
        tensors = load_file(folder / "optimizer.safetensors")
        rest = read_json(folder / "optimizer.json")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        tensors = {key: _like_its(tensor, key, parameters) for key, tensor in tensors.items()}
        optimizer.load_state_dict(_joined_optimizer(tensors, rest))
        return read_state(folder)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no whole checkpoint ({str(error).splitlines()[0]:.120}); "
            "train with --overwrite"
        ) from None


def _owned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors stores rows as they lie; channels_last weights are laid out anew.
    return {name: whole(tensor).detach().cpu().contiguous() for name, tensor in state.items()}


def _split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors named `<parameter>.<entry>`, and the rest as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = whole(value).detach().cpu().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _like_its(tensor: Tensor, key: str, parameters: list[nn.Parameter]) -> Tensor:
    """An entry `<parameter>.<entry>`, sharded as its parameter where it is of its shape."""
    parameter = parameters[int(key.partition(".")[0])]
    return like(tensor, parameter) if tensor.shape == parameter.shape else tensor


def _joined_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["numbers"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}

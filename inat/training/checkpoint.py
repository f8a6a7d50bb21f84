"""Checkpoints: safetensors for tensors, JSON for the rest, a folder put in place as a whole."""

import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from inat.core.errors import InputError
from inat.core.files import (
    CHECKSUMS,
    atomic_folder,
    damaged_files,
    read_json,
    remove_leftovers,
    sha256,
    write_checksums,
    write_json,
)
from inat.core.progress import first_few, say
from inat.runs.facts import WeightsFacts
from inat.training.processes import by_first, is_sharded, like, whole

CHOSEN_ON = "mean class accuracy on the held-out part of train"
"""What the best epoch, the runs of a greedy soup and a searched tau are chosen by."""


@dataclass
class LoopState:
    """Where the training loop stands.

    Attributes:
        epoch: whole epochs behind us, validated.
        step: optimiser steps behind us.
        first_step: those behind us when the stage of the last epoch began.
        average_began: those behind us when the moving average of the weights began.
        best_score: best mean class accuracy on the held-out part in this stage, None before the
            first.
        batches: the loader's batches behind us in the epoch that is under way.
        draws: the draws of all processes behind us in it.
        losses: of the steps since the last line of metrics.jsonl.
        metrics_bytes: length of metrics.jsonl; a resume cuts it there.
        loss_scale: state of float16's scaler, None without one.
        shows_prior: whether held-out photos have shown that the logits carry the stage's prior.
        weights: what is known about the weights.
    """

    epoch: int = 0
    step: int = 0
    first_step: int = 0
    average_began: int = 0
    best_score: float | None = None
    batches: int = 0
    draws: int = 0
    losses: list[float] = field(default_factory=list)
    metrics_bytes: int = 0
    loss_scale: dict[str, Any] | None = None
    shows_prior: bool = False
    weights: WeightsFacts = field(default_factory=WeightsFacts)

    @property
    def stage_step(self) -> int:
        """Optimiser steps of the stage behind us."""
        return self.step - self.first_step

    @property
    def begun_epochs(self) -> int:
        """Epochs that have begun, the one under way included."""
        return self.epoch + (self.batches > 0)


def save_checkpoint(
    folder: Path,
    state: LoopState,
    network: nn.Module,
    ema: nn.Module | None,
    optimizer: Optimizer,
    loss: nn.Module | None = None,
    *,
    keep: Path | None = None,
    best: Path | None = None,
) -> None:
    """Writes a checkpoint; the one that was there is replaced only by a whole one, and goes to
    `keep` if that is given. `best` gets the same weights, without the optimizer's state.

    All processes call it: sharded weights are gathered from all, one writes, and none goes on
    before that is done.
    """

    def contents() -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        parts = {"model": network, "ema": ema, "loss": loss}
        states = {name: {} if part is None else part.state_dict() for name, part in parts.items()}
        of_optimizer, rest = _split_optimizer(optimizer)
        tensors = {name: _owned(state) for name, state in states.items()}
        return {**tensors, "optimizer": of_optimizer}, rest

    gathered = contents() if is_sharded(network) else None
    by_first(lambda: _write_checkpoint(folder, state, *(gathered or contents()), keep, best))


def _write_checkpoint(
    folder: Path,
    state: LoopState,
    tensors: dict[str, dict[str, Tensor]],
    rest_of_optimizer: dict[str, Any],
    keep: Path | None,
    best: Path | None,
) -> None:
    with atomic_folder(folder, keep=keep) as partial:
        for name, of_part in tensors.items():
            if of_part or name == "optimizer":  # few losses remember anything, as seesaw its counts
                save_file(of_part, partial / f"{name}.safetensors")
        write_json(partial / "optimizer.json", rest_of_optimizer)
        write_json(partial / "state.json", asdict(state))
        write_checksums(partial)
        if best is not None:  # before: a last that knows the best score must never stand alone
            _write_best(best, partial, state)


def _write_best(best: Path, written: Path, state: LoopState) -> None:
    """The weights of a checkpoint that was just written, by hard links where the disk has them."""
    facts = replace(state.weights, chosen={"epoch": CHOSEN_ON})
    sums = read_json(written / CHECKSUMS)
    with atomic_folder(best) as partial:
        for name in ("model.safetensors", "ema.safetensors"):
            if name in sums:
                _link(written / name, partial / name)
        write_json(partial / "state.json", asdict(replace(state, weights=facts)))
        linked = {name: sums[name] for name in sums if (partial / name).is_file()}
        state_sum = {"state.json": sha256(partial / "state.json")}
        write_json(partial / CHECKSUMS, linked | state_sum)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # exFAT and some network disks have none
        shutil.copyfile(source, target)


def settle_checkpoints(last: Path, before: Path) -> bool:
    """Makes `last` the newest whole checkpoint, and says so where that is the one before it.

    For those who know that nobody else writes there now.

    Returns:
        Whether there is a checkpoint.

    Raises:
        InputError: there are some, and each is damaged.
    """
    for folder in (last, before):
        remove_leftovers(folder)
    there = [folder for folder in (last, before) if folder.is_dir()]
    faults = {folder: damaged_files(folder) for folder in there}
    whole = [folder for folder in there if not faults[folder]]
    told = "; ".join(
        f"{folder}: {first_few(files)} damaged" for folder, files in faults.items() if files
    )
    if there and not whole:
        raise InputError(f"{told}; no checkpoint is whole: train with --overwrite")
    if whole and whole[0] != last:
        say(f"warning: {told or f'{last}: missing'}; going on from the checkpoint before it")
        shutil.rmtree(last, ignore_errors=True)
        before.replace(last)
    return bool(whole)


def read_state(folder: Path) -> LoopState:
    """Where the loop stood when the checkpoint was written.

    Raises:
        InputError: state.json is missing or says something else.
    """
    path = folder / "state.json"
    told = read_json(path)
    if not isinstance(told, dict) or told.keys() != {each.name for each in fields(LoopState)}:
        raise InputError(
            f"{path}: not the state of a training (its fields are not those of this version); "
            "train again"
        )
    try:
        return msgspec.convert(told, LoopState)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: not the state of a training ({error}); train again") from None


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
    """An entry `<parameter>.<entry>`, sharded and laid out in memory as its parameter where it is
    of its shape: fused and foreach optimisers are fast where both lie alike."""
    parameter = parameters[int(key.partition(".")[0])]
    if tensor.shape != parameter.shape:
        return tensor
    if isinstance(parameter, DTensor):
        return like(tensor, parameter)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _joined_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest["numbers"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}

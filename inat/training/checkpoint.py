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
    sha256,
    write_checksums,
    write_json,
)
from inat.core.progress import first_few
from inat.runs.facts import WeightsFacts
from inat.training.processes import full_tensor, is_sharded, on_rank_zero, shard_like

CHOSEN_ON = "mean class accuracy on the held-out part of train"
"""What the best epoch, the runs of a greedy soup and a searched tau are chosen by."""


@dataclass
class LoopState:
    """Where the training loop stands."""

    epoch: int = 0  # whole epochs behind us, validated
    step: int = 0
    first_step: int = 0  # those behind us when the stage of the last epoch began
    average_began: int = 0  # those behind us when the moving average of the weights began
    best_score: float | None = None  # held-out mean class accuracy in this stage
    batches: int = 0  # the loader's batches behind us in the epoch that is under way
    draws: int = 0  # the draws of all processes behind us in it
    losses: list[float] = field(default_factory=list)  # since the last log line
    metrics_bytes: int = 0  # length of metrics.jsonl; a resume cuts it there
    loss_scale: dict[str, Any] | None = None  # state of float16's scaler, None without one
    shows_prior: bool = False  # held-out photos showed that the logits carry the stage's prior
    weights: WeightsFacts = field(default_factory=WeightsFacts)

    def begin_stage(self, *, begins_average: bool) -> None:
        """Starts a stage; "best" is best of a stage: priors and sizes differ between stages."""
        self.first_step, self.best_score, self.shows_prior = self.step, None, False
        if begins_average:
            self.average_began = self.step

    def improves(self, score: float) -> bool:
        """Whether a validation's score is the best of the stage so far; if so, notes it."""
        if self.best_score is not None and score <= self.best_score:
            return False
        self.best_score = score
        return True

    @property
    def begun_epochs(self) -> int:
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
        modules = {"model": network, "ema": ema, "loss": loss}
        tensors = {
            name: {key: _owned(tensor) for key, tensor in module.state_dict().items()}
            for name, module in modules.items()
            if module is not None
        }
        tensors["optimizer"], rest = _split_optimizer(optimizer)
        return tensors, rest

    def write() -> None:
        tensors, rest = gathered or contents()
        with atomic_folder(folder, keep=keep) as partial:
            for name, of_part in tensors.items():
                # Few losses remember anything, as seesaw its counts.
                if of_part or name == "optimizer":
                    save_file(of_part, partial / f"{name}.safetensors")
            write_json(partial / "optimizer.json", rest)
            write_json(partial / "state.json", asdict(state))
            write_checksums(partial)
            if best is not None:  # before: a last that knows the best score must never stand alone
                _write_best(best, partial, state)

    gathered = contents() if is_sharded(network) else None  # by all processes together
    on_rank_zero(write)


def _write_best(best: Path, written: Path, state: LoopState) -> None:
    """Hard links where the disk has them."""
    facts = replace(state.weights, chosen={"epoch": CHOSEN_ON})
    sums = read_json(written / CHECKSUMS)
    with atomic_folder(best) as partial:
        for name in ("model.safetensors", "ema.safetensors"):
            if name in sums:
                try:
                    (partial / name).hardlink_to(written / name)
                except OSError:  # exFAT and some network disks have none
                    shutil.copyfile(written / name, partial / name)
        write_json(partial / "state.json", asdict(replace(state, weights=facts)))
        linked = {name: sums[name] for name in sums if (partial / name).is_file()}
        state_sum = {"state.json": sha256(partial / "state.json")}
        write_json(partial / CHECKSUMS, linked | state_sum)


def newest_checkpoint(last: Path, before: Path) -> tuple[Path | None, str]:
    """The newer intact one of two checkpoints, and what is damaged; None if there is none."""
    there = [folder for folder in (last, before) if folder.is_dir()]
    faults = {folder: damaged_files(folder) for folder in there}
    damage = "; ".join(
        f"{folder}: {first_few(files)} damaged" for folder, files in faults.items() if files
    )
    whole = [folder for folder in there if not faults[folder]]
    if there and not whole:
        raise InputError(f"{damage}; no checkpoint is whole: train with --overwrite")
    return (whole[0] if whole else None), damage


def read_state(folder: Path) -> LoopState:
    path = folder / "state.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() != {each.name for each in fields(LoopState)}:
        raise InputError(
            f"{path}: not the state of a training (its fields are not those of this version); "
            "train again"
        )
    try:
        return msgspec.convert(content, LoopState)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: not the state of a training ({error}); train again") from None


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    ema: nn.Module | None,
    optimizer: Optimizer,
    loss: nn.Module | None = None,
) -> LoopState:
    """Loads a checkpoint into network, average, optimizer and loss; returns the loop's state."""
    try:
        weights, own = load_file(folder / "model.safetensors"), network.state_dict()
        network.load_state_dict({name: shard_like(weights[name], own[name]) for name in weights})
        if ema is not None:
            ema.load_state_dict(load_file(folder / "ema.safetensors"))
        if loss is not None and loss.state_dict():
            loss.load_state_dict(load_file(folder / "loss.safetensors"))
        tensors = load_file(folder / "optimizer.safetensors")
        rest = read_json(folder / "optimizer.json")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        tensors = {key: _like_its(tensor, key, parameters) for key, tensor in tensors.items()}
        entries: dict[int, dict[str, Any]] = {}
        for key, value in {**tensors, **rest["numbers"]}.items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": entries, "param_groups": rest["param_groups"]})
        return read_state(folder)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no whole checkpoint ({str(error).splitlines()[0]:.120}); "
            "train with --overwrite"
        ) from None


def _owned(tensor: Tensor) -> Tensor:
    # safetensors stores rows as they lie in memory, and channels_last weights lie otherwise.
    return full_tensor(tensor).detach().cpu().contiguous()


def _split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors named `<parameter>.<entry>`, and the rest as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = _owned(value)
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
        return shard_like(tensor, parameter)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)

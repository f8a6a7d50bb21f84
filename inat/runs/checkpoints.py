"""The checkpoints of a run: finding them, reading their weights, writing weights alone."""

import hashlib
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from inat.config.schema import CheckpointName, Config, Weights
from inat.core.errors import InputError, WorldError, one_line
from inat.core.files import (
    CHECKSUMS,
    atomic_file,
    open_file,
    read_file,
    read_json,
    to_plain,
    write_checksums,
    write_json,
)
from inat.models.device import device_facts
from inat.models.weights import LARGEST_WEIGHTS
from inat.runs.facts import (
    CheckpointFacts,
    RunFacts,
    WeightsFacts,
    read_checkpoint_facts,
    refuse_other_priors,
    write_run_facts,
)
from inat.runs.run import Run, create_run

TRIES = 5
"""Times that a checkpoint is opened again because a training put another in its place."""


class _OpenFile:
    """A file that can still be read after a training has put another in its place."""

    def __init__(self, path: Path) -> None:
        with open_file(path, LARGEST_WEIGHTS) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def read(self) -> bytes:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            return file.read()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found; its weights are read later, by `load_weights`."""

    name: CheckpointName  # last or best
    weights: Literal["ema", "raw"]  # ema (moving average) or raw
    path: Path  # the weights' file
    epoch: int  # epochs that were trained; of one that was under way, its number
    facts: WeightsFacts  # what it states about its weights
    digest: str  # SHA-256 that the weights' file has by checksums.json
    file: _OpenFile  # the weights' file, open

    @property
    def chosen(self) -> dict[str, str]:
        """What was chosen on the held-out photos to get here; empty for the last of a training."""
        return self.facts.chosen

    def config(self, run_config: Config) -> Config:
        return run_config.stage(self.facts.stage).config

    def load_weights(self) -> Mapping[str, Tensor]:
        """The weights: those of exactly the bytes that have the digest."""
        content = self.file.read()
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise _damaged(self.path)
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
        except SafetensorError as error:
            raise InputError(f"{self.path}: not weights ({one_line(error):.160})") from None
        return tensors


def find_checkpoint(
    run: Run, name: CheckpointName = "last", weights: Weights = "auto"
) -> Checkpoint:
    """The checkpoint of that name; auto takes the moving average where the run kept one. Raises
    WorldError where a training keeps replacing it."""
    if name == "best" and run.config.data.holdout == "none":
        raise InputError(
            f"{run.path}: there is no best checkpoint, since data.holdout none validates nothing; "
            "use --checkpoint last, or train with data.holdout 0.2"
        )
    if name == "best" and run.made_by != "inat train":
        raise InputError(
            f"{run.path}: {run.made_by} leaves no best checkpoint; use --checkpoint last"
        )
    folder = run.checkpoint(name)
    if not folder.is_dir():
        raise InputError(f"{run.path}: there is no checkpoint {name}; let an epoch end")
    for _ in range(TRIES):
        sums = _checksums(folder)
        try:
            found = _open(run, name, weights, sums)
            fault = None
        except (InputError, FileNotFoundError) as error:
            fault = error
        # A training that puts the next checkpoint in place meanwhile must not pair the facts of
        # one with the weights of the other.
        if _checksums(folder) != sums:
            continue
        if isinstance(fault, FileNotFoundError):
            raise _damaged(Path(fault.filename))
        if fault is not None:
            raise fault
        return found
    raise WorldError(f"{folder}: a training replaces it all the time; run the command again")


def _checksums(folder: Path) -> dict[str, str]:
    sums = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else None
    if not isinstance(sums, dict):
        raise InputError(
            f"{folder / CHECKSUMS}: missing or damaged, so nothing tells whether the weights are "
            "whole; take another checkpoint, or make the run again"
        )
    return sums


def _open(run: Run, name: CheckpointName, weights: Weights, sums: Mapping[str, str]) -> Checkpoint:
    folder = run.checkpoint(name)
    has_ema = "ema.safetensors" in sums
    if weights == "ema" and not has_ema:
        raise InputError(f"{run.path}: no moving average was kept (optim.ema_decay was off)")
    kind: Literal["ema", "raw"] = "ema" if has_ema and weights != "raw" else "raw"
    path = folder / ("ema.safetensors" if kind == "ema" else "model.safetensors")
    file = _OpenFile(path)
    place = folder / "state.json"
    content = read_file(place)
    if hashlib.sha256(content).hexdigest() != sums.get(place.name):
        raise _damaged(place)
    state = read_checkpoint_facts(place, content)
    refuse_other_priors(state.weights, place, len(run.facts.category_ids))
    return Checkpoint(
        name=name,
        weights=kind,
        path=path,
        epoch=state.epoch + bool(state.batches),
        facts=state.weights,
        digest=sums.get(path.name, ""),
        file=file,
    )


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged, it is not what {CHECKSUMS} says; take another checkpoint, copy the "
        "run again, or make it again"
    )


def write_trained_run(
    folder: Path,
    config: Config,
    network: nn.Module,
    *,
    source: Run,
    facts: RunFacts,
    state: CheckpointFacts,
) -> None:
    """Writes a run of weights alone, to predict with, into an empty folder; its species are
    `source`'s."""
    run = create_run(folder, config, device_facts())
    with atomic_file(folder / "species.parquet") as partial:
        source.species.to_parquet(partial, index=False)
    write_run_facts(folder, facts)
    last = run.checkpoint("last")
    last.mkdir(parents=True)
    # safetensors stores rows as they lie in memory, and channels_last weights lie otherwise.
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    safetensors.torch.save_file(tensors, last / "model.safetensors")
    write_json(last / "state.json", to_plain(state))
    write_checksums(last)

"""Trainings of a tiny network on a tiny world, done in a moment, and what they leave."""

from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file

import inat
from inat.config.reading import build
from inat.config.schema import CheckpointName, Config
from inat.config.values import merge
from inat.core.files import read_json, write_checksums, write_json
from inat.runs.checkpoints import find_checkpoint
from inat.runs.facts import WeightsFacts
from inat.runs.run import Run

TINY: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "data.workers": 0,
    "data.holdout": "0.3",
    "transforms.image_size": 32,
    "model.backbone": "test_efficientnet",
    "model.weights": "none",
    "optim.warmup_epochs": 0.5,
    "runtime.precision": "fp32",
}
"""The dotted fields of a training of a moment."""


def tiny_config(**settings: Any) -> Config:
    """The config of such a training, with other fields laid over it."""
    return build(merge({}, {**TINY, **settings}), "test")


def train_tiny(run: Path, world: Path, *, resume: bool = False, **settings: Any) -> Run:
    """Trains what `tiny_config` says on a world, into the folder `run`."""
    config = tiny_config(**{"data.root": world, **settings})
    return inat.train(config, run, resume=resume)


def weights(run: Run, name: str = "last", kind: str = "model") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: of the `model`, its moving average `ema`, the `optimizer`."""
    return load_file(run.checkpoint(name) / f"{kind}.safetensors")


def weights_facts(run: Run, name: CheckpointName = "last") -> WeightsFacts:
    """What a checkpoint states about its weights."""
    return find_checkpoint(run, name).facts


def restate(run: Run, **changed: Any) -> None:
    """Lets the last checkpoint of a run state other facts about its weights."""
    folder = run.checkpoint("last")
    state = read_json(folder / "state.json")
    (folder / "checksums.json").unlink()
    write_json(folder / "state.json", state | {"weights": state["weights"] | changed})
    write_checksums(folder)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether names and bits are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def log_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    lines = [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    clock = ("time", "images_per_second", "waiting_share")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]

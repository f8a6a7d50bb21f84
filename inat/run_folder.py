"""A run: the folder `runs/<name>/` with all that a training leaves behind."""

import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inat.binary_files import read_table
from inat.config import CheckpointName, Config
from inat.config_files import build, read_yaml
from inat.config_values import merge
from inat.errors import InputError
from inat.files import read_json, write_bytes, write_json
from inat.prediction_file import SPECIES
from inat.priors import Prior, count_prior

NUMBERS = ("mean", "std", "category_ids", "draws_prior")
"""Lists of numbers in model.json; the prior may be null, where it is not known."""

PACKAGES = ("torch", "timm", "numpy", "albumentations", "simplejpeg", "opencv-python-headless")


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        path: the folder; config.yaml, environment.json, model.json, species.parquet,
            metrics.jsonl, checkpoints/ and predictions/ lie in it.
    """

    path: Path

    @cached_property
    def config(self) -> Config:
        """The resolved config that the run was made with."""
        path = self.path / "config.yaml"
        return build(read_yaml(path), str(path))

    @cached_property
    def model(self) -> dict[str, Any]:
        """What prediction needs besides the weights: backbone, mean, std, category_ids,
        draws_prior, logits_prior, weights_source."""
        return _checked_facts(self.path / "model.json")

    @cached_property
    def species(self) -> pd.DataFrame:
        """A row a label: category_id, name, lineage, train_count."""
        return read_table(self.path / "species.parquet", "train again", SPECIES)

    @property
    def draws_prior(self) -> Prior:
        """The class prior of the draws that the run was trained on; that of the photo counts
        where the draws changed during training."""
        prior = self.model["draws_prior"]
        if prior is None:
            return count_prior(self.species["train_count"].to_numpy(np.int64))
        return np.array(prior, np.float64)

    @property
    def is_geo_prior(self) -> bool:
        """Whether it knows places and dates alone, and looks at no photo."""
        return bool(self.model.get("stage_two", {}).get("method") == "geo_prior")

    @property
    def made_by(self) -> str:
        """The verb that made it."""
        verbs = {"soup": "inat soup", "stage_two": "inat stage-two"}
        return next((verb for key, verb in verbs.items() if key in self.model), "inat train")

    def checkpoint(self, name: CheckpointName) -> Path:
        """The folder of a checkpoint."""
        return self.path / "checkpoints" / name

    @property
    def checkpoint_before(self) -> Path:
        """The folder of the checkpoint before the last, for the case that the last is damaged."""
        return self.path / "checkpoints" / "previous"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: training steps and validations."""
        return self.path / "metrics.jsonl"

    def prediction(self, name: str) -> Path:
        """The folder of a prediction file."""
        return self.path / "predictions" / name


def _checked_facts(path: Path) -> dict[str, Any]:
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise InputError(f"{path}: no facts of a model (a JSON object); train again")
    for key in NUMBERS:
        values = facts.get(key, "")
        if values is None and key == "draws_prior":
            continue
        if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
            raise InputError(f"{path}: '{key}' is no list of numbers; train again")
    for key in ("precision", "device", "trained"):
        if not isinstance(facts.get(key), str):
            raise InputError(f"{path}: '{key}' is no text; train again")
    return facts


def read_epoch(path: Path, *, begun: bool = False) -> int:
    """Epochs that were trained, as the state.json of a checkpoint says.

    Args:
        path: the state.json.
        begun: count one that is not whole, too.

    Raises:
        InputError: it does not.
    """
    state = read_json(path)
    if not isinstance(state, dict) or type(state.get("epoch")) is not int:
        raise InputError(f"{path}: does not say 'epoch'; train again")
    return int(state["epoch"]) + (begun and bool(state.get("batches")))


def open_run(path: Path | str) -> Run:
    """Opens a run that was trained.

    Raises:
        InputError: there is no run, or it has no checkpoint yet.
    """
    run = Run(Path(path))
    if not is_run(run.path) and is_run(run.path / "fold_1"):
        raise InputError(f"{run.path}: holds the runs of folds; give one, {run.path / 'fold_1'}")
    if not is_run(run.path):
        raise InputError(f"{run.path}: no run (no config.yaml in it); inat train makes one")
    if not run.checkpoint("last").is_dir():
        raise InputError(f"{run.path}: the run has no checkpoint yet; let its first epoch end")
    return run


def is_run(path: Path) -> bool:
    """Whether the folder is one that `create_run` made."""
    return all((path / name).is_file() for name in ("config.yaml", "environment.json"))


def refuse_run_place(out: Path, sources: Sequence[Run], *, overwrite: bool) -> None:
    """Stops where a run that is made from `sources` must not be put.

    Raises:
        InputError: `out` is or holds one of them, holds anything but a run, or holds a run that
            may not be overwritten.
    """
    for source in sources:
        if source.path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds the run {source.path}; give another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_run(out):
        raise InputError(f"{out}: it is not empty and holds no run; give another --out")
    if not overwrite:
        raise InputError(
            f"{out}: there is a run already; give another --out, or --overwrite to throw it away"
        )


def create_run(path: Path, config: Config, devices: Mapping[str, Any] | None = None) -> Run:
    """Makes the folder of a new run and writes its config and environment, with what is known of
    its devices."""
    write_bytes(path / "config.yaml", config.to_yaml().encode())
    write_json(path / "environment.json", {**environment(), **(devices or {})})
    return Run(path)


def environment() -> dict[str, Any]:
    """What the run was made with: versions, machine and command."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
        "command": sys.argv,
    }


def versions() -> dict[str, str]:
    """Versions of the kit and of the packages that change its results."""
    found = {}
    for package in ("inat", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differing_fields(first: Config, second: Config) -> list[str]:
    """The dotted names of the fields in which two configs differ."""
    one, other = _flat(first.to_dict()), _flat(second.to_dict())
    return [name for name in one if one[name] != other[name]]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def with_root(config: Config, root: Path | str | None) -> Config:
    """The config with another data root, for a run whose data has moved."""
    if root is None:
        return config
    return build(merge(config.to_dict(), {"data.root": str(root)}), "data.root")

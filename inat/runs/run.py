"""A run: the folder `runs/<name>/` with all that a training leaves behind."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import numpy as np
import pandas as pd

from inat.config.reading import build, read_yaml
from inat.config.schema import CheckpointName, Config
from inat.config.values import merge
from inat.core.arrays import read_species
from inat.core.errors import InputError
from inat.core.files import (
    atomic_file,
    atomic_folder,
    locked,
    read_json,
    read_json_as,
    write_bytes,
    write_json,
)

MOST_PIXELS = 4096
"""Of a side that a network was trained at."""

PACKAGES = ("torch", "timm", "numpy", "albumentations", "simplejpeg", "opencv-python-headless")


@dataclass(frozen=True, kw_only=True)
class WeightsFacts:
    """What a checkpoint states about its own weights, in its state.json.

    It lies beside the weights and under their checksums, so the two always belong together: the
    stages of a training differ in all of it.

    Attributes:
        stage: of the training, counted from 1.
        image_size: in pixels, that the network was trained at; None: what the config says.
        draws_prior: class prior of the draws; None where it changes during training.
        logits_prior: class prior that the logits carry; None where it is not known.
        chosen: what was chosen on the held-out photos to get here, and by what.
    """

    stage: int = 1
    image_size: Annotated[int, msgspec.Meta(ge=1, le=MOST_PIXELS)] | None = None
    draws_prior: list[float] | None = None
    logits_prior: list[float] | None = None
    chosen: dict[str, str] = field(default_factory=dict)


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
        """What all checkpoints have in common: backbone, mean, std, category_ids,
        weights_source. What differs between them is in their `WeightsFacts`."""
        return _checked_facts(self.path / "model.json")

    @cached_property
    def species(self) -> pd.DataFrame:
        """A row a label: category_id, name, lineage, train_count."""
        return read_species(self.path / "species.parquet", "train again")

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

    def read_stamp(self) -> bytes:
        """What tells this run from any other that is put in its place; empty where none is."""
        path = self.path / "environment.json"
        return path.read_bytes() if path.is_file() else b""

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: training steps and validations."""
        return self.path / "metrics.jsonl"

    def prediction(self, name: str) -> Path:
        """The folder of a prediction file."""
        return self.path / "predictions" / name


class _StageTwo(msgspec.Struct):
    method: str
    run: str


class _Facts(msgspec.Struct):
    """What model.json says: the types alone."""

    mean: list[float]
    std: list[float]
    category_ids: list[int]
    weights_source: str
    precision: str
    device: str
    trained: str
    process_batch: Annotated[int, msgspec.Meta(ge=1)] = 1
    loss_prior_sha256: str | None = None
    stage_two: _StageTwo | msgspec.UnsetType = msgspec.UNSET
    soup: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


def _checked_facts(path: Path) -> dict[str, Any]:
    read_json_as(path, _Facts, "train again")
    facts: dict[str, Any] = read_json(path)
    return facts


def read_epoch(path: Path) -> int:
    """Whole epochs that were trained, as the state.json of a checkpoint says.

    Raises:
        InputError: it does not.
    """
    state = read_json(path)
    if not isinstance(state, dict) or type(state.get("epoch")) is not int:
        raise InputError(f"{path}: does not say 'epoch'; train again")
    return int(state["epoch"])


def weights_facts(state: Any, path: Path, n_classes: int) -> WeightsFacts:
    """The facts about the weights in the content of a state.json.

    Raises:
        InputError: they are missing, or are not facts about a network of so many classes.
    """
    try:
        facts = msgspec.convert(state["weights"], WeightsFacts)
    except (TypeError, KeyError):
        raise InputError(f"{path}: does not state 'weights'; train again") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: 'weights': {error}; train again") from None
    for name in ("draws_prior", "logits_prior"):
        prior = getattr(facts, name)
        if prior is not None and not _is_prior(prior, n_classes):
            raise InputError(
                f"{path}: '{name}' is not a class prior of {n_classes} species; train again"
            )
    return facts


def _is_prior(prior: list[float], n_classes: int) -> bool:
    values = np.array(prior)
    return values.shape == (n_classes,) and bool((values >= 0).all()) and 0 < values.sum() < np.inf


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


@contextmanager
def new_run_folder(out: Path, sources: Sequence[Run], *, overwrite: bool) -> Iterator[Path]:
    """Gives an empty folder, which takes the place of `out` on leaving without an error: for a run
    that is made from `sources` at once. No other process may write `out` meanwhile.

    Raises:
        InputError: `out` is or holds one of them, holds anything but a run, or holds a run that
            may not be overwritten.
        WorldError: another process writes `out`.
    """
    with writing(out, "--out"):
        _refuse_run_place(out, sources, overwrite=overwrite)
        with atomic_folder(out) as partial:
            yield partial


def _refuse_run_place(out: Path, sources: Sequence[Run], *, overwrite: bool) -> None:
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


@contextmanager
def writing(path: Path, option: str = "--run") -> Iterator[None]:
    """Holds a run folder, or one of fold runs, for as long as this process writes it; every verb
    that writes one does so inside.

    Args:
        path: the folder, or a link to it; it need not exist yet.
        option: where the user names it.

    Raises:
        WorldError: another process writes it.
    """
    folder = path.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: another process writes there; wait for it, or give another {option}"
    # Beside the folder, which --overwrite replaces.
    with locked(folder.with_name(f".{folder.name}.lock"), busy):
        yield


def create_run(path: Path, config: Config, devices: Mapping[str, Any] | None = None) -> Run:
    """Makes the folder of a new run and writes its config and environment, with what is known of
    its devices."""
    write_bytes(path / "config.yaml", config.to_yaml().encode())
    facts = {"id": uuid4().hex, **environment(), **(devices or {})}
    write_json(path / "environment.json", facts)
    return Run(path)


def write_species(made: Run, run: Run) -> None:
    """Writes the species table of `run`, from which `made` was made."""
    with atomic_file(made.path / "species.parquet") as partial:
        run.species.to_parquet(partial, index=False)


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

"""A run: the folder `runs/<name>/` with all that a training leaves behind."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from inat.config.reading import build, read_yaml
from inat.config.schema import CheckpointName, Config
from inat.config.values import merge
from inat.core.arrays import read_species
from inat.core.errors import InputError
from inat.core.files import atomic_folder, locked, read_json_as, write_bytes, write_json
from inat.runs.facts import RunFacts

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
    def facts(self) -> RunFacts:
        """What all of its checkpoints have in common."""
        return read_json_as(self.path / "model.json", RunFacts, "train again")

    @cached_property
    def species(self) -> pd.DataFrame:
        """A row a label: category_id, name, lineage, train_count."""
        return read_species(self.path / "species.parquet", "train again")

    @property
    def is_geo_prior(self) -> bool:
        """Whether it knows places and dates alone, and looks at no photo."""
        return self.facts.stage_two is not None and self.facts.stage_two.method == "geo_prior"

    @property
    def made_by(self) -> str:
        """The verb that made it."""
        if self.facts.soup is not None:
            return "inat soup"
        return "inat train" if self.facts.stage_two is None else "inat stage-two"

    def lines(self) -> list[str]:
        """What it is and what to do with it, for a terminal."""
        made, split = "trained", "val" if self.is_geo_prior else "test"
        if self.facts.stage_two is not None:
            made = f"{self.facts.stage_two.method} on {self.facts.stage_two.run}"
        elif self.facts.soup is not None:
            used = [member.run for member in self.facts.soup.runs if member.used]
            made = f"the mean of {', '.join(used)}"
        return [f"{self.path}: {made}; next: inat predict {self.path} --split {split}"]

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


def open_run(path: Run | Path | str) -> Run:
    """Opens a run that was trained; one that is open already is returned as it is.

    Raises:
        InputError: there is no run, or it has no checkpoint yet.
    """
    run = path if isinstance(path, Run) else Run(Path(path))
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
    that is made from `sources` at once. No other process may write `out` meanwhile (WorldError).
    Refuses an `out` that holds a source, something else, or a run that must stay (InputError)."""
    with writing(out, "--out"):
        for source in sources:
            if source.path.resolve().is_relative_to(out.resolve()):
                raise InputError(f"{out}: holds the run {source.path}; give another --out")
        if is_run(out) and not overwrite:
            raise InputError(
                f"{out}: there is a run already; give another --out, or --overwrite to throw it "
                "away"
            )
        if not is_run(out) and out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"{out}: it is not empty and holds no run; give another --out")
        with atomic_folder(out) as partial:
            yield partial


@contextmanager
def writing(path: Path, option: str = "--run") -> Iterator[None]:
    """Holds a run folder, or one of fold runs, for as long as this process writes it; every verb
    that writes one does so inside. Raises WorldError, which names `option`, if another process
    does."""
    folder = path.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: another process writes there; wait for it, or give another {option}"
    # Beside the folder, which --overwrite replaces.
    with locked(folder.with_name(f".{folder.name}.lock"), busy):
        yield


def create_run(path: Path, config: Config, devices: Mapping[str, Any] | None = None) -> Run:
    """Makes the folder of a new run and writes its config and environment: versions, machine,
    command, and what is known of its devices."""
    write_bytes(path / "config.yaml", config.to_yaml().encode())
    facts = {
        "id": uuid4().hex,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
        "command": sys.argv,
        **(devices or {}),
    }
    write_json(path / "environment.json", facts)
    return Run(path)


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

    def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    one, other = dict(flat(first.to_dict())), dict(flat(second.to_dict()))
    return [name for name in one if one[name] != other[name]]


def with_root(config: Config, root: Path | str | None) -> Config:
    if root is None:
        return config
    return build(merge(config.to_dict(), {"data.root": str(root)}), "data.root")

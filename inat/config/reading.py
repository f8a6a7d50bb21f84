"""A config from its YAML file, with what a user lays over it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inat.config.schema import Config
from inat.config.stages import canonical_stages, stage_text
from inat.config.strict_yaml import LARGEST_FILE, parse_yaml
from inat.config.values import build_config, merge, typed_values
from inat.core.errors import InputError
from inat.core.files import read_file


def read_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a YAML config and lays dotted overrides over it.

    Raises:
        InputError: anything is wrong with file or overrides; one line with file, key, remedy.
    """
    return build(merge(read_yaml(Path(path)), overrides or {}), str(path))


def build(tree: Mapping[str, Any], source: str) -> Config:
    """Builds the config that nested plain values describe.

    Raises:
        InputError: an unknown key, a value of the wrong type, or fields that contradict each
            other; the text names `source`, the field and what would be right.
    """
    return with_canonical_stages(build_config(_stages_as_text(tree, source), source), source)


def with_canonical_stages(config: Config, source: str) -> Config:
    """The same config with its stages as what really changes, however they were written.

    Raises:
        InputError: a stage is none, or contradicts itself; the text names `source` and the stage.
    """
    try:
        return replace(config, stages=canonical_stages(config))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a config file into nested plain values.

    Raises:
        InputError: missing, too large or too deep, not YAML, a duplicate key.
    """
    try:
        content = read_file(path, LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: there is no such config file") from None
    try:
        tree = parse_yaml(content)
    except InputError as error:
        raise InputError(f"{path}: not a config: {error}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a config is a list of 'key: value' lines, not {tree!r:.40}")
    tree = _stages_as_text(tree, str(path))
    typed_values(tree, str(path))  # a mistake here is told before one in what is laid over it
    return tree


def _stages_as_text(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`tree` with each of its stages as a text, as a flag would give it."""
    stages = tree.get("stages")
    if stages is None:  # all commented out
        return {key: value for key, value in tree.items() if key != "stages"}
    if not isinstance(stages, list | tuple):
        raise InputError(f"{source}: stages is a list; begin each stage with '- epochs: N'")
    texts = [stage_text(stage) if isinstance(stage, Mapping) else str(stage) for stage in stages]
    return {**tree, "stages": texts}

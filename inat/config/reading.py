"""A config from its YAML file, with what a user lays over it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inat.config.schema import Config
from inat.config.strict_yaml import LARGEST_FILE, parse_yaml
from inat.config.values import merge
from inat.core.errors import InputError
from inat.core.files import read_file


def read_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a YAML config and lays dotted overrides over it.

    Raises:
        InputError: anything is wrong with file or overrides; one line with file, key, remedy.
    """
    return build(merge(read_yaml(Path(path)), overrides or {}), str(path))


build = Config.from_tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a config file into nested plain values."""
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
    Config.typed(tree, str(path))  # a mistake here is told before one in what is laid over it
    return tree

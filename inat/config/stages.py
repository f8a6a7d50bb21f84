"""Training in stages: the config of each, from what it changes in the one before."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import yaml

from inat.config.schema import Config
from inat.config.strict_yaml import parse_yaml
from inat.config.values import build_config, merge
from inat.core.errors import InputError, unknown_name

KEYS = ("epochs", "batch_size", "new_head", "sampler", "transforms", "model", "loss", "optim")
"""What a stage may say."""


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Attributes:
        config: of this stage, as if it were all; its `stages` are empty.
        new_head: whether the stage begins with a new classifier; the first one does anyway.
    """

    config: Config
    new_head: bool = False


def lay_stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a training, at least one; each is laid over the one before.

    Raises:
        InputError: a stage without epochs, with an unknown key or a field that holds for the whole
            training, or of fields that contradict each other; the text names stage and field.
    """
    stages = [Stage(replace(config, stages=()))]
    for number, text in enumerate(config.stages, start=2):
        stages.append(_next_stage(stages[-1].config, text, f"stage {number}"))
    return tuple(stages)


def stage_config(config: Config, number: int) -> Config:
    """The config of a stage of the training, counted from 1.

    Raises:
        InputError: the training has no such stage.
    """
    stages = lay_stages(config)
    if not 1 <= number <= len(stages):
        raise InputError(
            f"the checkpoint is of stage {number}, and the config has {len(stages)}; train again"
        )
    return stages[number - 1].config


def canonical_stages(config: Config) -> tuple[str, ...]:
    """`config.stages` as what really changes, however it was written; `none` alone is no stage."""
    if config.stages == ("none",):
        return ()
    stages = lay_stages(config)
    return tuple(
        stage_text(
            {"epochs": stage.config.epochs}
            | ({"new_head": True} if stage.new_head else {})
            | _changes(before.config, stage.config)
        )
        for before, stage in pairwise(stages)
    )


def _next_stage(before: Config, text: str, name: str) -> Stage:
    try:
        changes = parse_yaml(text)
    except InputError as error:
        raise InputError(f"{name}: not a stage: {error}") from None
    if not isinstance(changes, Mapping) or changes.get("epochs") is None:
        raise InputError(f"{name}: {text!r:.60} has no epochs; give it its own, epochs: N")
    for key in changes:
        if key not in KEYS:
            raise InputError(f"{name}: {unknown_name('key', str(key), KEYS)}")
    new_head = changes.get("new_head", False)
    if not isinstance(new_head, bool):
        raise InputError(f"{name}: new_head takes true or false, not {new_head!r:.40}")
    fields = {key: value for key, value in changes.items() if key != "new_head"}
    after = build_config(merge(before.to_dict(), _dotted(fields)), name)
    _refuse_fixed(_dotted(_changes(before, after)), name)
    return Stage(after, new_head)


def stage_text(changes: Mapping[str, Any]) -> str:
    """One of `stages` as a line of YAML."""
    line = yaml.safe_dump(changes, default_flow_style=True, sort_keys=False, width=math.inf)
    return str(line).strip()


def _refuse_fixed(changed: Mapping[str, Any], name: str) -> None:
    for field in changed:
        of_network = field.startswith("model.") and field != "model.freeze"
        if of_network or field == "optim.ema_decay":
            raise InputError(
                f"{name}: {field} cannot change between stages, since the same network and moving "
                "average go on; set it once, outside stages"
            )


def _changes(before: Config, after: Config) -> dict[str, Any]:
    """The fields of `after` that differ, nested as in a YAML."""
    old, new = before.to_dict(), after.to_dict()
    changed: dict[str, Any] = {}
    for dotted, value in _dotted(new).items():
        section, _, key = dotted.partition(".")
        if key and value != old[section][key]:
            changed.setdefault(section, {})[key] = value
        elif not key and value != old[section]:
            changed[section] = value
    return changed


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim": {"name": "sgd"}} as {"optim.name": "sgd"}; an empty section is left out."""
    dotted: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            dotted |= {f"{key}.{inner}": given for inner, given in value.items()}
        elif value is not None:
            dotted[key] = value
    return dotted

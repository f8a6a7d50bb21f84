"""Training in stages: the config of each, from what it changes in the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inat.config.values import merge
from inat.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from inat.config.schema import Config

KEYS = ("epochs", "batch_size", "new_head", "sampler", "transforms", "model", "loss", "optim")
"""What a stage may say."""


class Stage(str):
    """A part of a training: its changes as a line of YAML, and the `config` that they come to, as
    if it were the only stage. `new_head`: it begins with a new classifier; the first one does
    anyway."""

    config: Config
    new_head: bool

    @classmethod
    def of(cls, config: Config, text: str = "", *, new_head: bool = False) -> Stage:
        """A stage of that config; without a text the one that a config begins with."""
        stage = cls(text)
        stage.config, stage.new_head = config, new_head
        return stage

    @classmethod
    def over(cls, before: Config, changes: Any, name: str) -> Stage:
        """The stage that lays `changes`, YAML or what was read from it, over the config before."""
        from inat.config.strict_yaml import parse_yaml  # yaml costs 20 ms, which --help can save

        text = changes if isinstance(changes, str) else stage_text(changes)
        try:
            tree = parse_yaml(text)
        except InputError as error:
            raise InputError(f"{name}: not a stage: {error}") from None
        if not isinstance(tree, Mapping) or tree.get("epochs") is None:
            raise InputError(f"{name}: {text!r:.60} has no epochs; give it its own, epochs: N")
        for key in tree:
            if key not in KEYS:
                raise InputError(f"{name}: {unknown_name('key', str(key), KEYS)}")
        new_head = tree.get("new_head", False)
        if not isinstance(new_head, bool):
            raise InputError(f"{name}: new_head takes true or false, not {new_head!r:.40}")
        fields = _dotted({key: value for key, value in tree.items() if key != "new_head"})
        after = before.from_tree(merge(before.to_dict(), fields), name)
        # What really changes, however it was written.
        old, new = _dotted(before.to_dict()), _dotted(after.to_dict())
        changed = {key: value for key, value in new.items() if value != old[key]}
        for field in changed:
            if field == "optim.ema_decay" or (
                field.startswith("model.") and field != "model.freeze"
            ):
                raise InputError(
                    f"{name}: {field} cannot change between stages, since the same network and "
                    "moving average go on; set it once, outside stages"
                )
        head = {"new_head": True} if new_head else {}
        text = stage_text({"epochs": after.epochs} | head | merge({}, changed))
        return cls.of(after, text, new_head=new_head)


def stage_text(changes: Any) -> str:
    import yaml

    line = yaml.safe_dump(changes, default_flow_style=True, sort_keys=False, width=math.inf)
    return str(line).removesuffix("...\n").strip()


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim": {"name": "sgd"}} as {"optim.name": "sgd"}; an empty section is left out."""
    dotted: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            dotted |= {f"{key}.{inner}": given for inner, given in value.items()}
        elif value is not None:
            dotted[key] = value
    return dotted

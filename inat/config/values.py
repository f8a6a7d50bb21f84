"""Plain values into the typed fields of a config, or one line that names field and remedy."""

import dataclasses
import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from inat.core.errors import InputError

BOOLS = {"true": True, "false": False}
NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path",
}  # fmt: skip


def typed_values(tree: Mapping[str, Any], root: type, source: str) -> dict[str, Any]:
    """`tree` with each value in the type of its field of the dataclass `root`; an empty section is
    omitted. An InputError names `source`, and for an unknown key the nearest valid one."""
    typed: dict[str, Any] = {}
    for key, value in tree.items():
        hint = _hint(key, "", root, root, source)
        if key not in sections(root):
            typed[key] = _typed(value, hint, f"{source}: {key}")
        elif isinstance(value, Mapping):
            typed[key] = {
                name: _typed(
                    inner, _hint(name, f"{key}.", hint, root, source), f"{source}: {key}.{name}"
                )
                for name, inner in value.items()
            }
        elif value is not None:  # None: all its fields are commented out
            raise InputError(
                f"{source}: {key} is a section; write its fields "
                f"({', '.join(_hints(hint))}) on indented lines below it"
            )
    return typed


def merge(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the dotted `overrides` ({"optim.lr_per_256": 1e-3}) laid over it."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for dotted, value in overrides.items():
        *sections, key = dotted.replace("-", "_").split(".")
        place = merged
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[key] = value
    return merged


@cache
def _hints(section: Any) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def sections(root: type) -> dict[str, Any]:
    """The fields of a dataclass that are dataclasses themselves."""
    return {key: hint for key, hint in _hints(root).items() if dataclasses.is_dataclass(hint)}


def _hint(key: Any, prefix: str, section: Any, root: type, source: str) -> Any:
    hints = _hints(section)
    if key in hints:
        return hints[key]
    # A key of another section, written in the wrong place, is as likely as a slip of the pen.
    for name, hint in sections(root).items():
        if not prefix and key in _hints(hint):
            raise InputError(f"{source}: unknown key {key}; did you mean {name}.{key}?")
    near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
    remedy = f"did you mean {prefix}{near[0]}?" if near else f"valid keys: {', '.join(hints)}"
    raise InputError(f"{source}: unknown key {prefix}{key}; {remedy}")


def _typed(value: Any, hint: Any, place: str) -> Any:
    """A value in the type that a field's hint asks for."""
    if isinstance(value, Mapping):
        raise InputError(f"{place} takes a single value, it has no keys below it")
    if get_origin(hint) is tuple:
        elements = get_args(hint)
        count = None if elements[-1] is ... else len(elements)
        if not isinstance(value, list | tuple) or count not in (None, len(value)):
            takes = "a list of numbers" if count is None else f"{count} numbers"
            raise InputError(f"{place} takes {takes}, [a, b], not {_shown(value)}")
        return tuple(_typed(element, elements[0], place) for element in value)
    if isinstance(value, list | tuple):
        raise InputError(f"{place} takes a single value, not the list {value!r:.40}")
    one_of = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    words = [word for one in one_of if get_origin(one) is Literal for word in get_args(one)]
    if value in words or (value is None and type(None) in one_of):  # int | Literal["auto"] | None
        return value
    if get_origin(hint) is Literal:
        near = difflib.get_close_matches(str(value), words, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{place} takes one of {', '.join(words)}, not {_shown(value)}{meant}")
    try:
        return _converted(value, one_of[0])
    except (LookupError, TypeError, ValueError, OverflowError):
        names = " or ".join([NAMES[one_of[0]], *words])
        raise InputError(f"{place} takes {names}, not {_shown(value)}") from None


def _converted(value: Any, kind: type) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else BOOLS[str(value).lower()]
    if value is None or isinstance(value, bool):
        raise TypeError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    # YAML reads 1e-3 as text, since YAML 1.1 wants a point in it; float() decides.
    return kind(value)


def _shown(value: Any) -> str:
    """As YAML writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value!r:.40}"

"""Options that check themselves, and parts (losses, samplers) that bring their own options."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self, get_type_hints

from inat.core.errors import InputError, unknown_name


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, as `Annotated[float, Range(0, 1)]`; with `above`, greater than
    `low` and finite."""

    low: float
    high: float = math.inf
    above: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises an InputError for any other number."""
        if self.above and not (value > self.low and math.isfinite(value)):
            raise InputError(f"{name}: {value} is not above {self.low:g}; give a positive number")
        if math.isfinite(self.high) and not self.low <= value <= self.high:
            raise InputError(f"{name}: {value} is not within {self.low:g} and {self.high:g}")
        if not value >= self.low:
            low = f"{self.low:g}"
            raise InputError(f"{name}: {value} is less than {low}; give {low} or more")


@dataclass(frozen=True)
class Interval:
    """Two numbers above 0 and up to `high`, the smaller first."""

    high: float = math.inf

    def check(self, name: str, value: tuple[float, float]) -> None:
        """Raises an InputError for any others."""
        if not 0 < value[0] <= value[1]:
            raise InputError(
                f"{name}: {value[0]:g} {value[1]:g} is not a range; give two numbers above 0, the "
                "smaller first"
            )
        Range(0, self.high).check(name, value[1])


class Switch:
    """A point of a training: a share of it (80%, down to a whole epoch) or a number of epochs."""

    def check(self, name: str, value: str) -> Fraction:
        """The number in `value`; raises an InputError for any other text."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", value)
        number = Fraction(match[1] or match[2]) if match else Fraction(0)
        if not number > 0 or (number >= 100 and value.endswith("%")):
            raise InputError(
                f"{name}: {value!r} is neither a share of the training between 0% and 100% (80%) "
                "nor a number of epochs (160)"
            )
        return number


def switch_epoch(after: str | None, epochs: int) -> int:
    """Whole epochs before a switch: its own number, or its share of `epochs` down to a whole one;
    0 where there is none. Raises an InputError for what is not a `Switch`."""
    if after is None:
        return 0
    number = Switch().check("after", after)
    return math.floor(number / 100 * epochs) if after.endswith("%") else int(number)


POSITIVE = Range(0, above=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of frozen dataclasses whose fields declare what they take: `Annotated[float, Range(0,
    1)]`. `section` is what precedes their names in a message, "loss."."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, declared in _declared(own).items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                # No file that a run leaves could hold more.
                if isinstance(number, int) and abs(number) >= 2**63:
                    raise InputError(f"{self.section}{name} takes a number of at most 64 bits")
            for constraint in declared:
                # None and words (auto) stand for no number.
                if value is not None and isinstance(value, str) == isinstance(constraint, Switch):
                    constraint.check(self.section + name, value)


@lru_cache
def _declared(options: Any) -> dict[str, list[Any]]:
    hints = get_type_hints(options, include_extras=True)
    names = [given.name for given in dataclasses.fields(options)]
    return {
        name: [one for one in getattr(hints[name], "__metadata__", ()) if hasattr(one, "check")]
        for name in names
    }


class Part:
    """A loss or a sampler: each subclass with a `name` is listed under it in its kind's `parts`.
    `summary` is its text in `inat train --help`; `Options` the dataclass of its options, which the
    constructor takes by the same names."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    parts: ClassVar[dict[str, Any]]
    Options: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        if cls.__dict__.get("name"):
            cls.parts[cls.name] = cls

    @classmethod
    def make(cls, options: Any, shared: Mapping[str, Any], **known: Any) -> Self:
        """Calls the constructor with what it names: something `known`, something that all parts
        share (or all of that, as `**shared`), or an option."""
        given = {**vars(options), **shared, **known}
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        own = {name: given[name] for name in names if name != "shared"}
        return cls(**({**shared, **own} if "shared" in names else own))


@dataclass(frozen=True, kw_only=True)
class PartOptions(Options):
    """Options of a part, which is one of a `kind`."""

    kind: ClassVar[type[Part]]

    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in self.kind.parts:
            raise InputError(unknown_name(f"{self.section}name", self.name, self.kind.parts))

    @property
    def method(self) -> Any:
        """The class of the part."""
        return self.kind.parts[self.name]


def joined_options(package: str, kind: type[Part], *, first: str) -> Any:
    """Imports every module of `package`, each a possible part (a new file is a new part), and joins
    the options of all parts of `kind` in one dataclass, whose `name` is `first` by default."""
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if found.name != "shapes":  # which imports what the parts import when they are used
            importlib.import_module(f"{package}.{found.name}")
    own = dict.fromkeys(part.Options for part in kind.parts.values())
    bases = [one for one in own if not any(issubclass(c, one) and c is not one for c in own)]
    words = "; ".join(f"{name}: {part.summary}" for name, part in kind.parts.items()) + "."
    name = field(default=first, metadata={"help": words})
    made: Any = dataclasses.make_dataclass(
        kind.Options.__name__,
        [("name", Literal[tuple(kind.parts)], name)],
        bases=tuple(bases),
        frozen=True,
        kw_only=True,
        namespace={"__module__": package},
    )
    # The parser of flags reads these, and could not resolve names of the modules of the parts.
    made.__init__.__annotations__ = get_type_hints(made, include_extras=True)
    return made

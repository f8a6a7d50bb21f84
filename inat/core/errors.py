"""The three ways in which the kit gives up, each with the exit status of its command."""

import difflib
import re
from collections.abc import Iterable

CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]")


class InatError(Exception):
    """Anything the kit stops for; its text is one line that names file, field and remedy."""

    exit_status = 1


class InputError(InatError):
    """The user's mistake: a bad option, config, annotation file or prediction file."""

    exit_status = 2


class WorldError(InatError):
    """What the world did: a full disk, a lost network, a loss that is not finite."""


class FaultsFound(InatError):
    """A check found faults in what it was asked to check."""


def unknown_name(what: str, name: str, valid: Iterable[str]) -> str:
    """The sentence for a name that is not in a registry: it lists the valid ones."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{what}: unknown name {name!r}; {hint}valid: {', '.join(names)}"


def shown(text: object) -> str:
    """A text that a stranger may have written, as a terminal may show it: what would move the
    cursor, end the line or turn the order of the letters round stands there as `\\x1b`."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(error: object) -> str:
    """The text of an error without its line breaks."""
    return " ".join(str(error).split())

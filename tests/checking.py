"""What reads the signatures of inat while the tests run, shapes included."""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome as a float
jaxtyped = jaxtyping.jaxtyped


def jaxtyped_arrays(*, typechecker: Any) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped` for what speaks of arrays; all else stays as it is, and mypy has it.

    A check takes 0.05 ms, and a small training calls some 2,000 functions.
    """

    def decorate(target: Any) -> Any:
        hints = getattr(target, "__annotations__", {}).values()
        is_wanted = any(speaks_of_arrays(hint) for hint in hints)
        return jaxtyped(target, typechecker=typechecker) if is_wanted else target

    return decorate


def speaks_of_arrays(hint: Any) -> bool:
    """Whether a shape stands anywhere in a hint; of one in quotes, whether it might."""
    if isinstance(hint, str):
        return "[" in hint or "shapes." in hint
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)  # Callable[[A, B], C]
    return any(speaks_of_arrays(part) for part in parts)

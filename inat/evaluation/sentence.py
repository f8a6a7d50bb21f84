"""A comparison in one sentence that a person can quote."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from inat.core.intervals import Interval
from inat.evaluation.difference import Difference


def comparison_sentence(
    first: Path, second: Path, top1: Difference, bands: Mapping[str, Difference | None]
) -> str:
    """Says whether the second prediction is better, and in which shot bands.

    A difference is claimed where `Difference.is_seen`.
    """
    one, other = short_names(first, second)
    present = {band: found for band, found in bands.items() if found is not None}
    moved = [
        f"in the {band} band {other} is {_moved(found.gain)} points ({_size(found.gain)})"
        for band, found in present.items()
        if found.is_seen
    ]
    alike = [band for band, found in present.items() if not found.is_seen]
    still = [f"in the {_listed(alike)} no difference can be seen"] if alike else []
    return "; ".join([_overall(one, other, top1), *moved, *still])


def _overall(one: str, other: str, top1: Difference) -> str:
    p_value = "p < 0.0001" if top1.p_value < 1e-4 else f"p = {top1.p_value:.2g}"
    if not top1.is_seen:
        return (
            f"no difference between {other} and {one} can be seen (top-1 {top1.gain.points()}, "
            f"McNemar {p_value})"
        )
    return (
        f"{other} is {_moved(top1.gain, one)} points of top-1, 95 % interval {_size(top1.gain)} "
        f"(McNemar {p_value})"
    )


def _moved(gain: Interval, than: str = "") -> str:
    """better than A by 1.3, or worse by 0.4."""
    word = "better" if gain.value > 0 else "worse"
    return f"{word}{than and f' than {than}'} by {100 * abs(gain.value):.1f}"


def _size(gain: Interval) -> str:
    """The interval of the size of a gain or a loss, in points: 0.6 to 2.0."""
    low, high = (gain.low, gain.high) if gain.value > 0 else (-gain.high, -gain.low)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _listed(bands: Sequence[str]) -> str:
    """many band, many and medium bands, many, medium and few bands."""
    if len(bands) == 1:
        return f"{bands[0]} band"
    return f"{', '.join(bands[:-1])} and {bands[-1]} bands"


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """What tells two paths apart: runs/a/predictions/val and runs/b/predictions/val are a and b."""
    one, other = first.parts, second.parts
    lead = _n_common(one, other)
    one, other = one[lead:], other[lead:]
    trail = _n_common(one[::-1], other[::-1])
    one, other = one[: len(one) - trail], other[: len(other) - trail]
    if not one or not other:  # one path is the other, or lies in it
        return str(first), str(second)
    return str(Path(*one)), str(Path(*other))


def _n_common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share from their start."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

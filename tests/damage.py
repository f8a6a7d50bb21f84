"""Hypothesis strategies that damage a valid file: its bytes, or the values of its JSON."""

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2, 255, 2**31, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30]
TEXTS = ["", " ", ".", "..", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "é", "\ud800",
         "NaN", "1e999", "9" * 400, "2018-99-99", "<b>", "null", "uniform"]  # fmt: skip
LONG = "a number of 5,000 digits"  # Python itself writes 4,300 at most
DEEP: Any = None
for _ in range(60):
    DEEP = [DEEP]
VALUES = [None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), LONG,
          [], {}, [[]], [{}], [None], {"id": 1}, [1, 2], DEEP, *NUMBERS, *TEXTS]  # fmt: skip
WORDS = [struct.pack(form, number % 2**32) for number in NUMBERS for form in ("<I", ">I")]

odd_values = st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=6)


@st.composite
def damaged_bytes(
    draw: st.DrawFn, valid: bytes, words: tuple[bytes, ...] = (), keep: int = 0
) -> bytes:
    """`valid` with one to four changes: bits, a cut, bytes put in, taken out or repeated.

    Half of the changes are near the beginning, where headers stand; the first `keep` bytes, by
    which a file is known, stay mostly as they are.
    """
    content = bytearray(valid)
    pieces = st.sampled_from([*WORDS, *words, b"\0", b"\xff"]) | st.binary(max_size=6)
    for _ in range(draw(st.integers(1, 4))):
        low = min(keep, len(content)) if draw(st.integers(0, 29)) else 0
        near = st.integers(low, min(len(content), low + 200))
        far = st.integers(low, len(content))
        at, length = draw(near | far), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["bit", "bit", "over", "over", "in", "out", "again", "cut"]))
        if kind == "bit" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "over":
            piece = draw(pieces)
            content[at : at + len(piece)] = piece
        elif kind == "in":
            content[at:at] = draw(pieces)
        elif kind == "out":
            del content[at : at + length]
        elif kind == "again":
            content[at:at] = content[at : at + length]
        elif kind == "cut":
            del content[at:]
    return bytes(content)


@st.composite
def damaged_tree(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value with one to three of its values replaced, taken out, repeated or moved."""
    tree = {"": copy.deepcopy(valid)}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(["odd", "odd", "odd", "out", "other", "again"]))
        if kind == "odd":
            holder[key] = copy.deepcopy(draw(odd_values))  # else a later change would stay
        elif kind == "out" and holder is not tree:
            del holder[key]
        elif kind == "other":
            giver, name = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(giver[name])
        elif kind == "again" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == "again":
            holder[draw(st.sampled_from(TEXTS))] = copy.deepcopy(holder[key])
    return tree.get("")


def damaged_json(valid: Any) -> st.SearchStrategy[bytes]:
    """A JSON file with other values, or with damaged bytes."""
    trees = damaged_tree(valid).map(json_bytes)
    return trees | trees | damaged_bytes(json_bytes(valid))


def json_bytes(tree: Any) -> bytes:
    """JSON with all that a stranger may write: NaN, lone surrogates, a number of 5,000 digits."""
    return json.dumps(tree).replace(f'"{LONG}"', "9" * 5000).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)

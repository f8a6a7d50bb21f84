"""In what two predictions differ beside their photos: in the model, its views, its adjustments."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Meta = dict[str, Any]
"""A prediction's meta.json, or what an ensemble's says of a member."""

MADE_BY = ("competition", "checkpoint", "weights", "views", "view_mean", "how")
"""What two predictions of one model have in common, beside the checkpoint's bytes."""

SHARE = ("weight", "temperature")
"""What two ensembles give a member."""

OF_THE_PHOTOS = ("of", "geo", "n_without_place")
"""In a step of the history, what differs from split to split."""


def differences(one: Meta, other: Meta) -> Iterator[str]:
    """The names of what two predictions have otherwise, those of an ensemble's members included."""
    members, others = one.get("members", []), other.get("members", [])
    if len(members) != len(others):
        yield "number of members"
        return
    if not _same_run(one, other):
        yield "run"
    for key in (*MADE_BY, *SHARE):
        if one.get(key) != other.get(key):
            yield key
    if history(one) != history(other):
        yield "history of adjustments"
    for pair in zip(members, others, strict=True):
        yield from (f"members' {what}" for what in differences(*pair))


def history(meta: Meta) -> list[dict[str, Any]]:
    """What was done to the logits, without the names of the files and the count of the photos."""
    return [
        {key: value for key, value in step.items() if key not in OF_THE_PHOTOS}
        for step in meta.get("adjusted", [])
    ]


def _same_run(one: Meta, other: Meta) -> bool:
    """By the checkpoints' checksums, or by the runs' folders where one has none."""
    digests = [meta.get("checkpoint_sha256") for meta in (one, other)]
    if all(digests):
        return digests[0] == digests[1]
    runs = [Path(meta.get("run", "")).resolve() for meta in (one, other)]
    return runs[0] == runs[1]

"""Cuts that leave photos which belong together on one side.

`draws` order the photos of a species and are distinct there; photos of one of the `groups` stay
together, and None makes each photo a group.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64


def joined(*keys: Int64[np.ndarray, "photos"]) -> Int64[np.ndarray, "photos"] | None:
    """The group of each photo, numbered from 0: photos that share a key, directly or through
    others, are of one group. A key of 0 joins nothing. None where no two photos share one.
    """
    rows, columns, n_nodes = [], [], len(keys[0]) if keys else 0
    for key in keys:
        values, place, counts = np.unique(key, return_inverse=True, return_counts=True)
        shared = np.flatnonzero((key != 0) & (counts[place] > 1))
        rows.append(shared)
        columns.append(n_nodes + place[shared])
        n_nodes += len(values)
    if not any(map(len, rows)):
        return None
    from scipy.sparse import coo_array  # here: slow to import
    from scipy.sparse.csgraph import connected_components

    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(n_nodes, n_nodes))
    _, group = connected_components(graph, directed=False)
    return group[: len(keys[0])].astype(np.int64)


def hold_share(
    labels: Int64[np.ndarray, "photos"],
    draws: Float64[np.ndarray, "photos"],
    groups: Int64[np.ndarray, "photos"] | None,
    share: float,
    dither: Float64[np.ndarray, "classes"],
) -> Bool[np.ndarray, "photos"]:
    """Which photos are held out of a share of every species; each keeps at least one photo.

    Photos are held out in the order of their draws. A group that would exceed the share is passed
    over; of what is then missing, the smallest group left is held out with the chance that keeps
    the expected share. Without groups that is the fraction of a photo, rounded by the dither,
    uniform in [0, 1).
    """
    place, count = _places_within_species(labels, draws, len(dither))
    held = place < np.minimum(np.floor(count * share + dither[labels]), count - 1)

    def choose(label: int, sizes: list[int]) -> list[int]:
        total = sum(sizes)
        chosen, taken = [], 0
        for at, size in enumerate(sizes):
            if taken + size <= total * share:
                chosen.append(at)
                taken += size
        last = min(set(range(len(sizes))) - set(chosen), key=lambda at: (sizes[at], at))
        size = sizes[last]
        if total * share + size * dither[label] >= taken + size and taken + size < total:
            chosen.append(last)
        return chosen

    return held if groups is None else _whole_groups(held, labels, draws, groups, choose)


def hold_fold(
    labels: Int64[np.ndarray, "photos"],
    draws: Float64[np.ndarray, "photos"],
    groups: Int64[np.ndarray, "photos"] | None,
    starts: Int64[np.ndarray, "classes"],
    fold: int,
    n_folds: int,
) -> Bool[np.ndarray, "photos"]:
    """Which photos are held out of a fold of every species; the only group of one never is.

    Each group, the largest first and then in the order of the draws, goes to the fold that has
    the fewest photos of the species, of equal ones to the first from the species' start (from 0)
    on. `fold` counts from 1.
    """
    place, count = _places_within_species(labels, draws, len(starts))
    held = ((place + starts[labels]) % n_folds == fold - 1) & (count > 1)

    def choose(label: int, sizes: list[int]) -> list[int]:
        loads = [0] * n_folds
        chosen = []
        for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
            to = min(range(n_folds), key=lambda f: (loads[f], (f - starts[label]) % n_folds))
            loads[to] += sizes[at]
            if to == fold - 1 and len(sizes) > 1:
                chosen.append(at)
        return chosen

    return held if groups is None else _whole_groups(held, labels, draws, groups, choose)


def _places_within_species(
    labels: Int64[np.ndarray, "photos"], draws: Float64[np.ndarray, "photos"], n_classes: int
) -> tuple[Int64[np.ndarray, "photos"], Int64[np.ndarray, "photos"]]:
    """Each photo's place in a shuffled list of its species' photos, and that list's length."""
    order = np.lexsort((draws, labels))
    counts = np.bincount(labels, minlength=n_classes)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[labels]


def _whole_groups(
    held: Bool[np.ndarray, "photos"],
    labels: Int64[np.ndarray, "photos"],
    draws: Float64[np.ndarray, "photos"],
    groups: Int64[np.ndarray, "photos"],
    choose: Callable[[int, list[int]], list[int]],
) -> Bool[np.ndarray, "photos"]:
    """`held`, decided again in the species that have a group of several photos: a group that spans
    species, where it has the most photos. `choose` gets a species and the sizes of its groups in
    the order of the draws, and returns the positions of those held out."""
    photos = pd.DataFrame({"group": groups, "label": labels, "draw": draws})
    several = photos["group"].duplicated(keep=False)
    touched = np.isin(labels, np.unique(labels[several]))
    table = photos[touched].groupby(["group", "label"], as_index=False).agg(
        size=("draw", "size"), draw=("draw", "min")
    )  # fmt: skip
    table = table.sort_values(["size", "label"], ascending=[False, True]).drop_duplicates("group")
    held_groups: set[int] = set()
    for label, own in table.sort_values("draw").groupby("label"):
        of_species, sizes = own["group"].tolist(), own["size"].tolist()
        held_groups.update(of_species[at] for at in choose(int(str(label)), sizes))
    is_held = photos["group"].isin(held_groups)
    # A species all of whose groups were decided elsewhere may have lost its last photo there.
    for label in np.setdiff1d(labels[touched], labels[touched & ~is_held]):
        lost = photos[photos["label"] == label].sort_values("draw")
        if held_groups.issuperset(lost["group"]):
            held_groups.discard(lost["group"].iloc[0])
    return np.where(touched, photos["group"].isin(held_groups), held)

"""The species of a data set: their ids, names and lineage, and the labels that stand for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from inat.core.errors import InputError

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
COLUMNS = ("category_id", "name", "supercategory", *RANKS)


@dataclass(frozen=True, eq=False)
class Taxonomy:
    """The species in the order of their labels.

    Labels are 0..C-1 in the numeric order of category id; category ids have gaps. All translation
    between the two goes through this class. `table` has a row per label with the columns
    category_id, name, supercategory, kingdom ... genus; a rank that the data set does not give is
    "".
    """

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def category_ids(self) -> Int64[np.ndarray, "classes"]:
        """The category id of every label, ascending."""
        return self.table["category_id"].to_numpy(np.int64)

    @property
    def names(self) -> list[str]:
        """The species' name of every label."""
        return list(self.table["name"])

    def labels_of(
        self, category_ids: Int64[np.ndarray, "n"]
    ) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "unknown"]]:
        """The labels of category ids, and the positions whose id is no category (label -1)."""
        place = np.searchsorted(self.category_ids, category_ids)
        place = np.minimum(place, len(self) - 1).astype(np.int64)
        unknown = np.flatnonzero(self.category_ids[place] != category_ids)
        place[unknown] = -1
        return place, unknown

    def rank_groups(self, rank: str) -> tuple[Int64[np.ndarray, "classes"], int]:
        """The group of every label at `rank`, keyed by its whole lineage (two groups of one name
        below different parents are two), and the number of groups."""
        groups = np.zeros(len(self), np.int64)
        for column in RANKS[: RANKS.index(rank) + 1]:
            own, names = pd.factorize(self.table[column])
            groups, known = pd.factorize(groups * len(names) + own)
        return groups.astype(np.int64), len(known)


def read_taxonomy(categories: Sequence[Any], source: str) -> Taxonomy:
    if not categories:
        raise InputError(f"{source}: 'categories' is empty; it must list the species")
    for position, category in enumerate(categories):
        place = f"{source}: categories[{position}]"
        if not isinstance(category, Mapping):
            raise InputError(f"{place} is no object with 'id' and 'name'")
        for field in ("id", "name"):
            if field not in category:
                raise InputError(f"{place} has no field '{field}'")
        number = category["id"]
        if type(number) is not int or not -(2**63) <= number < 2**63:
            raise InputError(
                f"{place}: 'id' is {number!r:.40}, not a whole number; number photos and species "
                "with whole numbers, the same in all lists"
            )
    columns: dict[str, list[Any]] = {"category_id": [row["id"] for row in categories]}
    for column in COLUMNS[1:]:
        columns[column] = [str(row.get(column) or "") for row in categories]
    table = pd.DataFrame(columns).sort_values("category_id", ignore_index=True)
    twice = table["category_id"][table["category_id"].duplicated()]
    if len(twice):
        raise InputError(f"{source}: category id {twice.iloc[0]} stands twice in 'categories'")
    return Taxonomy(table)

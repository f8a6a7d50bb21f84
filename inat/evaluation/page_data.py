"""The data that the report's charts and table draw from."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from inat.dataset.taxonomy import RANKS
from inat.evaluation.evaluate import Evaluation

SHARED = ("category_id", "name", "supercategory", "train_count", "band")
OWN = ("n", "hits", "top3_hits", "low", "high", "predicted", "f1")


def page_data(evaluations: Sequence[Evaluation], titles: Sequence[str]) -> dict[str, Any]:
    """What all evaluations share, then what each has of its own; species in label order.

    `species` holds columns, `ranks` those of the lineage that the data set gives, from the
    kingdom down. The rest is named as in metrics.json.
    """
    table = evaluations[0].per_class
    return {
        "band_edges": evaluations[0].band_edges,
        "species": {name: _column(table[name]) for name in SHARED if name in table},
        "ranks": {
            rank: _column(table[rank]) for rank in RANKS if rank in table and any(table[rank] != "")
        },
        "runs": [_run(e, title) for e, title in zip(evaluations, titles, strict=True)],
    }


def _run(evaluation: Evaluation, title: str) -> dict[str, Any]:
    figures = evaluation.to_dict()
    kept = ("top1", "mean_class_accuracy", "bands", "deciles", "reliability")
    own = {name: _column(evaluation.per_class[name]) for name in OWN}
    return {"title": title, **{name: figures[name] for name in kept}, "species": own}


def _column(column: pd.Series) -> list[Any]:
    if column.dtype.kind == "f":
        column = column.round(4)  # a table of 8,142 rows shows no more, and takes half the bytes
    return column.astype(object).where(column.notna(), None).tolist()

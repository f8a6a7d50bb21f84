"""The report: one HTML page that shows predictions side by side and needs nothing but itself."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from inat.core.bands import BANDS
from inat.core.errors import InputError
from inat.core.files import write_bytes
from inat.dataset.taxonomy import RANKS
from inat.evaluation.evaluate import Evaluation, refuse_other_edges
from inat.evaluation.page_figures import further_rows, headline_rows, interval_text, share_text
from inat.evaluation.page_photos import ShownPhotos, shown_photos

ECHARTS = "echarts-6.1.0.min.js"

# What the charts and the table of the page draw from: columns that all evaluations share, columns
# and figures that each has of its own.
SHARED = ("category_id", "name", "supercategory", "train_count", "band")
OF_SPECIES = ("n", "hits", "top3_hits", "low", "high", "predicted", "f1")
OF_RUN = ("top1", "mean_class_accuracy", "bands", "deciles", "reliability")


def write_report(
    evaluations: Sequence[Evaluation], path: Path | str, *, root: Path | str | None = None
) -> Path:
    """Writes the page of one or several evaluations of the same species.

    The page holds its styles, scripts, charts (Apache ECharts) and photos; no request leaves it.
    Without a data root it has no photos, and says so.

    Args:
        evaluations: what is shown; several are laid over each other.
        path: the HTML file; one that is there is replaced.
        root: folder of the data set, or a pack, whose photos are shown.

    Raises:
        InputError: no evaluation, one given twice, other species or band edges in two of them.
    """
    if not evaluations:
        raise InputError("a report needs at least one evaluation")
    first = evaluations[0]
    for prediction, times in Counter(e.prediction for e in evaluations).items():
        if times > 1:
            raise InputError(f"{prediction}: given twice; a report shows each prediction once")
    for other in evaluations[1:]:
        columns = ["category_id", "name", "train_count"]
        if not other.per_class[columns].equals(first.per_class[columns]):
            raise InputError(
                f"{first.prediction} and {other.prediction} are of other species or train counts; "
                "write a report for each"
            )
        refuse_other_edges(first, other)
    titles = run_titles([evaluation.prediction for evaluation in evaluations])
    photos = shown_photos(evaluations, None if root is None else Path(root))
    write_bytes(Path(path), _render(evaluations, titles, photos).encode())
    return Path(path)


def run_titles(paths: Sequence[Path]) -> list[str]:
    """Short names that tell the predictions apart: runs/a/predictions/test is a / test."""
    parts = [[part for part in path.parts if part != "predictions"] for path in paths]
    for length in range(2, max(len(own) for own in parts) + 1):
        titles = [" / ".join(own[-length:]) for own in parts]
        if len(set(titles)) == len(titles):
            return titles
    return [str(path) for path in paths]


def _render(evaluations: Sequence[Evaluation], titles: Sequence[str], photos: ShownPhotos) -> str:
    environment = Environment(
        loader=PackageLoader("inat.evaluation", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share_text, "interval": interval_text}
    data = _page_data(evaluations, titles) | {"photos": photos.pictures}
    return environment.get_template("report.html.jinja").render(
        evaluations=evaluations,
        titles=titles,
        bands=BANDS,
        headline=headline_rows(evaluations[0]),
        headlines=[headline_rows(evaluation) for evaluation in evaluations],
        further=further_rows(evaluations),
        names=dict(
            zip(*(evaluations[0].per_class[c] for c in ("category_id", "name")), strict=True)
        ),
        pairs=photos.pairs,
        mistakes=photos.mistakes,
        pictures=photos.pictures,
        notes=_notes(evaluations, titles, photos),
        data=script_safe(data),
        css=_part("report.css"),
        echarts=_part(ECHARTS),
        script=_part("report.js"),
    )


def _page_data(evaluations: Sequence[Evaluation], titles: Sequence[str]) -> dict[str, Any]:
    """What all evaluations share, then what each has of its own, named as in metrics.json."""
    table = evaluations[0].per_class
    return {
        "band_edges": evaluations[0].band_edges,
        "species": {name: _column(table[name]) for name in SHARED if name in table},
        "ranks": {
            rank: _column(table[rank]) for rank in RANKS if rank in table and any(table[rank] != "")
        },
        "runs": [
            {
                "title": title,
                **{name: value for name, value in each.to_dict().items() if name in OF_RUN},
                "species": {name: _column(each.per_class[name]) for name in OF_SPECIES},
            }
            for each, title in zip(evaluations, titles, strict=True)
        ],
    }


def _column(column: pd.Series) -> list[Any]:
    if column.dtype.kind == "f":
        column = column.round(4)  # a table of 8,142 rows shows no more, and takes half the bytes
    return column.astype(object).where(column.notna(), None).tolist()


def _notes(
    evaluations: Sequence[Evaluation], titles: Sequence[str], photos: ShownPhotos
) -> list[str]:
    """What belongs beside the figures, each sentence with the runs that it is of."""
    said: dict[str, list[str]] = {}
    for evaluation, title in zip(evaluations, titles, strict=True):
        for note in evaluation.notes:
            said.setdefault(note, []).append(title)
    everywhere = len(evaluations)
    notes = [
        note if len(of) == everywhere else f"{', '.join(of)}: {note}" for note, of in said.items()
    ]
    if any(set(e.outcomes.ids) != set(evaluations[0].outcomes.ids) for e in evaluations):
        notes.append("the predictions are of other photos: their figures do not compare")
    return notes + photos.notes


def script_safe(data: Any) -> str:
    """JSON that may stand in a script element: no character in it can end the element."""
    text = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _part(name: str) -> str:
    return files("inat.evaluation").joinpath("page", name).read_text("utf-8")

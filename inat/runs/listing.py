"""The list of runs with their scores."""

import operator
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
from rich.table import Table

from inat.core.bands import BANDS
from inat.core.errors import InputError, shown, unknown_name
from inat.core.files import leads_out, read_file, read_json
from inat.runs.facts import read_checkpoint_facts
from inat.runs.run import Run, is_run

DEEPEST_LEVEL = 3
SETTINGS = ("run", "method", "sampler", "backbone", "epochs", "seed")
BEST_HIGH = ("held_out", "top1", "mean_class_accuracy", "macro_f1", *BANDS)
SCORES = ("n_images", "top1", "top3_error", "mean_class_accuracy", "macro_f1", *BANDS, "ece")
COLUMNS = (*SETTINGS, "held_out", "prediction", *SCORES, "note")
SHOWN = ("run", "method", "epochs", "held_out", "prediction", "top1", "mean_class_accuracy", *BANDS)

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def list_runs(
    folder: Path | str = "runs",
    *,
    sort: str = "run",
    reverse: bool = False,
    where: Sequence[str] = (),
) -> pd.DataFrame:
    """Lists the runs in a folder with their scores, one row per evaluated prediction.

    Columns: run (its folder), method (the loss, soup, or stage two's method), sampler, backbone,
    epochs (trained/planned), seed, held_out (last mean class accuracy on the held-out part),
    prediction (its name), n_images, top1, top3_error, mean_class_accuracy, macro_f1, many,
    medium, few, ece (shares), note (what could not be read). What is unknown is None or NaN.

    Args:
        folder: folder that holds runs, at most three levels deep.
        sort: a column; scores best first, the rest ascending; unknown values last.
        reverse: reverse the order.
        where: only rows with this: COLUMN=PATTERN (method=logit*), COLUMN!=PATTERN, COLUMN>NUMBER,
            or with >=, <, <= (few>=0.4); of several, all must hold.

    Raises:
        InputError: no such folder or column, or a condition that is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; inat train makes runs in runs/")
    rows = [row for path in _run_folders(folder) for row in _rows(path)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for condition in where:
        table = table[_holds(table, condition)]
    if sort not in COLUMNS:
        raise InputError(unknown_name("sort", sort, COLUMNS))
    ascending = (sort not in BEST_HIGH) != reverse
    return table.sort_values(sort, ascending=ascending, kind="stable", ignore_index=True)


def runs_table(table: pd.DataFrame) -> Table:
    """The chief columns for a terminal, shares in per cent."""
    rich_table = Table(box=None, pad_edge=False)
    names = [*SHOWN, "note"] if table["note"].notna().any() else [*SHOWN]
    for name in names:
        title, is_share = name.replace("_", " "), name in BEST_HIGH
        rich_table.add_column(
            f"{title} %" if is_share else title,
            justify="right" if is_share else "left",
            overflow="fold",
        )
    for row in table.to_dict("records"):
        rich_table.add_row(*(_cell(name, row[name]) for name in names))
    return rich_table


def _cell(name: str, value: Any) -> str:
    if pd.isna(value):
        return "–"
    return f"{100 * value:.1f}" if name in BEST_HIGH else shown(value)


def _run_folders(folder: Path) -> Iterator[Path]:
    """The runs, and the folders that hold predictions of several runs, in the order of names; a
    link is followed where it leads out of `folder`, which lists the others under their own name."""
    for place, folders, _ in os.walk(folder, followlinks=True):
        path = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not (path / name).is_symlink() or leads_out(path / name, folder)
        )
        if is_run(path) or (path / "predictions").is_dir():
            yield path
        # What lies in a run is no run; nor does a data set beside the runs hold any.
        if is_run(path) or len(path.relative_to(folder).parts) >= DEEPEST_LEVEL:
            folders.clear()


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        settings = _settings(Run(path)) if is_run(path) else {"run": str(path)}
    except (InputError, OSError) as error:
        settings = {"run": str(path), "note": str(error)}
    found = sorted(path.glob("predictions/*/evaluation/metrics.json"))
    return [settings | _scores(metrics) for metrics in found] or [settings]


def _settings(run: Run) -> dict[str, Any]:
    config = run.config
    facts = run.facts if (run.path / "model.json").is_file() else None
    state = run.checkpoint("last") / "state.json"
    epochs = str(read_checkpoint_facts(state).epoch if state.is_file() else 0)
    if facts is not None and facts.stage_two is not None:
        method: str = facts.stage_two.method
    elif facts is not None and facts.soup is not None:
        method = "soup"
    else:
        method = config.loss.name
        epochs += f"/{sum(stage.config.epochs for stage in config.all_stages)}"
    return {
        "run": str(run.path),
        "method": method,
        "sampler": config.sampler.name,
        "backbone": config.model.backbone,
        "epochs": epochs,
        "seed": config.seed,
        "held_out": _last_held_out(run.metrics_path),
    }


def _last_held_out(path: Path) -> float | None:
    lines = read_file(path).splitlines() if path.is_file() else []
    for number, line in reversed(list(enumerate(lines, 1))):
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:  # the line that was being written when a run was killed
            continue
        try:
            if entry["kind"] == "validation":
                return float(entry["mean_class_accuracy"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: line {number} is not what a training writes") from None
    return None


def _scores(path: Path) -> dict[str, Any]:
    name = path.parts[-3]
    try:
        found = read_json(path)
        return {
            "prediction": name,
            "n_images": int(found["n_images"]),
            "top1": float(found["top1"]["value"]),
            "top3_error": float(found["top3_error"]),
            "mean_class_accuracy": float(found["mean_class_accuracy"]["value"]),
            "macro_f1": float(found["means"]["macro_f1"]),
            **{
                band: found["bands"][band] and float(found["bands"][band]["value"])
                for band in BANDS
            },
            "ece": float(found["reliability"]["all"]["ece"]),
        }
    except InputError as error:
        return {"prediction": name, "note": str(error)}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {"prediction": name, "note": f"{path}: of another version; evaluate it again"}


def _holds(table: pd.DataFrame, condition: str) -> pd.Series:
    parts = re.fullmatch(r"\s*(\w+)\s*(!=|>=|<=|=|>|<)(.*)", condition)
    if parts is None:
        raise InputError(
            f"where {condition!r} is no condition; write COLUMN=PATTERN or COLUMN>NUMBER (few>=0.4)"
        )
    name, sign, value = parts[1], parts[2], parts[3].strip()
    if name not in COLUMNS:
        raise InputError(unknown_name("where", name, COLUMNS))
    if sign in ("=", "!="):
        fits = [not pd.isna(each) and fnmatchcase(str(each), value) for each in table[name]]
        return pd.Series(fits, table.index, bool) == (sign == "=")
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"where {condition!r}: {value!r} is no number") from None
    holds: pd.Series = COMPARISONS[sign](pd.to_numeric(table[name], errors="coerce"), number)
    return holds

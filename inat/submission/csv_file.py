"""Writes a submission CSV, checks it strictly, and scores it as Kaggle does."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from inat.competitions import Competition, find_competition
from inat.data.annotations import load_split
from inat.errors import FaultsFound, InputError
from inat.evaluation.evaluate import guess
from inat.files import atomic_file
from inat.prediction_file import PredictionFile, read_prediction
from inat.solution import read_solution

MOST_FAULTS_SHOWN = 5
LONGEST_ROW = 10_000


@dataclass(frozen=True)
class Score:
    """What Kaggle would show: error, smaller is better; None where the solution has no such row."""

    public: float | None
    private: float | None


def write(
    prediction: Path | str | PredictionFile,
    out: Path | str,
    *,
    competition: str | None = None,
) -> Path:
    """Writes a prediction's best guesses in the competition's format.

    Rows are in the order of the prediction; guesses are category ids, best first; equal logits
    go to the lower id.

    Args:
        prediction: of the test split.
        out: the CSV file; one that is there is replaced.
        competition: Kaggle name; None: the prediction's own.

    Raises:
        InputError: no prediction, or not of the test split.
    """
    if not isinstance(prediction, PredictionFile):
        prediction = read_prediction(prediction)
    out = Path(out)
    spec = find_competition(competition or prediction.meta["competition"])
    if prediction.meta["split"] != "test":
        raise InputError(
            f"{prediction.path}: is a prediction of {prediction.meta['split']}; "
            "Kaggle scores the test split (inat predict RUN --split test)"
        )
    if prediction.n_classes < spec.n_guesses:
        raise InputError(
            f"{prediction.path}: {spec.slug} wants {spec.n_guesses} guesses a row, "
            f"and there are {prediction.n_classes} species"
        )
    guesses = prediction.category_ids[guess(prediction, spec.n_guesses)]
    with atomic_file(out) as partial, partial.open("w", encoding="ascii", newline="") as handle:
        handle.write(spec.header + "\n")
        for image_id, row in zip(prediction.ids.tolist(), guesses.tolist(), strict=True):
            handle.write(f"{image_id},{' '.join(map(str, row))}\n")
    return out


def check(
    submission: Path | str, root: Path | str, *, competition: str = "inaturalist-2018"
) -> int:
    """Checks a submission against the test split of `root`; gives its number of rows.

    Raises:
        FaultsFound: Kaggle would refuse it or silently score it wrongly: header, missing,
            duplicate or unknown ids, wrong number of guesses, a guess twice in a row, a guess
            that is no category; the text names the first offending lines.
        InputError: submission or data set cannot be read.
    """
    submission = Path(submission)
    spec = find_competition(competition)
    test = load_split(root, "test", competition=competition)
    categories = set(map(str, test.taxonomy.category_ids.tolist()))
    expected = set(map(str, test.image_ids.tolist()))
    faults = _Faults()
    seen: set[str] = set()
    for line, cells in _rows(submission, spec, faults):
        image_id = cells[0]
        if image_id in seen:
            faults.add("duplicate id", line, image_id)
        elif image_id not in expected:
            faults.add("id that is no test photo", line, image_id)
        seen.add(image_id)
        if len(cells) != 2:
            faults.add("not two columns", line, ",".join(cells))
            continue
        _check_guesses(cells[1].split(" "), spec, categories, line, faults)
    missing = sorted(expected - seen, key=int)
    if missing:
        faults.add(f"{len(missing)} of {len(expected)} test photos have no row", None, missing[0])
    if faults.found:
        raise FaultsFound(f"{submission}: " + faults.text())
    return len(seen)


def score(
    submission: Path | str, solution: Path | str, *, competition: str = "inaturalist-2018"
) -> Score:
    """Scores a submission by the organisers' rules (visipedia/inat_comp, top_k_accuracy.py).

    A row is right if one of its first k guesses is the expected category; the score is the
    error, 1 - accuracy, apart for the Public and the Private rows.

    Raises:
        FaultsFound: a row of the solution has no row here, a row has fewer than k guesses, or an
            id stands twice (which the organisers' script would count twice).
        InputError: a file cannot be read.
    """
    submission = Path(submission)
    spec = find_competition(competition)
    table = read_solution(solution)
    faults = _Faults()
    guesses: dict[str, list[str]] = {}
    for line, cells in _rows(submission, spec, faults):
        if cells[0] in guesses:
            faults.add("duplicate id", line, cells[0])
        row = cells[1].split(" ") if len(cells) > 1 else []
        if len(row) < spec.n_guesses:
            faults.add(f"fewer than {spec.n_guesses} guesses", line, " ".join(row))
        guesses[cells[0]] = row[: spec.n_guesses]
    ids = table["id"].astype(str)
    absent = ids[~ids.isin(guesses.keys())]
    if len(absent):
        faults.add(f"{len(absent)} photos of the solution have no row", None, absent.iloc[0])
    if faults.found:
        raise FaultsFound(f"{submission}: " + faults.text())
    expected = table["expected"].astype(str)
    right = np.array([e in guesses[i] for i, e in zip(ids, expected, strict=True)], bool)
    return Score(
        public=_error(right[table["usage"] == "Public"]),
        private=_error(right[table["usage"] == "Private"]),
    )


def _error(right: Bool[np.ndarray, "rows"]) -> float | None:
    return 1 - float(right.mean()) if len(right) else None


class _Faults:
    """Faults by kind, each with its first offending lines."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, line: int | None, value: str) -> None:
        where = "first" if line is None else f"line {line}"
        self.found.setdefault(kind, []).append(f"{where}: {value!r:.60}")

    def text(self) -> str:
        parts = []
        for kind, places in self.found.items():
            more = len(places) - MOST_FAULTS_SHOWN
            shown = "; ".join(places[:MOST_FAULTS_SHOWN]) + (f"; {more} more" if more > 0 else "")
            parts.append(f"{kind} ({shown})")
        return ". ".join(parts)


def _rows(path: Path, spec: Competition, faults: _Faults) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header with their line numbers; a wrong header is a fault."""
    try:
        handle = path.open(encoding="utf-8", newline="")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: there is no such submission file") from None
    with handle:
        try:
            header = handle.readline(LONGEST_ROW).rstrip("\r\n")
            if header != spec.header:
                faults.add(f"the header must be {spec.header!r}", 1, header)
            rows = csv.reader(handle)
            for cells in rows:
                if cells:
                    yield rows.line_num + 1, cells
                else:
                    faults.add("empty line", rows.line_num + 1, "")
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a CSV file of plain text ({error!s:.80})") from None


def _check_guesses(
    guesses: list[str], spec: Competition, categories: set[str], line: int, faults: _Faults
) -> None:
    text = " ".join(guesses)
    if len(guesses) != spec.n_guesses or "" in guesses:
        faults.add(f"not {spec.n_guesses} guesses separated by one space", line, text)
        return
    if len(set(guesses)) < len(guesses):
        faults.add("a guess twice in a row", line, text)
    for category in guesses:
        if category not in categories:
            faults.add("a guess that is no category", line, category)

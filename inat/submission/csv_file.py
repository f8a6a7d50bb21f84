"""Writes a submission CSV, checks it strictly, and scores it as Kaggle does."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

from inat.competitions import Competition, find_competition
from inat.data.annotations import load_split
from inat.errors import FaultsFound, InputError
from inat.evaluation.evaluate import guess
from inat.files import atomic_file
from inat.metrics import macro_f1
from inat.prediction_file import PredictionFile, read_prediction
from inat.solution import read_solution
from inat.submission.estimate import estimate
from inat.submission.manifest import read_manifest, update_manifest
from inat.submission.provenance import provenance

MOST_FAULTS_SHOWN = 5
LONGEST_ROW = 10_000
DEFAULT_COMPETITION = "inaturalist-2018"


@dataclass(frozen=True)
class Score:
    """What Kaggle would show; None where the solution has no such row.

    Attributes:
        metric: top-3 error and the like, which are better the smaller, or macro F1.
        public: score of the Public rows.
        private: score of the Private rows.
    """

    metric: str
    public: float | None
    private: float | None


def write(
    prediction: Path | str | PredictionFile,
    out: Path | str,
    *,
    competition: str | None = None,
    estimate_on: Path | str | PredictionFile | None = None,
) -> Path:
    """Writes a prediction's best guesses in the competition's format, and a manifest beside them.

    Rows are in the order of the prediction; guesses are category ids, best first; equal logits
    go to the lower id. NAME.manifest.json says what the file was made of and which score may be
    expected. The same prediction gives the same bytes, compressed or not.

    Args:
        prediction: of the test split.
        out: the CSV file, compressed if its name ends in .gz; one that is there is replaced.
        competition: Kaggle name; None: the prediction's own.
        estimate_on: labelled prediction, made in the same way, on which the score is estimated;
            None: the best one beside the prediction.

    Raises:
        InputError: no prediction, or not of the test split; no score can be estimated on
            `estimate_on`.
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
    expected = estimate(prediction, spec, estimate_on)
    guesses = prediction.category_ids[guess(prediction, spec.n_guesses)]
    with atomic_file(out) as partial, _written(partial) as handle:
        handle.write(spec.header + "\n")
        for image_id, row in zip(prediction.ids.tolist(), guesses.tolist(), strict=True):
            handle.write(f"{image_id},{' '.join(map(str, row))}\n")
    update_manifest(out, **provenance(out, prediction, spec, expected))
    return out


def check(submission: Path | str, root: Path | str, *, competition: str | None = None) -> int:
    """Checks a submission against the test split of `root`; gives its number of rows.

    Args:
        submission: the CSV file, or CSV.gz.
        root: the data set's folder.
        competition: Kaggle name; None: what the manifest beside the file says, or else
            inaturalist-2018.

    Raises:
        FaultsFound: Kaggle would refuse it or silently score it wrongly: header, missing,
            duplicate or unknown ids, wrong number of guesses, a guess twice in a row, a guess
            that is no category; the text names the first offending lines.
        InputError: submission or data set cannot be read.
    """
    submission = Path(submission)
    spec = find_competition(competition or _competition_of(submission))
    test = load_split(root, "test", competition=spec.slug)
    categories = set(map(str, test.taxonomy.category_ids.tolist()))
    photos = set(map(str, test.image_ids.tolist()))
    wanted = _Wanted("test photo", "test photos", photos, categories.__contains__)
    return len(_read(submission, spec, wanted))


def score(submission: Path | str, solution: Path | str, *, competition: str | None = None) -> Score:
    """Scores a submission by the organisers' rules, apart for the Public and the Private rows.

    Top-k error as in visipedia/inat_comp, top_k_accuracy.py: a row is right if one of its first
    k guesses is the expected category, the score is 1 - accuracy. Macro F1 as in scikit-learn:
    the mean over the categories that are expected or guessed.

    Args:
        submission: the CSV file, or CSV.gz.
        solution: the organisers' CSV `id,expected,usage`.
        competition: Kaggle name; None: what the manifest beside the file says, or else
            inaturalist-2018.

    Raises:
        FaultsFound: what the organisers refuse, a row of the solution without a row here or a
            row with too few guesses; and what they let through, wrong as it is: an id that the
            solution does not know (ignored), an id that stands twice (counted twice), too many
            guesses (cut off), a guess twice in a row or one that can be no category.
        InputError: a file cannot be read.
    """
    submission = Path(submission)
    spec = find_competition(competition or _competition_of(submission))
    table = read_solution(solution)
    ids, expected = table["id"].astype(str), table["expected"].to_numpy(np.int64)
    number = re.compile(r"[1-9]\d{0,17}" if spec.one_based else r"0|[1-9]\d{0,17}", re.ASCII)
    wanted = _Wanted(
        "photo of the solution",
        "photos of the solution",
        set(ids),
        lambda guess: number.fullmatch(guess) is not None,
    )
    rows = _read(submission, spec, wanted)
    guesses = np.array([rows[image_id][: spec.n_scored] for image_id in ids], np.int64)
    guesses = guesses.reshape(-1, spec.n_scored)
    public = (table["usage"] == "Public").to_numpy()
    return Score(
        metric=spec.metric_name,
        public=_score(spec, guesses[public], expected[public]),
        private=_score(spec, guesses[~public], expected[~public]),
    )


def _score(
    spec: Competition, guesses: Int64[np.ndarray, "rows k"], expected: Int64[np.ndarray, "rows"]
) -> float | None:
    if not len(expected):
        return None
    if spec.metric == "error":
        return 1 - float((guesses == expected[:, None]).any(axis=1).mean())
    # Category ids are as large as they please: numbered anew.
    _, labels = np.unique(np.concatenate([expected, guesses[:, 0]]), return_inverse=True)
    found = macro_f1(labels[len(expected) :], labels[: len(expected)])
    return None if found is None else found.value


def _competition_of(submission: Path) -> str:
    return str(read_manifest(submission).get("competition", DEFAULT_COMPETITION))


@dataclass(frozen=True)
class _Wanted:
    """The ids that a submission must have, what to call one and many of them, and whether a
    guess can be a category."""

    photo: str
    photos: str
    ids: Set[str]
    is_category: Callable[[str], bool]


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


def _read(path: Path, spec: Competition, wanted: _Wanted) -> dict[str, list[str]]:
    """The guesses of every photo.

    Raises:
        FaultsFound: anything is wrong with them.
    """
    faults = _Faults()
    rows: dict[str, list[str]] = {}
    for line, cells in _rows(path, spec, faults):
        image_id = cells[0]
        if image_id in rows:
            faults.add("duplicate id", line, image_id)
        elif image_id not in wanted.ids:
            faults.add(f"id that is no {wanted.photo}", line, image_id)
        rows[image_id] = guesses = cells[-1].split(" ")
        if len(cells) != 2:
            faults.add("not two columns", line, ",".join(cells))
        else:
            _check_guesses(guesses, spec, wanted.is_category, line, faults)
    missing = sorted(wanted.ids - rows.keys(), key=int)
    if missing:
        faults.add(f"{len(missing)} of {len(wanted.ids)} {wanted.photos} have no row", None,
                   missing[0])  # fmt: skip
    if faults.found:
        raise FaultsFound(f"{path}: " + faults.text())
    return rows


def _rows(path: Path, spec: Competition, faults: _Faults) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header with their line numbers; a wrong header is a fault."""
    with _opened(path) as handle:
        header = handle.readline(LONGEST_ROW).rstrip("\r\n")
        if header != spec.header:
            faults.add(f"the header must be {spec.header!r}", 1, header)
        rows = csv.reader(handle)
        for cells in rows:
            if cells:
                yield rows.line_num + 1, cells
            else:
                faults.add("empty line", rows.line_num + 1, "")


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a CSV or CSV.gz; what cannot be read, in the block too, is one line."""
    try:
        with path.open("rb") as plain:
            binary = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain
            with io.TextIOWrapper(binary, encoding="utf-8", newline="") as handle:
                yield handle
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: there is no such submission file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file of plain text ({error!s:.80})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not compressed by gzip, or cut off ({error!s:.80})") from None


@contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    """The text of a CSV or CSV.gz to be written; neither name nor time goes into the latter."""
    with path.open("wb") as plain:
        binary = gzip.GzipFile("", "wb", fileobj=plain, mtime=0) if path.suffix == ".gz" else plain
        with io.TextIOWrapper(binary, encoding="ascii", newline="") as handle:
            yield handle


def _check_guesses(
    guesses: Sequence[str],
    spec: Competition,
    is_category: Callable[[str], bool],
    line: int,
    faults: _Faults,
) -> None:
    n = spec.n_guesses
    if len(guesses) < n or (len(guesses) > n and not spec.more_guesses) or "" in guesses:
        count = f"at least {n}" if spec.more_guesses else str(n)
        what = "guess" if n == 1 else "guesses separated by one space"
        faults.add(f"not {count} {what}", line, " ".join(guesses))
        return
    if len(set(guesses)) < len(guesses):
        faults.add("a guess twice in a row", line, " ".join(guesses))
    for category in guesses:
        if not is_category(category):
            counted = " (they count from 1)" if spec.one_based else ""
            faults.add(f"a guess that is no category{counted}", line, category)

"""Writes a submission CSV, checks it strictly, and scores it as Kaggle does."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

from inat.core.arrays import positions
from inat.core.competitions import Competition, find_competition
from inat.core.errors import InputError
from inat.core.files import atomic_file, sha256
from inat.core.metrics import class_f1
from inat.dataset.split import load_split
from inat.evaluation.solution import read_solution
from inat.predictions.file import PredictionFile, read_prediction
from inat.submission.manifest import competition_of, refuse_other_bytes, update_manifest
from inat.submission.provenance import provenance
from inat.submission.rows import Wanted, read_rows


@dataclass(frozen=True)
class Score:
    """What Kaggle would show; None where the solution has no such row."""

    metric: str  # top-3 error and the like, where smaller is better, or macro F1
    public: float | None
    private: float | None

    def lines(self) -> list[str]:
        """Both scores, for a terminal; – where there is none."""
        return [
            f"{usage} {self.metric}  {'–' if value is None else f'{value:.5f}'}"
            for usage, value in (("public", self.public), ("private", self.private))
        ]


def write_submission(
    prediction: Path | str | PredictionFile, out: Path | str, *, competition: str | None = None
) -> Path:
    """Writes a prediction as the competition's CSV, and a manifest next to it.

    Rows are in the order of the prediction; guesses are category ids, best first; equal logits
    go to the lower id. The manifest, NAME.manifest.json (of NAME.csv.gz:
    NAME.csv.gz.manifest.json), states what the file was made of. The same prediction gives the
    same bytes, compressed or not.

    Args:
        prediction: a prediction file of the test split.
        out: the file, NAME.csv or NAME.csv.gz; an existing one is replaced.
        competition: Kaggle name; None: the prediction's own.

    Raises:
        InputError: `out` has another ending; no prediction, or not of the test split.
    """
    prediction = read_prediction(prediction)
    out = Path(out)
    if not out.name.endswith((".csv", ".csv.gz")):
        raise InputError(f"{out}: a submission's name ends in .csv or .csv.gz")
    spec = find_competition(competition or prediction.meta.competition)
    if prediction.meta.split != "test":
        raise InputError(
            f"{prediction.path}: is a prediction of {prediction.meta.split}; "
            "Kaggle scores the test split (inat predict RUN --split test)"
        )
    if prediction.n_classes < spec.n_guesses:
        raise InputError(
            f"{prediction.path}: {spec.slug} wants {spec.n_guesses} guesses a row, "
            f"and there are {prediction.n_classes} species"
        )
    guesses = prediction.category_ids[prediction.top_k(spec.n_guesses)]
    with atomic_file(out) as partial:
        with _written(partial) as handle:
            handle.write(spec.header + "\n")
            for image_id, row in zip(prediction.ids.tolist(), guesses.tolist(), strict=True):
                handle.write(f"{image_id},{' '.join(map(str, row))}\n")
        # Before the CSV takes its place: a kill in between leaves a manifest without a CSV, or one
        # of another CSV, which `refuse_other_bytes` finds; never a CSV without a manifest.
        update_manifest(out, **provenance(out.name, sha256(partial), prediction, spec))
    return out


@dataclass(frozen=True)
class Checked:
    """A submission with which nothing is wrong."""

    csv: Path
    n_rows: int

    def lines(self) -> list[str]:
        return [f"{self.csv}: {self.n_rows:,} rows, nothing wrong"]


def check_submission(
    csv: Path | str, root: Path | str, *, competition: str | None = None
) -> Checked:
    """Refuses what Kaggle would refuse or silently score wrongly.

    Args:
        csv: the submission, a CSV or CSV.gz file.
        root: folder of the data set, for its test photos and categories.
        competition: Kaggle name; None: what the manifest beside the CSV states, or else
            inaturalist-2018.

    Raises:
        FaultsFound: Kaggle would refuse it or silently score it wrongly: header, missing,
            duplicate or unknown ids, wrong number of guesses, a guess twice in a row, a guess
            that is no category; the text names the first offending lines.
        InputError: submission or data set cannot be read; the manifest is of another file.
    """
    csv = Path(csv)
    refuse_other_bytes(csv)
    spec = competition_of(csv, competition)
    test = load_split(root, "test", competition=spec.slug)
    wanted = Wanted("test photo", "test photos", test.image_ids, test.taxonomy.category_ids)
    return Checked(csv, len(read_rows(csv, spec, wanted)))


def score_submission(
    csv: Path | str, solution: Path | str, *, competition: str | None = None
) -> Score:
    """Scores a submission by the organisers' rules, separately for the Public and Private rows.

    Top-k error as in visipedia/inat_comp, top_k_accuracy.py: a row is right if one of its first
    k guesses is the expected category, the score is 1 - accuracy. Macro F1 as in scikit-learn:
    the mean over the categories that are expected or guessed.

    Args:
        csv: the submission, a CSV or CSV.gz file.
        solution: the organisers' CSV id,expected,usage.
        competition: Kaggle name; None: what the manifest beside the CSV states, or else
            inaturalist-2018.

    Raises:
        FaultsFound: what the organisers refuse, a row of the solution without a row here or a
            row with too few guesses; and what they let through, wrong as it is: an id that the
            solution does not know (ignored), an id that stands twice (counted twice), too many
            guesses (cut off), a guess twice in a row or one that can be no category.
        InputError: a file cannot be read; the manifest is of another file.
    """
    csv = Path(csv)
    refuse_other_bytes(csv)
    spec = competition_of(csv, competition)
    table = read_solution(solution)
    ids, expected = table["id"].to_numpy(np.int64), table["expected"].to_numpy(np.int64)
    wanted = Wanted("photo of the solution", "photos of the solution", ids, None)
    rows = read_rows(csv, spec, wanted)
    guesses = rows[positions(rows[:, 0], ids), 1:]
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
    return float(np.nanmean(class_f1(labels[len(expected) :], labels[: len(expected)])))


@contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    """The text of a CSV or CSV.gz to be written; neither name nor time goes into the latter."""
    with path.open("wb") as plain:
        binary = gzip.GzipFile("", "wb", fileobj=plain, mtime=0) if path.suffix == ".gz" else plain
        with io.TextIOWrapper(binary, encoding="ascii", newline="") as handle:
            yield handle

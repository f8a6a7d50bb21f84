"""Runs and predictions with the verbs as their methods: `inat.predict(run, "val")` and
`run.predict("val")` are one function.

The rooms know nothing of the verbs that come after them, so they return plain runs and predictions;
what is below turns each into the one with methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from inat.evaluation.compare import compare
from inat.evaluation.evaluate import evaluate
from inat.evaluation.report import write_report
from inat.posthoc import adjust as adjusting
from inat.posthoc import ensemble as ensembling
from inat.predictions import file
from inat.predictions import folds as fold_predictions
from inat.predictions import verbs as predicting
from inat.runs import folds as fold_runs
from inat.runs import run as runs
from inat.stage_two import verbs as second_stage
from inat.submission.csv_file import write_submission
from inat.submission.estimate import estimate_score
from inat.training import folds as fold_training
from inat.training import verbs as training

P = ParamSpec("P")
Plain = TypeVar("Plain")
Noun = TypeVar("Noun")


def _giving(noun: Callable[[Plain], Noun], function: Callable[P, Plain]) -> Callable[P, Noun]:
    """The function, whose result has the verbs; its signature and its help stay."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> Noun:
        return noun(function(*args, **options))

    return call


def _run(made: runs.Run) -> Run:
    return made if isinstance(made, Run) else Run(made.path)


def _folds(made: fold_runs.FoldRuns) -> FoldRuns:
    return FoldRuns(made.path, tuple(map(_run, made.runs)))


def _prediction(made: file.PredictionFile) -> PredictionFile:
    if isinstance(made, PredictionFile):
        return made
    return PredictionFile(**{field.name: getattr(made, field.name) for field in fields(made)})


train = _giving(_run, training.train)
train_stage_two = _giving(_run, second_stage.train_stage_two)
soup = _giving(_run, training.soup)
open_run = _giving(_run, runs.open_run)
train_folds = _giving(_folds, fold_training.train_folds)
open_folds = _giving(_folds, fold_runs.open_folds)
predict = _giving(_prediction, predicting.predict)
predict_photos = predicting.predict_photos
predict_out_of_fold = _giving(_prediction, fold_predictions.predict_out_of_fold)
adjust = _giving(_prediction, adjusting.adjust)
ensemble = _giving(_prediction, ensembling.ensemble)
read_prediction = _giving(_prediction, file.read_prediction)


@wraps(fold_predictions.predict_folds)
def predict_folds(
    folds: fold_runs.FoldRuns | Path | str, split: str = "test", **options: Any
) -> list[PredictionFile]:
    return [_prediction(made) for made in fold_predictions.predict_folds(folds, split, **options)]


class Run(runs.Run):
    """A run with the verbs as methods; `inat.runs.run.Run` describes what it holds."""

    predict = predict
    predict_photos = predict_photos
    stage_two = train_stage_two


class FoldRuns(fold_runs.FoldRuns):
    """Fold runs, and what can be done with them."""

    runs: tuple[Run, ...]
    predict = predict_folds
    predict_out_of_fold = predict_out_of_fold


class PredictionFile(file.PredictionFile):
    """A prediction with the verbs as methods; `inat.predictions.file.PredictionFile` describes
    it."""

    adjust = adjust
    evaluate = evaluate
    compare = compare
    estimate_score = estimate_score
    write_submission = write_submission

    def ensemble_with(
        self, others: Sequence[PredictionFile | Path | str], out: Path | str, **options: Any
    ) -> PredictionFile:
        """This prediction and others together; the options are those of `inat.ensemble`."""
        return ensemble([self, *others], out, **options)

    def report(self, path: Path | str, *, root: Path | str | None = None, **options: Any) -> Path:
        """Evaluates it and writes the page; the options are those of `inat.evaluate`."""
        return write_report([evaluate(self, **options)], path, root=root)

"""The verbs as methods of runs and predictions."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from predictions import make_prediction

import inat

LOGITS = [[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.5, 0.0]]
LABELS = [0, 1, 2, 1]


@pytest.fixture
def prediction(tmp_path: Path) -> inat.PredictionFile:
    make_prediction(tmp_path / "val", LOGITS, LABELS, split="val")
    return inat.read_prediction(tmp_path / "val")


@pytest.mark.parametrize(
    ("method", "function"),
    [
        (inat.Run.predict, inat.predict),
        (inat.Run.predict_photos, inat.predict_photos),
        (inat.Run.stage_two, inat.train_stage_two),
        (inat.FoldRuns.predict, inat.predict_folds),
        (inat.FoldRuns.predict_out_of_fold, inat.predict_out_of_fold),
        (inat.PredictionFile.adjust, inat.adjust),
        (inat.PredictionFile.evaluate, inat.evaluate),
        (inat.PredictionFile.compare, inat.compare),
        (inat.PredictionFile.estimate_score, inat.estimate_score),
        (inat.PredictionFile.write_submission, inat.write_submission),
    ],
)
def test_a_method_is_the_function_with_its_options_and_its_help(
    method: object, function: object
) -> None:
    assert callable(method)
    assert callable(function)
    assert inspect.signature(method) == inspect.signature(function)
    assert "Args:" in (method.__doc__ or "")
    assert method.__doc__ == function.__doc__


def test_what_a_verb_returns_has_the_verbs_too(
    prediction: inat.PredictionFile, tmp_path: Path
) -> None:
    moved = prediction.adjust(tmp_path / "uniform", target="uniform").adjust(tau=0.5)
    assert moved.path == tmp_path / "uniform-adjusted"
    assert moved.notes == ["this changes nothing: the logits carry a uniform prior already"]
    pooled = prediction.ensemble_with([moved.path], tmp_path / "both")
    assert isinstance(pooled, inat.PredictionFile)
    assert pooled.evaluate().top1.value == inat.evaluate(tmp_path / "both").top1.value == 0.75
    assert prediction.compare(moved.path).top1.n_gained == 0
    assert prediction.report(tmp_path / "r.html").read_text().startswith("<!")


def test_a_submission_is_written_and_its_score_estimated(tmp_path: Path) -> None:
    make_prediction(tmp_path / "test", LOGITS)
    make_prediction(tmp_path / "val", LOGITS, LABELS, split="val")
    test = inat.read_prediction(tmp_path / "test")
    csv = test.write_submission(tmp_path / "s.csv")
    assert len(csv.read_text().splitlines()) == 5
    assert test.estimate_score().prediction == str(tmp_path / "val")


def test_what_is_open_already_is_not_opened_again(prediction: inat.PredictionFile) -> None:
    assert inat.read_prediction(prediction) is prediction
    assert np.array_equal(prediction.labels, LABELS)


def test_the_face_shows_the_verbs_and_what_they_return_without_torch() -> None:
    code = (
        "import sys, inat; inat.Run, inat.PredictionFile, inat.train; "
        "assert 'torch' not in sys.modules; print(*dir(inat))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {
        *("train", "predict", "evaluate", "adjust", "ensemble", "compare", "soup", "Run"),
        *("write_submission", "check_submission", "score_submission", "estimate_score"),
        *("upload_submission", "submission_status", "PredictionFile", "build_loader"),
    } <= set(done.stdout.split())

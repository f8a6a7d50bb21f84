"""inat: from a folder of labelled species photos to a scored Kaggle submission."""

import importlib
from typing import TYPE_CHECKING

from inat.lazy import lazy_names

if TYPE_CHECKING:
    from inat.adjusting.adjust import adjust
    from inat.config import Config
    from inat.config_files import read_config
    from inat.data.annotations import Split, load_split
    from inat.data.loader import build_loader, to_device
    from inat.demo import run_demo
    from inat.ensembling.ensemble import ensemble
    from inat.errors import FaultsFound, InatError, InputError, WorldError
    from inat.evaluation.compare import Comparison, compare
    from inat.evaluation.evaluate import Evaluation, evaluate
    from inat.evaluation.report import write_report
    from inat.fold_runs import FoldRuns, open_folds
    from inat.prediction.folds import predict_folds, predict_out_of_fold
    from inat.prediction.predict import predict, predict_photos
    from inat.prediction_file import PredictionFile, read_prediction
    from inat.run_folder import Run, open_run
    from inat.runs import list_runs
    from inat.stage_two.train import train_stage_two
    from inat.training.folds import train_folds
    from inat.training.loop import dry_run, train
    from inat.training.soup import soup

__all__ = [
    "Comparison",
    "Config",
    "Evaluation",
    "FaultsFound",
    "FoldRuns",
    "InatError",
    "InputError",
    "PredictionFile",
    "Run",
    "Split",
    "WorldError",
    "adjust",
    "build_loader",
    "compare",
    "dry_run",
    "ensemble",
    "evaluate",
    "list_runs",
    "load_split",
    "open_folds",
    "open_run",
    "predict",
    "predict_folds",
    "predict_out_of_fold",
    "predict_photos",
    "read_config",
    "read_prediction",
    "run_demo",
    "soup",
    "to_device",
    "train",
    "train_folds",
    "train_stage_two",
    "write_report",
]

_find = lazy_names(
    __name__,
    {
        "Comparison": "inat.evaluation.compare",
        "Config": "inat.config",
        "Evaluation": "inat.evaluation.evaluate",
        "FaultsFound": "inat.errors",
        "FoldRuns": "inat.fold_runs",
        "InatError": "inat.errors",
        "InputError": "inat.errors",
        "PredictionFile": "inat.prediction_file",
        "Run": "inat.run_folder",
        "Split": "inat.data.annotations",
        "WorldError": "inat.errors",
        "adjust": "inat.adjusting.adjust",
        "build_loader": "inat.data.loader",
        "compare": "inat.evaluation.compare",
        "dry_run": "inat.training.loop",
        "ensemble": "inat.ensembling.ensemble",
        "evaluate": "inat.evaluation.evaluate",
        "list_runs": "inat.runs",
        "load_split": "inat.data.annotations",
        "open_folds": "inat.fold_runs",
        "open_run": "inat.run_folder",
        "predict": "inat.prediction.predict",
        "predict_folds": "inat.prediction.folds",
        "predict_out_of_fold": "inat.prediction.folds",
        "predict_photos": "inat.prediction.predict",
        "read_config": "inat.config_files",
        "read_prediction": "inat.prediction_file",
        "run_demo": "inat.demo",
        "soup": "inat.training.soup",
        "to_device": "inat.data.loader",
        "train": "inat.training.loop",
        "train_folds": "inat.training.folds",
        "train_stage_two": "inat.stage_two.train",
        "write_report": "inat.evaluation.report",
    },
)


_PACKAGES = ("data", "evaluation", "stage_two", "submission", "training")


def __getattr__(name: str) -> object:
    # `import inat; inat.data.synth(...)` needs no further import.
    return importlib.import_module(f"inat.{name}") if name in _PACKAGES else _find(name)


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES]

"""Trains a run a fold, so that every photo is held out by one of them."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from inat.config.schema import Config
from inat.core.errors import InputError
from inat.core.files import remove_folder, remove_leftovers
from inat.core.progress import say
from inat.predictions.folds import predict_out_of_fold
from inat.predictions.processes import this_process
from inat.runs.folds import FoldRuns, fold_path, holds_folds
from inat.runs.run import writing
from inat.training.verbs import dry_run, resolved, train


def train_folds(
    config: Config | Path | str,
    folds: int,
    run: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> FoldRuns:
    """Trains RUN/fold_1 ... RUN/fold_K and predicts each photo by the run that held it out.

    A fold that is trained already is not trained again. The options not listed here are those of
    `train`.

    Args:
        config: a YAML file of `configs/`, or a Config; the folds take the place of data.holdout.
        folds: number of runs; each holds out another fold of train.
        run: folder of the runs and of predictions/oof; None: runs/ and the config file's name.

    Raises:
        InputError: anything wrong with config or data; a folder that is in use.
        WorldError: the loss is not finite, a photo cannot be read, or another process writes the
            folder or one of its runs.
    """
    from inat.training.plan import make_plan  # here: it imports torch, and help must not wait

    config, path = resolved(config, run, overrides)
    if resume and overwrite:
        raise InputError("--resume keeps a run and --overwrite throws it away; give one of them")
    if this_process(None, None).world_size > 1:
        raise InputError(
            f"--folds {folds}: they are trained in one process; start it without torchrun, or give "
            f"each GPU a fold of its own: CUDA_VISIBLE_DEVICES=0 inat train CONFIG --run "
            f"RUN/fold_1 --data.holdout fold:1/{folds}, and so on"
        )
    configs = [fold_config(config, fold, folds) for fold in range(1, folds + 1)]
    with writing(path):
        remove_leftovers(path)
        _refuse_place(path)
        # Before the first is trained: a fold that cannot be would be found out days later.
        for each in configs:
            make_plan(each)
        if overwrite and holds_folds(path):
            dry_run(configs[0])  # what is wrong must not cost the old runs
            _throw_away(path)
        runs = []
        for fold, each in enumerate(configs, start=1):
            say(f"fold       {fold} of {folds}")
            runs.append(train(each, fold_path(path, fold), resume=resume))
        predict_out_of_fold(path)
    return FoldRuns(path, tuple(runs))


def _throw_away(path: Path) -> None:
    """Removes old fold runs, none of which another process trains."""
    with ExitStack() as locks:
        for fold in sorted(path.glob("fold_*")):
            locks.enter_context(writing(fold))
        remove_folder(path)


def fold_config(config: Config, fold: int, folds: int) -> Config:
    """The config of the run that holds out a fold, counted from 1."""
    if folds < 2:
        raise InputError(f"--folds {folds}: each fold is trained on the others; give 2 or more")
    if config.data.train_on != "train":
        raise InputError(
            f"--folds {folds}: data.train_on {config.data.train_on} is for the final fit and folds "
            "are cut out of train; set data.train_on train"
        )
    return replace(config, data=replace(config.data, holdout=f"fold:{fold}/{folds}"))


def _refuse_place(path: Path) -> None:
    if holds_folds(path) or not path.exists():
        return
    # The lock of a first fold that was killed early is nothing to be careful of.
    if path.is_dir() and all(found.suffix == ".lock" for found in path.iterdir()):
        return
    raise InputError(f"{path}: the folder is not empty and holds no fold runs; give another --run")

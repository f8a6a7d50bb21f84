"""Fold runs: the folder that `inat train --folds K` leaves, with a run of each fold beneath it."""

from dataclasses import dataclass, replace
from pathlib import Path

from inat.config.schema import parse_holdout
from inat.core.errors import InputError
from inat.runs.run import Run, differing_fields, is_run, open_run


@dataclass(frozen=True)
class FoldRuns:
    """K runs, each of which held out another K-th of the photos.

    Attributes:
        path: the folder; fold_1 ... fold_K and predictions/ lie in it.
        runs: of the folds, in their order.
    """

    path: Path
    runs: tuple[Run, ...]

    def lines(self) -> list[str]:
        """What it is and what to do with it, for a terminal."""
        return [
            f"{self.path}: {len(self.runs)} folds trained; "
            f"next: inat evaluate {self.path}/predictions/oof"
        ]

    def prediction(self, name: str) -> Path:
        """The folder of a prediction file that the folds made together."""
        return self.path / "predictions" / name


def fold_path(path: Path, fold: int) -> Path:
    """The run folder of a fold, which is counted from 1."""
    return path / f"fold_{fold}"


def holds_folds(path: Path) -> bool:
    """Whether the folder is one of fold runs, and no run itself."""
    return is_run(fold_path(path, 1)) and not is_run(path)


def open_folds(path: FoldRuns | Path | str) -> FoldRuns:
    """Opens the runs of all folds; those that are open already are returned as they are.

    Raises:
        InputError: there are none, one is missing or has no checkpoint yet, or they differ in
            more than the fold that they hold out.
    """
    if isinstance(path, FoldRuns):
        return path
    path = Path(path)
    if not holds_folds(path):
        raise InputError(f"{path}: no fold runs (no fold_1 in it); inat train --folds K makes them")
    first = open_run(fold_path(path, 1))
    holdout = parse_holdout(first.config.data.holdout)
    if not isinstance(holdout, tuple) or holdout[0] != 1:
        raise InputError(
            f"{first.path}: holds out {first.config.data.holdout} and not fold:1/K; "
            "inat train --folds K makes fold runs"
        )
    runs = [first]
    for fold in range(2, holdout[1] + 1):
        run = open_run(fold_path(path, fold))
        data = replace(first.config.data, holdout=f"fold:{fold}/{holdout[1]}")
        wanted = replace(first.config, data=data)
        if run.config.digest != wanted.digest:
            fields = ", ".join(differing_fields(run.config, wanted))
            raise InputError(
                f"{run.path}: differs from {first.path} in more than its fold ({fields}); make all "
                "folds with the same settings"
            )
        runs.append(run)
    return FoldRuns(path, tuple(runs))

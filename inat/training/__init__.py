"""The training loop, its optimiser, checkpoints and log."""

from inat.training.folds import train_folds
from inat.training.verbs import dry_run, train

__all__ = ["dry_run", "train", "train_folds"]

"""The training loop, its optimiser, checkpoints and log."""

from inat.training.loop import dry_run, train

__all__ = ["dry_run", "train"]

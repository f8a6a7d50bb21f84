"""`train`, `dry_run` and `soup`. torch is imported when one of them is called, not before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from inat.config.reading import build, read_config
from inat.config.schema import CheckpointName, Config, Precision, SoupRecipe, Weights
from inat.config.values import merge
from inat.core.errors import InputError, unknown_name
from inat.runs.run import Run


@dataclass(frozen=True)
class DryRun:
    """The plan of a training, and what one batch of each of its stages took.

    Attributes:
        plan: the lines.
    """

    plan: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan, for a terminal."""
        return list(self.plan)


def train(
    config: Config | Path | str,
    run: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Trains what a config says and leaves a run folder.

    Args:
        config: a YAML file (configs/...), or a Config.
        run: the run folder; None: runs/ and the config file's name.
        overrides: dotted fields that overrule the config, {"optim.lr_per_256": 1e-3}.
        resume: resume from the last complete checkpoint of a run of the same config.
        overwrite: throw away what the run folder holds.

    Raises:
        InputError: anything wrong with config or data; a run folder that holds something else.
        WorldError: the loss is not finite, a photo cannot be read, the disk is full, or another
            training works in the run folder.
        Stopped: SIGINT or SIGTERM came to any of the processes; the checkpoint is written.
    """
    from inat.training.loop import train_run

    config, path = resolved(config, run, overrides)
    if resume and overwrite:
        raise InputError("--resume keeps a run and --overwrite throws it away; give one of them")
    return train_run(config, path, resume=resume, overwrite=overwrite)


def dry_run(config: Config | Path | str, *, overrides: Mapping[str, Any] | None = None) -> DryRun:
    """The plan of a training, with the peak memory that one batch of each of its stages took."""
    from inat.training.trial import try_run

    config, _ = resolved(config, None, overrides)
    return DryRun(tuple(try_run(config)))


def resolved(
    config: Config | Path | str, run: Path | str | None, overrides: Mapping[str, Any] | None
) -> tuple[Config, Path]:
    """The config with what overrules it, and the run folder where none was given."""
    if not isinstance(config, Config):
        return read_config(config, overrides), Path(run or Path("runs") / Path(config).stem)
    if overrides:
        config = build(merge(config.to_dict(), overrides), "overrides")
    return config, Path(run or Path("runs") / config.digest)


def soup(
    runs: Sequence[Run | Path | str],
    out: Path | str,
    *,
    how: SoupRecipe = "uniform",
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    root: Path | str | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Averages the weights of runs of one architecture, and leaves a run that all verbs take.

    Tensors of numbers are averaged; integer ones (the counters of batch norm) are the first run's.
    The mean of batch norm's statistics is not the statistics of the mean: where the backbones
    differ they are gathered again, from some 10,000 draws of the first run's training, as
    stochastic weight averaging does (Izmailov et al. 2018, section 3.2).

    Args:
        runs: two or more runs, trained on the same photos.
        out: folder of the new run; its settings are the first run's.
        how: uniform: all runs; greedy (Wortsman et al. 2022, recipe 1): from the run that is best
            on the held-out part, each of the others that does not lower the soup's mean class
            accuracy there.
        checkpoint: last, or best on the held-out part of train.
        weights: ema (moving average) or raw; auto: ema where a run kept one.
        root: folder of the data set, if it is not the first run's.
        workers: threads or processes that read photos; None: the first run's.
        precision: precision of the forward passes; auto: what the device does best; None: the
            first run's, if the device has it.
        batch_size: photos per forward pass; None: twice those of a process of the first run's
            training, at most 512.
        overwrite: throw away the run that is at `out`.

    Raises:
        InputError: no such run or checkpoint, other architectures, species or training photos, a
            run twice, no held-out part to be greedy on, `out` exists.
        WorldError: a photo cannot be read, or another process writes `out`.
    """
    if how not in get_args(SoupRecipe):
        raise InputError(unknown_name("--how", how, get_args(SoupRecipe)))
    if len(runs) < 2:
        raise InputError(f"a soup has two runs or more, and {len(runs)} was given")
    from inat.runs.trained import open_trained
    from inat.training.soup import make_soup

    first = open_trained(
        runs[0],
        checkpoint,
        weights,
        root=root,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
    )
    members = [first, *(open_trained(run, checkpoint, weights) for run in runs[1:])]
    return make_soup(members, Path(out), how=how, overwrite=overwrite)

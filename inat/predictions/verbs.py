"""`predict` and `predict_photos`. torch is imported when one of them is called, not before."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inat.config.schema import CheckpointName, Precision, ViewMean, Weights
from inat.core.errors import InputError
from inat.photos.search import readable
from inat.predictions.file import PredictionFile
from inat.predictions.processes import this_process
from inat.runs.run import Run, open_run

if TYPE_CHECKING:
    from inat.loader.reader import PhotoIssue


@dataclass(frozen=True)
class Guess:
    """The likeliest species of one photo, best first.

    Attributes:
        path: the photo.
        names: of the species.
        category_ids: of the species.
        probabilities: of the species; those of all species sum to 1.
    """

    path: Path
    names: list[str]
    category_ids: list[int]
    probabilities: list[float]

    def line(self) -> str:
        """The photo and its species, as a terminal shows them."""
        likely = zip(self.names, self.probabilities, strict=True)
        return f"{readable(self.path)}: " + ", ".join(f"{who} {share:.1%}" for who, share in likely)


@dataclass(frozen=True)
class PhotoGuesses:
    """What `predict_photos` found.

    Attributes:
        guesses: one for each photo that could be read.
        unreadable: the other photos, each with the reason.
    """

    guesses: list[Guess]
    unreadable: list["PhotoIssue"]

    def lines(self) -> list[str]:
        """A line for each photo that could be read."""
        return [guess.line() for guess in self.guesses]


def predict(
    run: Run | Path | str,
    split: str = "test",
    *,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    views: str = "centre",
    view_mean: ViewMean = "logprob",
    name: str | None = None,
    root: Path | str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    float32: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    overwrite: bool = False,
) -> PredictionFile:
    """Predicts every photo of a split and writes the prediction file RUN/predictions/NAME.

    An interrupted call resumes when it is made again, and the file is the same, byte for byte:
    finished parts are kept in RUN/predictions/.parts-NAME until the file is complete. Several
    processes share the work in the same way; that of rank 0 joins the parts.

    Args:
        run: the run to predict with, a folder that `inat train` made.
        split: test, val, train, holdout (what the run kept out of training) or fold:i/K.
        checkpoint: last, or best on the held-out part of train.
        weights: ema (moving average) or raw; auto: ema where the run kept one.
        views: test-time augmentation: the views of each photo that are averaged, all from one
            decode. Parts are joined by +. Crops add up: centre, five-crop (corners and centre),
            full (the whole photo, squeezed), random:N (of seed:S). flip adds the mirror image of
            each, scales:A,B shows each in each size; ten-crop is five-crop+flip. Examples: flip;
            ten-crop; scales:224,256,288+flip; full+random:8+seed:1.
        view_mean: what is averaged over the views: logprob (log-probabilities) or prob
            (probabilities).
        name: name of the prediction; None: the split's.
        root: folder of the data set, if it is not the run's.
        batch_size: images per forward pass, views counted; None: twice those of a process of the
            training, at most 512.
        workers: threads or processes that read photos; None: the run's.
        precision: precision of the forward passes; auto: what the device does best; None: the
            run's, if the device has it.
        float32: keep the logits as float32 instead of float16, in twice the space.
        rank: number of this process among several that predict together, from 0; None: RANK and
            WORLD_SIZE of the environment, which torchrun sets, or else the only one.
        world_size: number of processes that predict together.
        overwrite: replace a prediction of that name that was made with other settings.

    Raises:
        InputError: no such run, checkpoint or split; views that cannot be parsed, or sizes that
            the network does not take; a prediction of that name exists; a geo prior, and the
            split has no locations.
        WorldError: a photo cannot be read (data.on_bad_photo stop), or too many; another process
            makes this prediction, or never makes its share.
    """
    from inat.predictions.predict import Job, make_prediction
    from inat.runs.trained import open_trained

    opened, process = open_run(run), this_process(rank, world_size)
    name = name or split.replace(":", "-").replace("/", "-of-")
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"--name {name!r} is no plain name; it becomes a folder in {opened.path}")
    trained = open_trained(
        opened,
        checkpoint,
        weights,
        root=root,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
    )
    dtype = np.float32 if float32 else np.float16
    job = Job(trained, trained.split(split), views, view_mean, dtype)
    return make_prediction(job, name, process, overwrite=overwrite)


def predict_photos(
    run: Run | Path | str,
    photos: Path | str,
    *,
    k: int = 3,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    views: str = "centre",
    view_mean: ViewMean = "logprob",
    precision: Precision | None = None,
) -> PhotoGuesses:
    """The k likeliest species of a photo, or of each photo in a folder and below it.

    Links are followed; hidden and system folders are not searched. The options not listed here
    are those of `predict`.

    Args:
        run: the run to predict with.
        photos: a photo, or a folder of photos.
        k: number of species per photo.

    Raises:
        InputError: no such run, photo or folder, no photo in it, or views that cannot be parsed.
    """
    from inat.predictions.own_photos import guess_species
    from inat.runs.trained import open_trained

    trained = open_trained(run, checkpoint, weights, precision=precision)
    return guess_species(trained, Path(photos), k, views, view_mean)

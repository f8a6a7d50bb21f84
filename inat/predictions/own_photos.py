"""Names the species on photos of one's own, which are in no data set."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from inat.config.schema import ViewMean
from inat.core.errors import InputError
from inat.core.metrics import top_k
from inat.core.priors import log_softmax
from inat.dataset.split import Split
from inat.dataset.taxonomy import Taxonomy
from inat.loader.reader import PhotoIssue
from inat.photos.search import (
    FoundPhoto,
    PassedOver,
    PhotoFolder,
    look_at_photo,
    passed_over_lines,
    readable,
    search_photos,
)
from inat.photos.sources import OwnPhotos
from inat.predictions.predict import Job
from inat.predictions.verbs import Guess, PhotoGuesses
from inat.runs.trained import TrainedRun


def guess_species(
    trained: TrainedRun, path: Path, k: int, views: str, view_mean: ViewMean
) -> PhotoGuesses:
    found, unreadable = _own_photos(path)
    species, n_photos = trained.run.species, len(found)
    table = Split(
        name="photos",
        root=path,
        competition=trained.config.data.competition,
        file_names=pa.array([readable(photo.path) for photo in found], pa.string()),
        image_ids=np.arange(n_photos),
        labels=np.full(n_photos, -1),
        sizes=np.zeros((n_photos, 2), np.int32),
        taxonomy=Taxonomy(species.drop(columns="train_count")),
        train_counts=species["train_count"].to_numpy(np.int64),
    )
    job = Job(trained, table, views, view_mean)
    loader = job.loader(table, on_bad_photo="skip", source=OwnPhotos(found))
    guesses = []
    with job.machine():
        for batch, logits in job.load_model().logits(loader, table.n_classes, view_mean):
            likely = top_k(logits.numpy(), k)
            probabilities = np.exp(np.take_along_axis(log_softmax(logits.numpy()), likely, axis=1))
            for row, photo in enumerate(batch["image_id"].tolist()):
                rows = species.iloc[likely[row]]
                names, ids = rows["name"].tolist(), rows["category_id"].tolist()
                shares = probabilities[row].tolist()
                guesses.append(Guess(found[photo].path, names, ids, shares))
    return PhotoGuesses(guesses, unreadable + loader.bad_photos)


def _own_photos(path: Path) -> tuple[list[FoundPhoto], list[PhotoIssue]]:
    if not path.exists():
        raise InputError(f"{readable(path)}: there is no such photo or folder")
    if path.is_dir():
        folder = search_photos(path)
    elif isinstance(seen := look_at_photo(path), PassedOver):
        folder = PhotoFolder(path.parent, passed_over=[seen])
    else:
        folder = PhotoFolder(path.parent, [seen])
    found, passed_over = folder.all_photos(), folder.all_passed_over()
    if not found:
        lines = "; ".join(passed_over_lines(passed_over))
        reason = f" ({lines})" if lines else ""
        raise InputError(f"{readable(path)}: there is no photo in it{reason}")
    meant = ("unreadable", "heic", "raw", "broken link")
    unread = [
        PhotoIssue(-1, readable(one.path), one.reason or one.kind, "bad")
        for one in passed_over
        if one.kind in meant
    ]
    return found, unread

"""Predicts a split, or a folder of photos, with a trained run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from inat.config import CheckpointName, Config, Weights
from inat.data.annotations import Split, cut_holdout, load_split
from inat.data.loader import Loader, PhotoEvent, build_loader
from inat.data.photos import PHOTO_ENDINGS
from inat.data.taxonomy import Taxonomy
from inat.errors import InputError, WorldError
from inat.metrics import top_k
from inat.models.device import freed_memory_kept
from inat.prediction.forward import iterate_logits
from inat.prediction.log_presence import SEEN, write_log_presence
from inat.prediction.trained_model import (
    Checkpoint,
    TrainedModel,
    find_checkpoint,
    load_model,
)
from inat.prediction_file import PredictionFile, read_prediction, store, write_prediction
from inat.priors import log_softmax
from inat.progress import progress_bar
from inat.run_folder import Run, open_run, versions, with_root


@dataclass(frozen=True)
class Guess:
    """The likeliest species of one photo, best first.

    Attributes:
        path: the photo.
        names: of the species.
        category_ids: of the species.
        probabilities: of the species; all species together have 1.
    """

    path: Path
    names: list[str]
    category_ids: list[int]
    probabilities: list[float]


def predict(
    run: Path | str,
    split: str = "test",
    *,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    name: str | None = None,
    root: Path | str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    float32: bool = False,
    overwrite: bool = False,
) -> PredictionFile:
    """Predicts every photo of a split once and writes RUN/predictions/NAME.

    Args:
        run: a folder that `inat train` made.
        split: test, val, train, holdout (what the run kept out of training) or fold:i/K.
        checkpoint: last, or best on the held-out part.
        weights: ema or raw; auto: the moving average where the run kept one.
        name: of the prediction; None: the split's.
        root: data folder, where it is another than the run's.
        batch_size: photos a forward pass; None: twice the run's.
        workers: threads or processes that read photos; None: the run's.
        float32: keep the logits as float32 instead of float16, in twice the space.
        overwrite: replace a prediction of that name that was made with other settings.

    Raises:
        InputError: no such run, checkpoint or split; a prediction of that name exists; the split
            has no locations, which a geo prior needs.
        WorldError: a photo cannot be read (data.on_bad_photo stop), or too many.
    """
    opened = open_run(run)
    config = with_root(opened.config, root)
    name = name or split.replace(":", "-").replace("/", "-of-")
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"--name {name!r} is no plain name; it becomes a folder in {run}")
    chosen = find_checkpoint(opened, checkpoint, weights)
    photos = load_split(
        config.data.root or Path(),
        split,
        holdout=config.data.holdout,
        holdout_seed=config.data.holdout_seed,
        competition=config.data.competition,
    )
    _refuse_other_species(opened, photos)
    path = opened.prediction(name)
    meta = _meta(opened, config, chosen, photos) | (SEEN if opened.is_geo_prior else {})
    if (path / "meta.json").is_file() and not overwrite:
        return _same_or_refused(path, meta, float32=float32)
    dtype = np.float32 if float32 else np.float16
    if opened.is_geo_prior:
        table = _photo_table(opened, photos, config, chosen)
        return write_log_presence(path, opened, chosen, photos, table, meta, dtype)
    return _write(opened, config, chosen, photos, path, meta, batch_size, workers, dtype)


def predict_photos(
    run: Path | str,
    folder: Path | str,
    *,
    k: int = 3,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
) -> tuple[list[Guess], list[PhotoEvent]]:
    """The k likeliest species of each photo below a folder, and the photos that were unreadable.

    Raises:
        InputError: no such run, or no photo in the folder.
    """
    opened = open_run(run)
    folder = Path(folder)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_ENDINGS)
    if not found:
        raise InputError(f"{folder}: there is no photo in it ({' '.join(sorted(PHOTO_ENDINGS))})")
    photos = _split_of_files(opened, folder, found)
    model = load_model(opened, find_checkpoint(opened, checkpoint, weights))
    config = opened.config
    loader = _eval_loader(config, photos, config.batch_size, config.data.workers, "skip")
    guesses = []
    for batch, logits in iterate_logits(
        model.network, loader, mean=model.mean, std=model.std, precision=model.precision
    ):
        likely = top_k(logits.numpy(), k)
        probabilities = np.exp(np.take_along_axis(log_softmax(logits.numpy()), likely, axis=1))
        for row, photo in enumerate(batch["image_id"].tolist()):
            species = photos.taxonomy.table.iloc[likely[row]]
            guesses.append(
                Guess(
                    found[photo],
                    list(species["name"]),
                    species["category_id"].tolist(),
                    probabilities[row].tolist(),
                )
            )
    return guesses, loader.bad_photos


def _write(
    run: Run,
    config: Config,
    checkpoint: Checkpoint,
    photos: Split,
    path: Path,
    meta: dict[str, Any],
    batch_size: int | None,
    workers: int | None,
    dtype: type,
) -> PredictionFile:
    model = load_model(run, checkpoint)
    loader = _eval_loader(
        config,
        photos,
        2 * config.batch_size if batch_size is None else batch_size,
        config.data.workers if workers is None else workers,
        config.data.on_bad_photo,
    )
    with write_prediction(
        path,
        ids=photos.image_ids,
        labels=photos.labels,
        species=run.species,
        photos=_photo_table(run, photos, config, checkpoint),
        meta=meta,
        dtype=dtype,
    ) as rows:
        _fill(rows, model, loader, photos, np.log(run.draws_prior), f"predict {photos.name}")
        limit = config.data.bad_photo_limit * len(photos)
        if len(loader.bad_photos) > limit:
            raise WorldError(
                f"{len(loader.bad_photos)} of {len(photos)} photos cannot be read, more than "
                f"data.bad_photo_limit allows; the first: {loader.bad_photos[0]}"
            )
        meta["bad_photos"] = [str(event) for event in loader.bad_photos]
        meta["recovered_photos"] = [str(event) for event in loader.recovered_photos]
        meta["slow_photos"] = [str(event) for event in loader.slow_photos]
    return read_prediction(path)


def _fill(
    rows: np.ndarray,
    model: TrainedModel,
    loader: Loader,
    photos: Split,
    log_prior: np.ndarray,
    title: str,
) -> None:
    """Puts each photo's logits into its row; the row of an unreadable photo is the class prior."""
    row_of = {image_id: row for row, image_id in enumerate(photos.image_ids.tolist())}
    with progress_bar(title, len(photos), "photos") as bar, freed_memory_kept():
        for batch, logits in iterate_logits(
            model.network, loader, mean=model.mean, std=model.std, precision=model.precision
        ):
            places = [row_of[image_id] for image_id in batch["image_id"].tolist()]
            if not bool(logits.isfinite().all()):
                raise WorldError(
                    f"{loader.n_draws} photos: the logits of image {batch['image_id'][0]} or a "
                    "neighbour are not finite; predict with --weights raw or train again at a "
                    "lower learning rate"
                )
            rows[places] = store(logits.numpy(), rows.dtype)
            bar.advance(len(places))
    for event in loader.bad_photos:
        rows[row_of[event.image_id]] = store(log_prior[None], rows.dtype)[0]


def _eval_loader(
    config: Config, photos: Split, batch_size: int, workers: int | None, on_bad_photo: Any
) -> Loader:
    return build_loader(
        photos,
        image_size=config.transforms.test_size,
        training=False,
        batch_size=batch_size,
        workers=workers,
        recipe=config.transforms,
        worker_kind=config.data.worker_kind,
        on_bad_photo=on_bad_photo,
    )


def _meta(run: Run, config: Config, checkpoint: Checkpoint, photos: Split) -> dict[str, Any]:
    return {
        "competition": config.data.competition,
        "split": photos.name,
        "logits_prior": run.model["logits_prior"],
        "views": [
            {
                "kind": "centre",
                "size": config.transforms.test_size,
                "crop_pct": config.transforms.test_crop_pct,
            }
        ],
        "run": str(run.path),
        "checkpoint": checkpoint.name,
        "checkpoint_epoch": checkpoint.epoch,
        "checkpoint_sha256": checkpoint.digest,
        "weights": checkpoint.weights,
        "weights_source": run.model["weights_source"],
        "chosen": checkpoint.chosen,
        "adjusted": [],
        "data_root": str(photos.root.resolve()),
        "band_edges": config.data.band_edges,
        "config_digest": config.digest,
        "versions": versions(),
    }


def _same_or_refused(path: Path, meta: dict[str, Any], *, float32: bool) -> PredictionFile:
    """The prediction that is there already, if it is the one asked for."""
    there = read_prediction(path)
    for key in ("split", "checkpoint", "checkpoint_sha256", "chosen", "data_root", "views"):
        if there.meta.get(key) != meta[key]:
            raise InputError(
                f"{path}: there is a prediction with another {key} ({there.meta.get(key)}); "
                "give another --name, or --overwrite"
            )
    if (there.logits.dtype == np.float32) != float32:
        raise InputError(
            f"{path}: there is a prediction in {there.logits.dtype}; give another --name, or "
            "--overwrite"
        )
    return there


def _photo_table(run: Run, photos: Split, config: Config, checkpoint: Checkpoint) -> pd.DataFrame:
    """What the run's training made of each photo: unseen, trained on, held out, chosen on."""
    data = config.data
    trained = load_split(data.root or Path(), data.train_on, competition=data.competition)
    role = np.full(len(photos), "unseen", object)
    if data.holdout != "none":
        trained, held = cut_holdout(trained, data.holdout, data.holdout_seed)
        role[np.isin(photos.image_ids, held.image_ids)] = (
            "chosen on" if checkpoint.chosen else "held out"
        )
    if trained.fingerprint != run.model["trained"]:
        raise InputError(
            f"{data.root}: its {data.train_on} photos are not those that {run.path} was trained "
            "on, so which photos it has seen cannot be told; give the data set it was trained on "
            "(--data.root)"
        )
    role[np.isin(photos.image_ids, trained.image_ids)] = "trained on"
    return pd.DataFrame(
        {
            "id": photos.image_ids,
            "file_name": photos.file_names.to_pylist(),
            "role": pd.array(role, "str"),
        }
    )


def _refuse_other_species(run: Run, photos: Split) -> None:
    if run.model["category_ids"] != photos.taxonomy.category_ids.tolist():
        raise InputError(
            f"{photos.root}: its {photos.n_classes} species are not the "
            f"{len(run.model['category_ids'])} that {run.path} was trained on"
        )


def _split_of_files(run: Run, folder: Path, found: list[Path]) -> Split:
    n_photos = len(found)
    species = run.species
    return Split(
        name="photos",
        root=folder,
        competition=run.config.data.competition,
        file_names=pa.array([p.relative_to(folder).as_posix() for p in found], pa.string()),
        image_ids=np.arange(n_photos),
        labels=np.full(n_photos, -1),
        sizes=np.zeros((n_photos, 2), np.int32),
        taxonomy=Taxonomy(species.drop(columns="train_count")),
        train_counts=species["train_count"].to_numpy(np.int64),
    )

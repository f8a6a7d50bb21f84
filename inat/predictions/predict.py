"""Predicts a split, or a folder of photos, with a trained run."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd
import pyarrow as pa
from jaxtyping import Float, Float64, Int64
from msgspec.structs import replace
from torch import Tensor

from inat.config.schema import Config, Precision, ViewMean
from inat.core.errors import InputError, WorldError
from inat.core.files import disk_remedies, locked
from inat.core.metrics import top_k
from inat.core.priors import count_prior, log_softmax
from inat.core.progress import first_few, progress_bar, say
from inat.dataset.locations import have_place, places_of
from inat.dataset.split import Split, cut_holdout, load_split
from inat.dataset.taxonomy import Taxonomy
from inat.geo.predict import predict_log_presence
from inat.loader.loader import Batch, Loader, PhotoEvent, build_loader, worker_deaths
from inat.loader.views import View, parse_views
from inat.models.device import (
    fast_kernels,
    freed_memory_kept,
    memory_remedies,
    pick_device,
    resolve_precision,
)
from inat.models.forward import iterate_logits
from inat.models.view_batches import refuse_sizes
from inat.photos.decode import SLOW_SECONDS
from inat.photos.search import (
    FoundPhoto,
    PassedOver,
    PhotoFolder,
    look_at_photo,
    passed_over_lines,
    readable,
    search_photos,
)
from inat.photos.sources import OwnPhotos, PhotoSource
from inat.predictions.file import (
    PredictionFile,
    read_prediction,
    store,
    write_prediction,
)
from inat.predictions.meta import LOG_PRESENCE, PredictionMeta, Role
from inat.predictions.parts import PART_IMAGES, Parts, Troubles, parts_folder
from inat.predictions.processes import Process, wait_until_none
from inat.predictions.verbs import Guess
from inat.runs.run import Run, versions
from inat.runs.trained import (
    Checkpoint,
    TrainedModel,
    load_model,
)


@dataclass(frozen=True)
class Job:
    """A prediction to be made: what decides each of its logits, but for the network."""

    run: Run
    config: Config
    checkpoint: Checkpoint
    photos: Split
    views: str
    view_mean: ViewMean
    batch_size: int
    workers: int | None
    dtype: npt.DTypeLike = np.float16
    precision: Precision | None = None

    @property
    def parsed_views(self) -> tuple[View, ...]:
        sizes = self.config.transforms
        return parse_views(self.views, size=sizes.test_size, crop_pct=sizes.test_crop_pct)

    @property
    def photos_a_batch(self) -> int:
        """As many as have `batch_size` views of one size, which are a forward pass."""
        if self.batch_size < 1:
            raise InputError(f"batch_size: {self.batch_size} is less than 1; give 1 or more")
        together = max(Counter(view.size for view in self.parsed_views).values())
        return max(1, self.batch_size // together)

    @property
    def photos_a_part(self) -> int:
        """Whole batches, so that a batch holds the same photos whoever makes which part: what a
        network gives for a photo depends in its last bits on the size of the batch."""
        batch = self.photos_a_batch
        return batch * max(1, PART_IMAGES // (batch * len(self.parsed_views)))

    def loader(
        self,
        photos: Split,
        on_bad_photo: Literal["stop", "skip"] | None = None,
        source: PhotoSource | None = None,
    ) -> Loader:
        config = self.config
        return build_loader(
            photos,
            image_size=config.transforms.test_size,
            training=False,
            batch_size=self.photos_a_batch,
            workers=self.workers,
            recipe=config.transforms,
            views=self.views,
            worker_kind=config.data.worker_kind,
            on_bad_photo=on_bad_photo or config.data.on_bad_photo,
            source=source,
            pin_memory=pick_device(config.runtime.device).type == "cuda",
        )

    def logits(
        self, model: TrainedModel, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Float[Tensor, "batch classes"]]]:
        return iterate_logits(
            model.network,
            batches,
            n_classes=self.photos.n_classes,
            mean=model.mean,
            std=model.std,
            precision=model.precision,
            channels_last=model.channels_last,
            view_mean=self.view_mean,
        )

    def model(self) -> TrainedModel:
        config, model = self.config, load_model(self.run, self.checkpoint, self.precision)
        refuse_sizes(
            model.network, self.parsed_views, config.transforms.test_size, config.model.backbone
        )
        return model

    @contextmanager
    def machine(self) -> Iterator[None]:
        """The settings of CUDA that forward passes want, and a sentence where memory is full."""
        runtime = self.config.runtime
        remedy = f"give a smaller --batch-size than {self.batch_size}"
        with (
            memory_remedies(remedy),
            fast_kernels(runtime.fast_kernels, deterministic=runtime.deterministic),
        ):
            yield


def make_prediction(job: Job, name: str, process: Process, *, overwrite: bool) -> PredictionFile:
    """Makes the prediction, or finds that the same one is there already; see `verbs.predict`."""
    run = job.run
    _refuse_other_species(run, job.photos)
    path = run.prediction(name)
    meta = _meta(job)
    if (path / "meta.json").is_file() and not overwrite:
        return _same_or_refused(path, meta, job)
    if run.is_geo_prior:
        return _write_presence(job, path, meta, process)
    kept = "the parts made so far are whole: make room and run the same command again"
    with process.on_device(), disk_remedies(path, kept), worker_deaths(), job.machine():
        return _write(job, path, meta, process)


def guess_species(
    job: Job, found: list[FoundPhoto], k: int
) -> tuple[list[Guess], list[PhotoEvent]]:
    """The k likeliest species of each photo, and the photos that cannot be decoded."""
    table = job.photos
    loader = job.loader(table, "skip", OwnPhotos(found))
    guesses = []
    with job.machine():
        for batch, logits in job.logits(job.model(), loader):
            likely = top_k(logits.numpy(), k)
            probabilities = np.exp(np.take_along_axis(log_softmax(logits.numpy()), likely, axis=1))
            for row, photo in enumerate(batch["image_id"].tolist()):
                species = table.taxonomy.table.iloc[likely[row]]
                guesses.append(
                    Guess(
                        found[photo].path,
                        list(species["name"]),
                        species["category_id"].tolist(),
                        probabilities[row].tolist(),
                    )
                )
    return guesses, loader.bad_photos


def own_photos(path: Path) -> tuple[list[FoundPhoto], list[PhotoEvent]]:
    """The photos at or below a path, and those that cannot be read."""
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
        PhotoEvent(-1, readable(one.path), one.reason or one.kind, "bad")
        for one in passed_over
        if one.kind in meant
    ]
    return found, unread


def _write(job: Job, path: Path, meta: PredictionMeta, process: Process) -> PredictionFile:
    photo_table, chosen_keys = _photo_table(job)
    model = job.model()
    meta.precision = model.precision
    length = job.photos_a_part
    parts = Parts(parts_folder(path), _digest(job, model, meta), len(job.photos), length)
    if process.rank and not process.share(len(parts)):
        # Rank 0 needs nothing of this process, and may have done with the parts before.
        joined = "the prediction, which rank 0 joins"
        wait_until_none(lambda: [] if _is_made(path, meta, job) else [joined], str(path))
        return read_prediction(path)
    parts.folder.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: another process predicts it; wait for that one, or give another --name"
    with locked(parts.folder / f"rank-{process.rank}.lock", busy):
        _make_parts(job, model, parts, process)
        if process.rank == 0:
            wait_until_none(lambda: _missing(parts, process), str(path))
            _join(job, parts, photo_table, chosen_keys, path, meta)
    if process.rank == 0:
        parts.remove()
    else:
        joining = "what rank 0 makes of all parts"
        wait_until_none(
            lambda: [*_missing(parts, process), joining] if parts.folder.is_dir() else [],
            str(path),
        )
    return read_prediction(path)


def _write_presence(job: Job, path: Path, meta: PredictionMeta, process: Process) -> PredictionFile:
    if process.world_size > 1:
        raise InputError(
            f"{job.run.path}: one process predicts a geo prior, in seconds, and not "
            f"{process.world_size}; call it without --world-size or torchrun"
        )
    places = places_of(job.photos)
    meta.n_without_place = int((~have_place(places)).sum())
    meta.n_without_date = int(np.isnan(places[:, 2]).sum())
    meta.bad_photos = []
    photo_table, chosen_keys = _photo_table(job)
    with write_prediction(
        path,
        ids=job.photos.image_ids,
        labels=job.photos.labels,
        species=job.run.species,
        photos=photo_table,
        meta=meta,
        dtype=job.dtype,
        chosen_keys=[chosen_keys],
    ) as rows:
        for chunk, presence in predict_log_presence(job.run, job.checkpoint, places):
            rows[chunk] = store(presence, job.dtype)
    return read_prediction(path)


def _missing(parts: Parts, process: Process) -> list[str]:
    missing = parts.missing(range(len(parts)))
    return [f"part {number} of rank {number % process.world_size}" for number in missing]


def _make_parts(job: Job, model: TrainedModel, parts: Parts, process: Process) -> None:
    share = process.share(len(parts))
    pending = parts.missing(share)
    if len(pending) < len(share):
        say(f"predict {job.photos.name}: {len(share) - len(pending)} of {len(share)} parts are "
            "there already")  # fmt: skip
    if not pending:
        return
    places = np.arange(len(job.photos))
    photos = job.photos.select(np.concatenate([places[parts.rows(number)] for number in pending]))
    loader = job.loader(photos)
    batches = iter(loader)
    with (
        progress_bar(f"predict {photos.name}", len(photos), "photos") as bar,
        freed_memory_kept(),
        ThreadPoolExecutor(1, "inat-parts") as writer,
    ):
        written: Future[None] | None = None
        for number in pending:
            ids = job.photos.image_ids[parts.rows(number)]
            made = _part(job, model, batches, loader, ids)
            if written is not None:
                written.result()
            written = writer.submit(parts.write, number, *made)
            job.config.data.refuse_too_many(loader.bad_photos, len(job.photos))
            bar.advance(len(ids))
        if written is not None:
            written.result()


def _part(
    job: Job,
    model: TrainedModel,
    batches: Iterator[Batch],
    loader: Loader,
    ids: Int64[np.ndarray, "photos"],
) -> tuple[Float[np.ndarray, "photos classes"], Troubles]:
    """The next part; an unreadable photo has the row of one that tells nothing."""
    told = (loader.bad_photos, loader.recovered_photos, loader.slow_photos)
    before = [len(events) for events in told]
    rows = np.repeat(store(_untold(job)[None], job.dtype), len(ids), axis=0)
    place_of = {image_id: place for place, image_id in enumerate(ids.tolist())}
    # No further, though a GPU works ahead: troubles of later photos are of the parts with those.
    of_part = islice(batches, -(-len(ids) // loader.batch_size))
    for batch, logits in job.logits(model, of_part):
        if not bool(logits.isfinite().all()):
            raise WorldError(
                f"the logits of image {batch['image_id'][0]} or a neighbour are not finite; "
                "predict with --weights raw or train again at a lower learning rate"
            )
        rows[[place_of[image_id] for image_id in batch["image_id"].tolist()]] = store(
            logits.numpy(), job.dtype
        )
    new = (events[first:] for events, first in zip(told, before, strict=True))
    return rows, Troubles(*([str(event) for event in events] for events in new))


def _untold(job: Job) -> Float64[np.ndarray, "classes"]:
    """Logits of a photo that tells nothing: they are the prior that all logits carry, so that what
    takes it off leaves them uniform. Where it is not known, they are that of the draws, or of the
    photo counts where the draws changed during training."""
    facts = job.checkpoint.facts
    known = facts.draws_prior if facts.logits_prior is None else facts.logits_prior
    counts = job.run.species["train_count"].to_numpy(np.int64)
    prior = count_prior(counts) if known is None else np.array(known, np.float64)
    with np.errstate(divide="ignore"):  # a species without photos
        row: Float64[np.ndarray, classes] = np.log(prior)
    return row


def _join(
    job: Job,
    parts: Parts,
    photo_table: pd.DataFrame,
    chosen_keys: Int64[np.ndarray, "chosen"],
    path: Path,
    meta: PredictionMeta,
) -> None:
    troubles = []
    with write_prediction(
        path,
        ids=job.photos.image_ids,
        labels=job.photos.labels,
        species=job.run.species,
        photos=photo_table,
        meta=meta,
        dtype=job.dtype,
        chosen_keys=[chosen_keys],
    ) as rows:
        for number in range(len(parts)):
            rows[parts.rows(number)], of_part = parts.read(number)
            troubles.append(of_part)
        meta.bad_photos = [event for of_part in troubles for event in of_part.bad]
        meta.recovered_photos = [event for of_part in troubles for event in of_part.recovered]
        job.config.data.refuse_too_many(meta.bad_photos, len(job.photos))
    _tell_slow(job.photos, [event for of_part in troubles for event in of_part.slow])


def _tell_slow(photos: Split, events: list[str]) -> None:
    """Prints the photos that were read slowly. The prediction does not list them: a clock decides
    which they are, and its bytes are the same on a slow disk."""
    if events:
        say(
            f"predict {photos.name}: {len(events)} of {len(photos)} photos took more than "
            f"{SLOW_SECONDS:g} s to read: {first_few(events, 3)}"
        )


def _digest(job: Job, model: TrainedModel, meta: PredictionMeta) -> str:
    """Of all that a logit depends on to its last bit, but for the processor."""
    decides = {
        **msgspec.to_builtins(replace(meta, run="")),  # a path may be spelled in several ways
        "ids": hashlib.sha256(job.photos.image_ids.tobytes()).hexdigest(),
        "keys": hashlib.sha256(job.photos.keys.tobytes()).hexdigest(),
        "files": hashlib.sha256("\n".join(job.photos.file_names.to_pylist()).encode()).hexdigest(),
        "batch": job.photos_a_batch,
        "part": job.photos_a_part,
        "dtype": np.dtype(job.dtype).name,
        "device": next(model.network.parameters()).device.type,
    }
    return hashlib.sha256(orjson.dumps(decides)).hexdigest()


def _meta(job: Job) -> PredictionMeta:
    run, config, checkpoint, photos = job.run, job.config, job.checkpoint, job.photos
    meta = PredictionMeta(
        competition=config.data.competition,
        split=photos.name,
        logits_prior=checkpoint.facts.logits_prior,
        run=str(run.path),
        checkpoint=checkpoint.name,
        checkpoint_epoch=checkpoint.epoch,
        checkpoint_sha256=checkpoint.digest,
        weights=checkpoint.weights,
        weights_source=run.facts.weights_source,
        chosen=checkpoint.chosen,
        data_root=str(photos.root.resolve()),
        band_edges=config.data.band_edges,
        config_digest=run.config.digest,
        versions=versions(),
    )
    if run.made_by == "inat train":
        # A soup and a second stage keep the config of the run that they were made of.
        meta.config_digest_without_holdout = run.config.digest_without_holdout
    if run.is_geo_prior:
        meta.logits, meta.views = LOG_PRESENCE, []
    else:
        views = job.parsed_views
        meta.views = [view.facts() for view in views]
        meta.view_mean = job.view_mean if len(views) > 1 else None
    return meta


def _same_or_refused(path: Path, meta: PredictionMeta, job: Job) -> PredictionFile:
    """The prediction that is there already, if it is the one asked for."""
    there = read_prediction(path)
    if there.meta.views != meta.views:
        raise InputError(
            f"{path}: there is a prediction of other views ({len(there.meta.views or [])}, "
            f"not these {len(meta.views or [])}); give another --name, or --overwrite"
        )
    for name in ("split", "checkpoint", "checkpoint_sha256", "chosen", "data_root", "view_mean"):
        if (other := getattr(there.meta, name)) != getattr(meta, name):
            raise InputError(
                f"{path}: there is a prediction with another {name} ({other}); "
                "give another --name, or --overwrite"
            )
    if not (
        np.array_equal(there.ids, job.photos.image_ids)
        and np.array_equal(there.photos["key"], job.photos.keys)
    ):
        raise InputError(
            f"{path}: there is a prediction of other photos than {job.photos.root} has now; give "
            "another --name, or --overwrite"
        )
    if job.precision is not None:
        asked = resolve_precision(job.precision, pick_device(job.config.runtime.device))
        if there.meta.precision != asked:
            raise InputError(
                f"{path}: there is a prediction in precision {there.meta.precision}, not "
                f"{asked}; give another --name, or --overwrite"
            )
    if there.logits.dtype != job.dtype:
        raise InputError(
            f"{path}: there is a prediction in {there.logits.dtype}; give another --name, or "
            "--overwrite"
        )
    return there


def _is_made(path: Path, meta: PredictionMeta, job: Job) -> bool:
    if not (path / "meta.json").is_file():
        return False
    try:
        _same_or_refused(path, meta, job)
    except InputError:  # the one that is to be replaced
        return False
    return True


def _photo_table(job: Job) -> tuple[pd.DataFrame, Int64[np.ndarray, "chosen"]]:
    """What the run's training made of each photo: unseen, trained on, held out, chosen on; and the
    keys of all photos on which something was chosen.

    A photo is known by its key: one of val whose bytes were trained on, under whatever name, is
    trained on.
    """
    run, photos, data = job.run, job.photos, job.config.data
    trained = load_split(data.root or Path(), data.train_on, competition=data.competition)
    role = np.full(len(photos), Role.UNSEEN.value, object)
    chosen_keys: Int64[np.ndarray, chosen] = np.empty(0, np.int64)
    if data.holdout != "none":
        trained, held = cut_holdout(trained, data.holdout, data.holdout_seed)
        if job.checkpoint.chosen:
            chosen_keys = held.keys
        seen = Role.CHOSEN_ON if job.checkpoint.chosen else Role.HELD_OUT
        role[np.isin(photos.keys, held.keys)] = seen.value
    if trained.fingerprint != run.facts.trained:
        raise InputError(
            f"{data.root}: its {data.train_on} photos are not those that {run.path} was trained "
            "on, so which photos it has seen cannot be told; give the data set it was trained on "
            "(--data.root)"
        )
    role[np.isin(photos.keys, trained.keys)] = Role.TRAINED_ON.value
    table = pd.DataFrame(
        {
            "id": photos.image_ids,
            "key": photos.keys,
            "file_name": photos.file_names.to_pylist(),
            "role": pd.array(role, "str"),
        }
    )
    return table, chosen_keys


def _refuse_other_species(run: Run, photos: Split) -> None:
    if run.facts.category_ids != photos.taxonomy.category_ids.tolist():
        raise InputError(
            f"{photos.root}: its {photos.n_classes} species are not the "
            f"{len(run.facts.category_ids)} that {run.path} was trained on"
        )


def split_of_files(run: Run, root: Path, found: list[FoundPhoto]) -> Split:
    """The photos as a split of the run's species, without labels."""
    n_photos = len(found)
    species = run.species
    return Split(
        name="photos",
        root=root,
        competition=run.config.data.competition,
        file_names=pa.array([readable(photo.path) for photo in found], pa.string()),
        image_ids=np.arange(n_photos),
        labels=np.full(n_photos, -1),
        sizes=np.zeros((n_photos, 2), np.int32),
        taxonomy=Taxonomy(species.drop(columns="train_count")),
        train_counts=species["train_count"].to_numpy(np.int64),
    )

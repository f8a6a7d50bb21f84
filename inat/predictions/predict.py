"""Predicts a split with a trained run."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd
from jaxtyping import Float, Float64, Int64
from msgspec.structs import replace

from inat.config.schema import ViewMean
from inat.core.errors import InputError, WorldError
from inat.core.files import disk_remedies, locked, to_plain
from inat.core.priors import count_prior
from inat.core.progress import first_few, progress_bar, say
from inat.dataset.locations import have_place, places_of
from inat.dataset.split import Split
from inat.geo.run import predict_log_presence
from inat.loader.batches import Batch
from inat.loader.loader import Loader
from inat.loader.views import View, parse_views
from inat.loader.workers import worker_deaths
from inat.models.device import freed_memory_kept, pick_device, resolve_precision
from inat.models.forward import refuse_sizes
from inat.photos.decode import SLOW_SECONDS
from inat.predictions.file import PredictionFile, read_prediction, store, write_prediction
from inat.predictions.meta import LOG_PRESENCE, PredictionMeta, Role
from inat.predictions.parts import PART_IMAGES, Parts, Troubles, parts_folder
from inat.predictions.processes import Process, wait_until_none
from inat.runs.run import versions
from inat.runs.trained import TrainedModel, TrainedRun


@dataclass(frozen=True)
class Job:
    """A prediction to be made: what decides each of its logits, but for the processor."""

    trained: TrainedRun  # run and checkpoint
    photos: Split  # what to predict
    spec: str  # of the views
    view_mean: ViewMean  # how the views of a photo are averaged
    dtype: npt.DTypeLike = np.float16  # of the stored logits

    @cached_property
    def views(self) -> tuple[View, ...]:
        sizes = self.trained.config.transforms
        return parse_views(self.spec, size=sizes.test_size, crop_pct=sizes.test_crop_pct)

    @property
    def photos_a_batch(self) -> int:
        """As many as have `batch_size` views of one size, which are a forward pass."""
        batch_size = self.trained.batch_size
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is less than 1; give 1 or more")
        together = max(Counter(view.size for view in self.views).values())
        return max(1, batch_size // together)

    @property
    def photos_a_part(self) -> int:
        """Whole batches, so that a batch holds the same photos whoever makes which part: what a
        network gives for a photo depends in its last bits on the size of the batch."""
        batch = self.photos_a_batch
        return batch * max(1, PART_IMAGES // (batch * len(self.views)))

    def loader(self, photos: Split, **options: Any) -> Loader:
        batch_size = self.photos_a_batch
        return self.trained.loader(photos, batch_size=batch_size, views=self.spec, **options)

    def load_model(self) -> TrainedModel:
        """Refuses sizes that the network does not take."""
        config, model = self.trained.config, self.trained.model
        refuse_sizes(model.network, self.views, config.transforms.test_size, config.model.backbone)
        return model

    def machine(self) -> AbstractContextManager[None]:
        return self.trained.machine(f"give a smaller --batch-size than {self.trained.batch_size}")

    def meta(self) -> PredictionMeta:
        """Before the photos are read."""
        run, config, checkpoint = self.trained.run, self.trained.config, self.trained.checkpoint
        meta = PredictionMeta(
            competition=config.data.competition,
            split=self.photos.name,
            logits_prior=checkpoint.facts.logits_prior,
            run=str(run.path),
            checkpoint=checkpoint.name,
            checkpoint_epoch=checkpoint.epoch,
            checkpoint_sha256=checkpoint.digest,
            weights=checkpoint.weights,
            weights_source=run.facts.weights_source,
            chosen=checkpoint.chosen,
            data_root=str(self.photos.root.resolve()),
            band_edges=config.data.band_edges,
            config_digest=run.config.digest,
            versions=versions(),
        )
        if run.made_by == "inat train":
            # A soup and a second stage keep the config of the run that they were made of.
            meta.config_digest_without_holdout = run.config.digest_without_holdout
        meta.views = [view.facts() for view in self.views]
        meta.view_mean = self.view_mean if len(self.views) > 1 else None
        if run.is_geo_prior:  # it looks at no photo
            meta.logits, meta.views, meta.view_mean = LOG_PRESENCE, [], None
        return meta

    @cached_property
    def roles(self) -> np.ndarray:
        """Known by key: a val photo whose bytes were trained on, under whatever name, is trained
        on."""
        trained, held_out = self.trained.trained_and_held_out
        roles = np.full(len(self.photos), Role.UNSEEN.value, object)
        if held_out is not None:
            seen = Role.CHOSEN_ON if self.trained.checkpoint.chosen else Role.HELD_OUT
            roles[np.isin(self.photos.keys, held_out.keys)] = seen.value
        roles[np.isin(self.photos.keys, trained.keys)] = Role.TRAINED_ON.value
        return roles

    def write(
        self, path: Path, meta: PredictionMeta
    ) -> AbstractContextManager[Float[np.ndarray, "images classes"]]:
        photos, held_out = self.photos, self.trained.held_out
        table = {
            "id": photos.image_ids,
            "key": photos.keys,
            "file_name": photos.file_names.to_pylist(),
            "role": pd.array(self.roles, "str"),
        }
        chosen_keys = []
        if held_out is not None and self.trained.checkpoint.chosen:
            chosen_keys = [held_out.keys]
        return write_prediction(
            path,
            ids=photos.image_ids,
            labels=photos.labels,
            species=self.trained.run.species,
            photos=pd.DataFrame(table),
            meta=meta,
            dtype=self.dtype,
            chosen_keys=chosen_keys,
        )

    def difference(self, path: Path, meta: PredictionMeta) -> str | None:
        """What the prediction that is at `path` has otherwise than this one; None: nothing."""
        there = read_prediction(path)
        if there.meta.views != meta.views:
            n_views, n_wanted = (len(one.views or []) for one in (there.meta, meta))
            return f"of other views ({n_views}, not these {n_wanted})"
        names = ("split", "checkpoint", "checkpoint_sha256", "chosen", "data_root", "view_mean")
        for name in names:
            if (other := getattr(there.meta, name)) != getattr(meta, name):
                return f"with another {name} ({other})"
        ids, keys = self.photos.image_ids, self.photos.keys
        if not (np.array_equal(there.ids, ids) and np.array_equal(there.photos["key"], keys)):
            return f"of other photos than {self.photos.root} has now"
        if self.trained.precision is not None:
            device = pick_device(self.trained.config.runtime.device)
            asked = resolve_precision(self.trained.precision, device)
            if there.meta.precision != asked:
                return f"in precision {there.meta.precision}, not {asked}"
        return None if there.logits.dtype == self.dtype else f"in {there.logits.dtype}"

    def digest(self, model: TrainedModel, meta: PredictionMeta) -> str:
        """Of all that a logit depends on to its last bit, but for the processor."""
        photos = self.photos
        decides = {
            **to_plain(replace(meta, run="")),  # a path may be spelled in several ways
            "ids": hashlib.sha256(photos.image_ids.tobytes()).hexdigest(),
            "keys": hashlib.sha256(photos.keys.tobytes()).hexdigest(),
            "files": hashlib.sha256("\n".join(photos.file_names.to_pylist()).encode()).hexdigest(),
            "batch": self.photos_a_batch,
            "part": self.photos_a_part,
            "dtype": np.dtype(self.dtype).name,
            "device": model.device.type,
        }
        return hashlib.sha256(orjson.dumps(decides)).hexdigest()


def make_prediction(job: Job, name: str, process: Process, *, overwrite: bool) -> PredictionFile:
    run = job.trained.run
    path, meta = run.prediction(name), job.meta()
    if (path / "meta.json").is_file() and not overwrite:
        if difference := job.difference(path, meta):
            raise InputError(
                f"{path}: there is a prediction {difference}; give another --name, or --overwrite"
            )
    elif run.is_geo_prior:
        _predict_presence(job, path, meta, process)
    else:
        kept = "the parts made so far are whole: make room and run the same command again"
        with process.on_device(), disk_remedies(path, kept), worker_deaths(), job.machine():
            _predict_photos(job, path, meta, process)
    return read_prediction(path)


def _predict_presence(job: Job, path: Path, meta: PredictionMeta, process: Process) -> None:
    if process.world_size > 1:
        raise InputError(
            f"{job.trained.run.path}: one process predicts a geo prior, in seconds, and not "
            f"{process.world_size}; call it without --world-size or torchrun"
        )
    places = places_of(job.photos)
    meta.n_without_place = int((~have_place(places)).sum())
    meta.n_without_date = int(np.isnan(places[:, 2]).sum())
    meta.bad_photos = []
    with job.write(path, meta) as rows:
        for chunk, presence in predict_log_presence(job.trained, places):
            rows[chunk] = store(presence, job.dtype)


def _predict_photos(job: Job, path: Path, meta: PredictionMeta, process: Process) -> None:
    """Makes this process's share of the parts; that of rank 0 then joins all."""
    _ = job.roles  # what is wrong with the data is found now, and not after the photos are read
    model = job.load_model()
    meta.precision = model.precision
    digest = job.digest(model, meta)
    parts = Parts(parts_folder(path), digest, len(job.photos), job.photos_a_part)
    if process.rank and not process.share(len(parts)):
        # Rank 0 needs nothing of this process, and may have removed the parts before.
        joined = "the prediction, which rank 0 joins"
        wait_until_none(lambda: [] if _is_made(job, path, meta) else [joined], str(path))
        return
    parts.folder.mkdir(parents=True, exist_ok=True)
    busy = f"{path}: another process predicts it; wait for that one, or give another --name"

    def missing() -> list[str]:
        numbers = parts.missing(range(len(parts)))
        return [f"part {number} of rank {number % process.world_size}" for number in numbers]

    with locked(parts.folder / f"rank-{process.rank}.lock", busy):
        _make_parts(job, model, parts, process)
        if process.rank == 0:
            wait_until_none(missing, str(path))
            _join(job, parts, path, meta)
    if process.rank == 0:
        parts.remove()
        return
    joining = "what rank 0 makes of all parts"
    wait_until_none(lambda: [*missing(), joining] if parts.folder.is_dir() else [], str(path))


def _is_made(job: Job, path: Path, meta: PredictionMeta) -> bool:
    try:
        return (path / "meta.json").is_file() and job.difference(path, meta) is None
    except InputError:  # damaged: it is to be replaced
        return False


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
            job.trained.config.data.refuse_too_many(loader.bad_photos, len(job.photos))
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
    rows = np.repeat(store(_untold(job.trained)[None], job.dtype), len(ids), axis=0)
    place_of = {image_id: place for place, image_id in enumerate(ids.tolist())}
    # No further, though a GPU works ahead: troubles of later photos are of the parts with those.
    of_part = islice(batches, -(-len(ids) // loader.batch_size))
    for batch, logits in model.logits(of_part, job.photos.n_classes, job.view_mean):
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


def _untold(trained: TrainedRun) -> Float64[np.ndarray, "classes"]:
    """Logits of a photo that tells nothing: they are the prior that all logits carry, so that what
    takes it off leaves them uniform. Where it is not known, they are that of the draws, or of the
    photo counts where the draws changed during training."""
    facts = trained.checkpoint.facts
    known = facts.draws_prior if facts.logits_prior is None else facts.logits_prior
    counts = trained.run.species["train_count"].to_numpy(np.int64)
    prior = count_prior(counts) if known is None else np.array(known, np.float64)
    with np.errstate(divide="ignore"):  # a species without photos
        row: Float64[np.ndarray, classes] = np.log(prior)
    return row


def _join(job: Job, parts: Parts, path: Path, meta: PredictionMeta) -> None:
    troubles = []
    with job.write(path, meta) as rows:
        for number in range(len(parts)):
            rows[parts.rows(number)], of_part = parts.read(number)
            troubles.append(of_part)
        meta.bad_photos = [event for of_part in troubles for event in of_part.bad]
        meta.recovered_photos = [event for of_part in troubles for event in of_part.recovered]
        job.trained.config.data.refuse_too_many(meta.bad_photos, len(job.photos))
    # The prediction does not list them: a clock decides which they are, and the file has the same
    # bytes on a slow disk.
    if slow := [event for of_part in troubles for event in of_part.slow]:
        say(
            f"predict {job.photos.name}: {len(slow)} of {len(job.photos)} photos took more than "
            f"{SLOW_SECONDS:g} s to read: {first_few(slow, 3)}"
        )

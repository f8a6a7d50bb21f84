"""A trained run with one of its checkpoints: its photos, its loader and its network."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.config.schema import CheckpointName, Config, DataConfig, Precision, ViewMean, Weights
from inat.core.errors import InputError, one_line
from inat.core.progress import say
from inat.dataset.split import Split, cut_holdout, load_split
from inat.loader.batches import Batch, to_device
from inat.loader.loader import Loader, build_loader
from inat.models.backbone import build_backbone
from inat.models.device import (
    can_run,
    fast_kernels,
    memory_remedies,
    pick_device,
    prefers_channels_last,
    resolve_precision,
    to_device_format,
)
from inat.models.forward import iterate_logits
from inat.models.weights import Triple
from inat.runs.checkpoints import Checkpoint, find_checkpoint
from inat.runs.run import Run, open_run, with_root

MOST_IMAGES = 512
"""Images of a forward pass where nobody says how many: more make no GPU faster."""


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode on its device, with what its input and arithmetic must be."""

    network: nn.Module
    mean: Triple
    std: Triple
    precision: str
    channels_last: bool

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def images(self, batch: Batch) -> Float[Tensor, "batch 3 height width"]:
        return to_device(batch, self.device, self.mean, self.std, channels_last=self.channels_last)

    def logits(
        self, batches: Iterable[Batch], n_classes: int, view_mean: ViewMean = "logprob"
    ) -> Iterator[tuple[Batch, Float[Tensor, "batch classes"]]]:
        return iterate_logits(
            self.network,
            batches,
            n_classes=n_classes,
            mean=self.mean,
            std=self.std,
            precision=self.precision,
            channels_last=self.channels_last,
            view_mean=view_mean,
        )


@dataclass(frozen=True)
class TrainedRun:
    """A run with one of its checkpoints, on the photos that are at hand."""

    run: Run
    checkpoint: Checkpoint  # whose weights are used
    config: Config  # of the stage that the checkpoint is of, with the data root that is used
    batch_size: int  # images per forward pass
    workers: int | None  # threads or processes that read photos; None: one per processor
    precision: Precision | None = None  # asked for; None: the run's, where the device has it

    @cached_property
    def trained_and_held_out(self) -> tuple[Split, Split | None]:
        """Raises InputError where the data's photos are not those that the run was trained on."""
        data = self.config.data
        trained, held_out = training_photos(data)
        if trained.fingerprint != self.run.facts.trained:
            raise InputError(
                f"{data.root}: its {data.train_on} photos are not those that {self.run.path} was "
                "trained on; give the data set it was trained on (--data.root)"
            )
        return trained, held_out

    @property
    def trained(self) -> Split:
        return self.trained_and_held_out[0]

    @property
    def held_out(self) -> Split | None:
        """None with holdout none."""
        return self.trained_and_held_out[1]

    def split(self, name: str) -> Split:
        """A split of the data set; InputError if it is missing or its species are not the run's."""
        data = self.config.data
        photos = load_split(
            data.root or Path(),
            name,
            holdout=data.holdout,
            holdout_seed=data.holdout_seed,
            competition=data.competition,
        )
        if self.run.facts.category_ids != photos.taxonomy.category_ids.tolist():
            raise InputError(
                f"{photos.root}: its {photos.n_classes} species are not the "
                f"{len(self.run.facts.category_ids)} that {self.run.path} was trained on"
            )
        return photos

    def loader(self, photos: Split, *, training: bool = False, **options: Any) -> Loader:
        """The photos as the run's own training (drawn by its recipe) or validation (center crops in
        order) saw them; `options` are other values for `build_loader`."""
        config = self.config
        own = {
            "image_size": config.transforms.image_size if training else config.transforms.test_size,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "seed": config.seed if training else 0,
            "recipe": config.transforms,
            "worker_kind": config.data.worker_kind,
            "on_bad_photo": config.data.on_bad_photo,
            "pin_memory": pick_device(config.runtime.device).type == "cuda",
        }
        return build_loader(photos, training=training, **(own | options))

    @cached_property
    def model(self) -> TrainedModel:
        """The run's network with the checkpoint's weights, on its device. Raises InputError for a
        geo prior, which has no use for photos, and for weights that are damaged or do not fit."""
        run, config, facts = self.run, self.config, self.run.facts
        if facts.stage_two is not None and run.is_geo_prior:
            raise InputError(
                f"{run.path}: is a geo prior, which sees places and no photos; give the run that "
                f"it was made from ({facts.stage_two.run})"
            )
        backbone = build_backbone(
            replace(config.model, weights="none"),
            len(facts.category_ids),
            seed=0,
            image_size=self.checkpoint.facts.image_size or config.transforms.image_size,
        )
        try:
            backbone.network.load_state_dict(dict(self.checkpoint.load_weights()))
        except RuntimeError as error:
            raise InputError(
                f"{self.checkpoint.path}: its weights do not fit the config "
                f"({one_line(error):.160}); train again"
            ) from None
        device = pick_device(config.runtime.device)
        precision = _precision(run, device, self.precision)
        channels_last = config.runtime.channels_last and prefers_channels_last(device, precision)
        network = to_device_format(backbone.network, device, channels_last=channels_last).eval()
        return TrainedModel(network, facts.mean, facts.std, precision, channels_last)

    @contextmanager
    def machine(self, remedy: str) -> Iterator[None]:
        """Holds the CUDA settings that forward passes want; names `remedy` where memory is full."""
        runtime = self.config.runtime
        with (
            memory_remedies(remedy),
            fast_kernels(runtime.fast_kernels, deterministic=runtime.deterministic),
        ):
            yield


def open_trained(
    run: Run | Path | str,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    *,
    root: Path | str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
) -> TrainedRun:
    """Opens a run with one of its checkpoints.

    weights auto is the moving average where the run kept one; batch_size None is twice that of a
    process of the training, at most 512, since no gradients are kept; the other None are the run's.
    Raises InputError where there is no such run or checkpoint.
    """
    opened = open_run(run)
    found = find_checkpoint(opened, checkpoint, weights)
    config = found.config(with_root(opened.config, root))
    batch_size = forward_batch(opened, config) if batch_size is None else batch_size
    workers = config.data.workers if workers is None else workers
    return TrainedRun(opened, found, config, batch_size, workers, precision)


def forward_batch(run: Run, config: Config) -> int:
    """Images per forward pass: twice those of a process of the training, since no gradients are
    kept, and at most 512."""
    return min(MOST_IMAGES, 2 * (run.facts.process_batch or config.batch_size))


def training_photos(data: DataConfig) -> tuple[Split, Split | None]:
    """The photos to train on and those to hold out; None with holdout none."""
    photos = load_split(data.root or Path(), data.train_on, competition=data.competition)
    if data.holdout == "none":
        return photos, None
    return cut_holdout(photos, data.holdout, data.holdout_seed)


def _precision(run: Run, device: torch.device, asked: Precision | None) -> str:
    """The run's own precision, or the nearest to it on this device, unless another is asked for."""
    if asked is not None:
        found = resolve_precision(asked, device)
        if not can_run(found, device):
            raise InputError(
                f"--precision {asked}: this {device.type} device has none; give auto, which is "
                f"{resolve_precision('auto', device)} here"
            )
        return found
    kept, kind = run.facts.precision, run.facts.device
    configured = resolve_precision(run.config.runtime.precision, device)
    nearest = configured if can_run(configured, device) else resolve_precision("auto", device)
    if device.type == kind and can_run(kept, device):
        return kept
    if nearest != kept:
        say(
            f"precision  {run.path} was trained in {kept} on {kind}; on this {device.type} device "
            f"it runs in {nearest} (--precision chooses)"
        )
    return nearest

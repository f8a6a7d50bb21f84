"""A run's network without its classifier: what gives features."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.config.schema import Config, Precision
from inat.dataset.split import Split
from inat.loader.loader import Batch, Loader, build_loader, to_device
from inat.models.device import autocast
from inat.models.heads import put_classifier, single_classifier
from inat.runs.run import Run
from inat.runs.trained import (
    Checkpoint,
    TrainedModel,
    forward_batch,
    load_model,
    photos_of,
)


@dataclass(frozen=True)
class Body:
    """A run's network whose classifier was taken out.

    Attributes:
        run: where it comes from.
        config: the run's, with the data root that is used.
        checkpoint: whose weights these are.
        model: its network gives features `[batch, features]`, on its device.
        head: the classifier that was taken out.
        trained: photos that the run was trained on.
        held_out: photos that the run held out; None with holdout none.
        batch_size: photos a forward pass.
        workers: threads or processes that read photos; None: one a processor.
    """

    run: Run
    config: Config
    checkpoint: Checkpoint
    model: TrainedModel
    head: nn.Module
    trained: Split
    held_out: Split | None
    batch_size: int
    workers: int | None

    @property
    def network(self) -> nn.Module:
        """Normalised images to features."""
        return self.model.network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def n_features(self) -> int:
        """Length of a photo's feature."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight.shape[1]

    def images(self, batch: Batch) -> Float[Tensor, "batch 3 height width"]:
        """A batch's images, as the network takes them."""
        model = self.model
        return to_device(
            batch, self.device, model.mean, model.std, channels_last=model.channels_last
        )

    def __call__(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        """The features of normalised images, float32: what the classifier would be given."""
        if not len(images):  # ViTs take no empty batch
            return images.new_empty(0, self.n_features)
        with torch.no_grad(), autocast(self.device, self.model.precision):
            features: Tensor = self.network(images)
        return features.float()

    def loader(self, photos: Split, *, training: bool, **draws: Any) -> Loader:
        """The photos as the run's own training or prediction would see them.

        Args:
            photos: what to read.
            training: crops and colours drawn by the run's recipe, or centre crops.
            draws: batch_size, seed, sampler and epoch_size, where they are not the run's own.
        """
        sizes = self.config.transforms
        own = {"batch_size": min(self.batch_size, len(photos)), "seed": self.config.seed}
        return build_loader(
            photos,
            image_size=sizes.image_size if training else sizes.test_size,
            training=training,
            workers=self.workers,
            **(own | draws),
            recipe=self.config.transforms,
            worker_kind=self.config.data.worker_kind,
            on_bad_photo=self.config.data.on_bad_photo,
            keep_photos=training and self.config.data.keep_photos,
            pin_memory=self.device.type == "cuda",
        )


def take_body(
    run: Run,
    config: Config,
    checkpoint: Checkpoint,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
) -> Body:
    """Loads a run's network and takes its classifier out.

    Args:
        run: the run.
        config: its config, with the data root that is used.
        checkpoint: whose weights.
        batch_size: photos a forward pass; None: twice those of a process of the training, at
            most 512.
        workers: threads or processes that read photos; None: the run's.
        precision: of the forward passes; None: the run's, where the device has it.

    Raises:
        InputError: the network's classifier is not one linear layer; the data's photos are not
            those that the run was trained on.
    """
    trained, held_out = photos_of(run, config)
    model = load_model(run, checkpoint, precision)
    head = single_classifier(model.network, "inat stage-two")
    put_classifier(model.network, nn.Identity())
    return Body(
        run=run,
        config=config,
        checkpoint=checkpoint,
        model=model,
        head=head,
        trained=trained,
        held_out=held_out,
        batch_size=forward_batch(run, config) if batch_size is None else batch_size,
        workers=config.data.workers if workers is None else workers,
    )

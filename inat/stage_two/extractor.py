"""A run's network without its classifier."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inat.dataset.split import Split
from inat.loader.loader import Loader
from inat.models.device import autocast
from inat.models.heads import put_classifier, single_classifier
from inat.runs.trained import TrainedRun


@dataclass(frozen=True)
class FeatureExtractor:
    """A trained run whose network gives features, since its classifier was taken out."""

    source: TrainedRun  # the run, its photos and its network
    head: nn.Module  # the classifier that was taken out

    @property
    def network(self) -> nn.Module:
        """Normalized images to features `[batch, features]`."""
        return self.source.model.network

    @property
    def device(self) -> torch.device:
        return self.source.model.device

    @property
    def n_features(self) -> int:
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight.shape[1]

    def __call__(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        """float32: what the classifier would be given."""
        if not len(images):  # ViTs take no empty batch
            return images.new_empty(0, self.n_features)
        with torch.no_grad(), autocast(self.device, self.source.model.precision):
            features: Tensor = self.network(images)
        return features.float()

    def loader(self, photos: Split, *, training: bool = False, **options: Any) -> Loader:
        """As `TrainedRun.loader`, with no more photos per batch than there are."""
        own = {
            "batch_size": min(self.source.batch_size, len(photos)),
            "keep_photos": training and self.source.config.data.keep_photos,
        }
        return self.source.loader(photos, training=training, **(own | options))


def feature_extractor(source: TrainedRun) -> FeatureExtractor:
    """Takes the classifier, which must be one linear layer, out of a run's network."""
    network = source.model.network
    head = single_classifier(network, "inat stage-two")
    put_classifier(network, nn.Identity())
    return FeatureExtractor(source, head)

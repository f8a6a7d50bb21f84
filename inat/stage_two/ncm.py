"""Nearest class mean, NCM (Kang et al. 2020, arXiv 1910.09217, sec. 4.1)."""

import torch
from torch.nn import functional

from inat.models.heads import NearestMeanHead
from inat.stage_two.features import Features


def nearest_mean_head(features: Features) -> NearestMeanHead:
    """The head that guesses the species with the nearest mean.

    Features are centred by the mean over all photos and scaled to length 1; a class mean is that
    of its photos' scaled features, in all views, and is not scaled again. A species without
    photos is never guessed.
    """
    n_features = features.values.shape[2]
    centre = _mean(features)
    sums = torch.zeros(features.n_classes, n_features, dtype=torch.float64)
    counts = torch.zeros(features.n_classes, dtype=torch.float64)
    for values, labels in features.chunks():
        unit = functional.normalize(values - centre).double()
        sums.index_add_(0, labels, unit)
        counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
    head = NearestMeanHead(n_features, features.n_classes)
    head.set_means(centre, (sums / counts.clamp_min(1)[:, None]).float(), counts > 0)
    return head


def _mean(features: Features) -> torch.Tensor:
    total = torch.zeros(features.values.shape[2], dtype=torch.float64)
    for values, _ in features.chunks():
        total += values.double().sum(dim=0)
    return (total / (features.n_views * len(features.readable))).float()

"""The network of a geo prior: from place and date to each species' presence there and then.

Mac Aodha et al. 2019, arXiv 1906.05272, sec. 3 and their code.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

N_HIDDEN = 256
N_BLOCKS = 4
DROPOUT = 0.5
N_DATES = 12
"""Dates of the year over which the presence is averaged where the date is not known."""


class GeoPrior(nn.Module):
    """Linear 6 -> 256 and ReLU, four residual blocks, 256 -> classes without a bias."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, N_HIDDEN)
        self.blocks = nn.Sequential(*(ResidualBlock() for _ in range(N_BLOCKS)))
        self.classes = nn.Linear(N_HIDDEN, n_classes, bias=False)

    def forward(self, places: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch classes"]:
        """Logits of presence, whose sigmoid is the presence, from longitude, latitude and date,
        each -1..1."""
        hidden = functional.relu(self.enter(encode(places)))
        logits: Tensor = self.classes(self.blocks(hidden))
        return logits


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(dropout(ReLU(Linear(x)))))."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(N_HIDDEN, N_HIDDEN)
        self.dropout = nn.Dropout(DROPOUT)
        self.second = nn.Linear(N_HIDDEN, N_HIDDEN)

    def forward(self, hidden: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch hidden"]:
        inner = self.dropout(functional.relu(self.first(hidden)))
        return hidden + functional.relu(self.second(inner))


def encode(places: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 6"]:
    """sin and cos of pi x, so that 180 degrees west is 180 east and December borders January.

    As published, the latitude goes round too, and the poles are one.
    """
    angles = math.pi * places
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def log_presence(
    network: GeoPrior, places: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch classes"]:
    """The log of each species' presence at each place (from `dataset.locations.places_of`).

    Without a date, the presence is the mean over the year's; without a place, that of all species
    is 1. The network is in eval mode afterwards.
    """
    network.eval()
    has_place, has_date = ~places[:, 0].isnan(), ~places[:, 2].isnan()
    found = places.new_zeros(len(places), network.classes.out_features)
    with torch.inference_mode():
        dated = has_place & has_date
        found[dated] = functional.logsigmoid(network(places[dated]))
        found[has_place & ~has_date] = _mean_over_year(network, places[has_place & ~has_date])
    return found


def _mean_over_year(
    network: GeoPrior, places: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch classes"]:
    total = places.new_full((len(places), network.classes.out_features), -math.inf)
    for date in torch.arange(N_DATES, device=places.device) * (2 / N_DATES) - 1:
        dated = torch.cat([places[:, :2], date.expand(len(places), 1)], dim=1)
        total = torch.logaddexp(total, functional.logsigmoid(network(dated)))
    return total - math.log(N_DATES)

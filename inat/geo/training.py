"""Trains a geo prior: which species are where, and when (Mac Aodha et al. 2019, 1906.05272)."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.optim import Optimizer

from inat.core.errors import WorldError
from inat.core.progress import Bar, progress_bar, say
from inat.geo.network import GeoPrior
from inat.runs.metrics_log import MetricsLog
from inat.samplers.base import stream

EPOCHS = 30
BATCH_SIZE = 1024
LR_PER_256 = 1.25e-4
"""5e-4 for batches of 1,024, as published."""

LR_FACTOR = 0.98
MOST_PER_SPECIES = 100
EPSILON = 1e-5
GEO_PHOTOS = 80
"""What a random stream is for, beside those of `inat.samplers.base`."""


@dataclass(frozen=True, kw_only=True)
class GeoRecipe:
    """How a geo prior is trained: Adam, a learning rate that falls by 2 % an epoch."""

    epochs: int  # passes over at most 100 photos a species, drawn anew each time
    batch_size: int  # photos a step; the last step of an epoch may have fewer
    learning_rate: float  # of the first epoch
    seed: int  # of the weights, the draws, the random places and the dropout


def presence_loss(
    here: Float[Tensor, "batch classes"],
    elsewhere: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """The presence-only loss (Mac Aodha et al. 2019, eq. 7, without the photographers' terms), from
    the logits at the photos' places x (`here`) and at random places r (`elsewhere`).

    The species y of a photo is present where the photo was taken, which counts C times; no other
    is, nor is any at a random place: the negative mean over batch and classes of
    `C log s_y(x) + sum_{i != y} log(1 - s_i(x)) + sum_i log(1 - s_i(r))`.
    """
    presence = here.sigmoid()
    of_species = presence.gather(1, labels[:, None])
    absent_here = _log(1 - presence).sum() - _log(1 - of_species).sum()
    absent_elsewhere = _log(1 - elsewhere.sigmoid()).sum()
    gain = here.shape[1] * _log(of_species).sum() + absent_here + absent_elsewhere
    return -gain / here.numel()


def _log(share: Tensor) -> Tensor:
    return (share + EPSILON).log()


def random_places(n: int) -> Float[Tensor, "n 3"]:
    """Places uniform on the sphere, at uniform dates, by torch's generator; scaled to -1 .. 1."""
    lon, height, date = 2 * torch.rand(3, n) - 1
    return torch.stack([lon, height.asin() / (math.pi / 2), date], dim=1)


def draw_epoch(
    labels: Int64[np.ndarray, "photos"], seed: int, epoch: int
) -> Int64[np.ndarray, "draws"]:
    """Positions of the photos of an epoch, shuffled: at most 100 a species, none twice."""
    rng = stream(seed, epoch, GEO_PHOTOS)
    shuffled = rng.permutation(len(labels))
    by_species = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn: Int64[np.ndarray, draws] = rng.permutation(by_species[place < MOST_PER_SPECIES])
    return drawn


def n_steps(labels: Int64[np.ndarray, "photos"], recipe: GeoRecipe) -> int:
    n_draws = int(np.minimum(np.bincount(labels), MOST_PER_SPECIES).sum())
    return recipe.epochs * -(-n_draws // recipe.batch_size)


def train_geo_prior(
    places: Float32[np.ndarray, "photos 3"],
    labels: Int64[np.ndarray, "photos"],
    n_classes: int,
    recipe: GeoRecipe,
    device: torch.device,
    log: MetricsLog,
) -> GeoPrior:
    """A geo prior of the photos' species; torch's generator is seeded, and left as it falls.

    Places are longitude, latitude and date, scaled to -1 .. 1; a date that is NaN may be any, and
    is drawn again each time. Raises WorldError where the loss is not finite.
    """
    torch.manual_seed(recipe.seed)
    network = GeoPrior(n_classes).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, LR_FACTOR)
    began, loss, step = time.monotonic(), math.nan, 0
    with progress_bar("geo prior", n_steps(labels, recipe), "steps") as bar:
        for epoch in range(recipe.epochs):
            drawn = draw_epoch(labels, recipe.seed, epoch)
            steps = [
                (_dated(places[rows]).to(device), torch.from_numpy(labels[rows]).to(device))
                for rows in np.split(drawn, range(recipe.batch_size, len(drawn), recipe.batch_size))
            ]
            loss = _train_epoch(network, steps, optimizer, bar)
            step += len(steps)
            rate = optimizer.param_groups[0]["lr"]
            log.write("train", epoch=epoch + 1, step=step, loss=loss, learning_rate=rate)
            schedule.step()
    say(f"geo prior  loss {loss:.4f} after {time.monotonic() - began:.1f} s")
    return network


def _dated(places: Float32[np.ndarray, "batch 3"]) -> Float[Tensor, "batch 3"]:
    dated = torch.from_numpy(places)
    unknown = dated[:, 2].isnan()
    dated[unknown, 2] = 2 * torch.rand(int(unknown.sum())) - 1
    return dated


def _train_epoch(
    network: GeoPrior, steps: list[tuple[Tensor, Tensor]], optimizer: Optimizer, bar: Bar
) -> float:
    losses = []
    for places, labels in steps:
        elsewhere = random_places(len(places)).to(places.device)
        here, there = network(torch.cat([places, elsewhere])).chunk(2)
        loss = presence_loss(here, there, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        bar.advance(1)
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise WorldError(f"the loss of the geo prior is {mean}; give a lower --lr-per-256")
    return mean

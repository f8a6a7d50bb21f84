"""A geo prior of a run's training photos, as a run of its own, and its predictions."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from msgspec.structs import replace

from inat.config.schema import Config
from inat.core.errors import InputError
from inat.core.metrics import score_guesses, top_k
from inat.core.progress import say
from inat.dataset.locations import have_place, places_of
from inat.dataset.split import Split
from inat.geo.network import GeoPrior, log_presence
from inat.geo.training import GeoRecipe, n_steps, train_geo_prior
from inat.models.device import pick_device
from inat.runs.checkpoints import write_trained_run
from inat.runs.facts import CheckpointFacts, StageTwoFacts, WeightsFacts
from inat.runs.metrics_log import MetricsLog
from inat.runs.trained import TrainedRun

FEW_STEPS = 500
CHUNK = 1024
PRESENCE_BYTES = 64_000_000
"""Of log presence as float32, at a time."""


def make_geo_run(
    source: TrainedRun, path: Path, recipe: GeoRecipe, options: Mapping[str, Any]
) -> None:
    """Trains a geo prior on the photos that `source` was trained on, into the empty folder `path`;
    reads none of them. `options` are what was asked for, for model.json. Raises InputError where
    none of these photos has a place."""
    run, config, photos = source.run, source.config, source.trained
    places = places_of(photos)
    placed = have_place(places)
    if not placed.any():
        raise InputError(f"{photos.root}: none of its {len(photos)} training photos has a place")
    labels = photos.labels[placed]
    total = n_steps(labels, recipe)
    say(
        f"geo prior  of the places of {len(labels)} photos of {run.path}; "
        f"{(~placed).sum()} photos without one are left out"
    )
    say(
        f"geo prior  {total} steps of {recipe.batch_size}, learning rate {recipe.learning_rate:.3g}"
    )
    if total < FEW_STEPS:
        say(
            f"geo prior  {total} steps are few (published on iNat-2018: 7,740); give more with "
            "--epochs or a smaller --batch-size, and then a higher --lr-per-256"
        )
    device = pick_device(config.runtime.device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), closing(MetricsLog(path / "metrics.jsonl")) as log:
        network = train_geo_prior(places[placed], labels, photos.n_classes, recipe, device, log)
        if source.held_out is not None:
            _score_held_out(network, source.held_out, config, recipe, log)
    facts = StageTwoFacts(
        run=str(run.path),
        **{**options, **dataclasses.asdict(recipe)},
        n_photos=len(labels),
        n_without_place=int((~placed).sum()),
    )
    # Presence is no share of the photos: it carries no class prior that could be taken off.
    state = CheckpointFacts(recipe.epochs, total, WeightsFacts())
    facts_of_run = replace(run.facts, stage_two=facts)
    write_trained_run(path, config, network, source=run, facts=facts_of_run, state=state)


def _score_held_out(
    network: GeoPrior, held_out: Split, config: Config, recipe: GeoRecipe, log: MetricsLog
) -> None:
    """Prints and logs how well place and date alone tell the species of the held-out part."""
    places = places_of(held_out)
    placed = have_place(places)
    if not placed.any():
        return
    device = next(network.parameters()).device
    guesses = [
        top_k(log_presence(network, torch.from_numpy(chunk).to(device)).cpu().numpy(), 3)
        for chunk in np.split(places[placed], range(CHUNK, int(placed.sum()), CHUNK))
    ]
    result = score_guesses(
        np.concatenate(guesses),
        held_out.labels[placed],
        held_out.train_counts,
        config.data.band_edges,
    )
    say(f"           by place and date alone, {result}")
    log.write("validation", epoch=recipe.epochs, chosen={}, **vars(result))


def predict_log_presence(
    geo: TrainedRun, places: Float32[np.ndarray, "photos 3"]
) -> Iterator[tuple[slice, Float[np.ndarray, "chunk classes"]]]:
    """The log presence of each species, chunk by chunk; the row of a photo without a place is
    all 0. `places` are as from `places_of`."""
    n_classes = len(geo.run.facts.category_ids)
    with torch.random.fork_rng(devices=[]):
        network = GeoPrior(n_classes)
    network.load_state_dict(dict(geo.checkpoint.load_weights()))
    device = pick_device(geo.config.runtime.device)
    network.to(device)
    length = max(1, PRESENCE_BYTES // (4 * n_classes))
    for begin in range(0, len(places), length):
        chunk = slice(begin, begin + length)
        yield chunk, log_presence(network, torch.from_numpy(places[chunk]).to(device)).cpu().numpy()

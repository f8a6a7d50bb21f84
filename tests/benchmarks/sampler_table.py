"""Prints what every sampler draws on the real shape of iNat-2018: the share of an epoch's draws
that go to many-, medium- and few-shot species, by the formula and as drawn, and its cost.

python tests/benchmarks/sampler_table.py
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from inat.config.schema import SamplerConfig, switch_epoch
from inat.core.bands import BANDS
from inat.core.metrics import shot_bands
from inat.core.priors import Prior
from inat.samplers import build_sampler
from inat.samplers.base import epoch_order
from inat.samplers.independent import IndependentSampler
from inat.synthetic.world import PROFILES, train_counts

EPOCHS = 10
CASES = (
    (SamplerConfig(name="instance"), 0),
    (SamplerConfig(name="square_root"), 0),
    (SamplerConfig(name="repeat_factor"), 0),
    (SamplerConfig(name="effective_number", beta=0.99), 0),
    (SamplerConfig(name="effective_number"), 0),
    (SamplerConfig(name="class_balanced"), 0),
    (SamplerConfig(name="class_balanced_cycling"), 0),
    (SamplerConfig(name="progressive"), 0),
    (SamplerConfig(name="progressive"), 5),
    (SamplerConfig(name="progressive"), 9),
    (SamplerConfig(name="class_balanced", after="80%"), 7),
    (SamplerConfig(name="class_balanced", after="80%"), 8),
)


@dataclass(frozen=True)
class Row:
    """One epoch of one sampler."""

    title: str
    n_draws: int
    expected: list[float]
    drawn: list[float]
    species: int
    photos: int
    milliseconds: float


def main() -> None:
    """Draws an epoch of each and prints the table."""
    counts = train_counts(PROFILES["inat2018"])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    bands = shot_bands(counts)
    shape = ", ".join(f"{band} {bands[band].sum():,}" for band in BANDS)
    print(f"{len(counts):,} species ({shape}), {len(labels):,} photos, {EPOCHS} epochs, seed 0")
    print("share of the draws in %, many / medium / few; species and photos drawn at least once")
    header = ("draws", "by formula", "drawn", "species", "photos")
    print(f"{'sampler':34}{header[0]:>10}{header[1]:>20}{header[2]:>20}", end="")
    print(f"{header[3]:>9}{header[4]:>10}{'ms':>6}")
    for config, epoch in CASES:
        row = drawn_row(config, epoch, labels, bands)
        print(
            f"{row.title:34}{row.n_draws:>10,}{shown(row.expected):>20}{shown(row.drawn):>20}",
            end="",
        )
        print(f"{row.species:>9,}{row.photos:>10,}{row.milliseconds:>6.0f}")


def drawn_row(
    config: SamplerConfig, epoch: int, labels: np.ndarray, bands: dict[str, np.ndarray]
) -> Row:
    """Draws one epoch."""
    n_classes = len(bands["many"])
    sampler = build_sampler(config, labels, n_classes, EPOCHS)
    began = time.perf_counter()
    order = epoch_order(sampler, sampler.epoch_size, 0, epoch, EPOCHS)
    seconds = time.perf_counter() - began
    per_species = np.bincount(labels[order], minlength=n_classes)
    prior = prior_in(config, epoch, labels, n_classes)
    return Row(
        title=f"{config} epoch {epoch + 1}" if config.changes else described(config),
        n_draws=len(order),
        expected=[float(prior[bands[band]].sum()) for band in BANDS],
        drawn=[float(per_species[bands[band]].sum() / len(order)) for band in BANDS],
        species=int(np.count_nonzero(per_species)),
        photos=len(np.unique(order)),
        milliseconds=1000 * seconds,
    )


def prior_in(config: SamplerConfig, epoch: int, labels: np.ndarray, n_classes: int) -> Prior:
    """The prior of an epoch's draws."""
    begun = epoch >= switch_epoch(config.after, EPOCHS)
    now = replace(config, after=None) if begun else SamplerConfig()
    sampler = build_sampler(now, labels, n_classes, EPOCHS)
    if isinstance(sampler, IndependentSampler):
        return sampler.prior_at(epoch / EPOCHS)
    assert sampler.prior is not None
    return sampler.prior


def described(config: SamplerConfig) -> str:
    """The name, with the option that matters."""
    options = {"effective_number": f" beta {config.beta:g}",
               "repeat_factor": f" threshold {config.threshold:g}"}  # fmt: skip
    return config.name + options.get(config.name, "")


def shown(shares: list[float]) -> str:
    """Per cent, one decimal."""
    return " / ".join(f"{100 * share:.1f}" for share in shares)


if __name__ == "__main__":
    main()

"""The reversed sampler of BBN: a species by one over its photo count."""

import numpy as np
import pytest
from scipy import stats

from inat.config.reading import build
from inat.config.values import merge
from inat.samplers import ReverseSampler, build_sampler
from inat.samplers.base import epoch_order

COUNTS = (40, 12, 5, 0, 2, 1)  # of species 3 there is no photo
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))


def slow_prior() -> list[float]:
    """Equation 4 of Zhou et al. 2020, species by species."""
    weights = [40 / n if n else 0.0 for n in COUNTS]
    return [weight / sum(weights) for weight in weights]


def test_the_prior_is_the_formula_species_by_species() -> None:
    prior = build_sampler("reverse", LABELS, 6).prior
    assert prior is not None
    assert prior.tolist() == pytest.approx(slow_prior(), abs=1e-12)


def test_draws_follow_the_prior_over_species_and_are_even_over_their_photos() -> None:
    drawn = epoch_order(build_sampler("reverse", LABELS, 6), 30_000, seed=0, epoch=0)
    per_species = np.bincount(LABELS[drawn], minlength=6)
    present = np.flatnonzero(COUNTS)
    assert np.flatnonzero(per_species).tolist() == present.tolist()
    expected = len(drawn) * np.array(slow_prior())
    assert stats.chisquare(per_species[present], expected[present]).pvalue > 1e-3
    per_photo = np.bincount(drawn, minlength=len(LABELS))
    for species in present[:-1]:
        assert stats.chisquare(per_photo[species == LABELS]).pvalue > 1e-3


def test_a_config_names_it_and_plain_arguments_make_it() -> None:
    config = build(merge({}, {"sampler.name": "reverse", "sampler.after": "80%"}), "test")
    assert str(config.sampler) == "reverse after 80%"
    drawn = list(ReverseSampler(LABELS, seed=3))
    assert drawn == epoch_order(build_sampler("reverse", LABELS, 6), len(LABELS), 3, 0).tolist()

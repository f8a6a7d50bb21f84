"""Samplers: which photos an epoch draws, and the prior of its draws."""

import math
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats

from inat import samplers
from inat.config.schema import SamplerConfig
from inat.core.errors import InputError
from inat.samplers import SAMPLERS, build_sampler
from inat.samplers.base import Sampler, epoch_order, stream
from inat.synthetic.world import PROFILES, train_counts

COUNTS = (40, 12, 5, 0, 2, 1)  # of species 3 there is no photo
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))
N = len(LABELS)
EPOCHS = 10
OTHERS = sorted(SAMPLERS.keys() - {"instance"})


def sampler_of(name: str, **options: Any) -> Sampler:
    config = SamplerConfig(name=name, **options)  # type: ignore[arg-type]
    return build_sampler(config, LABELS, 6, EPOCHS)


def order(name: str, n_draws: int, seed: int = 0, epoch: int = 0, **options: Any) -> np.ndarray:
    return epoch_order(sampler_of(name, **options), n_draws, seed, epoch, EPOCHS)


def slow_prior(name: str, t: float = 0.0, beta: float = 0.9999, threshold: float = 0.001) -> Any:
    """The published weight of each species, one by one; then all by their sum."""
    weights = []
    for n in COUNTS:
        if n == 0:
            weights.append(0.0)
        elif name == "instance":
            weights.append(n / N)
        elif name == "square_root":
            weights.append(math.sqrt(n))
        elif name == "progressive":
            weights.append((1 - t) * n / N + t / 5)
        elif name == "effective_number":
            weights.append(sum((1 - beta) / (1 - beta**n) for _photo in range(n)))
        elif name == "repeat_factor":
            weights.append(n * max(1, math.sqrt(threshold / (n / N))))
        else:  # class_balanced, also when it cycles
            weights.append(1.0)
    return [weight / sum(weights) for weight in weights]


# --- priors ----------------------------------------------------------------------------------

CASES: list[tuple[str, dict[str, Any]]] = [
    ("instance", {}),
    ("class_balanced", {}),
    ("class_balanced_cycling", {}),
    ("square_root", {}),
    ("effective_number", {}),
    ("effective_number", {"beta": 0.9}),
    ("repeat_factor", {"threshold": 0.001}),
    ("repeat_factor", {"threshold": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_prior_is_the_formula_species_by_species(name: str, options: dict[str, Any]) -> None:
    prior = sampler_of(name, **options).prior
    assert prior is not None
    assert prior.tolist() == pytest.approx(slow_prior(name, **options), abs=1e-12)
    assert prior.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_long_run_frequencies_are_the_prior(name: str, options: dict[str, Any]) -> None:
    sampler = sampler_of(name, **options)
    drawn = np.concatenate([epoch_order(sampler, 3000, 1, epoch) for epoch in range(10)])
    shares = np.bincount(LABELS[drawn], minlength=6) / len(drawn)
    assert sampler.prior is not None
    assert shares[3] == 0
    # Five standard errors of independent draws; what is drawn without replacement strays less.
    assert (np.abs(shares - sampler.prior) <= 5 * np.sqrt(sampler.prior / len(drawn))).all()


def test_the_prior_is_unknown_where_it_changes_during_training() -> None:
    assert sampler_of("progressive").prior is None
    for name in OTHERS:
        assert sampler_of(name, after="50%").prior is None


def test_effective_number_lies_between_instance_and_class_balanced() -> None:
    natural = sampler_of("effective_number", beta=0.0).prior
    assert natural == pytest.approx(slow_prior("instance"), abs=1e-12)
    balanced = sampler_of("effective_number", beta=0.999999).prior
    assert balanced == pytest.approx(slow_prior("class_balanced"), abs=1e-4)


# --- instance --------------------------------------------------------------------------------


def test_instance_draws_every_photo_once_an_epoch() -> None:
    drawn = order("instance", N)
    assert sorted(drawn.tolist()) == list(range(N))
    assert drawn.tolist() != list(range(N))


def test_an_instance_epoch_larger_than_the_photos_repeats_none_before_all_were_drawn() -> None:
    drawn = order("instance", 2 * N + 7)
    assert sorted(drawn[:N].tolist()) == list(range(N))
    assert sorted(drawn[N : 2 * N].tolist()) == list(range(N))
    assert drawn[:N].tolist() != drawn[N : 2 * N].tolist()
    assert len(drawn) == 2 * N + 7
    assert len(set(drawn[2 * N :].tolist())) == 7


def test_an_instance_epoch_smaller_than_the_photos_repeats_none() -> None:
    drawn = order("instance", 11)
    assert len(set(drawn.tolist())) == len(drawn) == 11


# --- independent draws -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "epoch", "options"),
    [
        ("class_balanced", 0, {}),
        ("square_root", 0, {}),
        ("effective_number", 0, {"beta": 0.9}),
        ("effective_number", 0, {"beta": 0.9999}),
        ("progressive", 0, {}),
        ("progressive", 3, {}),
        ("progressive", 9, {}),
    ],
)
def test_independent_draws_follow_the_formula_over_species_and_over_their_photos(
    name: str, epoch: int, options: dict[str, Any]
) -> None:
    drawn = order(name, 30_000, epoch=epoch, **options)
    per_species = np.bincount(LABELS[drawn], minlength=6)
    expected = len(drawn) * np.array(slow_prior(name, t=epoch / EPOCHS, **options))
    present = np.flatnonzero(COUNTS)
    assert np.flatnonzero(per_species).tolist() == present.tolist()
    assert stats.chisquare(per_species[present], expected[present]).pvalue > 1e-3
    per_photo = np.bincount(drawn, minlength=N)
    for species in present:
        of_species = per_photo[species == LABELS]
        if len(of_species) > 1:
            assert stats.chisquare(of_species).pvalue > 1e-3


def test_independent_draws_come_in_random_order() -> None:
    species = LABELS[order("class_balanced", 20_000)]
    pairs = np.zeros((6, 6), int)
    np.add.at(pairs, (species[:-1:2], species[1::2]), 1)
    present = np.flatnonzero(COUNTS)
    table = pairs[np.ix_(present, present)]
    assert stats.chi2_contingency(table).pvalue > 1e-3  # the next species asks not for the last


@pytest.mark.parametrize("name", OTHERS)
def test_species_without_photos_at_the_end_of_the_list_are_never_drawn(name: str) -> None:
    sampler = build_sampler(name, LABELS, 50, EPOCHS)
    drawn = epoch_order(sampler, 2000, 0, 5, EPOCHS)
    assert set(LABELS[drawn].tolist()) == set(np.flatnonzero(COUNTS).tolist())


# --- cycling ---------------------------------------------------------------------------------


def slow_cycle(drawn: np.ndarray) -> None:
    """Checks an order against the rules of the class-aware loop, draw by draw."""
    species_left: set[int] = set()
    photos_left: dict[int, set[int]] = {}
    for photo in drawn.tolist():
        species = int(LABELS[photo])
        species_left = species_left or {s for s in range(6) if COUNTS[s]}
        assert species in species_left
        species_left.remove(species)
        if not photos_left.get(species):
            photos_left[species] = set(np.flatnonzero(species == LABELS).tolist())
        assert photo in photos_left[species]
        photos_left[species].remove(photo)


@pytest.mark.parametrize("n_draws", [1, 4, 5, 23, 60, 400])
def test_cycling_repeats_no_species_and_no_photo_before_all_were_drawn(n_draws: int) -> None:
    drawn = order("class_balanced_cycling", n_draws)
    assert len(drawn) == n_draws
    slow_cycle(drawn)


def test_cycling_draws_the_same_photos_again_in_another_order() -> None:
    drawn = order("class_balanced_cycling", 5 * 12 * 2)  # twice the 12 photos of species 1
    of_species = drawn[LABELS[drawn] == 1]
    assert sorted(of_species[:12].tolist()) == sorted(of_species[12:].tolist())
    assert of_species[:12].tolist() != of_species[12:].tolist()


def test_cycling_draws_every_photo_of_a_species_equally_often() -> None:
    sampler = sampler_of("class_balanced_cycling")
    firsts = [epoch_order(sampler, 5, seed, 0) for seed in range(2000)]
    per_photo = np.bincount(np.concatenate(firsts), minlength=N)
    for species in np.flatnonzero(COUNTS):
        of_species = per_photo[species == LABELS]
        assert of_species.sum() == 2000
        if len(of_species) > 1:
            assert stats.chisquare(of_species).pvalue > 1e-3


# --- repeat factor ---------------------------------------------------------------------------


def test_whole_repeat_factors_repeat_every_photo_exactly_so_often_in_each_pass() -> None:
    # threshold x N / n is 1, 4, 16 and 64: repeated once, twice, 4 and 8 times.
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), (64, 16, 4, 1)))
    config = SamplerConfig(name="repeat_factor", threshold=64 / 85)
    sampler = build_sampler(config, labels, 4)
    assert sampler.epoch_size == 64 + 2 * 16 + 4 * 4 + 8 * 1 == 120
    drawn = epoch_order(sampler, 300, 0, 0)
    times = np.array([1, 2, 4, 8])[labels].tolist()
    first, second, third = drawn[:120], drawn[120:240], drawn[240:]
    assert np.bincount(first, minlength=85).tolist() == times
    assert np.bincount(second, minlength=85).tolist() == times
    assert (np.bincount(third, minlength=85) <= times).all()
    assert first.tolist() != second.tolist()


def test_the_fraction_of_a_repeat_factor_is_rounded_up_as_often_as_it_says() -> None:
    # N = 60, threshold 0.15: 9 / n is below 1 for the first two species, whose photos so count
    # the passes, and 1.8, 4.5 and 9 for the others: r = 1.34, 2.12 and 3.
    drawn = order("repeat_factor", 300_000, threshold=0.15)
    per_photo = np.bincount(drawn, minlength=N)
    passes = int(per_photo[LABELS == 0].min())
    assert per_photo[(LABELS == 0) | (LABELS == 1)].max() <= passes + 1  # the last pass is cut
    for species, n in ((2, 5), (4, 2)):
        r = math.sqrt(0.15 / (n / N))
        for photo in np.flatnonzero(species == LABELS).tolist():
            ups = int(per_photo[photo]) - math.floor(r) * passes
            assert stats.binomtest(ups, passes, r - math.floor(r)).pvalue > 1e-3
    assert abs(int(per_photo[LABELS == 5].item()) - 3 * passes) <= 3


def test_a_pass_of_repeat_factor_is_rounded_anew_and_differs_from_the_last() -> None:
    rounded = [np.bincount(order("repeat_factor", 100, epoch=e, threshold=0.15)) for e in range(3)]
    assert not np.array_equal(rounded[0], rounded[1])
    assert not np.array_equal(rounded[1], rounded[2])


def test_on_the_real_shape_repeat_factor_repeats_nearly_all_species_and_doubles_the_epoch() -> None:
    counts = train_counts(PROFILES["inat2018"])
    labels = np.repeat(np.arange(len(counts)), counts)
    sampler = build_sampler("repeat_factor", labels, len(counts))
    factors = np.maximum(1, np.sqrt(0.001 / (counts / counts.sum())))
    # The real counts, of the same shape: all but 167 species, 14.8 times, 1,046,381 draws.
    assert int((factors == 1).sum()) == 170
    assert float(factors.max()) == pytest.approx(14.79, abs=0.005)
    assert sampler.epoch_size == 1_043_367 == round((counts * factors).sum())


# --- deferred --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("after", "first"), [("80%", 8), ("75%", 7), ("3", 3), ("9", 9)])
def test_deferred_draws_are_instance_before_the_switch_and_the_samplers_own_from_it_on(
    name: str, after: str, first: int
) -> None:
    for epoch in (0, first - 1):
        drawn = order(name, N, epoch=epoch, after=after)
        assert np.array_equal(drawn, order("instance", N, epoch=epoch))
    for epoch in {first, EPOCHS - 1}:
        drawn = order(name, 200, epoch=epoch, after=after)
        assert np.array_equal(drawn, order(name, 200, epoch=epoch))
        assert not np.array_equal(drawn, order("instance", 200, epoch=epoch))


def test_a_switch_at_a_share_of_one_epoch_is_at_its_beginning() -> None:
    config = SamplerConfig(name="square_root", after="80%")
    sampler = build_sampler(config, LABELS, 6, 1)
    expected = epoch_order(sampler_of("square_root"), 200, 0, 0)
    assert np.array_equal(epoch_order(sampler, 200, 0, 0, 1), expected)


# --- what holds for all ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_order_is_a_pure_function_of_seed_and_epoch(name: str) -> None:
    first = order(name, N, seed=3, epoch=5)
    order(name, N, seed=9, epoch=1)  # another one in between changes nothing
    assert np.array_equal(first, order(name, N, seed=3, epoch=5))
    assert not np.array_equal(first, order(name, N, seed=3, epoch=6))
    assert not np.array_equal(first, order(name, N, seed=4, epoch=5))
    assert not np.array_equal(first, order(name, N, seed=5, epoch=3))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_epoch_has_as_many_draws_as_it_is_told(name: str) -> None:
    for n_draws in (1, 7, N, 3 * N + 1):
        drawn = order(name, n_draws)
        assert drawn.shape == (n_draws,)
        assert drawn.dtype == np.int64


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_epoch_is_as_long_as_the_config_says_or_else_as_there_are_photos(name: str) -> None:
    assert sampler_of(name, epoch_size=17).epoch_size == 17
    if name != "repeat_factor":
        assert sampler_of(name).epoch_size == N
    if name != "instance":
        assert sampler_of(name, after="50%").epoch_size == N
        assert sampler_of(name, after="50%", epoch_size=17).epoch_size == 17


def test_streams_of_two_purposes_or_blocks_share_no_numbers() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    numbers = [stream(*key).random(100) for key in keys]
    assert len(np.unique(np.concatenate(numbers))) == 100 * len(keys)


# --- refusals --------------------------------------------------------------------------------


def test_every_name_that_a_config_may_say_has_a_sampler() -> None:
    assert set(get_args(get_type_hints(SamplerConfig)["name"])) == SAMPLERS.keys()


def test_an_unknown_sampler_lists_the_valid_ones() -> None:
    with pytest.raises(InputError) as caught:
        build_sampler("class_balance", LABELS, 6)
    assert str(caught.value) == (
        "sampler.name: unknown name 'class_balance'; did you mean class_balanced? "
        f"valid: {', '.join(sorted(SAMPLERS))}"
    )


def test_photos_without_labels_cannot_be_drawn_from() -> None:
    with pytest.raises(InputError) as caught:
        build_sampler("instance", np.array([0, -1, -1]), 6)
    assert str(caught.value) == ("sampler instance: 2 photos have no label; draw from train or val")


@pytest.mark.parametrize(
    ("sampler", "shown"),
    [
        ("progressive", "progressive"),
        (SamplerConfig(name="square_root", after="80%"), "square_root after 80%"),
    ],
)
def test_draws_that_change_ask_for_the_length_of_the_training(
    sampler: str | SamplerConfig, shown: str
) -> None:
    with pytest.raises(InputError) as caught:
        build_sampler(sampler, LABELS, 6)
    assert str(caught.value) == (
        f"sampler {shown}: its draws change during training, of which the length is not known; "
        "give epochs"
    )


def test_draws_that_change_end_with_the_training() -> None:
    with pytest.raises(InputError) as caught:
        order("progressive", N, epoch=EPOCHS)
    assert str(caught.value) == (
        "epoch 10: the draws change over 10 epochs, counted from 0, and are not defined after "
        "that; give more epochs"
    )
    assert len(order("square_root", N, epoch=EPOCHS)) == N


# --- in anybody's loop -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("class_balanced", lambda: samplers.ClassBalancedSampler(LABELS, seed=3)),
        ("square_root", lambda: samplers.SquareRootSampler(LABELS, seed=3)),
        ("progressive", lambda: samplers.ProgressiveSampler(LABELS, EPOCHS, seed=3)),
        ("repeat_factor", lambda: samplers.RepeatFactorSampler(LABELS, 0.001, seed=3)),
    ],
)
def test_a_sampler_made_by_plain_arguments_serves_a_data_loader(name: str, plain: Any) -> None:
    made = plain()
    assert type(made) is SAMPLERS[name]
    for epoch in (0, 4):
        made.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(np.arange(N), batch_size=7, sampler=made)
        assert len(loader) == -(-len(made) // 7)
        drawn = torch.cat(list(loader)).tolist()
        assert drawn == order(name, len(made), seed=3, epoch=epoch).tolist()


def test_build_sampler_gives_back_a_sampler_that_is_one_already() -> None:
    made = samplers.ProgressiveSampler(LABELS, EPOCHS)
    assert build_sampler(made, LABELS, 6) is made
    assert epoch_order(made, N, 0, 4).tolist() == order("progressive", N, epoch=4).tolist()
    with pytest.raises(InputError, match=f"^sampler: it draws from {N} photos, not from 3$"):
        build_sampler(made, LABELS[:3], 6)

"""Photos that belong together stay on one side of every cut."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import category

from inat.dataset.grouping import joined
from inat.dataset.split import Split, cut_holdout, photo_groups
from inat.dataset.taxonomy import read_taxonomy

HOLDOUTS = ("0.2", "0.5", "0.9", "fold:1/2", "fold:3/5")


def split_of(
    labels: list[int], digests: list[int] | None = None, groups: list[int] | None = None
) -> Split:
    """A training split in memory; a 0 among the digests and groups is unknown."""
    n, n_classes = len(labels), max(labels) + 1
    return Split(
        name="train",
        root=Path("nowhere"),
        competition="inaturalist-2018",
        file_names=pa.array([f"{i}.jpg" for i in range(n)]),
        image_ids=np.random.default_rng(0).permutation(3 * n)[:n].astype(np.int64),
        labels=np.array(labels),
        sizes=np.zeros((n, 2), np.int32),
        taxonomy=read_taxonomy([category(label) for label in range(n_classes)], "memory"),
        train_counts=np.bincount(labels, minlength=n_classes),
        digests=None if digests is None else np.array(digests),
        groups=None if groups is None else np.array(groups),
    )


def sides(split: Split, holdout: str, seed: int = 0) -> np.ndarray:
    """Whether each photo is held out."""
    _, held = cut_holdout(split, holdout, seed)
    return np.isin(split.image_ids, held.image_ids)


def bursts(n_species: int, n_groups: int, size: int) -> Split:
    """Species of so many bursts of so many photos each."""
    n = n_species * n_groups * size
    labels = np.repeat(np.arange(n_species), n_groups * size)
    return split_of(labels.tolist(), groups=(1 + np.arange(n) // size).tolist())


def slow_groups(*keys: list[int]) -> list[set[int]]:
    """Photos are merged one pair after the other until nothing changes."""
    groups = [{at} for at in range(len(keys[0]))]
    for key in keys:
        for one in range(len(key)):
            for other in range(one):
                if key[one] == key[other] != 0:
                    both = groups[one] | groups[other]
                    for at in both:
                        groups[at] = both
    return groups


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_groups_are_those_of_a_slow_loop_over_pairs(rows: list[tuple[int, int]]) -> None:
    keys = [list(column) for column in zip(*rows, strict=True)]
    found, slow = joined(*map(np.array, keys)), slow_groups(*keys)
    if found is None:
        assert all(len(group) == 1 for group in slow)
    else:
        own = [set(np.flatnonzero(found == one).tolist()) for one in found]
        assert own == slow


@pytest.mark.parametrize("holdout", HOLDOUTS)
@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)),
        min_size=8,
        max_size=60,
    ),
    seed=st.integers(0, 3),
)
def test_a_group_is_never_on_both_sides_and_no_species_loses_its_last_photo(
    holdout: str, rows: list[tuple[int, int, int]], seed: int
) -> None:
    # Twelve singles of a fifth species, so that something is held out.
    labels, digests, groups = map(list, zip(*rows, *[(4, 0, 0)] * 12, strict=True))
    split = split_of(labels, digests, groups)
    held = sides(split, holdout, seed)
    for group in slow_groups(digests, groups):
        assert len(set(held[list(group)].tolist())) == 1
    assert set(split.labels[~held].tolist()) == set(labels)


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_digests_and_groups_that_join_nothing_leave_the_cut_as_it_is(holdout: str) -> None:
    labels = [0] * 25 + [1] * 7 + [2] * 4 + [3] * 2 + [4]
    n = len(labels)
    for seed in range(5):
        plain = sides(split_of(labels), holdout, seed)
        alone = split_of(labels, list(range(1, n + 1)), [0] * n)
        assert (sides(alone, holdout, seed) == plain).all()


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_a_group_changes_the_cut_of_its_own_species_alone(holdout: str) -> None:
    labels = [0] * 25 + [1] * 7 + [2] * 4
    plain = sides(split_of(labels), holdout)
    grouped = sides(split_of(labels, groups=[0] * 25 + [1] * 3 + [0] * 8), holdout)
    other = np.array(labels) != 1
    assert (grouped[other] == plain[other]).all()


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_the_cut_of_groups_does_not_depend_on_the_order_of_the_photos(holdout: str) -> None:
    rng = np.random.default_rng(5)
    split = split_of([0] * 20 + [1] * 9 + [2] * 5, groups=rng.integers(0, 12, 34).tolist())
    mixed = split.select(rng.permutation(len(split)))
    ids = [sorted(cut_holdout(one, holdout, 0)[1].image_ids.tolist()) for one in (split, mixed)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(("n_groups", "size"), [(2, 4), (3, 2), (10, 4)])
def test_the_share_of_bursts_held_out_is_the_asked_one_whatever_their_number(
    n_groups: int, size: int
) -> None:
    held = [sides(bursts(400, n_groups, size), "0.2", seed).mean() for seed in (0, 1)]
    assert held == pytest.approx([0.2, 0.2], abs=0.03)


def test_single_photos_fill_the_share_that_a_large_group_would_exceed() -> None:
    # Ten photos of one observation and ten alone: of 20 photos 4 are wanted, and there are.
    labels, groups = [0] * 20, [1] * 10 + [0] * 10
    assert {
        int(sides(split_of(labels, groups=groups), "0.2", seed).sum()) for seed in range(20)
    } == {4}


def test_folds_of_groups_have_as_equal_sizes_as_the_groups_allow() -> None:
    split = split_of([0] * 12, groups=[1] * 4 + [2] * 2 + [3] * 2 + [0] * 4)
    for n_folds in (2, 3):
        folds = [sides(split, f"fold:{i + 1}/{n_folds}") for i in range(n_folds)]
        assert [int(fold.sum()) for fold in folds] == [12 // n_folds] * n_folds
        assert (np.sum(folds, axis=0) == 1).all()


def test_copies_under_two_species_stay_on_one_side() -> None:
    # The first photo of each species is the same file.
    split = split_of([0] * 6 + [1] * 6, digests=[9, 0, 0, 0, 0, 0] * 2)
    for seed in range(30):
        held = sides(split, "0.3", seed)
        assert held[0] == held[6]


def test_a_species_whose_only_photo_is_a_copy_keeps_it_where_it_is_trained_on() -> None:
    split = split_of([0] * 6 + [1], digests=[9, 0, 0, 0, 0, 0, 9])
    for seed in range(30):
        assert not sides(split, "0.5", seed)[[0, 6]].any()


def test_a_split_of_single_photos_has_no_groups() -> None:
    assert photo_groups(split_of([0, 0, 1])) is None
    assert photo_groups(split_of([0, 0, 1], [1, 2, 3], [0, 0, 0])) is None

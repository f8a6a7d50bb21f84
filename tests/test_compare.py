"""Two predictions side by side: figures against slow loops, the sentence, what is refused."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from predictions import make_prediction

from inat.cli.app import main
from inat.core.errors import InputError
from inat.core.files import read_json
from inat.core.intervals import gain_interval
from inat.evaluation import Comparison, compare
from inat.evaluation.compare import mcnemar, paired_difference, short_names
from inat.predictions.file import PredictionFile

N_CLASSES = 40
COUNTS = [300] * 10 + [50] * 10 + [5] * 20
LABELS = np.repeat(np.arange(N_CLASSES), 4)
IDS = [10 + 3 * place for place in range(len(LABELS))]


def logits_of(right: np.ndarray) -> np.ndarray:
    """Logits whose first guess is right where it is said, and the next label elsewhere."""
    guesses = np.where(right, LABELS, (LABELS + 1) % N_CLASSES)
    return 5 * np.eye(N_CLASSES)[guesses]


OLD = np.arange(len(LABELS)) % 4 < 2  # every species: two of four
NEW = OLD | ((LABELS >= 20) & (np.arange(len(LABELS)) % 4 == 2))  # few: three of four


def made(path: Path, right: np.ndarray = OLD, **options: object) -> PredictionFile:
    return make_prediction(
        path,
        logits_of(right),
        **({"labels": LABELS.tolist(), "train_counts": COUNTS, "ids": IDS} | options),  # type: ignore[arg-type]
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[PredictionFile, PredictionFile]:
    return made(tmp_path / "ce" / "val"), made(tmp_path / "la" / "val", NEW)


def refusal(first: PredictionFile, second: PredictionFile) -> str:
    with pytest.raises(InputError) as caught:
        compare(first, second)
    return str(caught.value)


def slow_mcnemar(n_gained: int, n_lost: int) -> float:
    """Twice the chance of so few heads or fewer, at most 1."""
    n = n_gained + n_lost
    tail = sum(math.comb(n, heads) for heads in range(min(n_gained, n_lost) + 1))
    return min(1.0, 2 * tail / 2**n)


# --- figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 0), (9, 1), (5, 5), (20, 41)])
def test_mcnemar_s_p_value_is_that_of_a_fair_coin(gained: int, lost: int) -> None:
    assert mcnemar(gained, lost) == pytest.approx(slow_mcnemar(gained, lost))


def test_differences_equal_slow_loops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old, new = rng.random(len(LABELS)) < 0.5, rng.random(len(LABELS)) < 0.6
    found = compare(made(tmp_path / "a", old), made(tmp_path / "b", new))
    assert found.n_images == len(LABELS)
    groups = {
        "mean_class_accuracy": range(N_CLASSES),
        "many": range(10),
        "medium": range(10, 20),
        "few": range(20, 40),
    }
    differences = {"mean_class_accuracy": found.mean_class_accuracy} | found.bands
    for name, labels in groups.items():
        difference = differences[name]
        assert difference is not None
        own = np.isin(LABELS, list(labels))
        assert difference.first == pytest.approx(old[own].mean())
        assert difference.second == pytest.approx(new[own].mean())
        assert difference.gain.value == pytest.approx(new[own].mean() - old[own].mean())
        both = list(zip(old[own], new[own], strict=True))
        assert difference.n_gained == sum(after and not before for before, after in both)
        assert difference.n_lost == sum(before and not after for before, after in both)
        assert difference.p_value == pytest.approx(
            slow_mcnemar(difference.n_gained, difference.n_lost)
        )
        assert difference.gain == gain_interval(old[own], new[own], LABELS[own] - min(labels))
    assert found.top1.gain.value == pytest.approx(new.mean() - old.mean())


def test_top_1_weighs_photos_and_mean_class_accuracy_species(tmp_path: Path) -> None:
    labels = [0, 0, 0, 0, 1, 1]
    old = make_prediction(tmp_path / "a", np.eye(3)[[0, 0, 0, 0, 2, 2]], labels)
    new = make_prediction(tmp_path / "b", np.eye(3)[[0, 0, 0, 2, 1, 2]], labels)
    found = compare(old, new)
    assert found.top1.gain.value == pytest.approx(0)
    assert found.mean_class_accuracy.gain.value == pytest.approx((0.5 - 0.25) / 2)


def test_rows_in_another_order_are_aligned(
    pair: tuple[PredictionFile, PredictionFile], tmp_path: Path
) -> None:
    rows = np.random.default_rng(1).permutation(len(LABELS))
    other = make_prediction(
        tmp_path / "shuffled" / "val",
        logits_of(NEW)[rows],
        LABELS[rows].tolist(),
        COUNTS,
        ids=np.array(IDS)[rows].tolist(),
    )
    expected, found = compare(*pair), compare(pair[0], other)
    assert found.top1 == expected.top1
    assert found.bands == expected.bands
    assert found.gained["category_id"].tolist() == expected.gained["category_id"].tolist()


def test_few_photos_that_all_moved_one_way_are_no_proof() -> None:
    labels, everyone = np.repeat(np.arange(10), 3), np.ones(10, bool)
    old = np.zeros(30, bool)
    for n_moved, is_seen in ((4, False), (5, False), (6, True), (9, True)):
        new = old.copy()
        new[::3][:n_moved] = True
        found = paired_difference(old, new, labels, everyone)
        assert found is not None
        assert found.gain.low > 0  # the interval alone would claim it
        assert found.is_seen is is_seen


def test_species_that_moved_most_stand_first_and_the_rarer_one_before(tmp_path: Path) -> None:
    labels, counts = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [90, 80, 70, 60, 50]
    old = make_prediction(tmp_path / "a", np.eye(5)[[0, 1, 0, 0, 0, 0, 3, 3, 4, 4]], labels, counts)
    new = make_prediction(tmp_path / "b", np.eye(5)[[0, 0, 1, 0, 2, 2, 0, 0, 4, 4]], labels, counts)
    found = compare(old, new)
    assert (found.n_species_gained, found.n_species_lost) == (3, 1)
    ids = old.category_ids.tolist()
    assert found.gained["category_id"].tolist() == [ids[2], ids[1], ids[0]]
    assert found.gained[["first", "second", "n"]].to_numpy().tolist() == [
        [0, 2, 2], [0, 1, 2], [1, 2, 2]
    ]  # fmt: skip
    assert found.lost["category_id"].tolist() == [ids[3]]
    assert found.lost["train_count"].tolist() == [60]


# --- the sentence ----------------------------------------------------------------------------


def test_the_sentence_names_what_is_better_and_where_nothing_is_seen(
    pair: tuple[PredictionFile, PredictionFile],
) -> None:
    assert compare(*pair).sentence() == (
        "la is better than ce by 12.5 points of top-1, 95 % interval 7.8 to 18.6 (McNemar "
        "p < 0.0001); in the few band la is better by 25.0 points (16.0 to 35.6); "
        "in the many and medium bands no difference can be seen"
    )
    worse = compare(*pair[::-1]).sentence()
    assert worse.startswith("ce is worse than la by 12.5 points of top-1, 95 % interval 7.")
    assert "in the few band ce is worse by 25.0 points (16." in worse


def test_the_sentence_claims_nothing_of_two_equal_predictions(tmp_path: Path) -> None:
    found = compare(made(tmp_path / "a" / "val"), made(tmp_path / "b" / "val"))
    assert found.sentence() == (
        "no difference between b and a can be seen (top-1 +0.0 points, 95 % interval -2.4 to "
        "+2.4, McNemar p = 1); in the many, medium and few bands no difference can be seen"
    )


def test_a_band_without_photos_is_left_out_of_the_sentence(tmp_path: Path) -> None:
    options = {"train_counts": [300] * 20 + [5] * 20}
    found = compare(made(tmp_path / "a", **options), made(tmp_path / "b", NEW, **options))
    assert found.bands["medium"] is None
    assert found.sentence().endswith("in the many band no difference can be seen")


def test_one_photo_of_each_species_can_show_a_difference(tmp_path: Path) -> None:
    old = make_prediction(tmp_path / "a", np.eye(8)[[1] * 8], range(8))
    new = make_prediction(tmp_path / "b", np.eye(8), range(8))
    found = compare(old, new)
    assert found.top1.gain.value == 0.875
    assert 0 < found.top1.gain.low < 0.6
    assert found.top1.gain.high < 1
    assert found.sentence().startswith("b is better than a by 87.5 points of top-1, 95 % interval")


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("runs/ce/predictions/val", "runs/la/predictions/val", ("ce", "la")),
        ("runs/ce/predictions/val", "runs/ce/predictions/val-adjusted", ("val", "val-adjusted")),
        ("a/x/1", "b/x/2", ("a/x/1", "b/x/2")),
        ("a", "a", ("a", "a")),
        ("a/b", "a/b/c", ("a/b", "a/b/c")),
    ],
)
def test_short_names_are_what_tells_two_paths_apart(
    first: str, second: str, names: Sequence[str]
) -> None:
    assert short_names(Path(first), Path(second)) == names


# --- what is refused -------------------------------------------------------------------------


def test_other_photos_are_refused(tmp_path: Path) -> None:
    one = made(tmp_path / "a")
    other = made(tmp_path / "b", ids=[*IDS[:-2], 8001, 8002])
    assert refusal(one, other) == (
        f"{one.path} and {other.path} are of other photos: 4 stand in one of them alone "
        f"(first: {IDS[-2]}); predict the same split with both"
    )


def test_other_species_are_refused(tmp_path: Path) -> None:
    one = made(tmp_path / "a", category_ids=range(N_CLASSES))
    other = made(tmp_path / "b", category_ids=[*range(N_CLASSES - 1), 900])
    assert refusal(one, other) == (
        f"{one.path} and {other.path} are of other species: 2 stand in one of them alone "
        "(first: 39); predict the same split with both"
    )


def test_other_train_counts_labels_and_edges_are_refused(tmp_path: Path) -> None:
    one = made(tmp_path / "a", category_ids=range(N_CLASSES))
    recounted = made(tmp_path / "b", category_ids=range(N_CLASSES), train_counts=[*COUNTS[:-1], 7])
    assert refusal(one, recounted) == (
        f"{one.path} and {recounted.path} have other train counts for 1 species (first: 39), so "
        "they have no bands in common; predict with models of the same data set"
    )
    relabelled = made(
        tmp_path / "c", category_ids=range(N_CLASSES), labels=[3, *LABELS[1:].tolist()]
    )
    assert refusal(one, relabelled) == (
        f"{one.path} and {relabelled.path} know other labels for 1 photos (first: 10); give the "
        "organisers' solution (--solution solution.csv)"
    )
    other_edges = made(tmp_path / "d", category_ids=range(N_CLASSES))
    other_edges.meta.band_edges = (21, 100)
    assert refusal(one, other_edges) == (
        f"{one.path} has the band edges 20 100 and {other_edges.path} 21 100; say which: "
        "--bands literature"
    )
    assert compare(one, other_edges, bands="mislas").band_edges == (21, 100)


# --- the command -----------------------------------------------------------------------------


def test_the_command_prints_the_sentence_the_table_and_the_species(
    pair: tuple[PredictionFile, PredictionFile],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = (str(each.path) for each in pair)
    out = tmp_path / "comparison.json"
    assert main(["compare", first, second, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found: Comparison = compare(*pair)
    assert lines[0] == found.sentence()
    assert lines[1].split() == [
        "first", "second", "difference", "95", "%", "interval", "won", "lost", "McNemar", "p"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[2:7]] == ["top-1", "mean", "many", "medium", "few"]
    assert lines[4].split() == ["many", "50.0", "50.0", "+0.0", "-9.0", "to", "+9.0", "0", "0", "1"]
    assert lines[7] == "20 species gained, the first 10:"
    assert lines[8] == "  Genus20 species20 (5 training photos): 2 -> 3 of 4 right"
    assert lines[-2:] == ["0 species lost", f"saved {out}"]
    saved = read_json(out)
    assert saved == found.to_dict()
    assert saved["sentence"] == lines[0]
    assert saved["bands"]["few"]["gain"] == vars(found.bands["few"].gain)  # type: ignore[union-attr]

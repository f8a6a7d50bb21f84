"""Every measure of an evaluation against a slow loop or scikit-learn, on a small tree of life."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from predictions import make_prediction
from sklearn.metrics import f1_score, precision_score, top_k_accuracy_score

from inat.core.errors import InputError
from inat.evaluation import Evaluation, evaluate
from inat.predictions.file import PredictionFile

N_CLASSES = 24
COUNTS = [int(400 * 0.75**label) + 2 for label in range(N_CLASSES)]
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(N_CLASSES - 1), [3, 1, 5] * 7 + [2, 3])).tolist()
LOGITS = RNG.normal(0, 1.3, (len(LABELS), N_CLASSES)) + 2.2 * np.eye(N_CLASSES)[LABELS]
LOGITS[[4, 9]] = 0.0  # ties
COLUMNS = {
    "supercategory": ["Birds" if label < 10 else "Bugs" for label in range(N_CLASSES)],
    "kingdom": ["Animalia" if label < 20 else "Plantae" for label in range(N_CLASSES)],
    "phylum": [f"p{label // 10}" for label in range(N_CLASSES)],
    "class": [""] * N_CLASSES,
    "order": [f"o{label // 6}" for label in range(N_CLASSES)],
    # The same name below two orders; one species' family is not known.
    "family": ["" if label == 3 else f"f{label // 3 % 4}" for label in range(N_CLASSES)],
    "genus": ["" if label in (6, 7) else f"g{label // 2}" for label in range(N_CLASSES)],
}
RANKS = ["kingdom", "phylum", "order", "family", "genus"]


@pytest.fixture(scope="module")
def prediction(tmp_path_factory: pytest.TempPathFactory) -> PredictionFile:
    path = tmp_path_factory.mktemp("measures") / "p"
    return make_prediction(path, LOGITS, LABELS, COUNTS, columns=COLUMNS)


@pytest.fixture(scope="module")
def found(prediction: PredictionFile) -> Evaluation:
    return evaluate(prediction)


@pytest.fixture(scope="module")
def photos(prediction: PredictionFile) -> list[tuple[int, int, float, float]]:
    """(true, guessed, confidence, probability of the true species) of each photo, by loops."""
    rows = []
    for logits, label in zip(prediction.logits.tolist(), LABELS, strict=True):
        total = sum(math.exp(z) for z in logits)
        guess = min(range(N_CLASSES), key=lambda j: (-logits[j], j))
        rows.append(
            (label, guess, math.exp(logits[guess]) / total, math.exp(logits[label]) / total)
        )
    return rows


Photos = list[tuple[int, int, float, float]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def accuracies(photos: Photos) -> dict[int, float]:
    return {
        label: mean([float(guess == true) for true, guess, *_ in photos if true == label])
        for label in sorted(set(LABELS))
    }


def same_group(one: int, other: int, rank: str) -> bool:
    """Whether two species share every rank down to this one, and this one is known."""
    above = RANKS[: RANKS.index(rank) + 1]
    return COLUMNS[rank][one] != "" and all(COLUMNS[r][one] == COLUMNS[r][other] for r in above)


def bands() -> Iterator[tuple[str, set[int]]]:
    yield "all", set(range(N_CLASSES))
    yield "many", {label for label in range(N_CLASSES) if COUNTS[label] > 100}
    yield "medium", {label for label in range(N_CLASSES) if 20 <= COUNTS[label] <= 100}
    yield "few", {label for label in range(N_CLASSES) if COUNTS[label] < 20}


def test_the_world_of_these_tests_has_hits_mistakes_and_a_species_without_photos(
    found: Evaluation,
) -> None:
    assert 0.3 < found.top1.value < 0.8
    assert found.per_class["n"].tolist()[-1] == 0
    assert found.per_class["predicted"].tolist()[-1] > 0


def test_top_k_accuracies_equal_scikit_learn_s(
    found: Evaluation, prediction: PredictionFile
) -> None:
    # scikit-learn leaves ties to chance, so they are broken as the kit does.
    broken = prediction.logits.astype(np.float64) - 1e-9 * np.arange(N_CLASSES)
    assert list(found.top_k) == [1, 3, 5]
    for k, interval in found.top_k.items():
        expected = top_k_accuracy_score(LABELS, broken, k=k, labels=range(N_CLASSES))
        assert interval.value == pytest.approx(expected)
        assert interval.low < interval.value < interval.high
    assert found.top1 == found.top_k[1]
    assert found.top3_error == pytest.approx(1 - found.top_k[3].value)


def test_guesses_and_probabilities_equal_slow_loops(found: Evaluation, photos: Photos) -> None:
    assert found.outcomes.guessed.tolist() == [guess for _, guess, *_ in photos]
    confidence = [confidence for *_, confidence, _ in photos]
    assert found.outcomes.confidence.tolist() == pytest.approx(confidence, rel=1e-5)
    true_probability = [probability for *_, probability in photos]
    assert found.outcomes.true_probability.tolist() == pytest.approx(true_probability, rel=1e-5)


def test_chunks_of_any_size_give_the_same(
    found: Evaluation, prediction: PredictionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inat.predictions.file.CHUNK_BYTES", 4 * N_CLASSES * 7)
    assert len(list(prediction.chunks())) > 8
    assert evaluate(prediction).to_dict() == found.to_dict()


def test_species_rows_equal_slow_counts_and_scikit_learn_s_precision_and_f1(
    found: Evaluation, photos: Photos
) -> None:
    table, guesses = found.per_class, [guess for _, guess, *_ in photos]
    precision = precision_score(LABELS, guesses, labels=range(N_CLASSES), average=None,
                                zero_division=np.nan)  # fmt: skip
    f1 = f1_score(LABELS, guesses, labels=range(N_CLASSES), average=None, zero_division=np.nan)
    assert table["precision"].to_numpy() == pytest.approx(precision, nan_ok=True)
    assert table["f1"].to_numpy() == pytest.approx(f1, nan_ok=True)
    for label in range(N_CLASSES):
        own = [photo for photo in photos if photo[0] == label]
        row = table.iloc[label]
        assert row["n"] == len(own)
        assert row["hits"] == sum(guess == true for true, guess, *_ in own)
        assert row["predicted"] == guesses.count(label)
        if own:
            assert row["true_probability"] == pytest.approx(mean([p for *_, p in own]), rel=1e-5)
    assert table["top3_hits"].sum() == pytest.approx(len(LABELS) * found.top_k[3].value)
    assert table["low"].isna().tolist() == [n < 2 for n in table["n"]]


def test_means_over_species_equal_scikit_learn_s_f1_and_slow_loops(
    found: Evaluation, photos: Photos
) -> None:
    guesses = [guess for _, guess, *_ in photos]
    assert found.means.macro_f1 == pytest.approx(
        f1_score(LABELS, guesses, average="macro", zero_division=0)
    )
    floored = [max(each, 0.001) for each in accuracies(photos).values()]
    assert found.means.harmonic == pytest.approx(len(floored) / sum(1 / each for each in floored))
    assert found.means.geometric == pytest.approx(math.prod(floored) ** (1 / len(floored)))
    assert found.means.never_right == floored.count(0.001) > 0


def test_the_worst_species_are_the_least_accurate_then_the_least_probable(
    found: Evaluation, photos: Photos, prediction: PredictionFile
) -> None:
    accuracy = accuracies(photos)
    probability = {
        label: mean([p for true, *_, p in photos if true == label]) for label in accuracy
    }
    order = sorted(accuracy, key=lambda label: (accuracy[label], probability[label]))
    ids = prediction.category_ids
    assert found.worst_species == [ids[label] for label in order[:20]]


def test_deciles_are_tenths_of_the_species_from_the_rarest_on(
    found: Evaluation, photos: Photos
) -> None:
    rarest = sorted(range(N_CLASSES), key=lambda label: (COUNTS[label], label))
    parts = [rarest[:3], rarest[3:6], rarest[6:9], rarest[9:12]]  # 24 = 4 x 3 + 6 x 2
    parts += [rarest[at : at + 2] for at in range(12, 24, 2)]
    accuracy = accuracies(photos)
    assert [decile.name for decile in found.deciles] == [str(place) for place in range(1, 11)]
    for decile, members in zip(found.deciles, parts, strict=True):
        own = [accuracy[label] for label in members if label in accuracy]
        assert decile.n_species == len(own)
        assert decile.train_count_min == min(COUNTS[label] for label in members)
        assert decile.train_count_max == max(COUNTS[label] for label in members)
        assert decile.accuracy is not None
        assert decile.accuracy.value == pytest.approx(mean(own))


def test_supercategories_are_means_over_their_species(found: Evaluation, photos: Photos) -> None:
    accuracy = accuracies(photos)
    assert [group.name for group in found.supercategories] == ["Birds", "Bugs"]
    for group, members in zip(found.supercategories, (range(10), range(10, 24)), strict=True):
        own = [accuracy[label] for label in members if label in accuracy]
        assert group.n_species == len(own)
        assert group.accuracy is not None
        assert group.accuracy.value == pytest.approx(mean(own))


def test_ranks_equal_slow_loops_over_whole_lineages(found: Evaluation, photos: Photos) -> None:
    assert [rank.rank for rank in found.ranks] == ["genus", "family", "order", "phylum", "kingdom"]
    for rank in found.ranks:
        right = [t == g or same_group(t, g, rank.rank) for t, g, *_ in photos]
        mistakes = [r for r, (t, g, *_) in zip(right, photos, strict=True) if t != g]
        assert rank.accuracy.value == pytest.approx(mean(right))
        assert rank.of_mistakes == pytest.approx(mean(mistakes))
        above = RANKS[: RANKS.index(rank.rank) + 1]
        lineages = {
            tuple(COLUMNS[r][label] for r in above)
            for label in range(N_CLASSES)
            if COLUMNS[rank.rank][label]
        }
        assert rank.n_groups == len(lineages)
    values = [rank.accuracy.value for rank in found.ranks]
    assert values[-1] > values[0] > found.top1.value


def test_the_distance_of_mistakes_is_the_height_of_the_lowest_common_ancestor(
    found: Evaluation, photos: Photos
) -> None:
    up = ["genus", "family", "order", "phylum", "kingdom"]
    heights = [
        next((place for place, rank in enumerate(up, 1) if same_group(t, g, rank)), 6)
        for t, g, *_ in photos
        if t != g
    ]
    assert found.mistake_distance is not None
    assert found.mistake_distance.mean == pytest.approx(mean(heights))
    counts = Counter(heights)
    assert found.mistake_distance.counts == {
        name: counts[place] for place, name in enumerate([*up, "root"], 1)
    }


def test_reliability_equals_slow_bins_overall_and_by_band(
    found: Evaluation, photos: Photos
) -> None:
    for name, members in bands():
        own = [(c, float(t == g)) for t, g, c, _ in photos if t in members]
        result = found.reliability[name]
        assert result is not None
        error = 0.0
        for place, shown in enumerate(result.bins):
            inside = [(c, hit) for c, hit in own if place / 15 < c <= (place + 1) / 15]
            assert (shown.above, shown.up_to) == pytest.approx((place / 15, (place + 1) / 15))
            assert shown.n == len(inside)
            if inside:
                confidence, hit = (mean(list(each)) for each in zip(*inside, strict=True))
                assert (shown.confidence, shown.accuracy) == pytest.approx((confidence, hit))
                error += len(inside) / len(own) * abs(hit - confidence)
            else:
                assert (shown.confidence, shown.accuracy) == (None, None)
        assert result.ece == pytest.approx(error, rel=1e-5)
        assert result.confidence == pytest.approx(mean([c for c, _ in own]), rel=1e-5)
        assert result.accuracy == pytest.approx(mean([hit for _, hit in own]))


def test_coverage_at_a_confidence_equals_slow_loops(found: Evaluation, photos: Photos) -> None:
    for name, members in bands():
        own = [(c, t == g) for t, g, c, _ in photos if t in members]
        assert [k.threshold for k in found.kept_at[name]] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
        for kept in found.kept_at[name]:
            inside = [hit for c, hit in own if c >= kept.threshold]
            assert kept.coverage == pytest.approx(len(inside) / len(own))
            assert kept.accuracy == (pytest.approx(mean(inside)) if inside else None)


def test_prediction_bias_is_the_ratio_of_predicted_to_occurring(
    found: Evaluation, photos: Photos
) -> None:
    for name, members in list(bands())[1:]:
        bias = found.prediction_bias[name]
        occurring = mean([t in members for t, *_ in photos])
        predicted = mean([g in members for _, g, *_ in photos])
        assert (bias.occurring, bias.predicted) == pytest.approx((occurring, predicted))
        assert bias.ratio == pytest.approx(predicted / occurring)


def test_confused_pairs_count_both_ways_and_show_mistaken_photos_first(
    found: Evaluation, photos: Photos, prediction: PredictionFile
) -> None:
    ids, category = prediction.ids.tolist(), prediction.category_ids.tolist()
    pairs = Counter((min(t, g), max(t, g)) for t, g, *_ in photos if t != g)
    order = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    assert len(found.confused_pairs) == len(order)
    for shown, pair in zip(found.confused_pairs, order, strict=True):
        assert shown.n == pairs[pair] == shown.first.mistaken + shown.second.mistaken
        assert shown.first.mistaken >= shown.second.mistaken
        assert {shown.first.category_id, shown.second.category_id} == {category[j] for j in pair}
        for one, other in ((shown.first, shown.second), (shown.second, shown.first)):
            label, taken_for = category.index(one.category_id), category.index(other.category_id)
            own = [place for place, (t, *_) in enumerate(photos) if t == label]
            own.sort(key=lambda place: (photos[place][1] != taken_for, -photos[place][2]))
            assert one.n == len(own)
            assert one.mistaken == sum(photos[place][1] == taken_for for place in own)
            assert one.image_ids == [ids[place] for place in own[:4]]


def test_the_worst_mistakes_are_the_few_band_s_most_confident(
    found: Evaluation, photos: Photos, prediction: PredictionFile
) -> None:
    few = dict(bands())["few"]
    wrong = [place for place, (t, g, *_) in enumerate(photos) if t != g and t in few]
    wrong.sort(key=lambda place: -photos[place][2])
    assert [m.image_id for m in found.worst_mistakes] == prediction.ids[wrong].tolist()
    for mistake, place in zip(found.worst_mistakes, wrong, strict=True):
        true, guess, confidence, probability = photos[place]
        assert mistake.category_id == prediction.category_ids[true]
        assert mistake.guessed == prediction.category_ids[guess]
        assert mistake.confidence == pytest.approx(confidence, rel=1e-5)
        assert mistake.true_probability == pytest.approx(probability, rel=1e-5)


# --- what is odd -----------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong_are_measured(tmp_path: Path, right: bool) -> None:
    labels = [0, 0, 0, 1, 1, 1]
    logits = 50 * np.eye(3)[labels if right else [2] * 6]
    found = evaluate(make_prediction(tmp_path / "p", logits, labels, [200, 50, 5], columns={
        "genus": ["a", "a", "a"], "supercategory": ["s", "s", ""]
    }))  # fmt: skip
    assert found.top1.value == float(right)
    low, high = (0.6097, 1.0) if right else (0.0, 0.3903)  # Wilson's, of 6 photos
    assert (found.top1.low, found.top1.high) == pytest.approx((low, high), abs=1e-4)
    assert found.means.harmonic == pytest.approx(1.0 if right else 0.001)
    assert found.means.never_right == (0 if right else 2)
    assert found.ranks[0].of_mistakes == (None if right else 1.0)
    assert found.mistake_distance is not None
    assert found.mistake_distance.mean == (None if right else 1.0)
    assert len(found.confused_pairs) == (0 if right else 2)
    assert found.bands["few"] is None
    assert found.reliability["few"] is None
    assert found.kept_at["few"] == []
    assert found.prediction_bias["few"].ratio is None
    assert [group.name for group in found.supercategories] == ["s"]


def test_a_data_set_without_lineage_has_no_ranks(tmp_path: Path) -> None:
    found = evaluate(make_prediction(tmp_path / "p", np.eye(3), [0, 1, 2]))
    assert (found.ranks, found.supercategories, found.mistake_distance) == ([], [], None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_with_the_photo(
    tmp_path: Path, value: float
) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(4), [0, 1, 2, 3], ids=[5, 6, 7, 8])
    logits = np.load(tmp_path / "p" / "logits.npy")
    logits[2, 1] = value
    np.save(tmp_path / "p" / "logits.npy", logits)
    with pytest.raises(InputError) as caught:
        evaluate(prediction.path)
    assert str(caught.value) == (
        f"{tmp_path / 'p' / 'logits.npy'}: the logits of image 7 are not finite; predict again"
    )


def test_a_prediction_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        make_prediction(tmp_path / "p", np.zeros((0, 3)))
    assert str(caught.value) == (
        f"{tmp_path / 'p'}: it has no photo, or a label that is none of its 3 species; "
        "predict again"
    )


def test_names_are_kept_to_the_letter_in_both_files(tmp_path: Path) -> None:
    names = ['<script>alert("x")</script>', "Straßen'falter, der", "柳の枝\t"]
    prediction = make_prediction(tmp_path / "p", np.eye(3), [0, 1, 2], columns={"name": names})
    found = evaluate(prediction)
    found.save(tmp_path / "out")
    assert found.to_dict()["species"]["name"] == names
    assert pd.read_csv(tmp_path / "out" / "per_class.csv")["name"].tolist() == names

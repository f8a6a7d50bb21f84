"""Evaluation against loops that a reader can check; who may be scored; solution files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predictions import make_prediction

from inat.core.errors import InputError
from inat.core.files import read_json
from inat.evaluation import evaluate
from inat.evaluation.table import evaluation_table, further_figures, plain_lines
from inat.predictions.file import PredictionFile

COUNTS = [300, 101, 100, 20, 19, 2]
LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4]
LOGITS = np.random.default_rng(0).normal(0, 1, (14, 6)) + 1.2 * np.eye(6)[LABELS]


@pytest.fixture
def prediction(tmp_path: Path) -> PredictionFile:
    return make_prediction(tmp_path / "p", LOGITS, LABELS, COUNTS, split="val")


def slow_rank(row: list[float], label: int) -> int:
    """How many labels stand before the true one: better logits, and equal ones of lower labels."""
    return sum(z > row[label] or (z == row[label] and j < label) for j, z in enumerate(row))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def write_solution(path: Path, rows: list[tuple[Any, Any, str]]) -> Path:
    lines = [f"{image_id},{expected},{usage}\n" for image_id, expected, usage in rows]
    path.write_text("id,expected,usage\n" + "".join(lines))
    return path


# --- figures ---------------------------------------------------------------------------------


def test_figures_equal_slow_loops(prediction: PredictionFile) -> None:
    found = evaluate(prediction.path)
    ranks = [slow_rank(r, y) for r, y in zip(prediction.logits.tolist(), LABELS, strict=True)]
    accuracy = {
        label: mean([float(r == 0) for r, y in zip(ranks, LABELS, strict=True) if y == label])
        for label in sorted(set(LABELS))
    }
    assert 0 < mean([float(r == 0) for r in ranks]) < 1
    assert found.n_images == 14
    assert found.top1.value == pytest.approx(mean([float(r == 0) for r in ranks]))
    assert found.top3_error == pytest.approx(mean([float(r >= 3) for r in ranks]))
    assert found.mean_class_accuracy.value == pytest.approx(mean(list(accuracy.values())))
    for band, labels in {"many": [0, 1], "medium": [2, 3], "few": [4]}.items():
        interval = found.bands[band]
        assert interval is not None
        assert interval.value == pytest.approx(mean([accuracy[label] for label in labels]))
        assert interval.low <= interval.value <= interval.high
    assert found.band_species == {"many": 2, "medium": 2, "few": 1}
    assert found.hits.tolist() == [r == 0 for r in ranks]
    assert found.labels.tolist() == LABELS
    assert found.notes == ["1 of 6 species have no photo here"]


ONE_PHOTO = (
    "species with one photo here: {} (medium {}); the intervals take how much their photos vary "
    "from species with as few photos, so they may be a little wide"
)


def test_top_1_weighs_photos_and_mean_class_accuracy_weighs_species(tmp_path: Path) -> None:
    logits = np.eye(4)[[0, 0, 0, 1, 1]]  # the last two are of label 2; labels 1 and 3 have none
    found = evaluate(make_prediction(tmp_path / "p", logits, [0, 0, 0, 2, 2]))
    assert found.top1.value == pytest.approx(3 / 5)
    assert found.mean_class_accuracy.value == pytest.approx(1 / 2)


def test_ties_go_to_the_lower_category_id(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.zeros((4, 4)), [0, 1, 2, 3])
    found = evaluate(prediction)
    assert found.hits.tolist() == [True, False, False, False]
    assert found.top3_error == 0.25
    assert found.notes == [ONE_PHOTO.format(4, 4)]


def test_an_opened_prediction_and_its_path_give_the_same(prediction: PredictionFile) -> None:
    assert evaluate(prediction).to_dict() == evaluate(str(prediction.path)).to_dict()


def test_a_band_without_photos_is_none_and_never_0(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3), [0, 0, 1], [500, 50, 5])
    found = evaluate(prediction)
    assert found.bands["few"] is None
    assert found.band_species == {"many": 1, "medium": 1, "few": 0}
    assert found.to_dict()["bands"]["few"] is None


def test_band_edges_can_be_moved(prediction: PredictionFile) -> None:
    found = evaluate(prediction, band_edges=(21, 99))  # MiSLAS counts 20 as few
    assert found.band_species == {"many": 3, "medium": 0, "few": 2}
    assert found.bands["medium"] is None
    assert found.per_class["band"].tolist() == ["many", "many", "many", "few", "few", "few"]


def test_named_bands_set_the_edges_and_overrule_the_run_s(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3), [0, 1, 2], [21, 20, 19])
    assert evaluate(prediction, bands="mislas").per_class["band"].tolist() == [
        "medium", "few", "few"
    ]  # fmt: skip
    assert evaluate(prediction, bands="literature").band_edges == (20, 100)
    prediction.meta.band_edges = (5, 20)
    assert evaluate(prediction).band_edges == (5, 20)
    assert evaluate(prediction, bands="literature").band_edges == (20, 100)


def test_named_bands_and_edges_together_are_refused(prediction: PredictionFile) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(prediction, bands="mislas", band_edges=(20, 100))
    assert str(caught.value) == "bands mislas and band edges 20 100: give one of them"


@pytest.mark.parametrize("edges", [(100, 20), (0, 100), (-1, 5)])
def test_band_edges_that_make_no_sense_are_refused(
    prediction: PredictionFile, edges: tuple[int, int]
) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(prediction, band_edges=edges)
    assert str(caught.value) == (
        f"band edges {edges[0]} {edges[1]}: give two numbers above 0, the smaller first"
    )


def test_saved_files_hold_the_figures_and_a_row_a_species(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    found = evaluate(prediction)
    found.save(tmp_path / "report")
    assert read_json(tmp_path / "report" / "metrics.json") == found.to_dict()
    assert found.to_dict()["top1"] == vars(found.top1)
    table = pd.read_csv(tmp_path / "report" / "per_class.csv")
    assert list(table.columns) == [
        "category_id", "name", "lineage", "train_count", "band", "n", "hits", "top3_hits",
        "accuracy", "low", "high", "predicted", "precision", "f1", "true_probability"
    ]  # fmt: skip
    assert table["category_id"].tolist() == prediction.category_ids.tolist()
    assert table["train_count"].tolist() == COUNTS
    assert table["band"].tolist() == ["many", "many", "medium", "medium", "few", "few"]
    assert table["n"].tolist() == [LABELS.count(label) for label in range(6)]
    for label in range(6):
        hits = [bool(h) for h, y in zip(found.hits, LABELS, strict=True) if y == label]
        assert table["hits"][label] == sum(hits)
        if hits:
            assert table["accuracy"][label] == pytest.approx(sum(hits) / len(hits))
    assert np.isnan(table["accuracy"][5])
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "metrics.json", "per_class.csv"
    ]  # fmt: skip


# --- whose photos may be scored --------------------------------------------------------------


def test_photos_that_were_trained_on_are_refused_whatever_is_said(tmp_path: Path) -> None:
    roles = ["trained on", "unseen", "trained on"]
    prediction = make_prediction(tmp_path / "p", np.eye(3), [0, 1, 2], role=roles)
    for chosen_here in (False, True):
        with pytest.raises(InputError) as caught:
            evaluate(prediction, chosen_here=chosen_here)
        assert str(caught.value) == (
            f"{tmp_path / 'p'}: 2 of its 3 photos were trained on, and a score on them says "
            "nothing; predict val, test or the held-out part"
        )


def test_a_few_copies_of_photos_that_were_trained_on_are_counted_beside_the_score_without_them(
    tmp_path: Path,
) -> None:
    roles = ["trained on", "unseen", "unseen", "trained on", "unseen"]
    logits = np.eye(3)[[0, 1, 0, 1, 1]]
    prediction = make_prediction(tmp_path / "p", logits, [0, 1, 2, 1, 1], role=roles)
    found = evaluate(prediction)
    assert found.top1.value == pytest.approx(4 / 5)
    assert found.notes[0] == (
        "2 of 5 photos are copies of photos that were trained on; without them top-1 is 66.7%"
    )
    half = make_prediction(tmp_path / "half", logits[:4], [0, 1, 2, 1], role=roles[:4])
    with pytest.raises(InputError, match="2 of its 4 photos were trained on"):
        evaluate(half)


def test_a_few_copies_of_photos_on_which_something_was_chosen_are_counted(tmp_path: Path) -> None:
    roles = ["chosen on", "unseen", "unseen"]
    prediction = make_prediction(
        tmp_path / "p", np.eye(3), [0, 1, 2], role=roles, chosen={"epoch": "accuracy on holdout"}
    )
    note = "1 of 3 photos are copies of photos on which something was chosen"
    assert evaluate(prediction).notes[0] == note


def test_photos_on_which_something_was_chosen_are_refused_unless_it_is_said(
    tmp_path: Path,
) -> None:
    prediction = make_prediction(
        tmp_path / "p",
        np.eye(3),
        [0, 1, 2],
        role=["chosen on", "unseen", "chosen on"],
        chosen={"epoch": "mean class accuracy on holdout", "tau": "class means on holdout"},
    )
    chosen = "epoch by mean class accuracy on holdout; tau by class means on holdout"
    with pytest.raises(InputError) as caught:
        evaluate(prediction)
    assert str(caught.value) == (
        f"{tmp_path / 'p'}: on 2 of its photos something was chosen ({chosen}), so a score on "
        "them flatters; predict val or test, or say --chosen-here"
    )
    found = evaluate(prediction, chosen_here=True)
    note = f"chosen on these very photos: {chosen}; the figures flatter"
    assert found.notes[0] == note
    assert found.to_dict()["notes"][0] == note


def test_held_out_photos_are_scored_and_chosen_here_adds_no_note_to_unseen_ones(
    tmp_path: Path,
) -> None:
    held_out = make_prediction(tmp_path / "h", np.eye(3), [0, 1, 2], role="held out")
    assert evaluate(held_out).notes == [ONE_PHOTO.format(3, 3)]
    unseen = make_prediction(tmp_path / "u", np.eye(3), [0, 1, 2], chosen={"epoch": "holdout"})
    assert evaluate(unseen, chosen_here=True).notes == [ONE_PHOTO.format(3, 3)]


# --- solution --------------------------------------------------------------------------------


def test_missing_labels_ask_for_the_solution(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3), [0, -1, -1])
    with pytest.raises(InputError) as caught:
        evaluate(prediction)
    assert str(caught.value) == (
        f"{tmp_path / 'p'}: 2 of its photos have no label; "
        "give the organisers' solution (--solution solution.csv)"
    )


def test_a_solution_is_joined_by_id_in_any_order_and_its_other_rows_are_left_out(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    unknown = make_prediction(tmp_path / "u", LOGITS, None, COUNTS)
    ids, category_ids = unknown.ids.tolist(), unknown.category_ids.tolist()
    rows = [(i, category_ids[y], "Public") for i, y in zip(ids, LABELS, strict=True)]
    rows = [(1_000_000, 999, "Private"), *reversed(rows)]
    found = evaluate(unknown, solution=write_solution(tmp_path / "solution.csv", rows))
    expected = evaluate(prediction)
    assert found.labels.tolist() == LABELS
    assert found.to_dict() == expected.to_dict() | {"prediction": str(unknown.path)}


def test_a_solution_overrules_the_labels_of_the_prediction(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3), [0, 1, 2], ids=[1, 2, 3])
    rows = [(1, 10, "Public"), (2, 10, "Public"), (3, 10, "Public")]
    found = evaluate(prediction, solution=write_solution(tmp_path / "s.csv", rows))
    assert found.labels.tolist() == [1, 1, 1]


def test_photos_that_the_solution_lacks_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3), ids=[5, 6, 7])
    path = write_solution(tmp_path / "s.csv", [(5, 2, "Public")])
    with pytest.raises(InputError) as caught:
        evaluate(prediction, solution=path)
    assert str(caught.value) == (
        f"{path}: has no row for 2 of the 3 photos of {tmp_path / 'p'} (first: 6)"
    )


@pytest.mark.parametrize("category", [3, 0, 99])
def test_a_category_that_the_prediction_does_not_know_is_named(
    tmp_path: Path, category: int
) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3)[:1], ids=[5])
    path = write_solution(tmp_path / "s.csv", [(5, category, "Public")])
    with pytest.raises(InputError) as caught:
        evaluate(prediction, solution=path)
    assert str(caught.value) == (
        f"{path}: expects category {category}, which {tmp_path / 'p'} does not know"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such solution file"),
        (b"", "not a CSV file with the header id,expected,usage"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a CSV file with the header id,expected,usage"),
        (b"id,expected,usage\n1,2,Public,4,5\n1,2\n,,,,,,,,,\n",
         "line 2: 5 cells, not 3"),
        (b"Id,expected,usage\n1,2,Public\n",
         "the header is 'Id,expected,usage', it must be id,expected,usage"),
        (b"id,predicted\n1,2\n", "the header is 'id,predicted', it must be id,expected,usage"),
        (b"id,expected,usage\n1,2,Public\nx7,2,Public\n", "line 3: id is 'x7', not a number"),
        (b"id,expected,usage\n1,Prunella,Public\n",
         "line 2: expected is 'Prunella', not a number"),
        (b"id,expected,usage\n1,,Public\n", "line 2: expected is '', not a number"),
        (b"id,expected,usage\n1,2.0,Public\n", "line 2: expected is '2.0', not a number"),
        (b"id,expected,usage\n1,2,Public\n2,2,Public\n1,2,Public\n",
         "line 4: the id stands twice"),
        (b"id,expected,usage\n1,2,Public\n2,2,public\n",
         "line 3: usage is 'public'; it must be Public or Private"),
        (b"id,expected,usage\n1,2,\n", "line 2: usage is ''; it must be Public or Private"),
    ],
)  # fmt: skip
def test_a_bad_solution_gives_one_clear_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3)[:1], ids=[1])
    path = tmp_path / "solution.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        evaluate(prediction, solution=path)
    assert str(caught.value) == f"{path}: {message}"


# --- the terminal ----------------------------------------------------------------------------


def test_the_table_has_figures_with_intervals_and_bars_below_the_bands(tmp_path: Path) -> None:
    labels = [0, 0, 0, 0, 1, 1, 2, 2]
    logits = 9 * np.eye(4)[[0, 0, 0, 1, 1, 2, 1, 1]]
    found = evaluate(make_prediction(tmp_path / "p", logits, labels, [300, 50, 5, 3]))
    lines = plain_lines(evaluation_table({"one": found}))
    assert len(lines) == 5
    assert lines[0].split() == ["top-1", "top-3", "error", "mean", "class", "many", "medium", "few"]
    assert lines[1].split() == ["%", "%", "%", "1", "species", "1", "species", "1", "species"]
    assert lines[2].split() == ["one", "50.0", "0.0", "41.7", "75.0", "50.0", "0.0"]
    shown = [found.top1, found.top3_error_interval, found.mean_class_accuracy]
    shown += [each for each in found.bands.values() if each is not None]
    assert lines[3].split() == [f"{100 * each.low:.1f}–{100 * each.high:.1f}" for each in shown]
    assert lines[4].split() == ["███████▌░░", "█████░░░░░", "░░░░░░░░░░"]


def test_an_empty_band_has_neither_figure_nor_bar(tmp_path: Path) -> None:
    found = evaluate(make_prediction(tmp_path / "p", np.eye(2), [0, 0], [300, 200]))
    lines = plain_lines(evaluation_table({"one": found}))
    assert lines[2].split()[-2:] == ["–", "–"]
    assert len(lines[3].split()) == 4
    assert lines[4].split() == ["█████░░░░░"]


def test_further_figures_tell_lineage_calibration_and_favoured_bands(tmp_path: Path) -> None:
    columns = {"genus": ["a", "a", "b"], "family": ["f"] * 3}
    logits = 50 * np.eye(3)[[0, 0, 1, 0]]
    found = evaluate(
        make_prediction(tmp_path / "p", logits, [0, 0, 1, 1], [200, 50, 5], columns=columns)
    )
    assert further_figures(found) == (
        "genus right 100.0 %; family right 100.0 %; mistakes 1.00 ranks away; macro F1 73.3 %; "
        "ECE 25.0 %; many predicted 1.50 x as often as they occur; "
        "medium predicted 0.50 x as often as they occur"
    )
    plain = evaluate(make_prediction(tmp_path / "q", logits, [0, 0, 1, 1], [200, 50, 5]))
    assert further_figures(plain).startswith("macro F1 73.3 %; ECE 25.0 %; many predicted")

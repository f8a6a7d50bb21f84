"""Choosing tau: by class means on photos that were held out, written down, refused afterwards."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictions import make_prediction

from inat.cli.app import main
from inat.core.errors import InputError
from inat.core.intervals import gain_interval
from inat.evaluation import evaluate
from inat.posthoc.adjust import adjust
from inat.posthoc.tau_search import GRID, choose_tau, hits_of_taus
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Adjustment

COUNTS = [60, 30, 8, 2, 1]
PRIOR = [count / sum(COUNTS) for count in COUNTS]
LABELS = [0] * 30 + [1] * 15 + [2] * 4 + [3]  # the last species was never held out
LOGITS = (
    np.random.default_rng(3).normal(0, 1, (50, 5)) + 1.5 * np.eye(5)[LABELS] + np.log(PRIOR)
).astype(np.float32)


@pytest.fixture
def held_out(tmp_path: Path) -> PredictionFile:
    return make_prediction(tmp_path / "oof", LOGITS, LABELS, COUNTS, split="oof", role="held out")


@pytest.fixture
def unseen(tmp_path: Path) -> PredictionFile:
    ids = range(1000, 1010)
    return make_prediction(tmp_path / "test", LOGITS[:10], LABELS[:10], COUNTS, ids=ids)


def slow_scores(prediction: PredictionFile) -> list[float]:
    """Mean over the species with photos of the share of their photos that argmax gets right."""
    scores = []
    for tau in range(21):
        hits: dict[int, list[bool]] = {}
        for row, label in zip(prediction.logits.tolist(), LABELS, strict=True):
            moved = [z - tau / 10 * math.log(p) for z, p in zip(row, PRIOR, strict=True)]
            hits.setdefault(label, []).append(moved.index(max(moved)) == label)
        scores.append(sum(sum(h) / len(h) for h in hits.values()) / len(hits))
    return scores


def refusal(*paths: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        adjust(*paths, tau="search", **options)
    return str(caught.value)


def test_each_tau_s_score_is_that_of_a_slow_loop(held_out: PredictionFile) -> None:
    assert GRID.tolist() == pytest.approx([tau / 10 for tau in range(21)])
    found = choose_tau(held_out, np.array(PRIOR)).scores
    assert found.tolist() == pytest.approx(slow_scores(held_out))
    assert len(set(found.tolist())) > 3


def test_the_first_best_tau_is_taken_and_the_note_says_on_what(
    held_out: PredictionFile, tmp_path: Path
) -> None:
    scores = slow_scores(held_out)
    best = scores.index(max(scores))
    assert 0 < best < 20
    found = adjust(held_out, tmp_path / "out", tau="search")
    notes = found.notes
    by_hand = adjust(held_out, tmp_path / "hand", tau=best / 10)
    assert found.logits.tobytes() == by_hand.logits.tobytes()
    assert found.logits_prior == pytest.approx(by_hand.logits_prior)
    hits = hits_of_taus(held_out, np.array(PRIOR))
    gain = gain_interval(hits[0], hits[best], np.array(LABELS))
    assert gain is not None
    assert gain.value == pytest.approx(max(scores) - scores[0])
    assert notes == [
        f"tau {best / 10:g} of 0 to 2 has the best mean class accuracy on the 50 photos of "
        f"{held_out.path}: {max(scores):.3f} (tau 0: {scores[0]:.3f}; {gain.points()}, "
        "flattered by the choice)",
        "species never held out, which had no say in it: 1 (Genus4 species4)",
    ]
    assert found.meta.adjusted == [
        Adjustment(
            of=str(held_out.path), tau=best / 10, fit=str(held_out.path), never_held_out=[94]
        )
    ]


def test_evaluate_refuses_the_photos_that_tau_was_chosen_on(
    held_out: PredictionFile, tmp_path: Path
) -> None:
    found = adjust(held_out, tmp_path / "out", tau="search")
    chosen = f"tau by mean class accuracy on the 50 photos of {held_out.path}"
    with pytest.raises(InputError) as caught:
        evaluate(found)
    assert str(caught.value) == (
        f"{found.path}: on 50 of its photos something was chosen ({chosen}), so a score on them "
        "flatters; predict val or test, or say --chosen-here"
    )
    told = evaluate(found, chosen_here=True)
    assert told.mean_class_accuracy.value == pytest.approx(max(slow_scores(held_out)))
    assert told.notes[0] == f"chosen on these very photos: {chosen}; the figures flatter"
    assert evaluate(held_out).n_images == 50  # what nothing was chosen on stays free


def test_other_photos_take_the_tau_and_its_history_and_may_be_scored(
    held_out: PredictionFile, unseen: PredictionFile, tmp_path: Path
) -> None:
    found = adjust(unseen, tmp_path / "out", tau="search", fit=held_out.path)
    on_fit = adjust(held_out, tmp_path / "fit", tau="search")
    tau = on_fit.meta.adjusted[0].tau
    by_hand = adjust(unseen, tmp_path / "hand", tau=tau)
    assert found.logits.tobytes() == by_hand.logits.tobytes()
    assert set(found.photos["role"]) == {"unseen"}
    chosen = {"tau": f"mean class accuracy on the 50 photos of {held_out.path}"}
    assert found.meta.chosen == chosen
    assert evaluate(found).to_dict()["chosen"] == chosen
    assert evaluate(by_hand).to_dict()["chosen"] == {}


def test_only_the_photos_of_the_fit_become_chosen_on_and_trained_on_stays(
    held_out: PredictionFile, tmp_path: Path
) -> None:
    ids = [*held_out.ids[:2].tolist(), 2000]
    both = make_prediction(
        tmp_path / "both",
        LOGITS[:3],
        LABELS[:3],
        COUNTS,
        ids=ids,
        role=["held out", "trained on", "unseen"],
    )
    found = adjust(both, tmp_path / "out", tau="search", fit=held_out)
    assert found.photos["role"].tolist() == ["chosen on", "trained on", "unseen"]


def test_a_tau_chosen_before_is_not_forgotten(tmp_path: Path) -> None:
    chosen = {"epoch": "class means", "tau": "mean class accuracy on the held-out part of train"}
    prediction = make_prediction(
        tmp_path / "p", LOGITS, LABELS, COUNTS, role="chosen on", chosen=chosen
    )
    found = adjust(prediction, tmp_path / "out", tau="search")
    assert found.meta.chosen == {
        "epoch": "class means",
        "tau": "mean class accuracy on the held-out part of train, then mean class accuracy on "
        f"the 50 photos of {prediction.path}",
    }


# --- what is said of a fit that is not the model's own ---------------------------------------

CENTRE, FLIP = [{"kind": "centre"}], [{"kind": "flip"}]
FOLDS = [{"run": f"runs/folds/fold_{k}", "checkpoint_sha256": f"f{k}"} for k in (1, 2)]


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({}, {}, None),
        ({"checkpoint_sha256": "c1"}, {"checkpoint_sha256": "c1", "run": "moved/a"}, None),
        ({"checkpoint_sha256": "f2"}, {"run": "runs/folds", "folds": FOLDS}, None),
        ({"checkpoint_sha256": "c1"}, {"run": "runs/folds", "folds": FOLDS},
         "the prediction of another model, runs/folds"),
        ({}, {"run": "runs/b"}, "the prediction of another model, runs/b"),
        ({"checkpoint_sha256": "c1"}, {"checkpoint_sha256": "c2", "run": "runs/b"},
         "the prediction of another model, runs/b"),
        ({"views": CENTRE}, {"views": FLIP}, "a prediction of other views, {fit}"),
        ({"view_mean": "prob"}, {"view_mean": "logprob"}, "a prediction of other views, {fit}"),
        ({"views": CENTRE}, {"views": FLIP, "run": "runs/b"},
         "the prediction of another model, runs/b, and of other views"),
        ({"how": "mean_prob", "members": [{"run": "runs/a"}]}, {"run": "runs/a"},
         "the prediction of another model, runs/a"),
    ],
)  # fmt: skip
def test_a_tau_of_another_model_or_of_other_views_is_taken_and_that_is_said(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], told: str | None
) -> None:
    fit = make_prediction(tmp_path / "fit", LOGITS, LABELS, COUNTS, role="held out", **theirs)
    ids = range(1000, 1010)
    test = make_prediction(tmp_path / "test", LOGITS[:10], None, COUNTS, ids=ids, **ours)
    found = adjust(test, tmp_path / "out", tau="search", fit=fit)
    notes = found.notes
    own = adjust(fit, tmp_path / "own", tau="search").notes
    said = [] if told is None else [f"tau was chosen on {told.format(fit=fit.path)}"]
    assert notes == [*own, *said]
    assert found.meta.adjusted[0].tau == GRID[np.argmax(slow_scores(fit))]


def test_an_ensemble_s_tau_is_its_own_where_the_members_are(tmp_path: Path) -> None:
    def made(name: str, second: str, views: Any = CENTRE) -> PredictionFile:
        facts = {"views": views, "weight": 0.5, "temperature": 1.0}
        members = [{"run": "x", "checkpoint_sha256": sha, **facts} for sha in ("c1", second)]
        return make_prediction(
            tmp_path / name, LOGITS, LABELS, COUNTS, role="held out", how="mean_prob",
            members=members,
        )  # fmt: skip

    test = made("test", "c2")
    fits = (made("same", "c2"), made("other", "c3"), made("views", "c2", FLIP))
    found = [adjust(test, tmp_path / f"o-{f.path.name}", tau="search", fit=f).notes for f in fits]
    assert [notes[2:] for notes in found] == [
        [],
        ["tau was chosen on the prediction of another model, runs/a"],
        [f"tau was chosen on a prediction of other views, {fits[2].path}"],
    ]


# --- what is refused -------------------------------------------------------------------------


def test_photos_without_label_or_not_held_out_choose_nothing(
    unseen: PredictionFile, tmp_path: Path
) -> None:
    unknown = make_prediction(tmp_path / "u", LOGITS, None, COUNTS, role="held out")
    assert refusal(unknown, tmp_path / "out") == (
        f"{unknown.path}: 50 of its 50 photos have no label; choose tau on a prediction of "
        "holdout or oof (--fit)"
    )
    assert refusal(unseen, tmp_path / "out") == (
        f"{unseen.path}: 10 of its 10 photos were not held out but unseen; choose tau on a "
        "prediction of holdout or oof (--fit), so that val and test stay unseen"
    )
    assert not (tmp_path / "out").exists()


def test_a_fit_of_another_model_is_refused(
    held_out: PredictionFile, unseen: PredictionFile, tmp_path: Path
) -> None:
    uniform = make_prediction(
        tmp_path / "la", LOGITS, LABELS, COUNTS, role="held out", logits_prior=[0.2] * 5
    )
    distance = sum(abs(p - 0.2) for p in PRIOR) / 2
    assert refusal(unseen, tmp_path / "out", fit=uniform) == (
        f"{uniform.path}: its logits carry another class prior than those of {unseen.path} "
        f"({distance:.2f} apart in total variation); give --fit a prediction of the same model, "
        "adjusted in the same way"
    )
    other = make_prediction(
        tmp_path / "o", LOGITS, LABELS, COUNTS, role="held out", category_ids=[1, 2, 3, 4, 5]
    )
    assert refusal(unseen, tmp_path / "out", fit=other) == (
        f"{other.path}: its species are not those of {unseen.path}; give --fit a prediction of the "
        "same model"
    )
    near = [p * (0.95 if j else 1.05) for j, p in enumerate(PRIOR)]
    folds = make_prediction(
        tmp_path / "n", LOGITS, LABELS, COUNTS, role="held out",
        logits_prior=[p / sum(near) for p in near],
    )  # fmt: skip
    adjust(unseen, tmp_path / "out", tau="search", fit=folds)


def test_fit_goes_with_search_and_is_not_written_over(
    held_out: PredictionFile, unseen: PredictionFile, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"^--fit goes with --tau search and --target estimated alone$"
    ):
        adjust(unseen, tmp_path / "out", tau=1.0, fit=held_out)
    assert refusal(unseen, held_out.path, fit=held_out, overwrite=True) == (
        f"{held_out.path}: adjust does not write over its input; give another --out"
    )
    assert refusal(unseen, tmp_path, fit=held_out, overwrite=True) == (
        f"{tmp_path}: holds a prediction that adjust reads; give another --out"
    )


def test_the_verb_searches_and_refuses_a_misspelt_tau(
    held_out: PredictionFile,
    unseen: PredictionFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["adjust", str(unseen.path), "--out", str(tmp_path / "out"), "--tau"]
    assert main([*words, "search", "--fit", str(held_out.path)]) == 0
    assert " has the best mean class accuracy on the 50 photos of " in capsys.readouterr().out
    assert main(["adjust", str(unseen.path), "--out", str(tmp_path / "b"), "--tau", "serch"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["adjust", str(unseen.path), "--out", str(tmp_path / "b"), "--tau", "0.5"]) == 0

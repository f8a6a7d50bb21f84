"""Ensembles: each rule, search and refusal, and what a made prediction says of itself."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictions import make_prediction

import inat
from inat.cli.app import main
from inat.core.errors import InputError
from inat.core.intervals import gain_interval
from inat.evaluation.evaluate import evaluate
from inat.posthoc import ensemble as ensemble_module
from inat.posthoc import ensemble_fit_table as fit_table_module
from inat.posthoc import ensemble_members as rules
from inat.posthoc.ensemble import ensemble
from inat.posthoc.ensemble_fit_table import TEMPERATURES, FitTable, read_fit_table
from inat.posthoc.ensemble_fitting import (
    Fit,
    convex,
    cross_fitted,
    ensemble_hits,
    fit_temperatures,
    greedy,
    stratified_folds,
)
from inat.posthoc.ensemble_members import align
from inat.predictions.file import PredictionFile, read_prediction

COUNTS = [60, 30, 8, 2]
PRIORS = ([0.6, 0.3, 0.08, 0.02], [0.25] * 4, [0.4, 0.3, 0.2, 0.1])
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3, 20, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 30).tolist()
# Held out: members that know their species more or less well.
HELD_OUT = RNG.normal(0, 1.5, (3, 30, 4)).astype(np.float32)
HELD_OUT[:, np.arange(30), LABELS] += np.array([2.0, 1.5, 0.5], np.float32)[:, None]


@pytest.fixture(autouse=True)
def few_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 of greed's 50: the checks of shapes cost more than the picks."""
    monkeypatch.setattr("inat.posthoc.ensemble_fitting.GREEDY_PICKS", 12)


def make_members(folder: Path) -> list[PredictionFile]:
    """Of 20 test photos, each with a prior of its own."""
    return [
        make_prediction(
            folder / f"m{place}",
            logits,
            train_counts=COUNTS,
            logits_prior=prior,
            run=f"runs/{place}",
        )
        for place, (logits, prior) in enumerate(zip(LOGITS, PRIORS, strict=True))
    ]


def make_held_out(folder: Path) -> list[PredictionFile]:
    """Of 30 held-out photos, in the members' order."""
    return [
        make_prediction(
            folder / f"h{place}",
            logits,
            LABELS,
            COUNTS,
            split="holdout",
            role="held out",
            logits_prior=[0.25] * 4,
            ids=range(1000, 1030),
            run=f"runs/{place}",
        )
        for place, logits in enumerate(HELD_OUT)
    ]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[PredictionFile]:
    """Not to be written to."""
    return make_members(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[PredictionFile]:
    """Not to be written to."""
    return make_held_out(tmp_path_factory.mktemp("held_out"))


def table_of(how: str, held_out: list[PredictionFile]) -> FitTable:
    return read_fit_table(how, align(held_out))


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def below_best(row: list[float]) -> list[float]:
    return [value - max(row) for value in row]


def refusal(predictions: Any, out: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        ensemble(predictions, out, **options)
    assert "\n" not in str(caught.value)
    assert not (out / "meta.json").exists()
    return str(caught.value)


# --- the rules -------------------------------------------------------------------------------


def slow_scores(
    how: str, rows: list[list[float]], weights: list[float], temperatures: list[float]
) -> list[float]:
    """One photo's scores, class by class."""
    scores = []
    for label in range(len(rows[0])):
        mean = 0.0
        for row, weight, temperature in zip(rows, weights, temperatures, strict=True):
            if how == "rank":
                mean -= weight * sum(other > row[label] for other in row)
            else:
                share = softmax(row, temperature)[label]
                mean += weight * (share if how == "mean_prob" else math.log(share))
        scores.append(math.log(mean) if how == "mean_prob" else mean)
    return scores


@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob", "rank"])
@pytest.mark.parametrize("weights", ["equal", [5, 3, 2]])
def test_each_rule_is_the_loop_over_photos_classes_and_members(
    how: str, weights: Any, members: list[PredictionFile], tmp_path: Path
) -> None:
    made = ensemble(members, tmp_path / "out", how=how, weights=weights)
    notes = made.notes
    shares = [1 / 3] * 3 if weights == "equal" else [0.5, 0.3, 0.2]
    for photo in range(20):
        rows = [
            [z - math.log(p) for z, p in zip(m.logits[photo].tolist(), prior, strict=True)]
            for m, prior in zip(members, PRIORS, strict=True)
        ]
        expected = below_best(slow_scores(how, rows, shares, [1.0] * 3))
        assert made.logits[photo].tolist() == pytest.approx(expected, abs=4e-3)
    assert notes == [
        f"weight {share:.3f}  temperature 1.00  {member.path}"
        for share, member in zip(shares, members, strict=True)
    ]


@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob", "rank"])
def test_pool_takes_temperatures(how: str) -> None:
    weights, temperatures = [0.2, 0.5, 0.3], [0.5, 1.0, 3.0]
    found = rules.pool(how, [logits.copy() for logits in LOGITS], weights, temperatures)
    for photo in range(20):
        rows = [logits[photo].tolist() for logits in LOGITS]
        expected = below_best(slow_scores(how, rows, weights, temperatures))
        assert found[photo] - found[photo].max() == pytest.approx(expected, abs=1e-5)


def test_ranks_are_shared_by_ties_and_told_apart_down_to_the_100th() -> None:
    logits = np.array([[2.0, 5.0, 5.0, -1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    assert rules.minus_rank(logits).tolist() == [[-2, 0, 0, -3], [0, 0, 0, 0]]
    many = np.random.default_rng(1).integers(0, 200, (5, 300)).astype(np.float32)
    for row, found in zip(many.tolist(), rules.minus_rank(many).tolist(), strict=True):
        assert found == [-min(100, sum(other > value for other in row)) for value in row]


def test_mean_prob_orders_nothing_by_probabilities_too_small_for_float32() -> None:
    found = rules.pool("mean_prob", [np.array([[0.0, -500.0]], np.float32)], [1.0], [1.0])
    assert np.isfinite(found).all()
    assert found[0, 1] < -80


def test_members_of_one_kind_are_their_own_ensemble(tmp_path: Path) -> None:
    uniform = [0.25] * 4
    one = make_prediction(tmp_path / "p", LOGITS[0], train_counts=COUNTS, logits_prior=uniform)
    for how in ("mean_logprob", "mean_prob"):
        made = ensemble([one, one], tmp_path / how, how=how)
        assert made.logits == pytest.approx(one.logits, abs=2e-3)


@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob", "rank"])
def test_chunks_and_threads_change_no_bit(
    how: str,
    members: list[PredictionFile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble(members, tmp_path / "whole", how=how)
    monkeypatch.setattr(ensemble_module, "CHUNK_BYTES", 3 * 4 * 4)
    ensemble(members, tmp_path / "pieces", how=how)
    monkeypatch.setattr(ensemble_module, "usable_processors", lambda: 0)
    ensemble(members, tmp_path / "alone", how=how)
    whole = (tmp_path / "whole" / "logits.npy").read_bytes()
    assert (tmp_path / "pieces" / "logits.npy").read_bytes() == whole
    assert (tmp_path / "alone" / "logits.npy").read_bytes() == whole


def test_a_member_of_weight_0_is_as_good_as_absent(
    members: list[PredictionFile], tmp_path: Path
) -> None:
    with_it = ensemble(members, tmp_path / "three", weights=[1, 0, 1])
    without = ensemble([members[0], members[2]], tmp_path / "two")
    assert (with_it.logits == without.logits).all()


def test_a_float32_member_makes_a_float32_ensemble(
    members: list[PredictionFile], tmp_path: Path
) -> None:
    exact = make_prediction(tmp_path / "f", LOGITS[0], train_counts=COUNTS, dtype=np.float32)
    made = ensemble([members[1], exact], tmp_path / "out")
    assert made.logits.dtype == np.float32


# --- order -----------------------------------------------------------------------------------


def reordered(prediction: PredictionFile, path: Path, rows: np.ndarray) -> PredictionFile:
    """The same prediction with its photos in another order."""
    prior = prediction.logits_prior
    assert prior is not None
    return make_prediction(
        path,
        prediction.logits[rows].astype(np.float32),
        prediction.labels[rows].tolist(),
        prediction.train_counts.tolist(),
        logits_prior=prior.tolist(),
        ids=prediction.ids[rows].tolist(),
        category_ids=prediction.category_ids.tolist(),
        role=prediction.photos["role"].iloc[rows].tolist(),
        split=prediction.meta.split,
        run=prediction.meta.run,
    )


def test_members_in_another_order_of_photos_are_aligned(
    members: list[PredictionFile], held_out: list[PredictionFile], tmp_path: Path
) -> None:
    plain = ensemble(members, tmp_path / "plain", weights="search", fit=held_out)
    notes = plain.notes
    rng = np.random.default_rng(3)
    moved = [
        [
            reordered(one, tmp_path / f"moved-{one.path.name}", rng.permutation(len(one)))
            for one in group
        ]
        for group in (members, held_out)
    ]
    made = ensemble(moved[0], tmp_path / "made", weights="search", fit=moved[1])
    moved_notes = made.notes
    assert made.category_ids.tolist() == [2, 10, 28, 56]
    assert made.train_counts.tolist() == COUNTS
    assert made.ids.tolist() == moved[0][0].ids.tolist()
    place = {image_id: row for row, image_id in enumerate(plain.ids.tolist())}
    same_photos = [place[image_id] for image_id in made.ids.tolist()]
    assert (made.logits == plain.logits[same_photos]).all()
    weights = [[line.split()[1] for line in lines[:3]] for lines in (notes, moved_notes)]
    assert weights[0] == weights[1]


def test_labels_and_roles_follow_their_photos(tmp_path: Path) -> None:
    first = make_prediction(tmp_path / "a", LOGITS[0, :3], [0, -1, 3], ids=[1, 2, 3])
    second = make_prediction(
        tmp_path / "b",
        LOGITS[1, :3],
        [2, 3, 0],
        ids=[2, 3, 1],
        role=["unseen", "held out", "chosen on"],
    )
    made = ensemble([first, second], tmp_path / "out")
    assert made.labels.tolist() == [0, 2, 3]
    assert made.photos["role"].tolist() == ["chosen on", "unseen", "held out"]
    assert made.photos["file_name"].tolist() == first.photos["file_name"].tolist()


# --- the fit ---------------------------------------------------------------------------------


def slow_class_mean(values: list[float], labels: list[int]) -> float:
    of_class: dict[int, list[float]] = {}
    for value, label in zip(values, labels, strict=True):
        of_class.setdefault(label, []).append(value)
    means = [sum(found) / len(found) for found in of_class.values()]
    return sum(means) / len(means)


def slow_losses(
    how: str, held_out: list[PredictionFile], weights: list[float], temperatures: list[float]
) -> tuple[float, float]:
    """Mean class accuracy and class-mean log loss of an ensemble, photo by photo."""
    hits, losses = [], []
    for photo, label in enumerate(LABELS):
        rows = [(one.logits[photo].astype(float) + math.log(4)).tolist() for one in held_out]
        scores = slow_scores(how, rows, weights, temperatures)
        hits.append(float(scores.index(max(scores)) == label))
        losses.append(-math.log(softmax(scores)[label]))
    return slow_class_mean(hits, LABELS), slow_class_mean(losses, LABELS)


def test_the_temperature_is_the_one_of_the_grid_with_the_least_class_mean_log_loss(
    held_out: list[PredictionFile],
) -> None:
    found = fit_temperatures(table_of("mean_prob", held_out))
    for one, temperature in zip(held_out, found, strict=True):
        losses = [slow_losses("mean_logprob", [one], [1.0], [t])[1] for t in TEMPERATURES.tolist()]
        assert temperature == TEMPERATURES[losses.index(min(losses))]
    assert len(set(found)) > 1
    assert fit_temperatures(table_of("rank", held_out)) == [1.0] * 3


def test_the_temperatures_go_from_a_half_to_four() -> None:
    assert TEMPERATURES[[0, 8, 24]].tolist() == [0.5, 1.0, 4.0]
    assert len(TEMPERATURES) == 25


def slow_greedy(how: str, held_out: list[PredictionFile], temperatures: list[float]) -> list[float]:
    """Pick after pick, the best of all prefixes."""
    picks: list[int] = []
    best: tuple[float, float] = (-1, 0)
    kept: list[int] = []
    for _ in range(12):
        tried = []
        for member in range(3):
            weights = [[*picks, member].count(m) / (len(picks) + 1) for m in range(3)]
            accuracy, loss = slow_losses(how, held_out, weights, temperatures)
            tried.append((accuracy, -loss))
        picks.append(tried.index(max(tried)))
        if max(tried) > best:
            best, kept = max(tried), list(picks)
    return [kept.count(m) / len(kept) for m in range(3)]


@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob"])
def test_greedy_picks_members_with_replacement_and_keeps_the_best_prefix(
    how: str, held_out: list[PredictionFile]
) -> None:
    table = table_of(how, held_out)
    temperatures = [1.0, 2.0, 0.5]
    found = greedy(table, table.parts(temperatures))
    assert found.tolist() == pytest.approx(slow_greedy(how, held_out, temperatures))
    assert np.count_nonzero(found) > 1


@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob"])
def test_convex_weights_have_the_least_log_loss_of_a_grid(
    how: str, held_out: list[PredictionFile]
) -> None:
    table = table_of(how, held_out)
    found = convex(table, table.parts([1.0] * 3))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    _, loss = slow_losses(how, held_out, found.tolist(), [1.0] * 3)
    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a in range(21) for b in range(21 - a)]
    losses = [slow_losses(how, held_out, list(weights), [1.0] * 3)[1] for weights in grid]
    assert loss <= min(losses) + 1e-5
    assert found.tolist() == pytest.approx(list(grid[losses.index(min(losses))]), abs=0.06)


def test_the_gain_is_of_photos_that_the_choice_did_not_see(held_out: list[PredictionFile]) -> None:
    table = table_of("mean_logprob", held_out)
    folds = stratified_folds(table.labels, 5)
    hits = np.zeros(30, bool)
    for fold in range(5):
        others, here = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        apart = table.select(others)
        temperatures = fit_temperatures(apart)
        weights = greedy(apart, apart.parts(temperatures)).tolist()
        hits[here] = ensemble_hits(table.select(here), Fit(temperatures, weights))
    alone = [(one.logits.argmax(axis=1) == LABELS) for one in held_out]
    means = [slow_class_mean(hit.astype(float).tolist(), LABELS) for hit in alone]
    gain = cross_fitted(table, None, "greedy")
    assert gain.accuracy == pytest.approx(slow_class_mean(hits.astype(float).tolist(), LABELS))
    assert gain.best_member == means.index(max(means))
    assert gain.best_accuracy == pytest.approx(max(means))
    assert gain.difference == gain_interval(alone[gain.best_member], hits, np.array(LABELS))
    assert gain.difference.value == pytest.approx(gain.accuracy - gain.best_accuracy)


def test_folds_spread_each_species_evenly() -> None:
    labels = np.repeat(np.arange(4), (12, 5, 2, 1))
    folds = stratified_folds(labels, 5)
    for label in range(4):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(folds).tolist() == [4] * 5
    assert (folds == stratified_folds(labels, 5)).all()


@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob", "rank"])
def test_the_shortlist_keeps_the_likeliest_classes_and_the_true_one(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 6 of 40 classes kept, the best class of any ensemble is among them here, and
    probabilities are those over all 40."""
    monkeypatch.setattr(fit_table_module, "SHORTLIST", 6)
    monkeypatch.setattr(fit_table_module, "CHUNK_BYTES", 7 * 40 * 4)
    rng = np.random.default_rng(5)
    base, labels = rng.normal(0, 3, (50, 40)), rng.integers(0, 40, 50)
    uniform, held_out = [1 / 40] * 40, []
    for place in range(3):
        logits = base + rng.normal(0, 0.5, base.shape)
        held_out.append(
            make_prediction(
                tmp_path / f"h{place}", logits, labels.tolist(), logits_prior=uniform,
                dtype=np.float32,
            )
        )  # fmt: skip
    table = table_of(how, held_out)
    assert table.shortlist.shape == (50, 6)
    assert (np.diff(table.shortlist, axis=1) > 0).all()
    assert (table.is_true.sum(axis=1) == 1).all()
    weights, temperatures = [0.5, 0.3, 0.2], [1.0, 2.0, 0.5]
    scores = rules.pool(
        how, [one.logits.astype(np.float32) for one in held_out], weights, temperatures
    )
    found = ensemble_hits(table, Fit(temperatures, weights))
    assert (found == (scores.argmax(axis=1) == labels)).all()
    for one, parts in zip(held_out, table.parts(temperatures), strict=True):
        if how == "rank":
            continue
        temperature = temperatures[held_out.index(one)]
        for photo in range(50):
            shares = softmax(one.logits[photo].tolist(), temperature)
            listed = [shares[label] for label in table.shortlist[photo].tolist()]
            expected = listed if how == "mean_prob" else np.log(listed).tolist()
            assert parts[photo] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("search", ["greedy", "convex"])
@pytest.mark.parametrize("how", ["mean_logprob", "mean_prob"])
def test_what_was_fitted_is_what_is_written(
    how: str,
    search: str,
    members: list[PredictionFile],
    held_out: list[PredictionFile],
    tmp_path: Path,
) -> None:
    made = ensemble(
        members, tmp_path / "out", how=how, weights="search", search=search, fit=held_out
    )
    notes = made.notes
    table = table_of(how, held_out)
    temperatures = fit_temperatures(table)
    choose = greedy if search == "greedy" else convex
    weights = choose(table, table.parts(temperatures)).tolist()
    facts = made.meta.members
    assert [fact.weight for fact in facts] == weights
    assert [fact.temperature for fact in facts] == temperatures
    for photo in range(20):
        rows = [
            [z - math.log(p) for z, p in zip(m.logits[photo].tolist(), prior, strict=True)]
            for m, prior in zip(members, PRIORS, strict=True)
        ]
        expected = below_best(slow_scores(how, rows, weights, temperatures))
        assert made.logits[photo].tolist() == pytest.approx(expected, abs=8e-3)
    gain = cross_fitted(table, None, search)
    assert notes[3] == (
        f"on 30 photos (holdout of {held_out[0].path} ...), each scored with what was chosen on "
        f"the others: mean class accuracy {100 * gain.accuracy:.1f} %, best member "
        f"{100 * gain.best_accuracy:.1f} % ({members[gain.best_member].path}): "
        f"{gain.difference.points()} (paired)"
    )


# --- what is written down --------------------------------------------------------------------


def test_meta_names_members_choices_and_photos(
    members: list[PredictionFile], held_out: list[PredictionFile], tmp_path: Path
) -> None:
    made = ensemble(members, tmp_path / "out", weights="search", fit=held_out)
    photos = f"30 photos (holdout of {held_out[0].path} ...)"
    assert made.meta.chosen == {
        "temperatures": f"class-mean log loss on {photos}",
        "weights": f"mean class accuracy (greedy) on {photos}",
    }
    assert made.meta.how == "mean_logprob"
    assert made.logits_prior is not None
    assert made.logits_prior.tolist() == [0.25] * 4
    assert [m.prediction for m in made.meta.members] == [str(m.path) for m in members]
    assert [m.run for m in made.meta.members] == ["runs/0", "runs/1", "runs/2"]
    assert made.meta.fit is not None
    assert made.meta.fit.predictions == [str(one.path) for one in held_out]
    assert made.meta.fit.n_photos == 30
    # The test photos are others than those something was chosen on.
    assert set(made.photos["role"]) == {"unseen"}


def test_ranks_carry_no_known_prior_and_nothing_is_chosen_for_fixed_weights(
    members: list[PredictionFile], held_out: list[PredictionFile], tmp_path: Path
) -> None:
    made = ensemble(members, tmp_path / "out", how="rank", fit=held_out)
    notes = made.notes
    assert made.logits_prior is None
    assert made.meta.chosen == {}
    assert len(notes) == 4


def test_what_was_chosen_for_a_member_is_still_said(tmp_path: Path) -> None:
    best = make_prediction(tmp_path / "a", LOGITS[0], chosen={"epoch": "held-out photos"})
    last = make_prediction(tmp_path / "b", LOGITS[1])
    made = ensemble([last, best], tmp_path / "out")
    assert made.meta.chosen == {"epoch of member 2": "held-out photos"}


def test_evaluate_refuses_the_photos_that_weights_were_chosen_on(
    held_out: list[PredictionFile], tmp_path: Path
) -> None:
    made = ensemble(held_out, tmp_path / "out", weights="search", fit=held_out)
    assert set(made.photos["role"]) == {"chosen on"}
    with pytest.raises(InputError, match="on 30 of its photos something was chosen") as caught:
        evaluate(made)
    assert "weights by mean class accuracy (greedy) on 30 photos" in str(caught.value)
    assert evaluate(made, chosen_here=True).n_images == 30
    equal = ensemble(held_out, tmp_path / "equal")
    assert evaluate(equal).n_images == 30


def test_species_without_a_held_out_photo_are_counted_and_named(tmp_path: Path) -> None:
    members = [make_prediction(tmp_path / f"m{i}", LOGITS[i]) for i in range(2)]
    held = [
        make_prediction(tmp_path / f"h{i}", HELD_OUT[i, :6], [0, 0, 0, 2, 2, 2], role="held out")
        for i in range(2)
    ]
    notes = ensemble(members, tmp_path / "out", fit=held).notes
    assert notes[-1] == (
        "2 of 4 species have no photo there, and no say: Genus1 species1, Genus3 species3"
    )


def test_members_fitted_on_other_models_or_other_views_are_named(tmp_path: Path) -> None:
    folds = [{"run": f"f/fold_{k}", "checkpoint_sha256": f"f{k}"} for k in (1, 2)]
    centre, flip = [{"kind": "centre"}], [{"kind": "flip"}]
    ours: list[dict[str, Any]] = [
        {"checkpoint_sha256": "f2", "views": centre},
        {"checkpoint_sha256": "c1", "views": centre, "run": "runs/1"},
        {"checkpoint_sha256": "c2", "views": centre, "run": "runs/2"},
        {"checkpoint_sha256": "c3", "views": centre, "run": "runs/3"},
    ]
    theirs: list[dict[str, Any]] = [
        {"run": "f", "folds": folds, "views": centre},
        {"run": "f", "folds": folds, "views": centre},
        {**ours[2], "views": flip},
        {"checkpoint_sha256": "c4", "run": "runs/4", "views": flip},
    ]
    members = [
        make_prediction(tmp_path / f"m{i}", LOGITS[i % 3], train_counts=COUNTS, **facts)
        for i, facts in enumerate(ours)
    ]
    held = [
        make_prediction(
            tmp_path / f"h{i}", HELD_OUT[i % 3], LABELS, COUNTS, role="held out", **facts
        )
        for i, facts in enumerate(theirs)
    ]
    made = ensemble(members, tmp_path / "out", fit=held)
    notes = made.notes
    assert notes[5:] == [
        "member 2 was fitted on the prediction of another model, f",
        f"member 3 was fitted on a prediction of other views, {held[2].path}",
        "member 4 was fitted on the prediction of another model, runs/4, and of other views",
    ]
    temperatures = fit_temperatures(table_of("mean_logprob", held))
    assert [one.temperature for one in made.meta.members] == temperatures


def test_an_ensemble_of_folds_is_fitted_on_its_own_photos_out_of_fold(tmp_path: Path) -> None:
    folds = [{"run": f"f/fold_{k}", "checkpoint_sha256": f"f{k}"} for k in (1, 2)]
    parts = [
        make_prediction(
            tmp_path / f"p{k}", LOGITS[k], train_counts=COUNTS, checkpoint_sha256=f"f{k + 1}"
        )
        for k in (0, 1)
    ]
    pooled = ensemble(parts, tmp_path / "pooled")
    alone = make_prediction(tmp_path / "m", LOGITS[2], train_counts=COUNTS, run="runs/m")
    held = [
        make_prediction(tmp_path / f"h{i}", HELD_OUT[i], LABELS, COUNTS, role="held out", **facts)
        for i, facts in enumerate([{"run": "f", "folds": folds}, {"run": "runs/m"}])
    ]
    notes = ensemble([pooled, alone], tmp_path / "out", fit=held).notes
    assert len(notes) == 3
    # Two such ensembles, the one of test photos and the one of held-out ones, are one model.
    test = ensemble([pooled, alone], tmp_path / "test")
    oof = ensemble(held, tmp_path / "oof")
    notes = inat.adjust(test, tmp_path / "tau", tau="search", fit=oof).notes
    assert [note for note in notes if "was chosen on" in note] == []
    made = inat.adjust(test, tmp_path / "estimated", target="estimated", fit=oof)
    assert made.meta.chosen == {
        "calibration": f"negative log-likelihood on the 30 photos of {oof.path}"
    }


# --- what is refused -------------------------------------------------------------------------


def other(tmp_path: Path, logits: Any = None, **options: Any) -> PredictionFile:
    options = {"train_counts": COUNTS, **options}
    return make_prediction(tmp_path / "x", LOGITS[1] if logits is None else logits, **options)


IDS = list(range(11, 11 + 7 * 20, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": [*IDS[:-1], 9]},
         "{x}: its photos are not those of {m} (2 stand in one alone; first: 9); give "
         "predictions of one split"),
        ({"category_ids": [2, 10, 28, 57]},
         "{x}: its 4 species are not the 4 of {m}; give predictions of runs on one data set"),
        ({"train_counts": [60, 30, 8, 3]},
         "{x}: its species' train counts are not those of {m}; give predictions of runs on one "
         "data set"),
        ({"labels": [0] * 19 + [2]},
         "{x}: photo 144 has another label there than in {m}; give predictions of runs on one "
         "data set"),
        ({"role": ["trained on"] * 2 + ["unseen"] * 18},
         "{x}: 2 of its 20 photos were trained on by one and held out by the other of it and "
         "{m}; give runs with the same data.holdout and data.holdout_seed"),
        ({"competition": "inaturalist-2019-fgvc6"},
         "{x}: it is of competition inaturalist-2019-fgvc6, and {m} of inaturalist-2018; give "
         "predictions of one"),
        ({"logits_prior": None},
         "{x}: which prior its logits carry is not known; say what to assume: --from-prior "
         "uniform|counts|FILE"),
    ],
)  # fmt: skip
def test_members_that_disagree_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    first = make_prediction(tmp_path / "m", LOGITS[0], [0] * 20, COUNTS)
    found = refusal([first, other(tmp_path, **options)], tmp_path / "out")
    assert found == message.format(x=tmp_path / "x", m=tmp_path / "m")


def test_from_prior_is_assumed_of_those_that_do_not_know(tmp_path: Path) -> None:
    known = make_prediction(tmp_path / "a", LOGITS[0], train_counts=COUNTS)
    unknown = make_prediction(tmp_path / "b", LOGITS[1], train_counts=COUNTS, logits_prior=None)
    assumed = ensemble([known, unknown], tmp_path / "out", from_prior="counts")
    told = make_prediction(tmp_path / "c", LOGITS[1], train_counts=COUNTS)
    plain = ensemble([known, told], tmp_path / "plain")
    assert (assumed.logits == plain.logits).all()
    assert refusal([known, told], tmp_path / "no", from_prior="uniform") == (
        "--from-prior uniform: which prior the logits carry is known of every member; leave it away"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "median"},
         "--how: unknown name 'median'; valid: mean_logprob, mean_prob, rank"),
        ({"search": "simplex"},
         "--search: unknown name 'simplex'; valid: convex, greedy"),
        ({"how": "rank", "search": "convex"},
         "--search convex minimises a log loss, which --how rank has none of; use --search greedy"),
        ({"weights": "search"},
         "--weights search chooses on held-out photos; give each member's prediction of them, in "
         "the same order: --fit PRED ..."),
        ({"weights": "1,2"}, "--weights 1,2: 2 numbers for 3 members"),
        ({"weights": "1,x,2"},
         "--weights 1,x,2: neither equal nor search nor numbers such as 0.5,0.3,0.2"),
        ({"weights": [1, -1, 2]},
         "--weights 1,-1,2: weights must be numbers from 0 on, and not all 0"),
        ({"weights": "0,0,0"},
         "--weights 0,0,0: weights must be numbers from 0 on, and not all 0"),
        ({"weights": "1,nan,0"},
         "--weights 1,nan,0: weights must be numbers from 0 on, and not all 0"),
    ],
)  # fmt: skip
def test_options_that_say_nothing_are_refused(
    members: list[PredictionFile], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert refusal(members, tmp_path / "out", **options) == message


def test_photos_that_nothing_can_be_chosen_on_are_refused(
    members: list[PredictionFile], held_out: list[PredictionFile], tmp_path: Path
) -> None:
    def told(fit: Any) -> str:
        return refusal(members, tmp_path / "out", fit=fit)

    assert told(held_out[:2]) == (
        "--fit: 2 predictions for 3 members; give one a member, in the same order"
    )
    assert told(members) == (
        f"--fit {members[0].path}: 20 of its photos have no label; give predictions of the "
        "held-out part, or out-of-fold ones"
    )
    seen = make_prediction(tmp_path / "seen", HELD_OUT[0], LABELS, COUNTS, role="trained on")
    assert told([seen] * 3) == (
        f"--fit {seen.path}: 30 of its 30 photos were trained on, and say nothing; give "
        "predictions of the held-out part, or out-of-fold ones"
    )
    assert told([held_out[1], held_out[0], held_out[2]]) == (
        f"--fit {held_out[1].path}: member 1 is {members[0].path}, and this is of runs/1, another "
        "member's run; give them in the members' order"
    )
    strange = make_prediction(tmp_path / "s", HELD_OUT[0][:, :3], [0, 1, 2] * 10, COUNTS[:3])
    assert told([strange] * 3) == (
        f"--fit {strange.path}: its species are not those of {members[0].path}; give predictions "
        "of runs on one data set"
    )


def test_a_fit_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    members = [
        make_prediction(tmp_path / f"m{i}", LOGITS[i], checkpoint_sha256="last", run=f"r{i}")
        for i in range(2)
    ]
    held = [
        make_prediction(
            tmp_path / f"h{i}", HELD_OUT[i], LABELS, role="held out", run=f"r{i}",
            checkpoint_sha256=("last", "best")[i],
        )
        for i in range(2)
    ]  # fmt: skip
    assert refusal(members, tmp_path / "out", fit=held) == (
        f"--fit {held[1].path}: it was predicted with other weights of r1 than {members[1].path}; "
        "predict both with the same --checkpoint and --weights"
    )


def test_one_member_is_refused(members: list[PredictionFile], tmp_path: Path) -> None:
    assert refusal(members[:1], tmp_path / "out") == (
        "an ensemble has two members or more, and 1 was given"
    )


def test_no_input_is_written_over(tmp_path: Path) -> None:
    members, held_out = make_members(tmp_path), make_held_out(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    for out in (members[1].path, held_out[2].path):
        with pytest.raises(InputError) as caught:
            ensemble(members, out, fit=held_out, overwrite=True)
        assert str(caught.value) == (
            f"{out}: ensemble does not write over its input; give another --out"
        )
    assert refusal(members, tmp_path, overwrite=True) == (
        f"{tmp_path}: holds a prediction that ensemble reads; give another --out"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npy")} == before
    ensemble(members, tmp_path / "out")
    with pytest.raises(InputError, match="exists already; give another --out, or --overwrite"):
        ensemble(members, tmp_path / "out")
    ensemble(members, tmp_path / "out", how="rank", overwrite=True)
    assert read_prediction(tmp_path / "out").meta.how == "rank"


# --- the command -----------------------------------------------------------------------------


def test_the_command_says_what_the_function_says(
    members: list[PredictionFile],
    held_out: list[PredictionFile],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["ensemble", *(str(m.path) for m in members), "--weights", "search"]
    words += ["--fit", *(str(one.path) for one in held_out), "--out", str(tmp_path / "cli")]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    made = inat.ensemble(members, tmp_path / "py", weights="search", fit=held_out)
    notes = made.notes
    assert shown == [*notes, f"{tmp_path / 'cli'}: 20 photos x 4 species"]
    assert (tmp_path / "cli" / "logits.npy").read_bytes() == (made.path / "logits.npy").read_bytes()
    assert main(["ensemble", str(members[0].path), "--out", str(tmp_path / "one")]) == 2

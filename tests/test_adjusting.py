"""Moving the prior of a prediction file: the arithmetic, what is refused, what is written down."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec import structs
from predictions import make_prediction, restate
from shift_worlds import ShiftWorld

from inat.cli.app import main
from inat.core.errors import InputError
from inat.posthoc.adjust import adjust
from inat.posthoc.label_shift import estimate_label_shift
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Adjustment, ShiftCheck

COUNTS = [60, 30, 8, 2]
PRIOR = [0.6, 0.3, 0.08, 0.02]
LOGITS = np.random.default_rng(0).normal(0, 2, (40, 4)).astype(np.float32)
UNIFORM = [0.25] * 4


@pytest.fixture
def prediction(tmp_path: Path) -> PredictionFile:
    return make_prediction(tmp_path / "p", LOGITS, train_counts=COUNTS)


def slow_stored(logits: np.ndarray, shift: list[float]) -> list[list[float]]:
    """Shifted logits below their row's maximum, rounded to float16."""
    rows = []
    for row in logits.tolist():
        moved = [z + s for z, s in zip(row, shift, strict=True)]
        rows.append([float(np.float16(z - max(moved))) for z in moved])
    return rows


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- arithmetic ------------------------------------------------------------------------------


def test_numbers_of_numpy_are_taken_and_written_as_others(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    for out, tau in (("numpy", np.linspace(0, 1, 3)[1]), ("plain", 0.5)):
        adjust(prediction.path, tmp_path / out, tau=tau)
    assert files_of(tmp_path / "numpy") == files_of(tmp_path / "plain")


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_tau_subtracts_tau_log_prior(
    prediction: PredictionFile, tmp_path: Path, tau: float
) -> None:
    found = adjust(prediction.path, tmp_path / "out", tau=tau)
    notes = found.notes
    shift = [-tau * math.log(p) for p in PRIOR]
    assert found.logits.tolist() == slow_stored(prediction.logits, shift)
    left = [p ** (1 - tau) for p in PRIOR]
    assert found.logits_prior == pytest.approx([w / sum(left) for w in left])
    assert notes == []


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_best_guess_is_the_argmax_of_f_minus_tau_log_pi(
    prediction: PredictionFile, tmp_path: Path, tau: float
) -> None:
    found = adjust(prediction, tmp_path / "out", tau=tau)
    changed = 0
    for before, after in zip(prediction.logits.tolist(), found.logits, strict=True):
        moved = [f - tau * math.log(p) for f, p in zip(before, PRIOR, strict=True)]
        assert after.argmax() == moved.index(max(moved))
        changed += int(after.argmax() != np.argmax(before))
    assert changed > 0


def test_the_uniform_target_is_tau_1(prediction: PredictionFile, tmp_path: Path) -> None:
    by_tau = adjust(prediction, tmp_path / "tau", tau=1.0)
    by_target = adjust(prediction, tmp_path / "target", target="uniform")
    assert by_target.logits == pytest.approx(by_tau.logits, abs=0.01)
    assert by_target.logits.argmax(axis=1).tolist() == by_tau.logits.argmax(axis=1).tolist()
    assert by_target.logits_prior == pytest.approx(UNIFORM)
    assert by_tau.logits_prior == pytest.approx(UNIFORM)


def test_a_target_file_is_bayes_rule(prediction: PredictionFile, tmp_path: Path) -> None:
    path = tmp_path / "prior.csv"
    path.write_text("category_id,prior\n56,4\n28,3\n10,2\n2,1\n")
    found = adjust(prediction, tmp_path / "out", target=path)
    notes = found.notes
    target = [0.1, 0.2, 0.3, 0.4]
    shift = [math.log(t) - math.log(p) for t, p in zip(target, PRIOR, strict=True)]
    assert found.logits.tolist() == slow_stored(prediction.logits, shift)
    assert found.logits_prior == pytest.approx(target)
    assert notes == []


def test_a_species_with_target_0_is_never_predicted(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    path = tmp_path / "prior.csv"
    path.write_text("category_id,prior\n2,0\n10,1\n28,1\n56,1\n")
    found = adjust(prediction, tmp_path / "out", target=path)
    assert (found.logits[:, 0] == np.finfo(np.float16).min).all()
    assert np.isfinite(found.logits).all()
    assert (found.logits.argmax(axis=1) != 0).all()


def test_everything_but_logits_and_meta_is_carried_over_and_the_input_is_left_alone(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    before = files_of(prediction.path)
    found = adjust(prediction, tmp_path / "out", tau=1.0)
    after = files_of(found.path)
    assert files_of(prediction.path) == before
    assert set(after) == set(before)
    same = {name for name in before if after[name] == before[name]}
    assert same == {"ids.npy", "labels.npy", "species.parquet", "photos.parquet"}


def test_float32_logits_stay_float32(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS, train_counts=COUNTS, dtype=np.float32)
    found = adjust(prediction, tmp_path / "out", tau=1.0)
    assert found.logits.dtype == np.float32
    moved = LOGITS - LOGITS.max(axis=1, keepdims=True) - np.log(PRIOR)
    assert found.logits == pytest.approx(moved - moved.max(axis=1, keepdims=True), abs=1e-5)


# --- what changes nothing --------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"tau": 1.0}, {"tau": 0.5}, {"target": "uniform"}])
def test_on_a_tau_1_model_it_changes_nothing_and_says_so(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    prediction = make_prediction(
        tmp_path / "p", LOGITS, train_counts=COUNTS, logits_prior=UNIFORM
    )  # as a loss with tau 1 leaves it
    found = adjust(prediction, tmp_path / "out", **options)
    notes = found.notes
    assert (found.logits == prediction.logits).all()
    assert notes == ["this changes nothing: the logits carry a uniform prior already"]


def test_tau_0_changes_nothing_and_says_so(prediction: PredictionFile, tmp_path: Path) -> None:
    found = adjust(prediction, tmp_path / "out", tau=0.0)
    notes = found.notes
    assert (found.logits == prediction.logits).all()
    assert found.logits_prior == pytest.approx(PRIOR)
    assert notes == ["this changes nothing: the shift is the same for all species"]


def test_a_second_adjustment_by_tau_1_changes_nothing(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    first = adjust(prediction, tmp_path / "one", tau=1.0)
    second = adjust(first, tmp_path / "two", tau=1.0)
    notes = second.notes
    assert (second.logits == first.logits).all()
    assert notes == ["this changes nothing: the logits carry a uniform prior already"]


# --- what is written down --------------------------------------------------------------------


def test_meta_keeps_its_facts_and_the_history_of_adjustments(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    first = adjust(prediction, tmp_path / "one", tau=0.5)
    second = adjust(first, tmp_path / "two", target="uniform")
    assert second.meta.adjusted == [
        Adjustment(of=str(prediction.path), tau=0.5),
        Adjustment(of=str(first.path), target="uniform"),
    ]
    assert second.meta.logits_prior == pytest.approx(UNIFORM)
    own = {"logits_prior": prediction.meta.logits_prior, "adjusted": []}
    assert structs.replace(second.meta, **own) == prediction.meta


# --- the prior that is assumed ---------------------------------------------------------------


def test_an_unknown_prior_is_refused_unless_from_prior_says_what_to_assume(tmp_path: Path) -> None:
    unknown = make_prediction(tmp_path / "p", LOGITS, train_counts=COUNTS, logits_prior=None)
    with pytest.raises(InputError) as caught:
        adjust(unknown, tmp_path / "out", tau=1.0)
    assert str(caught.value) == (
        f"{tmp_path / 'p'}: which prior its logits carry is not known; "
        "say what to assume: --from-prior uniform|counts|FILE"
    )
    assert not (tmp_path / "out").exists()
    found = adjust(unknown, tmp_path / "out", tau=1.0, from_prior="counts")
    assert found.logits.tolist() == slow_stored(unknown.logits, [-math.log(p) for p in PRIOR])


def test_from_prior_is_refused_where_another_prior_is_known(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        adjust(prediction, tmp_path / "out", tau=1.0, from_prior="uniform")
    assert str(caught.value) == (
        f"{prediction.path}: which prior its logits carry is known, and --from-prior uniform is "
        "another: that would correct twice, or wrongly; leave it away"
    )
    assert not (tmp_path / "out").exists()


def test_from_prior_says_what_the_file_does_not_know(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS, logits_prior=None)
    path = tmp_path / "prior.csv"
    path.write_text("category_id,prior\n2,4\n10,3\n28,2\n56,1\n")
    found = adjust(prediction, tmp_path / "file", tau=1.0, from_prior=path)
    shift = [-math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert found.logits.tolist() == slow_stored(prediction.logits, shift)


def test_a_carried_prior_of_0_is_refused(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS, logits_prior=[0.5, 0.5, 0.0, 0.0])
    with pytest.raises(InputError) as caught:
        adjust(prediction, tmp_path / "out", tau=1.0)
    assert str(caught.value) == (
        f"{tmp_path / 'p'}: its logits carry a prior of 0 for 2 species, "
        "which cannot be taken off; adjust the prediction that it was made from"
    )


@pytest.mark.parametrize("options", [{"tau": 1.0}, {"target": "uniform"}])
def test_an_assumed_prior_of_0_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS, train_counts=[9, 4, 0, 1])
    path = tmp_path / "prior.csv"
    path.write_text("category_id,prior\n2,1\n10,0\n28,0\n56,1\n")
    for assumed, n_species in (("counts", 1), (path, 2)):
        with pytest.raises(InputError) as caught:
            adjust(prediction, tmp_path / "out", from_prior=assumed, **options)
        assert str(caught.value) == (
            f"--from-prior {assumed}: the prior of {n_species} species is 0, "
            "which cannot be taken off; give every species a prior above 0"
        )


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tau": 1.0, "target": "uniform"}])
def test_both_or_none_of_tau_and_target_is_refused(
    prediction: PredictionFile, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        adjust(prediction, tmp_path / "out", **options)
    assert str(caught.value) == (
        "adjust takes one of --tau T|search, --target uniform|estimated|FILE and --geo GEO_PRED"
    )


@pytest.mark.parametrize("tau", [-0.1, 10.5, math.nan])
def test_a_tau_out_of_range_is_refused(
    prediction: PredictionFile, tmp_path: Path, tau: float
) -> None:
    with pytest.raises(InputError) as caught:
        adjust(prediction, tmp_path / "out", tau=tau)
    assert str(caught.value) == (
        f"--tau {tau:g} is not within 0 and 10; 1 takes the whole prior off"
    )


def test_what_stands_at_out_is_kept_unless_overwrite_is_said(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    adjust(prediction, out, tau=0.5)
    before = files_of(out)
    with pytest.raises(InputError) as caught:
        adjust(prediction, out, tau=1.0)
    assert str(caught.value) == f"{out}: exists already; give another --out, or --overwrite"
    assert files_of(out) == before
    found = adjust(prediction, out, tau=1.0, overwrite=True)
    assert found.logits_prior == pytest.approx(UNIFORM)


def test_the_input_is_never_written_over(prediction: PredictionFile, tmp_path: Path) -> None:
    before = files_of(prediction.path)
    for out in (prediction.path, tmp_path / "x" / ".." / "p"):
        with pytest.raises(InputError) as caught:
            adjust(prediction, out, tau=1.0, overwrite=True)
        assert str(caught.value) == (
            f"{out}: adjust does not write over its input; give another --out"
        )
    assert files_of(prediction.path) == before


def test_a_target_that_is_no_file_names_what_a_prior_may_be(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        adjust(prediction, tmp_path / "out", target="unifrom")
    assert str(caught.value) == "unifrom: there is no such file; a prior is uniform or a CSV"


# --- the estimated target --------------------------------------------------------------------

WORLD = ShiftWorld(5, 3, 2000, imbalance=10, overconfidence=1.5)


@pytest.fixture
def shifted(tmp_path: Path) -> PredictionFile:
    """400 photos, as many of each species, of a model whose species are 10 to 1."""
    world = replace(WORLD, seed=0)
    logits = world.photos(world.draw(np.full(5, 0.2), 400))
    return make_prediction(tmp_path / "test", logits, train_counts=world.counts.tolist())


def make_held_out(path: Path, n_photos: int = 600, **options: Any) -> PredictionFile:
    logits, labels = replace(WORLD, seed=0).held_out(n_photos)
    return make_prediction(path, logits, **{
        "labels": labels.tolist(),
        "train_counts": WORLD.counts.tolist(),
        "split": "holdout",
        "role": "held out",
        "ids": range(10_000, 10_000 + n_photos),
        **options,
    })  # fmt: skip


@pytest.fixture
def held_out(tmp_path: Path) -> PredictionFile:
    return make_held_out(tmp_path / "holdout")


def test_the_estimated_target_is_bayes_rule_on_calibrated_logits(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    made = adjust(shifted, tmp_path / "out", target="estimated", fit=held_out.path)
    found = estimate_label_shift(
        shifted.logits, WORLD.source, held_out=(held_out.logits, held_out.labels)
    )
    assert made.logits_prior is not None
    assert made.logits_prior.tolist() == found.prior.tolist()
    assert np.abs(found.prior - 0.2).max() < 0.1
    shift = found.calibration.bias + np.log(found.prior) - np.log(found.source)
    expected = slow_stored(shifted.logits / found.calibration.temperature, shift.tolist())
    assert made.logits == pytest.approx(np.array(expected), rel=2e-3, abs=2e-3)


def test_the_estimated_prior_is_written_as_a_file_that_target_takes(
    shifted: PredictionFile, tmp_path: Path
) -> None:
    made = adjust(shifted, tmp_path / "out", target="estimated")
    notes = made.notes
    path = tmp_path / "out" / "estimated_prior.csv"
    assert notes[-1] == f"the estimated prior is in {path}"
    table = pd.read_csv(path)
    assert list(table.columns) == ["category_id", "prior"]
    assert table["category_id"].tolist() == shifted.category_ids.tolist()
    assert table["prior"].tolist() == pytest.approx(made.meta.logits_prior, rel=1e-15)
    again = adjust(shifted, tmp_path / "again", target=path)
    assert (again.logits == made.logits).all()


def test_the_history_tells_how_the_prior_was_estimated(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    made = adjust(shifted, tmp_path / "out", target="estimated", fit=held_out)
    found = estimate_label_shift(
        shifted.logits, WORLD.source, held_out=(held_out.logits, held_out.labels)
    )
    assert found.check is not None
    check = ShiftCheck(found.check.unexplained, found.check.by_chance)
    assert made.meta.adjusted == [
        Adjustment(
            of=str(shifted.path),
            target="estimated",
            calibrated_on=str(held_out.path),
            temperature=found.calibration.temperature,
            pseudo_counts=found.pseudo_counts,
            iterations=found.n_iterations,
            gain=found.gain,
            shift=found.shift,
            spread=found.spread,
            not_held_out=[],
            bbse=check,
            warnings=[],
        )
    ]
    assert made.meta.chosen == {
        "calibration": f"negative log-likelihood on the 600 photos of {held_out.path}"
    }
    assert set(made.photos["role"]) == {"unseen"}


def test_what_was_estimated_is_said(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    notes = adjust(shifted, out, target="estimated", fit=held_out).notes
    found = estimate_label_shift(
        shifted.logits, WORLD.source, held_out=(held_out.logits, held_out.labels)
    )
    calibration = found.calibration
    assert notes == [
        f"calibrated on the 600 photos of {held_out.path}: temperature "
        f"{calibration.temperature:.2f}, negative log-likelihood {calibration.nll_before:.3f} -> "
        f"{calibration.nll:.3f}",
        f"estimated by {found.n_iterations} steps of EM, smoothed as by {found.pseudo_counts:g} "
        f"photos a species: {found.shift:.1%} of the prior is moved, ±{found.spread:.1%} by the "
        "choice of photos",
        f"the estimated prior is in {out}/estimated_prior.csv",
    ]


def test_without_calibration_photos_that_is_said(shifted: PredictionFile, tmp_path: Path) -> None:
    made = adjust(shifted, tmp_path / "out", target="estimated")
    notes = made.notes
    assert notes[0] == (
        "not calibrated, and not checked by BBSE: that takes labelled photos that were not trained "
        "on (--fit HOLDOUT)"
    )
    step = made.meta.adjusted[0]
    assert (step.calibrated_on, step.temperature, step.bbse) == (None, 1, None)
    assert made.meta.chosen == {}


def test_species_that_were_never_held_out_are_counted_and_named(
    shifted: PredictionFile, tmp_path: Path
) -> None:
    logits, labels = replace(WORLD, seed=0).held_out(600)
    some = labels < 3
    held_out = make_prediction(
        tmp_path / "some", logits[some], labels[some].tolist(), WORLD.counts.tolist()
    )
    made = adjust(shifted, tmp_path / "out", target="estimated", fit=held_out)
    notes = made.notes
    assert notes[1] == (
        "2 of 5 species have no photo there, so their calibration rests on those of the others: "
        "Genus3 species3, Genus4 species4"
    )
    assert made.meta.adjusted[0].not_held_out == held_out.category_ids[3:].tolist()


def test_an_estimate_from_a_handful_of_photos_is_called_unstable(
    held_out: PredictionFile, tmp_path: Path
) -> None:
    world = replace(WORLD, seed=1)
    few = make_prediction(
        tmp_path / "few", world.photos(world.draw(world.source, 12)), None, world.counts.tolist()
    )
    made = adjust(few, tmp_path / "out", target="estimated", fit=held_out)
    notes = made.notes
    step = made.meta.adjusted[0]
    assert step.warnings == [
        f"the estimate is unstable, the 12 photos bear out no shift: moved {step.shift:.1%}, by "
        f"their choice alone ±{step.spread:.1%}, gain on photos left out {step.gain:.3f} nats"
    ]
    assert f"warning: {step.warnings[0]}" in notes


def test_photos_that_look_other_than_the_calibration_photos_are_warned_of(
    held_out: PredictionFile, tmp_path: Path
) -> None:
    world = replace(WORLD, seed=0)
    blurred = world.logits(world.means[world.draw(np.full(5, 0.2), 600)] / 2)
    prediction = make_prediction(tmp_path / "blurred", blurred, None, world.counts.tolist())
    made = adjust(prediction, tmp_path / "out", target="estimated", fit=held_out)
    notes = made.notes
    step = made.meta.adjusted[0]
    said = [
        f"EM and BBSE disagree: EM's prior leaves {step.bbse.unexplained:.1%} of the "
        "predicted species unexplained, where a pure shift of the species' shares leaves at most "
        f"{step.bbse.by_chance:.1%}; these photos may look other than the held-out ones, or "
        "the model knows the tail too badly to be calibrated"
    ]
    assert step.warnings[-1:] == said
    assert f"warning: {said[0]}" in notes


def test_photos_that_were_calibrated_on_are_marked_as_chosen_on(
    held_out: PredictionFile, tmp_path: Path
) -> None:
    made = adjust(held_out, tmp_path / "out", target="estimated", fit=held_out)
    assert set(made.photos["role"]) == {"chosen on"}
    assert set(held_out.photos["role"]) == {"held out"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [-1] * 600}, "600 of its 600 photos have no label; calibrate on the held-out "
         "part or val"),
        ({"role": ["trained on"] * 3 + ["held out"] * 597}, "3 of its 600 photos were trained on, "
         "where a model is surer than elsewhere; calibrate on the held-out part or val"),
        ({"n_photos": 1}, "has 1 photos, too few to calibrate on"),
        ({"category_ids": [1, 2, 3, 4, 5]}, "its list of species is not that of {test}; calibrate "
         "on a prediction of the same model, made and adjusted in the same way"),
    ],
)  # fmt: skip
def test_photos_that_cannot_be_calibrated_on_are_refused(
    shifted: PredictionFile, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    wrong = make_held_out(tmp_path / "wrong", **options)
    with pytest.raises(InputError) as caught:
        adjust(shifted, tmp_path / "out", target="estimated", fit=wrong)
    assert str(caught.value) == f"{wrong.path}: {message.format(test=shifted.path)}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"run": "runs/b"}, "run"),
        ({"checkpoint": "best"}, "checkpoint"),
        ({"weights": "ema"}, "weights"),
        ({"views": [{"kind": "flip"}]}, "views"),
        ({"view_mean": "prob"}, "view_mean"),
        ({"adjusted": [{"of": "x", "tau": 1.0}]}, "history of adjustments"),
    ],
)
def test_calibration_on_another_models_photos_is_refused(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path, changed: Any, named: str
) -> None:
    restate(held_out, **changed)
    with pytest.raises(InputError) as caught:
        adjust(shifted, tmp_path / "out", target="estimated", fit=held_out.path)
    assert str(caught.value) == (
        f"{held_out.path}: its {named} is not that of {shifted.path}; "
        "calibrate on a prediction of the same model, made and adjusted in the same way"
    )


def two_members(**changed: Any) -> dict[str, Any]:
    """What an ensemble's meta.json says of its making; `changed` is of its second member."""
    members = [
        {"run": f"runs/{k}", "checkpoint_sha256": k, "checkpoint": "last", "weights": "ema",
         "views": [{"kind": "centre"}], "view_mean": None, "adjusted": [], "weight": 0.5,
         "temperature": 1.25}
        for k in "ab"
    ]  # fmt: skip
    return {"how": "mean_logprob", "members": [members[0], {**members[1], **changed}]}


def as_ensemble(file: PredictionFile, facts: dict[str, Any]) -> None:
    """Makes a prediction file that of an ensemble, which has no run of its own."""
    restate(file, **{"run": "", "checkpoint": "", "weights": "", **facts})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"checkpoint_sha256": "c"}, "members' run"),
        ({"checkpoint": "best"}, "members' checkpoint"),
        ({"weights": "raw"}, "members' weights"),
        ({"views": [{"kind": "flip"}]}, "members' views"),
        ({"view_mean": "prob"}, "members' view_mean"),
        ({"weight": 0.25}, "members' weight"),
        ({"temperature": 2.0}, "members' temperature"),
        ({"adjusted": [{"of": "x", "tau": 1.0}]}, "members' history of adjustments"),
        ({"members": [{"run": "runs/c"}]}, "members' number of members"),
    ],
)
def test_calibration_on_an_ensemble_of_other_members_is_refused(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path, changed: Any, named: str
) -> None:
    as_ensemble(shifted, two_members())
    as_ensemble(held_out, two_members(**changed))
    with pytest.raises(InputError) as caught:
        adjust(shifted.path, tmp_path / "out", target="estimated", fit=held_out.path)
    assert str(caught.value) == (
        f"{held_out.path}: its {named} is not that of {shifted.path}; "
        "calibrate on a prediction of the same model, made and adjusted in the same way"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({**two_members(), "how": "mean_prob"}, "how"),
        ({**two_members(), "members": two_members()["members"][:1]}, "number of members"),
        ({"run": "runs/a"}, "number of members"),
    ],
)
def test_calibration_on_an_ensemble_made_by_another_rule_or_on_one_run_is_refused(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path, facts: Any, named: str
) -> None:
    as_ensemble(shifted, two_members())
    as_ensemble(held_out, facts)
    with pytest.raises(InputError) as caught:
        adjust(shifted.path, tmp_path / "out", target="estimated", fit=held_out.path)
    assert str(caught.value) == (
        f"{held_out.path}: its {named} is not that of {shifted.path}; "
        "calibrate on a prediction of the same model, made and adjusted in the same way"
    )


def test_an_ensemble_is_calibrated_as_a_run_is_on_its_members_own_photos(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    alone = adjust(shifted, tmp_path / "run", target="estimated", fit=held_out)
    notes = alone.notes
    as_ensemble(shifted, two_members(prediction="runs/b/test", run="runs/b"))
    as_ensemble(held_out, two_members(prediction="runs/b/holdout", run="moved/b"))
    made = adjust(shifted.path, tmp_path / "out", target="estimated", fit=held_out.path)
    same = made.notes
    assert (made.logits == alone.logits).all()
    assert same[:-1] == notes[:-1]


FOLDS = [{"run": f"runs/folds/fold_{k}", "checkpoint_sha256": f"f{k}"} for k in (1, 2, 3)]
CONFIG = "config_digest_without_holdout"


def as_fold_ensemble(
    file: PredictionFile, *shas: str, how: str = "mean_logprob", **of: Any
) -> None:
    """Makes a prediction file the mean of fold runs; `of` changes each member."""
    facts = {"competition": file.meta.competition, "checkpoint": "last", "weights": "raw"}
    members = [{**facts, "checkpoint_sha256": sha, "weight": 1 / 3, **of} for sha in shas]
    as_ensemble(file, {"how": how, "members": members})


def make_oof(path: Path, prior: np.ndarray | None = None, **options: Any) -> PredictionFile:
    """The held-out photos as out-of-fold ones, their logits moved from the source to `prior`."""
    logits, labels = replace(WORLD, seed=0).held_out(600)
    prior = WORLD.source if prior is None else prior
    facts = {"split": "oof", "run": "runs/folds", "folds": FOLDS, "role": "held out", **options}
    return make_prediction(
        path,
        logits + np.log(prior) - np.log(WORLD.source),
        labels.tolist(),
        WORLD.counts.tolist(),
        **{"logits_prior": prior.tolist(), "ids": range(10_000, 10_600), **facts},
    )


@pytest.mark.parametrize("prior", [WORLD.source, np.array([0.1, 0.1, 0.2, 0.3, 0.3])], ids=str)
def test_a_fold_is_calibrated_out_of_fold_at_its_own_prior(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path, prior: np.ndarray
) -> None:
    alone = adjust(shifted, tmp_path / "run", target="estimated", fit=held_out)
    notes = alone.notes
    oof = make_oof(tmp_path / "oof", prior)
    restate(shifted, checkpoint_sha256="f2", run="elsewhere")
    made = adjust(shifted.path, tmp_path / "out", target="estimated", fit=oof)
    same = made.notes
    assert made.logits == pytest.approx(alone.logits, rel=2e-2, abs=2e-2)
    assert made.logits_prior == pytest.approx(alone.logits_prior, abs=2e-3)
    assert len(same) == len(notes)
    step = made.meta.adjusted[0]
    assert step.calibrated_on == str(oof.path)
    assert step.shift == pytest.approx(alone.meta.adjusted[0].shift, abs=2e-3)


def test_an_ensemble_of_folds_is_calibrated_out_of_fold_at_the_uniform_prior(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    uniform = adjust(shifted, tmp_path / "uniform", target="uniform")
    as_fold_ensemble(uniform, "f1", "f2", "f3", adjusted=[])
    restate(uniform, adjusted=[])
    oof = make_oof(tmp_path / "oof")
    made = adjust(uniform.path, tmp_path / "out", target="estimated", fit=oof)
    alone = adjust(shifted, tmp_path / "run", target="estimated", fit=held_out)
    assert made.logits_prior == pytest.approx(alone.logits_prior, abs=5e-3)
    guesses = made.logits.argmax(axis=1) == alone.logits.argmax(axis=1)
    assert guesses.mean() > 0.99
    # What the folds' own prior would have made of it.
    unmoved = estimate_label_shift(
        uniform.logits, WORLD.source, held_out=(oof.logits, oof.labels)
    ).prior
    assert np.abs(unmoved - alone.logits_prior).max() > 0.05


def test_a_run_is_calibrated_out_of_the_folds_of_its_config(
    shifted: PredictionFile, tmp_path: Path
) -> None:
    oof = make_oof(tmp_path / "oof", **{CONFIG: "c1"})
    restate(shifted, checkpoint_sha256="all", **{CONFIG: "c1"})
    made = adjust(shifted.path, tmp_path / "out", target="estimated", fit=oof)
    assert made.meta.chosen == {
        "calibration": f"negative log-likelihood on the 600 photos of {oof.path}"
    }


@pytest.mark.parametrize("config", [{}, {CONFIG: None}, {CONFIG: "c2"}], ids=str)
def test_folds_that_neither_made_a_run_nor_share_its_config_are_refused(
    shifted: PredictionFile, tmp_path: Path, config: dict[str, Any]
) -> None:
    oof = make_oof(tmp_path / "oof", **{CONFIG: "c1" if config.get(CONFIG) else None})
    restate(shifted, checkpoint_sha256="all", **config)
    with pytest.raises(InputError) as caught:
        adjust(shifted.path, tmp_path / "out", target="estimated", fit=oof)
    assert str(caught.value) == (
        f"{oof.path}: its 3 folds are neither what made {shifted.path} nor known to be of the same "
        "config; calibrate on a prediction of the same model, made and adjusted in the same way"
    )
    refused = str(caught.value)
    as_fold_ensemble(shifted, "f1", "f2", "f4")
    with pytest.raises(InputError) as caught:
        adjust(shifted.path, tmp_path / "out", target="estimated", fit=oof)
    assert str(caught.value) == refused


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"how": "rank"}, "its how is not that of {test}"),
        ({"temperature": 1.5}, "its members' temperature is not that of {test}"),
        ({"views": [{"kind": "flip"}]}, "its members' views is not that of {test}"),
        ({"adjusted": [{"of": "x", "geo": "g", "geo_checkpoint_sha256": "g1"}]},
         "its members' history of adjustments is not that of {test}"),
    ],
)  # fmt: skip
def test_an_ensemble_of_folds_whose_logits_are_not_the_folds_own_is_refused(
    shifted: PredictionFile, tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    as_fold_ensemble(shifted, "f1", "f2", "f3", **facts)
    oof = make_oof(tmp_path / "oof")
    with pytest.raises(InputError) as caught:
        adjust(shifted.path, tmp_path / "out", target="estimated", fit=oof)
    assert str(caught.value) == (
        f"{oof.path}: {said.format(test=shifted.path)}; calibrate on a prediction of the same "
        "model, made and adjusted in the same way"
    )


def test_folds_of_an_unknown_prior_do_not_calibrate_what_was_moved_to_a_known_one(
    shifted: PredictionFile, tmp_path: Path
) -> None:
    as_fold_ensemble(shifted, "f1", "f2", "f3")
    oof = make_oof(tmp_path / "oof", logits_prior=None)
    with pytest.raises(InputError) as caught:
        adjust(shifted.path, tmp_path / "out", target="estimated", fit=oof)
    assert str(caught.value) == (
        f"{oof.path}: which prior its logits carry is known of it or of {shifted.path} alone; "
        "calibrate on a prediction of the same model, made and adjusted in the same way"
    )


def test_the_same_checkpoint_under_another_runs_name_is_the_same_model(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    for file, run in ((shifted, "runs/a"), (held_out, "moved/a")):
        restate(file, run=run, checkpoint_sha256="ab" * 32)
    adjust(shifted.path, tmp_path / "out", target="estimated", fit=held_out.path)
    assert (tmp_path / "out" / "meta.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 1.0}, "--fit goes with --tau search and --target estimated alone"),
        ({"target": "uniform"}, "--fit goes with --tau search and --target estimated alone"),
        ({"target": "estimated", "from_prior": "counts"},
         "--fit measures which prior the logits carry; leave --from-prior away"),
    ],
)  # fmt: skip
def test_fit_is_refused_where_it_says_nothing(
    shifted: PredictionFile,
    held_out: PredictionFile,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError) as caught:
        adjust(shifted, tmp_path / "out", fit=held_out, **options)
    assert str(caught.value) == message


def test_one_photo_and_calibration_photos_as_out_are_refused(
    shifted: PredictionFile, held_out: PredictionFile, tmp_path: Path
) -> None:
    one = make_prediction(tmp_path / "one", LOGITS[:1])
    with pytest.raises(InputError) as caught:
        adjust(one, tmp_path / "out", target="estimated")
    assert str(caught.value) == (
        f"{one.path}: 1 photo tells nothing of the species' shares; give --target uniform|FILE"
    )
    with pytest.raises(InputError) as caught:
        adjust(shifted, held_out.path, target="estimated", fit=held_out, overwrite=True)
    assert str(caught.value) == (
        f"{held_out.path}: adjust does not write over its input; give another --out"
    )


def test_an_unknown_prior_is_measured_on_the_calibration_photos(tmp_path: Path) -> None:
    world = replace(WORLD, seed=0)
    logits = world.photos(world.draw(np.full(5, 0.2), 400))
    unknown = make_prediction(
        tmp_path / "p", logits, None, world.counts.tolist(), logits_prior=None
    )
    with pytest.raises(InputError) as caught:
        adjust(unknown, tmp_path / "out", target="estimated")
    assert str(caught.value) == (
        f"{tmp_path / 'p'}: which prior its logits carry is not known; say what to assume: "
        "--from-prior uniform|counts|FILE"
    )
    held_out = make_held_out(tmp_path / "holdout", logits_prior=None)
    made = adjust(unknown, tmp_path / "out", target="estimated", fit=held_out)
    assert made.logits_prior is not None
    assert np.abs(made.logits_prior - 0.2).max() < 0.1


def test_the_command_line_prints_the_notes(
    shifted: PredictionFile,
    held_out: PredictionFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    words = ["--target", "estimated", "--fit", str(held_out.path), "--out", out]
    assert main(["adjust", str(shifted.path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"calibrated on the 600 photos of {held_out.path}: temperature 1.")
    assert lines[-2:] == [
        f"the estimated prior is in {out}/estimated_prior.csv",
        f"{out}: 400 photos x 5 species",
    ]

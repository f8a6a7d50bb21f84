"""Moving the prior of a prediction file: the arithmetic, what is refused, what is written down."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictions import make_prediction

from inat.adjusting import adjust
from inat.errors import InputError
from inat.prediction_file import PredictionFile

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


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_tau_subtracts_tau_log_prior(
    prediction: PredictionFile, tmp_path: Path, tau: float
) -> None:
    found, notes = adjust(prediction.path, tmp_path / "out", tau=tau)
    shift = [-tau * math.log(p) for p in PRIOR]
    assert found.logits.tolist() == slow_stored(prediction.logits, shift)
    left = [p ** (1 - tau) for p in PRIOR]
    assert found.logits_prior == pytest.approx([w / sum(left) for w in left])
    assert notes == []


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_best_guess_is_the_argmax_of_f_minus_tau_log_pi(
    prediction: PredictionFile, tmp_path: Path, tau: float
) -> None:
    found, _ = adjust(prediction, tmp_path / "out", tau=tau)
    changed = 0
    for before, after in zip(prediction.logits.tolist(), found.logits, strict=True):
        moved = [f - tau * math.log(p) for f, p in zip(before, PRIOR, strict=True)]
        assert after.argmax() == moved.index(max(moved))
        changed += int(after.argmax() != np.argmax(before))
    assert changed > 0


def test_the_uniform_target_is_tau_1(prediction: PredictionFile, tmp_path: Path) -> None:
    by_tau, _ = adjust(prediction, tmp_path / "tau", tau=1.0)
    by_target, _ = adjust(prediction, tmp_path / "target", target="uniform")
    assert by_target.logits == pytest.approx(by_tau.logits, abs=0.01)
    assert by_target.logits.argmax(axis=1).tolist() == by_tau.logits.argmax(axis=1).tolist()
    assert by_target.logits_prior == pytest.approx(UNIFORM)
    assert by_tau.logits_prior == pytest.approx(UNIFORM)


def test_a_target_file_is_bayes_rule(prediction: PredictionFile, tmp_path: Path) -> None:
    path = tmp_path / "prior.csv"
    path.write_text("category_id,prior\n56,4\n28,3\n10,2\n2,1\n")
    found, notes = adjust(prediction, tmp_path / "out", target=path)
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
    found, _ = adjust(prediction, tmp_path / "out", target=path)
    assert (found.logits[:, 0] == np.finfo(np.float16).min).all()
    assert np.isfinite(found.logits).all()
    assert (found.logits.argmax(axis=1) != 0).all()


def test_everything_but_logits_and_meta_is_carried_over_and_the_input_is_left_alone(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    before = files_of(prediction.path)
    found, _ = adjust(prediction, tmp_path / "out", tau=1.0)
    after = files_of(found.path)
    assert files_of(prediction.path) == before
    assert set(after) == set(before)
    same = {name for name in before if after[name] == before[name]}
    assert same == {"ids.npy", "labels.npy", "species.parquet", "photos.parquet"}


def test_float32_logits_stay_float32(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS, train_counts=COUNTS, dtype=np.float32)
    found, _ = adjust(prediction, tmp_path / "out", tau=1.0)
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
    found, notes = adjust(prediction, tmp_path / "out", **options)
    assert (found.logits == prediction.logits).all()
    assert notes == ["this changes nothing: the logits carry a uniform prior already"]


def test_tau_0_changes_nothing_and_says_so(prediction: PredictionFile, tmp_path: Path) -> None:
    found, notes = adjust(prediction, tmp_path / "out", tau=0.0)
    assert (found.logits == prediction.logits).all()
    assert found.logits_prior == pytest.approx(PRIOR)
    assert notes == ["this changes nothing: the shift is the same for all species"]


def test_a_second_adjustment_by_tau_1_changes_nothing(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    first, _ = adjust(prediction, tmp_path / "one", tau=1.0)
    second, notes = adjust(first, tmp_path / "two", tau=1.0)
    assert (second.logits == first.logits).all()
    assert notes == ["this changes nothing: the logits carry a uniform prior already"]


# --- what is written down --------------------------------------------------------------------


def test_meta_keeps_its_facts_and_the_history_of_adjustments(
    prediction: PredictionFile, tmp_path: Path
) -> None:
    first, _ = adjust(prediction, tmp_path / "one", tau=0.5)
    second, _ = adjust(first, tmp_path / "two", target="uniform")
    assert second.meta["adjusted"] == [
        {"of": str(prediction.path), "tau": 0.5},
        {"of": str(first.path), "target": "uniform"},
    ]
    assert second.meta["logits_prior"] == pytest.approx(UNIFORM)
    for key in prediction.meta.keys() - {"logits_prior", "adjusted"}:
        assert second.meta[key] == prediction.meta[key]
    assert "adjusted" not in prediction.meta


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
    found, _ = adjust(unknown, tmp_path / "out", tau=1.0, from_prior="counts")
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
    found, _ = adjust(prediction, tmp_path / "file", tau=1.0, from_prior=path)
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
        "adjust takes one of --tau T, --target uniform|FILE and --geo GEO_PRED"
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
    found, _ = adjust(prediction, out, tau=1.0, overwrite=True)
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

"""Fold runs: who holds out what, the joined prediction, and how a training of folds goes on."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import TINY, restate
from worlds import category_id, make_world

import inat
from inat.cli.app import main
from inat.core.errors import InputError
from inat.core.files import read_json
from inat.core.priors import count_prior, drawn_shift
from inat.dataset.split import cut_holdout, load_split
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Origin
from inat.runs.folds import FoldRuns

COUNTS = (12, 6, 4, 2, 1)
FOLDS = 3
SETTINGS = {**TINY, "batch_size": 4, "data.holdout": "none"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world of five species, of which one has a single photo, and a config."""
    folder = tmp_path_factory.mktemp("folds")
    make_world(folder / "DATA", counts=COUNTS)
    (folder / "empty.yaml").write_text("")
    return folder


def trained(place: Path, run: Path, folds: int = FOLDS, **settings: Any) -> FoldRuns:
    how = {key: settings.pop(key) for key in ("resume", "overwrite") if key in settings}
    overrides = {**SETTINGS, "data.root": place / "DATA", **settings}
    return inat.train_folds(place / "empty.yaml", folds, run, overrides=overrides, **how)


@pytest.fixture(scope="module")
def folds(place: Path) -> FoldRuns:
    return trained(place, place / "runs" / "a")


@pytest.fixture(scope="module")
def oof(folds: FoldRuns) -> PredictionFile:
    return inat.read_prediction(folds.prediction("oof"))


@pytest.fixture
def own(folds: FoldRuns, tmp_path: Path) -> FoldRuns:
    """A copy of the fold runs, to be written to."""
    shutil.copytree(folds.path, tmp_path / "own")
    return inat.open_folds(tmp_path / "own")


def files_of(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def rows_by_id(prediction: PredictionFile) -> Iterator[tuple[int, list[float]]]:
    return zip(prediction.ids.tolist(), prediction.logits.tolist(), strict=True)


# --- the joined prediction -------------------------------------------------------------------


def test_each_photo_stands_once_with_the_logits_of_the_run_that_held_it_out(
    place: Path, folds: FoldRuns, oof: PredictionFile
) -> None:
    train = load_split(place / "DATA")
    parts = [cut_holdout(train, f"fold:{fold}/{FOLDS}", 0) for fold in (1, 2, 3)]
    priors = [count_prior(trained_on.class_counts) for trained_on, _ in parts]
    geometric = [math.prod(prior[j] for prior in priors) ** (1 / FOLDS) for j in range(5)]
    common = [value / sum(geometric) for value in geometric]
    assert oof.logits_prior == pytest.approx(common, rel=1e-12)
    expected = {}
    for run, prior, (trained_on, held_out) in zip(folds.runs, priors, parts, strict=True):
        assert run.facts.trained == trained_on.fingerprint
        for image_id, logits in rows_by_id(inat.predict(run.path, "train")):
            if image_id in held_out.image_ids:
                assert image_id not in expected
                moved = [
                    z + math.log(to) - math.log(of)
                    for z, to, of in zip(logits, common, prior, strict=True)
                ]
                expected[image_id] = [z - max(moved) for z in moved]
    assert oof.ids.tolist() == sorted(expected)
    for image_id, logits in rows_by_id(oof):
        assert logits == pytest.approx(expected[image_id], abs=2e-3)


def test_photos_keep_their_label_name_and_role(place: Path, oof: PredictionFile) -> None:
    train = load_split(place / "DATA")
    known = dict(zip(train.image_ids.tolist(), train.labels.tolist(), strict=True))
    names = dict(zip(train.image_ids.tolist(), train.file_names.to_pylist(), strict=True))
    assert oof.labels.tolist() == [known[image_id] for image_id in oof.ids.tolist()]
    assert oof.photos["id"].tolist() == oof.ids.tolist()
    assert oof.photos["file_name"].tolist() == [names[i] for i in oof.ids.tolist()]
    assert set(oof.photos["role"]) == {"held out"}
    assert np.bincount(oof.labels, minlength=5).tolist() == [12, 6, 4, 2, 0]


def test_species_that_were_never_held_out_are_counted_and_named(
    folds: FoldRuns, oof: PredictionFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oof.meta.never_held_out == [category_id(4)]
    inat.predict_out_of_fold(folds.path)
    assert capsys.readouterr().err == (f"{oof.path}: species never held out: 1 (Genus2 species4)\n")
    assert "1 of 5 species have no photo here" in inat.evaluate(oof).notes


def test_meta_names_the_folds_and_nothing_of_one_fold_alone(
    folds: FoldRuns, oof: PredictionFile
) -> None:
    assert oof.meta.split == "oof"
    assert oof.meta.run == str(folds.path)
    assert oof.meta.checkpoint == "last"
    assert oof.meta.chosen == {}
    own = {"checkpoint_epoch", "checkpoint_sha256", "config_digest"}
    assert not own & set(read_json(oof.path / "meta.json"))
    for fold, run in zip(oof.meta.folds, folds.runs, strict=True):
        part = inat.read_prediction(run.prediction("holdout"))
        assert fold == Origin(
            run=str(run.path),
            checkpoint_epoch=1,
            checkpoint_sha256=part.meta.checkpoint_sha256,
            config_digest=run.config.digest,
        )


@pytest.mark.parametrize("prior", [[0.2] * 5, None], ids=["uniform", "unknown"])
def test_logits_that_carry_one_prior_or_an_unknown_one_stay_as_they_are(
    own: FoldRuns, prior: list[float] | None
) -> None:
    for run in own.runs:
        restate(run, logits_prior=prior)
    oof = inat.predict_out_of_fold(own.path, name="again")
    if prior is None:
        assert oof.logits_prior is None
    else:
        assert oof.logits_prior == pytest.approx(prior)
    parts = [inat.read_prediction(run.prediction("again")) for run in own.runs]
    expected = dict(row for part in parts for row in rows_by_id(part))
    assert dict(rows_by_id(oof)) == expected


def test_a_species_without_photos_keeps_its_logits_and_its_prior_of_0(
    place: Path, tmp_path: Path
) -> None:
    from inat.predictions.folds import _common_prior

    priors = [np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.8, 0.0])]
    common = _common_prior(priors)
    assert common is not None
    assert common == pytest.approx([math.sqrt(0.1) / (s := math.sqrt(0.1) + math.sqrt(0.4)),
                                    math.sqrt(0.4) / s, 0])  # fmt: skip
    assert drawn_shift(priors[0], common)[2] == 0
    assert _common_prior([priors[0], None]) is None


def test_what_is_chosen_out_of_fold_is_written_down_and_refused_there_alone(
    own: FoldRuns, oof: PredictionFile, tmp_path: Path
) -> None:
    assert inat.evaluate(oof).n_images == 24
    chosen = {"tau": f"mean class accuracy on the 24 photos of {oof.path}"}
    here = inat.adjust(oof, tmp_path / "oof", tau="search")
    with pytest.raises(InputError, match="on 24 of its photos something was chosen"):
        inat.evaluate(here)
    assert inat.evaluate(here, chosen_here=True).chosen == chosen
    run = own.runs[0].path
    val = inat.adjust(inat.predict(run, "val"), tmp_path / "val", tau="search", fit=oof)
    assert inat.evaluate(val).to_dict()["chosen"] == chosen
    # What one run had held out is among the photos that tau was chosen on.
    part = inat.adjust(run / "predictions/holdout", tmp_path / "part", tau="search", fit=oof)
    with pytest.raises(InputError, match=f"on {len(part)} of its photos something was chosen"):
        inat.evaluate(part)
    best = inat.predict(run, "val", checkpoint="best", name="best")
    both = inat.adjust(best, tmp_path / "best", tau="search", fit=oof)
    assert inat.evaluate(both).chosen == {
        "epoch": "mean class accuracy on the held-out part of train",
        **chosen,
    }


def test_weights_of_an_ensemble_are_chosen_out_of_fold_and_refused_there_alone(
    own: FoldRuns, oof: PredictionFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inat.posthoc.ensemble_fitting.GREEDY_PICKS", 12)
    other = inat.predict_out_of_fold(own.path, weights="raw", name="other")
    fit = [oof, other]
    val = [inat.predict(run.path, "val") for run in own.runs[:2]]
    free = inat.ensemble(val, tmp_path / "val", weights="search", fit=fit)
    assert {"weights", "temperatures"} <= set(inat.evaluate(free).chosen)
    here = inat.ensemble(fit, tmp_path / "oof", weights="search", fit=fit)
    with pytest.raises(InputError, match=r"on 24 of its photos .*weights by"):
        inat.evaluate(here)


def test_a_fold_their_ensemble_and_a_run_of_their_config_are_calibrated_out_of_fold(
    place: Path, own: FoldRuns, oof: PredictionFile, tmp_path: Path
) -> None:
    overrides = {**SETTINGS, "data.root": place / "DATA"}
    whole = inat.train(place / "empty.yaml", tmp_path / "whole", overrides=overrides)
    other = inat.train(place / "empty.yaml", tmp_path / "other", overrides={**overrides, "seed": 1})
    val = [inat.predict(run.path, "val") for run in (*own.runs, whole, other)]
    digest = whole.config.digest_without_holdout
    assert [one.meta.config_digest_without_holdout == digest for one in val] == [
        True, True, True, True, False,
    ]  # fmt: skip
    assert oof.meta.config_digest_without_holdout == digest
    pooled = inat.ensemble(val[:3], tmp_path / "pooled")
    chosen = f"negative log-likelihood on the 24 photos of {oof.path}"
    for number, prediction in enumerate((val[0], val[3], pooled)):
        made = inat.adjust(prediction, tmp_path / f"out-{number}", target="estimated", fit=oof)
        assert made.meta.chosen == {"calibration": chosen}
    with pytest.raises(InputError) as refused:
        inat.adjust(val[4], tmp_path / "no", target="estimated", fit=oof)
    assert str(refused.value) == (
        f"{oof.path}: its 3 folds are neither what made {val[4].path} nor known to be of the same "
        "config; calibrate on a prediction of the same model, made and adjusted in the same way"
    )


def test_the_best_epochs_are_chosen_on_these_photos_and_evaluate_refuses_them(
    own: FoldRuns,
) -> None:
    best = inat.predict_out_of_fold(own.path, checkpoint="best", name="best")
    assert set(best.photos["role"]) == {"chosen on"}
    assert best.path == own.path / "predictions" / "best"
    with pytest.raises(InputError) as refused:
        inat.evaluate(best)
    assert str(refused.value) == (
        f"{best.path}: on 24 of its photos something was chosen (epoch by mean class accuracy on "
        "the held-out part of train), so a score on them flatters; predict val or test, or say "
        "--chosen-here"
    )
    flattered = inat.evaluate(best, chosen_here=True)
    assert flattered.notes[0].startswith("chosen on these very photos: epoch by mean class")
    val = inat.predict(own.runs[0].path, "val", checkpoint="best")
    assert inat.evaluate(val).n_images == 15


def test_of_several_processes_the_first_joins_and_the_others_wait_for_it(
    own: FoldRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inat.predictions import folds as folds_module
    from inat.predictions import processes

    shutil.rmtree(own.prediction("oof"))
    join = folds_module._join
    monkeypatch.setattr(folds_module, "_join", None)

    def rank_0_joins(_: float) -> None:
        monkeypatch.setattr(folds_module, "_join", join)
        inat.predict_out_of_fold(own.path)

    monkeypatch.setattr(processes.time, "sleep", rank_0_joins)
    assert len(inat.predict_out_of_fold(own.path, rank=1, world_size=2)) == 24


def test_a_joined_prediction_made_otherwise_is_not_overwritten(own: FoldRuns) -> None:
    for run in own.runs:
        shutil.rmtree(run.prediction("holdout"))
    with pytest.raises(InputError) as refused:
        inat.predict_out_of_fold(own.path, weights="raw", checkpoint="best", name="oof")
    assert str(refused.value) == (
        f"{own.prediction('oof')}: there is a prediction with another checkpoint; give another "
        "--name, or --overwrite"
    )
    made = inat.predict_out_of_fold(own.path, checkpoint="best", name="oof", overwrite=True)
    assert set(made.photos["role"]) == {"chosen on"}


# --- the runs --------------------------------------------------------------------------------


def test_finished_folds_are_not_trained_again_and_nothing_is_written(
    place: Path, folds: FoldRuns
) -> None:
    before = files_of(folds.path)
    overrides = {**SETTINGS, "data.root": place / "DATA", "data.holdout": "none"}
    in_memory = inat.read_config(place / "empty.yaml", overrides)
    again = inat.train_folds(in_memory, FOLDS, folds.path, resume=True)
    assert files_of(folds.path) == before
    assert [run.path for run in again.runs] == [run.path for run in folds.runs]


def test_fold_runs_that_were_moved_are_finished_too(place: Path, own: FoldRuns) -> None:
    before = files_of(own.path)
    trained(place, own.path)
    assert files_of(own.path) == before


def test_a_killed_fold_resumes_and_all_ends_as_if_never_killed(
    place: Path, folds: FoldRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inat.training import loop

    say = loop.say

    def unplugged(*_: object) -> None:
        raise KeyboardInterrupt

    def unplug_in_fold_2(line: str) -> None:
        say(line)
        if line.startswith("device") and (tmp_path / "cut" / "fold_1").exists():
            monkeypatch.setattr(loop, "take_step", unplugged)

    monkeypatch.setattr(loop, "say", unplug_in_fold_2)
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        trained(place, path)
    monkeypatch.undo()
    assert sorted(child.name for child in path.glob("[!.]*")) == ["fold_1", "fold_2"]
    with pytest.raises(InputError) as refused:
        trained(place, path)
    assert str(refused.value) == (
        f"{path / 'fold_2'}: there is an unfinished run; --resume goes on with it, --overwrite "
        "starts anew"
    )
    resumed = trained(place, path, resume=True)
    whole = inat.read_prediction(folds.prediction("oof"))
    again = inat.read_prediction(resumed.prediction("oof"))
    assert again.logits.tobytes() == whole.logits.tobytes()
    assert [f.checkpoint_sha256 for f in again.meta.folds] == [
        f.checkpoint_sha256 for f in whole.meta.folds
    ]


def test_other_settings_and_another_number_of_folds_are_refused(place: Path, own: FoldRuns) -> None:
    for settings, field in (
        ({"optim.weight_decay": 0.5}, "optim.weight_decay"),
        ({"folds": 2}, "data.holdout"),
    ):
        with pytest.raises(InputError) as refused:
            trained(place, own.path, **settings)
        assert str(refused.value) == (
            f"{own.path / 'fold_1'}: the run there was made with other settings ({field}); give "
            "another --run, or --overwrite to throw it away"
        )


def test_overwrite_makes_fewer_folds_and_a_mistake_costs_none(place: Path, own: FoldRuns) -> None:
    before = files_of(own.path)
    with pytest.raises(InputError):
        trained(place, own.path, overwrite=True, **{"model.backbone": "resnet5"})
    assert files_of(own.path) == before
    made = trained(place, own.path, folds=2, overwrite=True)
    assert len(made.runs) == 2
    assert sorted(child.name for child in own.path.glob("[!.]*")) == [
        "fold_1", "fold_2", "predictions"
    ]  # fmt: skip


def test_folders_that_hold_something_else_are_not_written_to(
    place: Path, folds: FoldRuns, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for path in (tmp_path / "mine", folds.runs[0].path):
        with pytest.raises(InputError) as refused:
            trained(place, path, overwrite=True)
        assert str(refused.value) == (
            f"{path}: the folder is not empty and holds no fold runs; give another --run"
        )
    with pytest.raises(InputError, match="--resume keeps a run and --overwrite throws it away"):
        trained(place, tmp_path / "run", resume=True, overwrite=True)


def test_folds_that_cannot_be_cut_are_refused_before_the_first_is_trained(
    place: Path, tmp_path: Path
) -> None:
    refusals = []
    for folds, settings in (
        (1, {}),
        (2, {"data.train_on": "train+val", "data.holdout": "none"}),
        (60, {}),
    ):
        with pytest.raises(InputError) as refused:
            trained(place, tmp_path / "run", folds=folds, **settings)
        refusals.append(str(refused.value))
    assert refusals[:2] == [
        "--folds 1: each fold is trained on the others; give 2 or more",
        "--folds 2: data.train_on train+val is for the final fit and folds are cut out of train; "
        "set data.train_on train",
    ]
    assert refusals[2].endswith("/60 holds out no photo of 25; make fewer folds")
    assert not (tmp_path / "run").exists()


def test_runs_of_other_settings_are_no_folds_of_one_training(
    place: Path, own: FoldRuns, tmp_path: Path
) -> None:
    third = own.runs[2].path
    shutil.rmtree(third)
    with pytest.raises(InputError, match=r"fold_3: no run \(no config\.yaml in it\)"):
        inat.open_folds(own.path)
    overrides = {**SETTINGS, "data.root": place / "DATA", "data.holdout": "fold:3/3", "seed": 5}
    inat.train(place / "empty.yaml", third, overrides=overrides)
    with pytest.raises(InputError) as refused:
        inat.open_folds(own.path)
    assert str(refused.value) == (
        f"{third}: differs from {own.runs[0].path} in more than its fold (seed); make all folds "
        "with the same settings"
    )
    with pytest.raises(InputError) as refused:
        inat.open_folds(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: no fold runs (no fold_1 in it); inat train --folds K makes them"
    )


def test_stage_two_on_each_fold_makes_folds_again(folds: FoldRuns, tmp_path: Path) -> None:
    for run in folds.runs:
        inat.train_stage_two(run.path, tmp_path / "ncm" / run.path.name, method="ncm")
    oof = inat.predict_out_of_fold(tmp_path / "ncm")
    assert len(oof) == 24
    assert set(oof.photos["role"]) == {"held out"}
    assert oof.logits_prior is None


# --- the command line ------------------------------------------------------------------------


def test_the_verbs_train_and_predict_take_folds(
    place: Path,
    folds: FoldRuns,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    (place / "small.yaml").write_text(
        "epochs: 1\nbatch_size: 4\ndata: {root: DATA, workers: 0, holdout: none}\n"
        "transforms: {image_size: 32}\n"
        "model: {backbone: test_efficientnet, weights: none}\noptim: {warmup_epochs: 0.5}\n"
    )
    assert main(["train", "small.yaml", "--folds", "2", "--dry-run"]) == 0
    assert "13 photos trained on, 12 held out" in capsys.readouterr().out
    assert main(["train", "small.yaml", "--folds", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        "runs/small: 2 folds trained; next: inat evaluate runs/small/predictions/oof\n"
    )
    assert "fold       2 of 2\n" in captured.err
    assert main(["evaluate", "runs/small/predictions/oof"]) == 0
    capsys.readouterr()
    assert main(["predict", "runs/small", "--split", "val"]) == 0
    assert capsys.readouterr().out == (
        "runs/small/fold_1/predictions/val: 15 photos x 5 species\n"
        "runs/small/fold_2/predictions/val: 15 photos x 5 species\n"
    )
    words = ["predict", "runs/small", "--split", "oof", "--checkpoint", "best", "--name", "best"]
    assert main(words) == 0
    assert capsys.readouterr().out == "runs/small/predictions/best: 24 photos x 5 species\n"
    assert main(["stage-two", "runs/small", "--method", "ncm", "--out", "runs/ncm"]) == 2
    assert capsys.readouterr().err == (
        "inat: runs/small: holds the runs of folds; give one, runs/small/fold_1\n"
    )

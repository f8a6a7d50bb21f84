"""The manifest beside a submission: hashes, what it was made of, the score to expect."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictions import make_prediction
from sklearn.metrics import f1_score
from tiny_runs import train_tiny

import inat
from inat import adjust, compare, ensemble, evaluate, submission
from inat.cli.app import main
from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.core.intervals import accuracy_interval
from inat.dataset.split import load_split
from inat.predictions.file import PredictionFile
from inat.runs.run import versions
from inat.submission import csv_file, provenance
from inat.submission.estimate import Estimate, estimate_score
from inat.submission.manifest import update_manifest

SPEC = find_competition("inaturalist-2018")
RNG_LOGITS = np.random.default_rng(0).normal(size=(30, 5))
LABELS = np.random.default_rng(1).integers(5, size=30).tolist()


def made(folder: Path, name: str, **options: Any) -> PredictionFile:
    """A prediction of one run: the same checkpoint and views, whatever the split."""
    options = {"checkpoint_sha256": "c1", "views": [{"kind": "centre"}], "adjusted": []} | options
    return make_prediction(folder / name, options.pop("logits", RNG_LOGITS), **options)


@pytest.fixture
def unlabelled(tmp_path: Path) -> PredictionFile:
    return made(tmp_path, "test")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what it was made of ----------------------------------------------------------------------


def test_the_manifest_says_what_the_submission_was_made_of(
    tmp_path: Path, unlabelled: PredictionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path / "site-packages")
    path = submission.write(unlabelled, tmp_path / "out" / "s.csv")
    assert submission.manifest_path(path) == tmp_path / "out" / "s.manifest.json"
    manifest = submission.read_manifest(path)
    prior = np.array([50, 49, 48, 47, 46]) / 240
    parts = ("ids.npy", "labels.npy", "logits.npy", "meta.json", "photos.parquet",
             "species.parquet")  # fmt: skip
    assert manifest == {
        "competition": "inaturalist-2018",
        "metric": "top-3 error",
        "file": "s.csv",
        "sha256": sha256(path),
        "rows": 30,
        "prediction": {
            "path": str(unlabelled.path),
            "files": {name: sha256(unlabelled.path / name) for name in parts},
            "logits_prior": {
                "kind": "not uniform",
                "sha256": hashlib.sha256(prior.tobytes()).hexdigest(),
            },
            "run": "runs/a",
            "checkpoint": "last",
            "checkpoint_sha256": "c1",
            "weights": "raw",
            "views": [{"kind": "centre"}],
            "adjusted": [],
            "chosen": {},
        },
        "members": [],
        "versions": versions(),
        "git_commit": None,
    }


def test_an_evaluation_in_the_prediction_is_no_part_of_it(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    (unlabelled.path / "evaluation").mkdir()
    path = submission.write(unlabelled, tmp_path / "s.csv")
    assert "evaluation" not in submission.read_manifest(path)["prediction"]["files"]


@pytest.mark.parametrize(
    ("prior", "kind"),
    [(None, "unknown"), ([0.2] * 5, "uniform"), ([0.6, *[0.1] * 4], "not uniform")],
)
def test_the_prior_is_named(tmp_path: Path, prior: list[float] | None, kind: str) -> None:
    prediction = made(tmp_path, "p", logits_prior=prior)
    path = submission.write(prediction, tmp_path / "s.csv")
    assert submission.read_manifest(path)["prediction"]["logits_prior"]["kind"] == kind


def test_members_are_those_that_the_prediction_names_with_the_hashes_of_what_is_there(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    members: list[dict[str, Any]] = [
        {"prediction": str(unlabelled.path), "weight": 0.25, "temperature": 1.5, "run": "a"},
        {"prediction": str(tmp_path / "gone"), "weight": 0.75, "temperature": 1.0, "run": "b"},
    ]
    ensemble = made(tmp_path, "p", members=members, how="mean_logprob")
    manifest = submission.read_manifest(submission.write(ensemble, tmp_path / "s.csv"))
    files = {path.name: sha256(path) for path in unlabelled.path.iterdir()}
    assert manifest["members"] == [{**members[0], "files": files}, {**members[1], "files": None}]
    assert manifest["prediction"]["how"] == "mean_logprob"


def test_the_views_mean_and_the_folds_of_an_out_of_fold_prediction_are_told(tmp_path: Path) -> None:
    folds = [
        {"run": f"folds/fold_{number}", "checkpoint_epoch": 2, "checkpoint_sha256": f"c{number}",
         "config_digest": f"d{number}"}
        for number in (1, 2)
    ]  # fmt: skip
    oof = made(tmp_path, "oof", split="oof", view_mean="prob", folds=folds)
    (tmp_path / "s.csv").write_text("id,predicted\n")
    made_of = provenance.provenance("s.csv", "", oof, SPEC)["prediction"]
    assert made_of["view_mean"] == "prob"
    assert made_of["folds"] == folds


def git(folder: Path, *words: str) -> str:
    who = ["-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit on branch a/b; the kit lies in it, we work elsewhere."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "a/b")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
    monkeypatch.setattr(provenance, "CHECKOUT", folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


@pytest.mark.parametrize("state", ["branch", "packed", "detached", "worktree", "packed worktree"])
def test_the_commit_is_that_of_the_kit_s_own_checkout(
    tmp_path: Path,
    checkout: Path,
    unlabelled: PredictionFile,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
) -> None:
    place = checkout
    if "worktree" in state:
        place = tmp_path / "tree"
        git(checkout, "worktree", "add", "--quiet", "-b", "c", str(place))
        git(place, "commit", "--quiet", "--allow-empty", "-m", "second")
        monkeypatch.setattr(provenance, "CHECKOUT", place)
    if "packed" in state:
        git(checkout, "pack-refs", "--all")
    if state == "detached":
        git(checkout, "checkout", "--quiet", "--detach")
    path = submission.write(unlabelled, tmp_path / "s.csv")
    assert submission.read_manifest(path)["git_commit"] == git(place, "rev-parse", "HEAD")


def test_a_repository_in_the_working_directory_runs_nothing(
    tmp_path: Path, unlabelled: PredictionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gift").mkdir()
    monkeypatch.chdir(tmp_path / "gift")
    git(tmp_path / "gift", "init", "--quiet")
    Path("config.yaml").write_text("epochs: 1\n")
    git(tmp_path / "gift", "add", "config.yaml")
    git(tmp_path / "gift", "commit", "--quiet", "-m", "first")
    program = tmp_path / "gift" / "program"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    program.chmod(0o755)
    git(tmp_path / "gift", "config", "core.fsmonitor", str(program))
    git(tmp_path / "gift", "status")
    assert (tmp_path / "ran").exists(), "git itself runs it"
    (tmp_path / "ran").unlink()
    path = submission.write(unlabelled, tmp_path / "s.csv")
    assert not (tmp_path / "ran").exists()
    commit = git(tmp_path / "gift", "rev-parse", "HEAD")
    assert submission.read_manifest(path)["git_commit"] != commit


def test_writing_again_renews_the_entries_and_keeps_those_of_others(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    path = submission.write(unlabelled, tmp_path / "s.csv")
    update_manifest(path, uploads=[{"ref": 3}])
    submission.write(unlabelled, path, competition="inaturalist-2019-fgvc6")
    manifest = submission.read_manifest(path)
    assert manifest["uploads"] == [{"ref": 3}]
    assert manifest["competition"] == "inaturalist-2019-fgvc6"
    assert manifest["sha256"] == sha256(path)


def test_the_command_says_how_to_estimate_the_score_and_the_estimate_what_it_assumes(
    tmp_path: Path, unlabelled: PredictionFile, capsys: pytest.CaptureFixture[str]
) -> None:
    val = made(tmp_path, "val", labels=LABELS, split="val")
    out = tmp_path / "s.csv.gz"
    assert main(["submission", "write", str(unlabelled.path), "--out", str(out)]) == 0
    wrote, hint = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {out}"
    assert hint.endswith(f": inat submission estimate {unlabelled.path}")
    for words in ([], ["--on", str(val.path)]):
        assert main(["submission", "estimate", str(unlabelled.path), *words]) == 0
        first, assumption, balanced = capsys.readouterr().out.splitlines()
        assert f"on the 30 unseen photos of {val.path}" in first
        assert "holds if the test photos have the species mix of these photos" in assumption
        assert "mean over species" in balanced


# --- the score to expect ----------------------------------------------------------------------


def wrong_at(prediction: PredictionFile, k: int) -> list[int]:
    """1 for each photo whose species is not among the first k guesses."""
    errors = []
    for row, label in zip(prediction.logits.tolist(), prediction.labels.tolist(), strict=True):
        guesses = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        errors.append(0 if label in guesses else 1)
    return errors


def estimated(prediction: PredictionFile, **options: Any) -> Estimate:
    found = estimate_score(prediction, **options)
    assert found.metric == "top-3 error"
    return found


def refuses_to_estimate(prediction: PredictionFile) -> bool:
    with pytest.raises(InputError, match="no labelled prediction of the same making"):
        estimate_score(prediction)
    return True


def test_on_unseen_photos_the_estimate_is_their_mean_error(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    val = made(tmp_path, "val", labels=LABELS, split="val")
    found = estimated(unlabelled)
    errors = wrong_at(val, 3)
    assert found.expected.value == pytest.approx(sum(errors) / 30)
    assert 0 <= found.expected.low < found.expected.value < found.expected.high <= 1
    assert (found.photos, found.role) == (30, "unseen")
    assert found.prediction == str(val.path)
    assert found.species_without_photo == 0
    whole = found.expected
    assert found.lines()[0] == (
        f"expected top-3 error: {whole.value:.4f} (95 % interval {whole.low:.4f} to "
        f"{whole.high:.4f}) on the 30 unseen photos of {val.path}"
    )


def test_for_a_balanced_test_it_is_the_mean_over_species(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    labels = [0] * 20 + [1] * 6 + [2] * 4
    held = made(tmp_path, "holdout", labels=labels, split="holdout", role="held out")
    found = estimated(unlabelled)
    errors = wrong_at(held, 3)
    by_species = [np.mean(errors[:20]), np.mean(errors[20:26]), np.mean(errors[26:])]
    assert found.expected.value == pytest.approx(np.mean(errors))
    assert found.balanced == accuracy_interval(np.array(errors, bool), np.array(labels))
    assert found.balanced is not None
    assert found.balanced.value == pytest.approx(np.mean(by_species))
    assert found.lines()[0].endswith(
        f"on the 30 held out photos of {held.path}; 2 species have none there"
    )
    assert f"mean over species: {found.balanced.value:.4f} (95 %" in found.lines()[2]


def test_a_choice_made_on_the_photos_is_told(tmp_path: Path, unlabelled: PredictionFile) -> None:
    roles = ["held out"] * 29 + ["chosen on"]
    made(tmp_path, "holdout", labels=LABELS, split="holdout", role=roles)
    found = estimated(unlabelled)
    assert found.role == "chosen on"
    assert found.lines()[0].endswith("holdout; chosen on them, it flatters")


def test_unseen_photos_come_before_held_out_ones_and_many_before_few(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    few = slice(0, 10)
    made(tmp_path, "a", labels=LABELS, split="holdout", role="chosen on")
    assert estimated(unlabelled).prediction == str(tmp_path / "a")
    made(tmp_path, "b", logits=RNG_LOGITS[few], labels=LABELS[few], role="held out")
    assert estimated(unlabelled).prediction == str(tmp_path / "b")
    made(tmp_path, "c", labels=LABELS, split="holdout", role="held out")
    assert estimated(unlabelled).prediction == str(tmp_path / "c")
    made(tmp_path, "d", logits=RNG_LOGITS[few], labels=LABELS[few], split="val")
    assert estimated(unlabelled).prediction == str(tmp_path / "d")


def test_a_prediction_with_labels_is_its_own_estimate(tmp_path: Path) -> None:
    labelled = made(tmp_path, "test", labels=LABELS)
    assert estimated(labelled).prediction == str(labelled.path)
    assert estimated(labelled).expected.value == pytest.approx(np.mean(wrong_at(labelled, 3)))


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_sha256": "c2"},
        {"views": [{"kind": "flip"}]},
        {"adjusted": [{"of": "x", "tau": 1.0}]},
        {"logits_prior": [0.2] * 5},
        {"role": ["unseen"] * 29 + ["trained on"]},
        {"labels": [-1, *LABELS[1:]]},
        {"category_ids": [2, 10, 28, 56, 95]},
        {"logits": np.delete(RNG_LOGITS, 4, axis=1), "labels": [0] * 30},
    ],
    ids=str,
)
def test_no_estimate_comes_from_what_was_made_otherwise_or_says_nothing(
    tmp_path: Path, unlabelled: PredictionFile, options: dict[str, Any]
) -> None:
    made(tmp_path, "val", **{"labels": LABELS, "split": "val"} | options)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "meta.json").write_text("{")
    assert refuses_to_estimate(unlabelled)


def test_adjusted_predictions_are_alike_whatever_file_each_was_made_of(tmp_path: Path) -> None:
    test = made(tmp_path, "test-adjusted", adjusted=[{"of": "runs/test", "tau": 1.0}])
    val = made(tmp_path, "val-adjusted", labels=LABELS, adjusted=[{"of": "runs/val", "tau": 1.0}])
    assert estimated(test).prediction == str(val.path)


def test_the_geo_prior_s_weights_and_not_its_path_make_predictions_alike(tmp_path: Path) -> None:
    def placed(name: str, digest: str, n_without: int, **options: Any) -> PredictionFile:
        step = {"of": f"runs/{name}", "geo": f"geo/{name}", "geo_checkpoint_sha256": digest}
        return made(tmp_path, name, adjusted=[{**step, "n_without_place": n_without}], **options)

    test = placed("test", "g1", 3)
    placed("val-other", "g2", 3, labels=LABELS)
    assert refuses_to_estimate(test)
    val = placed("val", "g1", 5, labels=LABELS)
    assert estimated(test).prediction == str(val.path)


def test_ensembles_are_alike_whose_members_were_made_and_weighed_alike(tmp_path: Path) -> None:
    def members(split: str, weight: float) -> list[dict[str, Any]]:
        return [
            {"prediction": f"runs/{run}/{split}", "split": split, "weight": w, "run": run}
            for run, w in (("a", weight), ("b", 1 - weight))
        ]

    test = made(tmp_path, "test", members=members("test", 0.5), fit={"photos": 3})
    made(tmp_path, "val-1", labels=LABELS, members=members("val", 0.25))
    assert refuses_to_estimate(test)
    made(tmp_path, "val-2", labels=LABELS, members=members("val", 0.5))
    assert estimated(test).prediction == str(tmp_path / "val-2")


def test_the_prediction_to_estimate_on_can_be_named(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    oof = made(tmp_path / "folds", "oof", labels=LABELS, role="held out", checkpoint_sha256="c9")
    assert estimate_score(unlabelled.path, on=oof.path).prediction == str(oof.path)
    with pytest.raises(InputError) as caught:
        estimate_score(unlabelled, on=unlabelled)
    assert str(caught.value) == (
        f"--on {unlabelled.path}: its photos have no labels, or were trained on; predict val or "
        "holdout"
    )
    other = made(tmp_path, "other", labels=LABELS, category_ids=[1, 2, 3, 4, 5])
    with pytest.raises(InputError) as caught:
        estimate_score(unlabelled, on=other)
    assert str(caught.value) == f"--on {other.path}: its species are not {unlabelled.path}'s"


def test_macro_f1_is_estimated_by_scikit_learn_s_value(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    val = made(tmp_path, "val", labels=LABELS, split="val")
    found = estimate_score(unlabelled, competition="herbarium-2021-fgvc8")
    guesses = val.logits.argmax(axis=1)
    assert found.metric == "macro F1"
    assert found.expected.value == pytest.approx(f1_score(LABELS, guesses, average="macro"))
    assert (found.balanced, len(found.lines())) == (None, 2)


@pytest.mark.parametrize("n_wrong", [0, 3, 30])
def test_the_estimate_of_unseen_photos_has_the_interval_that_evaluate_gives(
    n_wrong: int, tmp_path: Path, unlabelled: PredictionFile
) -> None:
    logits = np.where(np.arange(5) == np.array(LABELS)[:, None], 9.0, np.arange(5))
    logits[np.arange(30) < n_wrong] *= -1
    val = made(tmp_path, "val", logits=logits, labels=LABELS, split="val")
    found, evaluated = estimated(unlabelled), evaluate(val).top3_error_interval
    assert found.expected.value == pytest.approx(n_wrong / 30)
    assert (found.expected.low, found.expected.high) == pytest.approx(
        (evaluated.low, evaluated.high), abs=1e-6
    )
    assert 0 <= found.expected.low < found.expected.high <= 1


# --- choices, other runs and other making --------------------------------------------------------


def adjusted(source: PredictionFile, out: Path, **options: Any) -> PredictionFile:
    return adjust(source, out, **options)


def test_photos_that_a_tau_was_searched_on_are_chosen_on_for_the_submission_too(
    tmp_path: Path, unlabelled: PredictionFile
) -> None:
    holdout = made(tmp_path, "holdout", labels=LABELS, split="holdout", role="held out")
    test = adjusted(unlabelled, tmp_path / "test-tau", tau="search", fit=holdout)
    tau = test.meta.adjusted[0].tau
    by_hand = adjusted(holdout, tmp_path / "elsewhere" / "by-hand", tau=tau)
    for on in (by_hand, holdout):
        found = estimated(test, on=on)
        assert found.role == "chosen on"
        assert found.lines()[0].endswith("in history of adjustments, and so may the score")
        assert "chosen on them, it flatters" in found.lines()[0]
    # A part of them, and what is made of the submission's prediction later.
    rows = slice(0, 7)
    ids = holdout.ids[rows].tolist()
    part = made(tmp_path, "part", logits=RNG_LOGITS[rows], labels=LABELS[rows], ids=ids)
    later = adjusted(test, tmp_path / "later", target="uniform")
    pair = make_prediction(tmp_path / "b", RNG_LOGITS[:, ::-1], run="runs/b")
    both = ensemble([test, pair], tmp_path / "both")
    for submitted in (test, later, both):
        assert estimated(submitted, on=part).role == "chosen on"
    # Others have nothing to do with it.
    val = made(tmp_path, "val", labels=LABELS, split="val", ids=range(5000, 5030))
    assert estimated(test, on=val).role == "unseen"


def test_photos_that_weights_and_temperatures_were_fitted_on_are_chosen_on(tmp_path: Path) -> None:
    members = [made(tmp_path / n, "test", run=n, checkpoint_sha256=n) for n in "ab"]
    held = [
        made(tmp_path / n, "holdout", labels=LABELS, role="held out", run=n, checkpoint_sha256=n,
             ids=range(900, 930))
        for n in "ab"
    ]  # fmt: skip
    both = ensemble(members, tmp_path / "both", fit=held)
    by_hand = ensemble(held, tmp_path / "by-hand")
    assert estimated(both, on=by_hand).role == "chosen on"
    with pytest.raises(InputError, match="something was chosen"):
        evaluate(ensemble(held, tmp_path / "fitted", fit=held))


def test_photos_that_the_checkpoint_was_chosen_on_are_chosen_on_for_every_split(
    world: Path, tmp_path: Path
) -> None:
    run = train_tiny(tmp_path / "run", world)
    best = inat.predict(run.path, "test", checkpoint="best")
    holdout = inat.predict(run.path, "holdout")
    assert set(holdout.photos["role"]) == {"held out"}
    assert len(holdout.chosen_keys) == 0
    assert best.chosen_keys.tolist() == sorted(holdout.photos["key"].tolist())
    found = estimated(best, on=holdout)
    assert found.role == "chosen on"
    assert "checkpoint" in found.made_otherwise


def test_a_comparison_refuses_photos_that_something_was_chosen_on_for_one_of_the_two(
    tmp_path: Path,
) -> None:
    holdout = made(tmp_path, "holdout", labels=LABELS, split="holdout", role="held out")
    others = made(
        tmp_path, "others", labels=LABELS, split="holdout", role="held out", ids=range(900, 930)
    )
    tuned = adjusted(others, tmp_path / "tuned", tau="search", fit=holdout)
    assert set(tuned.photos["role"]) == {"held out"}
    plain = make_prediction(
        tmp_path / "plain", RNG_LOGITS, LABELS, ids=range(900, 930), role="held out"
    )
    compare(plain, tuned)
    on_holdout = ensemble([tuned, plain], tmp_path / "both")
    assert evaluate(on_holdout).notes is not None
    searched = adjusted(holdout, tmp_path / "searched", tau="search")
    for pair in ((holdout, searched), (searched, holdout)):
        with pytest.raises(InputError, match="on 30 of its photos something was chosen") as told:
            compare(*pair)
        assert "--chosen-here" in str(told.value)
        compare(*pair, chosen_here=True)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"checkpoint_sha256": "c9"}, "run"),
        ({"views": [{"kind": "flip"}]}, "views"),
        ({"weights": "ema"}, "weights"),
        ({"adjusted": [{"of": "x", "tau": 1.0}]}, "history of adjustments"),
    ],
)
def test_what_is_made_otherwise_in_the_prediction_that_is_estimated_on_is_said(
    options: dict[str, Any], what: str, tmp_path: Path, unlabelled: PredictionFile
) -> None:
    val = made(tmp_path, "val", labels=LABELS, split="val", **options)
    found = estimated(unlabelled, on=val)
    assert found.made_otherwise == (what,)
    assert found.lines()[0].endswith(
        f"; that prediction differs from the submitted one in {what}, and so may the score"
    )
    alike = made(tmp_path, "alike", labels=LABELS, split="val")
    assert estimated(unlabelled, on=alike).made_otherwise == ()


# --- a CSV and a manifest that do not belong together -------------------------------------------


def refused_everywhere(csv: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["check", csv, "--data.root", world],
        ["check", csv, "--data.root", world, "--competition", SPEC.slug],
        ["score", csv, "--solution", world / "solution.csv"],
        ["upload", csv, "--data.root", world, "-m", "x"],
    ):
        assert main(["submission", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"inat: {csv}: is not the file that")
        assert "write it again" in said.err


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_a_csv_of_other_bytes_than_its_manifest_says_is_refused(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = load_split(world, "test")
    logits = np.random.default_rng(0).normal(size=(len(split.image_ids), 4))
    ids = split.image_ids.tolist()
    a = make_prediction(tmp_path / "a", logits, ids=ids)
    b = make_prediction(tmp_path / "b", -logits, ids=ids)
    path = submission.write(a, tmp_path / name)
    of_a = path.read_bytes()
    assert submission.check(path, world).n_rows == len(ids)
    submission.write(b, path)
    path.write_bytes(of_a)
    refused_everywhere(path, world, capsys)
    submission.manifest_path(path).unlink()
    assert submission.check(path, world).n_rows == len(ids)


def test_a_kill_while_a_submission_is_written_never_leaves_a_manifest_that_passes(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = load_split(world, "test")
    logits = np.random.default_rng(0).normal(size=(len(split.image_ids), 4))
    a, b = (
        make_prediction(tmp_path / name, sign * logits, ids=split.image_ids.tolist())
        for name, sign in (("a", 1), ("b", -1))
    )
    path = tmp_path / "s.csv"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    # Before anything was there: a manifest without a CSV, or nothing; never the reverse.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        submission.write(a, path)
    assert not path.exists()
    submission.write(a, path)
    real = update_manifest
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(csv_file, "update_manifest", lambda *w, **k: (real(*w, **k), killed()))
        submission.write(b, path)
    refused_everywhere(path, world, capsys)


def test_a_manifest_of_another_file_does_not_decide_by_which_rules_one_is_checked(
    world: Path, tmp_path: Path
) -> None:
    ids = load_split(world, "test").image_ids.tolist()
    a = make_prediction(tmp_path / "a", np.zeros((len(ids), 4)), ids=ids)
    path = submission.write(a, tmp_path / "s.csv")
    update_manifest(path, competition="inaturalist-2019-fgvc6", sha256="0" * 64)
    with pytest.raises(InputError, match="is not the file that"):
        submission.check(path, world)

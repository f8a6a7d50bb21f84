"""The list of runs: rows, order, conditions; what is broken is named and keeps nothing back."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predictions import make_prediction

from inat.cli.app import main
from inat.config.reading import build
from inat.core.errors import InputError
from inat.core.files import write_json
from inat.evaluation import evaluate
from inat.runs.facts import RunFacts, SoupFacts, StageTwoFacts, write_run_facts
from inat.runs.listing import list_runs
from inat.runs.run import Run, create_run


def made_run(path: Path, loss: str = "ce", seed: int = 0, epochs_done: int = 2) -> Run:
    config = build({"epochs": 2, "seed": seed, "loss": {"name": loss}}, "test")
    run = create_run(path, config)
    write_json(
        run.checkpoint("last") / "state.json", {"epoch": epochs_done, "step": 0, "weights": {}}
    )
    return run


def scored(run: Run, name: str, guesses: list[int]) -> dict[str, Any]:
    """Evaluates a prediction of three species with 200, 50 and 5 training photos, two each."""
    path = run.prediction(name)
    prediction = make_prediction(path, 9 * np.eye(3)[guesses], [0, 0, 1, 1, 2, 2], [200, 50, 5])
    found = evaluate(prediction)
    found.save(path / "evaluation")
    return found.to_dict()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("list") / "runs"
    ce = made_run(folder / "ce")
    ce.metrics_path.write_text(
        '{"kind":"validation","epoch":1,"mean_class_accuracy":0.25}\n'
        '{"kind":"validation","epoch":2,"mean_class_accuracy":0.5}\n'
        '{"kind":"train","epoch":2}\n{"kind":"valida'
    )
    scored(ce, "val", [0, 0, 1, 1, 0, 0])
    scored(ce, "test", [0, 0, 1, 0, 0, 0])
    scored(made_run(folder / "deep" / "la", "logit_adjusted", seed=1), "val", [0, 1, 1, 1, 2, 2])
    made_run(folder / "new", epochs_done=1)
    (folder / "notes").mkdir()
    return folder


def names(table: pd.DataFrame) -> list[tuple[str, str | None]]:
    predictions = table["prediction"].astype(object).where(table["prediction"].notna(), None)
    return [(Path(run).name, each) for run, each in zip(table["run"], predictions, strict=True)]


EVERY = [("ce", "test"), ("ce", "val"), ("la", "val"), ("new", None)]


def test_every_evaluated_prediction_is_a_row_and_so_is_a_run_without_any(runs: Path) -> None:
    table = list_runs(runs)
    assert names(table) == EVERY
    assert table["run"].tolist()[2] == str(runs / "deep" / "la")
    assert table["epochs"].tolist() == ["2/2", "2/2", "2/2", "1/2"]
    assert table["method"].tolist() == ["ce", "ce", "logit_adjusted", "ce"]
    assert table["held_out"].tolist()[:2] == [0.5, 0.5]
    assert table["held_out"].isna().tolist() == [False, False, True, True]


def test_the_scores_are_those_of_metrics_json(runs: Path) -> None:
    row = list_runs(runs).iloc[1]
    metrics = evaluate(runs / "ce" / "predictions" / "val").to_dict()
    assert row["n_images"] == 6
    assert row["top1"] == metrics["top1"]["value"] == pytest.approx(4 / 6)
    assert row["top3_error"] == metrics["top3_error"]
    assert row["mean_class_accuracy"] == metrics["mean_class_accuracy"]["value"]
    assert row["macro_f1"] == metrics["means"]["macro_f1"]
    assert [row[band] for band in ("many", "medium", "few")] == [1, 1, 0]
    assert row["ece"] == metrics["reliability"]["all"]["ece"]


def test_scores_are_sorted_best_first_and_unknown_ones_last(runs: Path) -> None:
    assert names(list_runs(runs, sort="few"))[0] == ("la", "val")
    assert names(list_runs(runs, sort="top1")) == [EVERY[2], EVERY[1], EVERY[0], EVERY[3]]
    assert names(list_runs(runs, sort="top1", reverse=True)) == [
        EVERY[0], EVERY[1], EVERY[2], EVERY[3]
    ]  # fmt: skip
    assert names(list_runs(runs, sort="ece"))[-1] == ("new", None)
    assert names(list_runs(runs, sort="run", reverse=True))[0] == ("new", None)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (["prediction=val"], [1, 2]),
        (["prediction!=val"], [0, 3]),
        (["method=logit*"], [2]),
        (["few>0.5"], [2]),
        (["few >= 0"], [0, 1, 2]),
        (["top1<0.6"], [0]),
        (["seed<=0", "prediction=val"], [1]),
        (["seed=1"], [2]),
        (["prediction=none"], []),
    ],
)
def test_conditions_keep_the_rows_that_meet_them_all(
    runs: Path, where: list[str], rows: list[int]
) -> None:
    assert names(list_runs(runs, where=where)) == [EVERY[row] for row in rows]


def test_predictions_of_several_runs_together_are_listed_too(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    scored(Run(runs / "folds"), "oof", [0, 0, 1, 1, 2, 2])
    made_run(runs / "folds" / "fold_1")
    table = list_runs(runs)
    assert names(table) == [("folds", "oof"), ("fold_1", None)]
    assert table["top1"].tolist()[0] == 1


def test_a_run_says_how_it_was_made_and_how_many_epochs_its_stages_plan(tmp_path: Path) -> None:
    config = build({"epochs": 4, "stages": [{"epochs": 2}, {"epochs": 3}]}, "test")
    state = {"epoch": 5, "step": 0, "weights": {}}
    write_json(create_run(tmp_path / "a", config).checkpoint("last") / "state.json", state)
    for name, made in (
        ("b", {"soup": SoupFacts("uniform", [])}),
        ("c", {"stage_two": StageTwoFacts(method="crt", run="runs/a")}),
    ):
        facts = RunFacts(
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), weights_source="none",
            precision="fp32", device="cpu", trained="0", category_ids=[2], **made,
        )  # fmt: skip
        write_run_facts(made_run(tmp_path / name, epochs_done=30).path, facts)
    table = list_runs(tmp_path)
    assert table["method"].tolist() == ["ce", "soup", "crt"]
    assert table["epochs"].tolist() == ["5/9", "30", "30"]


def test_what_is_broken_is_noted_in_its_row(runs: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(runs, tmp_path / "runs")
    config = runs / "new" / "config.yaml"
    config.write_text("epoch: 3\n")
    metrics = runs / "deep" / "la" / "predictions" / "val" / "evaluation" / "metrics.json"
    metrics.write_text('{"top1": 3}')
    table = list_runs(runs)
    assert names(table) == [EVERY[0], EVERY[1], EVERY[2], EVERY[3]]
    assert table["note"].tolist()[2:] == [
        f"{metrics}: of another version; evaluate it again",
        f"{config}: unknown key epoch; did you mean epochs?",
    ]
    metrics.write_text("{")
    assert list_runs(runs)["note"].tolist()[2].startswith(f"{metrics}: not JSON, or cut off")
    assert list_runs(runs)["method"].tolist()[2] == "logit_adjusted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "top-1"}, "sort: unknown name 'top-1'; did you mean top1? valid: backbone, "),
        ({"where": ["fw>1"]}, "where: unknown name 'fw'; did you mean few? valid: backbone, ece, "),
        ({"where": ["few"]},
         "where 'few' is no condition; write COLUMN=PATTERN or COLUMN>NUMBER (few>=0.4)"),
        ({"where": ["few>much"]}, "where 'few>much': 'much' is no number"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(runs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        list_runs(runs, **options)
    assert str(caught.value).startswith(message)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        list_runs(tmp_path / "none")
    assert str(caught.value) == (
        f"{tmp_path / 'none'}: there is no such folder; inat train makes runs in runs/"
    )


def test_the_command_prints_a_table_or_all_columns_as_csv(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["runs", str(runs), "--sort", "few", "--where", "prediction=val"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["run", "method"]
    assert lines[1].split()[1:] == [
        "logit_adjusted", "2/2", "–", "val", "83.3", "83.3", "50.0", "100.0", "100.0"
    ]  # fmt: skip
    assert len(lines) == 3
    assert main(["runs", str(runs), "--csv"]) == 0
    (tmp_path / "runs.csv").write_text(capsys.readouterr().out)
    expected = list_runs(runs)
    again = pd.read_csv(tmp_path / "runs.csv")
    assert list(again.columns) == list(expected.columns)
    assert again["top1"].tolist() == pytest.approx(expected["top1"].tolist(), nan_ok=True)


def test_linked_runs_are_listed_each_run_once(runs: Path, tmp_path: Path) -> None:
    """A link out of the folder is followed; one to a run that is listed anyway is not."""
    made_run(tmp_path / "large" / "far")
    folder = tmp_path / "here"
    made_run(folder / "near")
    (folder / "linked").symlink_to(tmp_path / "large" / "far")
    (folder / "again").symlink_to(folder / "near")
    (folder / "round").symlink_to(folder)
    (folder / "group").symlink_to(tmp_path / "large")
    (tmp_path / "large" / "back").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nothing")
    found = [Path(path).relative_to(folder).as_posix() for path in list_runs(folder)["run"]]
    assert found == ["group/far", "linked", "near"]
    assert list(list_runs(runs)["run"]) == list(list_runs(runs.resolve())["run"])

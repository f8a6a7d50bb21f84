"""Names that strangers wrote, wherever they are shown: as they are, and harmless."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from predictions import make_prediction

from inat.cli.app import main
from inat.core.arrays import csv_cells
from inat.core.errors import shown
from inat.core.progress import say
from inat.evaluation import evaluate
from inat.runs.listing import list_runs

EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b1;1H\u202e\nall species 99.9 %"
HARMLESS = r"\x1b]0;PWNED\x07\x1b[2J\x9b1;1H\u202e\nall species 99.9 %"
FORMULAS = ['=HYPERLINK("http://x","y")', "+1", "-1", "@SUM(1)", "\t=1", "\r=1"]


def controls(text: str) -> set[str]:
    """Characters that do something to a terminal, but for line ends."""
    return {
        c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066") and c != "\n"
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EVIL, HARMLESS),
        ("a\tb\r\x00\x7f\x85\u2028\u2069\u061c", r"a\tb\r\x00\x7f\x85\u2028\u2069\u061c"),
        ("Ястреб & 鷹 é [b] 👩‍🌾", "Ястреб & 鷹 é [b] 👩‍🌾"),
    ],
)
def test_control_characters_are_shown_and_letters_stay(text: str, expected: str) -> None:
    assert shown(text) == expected


def named(path: Path, name: str, guessed: int = 0) -> Path:
    """Two species, whose first has this name; all photos are taken for one."""
    logits = np.eye(2)[[guessed] * 4]
    columns = {"name": [name, "b"], "lineage": [name, "b"], "supercategory": [name, "b"]}
    make_prediction(path, logits, [0, 0, 1, 1], columns=columns)
    return path


def test_names_reach_the_terminal_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = named(tmp_path / f"p{EVIL[:5]}[b]", EVIL), named(tmp_path / "q", EVIL, 1)
    assert main(["evaluate", str(one), str(other)]) == 0
    assert main(["compare", str(one), str(other)]) == 0
    assert main(["evaluate", str(tmp_path / f"gone{EVIL}")]) == 2
    say(EVIL)
    told = capsys.readouterr()
    assert controls(told.out) == controls(told.err) == set()
    assert HARMLESS in told.out
    assert HARMLESS in told.err
    assert not [line for line in told.out.splitlines() if line.startswith("all species 99.9")]


def test_two_runs_whose_names_hold_markup_are_two_rows_as_they_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x[b]", "x", "[/red]", ":smile:"):
        main(["evaluate", str(named(Path("runs") / name / "predictions" / "val", "a"))])
    told = capsys.readouterr()
    assert "runs/x[b]/predictions/val" in told.out
    assert main(["runs"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == ["runs/:smile:", "runs/[/red]", "runs/x", "runs/x[b]"]


def broken_run(path: Path, **files: str) -> None:
    path.mkdir(parents=True)
    for name, content in ({"config_yaml": "seed: 1\n", "environment_json": "{}"} | files).items():
        (path / name.replace("_", ".")).write_text(content)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"metrics_jsonl": "7\n"}, "metrics.jsonl: line 1 is not what a training writes"),
        ({"metrics_jsonl": '{"kind": "validation"}\n'}, "metrics.jsonl: line 1 is not"),
        ({"metrics_jsonl": "[]\n{}\n"}, "metrics.jsonl: line 2 is not"),
        ({"config_yaml": '"[/x]": 1\n'}, "config.yaml"),
        ({"config_yaml": "seed: [\n"}, "config.yaml"),
        ({"model_json": "7"}, "model.json"),
        ({"model_json": '{"stage_two": 7}'}, "model.json"),
    ],
)
def test_a_broken_run_is_one_row_that_says_what_is_wrong(
    tmp_path: Path, files: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_run(tmp_path / "a" / "broken", **files)
    broken_run(tmp_path / "a" / "whole")
    table = list_runs(tmp_path / "a").set_index("run")
    assert said in table.loc[str(tmp_path / "a" / "broken"), "note"]
    assert pd.isna(table.loc[str(tmp_path / "a" / "whole"), "note"])
    assert main(["runs", str(tmp_path / "a")]) == 0
    assert "whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    "metrics", ['{"top1": 1}', "7", '{"n_images": [], "top1": {"value": "x"}}', "{"]
)
def test_a_broken_evaluation_is_one_row(tmp_path: Path, metrics: str) -> None:
    folder = tmp_path / "a" / "predictions" / "val" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(metrics)
    table = list_runs(tmp_path)
    assert "metrics.json" in table["note"][0]


def test_a_broken_prediction_does_not_keep_the_others_from_being_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = named(tmp_path / "whole", "a"), named(tmp_path / "broken", "a")
    (broken / "ids.npy").unlink()
    assert main(["evaluate", str(broken), str(whole)]) == 2
    told = capsys.readouterr()
    assert f"saved {whole}/evaluation/metrics.json" in told.out
    assert (whole / "evaluation" / "metrics.json").is_file()
    assert told.err == f"inat: {broken}/ids.npy: there is no such file; predict again\n"


# --- CSV -------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, formula: str) -> None:
    evaluate(named(tmp_path / "p", formula)).save(tmp_path)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'" + formula.replace("\r", r"\r") in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]


def test_numbers_stay_numbers_and_other_texts_as_they_are() -> None:
    table = pd.DataFrame({"a": [-1, 2], "b": [-0.5, np.nan], "c": ["a=b", None]})
    pd.testing.assert_frame_equal(csv_cells(table), table)


def test_the_csv_of_runs_holds_no_formula_and_no_control_character(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named(Path("runs") / "=1\x1b[2J" / "predictions" / "val", "a")
    assert main(["runs", "runs", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(r"runs/=1\x1b[2J,")
    monkeypatch.chdir("runs")
    assert main(["runs", ".", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(r"'=1\x1b[2J,")

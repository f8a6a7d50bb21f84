"""The whole road through the command line, with the words that users' scripts are written with."""

from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
from worlds import make_world

import inat
from inat.cli.app import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surface")
    make_world(folder / "DATA", counts=(30, 22, 8, 3, 2))
    (folder / "la.yaml").write_text(
        "epochs: 2\n"
        "batch_size: 8\n"
        "data: {holdout: none, workers: 1}\n"
        "transforms: {image_size: 32}\n"
        "model: {backbone: test_efficientnet, weights: none}\n"
        "loss: {name: logit_adjusted}\n"
        "optim: {warmup_epochs: 0.5, lr_per_256: 0.05}\n"
    )
    return folder


def run(*words: str) -> int:
    return main(list(words))


def test_the_six_lines_lead_from_photos_to_a_score(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert run("train", "la.yaml", "--data.root", "DATA", "--run", "runs/mini_la") == 0
    assert "next: inat predict runs/mini_la --split test" in capsys.readouterr().out
    assert run("predict", "runs/mini_la", "--split", "test") == 0
    assert capsys.readouterr().out == "runs/mini_la/predictions/test: 10 photos x 5 species\n"
    test = "runs/mini_la/predictions/test"
    assert run("evaluate", test, "--solution", "DATA/solution.csv") == 0
    shown = capsys.readouterr().out
    assert f"saved {test}/evaluation/metrics.json, {test}/evaluation/per_class.csv" in shown
    assert "–" in shown  # no species has more than 100 photos: the many band is empty
    metrics = orjson.loads(Path(test, "evaluation/metrics.json").read_bytes())
    assert metrics["bands"]["many"] is None
    per_class = pd.read_csv(Path(test, "evaluation/per_class.csv"))
    assert per_class["train_count"].tolist() == [30, 22, 8, 3, 2]
    assert per_class["hits"].sum() / 10 == pytest.approx(metrics["top1"]["value"])
    assert run("submission", "write", test, "--out", "submissions/mini_la.csv") == 0
    assert capsys.readouterr().out == (
        f"wrote submissions/mini_la.csv\nthe score to expect: inat submission estimate {test}\n"
    )
    assert run("submission", "estimate", test) == 2
    assert capsys.readouterr().err == (
        f"inat: no labelled prediction of the same making lies beside {test}; predict val or "
        "holdout in the same way, or name one by --on\n"
    )
    assert run("submission", "check", "submissions/mini_la.csv", "--data.root", "DATA") == 0
    assert capsys.readouterr().out == "submissions/mini_la.csv: 10 rows, nothing wrong\n"
    csv = "submissions/mini_la.csv"
    assert run("submission", "score", csv, "--solution", "DATA/solution.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    errors = [float(line.split()[-1]) for line in lines]
    assert [line.split()[0] for line in lines] == ["public", "private"]
    # Five public and five private rows: their mean is the top-3 error of the evaluation.
    assert np.mean(errors) == pytest.approx(metrics["top3_error"], abs=1e-5)


def test_adjust_photos_and_several_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["--data.root", "DATA", "--run", "runs/ce", "--loss.name", "ce"]
    assert run("train", "la.yaml", *words) == 0
    assert run("predict", "runs/ce", "--split", "val") == 0
    val = "runs/ce/predictions/val"
    assert run("adjust", val, "--tau", "1", "--out", val + "-adjusted") == 0
    assert run("adjust", val + "-adjusted", "--tau", "1", "--out", val + "-twice") == 0
    assert "this changes nothing: the logits carry a uniform prior already" in (
        capsys.readouterr().out
    )
    plain, moved = inat.read_prediction(val), inat.read_prediction(val + "-adjusted")
    counts = np.array([30, 22, 8, 3, 2])
    by_hand = plain.logits.astype(np.float64) - np.log(counts / counts.sum())
    by_hand -= by_hand.max(axis=1, keepdims=True)
    assert np.abs(moved.logits - by_hand).max() < 0.01
    again = inat.open_run("runs/ce").predict("val").adjust(tau=1, overwrite=True)
    assert again.path == Path(val + "-adjusted")
    assert np.array_equal(again.logits, moved.logits)
    assert run("evaluate", val, val + "-adjusted", "--band-edges", "3", "22") == 0
    shown = capsys.readouterr().out
    assert val + "-adjusted" in shown
    assert "1 species" in shown  # more than 22, and less than 3 photos: one species each
    assert run("predict", "runs/ce", "--photos", "DATA/test2018") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("DATA/test2018/")
    assert lines[0].count("%") == 3


def test_import_synth_and_describe(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["--train", "DATA/train_val2018", "--out", "mine", "--val-share", "0"]
    assert run("data", "import", *words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "mine: 2 species, 80 train, 0 val, 0 test"
    assert printed[-1].startswith("next: inat train ")
    assert run("data", "describe", "mine", "--plot", "tail.png") == 0
    assert "photos            train 80" in capsys.readouterr().out
    assert Path("tail.png").read_bytes()[:4] == b"\x89PNG"
    assert run("data", "describe", "mine", "--plot", "tail.txt") == 2
    assert capsys.readouterr().err.endswith("the picture is a PNG; let its name end in .png\n")
    assert run("data", "synth", "--out", "w", "--profile", "tiny", "--photos", "5") == 2
    assert "inat2018" in capsys.readouterr().err


def test_nothing_that_is_not_ours_is_overwritten(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["train", "la.yaml", "--data.root", "DATA", "--run", "thesis", "--overwrite"]
    Path("thesis").mkdir()
    Path("thesis/config.yaml").write_text("title: mine\n")
    assert run(*words) == 2
    assert "holds no run" in capsys.readouterr().err
    assert Path("thesis/config.yaml").read_text() == "title: mine\n"
    base = ["train", "la.yaml", "--data.root", "DATA", "--run", "runs/kept", "--epochs", "1"]
    assert run(*base) == 0
    before = Path("runs/kept/checkpoints/last/model.safetensors").read_bytes()
    # A mistake in the new settings does not cost the old run.
    assert run(*base, "--overwrite", "--model.backbone", "resnet5") == 2
    assert run(*base, "--overwrite", "--resume") == 2
    assert Path("runs/kept/checkpoints/last/model.safetensors").read_bytes() == before
    for name in (".", "..", "../checkpoints", "a/b"):
        assert run("predict", "runs/kept", "--split", "val", "--name", name) == 2
    assert run("predict", "runs/kept", "--split", "val") == 0
    val = "runs/kept/predictions/val"
    for out in ("runs/kept/predictions", "thesis", val):
        assert run("adjust", val, "--tau", "1", "--out", out, "--overwrite") == 2
    assert Path(val, "meta.json").is_file()
    capsys.readouterr()


def test_a_failed_start_leaves_no_run_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    base = ["train", "la.yaml", "--data.root", "DATA", "--run", "runs/typo", "--epochs", "1"]
    assert run(*base, "--model.backbone", "resnet5") == 2
    assert not Path("runs/typo").exists()
    assert run(*base) == 0


def test_a_run_knows_the_photos_it_was_trained_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    base = ["train", "la.yaml", "--run", "runs/seen", "--epochs", "1", "--data.root"]
    assert run(*base, "DATA") == 0
    make_world(place / "OTHER", counts=(30, 22, 8, 3, 2), seed=5)
    assert run(*base, "OTHER", "--resume") == 2
    assert "was trained on other photos than those of" in capsys.readouterr().err
    assert run("predict", "runs/seen", "--split", "val", "--data.root", "OTHER") == 2
    assert "not those that runs/seen was trained on; give" in capsys.readouterr().err


def test_impossible_batch_sizes_and_workers_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert run("train", "la.yaml", "--data.root", "DATA", "--run", "runs/n", "--epochs", "1") == 0
    capsys.readouterr()
    for flag, value, least in (
        ("batch_size", "0", 1),
        ("batch_size", "-4", 1),
        ("workers", "-1", 0),
    ):
        words = ["--split", "val", "--" + flag.replace("_", "-"), value]
        assert run("predict", "runs/n", *words) == 2
        line = f"inat: {flag}: {value} is less than {least}; give {least} or more\n"
        assert capsys.readouterr().err == line

"""The command line: what it prints, and with which status it leaves."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from inat.cli.app import main
from inat.config.schema import Config

VERBS = {
    "demo": "inat.run_demo",
    "data synth": "inat.synth",
    "data import": "inat.import_folders",
    "data download": "inat.download",
    "data verify": "inat.verify",
    "data pack": "inat.pack_photos",
    "data describe": "inat.describe",
    "train": "inat.train",
    "stage-two": "inat.train_stage_two",
    "soup": "inat.soup",
    "predict": "inat.predict",
    "adjust": "inat.adjust",
    "ensemble": "inat.ensemble",
    "evaluate": "inat.evaluate",
    "compare": "inat.compare",
    "runs": "inat.list_runs",
    "submission write": "inat.write_submission",
    "submission check": "inat.check_submission",
    "submission score": "inat.score_submission",
    "submission estimate": "inat.estimate_score",
    "submission upload": "inat.upload_submission",
    "submission status": "inat.submission_status",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        "epochs: 2\n"
        "batch_size: 8\n"
        "data: {holdout: none, workers: 0}\n"
        "transforms: {image_size: 32}\n"
        "model: {backbone: test_efficientnet, weights: none}\n"
        "optim: {warmup_epochs: 0.5}\n"
    )
    return path


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line that a refused command prints; the status must be 2."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_names_its_python_function(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"From Python: {VERBS[verb]}" in text


def test_a_list_of_any_length_is_written_behind_its_flag(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--optim.schedule", "step", "--optim.milestones", "1", "9", "--epochs", "5")
    assert refusal(capsys, "train", config, *words) == (
        f"inat: {config}: optim.milestones (9) must be less than epochs (5); "
        "lower the first or raise the second"
    )


def test_train_help_documents_every_field() -> None:
    # A process of its own: how wide a line is, rich finds out once.
    code = "from inat.cli.app import main; main(['train', '--help'])"
    wide = {**os.environ, "COLUMNS": "300"}
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=wide
    )
    text = shown.stdout
    n_fields = 0
    hints = get_type_hints(Config)
    for name, hint in ((field.name, hints[field.name]) for field in dataclasses.fields(Config)):
        names = [name]
        if dataclasses.is_dataclass(hint):
            names = [f"{name}.{field.name}" for field in dataclasses.fields(hint)]
        for dotted in names:
            flag = "--" + dotted.replace("_", "-")
            line = next((line for line in text.splitlines() if f" {flag} " in line), "")
            assert line, f"{flag} is not in\n{text}"
            # Behind the flag and its type stands a sentence, not an empty cell.
            assert len(line.split(flag)[1].strip(" │").split()) > 1, flag
            n_fields += 1
    assert n_fields > 35


def test_help_and_version_do_not_import_torch() -> None:
    code = (
        "import sys; from inat.cli.app import main; "
        "main(['train', '--help']); main(['--version']); "
        "assert not {'torch', 'timm', 'albumentations'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_yaml_section_data_is_read_although_data_is_a_verb(
    config: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "--data.root", str(world), "--dry-run"]) == 0
    assert "43 photos trained on, none held out" in capsys.readouterr().out


def test_a_flag_overrules_the_file(
    config: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(config), "--data.root", str(world), "--dry-run"]
    assert main([*words, "--epochs", "3", "--optim.lr-per-256", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "3 epochs x 5 = 15 steps, 120 photos" in out
    assert "peak learning rate 0.0156 (0.5 per 256, linear, batch 8)" in out
    assert "peak memory" in out


def test_an_unknown_flag_names_the_nearest(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "train", config, "--optim.lr-per-265", "1")
    assert line == "inat: Unknown option: --optim.lr-per-265. Did you mean --optim.lr-per-256?"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "train needs CONFIG; see inat train --help"),
        (["compare", "a"], "compare needs SECOND; see inat compare --help"),
        (
            ["submission", "write", "p"],
            "submission write needs --out; see inat submission write --help",
        ),
    ],
)
def test_a_missing_argument_is_named_as_help_names_it(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, *words) == f"inat: {message}"


def test_the_beginning_of_flags_names_them(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "train", config, "--optim.lr", "1")
    assert line == (
        "inat: Unknown option: --optim.lr. Did you mean --optim.lr-per-256 or --optim.lr-scaling?"
    )


def test_lists_have_no_flag_that_empties_them(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "train", config, "--data.empty-band-edges")
    assert line.startswith("inat: Unknown option: --data.empty-band-edges.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr_per_265: 1}", "unknown key optim.lr_per_265; did you mean optim.lr_per_256?"),
        ("lr_per_256: 1", "unknown key lr_per_256; did you mean optim.lr_per_256?"),
        ("epochs: 2.5", "epochs takes a whole number, not 2.5"),
        ("seed: 1\nseed: 2", "not a config: the key seed stands twice, again in line 2"),
        (
            "epochs: 2\noptim: {warmup_epochs: 2}",
            "optim.warmup_epochs (2) must be less than epochs",
        ),
        ("transforms: {scale: [1, x]}", "transforms.scale takes a number, not 'x'"),
    ],
)
def test_a_bad_config_gets_one_line_with_the_file(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = refusal(capsys, "train", path)
    assert line.startswith(f"inat: {path}: ")
    assert message in line


def test_a_scalar_section_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("optim: 3\n")
    assert "optim is a section; write its fields (name, lr_per_256" in refusal(
        capsys, "train", path
    )


def test_a_missing_config_and_a_missing_root_are_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.yaml"
    assert refusal(capsys, "train", missing) == f"inat: {missing}: there is no such config file"
    assert refusal(capsys, "train", config) == (
        "inat: data.root is not set; give the data set's folder: --data.root DIR"
    )


def test_an_unknown_verb_lists_the_valid_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "evaluate" in refusal(capsys, "evaluat")


def test_a_fault_of_the_kit_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("inat.dataset.profile.describe", broken)
    assert main(["data", "describe", "x"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "inat: ZeroDivisionError: a b (a fault of the kit; --debug shows where)\n"
    )
    assert main(["data", "describe", "x", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_status_1_with_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/data/x")

    monkeypatch.setattr("inat.dataset.profile.describe", full)
    assert main(["data", "describe", "x"]) == 1
    assert capsys.readouterr().err == (
        "inat: /data/x: the disk is full; make room, or give another place\n"
    )


def test_python_m_inat_leaves_with_the_status_of_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inat", "evaluate", "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "inat: nowhere: no prediction file (a folder with logits.npy and meta.json)\n"
    )

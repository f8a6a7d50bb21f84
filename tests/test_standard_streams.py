"""What the command line does where its output has no reader, no place or few characters."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from predictions import make_prediction
from rich.table import Table
from rich.text import Text

from inat.cli.app import main
from inat.evaluation.table import print_table

INAT = [sys.executable, "-m", "inat"]
VERBS = "from inat.cli.standard_streams import take_over_streams; take_over_streams()\n" + (
    "import sys; from inat.cli.app import main\n"
    "for words in sys.argv[1].split('|'):\n"
    "    if main(words.split()): sys.exit(f'{words}: failed')\n"
    "print('the end'); sys.stdout.flush()\n"
)
"""Several command lines in one process, which costs less than one process each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two predictions: a is right three times, b twice of four."""
    folder = tmp_path_factory.mktemp("streams")
    labels = [0, 1, 2, 1]
    for name, right in (("a", [0, 1, 2, 2]), ("b", [0, 1, 0, 0])):
        logits = [[3.0 * (label == guess) for label in range(3)] for guess in right]
        make_prediction(folder / name, logits, labels, split="val")
        make_prediction(folder / "test" / name, logits)
    return folder


def without_reader(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command whose standard output nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            command, cwd=cwd, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300
        )
    finally:
        os.close(writer)


def test_a_reader_that_leaves_costs_neither_files_nor_the_status(
    folder: Path, world: Path, tmp_path: Path
) -> None:
    data, a, b = world, folder / "a", folder / "b"
    lines = [
        f"evaluate {a} {b} --report {tmp_path}/r.html",
        f"evaluate {a} --out {tmp_path}/evaluation",
        f"compare {a} {b} --out {tmp_path}/c.json",
        f"data describe {data} --plot {tmp_path}/p.png",
        f"adjust {a} --tau 1 --out {tmp_path}/adjusted",
        f"ensemble {a} {b} --out {tmp_path}/both",
        f"submission write {folder}/test/a --out {tmp_path}/s.csv",
        "runs . --csv",
        "--help",
    ]
    done = without_reader([sys.executable, "-c", VERBS, "|".join(lines)], tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("r.html", "evaluation", "c.json", "p.png", "adjusted", "both", "s.csv"),
        "s.manifest.json",
    }


def test_a_reader_that_leaves_does_not_change_a_status_of_failure(tmp_path: Path) -> None:
    done = without_reader([*INAT, "evaluate", "nowhere"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("inat: nowhere: no prediction file")


def test_nobody_reads_standard_error(folder: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = (
        "from inat.cli.standard_streams import take_over_streams; take_over_streams()\n"
        "import sys; from inat.core.progress import say\n"
        "for _ in range(3): say('x' * 100)\n"
        "print('written')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, text=True, timeout=300
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "written\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_is_status_1_and_costs_no_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*INAT, "evaluate", str(folder / "a"), "--out", str(out)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert done.returncode == 1
    assert done.stderr == "inat: standard output: No space left on device\n"
    assert {path.name for path in out.iterdir()} == {"metrics.json", "per_class.csv"}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_result(closed: str, folder: Path, tmp_path: Path) -> None:
    words = f"ensemble {folder}/a {folder}/b --out {tmp_path}/both --overwrite"
    command = f'"{sys.executable}" -c "$CODE" "{words}|runs {tmp_path}" {closed}'
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CODE": VERBS},
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert ("the end" in done.stdout) is (">&-" not in closed.replace("2>&-", ""))
    # No file took the place of a closed stream, and lines meant for one.
    assert (tmp_path / "both" / "meta.json").read_bytes().startswith(b"{\n")
    assert len((tmp_path / "both" / "meta.json").read_bytes().splitlines()) > 10


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_cannot_be_written_are_replaced(
    encoding: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation"
    done = subprocess.run(
        [*INAT, "evaluate", str(folder / "a"), "--out", str(out)],
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.stderr == b""
    assert done.returncode == 0
    text = done.stdout.decode(encoding)
    assert "########" in text
    assert "?" not in text
    assert (out / "metrics.json").exists()


@contextmanager
def small_files_only(n_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond that, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "words",
    [
        "evaluate A --out OUT",
        "evaluate A --out {} --report OUT",
        "compare A B --out OUT",
        "adjust A --tau 1 --out OUT",
        "ensemble A B --out OUT",
        "submission write TEST --out OUT.csv",
        "data describe WORLD --plot OUT.png",
    ],
)
def test_each_verb_names_the_file_that_cannot_be_written_and_a_remedy(
    words: str, folder: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    names = {"A": folder / "a", "B": folder / "b", "TEST": folder / "test" / "a", "WORLD": world}
    command = [str(names.get(word, word)) for word in words.split()]
    command = [word.replace("OUT", str(out)).replace("{}", str(elsewhere)) for word in command]
    limit = 100_000 if "report" in words else 60
    with small_files_only(limit):
        assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    # Before it the annotations may say that they cannot be kept.
    said = captured.err.splitlines()[-1]
    assert said.startswith(f"inat: {out}")
    assert "give" in said
    assert "partial" not in said
    # Nothing half-written is left, and no leftover.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == (
        sorted(elsewhere.iterdir()) if elsewhere.exists() else []
    )


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 200])
def test_no_figure_is_cut_or_folded_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for header in ("top-1\n%", "many\n3 species", "note"):
        table.add_column(header, justify="right", overflow="fold")
    name = "runs/a/predictions/" + "x" * 40
    table.add_row(name, "81.4 of 100", "55.0\n50.1–60.2\n█████░░░░░", Text("100.0 [b]"))
    monkeypatch.setattr("inat.evaluation.table.PLAIN_WIDTH", width)
    print_table(table)
    out = capsys.readouterr().out
    for figure in ("81.4 of 100", "55.0", "50.1–60.2", "100.0 [b]"):
        assert figure in out
    as_list = [name, "  top-1 %: 81.4 of 100", "  many 3 species: 55.0 50.1–60.2",
               "  note: 100.0 [b]"]  # fmt: skip
    assert (out.splitlines() == as_list) is (width <= 40)

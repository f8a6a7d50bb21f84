"""Submissions: the bytes that are written, the faults that are found, the organisers' score."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictions import make_prediction
from worlds import category_id

from inat import submission
from inat.core.competitions import COMPETITIONS, find_competition
from inat.core.errors import FaultsFound, InputError
from inat.dataset.split import load_split
from inat.submission import Score
from inat.submission import rows as rows_module

HEADER = "id,predicted"
GUESSES = " ".join(str(category_id(label)) for label in (2, 0, 1))


@pytest.fixture
def rows(world: Path) -> list[str]:
    """A line for each of the world's eight test photos; all are valid."""
    return [f"{image_id},{GUESSES}" for image_id in load_split(world, "test").image_ids.tolist()]


def save(path: Path, lines: list[str], header: str = HEADER, newline: str = "\n") -> Path:
    path.write_bytes("".join(line + newline for line in [header, *lines]).encode())
    return path


def faults_of(call: Callable[..., Any], path: Path, *arguments: Any) -> str:
    """What is found, behind the file's name."""
    with pytest.raises(FaultsFound) as caught:
        call(path, *arguments)
    assert caught.value.exit_status == 1
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# --- write -----------------------------------------------------------------------------------


def test_write_gives_exactly_these_bytes(tmp_path: Path) -> None:
    logits = [[0, 3, 1, 2], [9, 0, 0, 8], [-1, -2, -4, -3]]
    prediction = make_prediction(
        tmp_path / "p", logits, ids=[70, 5, 12], category_ids=[2, 10, 280, 5006]
    )
    path = submission.write(prediction.path, tmp_path / "out" / "submission.csv")
    assert path == tmp_path / "out" / "submission.csv"
    assert path.read_bytes() == (
        b"id,predicted\n"
        b"70,10 5006 280\n"
        b"5,2 5006 10\n"  # 10 and 280 are equal: the lower id stands first
        b"12,2 10 5006\n"
    )
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "submission.csv",
        "submission.manifest.json",
    ]


@pytest.mark.parametrize("name", ["s.txt", "s", "s.gz"])
def test_another_ending_than_csv_is_refused(name: str, tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.zeros((1, 5)), ids=[1])
    with pytest.raises(InputError) as caught:
        submission.write(prediction, tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: a submission's name ends in .csv or .csv.gz"
    assert not (tmp_path / name).exists()


def test_equal_logits_go_to_the_lower_category_id(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.zeros((1, 5)), ids=[1])
    path = submission.write(prediction, tmp_path / "s.csv")
    assert path.read_text() == "id,predicted\n1,2 10 28\n"


def test_what_is_written_passes_the_check_and_is_scored(world: Path, tmp_path: Path) -> None:
    test = load_split(world, "test")
    prediction = make_prediction(
        tmp_path / "p",
        np.random.default_rng(0).normal(size=(8, 4)),
        ids=test.image_ids.tolist(),
        category_ids=test.taxonomy.category_ids.tolist(),
    )
    path = submission.write(prediction, tmp_path / "s.csv")
    assert submission.check(path, world).n_rows == 8
    public, private = organisers_accuracy(path, world / "solution.csv", 3)
    expected = Score("top-3 error", 1 - public, 1 - private)
    assert submission.score(path, world / "solution.csv") == expected


def test_write_refuses_what_kaggle_cannot_score(tmp_path: Path) -> None:
    val = make_prediction(tmp_path / "val", np.eye(3), split="val")
    with pytest.raises(InputError) as caught:
        submission.write(val, tmp_path / "s.csv")
    assert str(caught.value) == (
        f"{tmp_path / 'val'}: is a prediction of val; "
        "Kaggle scores the test split (inat predict RUN --split test)"
    )
    two = make_prediction(tmp_path / "two", np.eye(2))
    with pytest.raises(InputError) as caught:
        submission.write(two, tmp_path / "s.csv")
    assert str(caught.value) == (
        f"{tmp_path / 'two'}: inaturalist-2018 wants 3 guesses a row, and there are 2 species"
    )
    three = make_prediction(tmp_path / "three", np.eye(3))
    with pytest.raises(InputError) as caught:
        submission.write(three, tmp_path / "s.csv", competition="inaturalist-2081")
    assert str(caught.value) == (
        "competition: unknown name 'inaturalist-2081'; did you mean inaturalist-2021? "
        f"valid: {', '.join(sorted(COMPETITIONS))}"
    )
    assert not (tmp_path / "s.csv").exists()


def test_write_replaces_the_file_that_is_there(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", np.eye(3), ids=[1, 2, 3])
    path = tmp_path / "s.csv"
    path.write_text("old")
    submission.write(prediction, path)
    assert path.read_text().startswith("id,predicted\n1,")


def test_a_valid_file_passes_and_gives_its_number_of_rows(
    world: Path, tmp_path: Path, rows: list[str]
) -> None:
    assert submission.check(save(tmp_path / "s.csv", rows), world).n_rows == 8
    assert submission.check(str(save(tmp_path / "r.csv", rows[::-1])), str(world)).n_rows == 8


def test_windows_line_ends_pass_as_they_do_at_the_organisers(
    world: Path, tmp_path: Path, rows: list[str]
) -> None:
    path = save(tmp_path / "s.csv", rows, newline="\r\n")
    assert submission.check(path, world).n_rows == 8
    unix = save(tmp_path / "unix.csv", rows)
    solution = world / "solution.csv"
    assert submission.score(path, solution) == submission.score(unix, solution)


def test_a_file_without_a_last_line_end_passes(
    world: Path, tmp_path: Path, rows: list[str]
) -> None:
    path = save(tmp_path / "s.csv", rows)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert submission.check(path, world).n_rows == 8


@pytest.mark.parametrize(
    "header", ["Id,Predicted", "id, predicted", "id,predicted ", "predicted,id", "", "\ufeffid"]
)
def test_check_names_a_wrong_header(
    world: Path, tmp_path: Path, rows: list[str], header: str
) -> None:
    path = save(tmp_path / "s.csv", rows, header)
    expected = f"the header must be 'id,predicted' (line 1: {header!r})"
    assert faults_of(submission.check, path, world) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2 10", "not 3 guesses separated by one space (line 4: '2 10')"),
        ("2 10 28 56", "not 3 guesses separated by one space (line 4: '2 10 28 56')"),
        ("2  10 28", "not 3 guesses separated by one space (line 4: '2  10 28')"),
        ("2  10", "not 3 guesses separated by one space (line 4: '2  10')"),
        (" 2 10", "not 3 guesses separated by one space (line 4: ' 2 10')"),
        ("", "not 3 guesses separated by one space (line 4: '')"),
        ("2 10 2", "a guess twice in a row (line 4: '2 10 2')"),
        ("2 10 11", "a guess that is no category (line 4: '11')"),
        ("2 10 028", "a guess that is no category (line 4: '028')"),
        ("2 10 28.0", "a guess that is no category (line 4: '28.0')"),
        ("2 x y", "a guess that is no category (line 4: 'x'; line 4: 'y')"),
    ],
)
def test_check_names_the_line_of_a_wrong_guess(
    world: Path, tmp_path: Path, rows: list[str], value: str, message: str
) -> None:
    rows[2] = rows[2].split(",")[0] + "," + value
    assert faults_of(submission.check, save(tmp_path / "s.csv", rows), world) == message


def test_check_counts_missing_photos_and_names_the_lowest_id(
    world: Path, tmp_path: Path, rows: list[str]
) -> None:
    ids = sorted(int(row.split(",")[0]) for row in rows)
    left = [row for row in rows if int(row.split(",")[0]) not in (ids[1], ids[3])]
    found = faults_of(submission.check, save(tmp_path / "s.csv", left), world)
    assert found == f"2 of 8 test photos have no row (first: '{ids[1]}')"
    found = faults_of(submission.check, save(tmp_path / "s.csv", []), world)
    assert found == f"8 of 8 test photos have no row (first: '{ids[0]}')"


def test_check_names_a_duplicate_id(world: Path, tmp_path: Path, rows: list[str]) -> None:
    path = save(tmp_path / "s.csv", [*rows, rows[3]])
    image_id = rows[3].split(",")[0]
    assert faults_of(submission.check, path, world) == f"duplicate id (line 10: '{image_id}')"


@pytest.mark.parametrize("image_id", ["999999", "x", " 1", "1.0", "-1"])
def test_check_names_an_id_that_is_no_test_photo(
    world: Path, tmp_path: Path, rows: list[str], image_id: str
) -> None:
    path = save(tmp_path / "s.csv", [f"{image_id},{GUESSES}", *rows])
    found = faults_of(submission.check, path, world)
    assert found == f"id that is no test photo (line 2: '{image_id}')"


def test_check_names_a_row_of_other_than_two_columns(
    world: Path, tmp_path: Path, rows: list[str]
) -> None:
    rows[0] += ",1"
    rows[1] = rows[1].split(",")[0]
    found = faults_of(submission.check, save(tmp_path / "s.csv", rows), world)
    assert found == f"not two columns (line 2: '{rows[0]}'; line 3: '{rows[1]}')"


def test_check_names_an_empty_line(world: Path, tmp_path: Path, rows: list[str]) -> None:
    path = save(tmp_path / "s.csv", [*rows[:1], "", *rows[1:], ""])
    assert faults_of(submission.check, path, world) == "empty line (line 3: ''; line 11: '')"


def test_check_tells_all_kinds_and_the_first_five_places_of_each(
    world: Path, tmp_path: Path, rows: list[str]
) -> None:
    short = [row.rpartition(" ")[0] for row in rows]
    path = save(tmp_path / "s.csv", [*short, short[0]], "Id,Predicted")
    places = "; ".join(f"line {line}: '28 2'" for line in range(2, 7))
    assert faults_of(submission.check, path, world) == (
        "the header must be 'id,predicted' (line 1: 'Id,Predicted'). "
        f"not 3 guesses separated by one space ({places}; 4 more). "
        f"duplicate id (line 10: '{short[0].split(',')[0]}')"
    )


def test_check_shortens_what_it_quotes(world: Path, tmp_path: Path, rows: list[str]) -> None:
    rows[0] = rows[0].split(",")[0] + "," + "2 " * 10_000
    found = faults_of(submission.check, save(tmp_path / "s.csv", rows), world)
    quoted = repr("2 " * 10_000)[:60]
    assert found == f"not 3 guesses separated by one space (line 2: {quoted})"


def test_a_file_that_is_missing_or_no_text_is_the_user_s_mistake(
    world: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.csv"
    with pytest.raises(InputError) as caught:
        submission.check(path, world)
    assert str(caught.value) == f"{path}: there is no such submission file"
    with pytest.raises(InputError) as caught:
        submission.check(tmp_path, world)
    assert str(caught.value) == f"{tmp_path}: a folder, not a file; give another"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        submission.check(path, world)
    assert str(caught.value).startswith(f"{path}: not a CSV file of plain text (")
    path.write_bytes(b"id,predicted\n" + b"1," + b"2" * 200_000 + b"\n")
    with pytest.raises(InputError) as caught:
        submission.check(path, world)
    assert str(caught.value).startswith(f"{path}: not a CSV file of plain text (field larger")


def test_text_without_any_comma_is_found_faulty_in_one_line(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(b"\x00\x01\x02\n" * 3)
    found = faults_of(submission.check, path, world)
    assert found.startswith(r"the header must be 'id,predicted' (line 1: '\x00\x01\x02'). ")


# --- score -----------------------------------------------------------------------------------


def organisers_accuracy(submission_path: Path, solution_path: Path, k: int) -> tuple[float, float]:
    """The organisers' rules as a loop: public and private accuracy. It lets pass in silence ids
    that the solution does not know, ids that stand twice, and guesses beyond the k-th."""
    solution = list(csv.DictReader(io.StringIO(solution_path.read_text())))
    expected = {row["id"]: row["expected"] for row in solution}
    usage = {row["id"]: row["usage"] for row in solution}
    counted, right = Counter[str](), Counter[str]()
    for row in csv.DictReader(io.StringIO(submission_path.read_text())):
        guesses = row["predicted"].strip().split(" ")
        if len(guesses) < k:
            raise ValueError("too few")
        if row["id"] in expected:
            counted[usage[row["id"]]] += 1
            right[usage[row["id"]]] += expected[row["id"]] in guesses[:k]
    return right["Public"] / counted["Public"], right["Private"] / counted["Private"]


def save_solution(path: Path, rows: list[tuple[int, int, str]]) -> Path:
    path.write_text("id,expected,usage\n" + "".join(f"{i},{e},{u}\n" for i, e, u in rows))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_score_equals_the_organisers_to_the_last_digit(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    categories = [2, 10, 28, 56, 94, 142]
    ids = rng.permutation(60).tolist()
    lines = [f"{i},{' '.join(map(str, rng.permutation(categories)[:3]))}" for i in ids]
    path = save(tmp_path / "s.csv", lines)
    usages = rng.permutation(["Public"] * 17 + ["Private"] * 43)
    rows = [(i, int(rng.choice(categories)), str(usage)) for i, usage in enumerate(usages)]
    solution = save_solution(tmp_path / "solution.csv", rows)
    found = submission.score(path, solution)
    public, private = organisers_accuracy(path, solution, 3)
    assert found == Score("top-3 error", 1 - public, 1 - private)
    assert 0 < 1 - public != 1 - private > 0


def test_public_and_private_rows_are_scored_apart(tmp_path: Path) -> None:
    path = save(tmp_path / "s.csv", ["1,2 10 28", "2,2 10 28", "3,2 10 28"])
    solution = save_solution(
        tmp_path / "t.csv", [(3, 28, "Private"), (1, 10, "Public"), (2, 56, "Public")]
    )
    assert submission.score(path, solution) == Score("top-3 error", public=0.5, private=0.0)


def test_a_usage_without_rows_has_no_score(tmp_path: Path) -> None:
    path = save(tmp_path / "s.csv", ["1,2 10 28"])
    solution = save_solution(tmp_path / "t.csv", [(1, 2, "Private")])
    assert submission.score(path, solution) == Score("top-3 error", public=None, private=0.0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,2 10 28", "2,2 10"], "not 3 guesses separated by one space (line 3: '2 10')"),
        (["1,2 10 28", "2"], "not two columns (line 3: '2')"),
        (["1,2 10 28"], "1 of 2 photos of the solution have no row (first: '2')"),
        ([], "2 of 2 photos of the solution have no row (first: '1')"),
        (["1,2 10 28", "", "2,2 10 28"], "empty line (line 3: '')"),
    ],
)
def test_score_refuses_what_the_organisers_refuse(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    solution = save_solution(tmp_path / "t.csv", [(1, 2, "Public"), (2, 2, "Public")])
    assert faults_of(submission.score, save(tmp_path / "s.csv", lines), solution) == message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,2 10 28", "2,2 10 28", "1,10 2 28"], "duplicate id (line 4: '1')"),
        (["1,2 10 28", "2,2 10 28", "3,10 2 28"],
         "id that is no photo of the solution (line 4: '3')"),
        (["1,2 10 28 56", "2,2 10 28"],
         "not 3 guesses separated by one space (line 2: '2 10 28 56')"),
        (["1,2  10 28", "2,2 10 28"],
         "not 3 guesses separated by one space (line 2: '2  10 28')"),
        (["1,2  28", "2,2 10 28"], "not 3 guesses separated by one space (line 2: '2  28')"),
        (["1,2 10 10", "2,2 10 28"], "a guess twice in a row (line 2: '2 10 10')"),
        (["1,2 10 028", "2,2 10 28"], "a guess that is no category (line 2: '028')"),
        (["1,2 10 x", "2,2 10 2.0"],
         "a guess that is no category (line 2: 'x'; line 3: '2.0')"),
    ],
)  # fmt: skip
def test_score_refuses_what_the_organisers_let_through_in_silence(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    solution = save_solution(tmp_path / "t.csv", [(1, 2, "Public"), (2, 2, "Private")])
    path = save(tmp_path / "s.csv", lines)
    organisers_accuracy(path, solution, 3)  # not a word
    assert faults_of(submission.score, path, solution) == message


def test_score_refuses_a_wrong_header(tmp_path: Path) -> None:
    solution = save_solution(tmp_path / "t.csv", [(1, 2, "Public")])
    path = save(tmp_path / "s.csv", ["1,2 10 28"], "id,prediction")
    expected = "the header must be 'id,predicted' (line 1: 'id,prediction')"
    assert faults_of(submission.score, path, solution) == expected


def test_score_says_which_file_is_missing(tmp_path: Path) -> None:
    solution = save_solution(tmp_path / "t.csv", [(1, 2, "Public")])
    with pytest.raises(InputError, match=r"s\.csv: there is no such submission file"):
        submission.score(tmp_path / "s.csv", solution)
    path = save(tmp_path / "s.csv", ["1,2 10 28"])
    with pytest.raises(InputError, match=r"u\.csv: there is no such solution file"):
        submission.score(path, tmp_path / "u.csv")


def test_a_solution_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "s.csv", ["1,2 10 28"])
    solution = tmp_path / "t.csv"
    solution.write_text("id,expected,usage\n9,1,2,Public\n")
    with pytest.raises(InputError) as caught:
        submission.score(path, solution)
    assert str(caught.value) == f"{solution}: line 2: 4 cells, not 3"


# --- compressed ------------------------------------------------------------------------------


def test_a_compressed_csv_holds_the_same_text_in_the_same_bytes_each_time(
    world: Path, tmp_path: Path
) -> None:
    test = load_split(world, "test")
    prediction = make_prediction(
        tmp_path / "p", np.random.default_rng(0).normal(size=(8, 4)), ids=test.image_ids.tolist()
    )
    plain = submission.write(prediction, tmp_path / "s.csv")
    first = submission.write(prediction, tmp_path / "a" / "s.csv.gz").read_bytes()
    other = submission.write(prediction, tmp_path / "b" / "other_name.csv.gz").read_bytes()
    assert gzip.decompress(first) == plain.read_bytes()
    assert first == other
    assert first[3:8] == bytes(5)  # RFC 1952: no flags, so no name; and no time
    path = tmp_path / "a" / "s.csv.gz"
    assert submission.check(path, world).n_rows == 8
    solution = world / "solution.csv"
    assert submission.score(path, solution) == submission.score(plain, solution)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-9], "Compressed file ended before the end-of-stream marker was reached"),
        (lambda b: b[:10] + b"\xff" + b[11:], "Error -3 while decompressing data"),
        (lambda _: b"id,predicted\n", "Not a gzipped file (b'id')"),
    ],
)
def test_a_damaged_compressed_csv_is_one_line(
    world: Path, tmp_path: Path, rows: list[str], change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "s.csv.gz"
    path.write_bytes(change(gzip.compress(save(tmp_path / "s.csv", rows).read_bytes())))
    with pytest.raises(InputError) as caught:
        submission.check(path, world)
    assert str(caught.value).startswith(f"{path}: not compressed by gzip, or cut off ({message}")


def test_the_competition_stands_in_the_manifest_and_can_be_overruled(
    world: Path, tmp_path: Path
) -> None:
    test = load_split(world, "test")
    prediction = make_prediction(tmp_path / "p", np.zeros((8, 4)), ids=test.image_ids.tolist())
    path = submission.write(prediction, tmp_path / "s.csv", competition="inaturalist-2019-fgvc6")
    assert path.read_text().splitlines()[0] == "id,predicted"
    assert submission.score(path, world / "solution.csv").metric == "top-1 error"
    found = faults_of(
        lambda path: submission.score(path, world / "solution.csv", competition="inaturalist-2018"),
        path,
    )
    assert found.startswith("not 3 guesses separated by one space (line 2: '2'; ")


# --- rows ------------------------------------------------------------------------------------


def outcome(path: Path, wanted: rows_module.Wanted, slug: str) -> list[list[int]] | str:
    try:
        return rows_module.read_rows(path, find_competition(slug), wanted).tolist()
    except (FaultsFound, InputError) as error:
        return str(error)


@pytest.mark.parametrize("slug", sorted(COMPETITIONS))
@pytest.mark.parametrize("knows_categories", [True, False])
def test_plain_rows_are_read_at_once_as_they_are_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slug: str, knows_categories: bool
) -> None:
    spec, rng = find_competition(slug), np.random.default_rng(0)
    categories = np.array([1, 2, 10, 28, 300, 5000])
    wanted = rows_module.Wanted(
        "photo", "photos", np.array([7, 0, 12, 120]), categories if knows_categories else None
    )
    guesses = " ".join(map(str, categories[: spec.n_guesses]))
    lines = [spec.header, *(f"{i},{guesses}" for i in wanted.ids)]
    good = "\n".join(lines).encode() + b"\n"
    cases = [good, good[:-1], good.replace(b"\n", b"\r\n"), good + b"\n", b"", lines[0].encode()]
    for _ in range(60):
        place, n_cut = rng.integers(len(good)), rng.integers(3)
        mark = rng.choice([b"", b" ", b",", b"0", b"1", b"\n", b"\r", b'"', b"-", b"x", b"\xff"])
        cases.append(good[:place] + mark + good[place + n_cut :])
    cases.append(good.replace(b"\n7,", b'\n"7",'))
    path, fast = tmp_path / "s.csv", []
    for case in cases:
        path.write_bytes(case)
        fast.append(outcome(path, wanted, slug))
    monkeypatch.setattr(rows_module, "_plain_rows", lambda *_: None)
    for case, found in zip(cases, fast, strict=True):
        path.write_bytes(case)
        assert found == outcome(path, wanted, slug), case
    assert isinstance(fast[0], list)
    assert fast[0] == fast[1] == fast[2] == fast[-1]

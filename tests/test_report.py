"""The report as a file: what it holds, what it refuses, what it escapes."""

import re
from pathlib import Path

import numpy as np
import orjson
import pytest
from predictions import make_prediction
from reports import NAMES, make_bird_prediction, write_photos

import inat
from inat.cli.app import main
from inat.core.errors import InputError
from inat.core.intervals import Interval
from inat.evaluation import evaluate, write_report
from inat.evaluation.page_figures import interval_text, share_text
from inat.evaluation.page_photos import NO_ROOT
from inat.evaluation.report import run_titles, script_safe


def written(tmp_path: Path, *predictions: inat.PredictionFile, root: Path | None = None) -> str:
    page = tmp_path / "report.html"
    path = write_report([evaluate(p) for p in predictions], page, root=root)
    return path.read_text("utf-8")


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    data: dict = orjson.loads(text)
    return data


def test_no_name_can_end_an_element_or_begin_one(tmp_path: Path) -> None:
    page = written(tmp_path, make_bird_prediction(tmp_path / "p"))
    for raw in ("<script>window", "<b>bold", "<img src=x", 'Parus "major"', "<Picus>"):
        assert raw not in page
    assert "Corvus {a|b} {{ 1 + 1 }}" in page  # no template is made of a name
    assert data_of(page)["species"]["name"] == NAMES


def test_json_in_the_page_reads_back_and_holds_no_markup() -> None:
    content = {"<!--": "</script> & \u2028 \u2029", 7: [None, 0.5], "a": np.arange(2)}
    text = script_safe(content)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert orjson.loads(text) == {
        "<!--": "</script> & \u2028 \u2029",
        "7": [None, 0.5],
        "a": [0, 1],
    }


def test_nothing_in_the_page_is_fetched(tmp_path: Path) -> None:
    page = written(tmp_path, make_bird_prediction(tmp_path / "p"))
    head = page[: page.index("</head>")]
    assert "default-src 'none'" in head
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(link|iframe|object|embed)|@import|url\(|https?://", own)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', own)) <= {
        "#headline", "#counts", "#bands", "#reliability", "#tree", "#species", "#pairs",
        "#mistakes", "#further",
    }  # fmt: skip


def test_photos_are_inlined_once_and_no_more_than_are_shown(tmp_path: Path) -> None:
    root = tmp_path / "data"
    first = make_bird_prediction(tmp_path / "p")
    second = make_bird_prediction(tmp_path / "q", seed=1)
    write_photos(root, first)
    page = written(tmp_path, first, second, root=root)
    pictures = data_of(page)["photos"]
    shown = set(re.findall(r'data-photo="(\d+)"', page))
    assert set(pictures) == shown
    assert 0 < len(shown) <= 24
    assert "photos are not shown" not in page


def test_without_a_data_root_the_page_has_no_photos_and_says_so(tmp_path: Path) -> None:
    prediction = make_bird_prediction(tmp_path / "p")
    page = written(tmp_path, prediction, root=tmp_path / "nowhere")
    assert data_of(page)["photos"] == {}
    assert f"photos are not shown: {tmp_path / 'nowhere'} is not there" in page
    page = written(tmp_path, prediction)
    assert data_of(page)["photos"] == {}
    assert NO_ROOT in page


@pytest.mark.parametrize("name", ["../private/{}.jpg", "a/../../private/{}.jpg", "{}"])
def test_a_prediction_puts_no_photo_of_another_folder_on_the_page(
    tmp_path: Path, name: str
) -> None:
    root, private = tmp_path / "data", tmp_path / "private"
    (root / "a").mkdir(parents=True)
    prediction = make_bird_prediction(tmp_path / "p", root=private)
    write_photos(private, prediction)
    photos = prediction.photos
    photos["file_name"] = [
        name.format(f"test2018/{i}" if "/" in name else private / f"test2018/{i}.jpg")
        for i in photos["id"]
    ]
    photos.to_parquet(prediction.path / "photos.parquet", index=False)
    for given in (None, root):
        page = written(tmp_path, prediction, root=given)
        assert data_of(page)["photos"] == {}
    assert "photos that cannot be read: " in page


def test_a_photo_that_cannot_be_read_is_named_and_the_others_shown(tmp_path: Path) -> None:
    root = tmp_path / "data"
    prediction = make_bird_prediction(tmp_path / "p")
    write_photos(root, prediction)
    shown = sorted(map(int, data_of(written(tmp_path, prediction, root=root))["photos"]))
    (root / f"test2018/{shown[0]}.jpg").unlink()
    page = written(tmp_path, prediction, root=root)
    assert sorted(map(int, data_of(page)["photos"])) == shown[1:]
    line = f"photos that cannot be read: {root}/test2018/{shown[0]}.jpg: No such file or directory"
    assert line in page


def test_the_number_of_photos_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inat.evaluation.page_photos.MOST_PICTURES", 3)
    root = tmp_path / "data"
    prediction = make_bird_prediction(tmp_path / "p")
    write_photos(root, prediction)
    page = written(tmp_path, prediction, root=root)
    assert len(data_of(page)["photos"]) == 3
    assert "the page holds 3 photos; further ones are not shown" in page


def test_all_right_all_wrong_and_empty_bands_have_a_page(tmp_path: Path) -> None:
    right = make_prediction(tmp_path / "right", 9 * np.eye(3), [0, 1, 2], [500, 400, 300])
    wrong = make_prediction(tmp_path / "wrong", 9 * np.eye(3), [1, 2, 0], [500, 400, 300])
    page = written(tmp_path, right)
    assert "No photo is taken for another species." in page
    assert "None: no photo of the few band is wrong." in page
    written(tmp_path, right, wrong)


def test_notes_say_which_prediction_they_are_of(tmp_path: Path) -> None:
    full = make_prediction(tmp_path / "full", np.eye(3)[[0, 0, 1, 1, 2, 2]], [0, 0, 1, 1, 2, 2])
    half = make_prediction(tmp_path / "half", np.eye(3)[[0, 0, 1, 1]], [0, 0, 1, 1])
    page = written(tmp_path, full, half)
    assert f"{tmp_path.name} / half: 1 of 3 species have no photo here" in page
    assert "the predictions are of other photos: their figures do not compare" in page


@pytest.mark.parametrize(
    ("paths", "titles"),
    [
        (["runs/a/predictions/test"], ["a / test"]),
        (["runs/a/predictions/test", "runs/b/predictions/test"], ["a / test", "b / test"]),
        (["x/a/predictions/t", "y/a/predictions/t"], ["x / a / t", "y / a / t"]),
        (["p"], ["p"]),
        (["a/p", "a/predictions/p"], ["a/p", "a/predictions/p"]),
    ],
)
def test_titles_are_as_short_as_tells_the_predictions_apart(
    paths: list[str], titles: list[str]
) -> None:
    assert run_titles([Path(path) for path in paths]) == titles


def refusal(*predictions: inat.PredictionFile, bands: list[str | None] | None = None) -> str:
    named = bands or [None] * len(predictions)
    with pytest.raises(InputError) as caught:
        write_report(
            [evaluate(p, bands=b) for p, b in zip(predictions, named, strict=True)],  # type: ignore[arg-type]
            "never.html",
        )
    return str(caught.value)


def test_what_does_not_fit_on_one_page_is_refused(tmp_path: Path) -> None:
    one = make_prediction(tmp_path / "one", np.eye(3), [0, 1, 2])
    other = make_prediction(tmp_path / "other", np.eye(4), [0, 1, 2, 3])
    recounted = make_prediction(tmp_path / "recounted", np.eye(3), [0, 1, 2], [7, 8, 9])
    apart = "are of other species or train counts; write a report for each"
    assert refusal(one, other) == f"{one.path} and {other.path} {apart}"
    assert refusal(one, recounted) == f"{one.path} and {recounted.path} {apart}"
    assert refusal(one, one) == f"{one.path}: given twice; a report shows each prediction once"
    assert refusal() == "a report needs at least one evaluation"
    same = make_prediction(tmp_path / "same", np.eye(3), [0, 1, 2])
    assert refusal(one, same, bands=["literature", "mislas"]) == (
        f"{one.path} has the band edges 20 100 and {same.path} 21 100; say which: "
        "--bands literature"
    )
    assert not Path("never.html").exists()


def test_figures_are_printed_to_a_tenth_and_the_unknown_as_a_dash() -> None:
    assert (share_text(0.81449), share_text(1.0), share_text(None)) == ("81.4", "100.0", "–")
    assert interval_text(Interval(0.5, 0.4, 0.612)) == "40.0–61.2"
    assert interval_text(None) == ""


def test_evaluate_writes_the_report_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (make_bird_prediction(tmp_path / name, seed) for seed, name in enumerate("ab"))
    page = tmp_path / "pages/report.html"
    words = ["evaluate", str(one.path), str(other.path), "--report", str(page)]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"saved {page}", f"note: {page}: {NO_ROOT}"
    ]  # fmt: skip
    root = write_photos(tmp_path / "data", one)
    assert main([*words, "--data.root", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"saved {page}"
    assert data_of(page.read_text("utf-8"))["photos"]
    assert [run["title"] for run in data_of(page.read_text("utf-8"))["runs"]] == [
        f"{tmp_path.name} / a", f"{tmp_path.name} / b"
    ]  # fmt: skip
    assert list(page.parent.iterdir()) == [page]

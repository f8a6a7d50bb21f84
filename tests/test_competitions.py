"""Every competition: what its submission looks like, and the road from its files to a score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from predictions import make_prediction
from sklearn.metrics import f1_score

from inat import submission
from inat.core.competitions import COMPETITIONS, find_competition
from inat.core.errors import FaultsFound, InputError
from inat.dataset.profile import describe
from inat.dataset.split import load_split
from inat.submission import Score

FURNITURE = "imaterialist-challenge-furniture-2018"

# slug: header, guesses a row, whether it may have more, how many count, metric
TABLE = {
    "inaturalist-2018": ("id,predicted", 3, False, 3, "top-3 error"),
    "inaturalist-challenge-at-fgvc-2017": ("id,predicted", 5, False, 5, "top-5 error"),
    "inaturalist-2019-fgvc6": ("id,predicted", 1, True, 1, "top-1 error"),
    "inaturalist-2021": ("Id,Predicted", 5, False, 1, "top-1 error"),
    "fungi-challenge-fgvc-2018": ("id,predicted", 3, False, 3, "top-3 error"),
    FURNITURE: ("id,predicted", 1, False, 1, "top-1 error"),
    "herbarium-2020-fgvc7": ("Id,Predicted", 1, False, 1, "macro F1"),
    "herbarium-2021-fgvc8": ("Id,Predicted", 1, False, 1, "macro F1"),
    "herbarium-2022-fgvc9": ("Id,Predicted", 1, False, 1, "macro F1"),
}

# By label: numeric order is not the order of their digits.
CATEGORIES = [1, 2, 10, 11, 100, 3000]
TRAIN_LABELS = [5, 0, 0, 1, 2, 3, 4, 0]
VAL_LABELS = [3, 0, 5]
TEST_IDS = [40, 7, 300, 12, 0, 9, 100, 55, 8, 23, 1, 2]


def save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(content))


def photos(split: str, ids: list[int], folder: str) -> list[dict[str, Any]]:
    return [
        {"id": i, "file_name": f"{folder}/{split}/{i}.jpg", "height": 8, "width": 6} for i in ids
    ]


def labelled(split: str, ids: list[int], labels: list[int], folder: str) -> dict[str, Any]:
    """In COCO's form, as iNaturalist and Fungi have it."""
    rows = zip(ids, labels, strict=True)
    return {
        "images": photos(split, ids, folder),
        "annotations": [
            {"id": n, "image_id": i, "category_id": CATEGORIES[label]}
            for n, (i, label) in enumerate(rows)
        ],
        "categories": [{"id": c, "name": f"Species {c}"} for c in reversed(CATEGORIES)],
    }


def make_coco(root: Path, slug: str) -> None:
    names = find_competition(slug).annotation_files
    save_json(root / names["train"], labelled("train", [*range(1000, 1008)], TRAIN_LABELS, "x"))
    save_json(root / names["val"], labelled("val", [2000, 2001, 2002], VAL_LABELS, "x"))
    save_json(root / names["test"], {"images": photos("test", TEST_IDS, "x")})


def make_furniture(root: Path, slug: str) -> None:
    """Addresses instead of files, no categories, and ids that begin anew in each split."""

    def images(ids: list[int]) -> list[dict[str, Any]]:
        return [{"image_id": i, "url": [f"http://shop/{i}.png"]} for i in ids]

    for name, labels in (("train", TRAIN_LABELS), ("validation", VAL_LABELS)):
        ids = [*range(1, len(labels) + 1)]
        rows = [
            {"image_id": i, "label_id": CATEGORIES[label]}
            for i, label in zip(ids, labels, strict=True)
        ]
        save_json(root / f"{name}.json", {"images": images(ids), "annotations": rows})
    save_json(root / "test.json", {"images": images(TEST_IDS)})


def make_herbarium(root: Path, slug: str) -> None:
    """2020 and 2021: no val, paths below the file's own folder, the test's ids are texts."""
    names = find_competition(slug).annotation_files
    train = labelled("train", [*range(8)], TRAIN_LABELS, "images")
    for row in train["categories"]:
        row["family"] = "Orchidaceae"
    save_json(root / names["train"], train)
    rows = [{**row, "id": str(row["id"])} for row in photos("test", TEST_IDS, "images")]
    save_json(root / names["test"], {"images": rows})


def make_herbarium_2022(root: Path, slug: str) -> None:
    """Ids of category and number, other names of the fields, a bare list of test images."""
    numbers = [1, 1, 2, 1, 1, 1, 1, 3]
    ids = [
        f"{CATEGORIES[label]:05d}__{n:03d}" for label, n in zip(TRAIN_LABELS, numbers, strict=True)
    ]
    save_json(
        root / "train_metadata.json",
        {
            "images": [{"image_id": i, "file_name": f"000/{i}.jpg"} for i in ids],
            "annotations": [
                {"image_id": i, "category_id": CATEGORIES[label], "genus_id": 3}
                for i, label in zip(ids, TRAIN_LABELS, strict=True)
            ],
            "categories": [
                {"category_id": c, "scientificName": f"Species {c}", "family": "Poaceae"}
                for c in CATEGORIES
            ],
        },
    )
    save_json(
        root / "test_metadata.json",
        [{"image_id": str(i), "file_name": f"000/test-{i:06d}.jpg"} for i in TEST_IDS],
    )


MAKERS: dict[str, Callable[[Path, str], None]] = {
    **dict.fromkeys(TABLE, make_coco),
    FURNITURE: make_furniture,
    "herbarium-2020-fgvc7": make_herbarium,
    "herbarium-2021-fgvc8": make_herbarium,
    "herbarium-2022-fgvc9": make_herbarium_2022,
}


@pytest.fixture(params=TABLE)
def slug(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path, slug: str) -> Path:
    """A data set as the competition has it."""
    MAKERS[slug](tmp_path / "data", slug)
    return tmp_path / "data"


def save_solution(path: Path, labels: np.ndarray) -> Path:
    rows = [
        f"{i},{CATEGORIES[label]},{'Public' if n % 3 == 0 else 'Private'}"
        for n, (i, label) in enumerate(zip(TEST_IDS, labels, strict=True))
    ]
    path.write_text("\n".join(["id,expected,usage", *rows]) + "\n")
    return path


def slow_score(spec: str, guesses: np.ndarray, labels: np.ndarray) -> float:
    _, _, _, n_scored, metric = TABLE[spec]
    if metric == "macro F1":
        return float(f1_score(labels, guesses[:, 0], average="macro"))
    wrong = [label not in row[:n_scored] for row, label in zip(guesses, labels, strict=True)]
    return 1 - (len(wrong) - sum(wrong)) / len(wrong)


def test_the_specs_are_those_of_the_competitions_rules(slug: str) -> None:
    spec = COMPETITIONS[slug]
    found = (spec.header, spec.n_guesses, spec.more_guesses, spec.n_scored, spec.metric_name)
    assert found == TABLE[slug]
    assert spec.one_based == (slug == FURNITURE)
    assert TABLE.keys() == COMPETITIONS.keys()


def test_the_road_from_the_annotations_to_the_score(root: Path, slug: str, tmp_path: Path) -> None:
    header, n_guesses, _, _, metric = TABLE[slug]
    rng = np.random.default_rng(0)
    test = load_split(root, "test", competition=slug)
    assert test.image_ids.tolist() == TEST_IDS
    logits, labels = rng.normal(size=(12, 6)), rng.integers(6, size=12)
    prediction = make_prediction(
        tmp_path / "p",
        logits,
        ids=test.image_ids.tolist(),
        category_ids=test.taxonomy.category_ids.tolist(),
        competition=slug,
    )
    path = submission.write(prediction, tmp_path / "s.csv")
    guesses = np.argsort(-logits, axis=1)[:, :n_guesses]
    rows = [
        f"{i},{' '.join(str(CATEGORIES[label]) for label in row)}"
        for i, row in zip(TEST_IDS, guesses, strict=True)
    ]
    assert path.read_text() == "\n".join([header, *rows]) + "\n"
    assert submission.check(path, root).n_rows == 12
    public = np.arange(12) % 3 == 0
    assert submission.score(path, save_solution(tmp_path / "solution.csv", labels)) == Score(
        metric,
        slow_score(slug, guesses[public], labels[public]),
        slow_score(slug, guesses[~public], labels[~public]),
    )


def test_the_photos_are_those_of_the_files(root: Path, slug: str) -> None:
    train = load_split(root, "train", competition=slug)
    assert train.labels.tolist() == TRAIN_LABELS
    assert train.taxonomy.category_ids.tolist() == CATEGORIES
    assert train.train_counts.tolist() == [3, 1, 1, 1, 1, 1]
    named = "category 10" if slug == FURNITURE else "Species 10"
    assert train.taxonomy.names[2] == named
    first_train = {
        FURNITURE: "train/1.jpg",
        "herbarium-2020-fgvc7": "nybg2020/train/images/train/0.jpg",
        "herbarium-2021-fgvc8": "train/images/train/0.jpg",
        "herbarium-2022-fgvc9": "train_images/000/03000__001.jpg",
    }
    assert str(train.file_names[0]) == first_train.get(slug, "x/train/1000.jpg")
    first_test = {
        FURNITURE: "test/40.jpg",
        "herbarium-2020-fgvc7": "nybg2020/test/images/test/40.jpg",
        "herbarium-2021-fgvc8": "test/images/test/40.jpg",
        "herbarium-2022-fgvc9": "test_images/000/test-000040.jpg",
    }
    test = load_split(root, "test", competition=slug)
    assert str(test.file_names[0]) == first_test.get(slug, "x/test/40.jpg")
    sizes = describe(root, competition=slug).split_sizes
    has_val = not slug.startswith("herbarium")
    assert sizes == {"train": 8, **({"val": 3} if has_val else {}), "test": 12}


def test_image_ids_are_unique_in_the_whole_data_set(root: Path, slug: str) -> None:
    names = [
        name for name in ("train", "val", "test") if name in COMPETITIONS[slug].annotation_files
    ]
    ids = np.concatenate(
        [load_split(root, name, competition=slug).image_ids for name in names]
    ).tolist()
    assert len(set(ids)) == len(ids)
    again = np.concatenate(  # from the cache
        [load_split(root, name, competition=slug).image_ids for name in names]
    )
    assert again.tolist() == ids


def test_a_competition_without_val_says_so(tmp_path: Path) -> None:
    make_herbarium(tmp_path, "herbarium-2021-fgvc8")
    with pytest.raises(InputError) as caught:
        load_split(tmp_path, "val", competition="herbarium-2021-fgvc8")
    assert str(caught.value) == "herbarium-2021-fgvc8 has no val; hold out a part of train"
    held = load_split(tmp_path, "holdout", holdout="0.5", competition="herbarium-2021-fgvc8")
    assert set(held.labels.tolist()) == {0}


def test_the_same_bytes_in_another_competition_s_layout_are_read_anew(tmp_path: Path) -> None:
    make_coco(tmp_path, "fungi-challenge-fgvc-2018")
    fungi = load_split(tmp_path, "train", competition="fungi-challenge-fgvc-2018")
    (tmp_path / "train").mkdir()
    (tmp_path / "train.json").rename(tmp_path / "train" / "metadata.json")
    herbarium = load_split(tmp_path, "train", competition="herbarium-2021-fgvc8")
    assert (herbarium.image_ids - fungi.image_ids).tolist() == [10**9] * 8


def test_latin_1_is_read_where_the_file_is_not_utf_8(tmp_path: Path) -> None:
    make_herbarium(tmp_path, "herbarium-2020-fgvc7")
    path = tmp_path / "nybg2020/train/metadata.json"
    text = path.read_text().replace("Species 10", "Isoëtes é")
    path.write_bytes(text.encode("latin-1"))
    train = load_split(tmp_path, "train", competition="herbarium-2020-fgvc7")
    assert "Isoëtes é" in train.taxonomy.names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 3}]', "not JSON, or cut off: "),
        ('"x"', "an annotation file is an object with images"),
        ('{"images": 3}', "'images' is no list"),
        ('{"images": [3]}', "images[0] is no object"),
        ('{"images": [{"id": 3}]}', "images[0] has no field 'image_id'"),
        ('{"images": [{"image_id": null}]}', "images[0]: the image id is None, no number"),
        ('{"images": [{"image_id": "0_1"}]}', "images[0]: the image id is '0_1', no number"),
        ('{"images": [{"image_id": 7.0}]}', "images[0]: the image id is 7.0, no number"),
        ('{"annotations": []}', "has no field 'images'"),
    ],
)
def test_a_broken_file_in_another_layout_is_one_line(
    tmp_path: Path, content: str, message: str
) -> None:
    make_furniture(tmp_path, FURNITURE)
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(InputError) as caught:
        load_split(tmp_path, "test", competition=FURNITURE)
    assert str(caught.value).startswith(f"{tmp_path / 'test.json'}: {message}")


def test_a_file_name_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    make_herbarium_2022(tmp_path, "herbarium-2022-fgvc9")
    save_json(tmp_path / "test_metadata.json", [{"image_id": "0", "file_name": 3}])
    with pytest.raises(InputError) as caught:
        load_split(tmp_path, "test", competition="herbarium-2022-fgvc9")
    assert str(caught.value) == (
        f"{tmp_path / 'test_metadata.json'}: images[0]: 'file_name' is 3, no path"
    )


# --- guesses that a competition refuses -------------------------------------------------------


def faults(slug: str, root: Path, path: Path) -> str:
    with pytest.raises(FaultsFound) as caught:
        submission.check(path, root, competition=slug)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("slug", "guesses", "message"),
    [
        ("inaturalist-challenge-at-fgvc-2017", "1 2 10 11",
         "not 5 guesses separated by one space (line 2: '1 2 10 11')"),
        ("inaturalist-2021", "1", "not 5 guesses separated by one space (line 2: '1')"),
        ("inaturalist-2019-fgvc6", "", "not at least 1 guess (line 2: '')"),
        (FURNITURE, "1 2", "not 1 guess (line 2: '1 2')"),
        (FURNITURE, "0", "a guess that is no category (they count from 1) (line 2: '0')"),
        ("herbarium-2021-fgvc8", "0", "a guess that is no category (line 2: '0')"),
    ],
)  # fmt: skip
def test_check_knows_how_many_guesses_and_which_a_competition_wants(
    tmp_path: Path, slug: str, guesses: str, message: str
) -> None:
    MAKERS[slug](tmp_path, slug)
    header, n_guesses, *_ = TABLE[slug]
    good = " ".join(map(str, CATEGORIES[:n_guesses]))
    lines = [f"{TEST_IDS[0]},{guesses}", *(f"{i},{good}" for i in TEST_IDS[1:])]
    path = tmp_path / "s.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    assert faults(slug, tmp_path, path) == message


def test_2019_takes_more_guesses_and_scores_the_first(tmp_path: Path) -> None:
    slug = "inaturalist-2019-fgvc6"
    make_coco(tmp_path, slug)
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\n" + "".join(f"{i},1 2 10\n" for i in TEST_IDS))
    assert submission.check(path, tmp_path, competition=slug).n_rows == 12
    solution = save_solution(tmp_path / "t.csv", np.array([0, 1] * 6))
    score = submission.score(path, solution, competition=slug)
    assert score == Score("top-1 error", 0.5, 0.5)


def test_score_refuses_a_guess_of_0_where_labels_count_from_1(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\n" + "".join(f"{i},0\n" for i in TEST_IDS[:1]))
    solution = tmp_path / "t.csv"
    solution.write_text(f"id,expected,usage\n{TEST_IDS[0]},1,Public\n")
    with pytest.raises(FaultsFound) as caught:
        submission.score(path, solution, competition=FURNITURE)
    assert str(caught.value) == (
        f"{path}: a guess that is no category (they count from 1) (line 2: '0')"
    )

"""Annotations and taxonomy: what is read, what is refused and in which words, what is held out."""

import hashlib
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from worlds import category, category_id, make_world

from inat.core.competitions import COMPETITIONS
from inat.core.errors import InputError
from inat.dataset.annotation_files import parse_annotations
from inat.dataset.split import Split, cut_holdout, load_split
from inat.dataset.taxonomy import RANKS, read_taxonomy

Change = Callable[[dict[str, Any]], object]

WHOLE = "; number photos and species with whole numbers, the same in all lists"


@pytest.fixture
def papers(world: Path, tmp_path: Path) -> Path:
    """The world's annotation files alone, to be written to; no photo is read here."""
    for path in world.glob("*2018.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def rewrite(root: Path, change: Change, split: str = "train") -> Path:
    path = root / f"{split}2018.json"
    document = orjson.loads(path.read_bytes())
    change(document)
    path.write_bytes(orjson.dumps(document))
    return path


def refusal(root: Path, name: str = "train", **options: Any) -> str:
    """The sentence with which a split is refused, with the root as ROOT."""
    with pytest.raises(InputError) as caught:
        load_split(root, name, **options)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(root), "ROOT")


def split_of(counts: np.ndarray | list[int], seed: int = 0) -> Split:
    """A training split in memory, of species with these numbers of photos."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(labels)
    return Split(
        name="train",
        root=Path("nowhere"),
        competition="inaturalist-2018",
        file_names=pa.array([f"{i}.jpg" for i in range(n)]),
        image_ids=rng.permutation(3 * n)[:n].astype(np.int64),
        labels=labels,
        sizes=np.zeros((n, 2), np.int32),
        taxonomy=read_taxonomy([category(label) for label in range(len(counts))], "memory"),
        train_counts=np.bincount(labels, minlength=len(counts)),
    )


# Reading


def test_labels_are_the_numeric_order_of_category_ids(papers: Path) -> None:
    ids = {2: "two", 10: "ten", 100: "hundred", 56: "fifty-six"}

    def change(document: dict[str, Any]) -> None:
        new = dict(zip((2, 10, 28, 56), (100, 2, 56, 10), strict=True))
        for row in document["annotations"]:
            row["category_id"] = new[row["category_id"]]
        document["categories"] = [{"id": i, "name": ids[i]} for i in (100, 56, 2, 10)]

    path = rewrite(papers, change)
    split = load_split(papers)
    assert split.taxonomy.category_ids.tolist() == [2, 10, 56, 100]
    assert split.taxonomy.names == ["two", "ten", "fifty-six", "hundred"]
    assert split.class_counts.tolist() == [8, 2, 3, 30]
    document = orjson.loads(path.read_bytes())
    expected = {row["image_id"]: row["category_id"] for row in document["annotations"]}
    read = split.taxonomy.category_ids[split.labels]
    assert dict(zip(split.image_ids.tolist(), read.tolist(), strict=True)) == expected


def test_photos_stand_in_the_order_of_the_file_with_their_own_label(world: Path) -> None:
    split = load_split(world)
    document = orjson.loads((world / "train2018.json").read_bytes())
    assert split.image_ids.tolist() == [row["id"] for row in document["images"]]
    assert split.file_names.to_pylist() == [row["file_name"] for row in document["images"]]
    assert split.sizes.tolist() == [[48, 64]] * 43
    assert split.path(3) == world / document["images"][3]["file_name"]
    species = {row["image_id"]: row["category_id"] for row in document["annotations"]}
    for image_id, label in zip(split.image_ids.tolist(), split.labels.tolist(), strict=True):
        assert category_id(label) == species[image_id]


def test_a_size_that_is_not_stated_is_zero(papers: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        for row, height in zip(document["images"], (None, "48", -1, 2**40), strict=False):
            row["height"] = height
        del document["images"][4]["height"]

    rewrite(papers, change)
    assert load_split(papers).sizes[:6].tolist() == [[0, 64]] * 5 + [[48, 64]]


def test_the_train_counts_are_those_of_train_in_every_split(world: Path) -> None:
    for name in ("train", "val", "test", "train+val", "holdout", "fold:1/3"):
        assert load_split(world, name).train_counts.tolist() == [30, 8, 3, 2]


def test_a_selection_keeps_every_column_in_step(papers: Path) -> None:
    ids = load_split(papers).image_ids
    rows = [{"id": int(i), "lat": float(i), "lon": 0.0, "date": None} for i in ids]
    (papers / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    split = load_split(papers)
    index = np.array([7, 2, 30])
    some = split.select(index, "some")
    assert some.name == "some" and len(some) == 3
    assert some.image_ids.tolist() == split.image_ids[index].tolist()
    assert some.labels.tolist() == split.labels[index].tolist()
    assert [some.path(i) for i in range(3)] == [split.path(i) for i in index.tolist()]
    assert some.locations is not None
    assert some.locations["lat"].tolist() == some.image_ids.tolist()
    mask = np.zeros(len(split), bool)
    mask[index] = True
    assert split.select(mask).image_ids.tolist() == split.image_ids[[2, 7, 30]].tolist()


def test_the_labels_of_unknown_category_ids_are_minus_one_and_their_places_given(
    world: Path,
) -> None:
    taxonomy = load_split(world).taxonomy
    labels, unknown = taxonomy.labels_of(np.array([56, 3, 2, 999, -5]))
    assert labels.tolist() == [3, -1, 0, -1, -1]
    assert unknown.tolist() == [1, 3, 4]


def test_homonym_genera_are_counted_by_their_whole_lineage() -> None:
    taxonomy = read_taxonomy([category(label) for label in range(6)], "memory")
    assert list(taxonomy.table["genus"]) == ["Prunella"] * 4 + ["Genus2"] * 2
    codes, n_genera = taxonomy.rank_groups("genus")
    assert n_genera == 3
    assert codes.tolist() == [0, 0, 1, 1, 2, 2]
    assert taxonomy.rank_groups("kingdom")[1] == 2
    assert list(taxonomy.table.columns[3:]) == list(RANKS)


@pytest.mark.parametrize("rank", RANKS)
def test_the_groups_of_a_rank_are_those_of_a_slow_loop_over_lineages(rank: str) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"id": n, "name": str(n), **{r: "abc"[rng.integers(3)] for r in RANKS}} for n in range(300)
    ]
    taxonomy = read_taxonomy(rows, "memory")
    lineages: dict[tuple[str, ...], int] = {}
    expected = []
    for row in rows:
        lineage = tuple(str(row[r]) for r in RANKS[: RANKS.index(rank) + 1])
        expected.append(lineages.setdefault(lineage, len(lineages)))
    codes, n_groups = taxonomy.rank_groups(rank)
    assert codes.tolist() == expected
    assert n_groups == len(lineages)


def test_ranks_that_the_data_set_does_not_give_are_empty() -> None:
    table = read_taxonomy([{"id": 1, "name": "a", "genus": None}], "memory").table
    assert table.iloc[0].tolist() == [1, "a", "", "", "", "", "", "", ""]


def test_categories_json_replaces_the_species_of_the_training_file(papers: Path) -> None:
    real = [{**category(label), "name": f"real {label}"} for label in range(4)]
    (papers / "categories.json").write_bytes(orjson.dumps(real[::-1]))
    assert load_split(papers, "val").taxonomy.names == ["real 0", "real 1", "real 2", "real 3"]


def test_a_fault_in_categories_json_is_said_of_that_file(papers: Path) -> None:
    (papers / "categories.json").write_bytes(orjson.dumps([{"id": 2}]))
    assert refusal(papers) == "ROOT/categories.json: categories[0] has no field 'name'"


def test_categories_json_that_lacks_a_species_is_one_sentence(papers: Path) -> None:
    real = [category(label) for label in (0, 2)]
    (papers / "categories.json").write_bytes(orjson.dumps(real))
    assert refusal(papers) == (
        "ROOT/categories.json: lacks 2 of the category ids in train2018.json (first: 10); it takes "
        "the place of the 'categories' there, so it must list every species; fetch it again, or "
        "remove it"
    )


def test_categories_json_with_more_species_than_photos_is_named(papers: Path) -> None:
    real = [category(label) for label in range(6)]
    (papers / "categories.json").write_bytes(orjson.dumps(real))
    assert refusal(papers) == (
        "ROOT/train2018.json: 2 of 6 species have no training photo (first: category 94, Genus2 "
        "species4); add a photo of each or remove them from categories.json"
    )


@pytest.mark.parametrize("content", [b'{"id": 2, "name": "a"}', b"3", b"null"])
def test_categories_json_that_is_no_list_is_refused(papers: Path, content: bytes) -> None:
    (papers / "categories.json").write_bytes(content)
    assert refusal(papers) == "ROOT/categories.json: is no list of species"


def test_categories_json_cut_off_is_named(papers: Path) -> None:
    (papers / "categories.json").write_bytes(b'[{"id": 2')
    assert refusal(papers).startswith("ROOT/categories.json: not JSON, or cut off: ")


# Locations


def test_locations_follow_the_photos_and_nulls_are_nan(papers: Path) -> None:
    ids = load_split(papers).image_ids.tolist()
    rows = [
        {"id": ids[1], "lat": None, "lon": None, "date": None, "user_id": 3, "valid": False},
        {"id": ids[0], "lat": -33.5, "lon": 151, "date": "2017-05-01 08:30:00+10:00"},
        {"id": ids[2], "lat": 1.5, "lon": -2.25},
    ]
    (papers / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    table = load_split(papers).locations
    assert table is not None
    assert list(table.columns) == ["lat", "lon", "date"]
    assert len(table) == len(ids)
    assert table.loc[0, ["lat", "lon"]].tolist() == [-33.5, 151]
    assert table.loc[0, "date"] == pd.Timestamp("2017-04-30 22:30", tz="UTC")
    assert table.loc[1].isna().all()
    assert table.loc[2, ["lat", "lon"]].tolist() == [1.5, -2.25]
    assert table.loc[3:].isna().all(axis=None)


def test_locations_that_are_all_null_are_read(papers: Path) -> None:
    ids = load_split(papers, "val").image_ids.tolist()
    rows = [{"id": i, "lat": None, "lon": None, "date": None} for i in ids]
    (papers / "val2018_locations.json").write_bytes(orjson.dumps(rows))
    table = load_split(papers, "val").locations
    assert table is not None and table.isna().all(axis=None)
    assert table.dtypes.astype(str).tolist()[:2] == ["float64", "float64"]


def test_without_a_locations_file_there_are_none(world: Path) -> None:
    assert load_split(world).locations is None


def test_a_photo_with_two_locations_is_refused(papers: Path) -> None:
    image_id = int(load_split(papers).image_ids[0])
    rows = [{"id": image_id, "lat": 1.0, "lon": 1.0}] * 2
    (papers / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    assert refusal(papers).startswith(
        f"ROOT/train2018_locations.json: id {image_id} stands 2 times"
    )


def test_places_of_other_photos_are_left_out_and_the_order_does_not_matter(papers: Path) -> None:
    ids = load_split(papers).image_ids.tolist()
    rows = [{"id": i, "lat": i / 8, "lon": 0} for i in [10**6, *ids[::-1], -1]]
    (papers / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    locations = load_split(papers).locations
    assert locations is not None
    assert locations["lat"].tolist() == [i / 8 for i in ids]


def test_a_locations_file_without_a_row_gives_unknown_places(papers: Path) -> None:
    (papers / "train2018_locations.json").write_text("[]")
    locations = load_split(papers).locations
    assert locations is not None
    assert len(locations) == 43 and locations.isna().all(axis=None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", " is no list of places"),
        ("3", " is no list of places"),
        ('[{"id": 1}, 2]', " [1] has no field 'id'"),
        ('[{"id": 1}, {"lat": 2}]', " [1] has no field 'id'"),
        ('[{"id": 1.0}]', " [0]: 'id' is 1.0, not a whole number"),
        ('[{"id": 1, "lon": [1]}]', " [0]: 'lon' is [1], not a number"),
        ('[{"id": 1, "date_c": "May"}]', " [0]: 'date_c' is 'May', not a number"),
    ],
)
def test_a_misshapen_locations_file_is_refused(papers: Path, content: str, sentence: str) -> None:
    (papers / "train2018_locations.json").write_text(content)
    assert refusal(papers).removesuffix(WHOLE) == f"ROOT/train2018_locations.json:{sentence}"


def test_a_locations_file_cut_off_is_named(papers: Path) -> None:
    (papers / "train2018_locations.json").write_text('[{"id": 1')
    assert refusal(papers).startswith("ROOT/train2018_locations.json: not JSON, or cut off: ")


# Names of splits


def test_train_plus_val_is_one_behind_the_other(world: Path) -> None:
    train, val, both = (load_split(world, name) for name in ("train", "val", "train+val"))
    assert both.name == "train+val"
    assert both.image_ids.tolist() == train.image_ids.tolist() + val.image_ids.tolist()
    assert both.labels.tolist() == train.labels.tolist() + val.labels.tolist()
    assert both.path(len(train)) == val.path(0)
    assert both.sizes.shape == (55, 2)


def test_train_plus_val_refuses_a_photo_that_is_in_both(papers: Path) -> None:
    image_id = int(load_split(papers).image_ids[0])

    def change(document: dict[str, Any]) -> None:
        old = document["images"][0]["id"]
        document["images"][0]["id"] = image_id
        for row in document["annotations"]:
            row["image_id"] = image_id if row["image_id"] == old else row["image_id"]

    rewrite(papers, change, "val")
    assert refusal(papers, "train+val") == (
        f"ROOT/val2018.json: image id {image_id} stands in train2018.json too; "
        "ids must be unique in the whole data set"
    )


def test_the_test_split_has_no_labels_and_the_species_of_train(world: Path) -> None:
    test = load_split(world, "test")
    assert test.labels.tolist() == [-1] * 8
    assert test.taxonomy.category_ids.tolist() == [2, 10, 28, 56]


def test_holdout_and_fold_are_the_part_that_is_held_out(world: Path) -> None:
    train = load_split(world)
    kept, held = cut_holdout(train, "0.5", 3)
    by_name = load_split(world, "holdout", holdout="0.5", holdout_seed=3)
    assert (held.name, by_name.name, kept.name) == ("holdout", "holdout", "train")
    assert by_name.image_ids.tolist() == held.image_ids.tolist()
    fold = load_split(world, "fold:2/3", holdout_seed=3)
    assert fold.name == "fold:2/3"
    assert fold.image_ids.tolist() == cut_holdout(train, "fold:2/3", 3)[1].image_ids.tolist()
    as_holdout = load_split(world, "holdout", holdout="fold:2/3", holdout_seed=3)
    assert as_holdout.image_ids.tolist() == fold.image_ids.tolist()


@pytest.mark.parametrize("name", ["valid", "", "Train", "val+train", "../train"])
def test_an_unknown_split_lists_the_valid_ones(world: Path, name: str) -> None:
    assert refusal(world, name) == (
        f"there is no split {name!r}; valid: train, val, test, train+val, holdout, fold:i/K"
    )


def test_a_split_of_holdout_none_is_refused_with_the_remedy(world: Path) -> None:
    assert refusal(world, "holdout", holdout="none") == (
        "data.holdout is none: nothing is held out; "
        "train with a share (data.holdout 0.2) or a fold (fold:1/5) to have a held-out part"
    )


def test_a_bad_fold_is_refused(world: Path) -> None:
    assert refusal(world, "fold:6/5") == (
        "data.holdout: 'fold:6/5' is not none, a share between 0 and 1 (0.2), "
        "or fold:i/K with 1 <= i <= K (fold:1/5)"
    )


def test_an_unknown_competition_lists_the_valid_ones(world: Path) -> None:
    assert refusal(world, competition="inaturalist-2081") == (
        "competition: unknown name 'inaturalist-2081'; did you mean inaturalist-2021? "
        f"valid: {', '.join(sorted(COMPETITIONS))}"
    )


# Bad files


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        "ROOT: there is no such folder; data.root is the data set's folder"
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_missing_annotation_file_is_named(papers: Path, split: str) -> None:
    (papers / f"{split}2018.json").unlink()
    assert refusal(papers, split) == f"ROOT/{split}2018.json: there is no such file"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_folders_of_photos_are_told_the_verb_for_them(papers: Path, split: str) -> None:
    (papers / "train2018.json").unlink()
    assert refusal(papers, split) == (
        "ROOT/train2018.json: there is no such file; inat data import makes a data set of folders "
        "of photos, one a species"
    )


def test_an_annotation_file_cut_off_is_named(papers: Path) -> None:
    path = papers / "train2018.json"
    content = path.read_bytes()[:300]
    path.write_bytes(content)
    sentence = refusal(papers)
    assert sentence.startswith("ROOT/train2018.json: not JSON, or cut off: unexpected end of data")
    assert sentence.endswith("at line 1, column 301; fetch or write the file again")


def test_an_annotation_file_that_is_no_object_is_refused(papers: Path) -> None:
    (papers / "train2018.json").write_text("[]")
    assert refusal(papers) == (
        "ROOT/train2018.json: an annotation file is an object with images, annotations, categories"
    )


@pytest.mark.parametrize("field", ["images", "annotations", "categories"])
def test_a_missing_list_of_the_annotation_file_is_named(papers: Path, field: str) -> None:
    rewrite(papers, lambda document: document.pop(field))
    assert refusal(papers) == f"ROOT/train2018.json: has no field '{field}'"


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ("images", "id"),
        ("images", "file_name"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("categories", "id"),
        ("categories", "name"),
    ],
)
def test_a_missing_field_is_named_with_its_row(papers: Path, rows: str, field: str) -> None:
    rewrite(papers, lambda document: document[rows][2].pop(field))
    assert refusal(papers) == f"ROOT/train2018.json: {rows}[2] has no field '{field}'"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(images={}), "'images' is no list"),
        (lambda d: d.update(images=[]), "'images' is empty; a split needs at least one photo"),
        (lambda d: d.update(categories=[]), "'categories' is empty; it must list the species"),
        (lambda d: d.update(categories=["x"]), "categories[0] is no object with 'id' and 'name'"),
        (lambda d: d.update(images=["x"]), "images[0] has no field 'id'"),
        (lambda d: d["images"][1].update(id="7"), "images[1]: 'id' is '7', not a whole number"),
        (lambda d: d["images"][1].update(id=7.5), "images[1]: 'id' is 7.5, not a whole number"),
        (lambda d: d["images"][1].update(id=True), "images[1]: 'id' is True, not a whole number"),
        (lambda d: d["categories"][1].update(id=None),
         "categories[1]: 'id' is None, not a whole number"),
    ],
)  # fmt: skip
def test_a_misshapen_file_is_refused(papers: Path, change: Change, sentence: str) -> None:
    rewrite(papers, change)
    assert refusal(papers).removesuffix(WHOLE) == f"ROOT/train2018.json: {sentence}"


def test_an_empty_test_split_is_refused(papers: Path) -> None:
    rewrite(papers, lambda document: document.update(images=[]), "test")
    assert refusal(papers, "test") == (
        "ROOT/test2018.json: 'images' is empty; a split needs at least one photo"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_duplicate_image_id_is_named_with_its_own_count(papers: Path, split: str) -> None:
    ids = sorted(load_split(papers, split).image_ids.tolist())

    def change(document: dict[str, Any]) -> None:
        twice, thrice = ({"id": i, "file_name": "a.jpg"} for i in (ids[0], ids[1]))
        document["images"] += [twice, thrice, thrice]

    rewrite(papers, change, split)
    assert refusal(papers, split) == (
        f"ROOT/{split}2018.json: image id {ids[0]} stands 2 times in 'images'"
    )


def test_a_duplicate_category_id_is_named(papers: Path) -> None:
    rewrite(papers, lambda document: document["categories"].append({"id": 28, "name": "again"}))
    assert refusal(papers) == "ROOT/train2018.json: category id 28 stands twice in 'categories'"


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_annotation_for_an_unknown_image_is_named(papers: Path, split: str) -> None:
    rewrite(papers, lambda document: document["annotations"][2].update(image_id=9999), split)
    assert refusal(papers, split) == (
        f"ROOT/{split}2018.json: annotations[2] is for image 9999, which is not in 'images'"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_annotation_for_an_unknown_category_is_named(papers: Path, split: str) -> None:
    rewrite(papers, lambda document: document["annotations"][2].update(category_id=3), split)
    assert refusal(papers, split) == (
        f"ROOT/{split}2018.json: annotations[2] has category_id 3, which is not in 'categories'"
    )


def test_an_image_without_annotation_is_named(papers: Path) -> None:
    gone: list[dict[str, int]] = []
    rewrite(papers, lambda document: gone.append(document["annotations"].pop()))
    assert refusal(papers) == (
        f"ROOT/train2018.json: 1 of 43 images have no annotation (first: image "
        f"{gone[0]['image_id']}); annotate them or remove them from 'images'"
    )


def test_several_annotations_of_one_species_are_one_label(papers: Path) -> None:
    before = load_split(papers)
    rows = orjson.loads((papers / "train2018.json").read_bytes())["annotations"]
    again = [{**row, "id": 1000 + n} for n, row in enumerate([rows[5], rows[5], rows[0]])]
    rewrite(papers, lambda document: document["annotations"].extend(again))
    split = load_split(papers)
    assert split.image_ids.tolist() == before.image_ids.tolist()
    assert split.labels.tolist() == before.labels.tolist()
    assert split.train_counts.tolist() == before.train_counts.tolist()


@pytest.mark.parametrize("first", [True, False])
def test_annotations_of_two_species_for_one_photo_are_refused(papers: Path, first: bool) -> None:
    row = orjson.loads((papers / "train2018.json").read_bytes())["annotations"][5]
    other = next(c for c in (2, 10) if c != row["category_id"])

    def change(document: dict[str, Any]) -> None:
        at = 0 if first else len(document["annotations"])
        document["annotations"].insert(at, {**row, "category_id": other})

    rewrite(papers, change)
    low, high = sorted([other, row["category_id"]])
    assert refusal(papers) == (
        f"ROOT/train2018.json: image {row['image_id']} has annotations of several species "
        f"(categories {low} and {high}); a photo has one species: keep one, or remove the image"
    )


def test_a_species_without_a_training_photo_is_named(papers: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["categories"] += [{"id": 30, "name": "rarest"}, {"id": 99, "name": "other"}]

    rewrite(papers, change)
    assert refusal(papers) == (
        "ROOT/train2018.json: 2 of 6 species have no training photo (first: category 30, rarest); "
        "add a photo of each or remove them from 'categories'"
    )


@pytest.mark.parametrize(
    "file_name",
    ["/etc/passwd", "//etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "\\a.jpg", "\\\\host\\a",
     "..\\a.jpg", "a\\..\\b.jpg", "C:\\a.jpg", "C:/a.jpg", "c:a.jpg"],
)  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_name_that_leads_out_of_the_root_is_refused(
    papers: Path, split: str, file_name: str
) -> None:
    rewrite(papers, lambda document: document["images"][1].update(file_name=file_name), split)
    assert refusal(papers, split) == (
        f"ROOT/{split}2018.json: images[1]: 'file_name' {file_name!r} leads out of the data root; "
        "it must be relative and without '..'"
    )


@pytest.mark.parametrize("file_name", ["", ".", "./", None, 3, ["a.jpg"], "a\0.jpg"])
def test_a_file_name_that_is_no_path_is_refused(papers: Path, file_name: object) -> None:
    rewrite(papers, lambda document: document["images"][1].update(file_name=file_name))
    assert refusal(papers) == (
        f"ROOT/train2018.json: images[1]: 'file_name' is {file_name!r}, no path"
    )


@pytest.mark.parametrize("file_name", ["a..b.jpg", "...jpg", "a/b c/ü.jpg", ".hidden/a.jpg"])
def test_a_file_name_that_only_looks_dangerous_is_taken(papers: Path, file_name: str) -> None:
    rewrite(papers, lambda document: document["images"][1].update(file_name=file_name))
    assert load_split(papers).path(1) == papers / file_name


def slow_verdict(file_name: str) -> str:
    """What is wrong with a file name, part by part."""
    if "\0" in file_name:
        return "no path"
    parts = PurePosixPath(file_name.replace("\\", "/")).parts
    if not parts:
        return "no path"
    unsafe = parts[0].startswith("/") or ":" in parts[0] or any(part == ".." for part in parts)
    return "leads out" if unsafe else ""


@given(st.text("ab./\\:\0ü\n", max_size=9))
@example("a/.")
@example("./c:a")
@example("a/b:c")
def test_file_names_are_judged_as_by_a_slow_loop_over_their_parts(file_name: str) -> None:
    document = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": file_name}]}
    try:
        names = parse_annotations(Path("x"), orjson.dumps(document), "test").file_names
    except InputError as error:
        verdict = slow_verdict(file_name)
        assert verdict and verdict in str(error)
    else:
        assert slow_verdict(file_name) == ""
        assert names.to_pylist() == ["a.jpg", file_name]


numbers = st.integers(-(2**63), 2**63 - 1)
sizes = st.one_of(st.integers(-5, 2**33), st.sampled_from([None, True, 4.0, "48", []]))
photos = st.fixed_dictionaries(
    {"id": numbers, "file_name": st.text("abü", min_size=1)},
    optional={"height": sizes, "width": sizes, "license": numbers},
)


def slow_size(value: object) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0


@given(st.lists(photos, min_size=1, max_size=9, unique_by=lambda row: row["id"]), st.data())
def test_what_is_parsed_is_what_a_slow_loop_reads(
    images: list[dict[str, Any]], data: st.DataObject
) -> None:
    annotations = [
        {"id": n, "image_id": row["id"], "category_id": data.draw(numbers)}
        for n, row in enumerate(data.draw(st.permutations(images)))
    ]
    document = {"info": {}, "images": images, "annotations": annotations}
    parsed = parse_annotations(Path("x"), orjson.dumps(document), "val")
    assert parsed.image_ids.tolist() == [row["id"] for row in images]
    assert parsed.file_names.to_pylist() == [row["file_name"] for row in images]
    assert parsed.sizes.tolist() == [
        [slow_size(row.get("height")), slow_size(row.get("width"))] for row in images
    ]
    assert parsed.sizes.dtype == np.int32
    assert parsed.annotated.tolist() == [row["image_id"] for row in annotations]
    assert parsed.category_ids.tolist() == [row["category_id"] for row in annotations]
    assert parsed.categories == []


@pytest.mark.parametrize("number", ["7.0", "7e0", "9223372036854775808", "true", "null", '"7"'])
@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_an_id_of_another_kind_than_a_whole_number_is_refused(
    papers: Path, field: str, number: str
) -> None:
    rewrite(papers, lambda document: document["annotations"][3].update({field: "HERE"}))
    path = papers / "train2018.json"
    path.write_bytes(path.read_bytes().replace(b'"HERE"', number.encode()))
    assert refusal(papers) == (
        f"ROOT/train2018.json: annotations[3]: '{field}' is {orjson.loads(number)!r}, "
        f"not a whole number{WHOLE}"
    )


def test_a_row_that_is_no_object_is_refused(papers: Path) -> None:
    rewrite(papers, lambda document: document["annotations"].insert(2, 5))
    assert refusal(papers) == "ROOT/train2018.json: annotations[2] has no field 'image_id'"


@pytest.mark.parametrize("split", ["val", "test"])
def test_lists_that_a_split_does_not_need_may_hold_anything(papers: Path, split: str) -> None:
    unneeded = {"categories": 3} if split == "val" else {"categories": 3, "annotations": [None]}
    rewrite(papers, lambda document: document.update(unneeded), split)
    assert len(load_split(papers, split)) > 0


# How strangers write their files


def write_as(path: Path, change: Callable[[str], bytes]) -> None:
    path.write_bytes(change(path.read_text()))


def test_a_byte_order_mark_is_passed_over(papers: Path) -> None:
    before = load_split(papers, "val").labels.tolist()
    for path in papers.glob("*2018.json"):
        write_as(path, lambda text: text.encode("utf-8-sig"))
    assert load_split(papers, "val").labels.tolist() == before
    write_as(papers / "train2018.json", lambda text: text.encode("utf-8-sig"))
    categories = [category(label) for label in range(4)]
    text = orjson.dumps(categories).decode()
    (papers / "categories.json").write_bytes(text.encode("utf-8-sig"))
    (papers / "train2018_locations.json").write_bytes("[]".encode("utf-8-sig"))
    assert load_split(papers).taxonomy.names == [row["name"] for row in categories]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["train2018", "val2018", "categories", "train2018_locations"])
def test_text_that_is_not_utf_8_is_named(papers: Path, name: str, encoding: str) -> None:
    path = papers / f"{name}.json"
    text = path.read_text() if path.exists() else "[{}]"
    path.write_bytes(text.encode(encoding))
    sentence = refusal(papers, "val" if name == "val2018" else "train")
    assert sentence.startswith(f"ROOT/{name}.json: is UTF-{encoding[4:6]}")
    assert sentence.endswith("text; save it as UTF-8")


def test_nan_and_infinity_are_null_where_nothing_depends_on_them(papers: Path) -> None:
    before = [load_split(papers, name) for name in ("train", "val", "test")]
    odd = [float("nan"), float("inf"), float("-inf")]

    def change(document: dict[str, Any]) -> None:
        for row, value in zip(document["images"], odd, strict=False):
            row.update(latitude=value, license=value, width=value, observation_id=value)
        for row in document.get("categories", []):
            row["common_name"] = odd[0]
            row["genus"] = odd[0]

    for path in papers.glob("*2018.json"):
        document = orjson.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))
    for split, old in zip(
        [load_split(papers, name) for name in ("train", "val", "test")], before, strict=True
    ):
        assert split.image_ids.tolist() == old.image_ids.tolist()
        assert split.labels.tolist() == old.labels.tolist()
        assert split.sizes[:3].tolist() == [[48, 0]] * 3
        assert split.sizes[3:].tolist() == old.sizes[3:].tolist()
        assert split.groups is None
        assert set(split.taxonomy.table["genus"]) == {""}


@pytest.mark.parametrize(
    ("rows", "field"),
    [("images", "id"), ("images", "file_name"), ("annotations", "category_id"),
     ("categories", "id")],
)  # fmt: skip
def test_nan_in_a_field_that_is_needed_is_named_with_its_row(
    papers: Path, rows: str, field: str
) -> None:
    path = papers / "train2018.json"
    document = orjson.loads(path.read_bytes())
    document[rows][1][field] = float("nan")
    path.write_text(json.dumps(document))
    assert refusal(papers).startswith(f"ROOT/train2018.json: {rows}[1]: '{field}' is None, no")


def test_places_and_dates_that_are_nan_are_unknown(papers: Path) -> None:
    ids = [row["id"] for row in orjson.loads((papers / "train2018.json").read_bytes())["images"]]
    nan = float("nan")
    rows = [
        {"id": ids[0], "lat": nan, "lon": nan, "date": nan},
        {"id": ids[1], "lat": 1.5, "lon": 2, "date": "2018-01-02", "user_id": nan},
    ]
    (papers / "train2018_locations.json").write_text(json.dumps(rows))
    locations = load_split(papers).locations
    assert locations is not None
    assert locations[["lat", "lon", "date"]].isna().to_numpy()[:2].tolist() == [
        [True] * 3,
        [False] * 3,
    ]


def test_categories_json_with_nan_is_read(papers: Path) -> None:
    rows = [{**category(label), "rarity": float("nan")} for label in range(4)]
    (papers / "categories.json").write_text(json.dumps(rows))
    assert load_split(papers).taxonomy.names == [row["name"] for row in rows]


def test_what_is_no_json_at_all_is_still_named_by_line_and_column(papers: Path) -> None:
    path = papers / "train2018.json"
    for text in ('{"images": [NaN', "[NaN, tru]", "\ufeff{", '{"a": 1}\n{"a": 2}'):
        path.write_text(text)
        sentence = refusal(papers)
        assert sentence.startswith("ROOT/train2018.json: not JSON, or cut off: ")
        assert " at line " in sentence


# Species of val


def listed(papers: Path, categories: list[dict[str, Any]]) -> None:
    rewrite(papers, lambda document: document.update(categories=categories), "val")


def test_val_that_lists_another_species_under_an_id_is_refused_with_the_first(papers: Path) -> None:
    rows = [category(label) for label in range(4)]
    for row, name in zip(rows[1:3], (rows[2]["name"], rows[1]["name"]), strict=True):
        row["name"] = name
    listed(papers, rows)
    names = [category(label)["name"] for label in range(4)]
    assert refusal(papers, "val") == (
        f"ROOT/val2018.json: its 'categories' have {names[2]!r} as category 10, and "
        f"train2018.json has {names[1]!r}; correct the one that is wrong, or remove 'categories' "
        "from val2018.json where its category ids are those of train"
    )


def test_val_that_lists_a_species_under_an_id_that_train_lacks_is_refused(papers: Path) -> None:
    listed(papers, [{**category(2), "id": 999}])
    assert "as category 999, and train2018.json has it as category 28;" in refusal(papers, "val")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[:2],
        lambda rows: [*rows, {"id": 999, "name": "not in train"}],
        lambda rows: [{"id": row["id"], "name": None} for row in rows],
        lambda rows: [{"id": row["id"]} for row in rows],
        lambda rows: [3, None, "a", {"id": "x", "name": "y"}],
        lambda rows: {"id": 2, "name": "no list"},
    ],
)
def test_val_that_contradicts_nothing_is_read(
    papers: Path, change: Callable[[list[dict[str, Any]]], Any]
) -> None:
    before = load_split(papers, "val").labels.tolist()
    listed(papers, change([category(label) for label in range(4)]))
    assert load_split(papers, "val").labels.tolist() == before


def test_names_that_differ_in_their_unicode_form_alone_are_the_same(papers: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):

        def change(document: dict[str, Any], form: Any = form) -> None:
            for row in document["categories"]:
                row["name"] = unicodedata.normalize(form, f"{row['name']} \u00e9")

        rewrite(papers, change, split)
    assert len(load_split(papers, "val")) > 0


def test_the_real_names_of_categories_json_contradict_nobody(papers: Path) -> None:
    real = [{**category(label), "name": f"real {label}"} for label in range(4)]
    (papers / "categories.json").write_bytes(orjson.dumps(real))
    assert load_split(papers, "val").taxonomy.names == [row["name"] for row in real]


# The holdout


def slow_draw(seed: int, number: int, purpose: str) -> float:
    """SplitMix64 as its paper has it, on Python's whole numbers."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")
    mask = 2**64 - 1
    z = ((number + 1) * 0x9E3779B97F4A7C15 + key) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return (z >> 11) / 2**53


def slow_cut(split: Split, holdout: str, seed: int) -> set[int]:
    """The ids that are held out, species by species."""
    held: set[int] = set()
    for label, of_species in enumerate(split.taxonomy.category_ids.tolist()):
        ids = [
            image_id
            for image_id, own in zip(split.image_ids.tolist(), split.labels.tolist(), strict=True)
            if own == label
        ]
        ids.sort(key=lambda image_id: slow_draw(seed, image_id, "photo"))
        if len(ids) < 2:
            continue
        if holdout.startswith("fold:"):
            fold, n_folds = map(int, holdout.removeprefix("fold:").split("/"))
            start = int(slow_draw(seed, of_species, "fold") * n_folds)
            held |= {i for place, i in enumerate(ids) if (place + start) % n_folds == fold - 1}
        else:
            wanted = int(len(ids) * float(holdout) + slow_draw(seed, of_species, "share"))
            held |= set(ids[: min(wanted, len(ids) - 1)])
    return held


@pytest.mark.parametrize("holdout", ["0.2", "0.05", "0.9", "fold:1/2", "fold:3/5"])
def test_the_cut_is_that_of_a_slow_loop_over_the_species(holdout: str) -> None:
    split = split_of([25, 7, 4, 3, 2, 2, 1, 1, 40])
    for seed in (0, 1, 12345):
        kept, held = cut_holdout(split, holdout, seed)
        assert set(held.image_ids.tolist()) == slow_cut(split, holdout, seed)
        assert set(kept.image_ids.tolist()) == set(split.image_ids.tolist()) - set(
            held.image_ids.tolist()
        )


@pytest.mark.parametrize("holdout", ["0.2", "fold:2/5"])
def test_the_cut_does_not_depend_on_the_order_of_the_photos(holdout: str) -> None:
    split = split_of([30, 8, 3, 2, 5])
    mixed = split.select(np.random.default_rng(1).permutation(len(split)))
    held = [cut_holdout(s, holdout, 0)[1].image_ids.tolist() for s in (split, mixed)]
    assert held[0] != held[1]
    assert sorted(held[0]) == sorted(held[1])


@pytest.mark.parametrize("holdout", ["0.2", "fold:2/5"])
def test_the_cut_of_a_species_does_not_depend_on_the_photos_of_others(holdout: str) -> None:
    split = split_of([30, 8, 3, 2, 5])
    fewer = split.select((split.labels != 1) | (np.arange(len(split)) % 2 == 0))
    assert len(fewer) < len(split)
    held = [
        {i for i, label in zip(h.image_ids.tolist(), h.labels.tolist(), strict=True) if label != 1}
        for h in (cut_holdout(s, holdout, 0)[1] for s in (split, fewer))
    ]
    assert held[0] == held[1]


def test_the_cut_changes_with_the_holdout_seed_and_with_no_generator(world: Path) -> None:
    np.random.seed(1)
    first = load_split(world, "holdout").image_ids.tolist()
    np.random.seed(2)
    np.random.random(5)
    assert load_split(world, "holdout").image_ids.tolist() == first
    assert load_split(world, "holdout", holdout_seed=1).image_ids.tolist() != first


def test_photos_keep_their_order_in_both_parts() -> None:
    split = split_of([30, 8, 3, 2])
    place = {image_id: at for at, image_id in enumerate(split.image_ids.tolist())}
    for part in cut_holdout(split, "0.3", 0):
        places = [place[image_id] for image_id in part.image_ids.tolist()]
        assert places == sorted(places)


@pytest.mark.parametrize("holdout", ["0.2", "0.99", "fold:1/2", "fold:2/2", "fold:5/7"])
def test_no_species_loses_its_last_photo(holdout: str) -> None:
    split = split_of(np.arange(200) % 6 + 1)
    kept, held = cut_holdout(split, holdout, 0)
    assert kept.class_counts.min() >= 1
    assert (kept.class_counts + held.class_counts).tolist() == split.class_counts.tolist()
    assert held.class_counts[split.class_counts == 1].sum() == 0
    assert kept.train_counts.tolist() == split.class_counts.tolist()


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_folds_are_disjoint_and_cover_all_but_the_only_photos_of_a_species(n_folds: int) -> None:
    split = split_of(np.arange(60) % 7 + 1)
    joined = [
        image_id
        for fold in range(1, n_folds + 1)
        for image_id in cut_holdout(split, f"fold:{fold}/{n_folds}", 0)[1].image_ids.tolist()
    ]
    assert len(set(joined)) == len(joined)
    singletons = split.image_ids[split.class_counts[split.labels] == 1].tolist()
    assert sorted(joined + singletons) == sorted(split.image_ids.tolist())


def test_folds_are_of_nearly_one_size_also_where_species_have_few_photos() -> None:
    split = split_of([2] * 1000)
    sizes = [len(cut_holdout(split, f"fold:{fold}/5", 0)[1]) for fold in range(1, 6)]
    assert sum(sizes) == 2000
    # Each holds two of five starts of 1000 species: 400 with a spread of about 15.
    assert min(sizes) > 340 and max(sizes) < 460


@pytest.mark.parametrize("n_photos", [2, 3, 4, 50])
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_the_share_held_out_is_the_asked_one_whatever_a_species_count(
    n_photos: int, share: float
) -> None:
    n_species = 2000 if n_photos < 5 else 200
    split = split_of([n_photos] * n_species)
    held = cut_holdout(split, str(share), 0)[1].class_counts
    fraction = share * n_photos % 1
    # Each species holds out floor or ceiling of its share: a coin a species.
    spread = np.sqrt(fraction * (1 - fraction) * n_species)
    assert abs(held.sum() - share * n_photos * n_species) <= 4 * spread + 1e-6
    assert held.min() >= int(share * n_photos + 1e-9) and held.max() <= share * n_photos + 1


@pytest.mark.parametrize(
    ("holdout", "counts", "remedy"),
    [
        ("0.2", [1, 1, 1], "no species has a photo to spare; set data.holdout none"),
        ("fold:1/2", [1, 1, 1], "no species has a photo to spare; set data.holdout none"),
        ("0.01", [2, 1, 1], "raise the share"),
        ("fold:60/60", [2, 2, 1], "make fewer folds"),
    ],
)
def test_a_holdout_that_holds_out_nothing_is_refused(
    holdout: str, counts: list[int], remedy: str
) -> None:
    n_photos = sum(counts)
    with pytest.raises(InputError) as caught:
        cut_holdout(split_of(counts), holdout, 0)
    assert str(caught.value) == (
        f"data.holdout {holdout} holds out no photo of {n_photos}; {remedy}"
    )


def test_worlds_have_gaps_and_another_order_than_that_of_digits(tmp_path: Path) -> None:
    root = make_world(tmp_path / "w", counts=(3, 2, 1), n_val=1, n_test=1)
    split = load_split(root)
    ids = split.taxonomy.category_ids.tolist()
    assert ids == sorted(ids) and list(map(str, ids)) != sorted(map(str, ids))
    assert len(np.unique(np.diff(np.sort(split.image_ids)))) > 1
    assert all(split.path(i).is_file() for i in range(len(split)))


def test_a_geo_priors_copy_of_the_locations_is_read_too(papers: Path) -> None:
    ids = load_split(papers).image_ids
    rows = [{"id": int(i), "lat": 1.0, "lon": 2.0, "date_c": n / 100} for n, i in enumerate(ids)]
    rows[3]["date_c"] = None
    (papers / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    locations = load_split(papers).locations
    assert locations is not None
    assert locations["date_c"][:3].tolist() == [0.0, 0.01, 0.02]
    assert np.isnan(locations["date_c"][3])


def test_a_place_that_is_no_number_is_named(papers: Path) -> None:
    ids = load_split(papers).image_ids
    rows = [{"id": int(ids[0]), "lat": "north", "lon": 2.0, "date": None}]
    (papers / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    assert refusal(papers) == ("ROOT/train2018_locations.json: [0]: 'lat' is 'north', not a number")


def test_a_fingerprint_is_of_the_photos_and_species_not_of_their_order(world: Path) -> None:
    split = load_split(world)
    turned = split.select(np.arange(len(split))[::-1])
    assert turned.fingerprint == split.fingerprint
    assert split.select(np.arange(len(split) - 1)).fingerprint != split.fingerprint
    assert load_split(world, "val").fingerprint != split.fingerprint

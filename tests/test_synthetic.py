"""Synthetic worlds: layout, exact counts, same bytes, nothing rigged."""

import csv
import dataclasses
import inspect
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from inat.core.errors import InputError
from inat.core.files import read_json, system_sentence
from inat.core.metrics import shot_bands
from inat.synthetic import creatures
from inat.synthetic import world as synthetic
from inat.synthetic.world import PROFILES, Profile, World, synth, train_counts

MINI = Profile(9, 3, 64, ((0, 8), (8, 2)), n_test=20)
SHARED = Profile(40, 5, 48, ((0, 110), (20, 19), (39, 2)), n_test=83, n_photo_files=24)

IMAGE_KEYS = {"id", "width", "height", "file_name", "license", "rights_holder"}
CATEGORY_KEYS = {
    "id", "name", "supercategory", "kingdom", "phylum", "class", "order", "family", "genus"
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "mini", MINI)
    monkeypatch.setitem(PROFILES, "shared", SHARED)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "mini", MINI)
        return synth(tmp_path_factory.mktemp("mini") / "world", profile="mini", workers=0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "shared", SHARED)
        return synth(tmp_path_factory.mktemp("shared") / "world", profile="shared", workers=0)


def table(world: World, split: str) -> Any:
    return read_json(world.root / f"{split}2018.json")


def all_bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def a_creature(plan: str = "winged", seed: int = 0) -> creatures.Creature:
    latent = np.random.default_rng(seed).normal(0, 1, len(creatures.TRAITS))
    return creatures.Creature(plan, latent)


def band_sizes(counts: np.ndarray) -> tuple[int, ...]:
    return tuple(int(members.sum()) for members in shot_bands(counts).values())


# --- counts ----------------------------------------------------------------------------------


def test_inat2018_counts_are_exact_in_sum_bands_and_extremes() -> None:
    counts = train_counts(PROFILES["inat2018"])
    assert len(counts) == 8142
    assert counts.sum() == 437_513
    assert (counts.max(), counts.min()) == (1000, 2)
    assert band_sizes(counts) == (842, 4076, 3224)
    assert (np.diff(counts) <= 0).all()
    assert PROFILES["inat2018"].n_test == 149_394
    assert 8142 * PROFILES["inat2018"].n_val_per_species == 24_426


@pytest.mark.parametrize("total", [430_000, 437_513, 445_000])
def test_counts_reach_any_near_total_without_leaving_their_bands(total: int) -> None:
    counts = train_counts(dataclasses.replace(PROFILES["inat2018"], n_train=total))
    assert counts.sum() == total
    assert band_sizes(counts) == (842, 4076, 3224)
    assert (counts.max(), counts.min()) == (1000, 2)


def test_tiny_and_small_have_all_three_shot_bands() -> None:
    tiny, small = train_counts(PROFILES["tiny"]), train_counts(PROFILES["small"])
    assert band_sizes(tiny) == (3, 13, 20)
    assert (tiny.sum(), tiny.max(), tiny.min()) == (1139, 130, 2)
    assert PROFILES["tiny"].n_test == 16 * PROFILES["tiny"].n_species
    assert band_sizes(small) == (9, 23, 32)
    assert (small.sum(), small.max(), small.min()) == (2581, 180, 2)


# --- layout ----------------------------------------------------------------------------------


def test_the_world_reports_what_the_files_hold(mini: World) -> None:
    n_train = int(train_counts(MINI).sum())
    assert mini == World(mini.root, 9, n_train, 27, 20, n_train + 27 + 20)
    assert [len(table(mini, split)["images"]) for split in ("train", "val", "test")] == [
        mini.n_train,
        mini.n_val,
        mini.n_test,
    ]
    assert sum(1 for _ in mini.root.rglob("*.jpg")) == mini.n_photo_files


def test_json_tables_have_the_keys_of_inat2018(mini: World) -> None:
    for split in ("train", "val", "test"):
        content = table(mini, split)
        labelled = {"annotations", "categories"} if split != "test" else set()
        assert set(content) == {"info", "images", "licenses"} | labelled
        assert set(content["images"][0]) == IMAGE_KEYS
    assert set(table(mini, "train")["categories"][0]) == CATEGORY_KEYS
    assert set(table(mini, "train")["annotations"][0]) == {"id", "image_id", "category_id"}


def test_ids_are_unique_and_have_gaps(mini: World) -> None:
    splits = [table(mini, split) for split in ("train", "val", "test")]
    image_ids = [row["id"] for split in splits for row in split["images"]]
    annotations = [row["id"] for split in splits[:2] for row in split["annotations"]]
    category_ids = [row["id"] for row in splits[0]["categories"]]
    for ids in (image_ids, annotations, category_ids):
        assert len(set(ids)) == len(ids)
    for ids in (image_ids, category_ids):
        assert max(ids) - min(ids) > len(ids)


def test_categories_are_shuffled_and_the_same_in_train_and_val(mini: World) -> None:
    listed = [row["id"] for row in table(mini, "train")["categories"]]
    assert listed != sorted(listed)
    assert [row["id"] for row in table(mini, "val")["categories"]] == listed


def test_counts_of_the_species_follow_profile_and_truth(mini: World) -> None:
    labels = [row["category_id"] for row in table(mini, "train")["annotations"]]
    ids, counts = np.unique(labels, return_counts=True)
    assert sorted(counts, reverse=True) == train_counts(MINI).tolist()
    truth = {row["id"]: row["n_train"] for row in read_json(mini.root / "truth.json")["species"]}
    assert truth == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    val_labels = [row["category_id"] for row in table(mini, "val")["annotations"]]
    assert {val_labels.count(one) for one in truth} == {3}


def test_every_photo_row_is_on_disk_with_its_size(mini: World) -> None:
    super_of = {row["id"]: row["supercategory"] for row in table(mini, "train")["categories"]}
    for split in ("train", "val", "test"):
        content = table(mini, split)
        label_of = {row["image_id"]: row["category_id"] for row in content.get("annotations", [])}
        for row in content["images"]:
            photo = cv2.imread(str(mini.root / row["file_name"]))
            assert photo is not None
            assert photo.shape[:2] == (row["height"], row["width"])
            assert max(photo.shape) == 64
            *folder, name = row["file_name"].split("/")
            label = label_of.get(row["id"])
            assert folder == (
                ["test2018"] if split == "test" else ["train_val2018", super_of[label], str(label)]
            )
            assert len(name) == 36
            assert int(name.removesuffix(".jpg"), 16) >= 0


def test_solution_has_every_test_row_once_and_balanced_species(mini: World) -> None:
    with (mini.root / "solution.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [int(row["id"]) for row in rows] == [row["id"] for row in table(mini, "test")["images"]]
    assert {row["usage"] for row in rows} == {"Public", "Private"}
    expected = [int(row["expected"]) for row in rows]
    ids = {row["id"] for row in table(mini, "train")["categories"]}
    assert set(expected) == ids
    assert {expected.count(one) for one in ids} == {2, 3}  # 20 rows, 9 species


def test_about_a_third_of_the_solution_is_public(shared: World) -> None:
    with (shared.root / "solution.csv").open(newline="") as handle:
        public = [row["usage"] == "Public" for row in csv.DictReader(handle)]
    assert 0.15 < np.mean(public) < 0.5


def test_tree_names_are_binomials_and_no_name_occurs_twice(shared: World) -> None:
    rows = table(shared, "train")["categories"]
    seen: dict[str, set[tuple[str, ...]]] = {}
    ranks = ("supercategory", "class", "order", "family", "genus")
    for row in rows:
        assert row["name"].split()[0] == row["genus"]
        assert len(row["name"].split()) == 2
        for k, rank in enumerate(ranks):
            seen.setdefault(row[rank], set()).add(tuple(row[r] for r in ranks[: k + 1]))
    assert all(len(lineages) == 1 for lineages in seen.values())
    assert len({row["name"] for row in rows}) == len(rows)
    assert len({row["supercategory"] for row in rows}) == SHARED.n_supercategories
    sizes = np.unique([row["genus"] for row in rows], return_counts=True)[1]
    assert sizes.min() >= 2
    assert sizes.max() <= 5


def test_locations_follow_the_true_ranges_and_some_are_null(shared: World) -> None:
    rows = read_json(shared.root / "train2018_locations.json")
    content = table(shared, "train")
    assert [row["id"] for row in rows] == [row["id"] for row in content["images"]]
    label_of = {row["image_id"]: row["category_id"] for row in content["annotations"]}
    truth = {row["id"]: row for row in read_json(shared.root / "truth.json")["species"]}
    nulls = [row for row in rows if row["lat"] is None or row["date"] is None]
    assert 0.01 < len(nulls) / len(rows) < 0.06
    off = []
    for row in rows:
        assert set(row) == {"id", "lat", "lon", "date", "user_id"}
        if row["date"] is not None:
            moment = datetime.strptime(row["date"], "%Y-%m-%d %H:%M:%S%z")
            assert 2013 <= moment.year <= 2017
        assert (row["lat"] is None) == (row["lon"] is None)
        if row["lat"] is not None:
            assert -180 <= row["lon"] <= 180
            center = truth[label_of[row["id"]]]["range"]
            off.append((row["lat"] - center["lat"]) / center["spread_degrees"])
    assert abs(np.mean(off)) < 0.15
    assert 0.85 < np.std(off) < 1.15


def test_dates_follow_the_true_seasons(shared: World) -> None:
    rows = read_json(shared.root / "train2018_locations.json")
    label_of = {
        row["image_id"]: row["category_id"] for row in table(shared, "train")["annotations"]
    }
    truth = {row["id"]: row["season"] for row in read_json(shared.root / "truth.json")["species"]}
    off = []
    for row in rows:
        if row["date"] is not None:
            season = truth[label_of[row["id"]]]
            day = datetime.fromisoformat(row["date"]).timetuple().tm_yday - 1
            off.append(((day - season["peak_day"] + 182.5) % 365 - 182.5) / season["spread_days"])
    assert abs(np.mean(off)) < 0.15
    assert 0.85 < np.std(off) < 1.15


def test_truth_lists_every_trait_inside_its_range(mini: World) -> None:
    for row in read_json(mini.root / "truth.json")["species"]:
        assert row["plan"] in creatures.PLANS
        assert list(row["appearance"]) == list(creatures.TRAITS)
        for name, value in row["appearance"].items():
            low, high = creatures.TRAITS[name]
            assert low <= value <= high


# --- shared files (profile inat2018, made small) ---------------------------------------------


def test_rows_of_a_shared_world_all_point_at_its_few_files(shared: World) -> None:
    on_disk = {str(path.relative_to(shared.root)) for path in shared.root.rglob("*.jpg")}
    assert len(on_disk) == shared.n_photo_files == 24
    pointed = {
        split: {row["file_name"] for row in table(shared, split)["images"]}
        for split in ("train", "val", "test")
    }
    assert pointed["train"] | pointed["val"] | pointed["test"] == on_disk
    assert not pointed["test"] & (pointed["train"] | pointed["val"])
    assert shared.n_train == int(train_counts(SHARED).sum()) > 24


def test_photos_sets_the_number_of_shared_files(tmp_path: Path) -> None:
    world = synth(tmp_path, profile="shared", photos=5, workers=0)
    assert world.n_photo_files == sum(1 for _ in tmp_path.rglob("*.jpg")) == 5


def test_the_inat2018_rows_are_laid_out_without_rendering() -> None:
    profile = PROFILES["inat2018"]
    tree = synthetic._grow_tree(profile, 0)
    species = synthetic._draw_species(profile, tree, 0)
    splits, shown, _ = synthetic._draw_splits(profile, species, 2000, 0)
    sizes = {name: len(split.image_id) for name, split in splits.items()}
    assert sizes == {"train": 437_513, "val": 24_426, "test": 149_394}
    assert (len(shown), shown.min() >= 0, shown.max() < 8142) == (2000, True, True)
    assert (np.bincount(splits["train"].species) == species.n_train).all()
    assert (np.bincount(splits["val"].species) == 3).all()
    assert len(np.unique(np.concatenate([split.image_id for split in splits.values()]))) == 611_333
    assert tree.group["supercategory"].max() == 13


# --- same seed, same bytes -------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_workers(mini: World, tmp_path: Path) -> None:
    synth(tmp_path / "two", profile="mini", workers=2)
    assert all_bytes(tmp_path / "two") == all_bytes(mini.root)


def test_another_seed_is_another_world(mini: World, tmp_path: Path) -> None:
    synth(tmp_path / "other", profile="mini", seed=1, workers=0)
    one, two = all_bytes(mini.root), all_bytes(tmp_path / "other")
    assert one["train2018.json"] != two["train2018.json"]
    photos = [{content for name, content in w.items() if name.endswith("jpg")} for w in (one, two)]
    assert not photos[0] & photos[1]


def test_a_photo_is_a_function_of_seed_and_index() -> None:
    creature = a_creature()
    photo = creatures.render_jpeg(creature, 3, 7, 96)
    creatures.render_jpeg(a_creature("finned"), 3, 8, 96)
    assert creatures.render_jpeg(creature, 3, 7, 96) == photo
    assert creatures.render_jpeg(creature, 3, 8, 96) != photo
    assert creatures.render_jpeg(creature, 4, 7, 96) != photo


def test_a_finished_world_is_left_as_it_is(mini: World) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in mini.root.rglob("*")}

    before = stamps()
    assert synth(mini.root, profile="mini", workers=0) == mini
    assert stamps() == before


def test_a_world_that_was_cut_off_is_finished(
    mini: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_location_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            synth(tmp_path, profile="mini", workers=0)
    assert not (tmp_path / "train2018.json").exists()
    synth(tmp_path, profile="mini", workers=0)
    assert all_bytes(tmp_path) == all_bytes(mini.root)


# --- nothing is rigged -----------------------------------------------------------------------


def test_backgrounds_are_drawn_without_the_species() -> None:
    assert list(inspect.signature(creatures.background).parameters) == ["seed", "index", "size"]
    for index in range(4):
        one = creatures.render(a_creature("winged", 0), 0, index, 96)
        two = creatures.render(a_creature("finned", 1), 0, index, 96)
        assert one.shape == two.shape
        same = (one == two).all(axis=-1)
        edge = np.concatenate([same[0], same[-1], same[:, 0], same[:, -1]])
        assert edge.mean() > 0.7  # all but where the creature or its shadow reach the edge
        assert not same.all()


def test_two_species_at_one_index_differ_only_where_the_creature_is() -> None:
    for plan in creatures.PLANS:
        one = creatures.render(a_creature(plan, 0), 0, 5, 96).astype(int)
        two = creatures.render(a_creature(plan, 1), 0, 5, 96).astype(int)
        differs = (np.abs(one - two).max(axis=-1) > 8).mean()
        assert 0.02 < differs < 0.6


def colour_features(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean colour and a 4 x 4 x 4 colour histogram."""
    histogram = cv2.calcHist([photo], [0, 1, 2], None, [4, 4, 4], [0, 256] * 3).ravel()
    mean = photo.reshape(-1, 3).mean(axis=0) / 255
    return np.concatenate([mean, histogram / histogram.sum()])


def test_colour_alone_does_not_tell_the_species() -> None:
    tree = synthetic._grow_tree(PROFILES["tiny"], 0)
    species = synthetic._draw_species(PROFILES["tiny"], tree, 0)
    n_species, n_each, n_train = 12, 12, 9
    features = np.zeros((n_species, n_each, 67))
    for k in range(n_species):
        one = 3 * k  # spread over the tree, where colours differ most
        creature = creatures.Creature(species.plan[one], species.latent[one])
        for j in range(n_each):
            photo = creatures.render(creature, 0, k * n_each + j, 96)
            features[k, j] = colour_features(photo)
    centers = features[:, :n_train].mean(axis=1)
    asked = features[:, n_train:].reshape(-1, 67)
    nearest = ((asked[:, None] - centers) ** 2).sum(-1).argmin(axis=1)
    accuracy = (nearest == np.repeat(np.arange(n_species), n_each - n_train)).mean()
    assert accuracy < 0.25  # chance is 0.083; on the whole of tiny it is 0.03, chance 0.028


def test_species_of_a_genus_look_more_alike_than_others() -> None:
    tree = synthetic._grow_tree(PROFILES["small"], 0)
    latent = synthetic._draw_species(PROFILES["small"], tree, 0).latent
    apart = np.sqrt(((latent[:, None] - latent) ** 2).mean(axis=-1))
    upper = np.triu(np.ones_like(apart, dtype=bool), 1)
    genus, top = tree.group["genus"], tree.group["supercategory"]
    siblings = apart[upper & (genus[:, None] == genus)]
    strangers = apart[upper & (top[:, None] != top)]
    assert siblings.min() > 0.3
    assert siblings.mean() < 0.6 * strangers.mean()


# --- the user's mistakes ---------------------------------------------------------------------


def test_an_unknown_profile_lists_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such profile; valid: tiny, small, inat2018"):
        synth(tmp_path, profile="large")
    assert list(tmp_path.iterdir()) == []


def test_photos_goes_only_with_inat2018(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="photos 10: goes only with profile inat2018, not with tin"
    ):
        synth(tmp_path, profile="tiny", photos=10)
    with pytest.raises(InputError, match="photos 1: give at least 2"):
        synth(tmp_path, profile="inat2018", photos=1)


def test_seed_and_workers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed -1: give a whole number from 0 to 4294967295"):
        synth(tmp_path, seed=-1)
    with pytest.raises(InputError, match="workers -1: give 0"):
        synth(tmp_path, workers=-1)


def test_another_world_in_the_folder_is_refused_and_kept(mini: World) -> None:
    before = all_bytes(mini.root)
    with pytest.raises(InputError) as caught:
        synth(mini.root, profile="mini", seed=5, workers=0)
    assert str(caught.value) == (
        f"{mini.root}: holds another world (generator 1, profile mini, seed 0), not the one "
        "asked for (generator 1, profile mini, seed 5); delete the folder or give another one"
    )
    assert all_bytes(mini.root) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "world").write_text("")
    with pytest.raises(InputError, match="world: is a file; give a folder"):
        synth(tmp_path / "world", profile="mini", workers=0)


def test_a_real_data_set_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train2018.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds another data set \(train2018\.json\)"):
        synth(tmp_path, profile="mini", workers=0)


def test_an_unfinished_other_world_is_refused(mini: World, tmp_path: Path) -> None:
    shutil.copytree(mini.root / "test2018", tmp_path / "test2018")
    (tmp_path / ".unfinished-world.json").write_text('{"profile": "tiny", "seed": 3}')
    with pytest.raises(InputError, match=r"an unfinished world \(profile tiny, seed 3\)"):
        synth(tmp_path, profile="mini", workers=0)


def test_a_full_disk_names_the_photo_that_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(creatures, "render_jpeg", lambda *_: b"")
    out = tmp_path / "world"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, content: full() if not content else 0)
        patch.setattr(synthetic, "write_json", lambda *_, **__: None)
        with pytest.raises(OSError) as told:
            synth(out, profile="mini", workers=0)
    assert Path(told.value.filename).is_relative_to(out)
    assert system_sentence(told.value).endswith(
        "the disk is full; make room, or give another place"
    )

"""A photo is recognized by its bytes: by imports, trainings, predictions and what reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import xxhash
from predictions import make_prediction
from tiny_runs import tiny_config, train_tiny
from worlds import make_world, write_photo

import inat
from inat.acquire.import_folders import import_folders
from inat.cli.app import main
from inat.core.errors import InputError
from inat.dataset.split import Split, load_split
from inat.runs.run import Run
from inat.training.plan import make_plan


def add_digests(root: Path) -> None:
    """What `inat data import` writes, in the annotations of a world."""
    for path in root.glob("*2018.json"):
        document = orjson.loads(path.read_bytes())
        for row in document["images"]:
            content = (root / row["file_name"]).read_bytes()
            row["xxh3_128"] = xxhash.xxh3_128_hexdigest(content)
        path.write_bytes(orjson.dumps(document))


def images(root: Path, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = orjson.loads((root / f"{split}2018.json").read_bytes())["images"]
    return rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of three species with 20 photos each."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, name in enumerate(("dunnock", "robin", "wren")):
        for number in range(20):
            write_photo(root / name / f"{number}.jpg", label, (40, 40), rng)
    return root


@pytest.fixture(scope="module")
def imported(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same photos, imported with two seeds: the same ids and counts, another val."""
    root = tmp_path_factory.mktemp("imported")
    return [
        import_folders(photos, root / f"d{seed}", val_share=0.5, seed=seed).root for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def run(imported: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", imported[0])


def refusal(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.exit_status == 2
    return str(caught.value)


# What a split knows


def test_an_import_states_the_xxh3_128_of_every_photo_of_every_split(
    photos: Path, tmp_path: Path
) -> None:
    made = import_folders(photos, tmp_path / "data", test=photos)
    for name in ("train", "val", "test"):
        split = load_split(made.root, name)
        digests = [
            xxhash.xxh3_128_hexdigest(split.path(at).read_bytes()) for at in range(len(split))
        ]
        assert [row["xxh3_128"] for row in images(made.root, name)] == digests
        assert split.digests is not None
        unsigned = split.digests.astype(np.uint64).tolist()
        assert unsigned == [int(digest[:16], 16) for digest in digests]
        assert split.keys.tolist() == split.digests.tolist()


def test_without_digests_a_key_depends_on_id_name_and_size(world: Path) -> None:
    split = load_split(world)
    assert split.digests is None
    assert len(set(split.keys.tolist())) == len(split)
    turned = split.select(np.arange(len(split))[::-1])
    assert turned.keys.tolist() == split.keys.tolist()[::-1]
    for field in ("image_ids", "sizes"):
        changed = Split(**{**vars(load_split(world)), field: getattr(split, field) + 1})
        assert not np.isin(changed.keys, split.keys).any()


def test_train_and_val_together_know_the_digests_of_both(world: Path, tmp_path: Path) -> None:
    root = make_world(tmp_path / "data")
    alone = load_split(root, "train").keys.tolist()
    add_digests(root)
    splits = [load_split(root, name) for name in ("train", "val", "train+val")]
    assert splits[2].keys.tolist() == [*splits[0].keys.tolist(), *splits[1].keys.tolist()]
    assert not set(alone) & set(splits[2].keys.tolist())


@pytest.mark.parametrize("value", ["abc", "", "g" * 32, " " * 32, 7, ["0" * 32]])
def test_a_digest_that_is_none_is_named(world: Path, tmp_path: Path, value: object) -> None:
    document = orjson.loads((world / "train2018.json").read_bytes())
    document["images"][3]["xxh3_128"] = value
    (tmp_path / "train2018.json").write_bytes(orjson.dumps(document))
    text = refusal(lambda: load_split(tmp_path))
    assert "train2018.json: images[3]: 'xxh3_128'" in text
    assert "correct or remove it" in text


@pytest.mark.parametrize("field", ["observation_id", "group_id", "group", "seq_id", "sequence"])
def test_photos_of_one_observation_have_one_group_in_all_splits(tmp_path: Path, field: str) -> None:
    root = make_world(tmp_path / "data")
    values = [7, "a", 7.0, None, "a", ""]
    for name in ("train", "val"):
        path = root / f"{name}2018.json"
        document = orjson.loads(path.read_bytes())
        for row, value in zip(document["images"], values, strict=False):
            row[field] = value
        path.write_bytes(orjson.dumps(document))
    first, second = (load_split(root, name).groups for name in ("train", "val"))
    assert first is not None and second is not None
    assert first[:6].tolist() == second[:6].tolist()
    seven, letter = first[:2].tolist()
    assert first[:6].tolist() == [seven, letter, seven, 0, letter, 0]
    assert 0 != seven != letter != 0
    assert not first[6:].any()


@pytest.mark.parametrize("value", [True, [1], {"id": 1}, 7.5])
def test_a_group_that_is_neither_text_nor_a_whole_number_is_named(
    world: Path, tmp_path: Path, value: object
) -> None:
    document = orjson.loads((world / "train2018.json").read_bytes())
    document["images"][3]["group"] = value
    (tmp_path / "train2018.json").write_bytes(orjson.dumps(document))
    text = refusal(lambda: load_split(tmp_path))
    assert "train2018.json: images[3]: 'group' is" in text


# Imports that cut


@pytest.fixture(scope="module")
def bursts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two species of ten shots each, four identical files a shot."""
    root, rng = tmp_path_factory.mktemp("bursts"), np.random.default_rng(0)
    for label, name in enumerate(("dunnock", "wren")):
        for shot in range(10):
            write_photo(root / name / f"{shot}-0.jpg", label, (40, 40), rng)
            content = (root / name / f"{shot}-0.jpg").read_bytes()
            for copy in (1, 2, 3):
                (root / name / f"{shot}-{copy}.jpg").write_bytes(content)
    return root


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_copies_are_on_one_side_of_val_holdout_and_folds(
    bursts: Path, tmp_path: Path, seed: int
) -> None:
    made = import_folders(bursts, tmp_path / "data", val_share=0.25, seed=seed)
    train, val = (load_split(made.root, name) for name in ("train", "val"))
    assert val.class_counts.tolist() in ([8, 8], [12, 8], [8, 12], [12, 12])
    assert not np.isin(val.keys, train.keys).any()
    for holdout in ("0.2", "fold:1/3", "fold:2/3"):
        kept, held = inat.cut_holdout(train, holdout, seed)
        assert len(held) > 0
        assert not np.isin(held.keys, kept.keys).any()


def test_an_import_counts_copies_within_a_species_under_two_and_in_test(
    bursts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, test = tmp_path / "photos", tmp_path / "test"
    for name in ("dunnock", "wren"):
        (source / name).mkdir(parents=True)
        (test / name).mkdir(parents=True)
    content = [(bursts / "dunnock" / f"{shot}-0.jpg").read_bytes() for shot in range(6)]
    for at, place in enumerate(
        [source / "dunnock" / "a.jpg", source / "dunnock" / "b.jpg", source / "wren" / "c.jpg"]
    ):
        place.write_bytes(content[at])
    (source / "dunnock" / "same.jpg").write_bytes(content[1])
    (source / "wren" / "wrong.jpg").write_bytes(content[0])
    (test / "dunnock" / "seen.jpg").write_bytes(content[0])
    (test / "wren" / "seen.jpg").write_bytes(content[2])
    (test / "wren" / "new.jpg").write_bytes(content[3])
    out = tmp_path / "data"
    status = main(
        ["data", "import", "--train", str(source), "--test", str(test), "--out", str(out)]
    )
    assert status == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[14:] for line in printed if line.startswith("copies")] == [
        f"1 photos have the bytes of another photo of their species (first: "
        f"{source}/dunnock/same.jpg is {source}/dunnock/b.jpg)",
        f"1 photos have the bytes of a photo of another species; remove the wrong ones (first: "
        f"{source}/wren/wrong.jpg is {source}/dunnock/a.jpg)",
        f"2 of the test photos have the bytes of a photo of train or val (first: "
        f"{test}/dunnock/seen.jpg is {source}/dunnock/a.jpg)",
    ]


# Other data sets with the same numbers


def test_another_import_of_the_same_photos_is_another_data_set(imported: list[Path]) -> None:
    first, second = (load_split(root) for root in imported)
    assert sorted(first.image_ids.tolist()) == sorted(second.image_ids.tolist())
    assert first.class_counts.tolist() == second.class_counts.tolist()
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_does_not_depend_on_how_photos_are_numbered(
    imported: list[Path], tmp_path: Path
) -> None:
    document = orjson.loads((imported[0] / "train2018.json").read_bytes())
    for row in document["images"]:
        row["id"] += 1000
    for row in document["annotations"]:
        row["image_id"] += 1000
    (tmp_path / "train2018.json").write_bytes(orjson.dumps(document))
    assert load_split(tmp_path).fingerprint == load_split(imported[0]).fingerprint


def test_another_import_is_not_taken_for_the_photos_that_were_trained_on(
    run: Run, imported: list[Path], tmp_path: Path
) -> None:
    other, out = imported[1], tmp_path / "out"
    calls = {
        "predict": lambda: inat.predict(run.path, "val", root=other, name="other"),
        "resume": lambda: train_tiny(run.path, other, resume=True),
        "stage-two": lambda: inat.train_stage_two(run.path, out, method="ncm", root=other),
        "soup": lambda: inat.soup([run.path, run.path], out, root=other),
    }
    for call in calls.values():
        assert "trained on" in refusal(call)
    assert not out.exists()
    assert not run.prediction("other").exists()


# Roles


def test_photos_whose_bytes_were_trained_on_are_trained_on_under_any_name_and_number(
    run: Run, imported: list[Path], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for row in images(imported[0], split):
            place = root / row["file_name"]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((imported[0] / row["file_name"]).read_bytes())
        (root / f"{split}2018.json").write_bytes((imported[0] / f"{split}2018.json").read_bytes())
    # Three of val become copies of a photo that is trained on and two of one that is held out.
    trained, held = inat.cut_holdout(load_split(root), "0.3", run.config.data.holdout_seed)
    document = orjson.loads((root / "val2018.json").read_bytes())
    for at, source in enumerate([trained.path(0)] * 3 + [held.path(0)] * 2):
        (root / document["images"][at]["file_name"]).write_bytes(source.read_bytes())
    (root / "val2018.json").write_bytes(orjson.dumps(document))
    add_digests(root)
    roles = inat.predict(run.path, "val", root=root, name="copies").photos["role"].tolist()
    assert roles == ["trained on"] * 3 + ["held out"] * 2 + ["unseen"] * (len(roles) - 5)


def test_a_prediction_keeps_the_key_of_each_photo(run: Run, imported: list[Path]) -> None:
    prediction = inat.predict(run.path, "val")
    assert prediction.photos["key"].tolist() == load_split(imported[0], "val").keys.tolist()


def test_a_prediction_that_is_there_is_not_given_for_other_photos(
    run: Run, imported: list[Path], tmp_path: Path
) -> None:
    root = make_world(tmp_path / "data", n_val=2)
    add_digests(root)
    own = train_tiny(tmp_path / "run", root)
    first = inat.predict(own.path, "val")
    assert inat.predict(own.path, "val").photos.equals(first.photos)
    rng = np.random.default_rng(9)
    write_photo(root / images(root, "val")[0]["file_name"], 0, (48, 64), rng)
    add_digests(root)
    text = refusal(lambda: inat.predict(own.path, "val"))
    assert "other photos" in text and "--overwrite" in text
    again = inat.predict(own.path, "val", overwrite=True)
    assert (again.photos["key"] != first.photos["key"]).tolist() == [True] + [False] * 7


# Predictions side by side


@pytest.mark.parametrize("verb", ["ensemble", "compare"])
def test_predictions_of_other_photos_under_the_same_ids_are_refused(
    tmp_path: Path, verb: str
) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 3))
    one = make_prediction(tmp_path / "one", logits, labels=[0, 1, 2] * 2)
    other = make_prediction(tmp_path / "other", logits, labels=[0, 1, 2] * 2)
    keys = other.photos["key"].to_numpy().copy()
    keys[4] += 1
    other.photos.assign(key=keys).to_parquet(tmp_path / "other" / "photos.parquet")
    calls = {
        "ensemble": lambda: inat.ensemble([one.path, other.path], tmp_path / "out"),
        "compare": lambda: inat.compare(one.path, other.path),
    }
    text = refusal(calls[verb])
    assert text.startswith(f"{other.path}: 1 of its 6 photos are others than in {one.path}")
    assert f"(first: {one.ids[4]})" in text


# What a training and an evaluation say


def test_a_plan_counts_the_photos_of_val_with_a_copy_or_a_group_mate_that_is_trained_on(
    tmp_path: Path,
) -> None:
    root = make_world(tmp_path / "data", counts=(20, 8, 6, 6), n_val=3)
    config = tiny_config(**{"data.root": root})
    assert not any(line.startswith("copies") for line in make_plan(config).describe())
    val = images(root, "val")
    trained, held = inat.cut_holdout(load_split(root), "0.3", config.data.holdout_seed)
    (root / val[0]["file_name"]).write_bytes(trained.path(0).read_bytes())
    (root / val[1]["file_name"]).write_bytes(held.path(0).read_bytes())
    add_digests(root)
    line = "copies     0 of {} held-out and {} of 12 val photos have a copy, or another photo of "
    n_held = len(held)
    assert line.format(n_held, 1) in "\n".join(make_plan(config).describe())
    for split, image_id in (("train", trained.image_ids[1]), ("val", val[2]["id"])):
        path = root / f"{split}2018.json"
        document = orjson.loads(path.read_bytes())
        next(r for r in document["images"] if r["id"] == image_id)["observation_id"] = "walk 7"
        path.write_bytes(orjson.dumps(document))
    assert line.format(n_held, 2) in "\n".join(make_plan(config).describe())
    alone = replace(config, data=replace(config.data, holdout="none"))
    assert "copies     3 of 12 val photos have" in "\n".join(make_plan(alone).describe())


def test_an_evaluation_counts_the_copies_in_val_and_scores_the_others_alone(
    run: Run, imported: list[Path], tmp_path: Path
) -> None:
    prediction = inat.predict(run.path, "val")
    roles = prediction.photos["role"].to_numpy(object).copy()
    roles[:4] = "trained on"
    prediction.photos["role"] = roles
    found = inat.evaluate(prediction)
    alone = found.hits[4:].mean()
    assert found.notes[0] == (
        f"4 of {len(prediction)} photos are copies of photos that were trained on; without them "
        f"top-1 is {alone:.1%}"
    )

"""Folders of photos become a data set in the iNat layout."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from inat.data.annotations import load_split
from inat.data.importing import import_folders
from inat.errors import InputError


def make_folders(root: Path, counts: dict[str, int], ending: str = "jpg") -> Path:
    """One folder a species; the photo's grey value is its number, so that it can be told."""
    for place, (name, n_photos) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(n_photos):
            pixels = np.full((6, 9, 3), 20 * place + number, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.{ending}")
    return root


def test_import_keeps_every_photo_once_with_its_label(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 10, "dunnock": 5, "robin": 1})
    made = import_folders(source, tmp_path / "data", val_share=0.2)
    assert (made.n_species, made.n_train, made.n_val, made.n_test) == (3, 13, 3, 0)
    splits = [load_split(made.root, name) for name in ("train", "val")]
    assert splits[0].taxonomy.names == ["dunnock", "robin", "wren"]
    assert splits[0].class_counts.tolist() == [4, 1, 8]
    assert splits[1].class_counts.tolist() == [1, 0, 2]
    names = splits[0].taxonomy.names
    found = [
        (names[split.labels[row]], split.path(row).name)
        for split in splits
        for row in range(len(split))
    ]
    original = [(p.parent.name, p.name) for p in source.rglob("*.jpg")]
    assert sorted(found) == sorted(original)
    assert splits[0].sizes.tolist() == [[6, 9]] * 13


def test_photos_are_hard_linked_and_copied_where_the_disk_does_not_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 3})
    linked = import_folders(source, tmp_path / "linked", val_share=0)
    photo = load_split(linked.root).path(0)
    assert photo.stat().st_ino == (source / "wren" / photo.name).stat().st_ino

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    copied = import_folders(source, tmp_path / "copied", val_share=0)
    photo = load_split(copied.root).path(0)
    assert photo.stat().st_nlink == 1
    assert photo.read_bytes() == (source / "wren" / photo.name).read_bytes()


def test_png_stays_png_and_colliding_names_become_unique(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 2}, "png")
    (source / "wren" / "more").mkdir()
    Image.new("RGB", (5, 5), "red").save(source / "wren" / "more" / "000.png")
    made = import_folders(source, tmp_path / "data", val_share=0)
    names = sorted(load_split(made.root).path(row).name for row in range(3))
    assert names == ["000-2.png", "000.png", "001.png"]
    assert all(load_split(made.root).path(r).read_bytes()[:4] == b"\x89PNG" for r in range(3))


def test_a_labelled_test_folder_becomes_test_json_and_solution(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 4, "robin": 4})
    test = make_folders(tmp_path / "test", {"robin": 2, "wren": 3})
    made = import_folders(source, tmp_path / "data", test=test)
    split = load_split(made.root, "test")
    assert (split.labels == -1).all()
    solution = pd.read_csv(made.root / "solution.csv")
    assert solution["id"].tolist() == split.image_ids.tolist()
    assert set(solution["usage"]) <= {"Public", "Private"}
    # Robin is category 0; a robin's grey values in the test folder are 0 and 1, a wren's 20 on.
    for row, expected in enumerate(solution["expected"]):
        grey = np.asarray(Image.open(split.path(row))).mean()
        assert expected == (0 if grey < 10 else 1)


def test_an_unlabelled_test_folder_has_no_solution(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 4})
    flat = make_folders(tmp_path / "test", {"x": 3}) / "x"
    made = import_folders(source, tmp_path / "data", test=flat)
    assert made.n_test == len(load_split(made.root, "test")) == 3
    assert not (made.root / "solution.csv").exists()


def test_an_imbalance_factor_gives_the_exponential_profile(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {f"s{j}": 20 for j in range(5)})
    made = import_folders(source, tmp_path / "data", val_share=0, imbalance_factor=10)
    # Cao et al.'s code: int(n_max * factor ** (-j / (C - 1)))
    expected = [int(20 * 0.1 ** (j / 4)) for j in range(5)]
    assert load_split(made.root).class_counts.tolist() == expected == [20, 11, 6, 3, 2]


def test_the_cut_is_a_function_of_the_seed(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 20})
    cuts = [
        {
            p.name
            for p in map(
                load_split(
                    import_folders(source, tmp_path / f"d{n}", val_share=0.5, seed=seed).root,
                    "val",
                ).path,
                range(10),
            )
        }
        for n, seed in enumerate((0, 0, 1))
    ]
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def test_bad_folders_get_one_line(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 2})
    empty = tmp_path / "empty"
    empty.mkdir()
    strange = make_folders(tmp_path / "strange", {"emu": 1})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    cases = [
        ({"train": tmp_path / "no"}, "no: there is no such folder"),
        ({"train": empty}, "empty: has no folders; it needs one folder of photos a species"),
        ({"val_share": 1.0}, "--val-share 1 is not from 0 up to 1"),
        ({"imbalance_factor": 0.5}, "--imbalance-factor 0.5 is less than 1; 100 is the usual one"),
        ({"out": tmp_path / "full"}, "full: the folder is not empty; give a new --out"),
        ({"test": strange}, "emu: no folder of that name is among the training folders"),
    ]
    for options, message in cases:
        with pytest.raises(InputError) as refused:
            import_folders(**{"train": source, "out": tmp_path / "new", **options})  # type: ignore[arg-type]
        assert str(refused.value).endswith(message)
    (source / "robin").mkdir()
    with pytest.raises(InputError, match="robin: there is no photo in it; remove it or add one"):
        import_folders(source, tmp_path / "new")

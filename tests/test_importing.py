"""Folders of photos become a data set in the iNat layout."""

import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from photo_reading import read_whole
from PIL import Image

from inat.acquire import import_folders as importing
from inat.acquire.import_folders import MOVED, WORK, Imported, fitting, import_folders
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import locked, write_json
from inat.dataset.split import Split, load_split


def make_folders(root: Path, counts: dict[str, int], ending: str = "jpg") -> Path:
    """One folder a species; the photo's grey value is its number, so that it can be told."""
    for place, (name, n_photos) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(n_photos):
            pixels = np.full((6, 9, 3), (20 * place + number) % 256, np.uint8)
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
        ({"train": empty}, "empty: has no folders; it needs one folder of photos per species"),
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


def names_of(split: Split) -> list[str]:
    return [Path(name).name for name in split.file_names.to_pylist()]


def imported(source: Path, out: Path, **options: object) -> tuple[Imported, Split]:
    made = import_folders(source, out, **{"val_share": 0, **options})  # type: ignore[arg-type]
    return made, load_split(made.root)


def kinds(made: Imported) -> list[tuple[str, str]]:
    return sorted((one.path.name, one.kind) for one in made.passed_over)


def photo(ending: str, color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (9, 6), color).save(content, ending)
    return content.getvalue()


# Which folders are species


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("Aves/Turdus merula", "Aves/Parus major"), ("Aves/Parus major", "--species leaf", "top")),
        (("wren", "Aves/Parus major"), ("Aves/Parus major", "1 of 2", "--species")),
        (("a/b/c", "d"), ("a/b/c", "--species leaf")),
        (
            ("train/wren", "train/emu", "valid/wren"),
            ("splits", "--train", "photos/train", "--test"),
        ),
        (("Train/wren", "Test"), ("splits", "photos/Train")),
        (("train", "val"), ("splits", "--species top")),
    ],
)
def test_folders_that_may_not_be_species_are_refused_with_the_way_out(
    tmp_path: Path, folders: tuple[str, ...], words: tuple[str, ...]
) -> None:
    source = make_folders(tmp_path / "photos", dict.fromkeys(folders, 2))
    with pytest.raises(InputError) as refused:
        import_folders(source, tmp_path / "data")
    assert all(word in str(refused.value) for word in words)
    assert not (tmp_path / "data").exists()


def test_leaf_takes_each_folder_of_photos_and_top_the_folders_above(tmp_path: Path) -> None:
    counts = {"Aves/merula": 2, "Aves/major": 3, "Insecta/Apis/mellifera": 1, "fungus": 1}
    source = make_folders(tmp_path / "photos", counts)
    made, split = imported(source, tmp_path / "leaf", species="leaf")
    table = split.taxonomy.table
    assert list(table["name"]) == ["fungus", "major", "mellifera", "merula"]
    assert list(table["supercategory"]) == ["photos", "Aves", "Apis", "Aves"]
    assert [row.train for row in made.species] == [1, 3, 1, 2]
    made, split = imported(source, tmp_path / "top", species="top")
    assert [(row.name, row.train) for row in made.species] == [
        ("Aves", 5),
        ("Insecta", 1),
        ("fungus", 1),
    ]
    labelled, _ = imported(source, tmp_path / "tested", species="leaf", test=source)
    assert [row.test for row in labelled.species] == [1, 3, 1, 2]


def test_two_folders_of_one_species_name_are_refused(tmp_path: Path) -> None:
    nested = make_folders(tmp_path / "nested", {"train/wren": 1, "valid/wren": 1})
    forms = {unicodedata.normalize(form, "Mésange"): 1 for form in ("NFC", "NFD")}
    accents = make_folders(tmp_path / "accents", forms)
    for source, choice, name in ((nested, "leaf", "wren"), (accents, None, "Mésange")):
        with pytest.raises(InputError, match=f"two folders have the species name '{name}'"):
            import_folders(source, tmp_path / "data", species=choice)  # type: ignore[arg-type]


def test_species_names_agree_in_whatever_unicode_form_a_system_writes_them(tmp_path: Path) -> None:
    name = "Lasius émarginé"
    source = make_folders(tmp_path / "train", {unicodedata.normalize("NFC", name): 2})
    test = make_folders(tmp_path / "test", {unicodedata.normalize("NFD", name): 3})
    made, split = imported(source, tmp_path / "data", test=test)
    assert made.species == [(name, 2, 0, 3)]
    assert split.taxonomy.names == [name]


@pytest.mark.parametrize(
    "folder",
    [".x", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN",
     "System Volume Information"],
)  # fmt: skip
def test_system_folders_are_no_species_and_no_source_of_photos(tmp_path: Path, folder: str) -> None:
    counts = {"wren": 2, folder: 1, f"wren/{folder}": 1}
    source = make_folders(tmp_path / "photos", counts)
    made, split = imported(source, tmp_path / "data", test=source)
    assert split.taxonomy.names == ["wren"]
    assert (made.n_train, made.n_test) == (2, 2)
    assert kinds(made) == [(folder, "system folder")] * 4
    assert f"4 system or hidden folders: {folder}" in "\n".join(made.lines())


def test_a_file_given_for_a_folder_and_folders_inside_each_other_are_refused(
    tmp_path: Path,
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 2, "test": 1})
    (tmp_path / "meta.csv").write_text("path,label")
    (tmp_path / "file").write_text("")
    cases = [
        ({"train": tmp_path / "meta.csv"}, ("meta.csv: is a file", "one folder of photos per")),
        ({"test": tmp_path / "meta.csv"}, ("meta.csv: is a file", "--test")),
        ({"out": source / "data"}, ("data: lies in the --train folder", "--out")),
        ({"test": source / "test"}, ("test: lies in the --train folder", "move")),
        ({"out": tmp_path / "file"}, ("file: is a file", "--out")),
        ({"out": tmp_path / "\udcf1"}, ("%F1: the name is not UTF-8", "--out")),
    ]
    for options, words in cases:
        with pytest.raises(InputError) as refused:
            import_folders(**{"train": source, "out": tmp_path / "new", **options})  # type: ignore[arg-type]
        assert all(word in str(refused.value) for word in words)


# Which files are photos


def test_content_decides_what_a_photo_is_and_the_rest_is_listed_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    wren = make_folders(tmp_path / "photos", {"wren": 1}) / "wren"
    jpeg = (wren / "000.jpg").read_bytes()
    taken = {
        "a.jfif": jpeg, "b.JPE": jpeg, "c.mpo": jpeg, "d.HEIC": jpeg, "no_ending": jpeg,
        "e.jpg_large": jpeg, "f.jpg": photo("GIF"), "g.avif": photo("AVIF"),
        "h.webp": photo("WEBP"), "i.BMP": photo("BMP"), "j.tif": photo("TIFF"), "k": photo("PNG"),
    }  # fmt: skip
    passed_over = {
        "m.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        "n.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heic"),
        "o.heif": (b"anything", "heic"),
        "p.NEF": (photo("TIFF"), "raw"),
        "q.jpg": (b"", "unreadable"),
        "r.jpeg": (b"<html>403</html>", "unreadable"),
        "s.jpg": (jpeg[:20], "unreadable"),
        "t.txt": (b"notes", "other"),
        "u": (b"", "other"),
        "._v.jpg": (jpeg, "system file"),
        ".DS_Store": (b"x", "system file"),
        "Thumbs.db": (b"x", "system file"),
    }
    for name, content in (taken | {name: c for name, (c, _) in passed_over.items()}).items():
        (wren / name).write_bytes(content)
    os.mkfifo(wren / "pipe.jpg")
    assert main(["data", "import", "--train", str(wren.parent), "--out", str(tmp_path / "data"),
                 "--val-share", "0"]) == 0  # fmt: skip
    split = load_split(tmp_path / "data")
    assert sorted(names_of(split)) == sorted(["000.jpg", *taken])
    for row in range(len(split)):
        assert split.sizes[row].tolist() == [6, 9]
        read_whole(split.path(row).read_bytes())
    with (tmp_path / "data" / "passed_over.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    expected = {name: kind for name, (_, kind) in passed_over.items()} | {"pipe.jpg": "other"}
    assert {name: row["kind"] for name, row in rows.items()} == expected
    assert rows["q.jpg"]["reason"] == "the file is empty"
    assert rows["r.jpeg"]["reason"] == "a web page"
    printed = capsys.readouterr().out
    for line in ("3 photos that cannot be read: ", "3 HEIC photos; pip install 'inat[heic]'",
                 "1 camera raw file; save as JPEG: .nef 1", "3 system or hidden files: ",
                 "3 other files: ", "next: inat train "):  # fmt: skip
        assert line in printed


def test_a_species_without_a_readable_photo_is_refused_with_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    source = make_folders(tmp_path / "photos", {"wren": 1, "emu": 0})
    (source / "emu" / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(
        InputError, match=r"emu: there is no photo in it \(1 HEIC photo; pip install"
    ):
        import_folders(source, tmp_path / "data")


def test_heic_photos_become_upright_jpegs_with_their_profile_and_exif_data(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    wren = make_folders(tmp_path / "photos", {"wren": 0}) / "wren"
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = (250, 10, 10)  # a red left half; turned by 90 degrees it is the upper half
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    image = Image.fromarray(pixels)
    heif = pillow_heif.from_pillow(image)
    heif.save(wren / "IMG_1.HEIC", exif=exif.tobytes(), icc_profile=b"profile", quality=95)
    made, split = imported(wren.parent, tmp_path / "data")
    assert made.n_converted == 1 and not made.passed_over
    assert names_of(split) == ["IMG_1.jpg"]
    assert split.sizes.tolist() == [[96, 64]]
    content = split.path(0).read_bytes()
    read = read_whole(content).pixels
    assert read.shape == (96, 64, 3)
    assert abs(read[10, 32].astype(int) - (250, 10, 10)).max() < 12
    assert abs(read[80, 32].astype(int)).max() < 12
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.getexif()[0x010F] == "Maker"
        assert stored.getexif().get(0x0112, 1) == 1
        assert stored.info["icc_profile"] == b"profile"
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(noise)).save(wren / "IMG_2.HEIC", quality=95)
    whole = (wren / "IMG_2.HEIC").read_bytes()
    (wren / "IMG_2.HEIC").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorldError, match=r"IMG_2\.HEIC: the HEIC photo is damaged"):
        import_folders(wren.parent, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_linked_photos_and_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    store = make_folders(tmp_path / "store", {"a": 3, "b": 2, "c": 2})
    source = make_folders(tmp_path / "photos", {"b": 1, "c": 0, "d": 1})
    (source / "a").symlink_to(store / "a")
    (source / "b" / "day").symlink_to(store / "b")
    for number in range(2):
        (source / "c" / f"{number}.jpg").symlink_to(store / "c" / f"{number:03}.jpg")
    (source / "c" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (source / "d" / "up").symlink_to(source)
    (source / "d" / "self").symlink_to(source / "d")
    (source / "d" / "round").symlink_to("round")
    made, split = imported(source, tmp_path / "data")
    assert [row.train for row in made.species] == [3, 3, 2, 1]
    assert made.n_linked == 7
    assert "7 photos were reached through links" in "\n".join(made.lines())
    assert kinds(made) == [("gone.jpg", "broken link"), ("round", "broken link"), ("self", "loop"),
                           ("up", "loop")]  # fmt: skip
    assert not any(split.path(row).is_symlink() for row in range(len(split)))


def test_folders_that_link_to_each_other_do_not_multiply(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {f"s{j}": 1 for j in range(9)})
    for one in range(9):
        for other in range(9):
            (source / f"s{one}" / f"to{other}").symlink_to(source / f"s{other}")
    made, _ = imported(source, tmp_path / "data")
    assert [row.train for row in made.species] == [9] * 9


# Names


def test_names_that_are_not_utf8_are_imported_escaped(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"a": 2, "b": 1})
    os.rename(os.fsencode(source / "b"), os.fsencode(source) + b"/B\xe4ume")  # noqa: PTH104
    os.rename(  # noqa: PTH104
        os.fsencode(source / "a" / "000.jpg"), os.fsencode(source / "a") + b"/Ma\xf1ana.jpg"
    )
    (source / "a" / "001.jpg").rename(source / "a" / "line\nbreak\\..\\x.jpg")
    made, split = imported(source, tmp_path / "data", test=source)
    assert split.taxonomy.names == ["B%E4ume", "a"]
    assert sorted(names_of(split)) == ["000.jpg", "Ma%F1ana.jpg", "line%0Abreak%5C..%5Cx.jpg"]
    assert made.species == [("B%E4ume", 1, 0, 1), ("a", 2, 0, 2)]
    assert all(split.path(row).is_file() for row in range(3))


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125, "a." + "y" * 249])
def test_long_names_are_shortened_to_stay_unique(tmp_path: Path, stem: str) -> None:
    source = make_folders(tmp_path / "photos", {"a/1": 1, "a/2": 1, "a/3": 1})
    for number in (1, 2, 3):
        folder = source / "a" / str(number)
        (folder / "000.jpg").rename(folder / f"{stem}.jpg")
    _, split = imported(source, tmp_path / "data", species="top")
    names = names_of(split)
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= 255 and name.endswith(".jpg") for name in names)
    assert all(split.path(row).is_file() for row in range(3))


def test_names_that_differ_only_in_case_stay_two_files_on_every_disk(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"a": 0})
    for name in ("IMG.JPG", "img.jpg", "img-2.jpg"):
        (source / "a" / name).write_bytes(photo("JPEG"))
    _, split = imported(source, tmp_path / "data")
    assert len({name.lower() for name in names_of(split)}) == 3


def test_equal_names_in_many_folders_cost_a_step_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folders(tmp_path / "photos", {"a": 1})
    test = make_folders(tmp_path / "test", {f"a/{n}": 1 for n in range(200)})
    steps = 0

    def counted(stem: str, ending: str = "") -> str:
        nonlocal steps
        steps += 1
        return fitting(stem, ending)

    monkeypatch.setattr(importing, "fitting", counted)
    made, _ = imported(source, tmp_path / "data", test=test)
    assert made.n_test == 200
    names = sorted(names_of(load_split(made.root, "test")))
    assert names == sorted(["000.jpg", *(f"000-{n}.jpg" for n in range(2, 201))])
    assert steps <= 4 * 201  # to try every number from 2 on would take 20,000


# Whole or nothing


def test_an_import_that_fails_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 6})
    out, placed = tmp_path / "data", 0

    def full(*_: object) -> None:
        nonlocal placed
        placed += 1
        if placed > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", lambda *_: full())
        patched.setattr(shutil, "copyfile", lambda *_: full())
        with pytest.raises(WorldError, match=r"data: the disk is full; .* give another --out"):
            import_folders(source, out)
    assert not out.exists()
    out.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_folders(source, out)
    assert list(out.iterdir()) == []
    made, _ = imported(source, out)
    assert made.n_train == 6
    assert sorted(path.name for path in out.iterdir() if path.name != ".inat") == [
        "train2018.json", "train_val2018",
    ]  # fmt: skip


def test_the_second_of_two_imports_into_one_folder_is_refused(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 2})
    out = tmp_path / "data"
    (out / WORK).mkdir(parents=True)
    with (
        locked(out / WORK / "lock", "busy"),
        pytest.raises(WorldError, match="data: another import fills it; give another --out"),
    ):
        import_folders(source, out)
    made, _ = imported(source, out)  # what a killed import left does not matter
    assert made.n_train == 2
    with pytest.raises(InputError, match="data: the folder is not empty"):
        import_folders(source, out)


def test_of_imports_started_together_one_fills_the_folder_and_no_trace_is_left_of_the_others(
    tmp_path: Path,
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 30, "emu": 30})
    out = tmp_path / "data"
    program = (
        "import sys\n"
        "from inat.acquire.import_folders import import_folders\n"
        "from inat.core.errors import InatError\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try: import_folders(sys.argv[1], sys.argv[2], val_share=0); print('made')\n"
        "except InatError as error: print(type(error).__name__)\n"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", program, str(source), str(out)]
    processes = [subprocess.Popen(words, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    ended = []
    for process in processes:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    for process in processes:
        ended.append(process.communicate()[0].strip())
        assert process.returncode == 0
    assert ended.count("made") == 1
    assert set(ended) <= {"made", "InputError", "WorldError"}
    assert len(load_split(out)) == 60
    names = {path.name for path in out.iterdir()} - {".inat"}
    assert names == {"train2018.json", "train_val2018"}


def test_a_refused_import_leaves_no_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 2})
    out = tmp_path / "data"
    out.mkdir()
    lock = importing.locked

    def late(path: Path, busy: str) -> Any:
        (out / "train2018.json").write_text("{}")  # another import ends before the lock is free
        return lock(path, busy)

    monkeypatch.setattr(importing, "locked", late)
    with pytest.raises(InputError, match="data: the folder is not empty"):
        import_folders(source, out)
    assert [path.name for path in out.iterdir()] == ["train2018.json"]


def test_a_killed_import_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 4})
    program = (
        "import os, signal, sys\n"
        "from inat.acquire.import_folders import import_folders\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "link, calls = os.link, []\n"
        "os.link = lambda *a: kill() if calls.append(a) or len(calls) > 2 else link(*a)\n"
        "import_folders(sys.argv[1], sys.argv[2], val_share=0)\n"
    )
    out = tmp_path / "data"
    ended = subprocess.run([sys.executable, "-c", program, str(source), str(out)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [WORK]
    made, split = imported(source, out)
    assert (made.n_train, len(split)) == (4, 4)
    assert not (out / WORK).exists()


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from inat.acquire import import_folders as importing
def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
rename, left = Path.rename, [int(sys.argv[4])]
def counted(*paths):
    left[0] -= 1
    return kill() if left[0] < 0 else rename(*paths)
def at_the_end(path, **options):
    return kill() if path.name == importing.WORK else rmtree(path, **options)
Path.rename = counted
rmtree, importing.shutil.rmtree = importing.shutil.rmtree, at_the_end
importing.import_folders(sys.argv[1], sys.argv[2], test=sys.argv[3])
"""
"""Imports, and is killed when so many things were moved into place, at last when all were."""


@pytest.mark.parametrize(("n_moved", "is_whole"), [(0, False), (3, False), (9, True)])
def test_an_import_killed_while_it_moves_data_into_place_is_whole_or_made_anew(
    tmp_path: Path, n_moved: int, is_whole: bool
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 20, "emu": 20})
    test = make_folders(tmp_path / "photos_of_test", {"wren": 2, "emu": 2})
    out = tmp_path / "data"
    words = [str(source), str(out), str(test), str(n_moved)]
    ended = subprocess.run([sys.executable, "-c", KILLED_AT, *words], check=False)
    assert ended.returncode == -signal.SIGKILL
    made = {"solution.csv", "test2018", "test2018.json", "train_val2018", "val2018.json"}
    found = {path.name for path in out.iterdir()} - {WORK}
    assert len(found) == (len(made) + 1 if is_whole else n_moved)
    if is_whole:
        with pytest.raises(InputError, match="data: the folder is not empty"):
            import_folders(source, out, test=test)
    else:
        for split in ("train", "val", "test"):
            with pytest.raises(InputError):
                load_split(out, split)
        import_folders(source, out, test=test)
    assert {path.name for path in out.iterdir()} == made | {"train2018.json"}
    assert len(load_split(out)) + len(load_split(out, "val")) == 40


def test_an_import_that_fails_while_it_moves_data_into_place_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 20})
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "train2018.json":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_folders(source, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_after_a_killed_import_nothing_of_others_is_removed(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 4})
    out = tmp_path / "data"
    (out / WORK).mkdir(parents=True)
    write_json(out / WORK / MOVED, ["val2018.json", "train_val2018", "../own.txt"])
    for name in ("val2018.json", "own.txt", "../own.txt"):
        (out / name).write_text("{}")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "photo.jpg").write_text("")
    (out / "train_val2018").symlink_to(tmp_path / "own")
    with pytest.raises(InputError, match="data: the folder is not empty"):
        import_folders(source, out)
    assert [path.name for path in out.iterdir()] == ["own.txt"]
    assert (tmp_path / "own.txt").exists()
    assert (tmp_path / "own" / "photo.jpg").exists()


def test_an_import_goes_into_an_empty_folder_that_is_a_link(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "photos", {"wren": 2})
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    imported(source, tmp_path / "data")
    assert (tmp_path / "data").is_symlink()
    assert (tmp_path / "disk" / "train2018.json").is_file()


def test_a_long_list_of_species_is_printed_from_both_ends(tmp_path: Path) -> None:
    counts = {f"s{j:02}": 25 - j for j in range(25)}
    source = make_folders(tmp_path / "photos", counts)
    made, _ = imported(source, tmp_path / "data")
    lines = made.lines()
    assert lines[0].endswith("25 species, 325 train, 0 val, 0 test")
    assert [line.split()[:2] for line in lines[2:12]] == [
        [f"s{j:02}", f"{25 - j}"] for j in range(10)
    ]
    assert lines[12].strip() == "... 5 more species"
    assert [line.split()[0] for line in lines[13:23]] == [f"s{j}" for j in range(15, 25)]

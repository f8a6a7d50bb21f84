"""Turns folders of photos, one per species, into a data set in the iNat layout."""

import csv
import difflib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from inat.core.arrays import csv_cell
from inat.core.errors import InputError
from inat.core.files import atomic_file, disk_remedies, locked, read_json, write_bytes, write_json
from inat.core.progress import progress_bar
from inat.core.threads import in_order, usable_processors
from inat.dataset.annotation_cache import digest
from inat.dataset.annotation_files import DIGEST
from inat.dataset.grouping import hold_share, joined
from inat.photos.search import (
    FoundPhoto,
    PassedOver,
    PhotoFolder,
    is_system,
    jpeg_of_heic,
    passed_over_lines,
    readable,
    same_name,
    search_photos,
)

WORK = ".importing"
"""Folder in `out` in which the data set is made; what a killed import left in it is removed."""

MOVED = "moved.json"
"""List in WORK of what is being moved up, from which the next import knows half of a data set."""

PASSED_OVER = "passed_over.csv"

SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}

LONGEST_NAME = 255
"""Bytes of a file name, on nearly every file system."""

MOST_LISTED = 20
"""Species that are listed one by one."""

Labeled = Sequence[tuple[int, FoundPhoto]]
"""Photos with their labels; -1 where unknown."""


class SpeciesCount(NamedTuple):
    """Photos of one species; `test` is 0 where the test photos have no labels."""

    name: str
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Imported:
    root: Path  # the data set's folder
    species: list[SpeciesCount]  # the photos of each species, by label
    n_train: int  # photos to train on
    n_val: int  # photos kept for validation
    n_test: int  # photos of the test split; 0 without one
    n_linked: int  # photos that are links or lie below one
    n_converted: int  # HEIC photos that were converted to JPEG
    # Files and folders that were not taken; ROOT/passed_over.csv lists them too
    passed_over: list[PassedOver]
    notes: list[str]  # sentences about photos with the same bytes

    @property
    def n_species(self) -> int:
        return len(self.species)

    def lines(self) -> list[str]:
        lines = [
            f"{self.root}: {self.n_species:,} species, {self.n_train:,} train, {self.n_val:,} val, "
            f"{self.n_test:,} test",
            *_table(self.species),
        ]
        if self.n_linked:
            lines.append(f"links         {self.n_linked:,} photos were reached through links")
        if self.n_converted:
            lines.append(f"converted     {self.n_converted:,} HEIC photos, to JPEG")
        lines += [f"passed over   {line}" for line in passed_over_lines(self.passed_over)]
        if self.passed_over:
            lines.append(f"              all are listed in {self.root / PASSED_OVER}")
        lines += [f"copies        {note}" for note in self.notes]
        lines.append(
            f"next: inat train configs/mini_inat/lite0_la.yaml --data.root {self.root} "
            "--run runs/mine"
        )
        return lines


def _table(species: Sequence[SpeciesCount]) -> Iterator[str]:
    """The species with the most photos first; the middle of a long list is left out."""
    rows = sorted(species, key=lambda row: -row.train)
    half, n_rows = MOST_LISTED // 2, len(rows)
    is_long = n_rows > MOST_LISTED
    if is_long:
        rows = rows[:half] + rows[-half:]
    width = max(len("species"), *(len(row.name) for row in rows))
    yield f"  {'species':{width}}  {'train':>7}  {'val':>7}  {'test':>7}"
    for place, row in enumerate(rows):
        if is_long and place == half:
            yield f"  ... {n_rows - len(rows):,} more species"
        yield f"  {row.name:{width}}  {row.train:>7,}  {row.val:>7,}  {row.test:>7,}"


class _Species(NamedTuple):
    name: str
    supercategory: str
    folder: PhotoFolder
    photos: list[FoundPhoto]


def import_folders(
    train: Path | str,
    out: Path | str,
    *,
    test: Path | str | None = None,
    species: Literal["top", "leaf"] | None = None,
    val_share: float = 0.1,
    imbalance_factor: float | None = None,
    seed: int = 0,
) -> Imported:
    """Turns folders of photos, one per species, into a data set in the iNat layout.

    The content of a file decides whether it is a photo. Links are followed; hidden and system
    folders are not searched. Photos are hard-linked where the disk allows it, else copied; their
    format, pixels and color profile stay as they are. HEIC photos become JPEG with the extra heic
    (pip install 'inat[heic]'). Whatever is skipped is counted, and listed in OUT/passed_over.csv.
    Category ids are 0, 1, ... in the order of the folders' names. Photos with the same bytes stay
    on one side of every cut. OUT is filled only when everything is ready: an error or Ctrl-C leaves
    it as it was.

    Args:
        train: folder with one folder of photos per species, named after it; photos may lie in
            folders below.
        out: folder of the new data set; must not exist or be empty.
        test: folder of test photos, or of species' folders as in `train`, whose labels then go to
            solution.csv.
        species: which folders are species where they are nested: top: those directly in `train`;
            leaf: each folder that holds photos. None: folders that hold only folders of photos are
            refused.
        val_share: share of each species' photos that becomes val; 0 makes none. A fraction is
            rounded up or down by a draw, so that rare species are held out at the same rate; each
            keeps at least one to train on.
        imbalance_factor: thin the species out exponentially, in the order of the folders' names,
            until the first has this many times the photos of the last (Cao et al. 2019); None:
            keep all.
        seed: seed of the val share and of the thinning.

    Raises:
        InputError: no class folders, folders whose species are ambiguous, a species without
            photos, `out` in use.
        WorldError: another import fills `out`, or the disk is full.
    """
    train, out, test = Path(train), Path(out), Path(test) if test else None
    if not 0 <= val_share < 1:
        raise InputError(f"--val-share {val_share:g} is not from 0 up to 1")
    _refuse_places(train, test, out)
    with _filled_when_ready(out) as building:
        rng = np.random.default_rng(seed)
        found = search_photos(train)
        listed = _species_of(found, species)
        classes = {one.name: one.photos for one in listed}
        if imbalance_factor is not None:
            if imbalance_factor < 1:
                raise InputError(
                    f"--imbalance-factor {imbalance_factor:g} is less than 1; 100 is the usual one"
                )
            largest, last = max(map(len, classes.values())), max(len(classes) - 1, 1)
            for place, (name, photos) in enumerate(classes.items()):
                n_kept = max(1, int(largest * imbalance_factor ** (-place / last)))
                classes[name] = [photos[i] for i in sorted(rng.permutation(len(photos))[:n_kept])]
        passed_over = found.all_passed_over()
        tested: list[tuple[int, FoundPhoto]] = []
        labelled = False
        if test:
            test_found = search_photos(test)
            tested, labelled = _test_photos(test_found, species, list(classes))
            passed_over += test_found.all_passed_over()
        given = [(label, one) for label, photos in enumerate(classes.values()) for one in photos]
        digests = _digests([photo.path for _, photo in [*given, *tested]])
        kept, held = _cut_val(given, digests, val_share, rng)
        writer = _Writer(building, digests)
        categories = [
            {"id": label, "name": one.name, "supercategory": one.supercategory}
            for label, one in enumerate(listed)
        ]
        # The test photos shuffled, so that neither ids nor rows tell the species.
        tested = [tested[i] for i in rng.permutation(len(tested))]
        writer.test(tested, labelled=labelled)
        writer.split("val", "train_val2018", held, categories)
        writer.split("train", "train_val2018", kept, categories)
        if passed_over:
            _list_passed_over(building / PASSED_OVER, passed_over)
    counts = [
        np.bincount([label for label, _ in rows if label >= 0], minlength=len(listed)).tolist()
        for rows in (kept, held, tested)
    ]
    placed = [photo for _, photo in (*kept, *held, *tested)]
    return Imported(
        root=out,
        species=[SpeciesCount(*row) for row in zip(classes, *counts, strict=True)],
        n_train=len(kept),
        n_val=len(held),
        n_test=len(tested),
        n_linked=sum(photo.linked for photo in placed),
        n_converted=sum(photo.is_heic for photo in placed),
        passed_over=passed_over,
        notes=_notes_on_copies(given, tested, digests),
    )


def _refuse_places(train: Path, test: Path | None, out: Path) -> None:
    if readable(out) != str(out):
        raise InputError(f"{readable(out)}: the name is not UTF-8; give another --out")
    for option, source in (("--train", train), ("--test", test)):
        if source is None:
            continue
        if source.is_file():
            raise InputError(
                f"{source}: is a file, and {option} takes a folder with one folder of photos per "
                "species; unpack an archive, or sort the photos of a table into such folders, first"
            )
        if not source.is_dir():
            raise InputError(f"{source}: there is no such folder")
        if out.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{out}: lies in the {option} folder {source}; move --out elsewhere")
    if test is not None and train.resolve() in test.resolve().parents:
        raise InputError(f"{test}: lies in the --train folder {train}; move it elsewhere")


@contextmanager
def _filled_when_ready(out: Path) -> Iterator[Path]:
    """Gives a folder inside `out`; on leaving without an error its content moves up into `out`.

    Inside, because `out` may be a mount point, a link, or in a folder that is not ours. What a
    killed import had moved up is removed, unless all of it had been moved.
    """
    is_new, work = not out.exists(), out / WORK
    if not work.exists():  # else under the lock, which has what was left removed in any case
        _refuse_in_use(out)
    remedy = "nothing was imported: make room, or give another --out, and run it again"
    with disk_remedies(out, remedy):
        work.mkdir(parents=True, exist_ok=True)
        try:
            with locked(work / "lock", f"{out}: another import fills it; give another --out"):
                try:
                    _remove_half(out)
                    _refuse_in_use(out)  # again: the import that held the lock may have ended
                    building = work / "data"
                    shutil.rmtree(building, ignore_errors=True)
                    (work / MOVED).unlink(missing_ok=True)
                    building.mkdir()
                    yield building
                    # train2018.json last: a data set that has it is whole.
                    made = sorted(building.iterdir(), key=lambda path: "train2018" in path.name)
                    write_json(work / MOVED, [path.name for path in made])
                    for path in made:
                        path.rename(out / path.name)
                finally:
                    _remove_half(out)
                    shutil.rmtree(work, ignore_errors=True)
        finally:
            if is_new and not any(out.iterdir()):
                out.rmdir()


def _refuse_in_use(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; give another --out")
    if any(not is_system(path.name, folder=path.is_dir()) for path in out.iterdir()):
        raise InputError(f"{out}: the folder is not empty; give a new --out")


def _remove_half(out: Path) -> None:
    """Removes from `out` what an import had moved there that did not move all."""
    record = out / WORK / MOVED
    if (out / "train2018.json").exists() or not record.is_file():
        return
    names = read_json(record)
    for path in [path for path in out.iterdir() if path.name in names]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _species_of(root: PhotoFolder, choice: Literal["top", "leaf"] | None) -> list[_Species]:
    """The species of a folder of training photos, in the order of their folders' names."""
    if not root.folders:
        raise InputError(f"{root.path}: has no folders; it needs one folder of photos per species")
    if choice is None:
        _refuse_ambiguous(root)
    species: dict[str, _Species] = {}
    for name, folder, photos in sorted(_class_folders(root, choice), key=itemgetter(0)):
        if not photos:
            raise InputError(_without_photos(folder))
        if name in species:
            raise InputError(
                f"{readable(folder.path)} and {readable(species[name].folder.path)}: two folders "
                f"have the species name {name!r}; put their photos into one, or rename one"
            )
        above = folder.path.parent
        group = same_name((above.resolve() if above == root.path else above).name)
        species[name] = _Species(name, group or "species", folder, photos)
    if not species:
        raise InputError(f"{root.path}: there is no photo in its folders")
    return list(species.values())


def _class_folders(
    root: PhotoFolder, choice: Literal["top", "leaf"] | None
) -> list[tuple[str, PhotoFolder, list[FoundPhoto]]]:
    if root.photos:  # they would be left out without a word
        raise InputError(
            f"{root.path}: {len(root.photos)} photos lie beside the species' folders (first: "
            f"{readable(root.photos[0].path.name)}); put them into one or elsewhere"
        )
    if choice == "leaf":
        leaves = [one for top in root.folders for one in top.below() if one.photos]
        return [(same_name(one.path.name), one, one.photos) for one in leaves]
    return [(same_name(one.path.name), one, one.all_photos()) for one in root.folders]


def _refuse_ambiguous(root: PhotoFolder) -> None:
    """Folders that hold only folders of photos: groups of species, splits, or parts of one?"""
    names = {folder.path.name.lower() for folder in root.folders}
    deep = [
        folder
        for folder in root.folders
        if not folder.photos and any(below.photos for below in folder.below())
    ]
    if names <= SPLIT_WORDS:
        first, *others = [str(folder.path) for folder in root.folders]
        raise InputError(
            f"{root.path}: its folders are splits, not species ({', '.join(sorted(names))}); give "
            f"one of them: --train {first}"
            + (f" --test {others[-1]}" if others else "")
            + " (or --species top, if they are species)"
        )
    if deep:
        inner = next(below for below in deep[0].below() if below.photos)
        raise InputError(
            f"{readable(deep[0].path)}: has no photos of its own, only folders of photos (such as "
            f"{readable(inner.path.relative_to(root.path))}), as {len(deep):,} of "
            f"{len(root.folders):,} folders; give --species leaf if {readable(inner.path.name)!r} "
            f"is a species, --species top if {readable(deep[0].path.name)!r} is one"
        )


def _without_photos(folder: PhotoFolder) -> str:
    text = f"{readable(folder.path)}: there is no photo in it"
    lines = passed_over_lines(folder.all_passed_over())
    return f"{text} ({'; '.join(lines)})" if lines else f"{text}; remove it or add one"


def _digests(photos: Sequence[Path]) -> dict[Path, str]:
    """The XXH3-128 of each file."""
    digests = {}
    with progress_bar("digests", len(photos), "photos") as bar:
        found = in_order(digest, photos, usable_processors())
        for photo, found_digest in zip(photos, found, strict=True):
            digests[photo] = found_digest
            bar.advance(1)
    return digests


def _cut_val(
    given: Labeled, digests: Mapping[Path, str], share: float, rng: np.random.Generator
) -> tuple[list[tuple[int, FoundPhoto]], list[tuple[int, FoundPhoto]]]:
    labels = np.array([label for label, _ in given])
    draws, dither = np.empty(len(given)), np.empty(labels[-1] + 1)
    for label in range(len(dither)):
        of_species = np.flatnonzero(labels == label)
        dither[label] = rng.random()
        draws[of_species[rng.permutation(len(of_species))]] = np.arange(len(of_species))
    _, content = np.unique([digests[photo.path] for _, photo in given], return_inverse=True)
    is_held = hold_share(labels, draws, joined(content + 1), share, dither)
    kept = [one for one, held in zip(given, is_held, strict=True) if not held]
    return kept, [one for one, held in zip(given, is_held, strict=True) if held]


def _notes_on_copies(given: Labeled, tested: Labeled, digests: Mapping[Path, str]) -> list[str]:
    first_of: dict[str, tuple[int, Path]] = {}
    again: list[tuple[Path, Path]] = []
    torn: list[tuple[Path, Path]] = []
    for label, photo in given:
        of_first, first = first_of.setdefault(digests[photo.path], (label, photo.path))
        if photo.path != first:
            (again if label == of_first else torn).append((photo.path, first))
    seen = [
        (photo.path, first_of[digests[photo.path]][1])
        for _, photo in tested
        if digests[photo.path] in first_of
    ]
    sentences = {
        "photos have the bytes of another photo of their species": again,
        "photos have the bytes of a photo of another species; remove the wrong ones": torn,
        "of the test photos have the bytes of a photo of train or val": seen,
    }
    return [
        f"{len(pairs):,} {what} (first: {readable(pairs[0][0])} is {readable(pairs[0][1])})"
        for what, pairs in sentences.items()
        if pairs
    ]


def _test_photos(
    root: PhotoFolder, choice: Literal["top", "leaf"] | None, names: Sequence[str]
) -> tuple[list[tuple[int, FoundPhoto]], bool]:
    """(label, photo) of each test photo, and whether the labels are known; else they are -1."""
    if not root.folders:
        if not root.photos:
            raise InputError(_without_photos(root))
        return [(-1, photo) for photo in root.photos], False
    label_of = {name: label for label, name in enumerate(names)}
    labelled = []
    for name, folder, photos in _class_folders(root, choice):
        if name not in label_of:
            near = difflib.get_close_matches(name, names, n=1)
            raise InputError(
                f"{readable(folder.path)}: no folder of that name is among the training folders"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        labelled += [(label_of[name], photo) for photo in photos]
    return labelled, True


def _list_passed_over(path: Path, passed_over: Sequence[PassedOver]) -> None:
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "kind", "reason"])
        rows.writerows(
            map(csv_cell, (readable(one.path), one.kind, one.reason)) for one in passed_over
        )


class _Writer:
    """Places photos and writes the annotation files; image ids count up over all splits."""

    def __init__(self, out: Path, digests: Mapping[Path, str]) -> None:
        self.out = out
        self._digests = digests
        self._next_id = 1
        self._names = _FreeNames()

    def split(
        self, name: str, folder: str, photos: Labeled, categories: Sequence[Mapping[str, Any]]
    ) -> None:
        """Writes one labelled split; an empty one is not written."""
        if not photos:
            return
        images, annotations = [], []
        for label, photo in photos:
            category = categories[label]
            group = fitting(category["supercategory"])
            image = self._image(photo, f"{folder}/{group}/{category['id']}")
            images.append(image)
            annotations.append(
                {"id": image["id"], "image_id": image["id"], "category_id": category["id"]}
            )
        write_json(
            self.out / f"{name}2018.json",
            {"images": images, "annotations": annotations, "categories": categories},
            indent=False,
        )

    def test(self, photos: Labeled, *, labelled: bool) -> None:
        """Writes the test split, and solution.csv where its labels are known."""
        if not photos:
            return
        images = [self._image(photo, "test2018") for _, photo in photos]
        write_json(self.out / "test2018.json", {"images": images}, indent=False)
        if not labelled:
            return
        lines = ["id,expected,usage"]
        for image, (label, _) in zip(images, photos, strict=True):
            # A third is public, as on Kaggle; which one does not matter here.
            usage = "Public" if image["id"] % 3 == 0 else "Private"
            lines.append(f"{image['id']},{label},{usage}")
        write_bytes(self.out / "solution.csv", ("\n".join(lines) + "\n").encode())

    def _image(self, photo: FoundPhoto, folder: str) -> dict[str, Any]:
        name = f"{photo.path.stem}.jpg" if photo.is_heic else photo.path.name
        file_name = f"{folder}/{self._names.take(folder, name)}"
        _place(photo, self.out / file_name)
        image_id, self._next_id = self._next_id, self._next_id + 1
        sides = {"width": photo.width, "height": photo.height}
        found = digest(self.out / file_name) if photo.is_heic else self._digests[photo.path]
        return {"id": image_id, **sides, "file_name": file_name, DIGEST: found}


class _FreeNames:
    """Names for the files of folders: a photo's own, or the first of name-2, name-3 ... that is
    free, also where A.jpg and a.jpg are one file."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def take(self, folder: str, name: str) -> str:
        stem, ending = os.path.splitext(name)  # noqa: PTH122
        if len(ending) > 16:  # no ending, but a dot in a name
            stem, ending = name, ""
        wanted = f"{folder}/{fitting(stem, ending)}".casefold()
        number, free = self._last.get(wanted, 1), fitting(stem, ending)
        while (key := f"{folder}/{free}".casefold()) in self._taken:
            number += 1
            free = fitting(stem, f"-{number}{ending}")
        # Not from the start for every photo: in each species' folder there may be a 001.jpg.
        self._last[wanted] = number
        self._taken.add(key)
        return free


def fitting(stem: str, ending: str = "") -> str:
    """A portable name of a file: in UTF-8, without backslashes, and not too long."""
    stem, ending = (same_name(part).replace("\\", "%5C") for part in (stem, ending))
    room = LONGEST_NAME - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending


def _place(photo: FoundPhoto, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if photo.is_heic:
        target.write_bytes(jpeg_of_heic(photo.path))
        return
    try:
        os.link(photo.path.resolve(), target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(photo.path, target)

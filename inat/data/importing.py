"""Turns folders of photos, one a species, into a data set in the iNat layout."""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inat.data.annotation_cache import digest
from inat.data.annotation_files import DIGEST
from inat.data.grouping import hold_share, joined
from inat.data.parts import in_order, usable_processors
from inat.data.photos import PHOTO_ENDINGS
from inat.errors import InputError
from inat.files import atomic_file, write_json
from inat.progress import progress_bar


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        root: the data set's folder.
        n_species: number of class folders.
        n_train: photos to train on.
        n_val: photos kept for validation.
        n_test: photos of the test split; 0 without one.
        notes: sentences about photos with the same bytes.
    """

    root: Path
    n_species: int
    n_train: int
    n_val: int
    n_test: int
    notes: list[str]


def import_folders(
    train: Path | str,
    out: Path | str,
    *,
    test: Path | str | None = None,
    val_share: float = 0.1,
    imbalance_factor: float | None = None,
    seed: int = 0,
) -> Imported:
    """Makes a data set in the iNat layout from folders `train/<species>/<photo>`.

    Photos are hard-linked where the disk allows it, else copied; their format stays. Category
    ids are 0, 1, ... in the order of the folders' names. Every file is read once for its digest,
    which the annotations keep: photos with the same bytes stay on one side of every cut.

    Args:
        train: a folder a species, named as the species; photos may lie in folders below.
        out: the data set's folder; must not exist or be empty.
        test: a folder of photos (test split without labels), or of species' folders as in
            `train`: its labels then become solution.csv.
        val_share: share of every species' photos that becomes val, its fraction rounded up or
            down by a draw, so that rare species are held out at the same rate; each keeps at
            least one to train on.
        imbalance_factor: keep n_max f^(-j/(C-1)) photos of species j, in the order of the
            folders' names (the exponential profile of Cao et al. 2019): the first has f times
            the photos of the last. None keeps all.
        seed: of the val share and of the photos that an imbalance factor keeps.

    Raises:
        InputError: no class folders, a species without enough photos, `out` in use.
    """
    train, out = Path(train), Path(out)
    if not 0 <= val_share < 1:
        raise InputError(f"--val-share {val_share:g} is not from 0 up to 1")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: the folder is not empty; give a new --out")
    rng = np.random.default_rng(seed)
    classes = _class_folders(train)
    if imbalance_factor is not None:
        classes = _imbalanced(classes, imbalance_factor, rng)
    tested, labelled = _test_photos(Path(test), list(classes)) if test else ([], False)
    given = [(label, photo) for label, photos in enumerate(classes.values()) for photo in photos]
    digests = _digests([photo for _, photo in [*given, *tested]])
    kept, held = _cut_val(given, digests, val_share, rng)
    writer = _Writer(out, digests)
    categories = [
        {"id": label, "name": name, "supercategory": train.resolve().name}
        for label, name in enumerate(classes)
    ]
    # The test photos shuffled, so that neither ids nor rows tell the species; train last: a data
    # set with train2018.json is whole.
    writer.test([tested[i] for i in rng.permutation(len(tested))], labelled=labelled)
    n_val = writer.split("val", "train_val2018", held, categories)
    n_train = writer.split("train", "train_val2018", kept, categories)
    notes = _notes_on_copies(given, tested, digests)
    return Imported(out, len(classes), n_train, n_val, len(tested), notes)


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    _refuse_loose(folder)
    classes = {sub.name: _photos(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    if not classes:
        raise InputError(f"{folder}: has no folders; it needs one folder of photos a species")
    for name, photos in classes.items():
        if not photos:
            raise InputError(f"{folder / name}: there is no photo in it; remove it or add one")
    return classes


def _refuse_loose(folder: Path) -> None:
    """Photos beside the species' folders would be left out without a word."""
    loose = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in PHOTO_ENDINGS]
    if loose and any(sub.is_dir() for sub in folder.iterdir()):
        raise InputError(
            f"{folder}: {len(loose)} photos lie beside the species' folders (first: "
            f"{loose[0].name}); put them into one or elsewhere"
        )


def _photos(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_ENDINGS and p.is_file())


def _imbalanced(
    classes: Mapping[str, Sequence[Path]], factor: float, rng: np.random.Generator
) -> dict[str, list[Path]]:
    if factor < 1:
        raise InputError(f"--imbalance-factor {factor:g} is less than 1; 100 is the usual one")
    largest = max(map(len, classes.values()))
    steps = max(len(classes) - 1, 1)
    kept = {}
    for place, (name, photos) in enumerate(classes.items()):
        wanted = max(1, int(largest * factor ** (-place / steps)))
        chosen = rng.permutation(len(photos))[:wanted]
        kept[name] = [photos[i] for i in sorted(chosen)]
    return kept


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
    given: Sequence[tuple[int, Path]],
    digests: Mapping[Path, str],
    share: float,
    rng: np.random.Generator,
) -> tuple[list[tuple[int, Path]], list[tuple[int, Path]]]:
    labels = np.array([label for label, _ in given])
    draws, dither = np.empty(len(given)), np.empty(labels[-1] + 1)
    for label in range(len(dither)):
        of_species = np.flatnonzero(labels == label)
        dither[label] = rng.random()
        draws[of_species[rng.permutation(len(of_species))]] = np.arange(len(of_species))
    _, content = np.unique([digests[photo] for _, photo in given], return_inverse=True)
    is_held = hold_share(labels, draws, joined(content + 1), share, dither)
    kept = [one for one, held in zip(given, is_held, strict=True) if not held]
    return kept, [one for one, held in zip(given, is_held, strict=True) if held]


def _notes_on_copies(
    given: Sequence[tuple[int, Path]],
    tested: Sequence[tuple[int, Path]],
    digests: Mapping[Path, str],
) -> list[str]:
    first_of: dict[str, tuple[int, Path]] = {}
    again: list[tuple[Path, Path]] = []
    torn: list[tuple[Path, Path]] = []
    for label, photo in given:
        of_first, first = first_of.setdefault(digests[photo], (label, photo))
        if photo != first:
            (again if label == of_first else torn).append((photo, first))
    seen = [(photo, first_of[digests[photo]][1]) for _, photo in tested
            if digests[photo] in first_of]  # fmt: skip
    sentences = {
        "photos have the bytes of another photo of their species": again,
        "photos have the bytes of a photo of another species; remove the wrong ones": torn,
        "of the test photos have the bytes of a photo of train or val": seen,
    }
    return [
        f"{len(pairs):,} {what} (first: {pairs[0][0]} is {pairs[0][1]})"
        for what, pairs in sentences.items()
        if pairs
    ]


def _test_photos(folder: Path, names: Sequence[str]) -> tuple[list[tuple[int, Path]], bool]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    subfolders = sorted(sub for sub in folder.iterdir() if sub.is_dir())
    if not subfolders:
        photos = _photos(folder)
        if not photos:
            raise InputError(f"{folder}: there is no photo in it")
        return [(-1, photo) for photo in photos], False
    _refuse_loose(folder)
    label_of = {name: label for label, name in enumerate(names)}
    for sub in subfolders:
        if sub.name not in label_of:
            raise InputError(f"{sub}: no folder of that name is among the training folders")
    return [(label_of[sub.name], photo) for sub in subfolders for photo in _photos(sub)], True


class _Writer:
    """Places photos and writes the annotation files; image ids count up over all splits."""

    def __init__(self, out: Path, digests: Mapping[Path, str]) -> None:
        self.out = out
        self._digests = digests
        self._next_id = 1

    def split(
        self,
        name: str,
        folder: str,
        photos: Sequence[tuple[int, Path]],
        categories: Sequence[Mapping[str, Any]],
    ) -> int:
        """Writes one labelled split; an empty one is not written."""
        if not photos:
            return 0
        images, annotations = [], []
        for label, photo in photos:
            category = categories[label]
            image = self._image(photo, f"{folder}/{category['supercategory']}/{category['id']}")
            images.append(image)
            annotations.append(
                {"id": image["id"], "image_id": image["id"], "category_id": category["id"]}
            )
        write_json(
            self.out / f"{name}2018.json",
            {"images": images, "annotations": annotations, "categories": categories},
            indent=False,
        )
        return len(images)

    def test(self, photos: Sequence[tuple[int, Path]], *, labelled: bool) -> None:
        """Writes the test split, and solution.csv where its labels are known."""
        if not photos:
            return
        images = [self._image(photo, "test2018") for _, photo in photos]
        write_json(self.out / "test2018.json", {"images": images}, indent=False)
        if labelled:
            with atomic_file(self.out / "solution.csv") as partial:
                partial.write_text("\n".join(self._solution(images, photos)) + "\n")

    def _solution(
        self, images: Sequence[Mapping[str, Any]], photos: Sequence[tuple[int, Path]]
    ) -> Iterator[str]:
        yield "id,expected,usage"
        for image, (label, _) in zip(images, photos, strict=True):
            # A third is public, as on Kaggle; which one does not matter here.
            usage = "Public" if image["id"] % 3 == 0 else "Private"
            yield f"{image['id']},{label},{usage}"

    def _image(self, photo: Path, folder: str) -> dict[str, Any]:
        height, width = _size(photo)
        image_id, self._next_id = self._next_id, self._next_id + 1
        file_name = f"{folder}/{_free_name(self.out / folder, photo)}"
        _place(photo, self.out / file_name)
        return {
            "id": image_id,
            "width": width,
            "height": height,
            "file_name": file_name,
            DIGEST: self._digests[photo],
        }


def _free_name(folder: Path, photo: Path) -> str:
    """The photo's name, or the first of name-2, name-3 ... that is not taken."""
    names = itertools.chain(
        [photo.name], (f"{photo.stem}-{n}{photo.suffix}" for n in itertools.count(2))
    )
    return next(name for name in names if not (folder / name).exists())


def _place(photo: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(photo.resolve(), target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(photo, target)


def _size(photo: Path) -> tuple[int, int]:
    """Height and width as the header has them; 0 where it cannot be read."""
    try:
        with Image.open(photo) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0

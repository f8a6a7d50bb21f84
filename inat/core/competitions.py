"""What each Kaggle competition wants of a submission, and which files its data has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from inat.core.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of a competition's download."""

    name: str  # below the competition's `download_url`
    part: str  # of the download, as `--only` names it
    md5: str | None  # as published; None where none was
    folder: str = ""  # of photos, that it brings to the data root
    files: tuple[str, ...] = ()  # that it brings to the data root, in whatever folder it holds them
    about_bytes: int | None = None  # published size, a round figure


@dataclass(frozen=True, kw_only=True)
class AnnotationLayout:
    """The names of a competition's JSON fields, where they differ from iNaturalist's."""

    image_id: str = "id"  # of an image
    label: str = "category_id"  # of an annotation
    category_id: str = "id"  # of a category; "" where the files list no categories
    category_name: str = "name"
    file_name: str = "file_name"  # of an image; "" where its file is ID.jpg
    photo_folders: dict[str, str]  # below the data root, that the paths of a split start in


@dataclass(frozen=True, kw_only=True)
class Competition:
    """One competition's files and rules."""

    slug: str  # its name in its Kaggle address
    header: str  # first line of a submission, to the letter
    n_guesses: int  # that a row needs, best first, separated by one space
    more_guesses: bool = False  # whether a row may have more of them, which do not count
    n_scored: int  # how many of a row's guesses count, the first ones
    # error: share of photos whose category is not among the guesses that count (smaller is better;
    # for one guess Kaggle calls it mean error). macro F1: larger is better.
    metric: Literal["error", "macro F1"] = "error"
    one_based: bool = False  # whether the category ids count from 1
    annotation_files: dict[str, str]  # of each split, below the data root; some have no val
    # None: iNaturalist's, which is COCO's. Where there is one, image ids restart in each split.
    layout: AnnotationLayout | None = None
    locations_files: dict[str, str] = field(default_factory=dict)  # of the splits that have any
    forbidden_weights: dict[str, str] = field(default_factory=dict)  # mark in a weights tag: reason
    download_url: str = ""  # that the archives lie below
    archives: tuple[Archive, ...] = ()  # in the order of fetching; none: fetched by hand

    @property
    def metric_name(self) -> str:
        """What the score is called: top-3 error, macro F1."""
        return self.metric if self.metric == "macro F1" else f"top-{self.n_scored} error"

    def has_split(self, root: Path, name: str) -> bool:
        """Whether the data root has the annotation file of that split."""
        file_name = self.annotation_files.get(name)
        return file_name is not None and (root / file_name).is_file()


NO_LATER_PHOTOS = dict.fromkeys(
    ("inat21", "inat2021"), "iNat-2021 photos are natural-world data beyond the competition's own"
)


def _files(pattern: str, *splits: str) -> dict[str, str]:
    return {split: pattern.format(split) for split in splits}


def _annotations(name: str, md5: str | None) -> Archive:
    return Archive(name=f"{name}.tar.gz", part="annotations", md5=md5, files=(name,))


COMPETITIONS = {
    spec.slug: spec
    for spec in (
        Competition(
            slug="inaturalist-2018",
            header="id,predicted",
            n_guesses=3,
            n_scored=3,
            annotation_files=_files("{}2018.json", "train", "val", "test"),
            locations_files=_files("{}2018_locations.json", "train", "val"),
            forbidden_weights=NO_LATER_PHOTOS,
            download_url="https://ml-inat-competition-datasets.s3.amazonaws.com/2018/",
            archives=(
                _annotations("train2018.json", md5="bfa29d89d629cbf04d826a720c0a68b0"),
                _annotations("val2018.json", md5="f2ed8bfe3e9901cdefceb4e53cd3775d"),
                _annotations("test2018.json", md5="fc717a7f53ac72ed8b250221a08a4502"),
                _annotations("categories.json", md5=None),
                Archive(
                    name="inat2018_locations.zip",
                    part="locations",
                    md5="1704763abc47b75820aa5a3d93c6c0f3",
                    files=("train2018_locations.json", "val2018_locations.json"),
                ),
                Archive(
                    name="train_val2018.tar.gz",
                    part="train_val",
                    md5="b1c6952ce38f31868cc50ea72d066cc3",
                    folder="train_val2018",
                    about_bytes=120 * 10**9,
                ),
                Archive(
                    name="test2018.tar.gz",
                    part="test",
                    md5="4b71d44d73e27475eefea68886c7d1b1",
                    folder="test2018",
                    about_bytes=40 * 10**9,
                ),
            ),
        ),
        Competition(
            slug="inaturalist-challenge-at-fgvc-2017",
            header="id,predicted",
            n_guesses=5,
            n_scored=5,
            annotation_files=_files("{}2017.json", "train", "val", "test"),
            locations_files=_files("{}2017_locations.json", "train", "val"),
            forbidden_weights=NO_LATER_PHOTOS,
        ),
        Competition(
            slug="inaturalist-2019-fgvc6",
            header="id,predicted",
            n_guesses=1,
            more_guesses=True,
            n_scored=1,
            annotation_files=_files("{}2019.json", "train", "val", "test"),
            forbidden_weights=NO_LATER_PHOTOS,
        ),
        Competition(
            slug="inaturalist-2021",
            header="Id,Predicted",
            n_guesses=5,  # any other number, and Kaggle's evaluation fails
            n_scored=1,
            annotation_files={"train": "train.json", "val": "val.json", "test": "public_test.json"},
        ),
        Competition(
            slug="fungi-challenge-fgvc-2018",
            header="id,predicted",
            n_guesses=3,
            n_scored=3,
            annotation_files={"train": "train.json", "val": "val.json", "test": "test.json"},
        ),
        Competition(
            slug="imaterialist-challenge-furniture-2018",
            header="id,predicted",
            n_guesses=1,
            n_scored=1,
            one_based=True,
            annotation_files={"train": "train.json", "val": "validation.json", "test": "test.json"},
            # The files give addresses, no names: who fetches a photo names it by its id.
            layout=AnnotationLayout(
                image_id="image_id",
                label="label_id",
                category_id="",
                file_name="",
                photo_folders={"train": "train", "val": "validation", "test": "test"},
            ),
        ),
        Competition(
            slug="herbarium-2020-fgvc7",
            header="Id,Predicted",
            n_guesses=1,
            n_scored=1,
            metric="macro F1",
            annotation_files={
                "train": "nybg2020/train/metadata.json",
                "test": "nybg2020/test/metadata.json",
            },
            layout=AnnotationLayout(
                photo_folders={"train": "nybg2020/train", "test": "nybg2020/test"}
            ),
        ),
        Competition(
            slug="herbarium-2021-fgvc8",
            header="Id,Predicted",
            n_guesses=1,
            n_scored=1,
            metric="macro F1",
            annotation_files={"train": "train/metadata.json", "test": "test/metadata.json"},
            layout=AnnotationLayout(photo_folders={"train": "train", "test": "test"}),
        ),
        Competition(
            slug="herbarium-2022-fgvc9",
            header="Id,Predicted",
            n_guesses=1,
            n_scored=1,
            metric="macro F1",
            annotation_files={"train": "train_metadata.json", "test": "test_metadata.json"},
            layout=AnnotationLayout(
                image_id="image_id",
                category_id="category_id",
                category_name="scientificName",
                photo_folders={"train": "train_images", "test": "test_images"},
            ),
        ),
    )
}


def find_competition(slug: str) -> Competition:
    """The competition of that name; an InputError lists the valid names."""
    if slug not in COMPETITIONS:
        raise InputError(unknown_name("competition", slug, COMPETITIONS))
    return COMPETITIONS[slug]

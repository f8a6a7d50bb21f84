"""What each Kaggle competition wants of a submission, and which files its data has."""

from dataclasses import dataclass

from inat.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of a competition's download.

    Attributes:
        name: file name below the competition's `download_url`.
        part: the part of the download that it belongs to, as `--only` names it.
        md5: as published; None where none was.
        folder: folder of photos that it brings to the data root; "" where it brings files.
        files: files that it brings to the data root, in whatever folder it holds them.
        about_bytes: published size, a round figure; None where none was.
    """

    name: str
    part: str
    md5: str | None
    folder: str = ""
    files: tuple[str, ...] = ()
    about_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Competition:
    """One competition's files and rules.

    Attributes:
        slug: the competition's name in its Kaggle address.
        header: first line of a submission, to the letter.
        n_guesses: guesses a row, best first, separated by one space.
        annotation_files: file of each split below the data root.
        locations_files: file of the places and dates of a split, where it has any.
        forbidden_weights: marks in a weights tag that its rules forbid, with the reason.
        download_url: address that its archives lie below.
        archives: its download, in the order in which it is fetched: what is small comes first.
    """

    slug: str
    header: str
    n_guesses: int
    annotation_files: dict[str, str]
    locations_files: dict[str, str]
    forbidden_weights: dict[str, str]
    download_url: str
    archives: tuple[Archive, ...]

    @property
    def columns(self) -> tuple[str, str]:
        """The two column names of the header."""
        image_column, guess_column = self.header.split(",")
        return image_column, guess_column


COMPETITIONS = {
    spec.slug: spec
    for spec in (
        Competition(
            slug="inaturalist-2018",
            header="id,predicted",
            n_guesses=3,
            annotation_files={
                "train": "train2018.json",
                "val": "val2018.json",
                "test": "test2018.json",
            },
            locations_files={
                "train": "train2018_locations.json",
                "val": "val2018_locations.json",
            },
            forbidden_weights={
                "inat21": "iNat-2021 photos are natural-world data beyond the competition's own",
                "inat2021": "iNat-2021 photos are natural-world data beyond the competition's own",
            },
            download_url="https://ml-inat-competition-datasets.s3.amazonaws.com/2018/",
            archives=(
                Archive(
                    name="train2018.json.tar.gz",
                    part="annotations",
                    md5="bfa29d89d629cbf04d826a720c0a68b0",
                    files=("train2018.json",),
                ),
                Archive(
                    name="val2018.json.tar.gz",
                    part="annotations",
                    md5="f2ed8bfe3e9901cdefceb4e53cd3775d",
                    files=("val2018.json",),
                ),
                Archive(
                    name="test2018.json.tar.gz",
                    part="annotations",
                    md5="fc717a7f53ac72ed8b250221a08a4502",
                    files=("test2018.json",),
                ),
                Archive(
                    name="categories.json.tar.gz",
                    part="annotations",
                    md5=None,
                    files=("categories.json",),
                ),
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
    )
}


def find_competition(slug: str) -> Competition:
    """The competition of that name.

    Raises:
        InputError: there is none; the text lists the valid names.
    """
    if slug not in COMPETITIONS:
        raise InputError(unknown_name("competition", slug, COMPETITIONS))
    return COMPETITIONS[slug]

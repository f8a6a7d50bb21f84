"""What each Kaggle competition wants of a submission, and which files its data has."""

from dataclasses import dataclass

from inat.errors import InputError, unknown_name


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
    """

    slug: str
    header: str
    n_guesses: int
    annotation_files: dict[str, str]
    locations_files: dict[str, str]
    forbidden_weights: dict[str, str]

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

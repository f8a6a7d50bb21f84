"""The manifest beside a submission: what its CSV was made of, and what Kaggle said to it."""

from pathlib import Path
from typing import Any

from inat.core.competitions import Competition, find_competition
from inat.core.errors import InputError
from inat.core.files import read_json, sha256, write_json

DEFAULT_COMPETITION = "inaturalist-2018"


def manifest_path(submission: Path | str) -> Path:
    """NAME.manifest.json beside NAME.csv, NAME.csv.gz.manifest.json beside NAME.csv.gz."""
    path = Path(submission)
    return path.with_name(path.name.removesuffix(".csv") + ".manifest.json")


def read_manifest(submission: Path | str) -> dict[str, Any]:
    """The manifest of a submission; empty where there is none."""
    path = manifest_path(submission)
    if not path.exists():
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise InputError(
            f"{path}: not a manifest (a JSON object); move it away or write the CSV again"
        )
    return manifest


def refuse_other_bytes(submission: Path) -> None:
    """Refuses a submission that is not the one its manifest describes, by its SHA-256."""
    known = read_manifest(submission).get("sha256")
    if known is not None and submission.is_file() and sha256(submission) != known:
        raise InputError(
            f"{submission}: is not the file that {manifest_path(submission)} describes (its "
            "SHA-256 is another): one of them was changed or replaced; write it again with inat "
            "submission write, or move the manifest away"
        )


def competition_of(submission: Path | str | None, named: str | None) -> Competition:
    """The competition that is named, or else the manifest's, or else inaturalist-2018."""
    known = None if submission is None else read_manifest(submission).get("competition")
    return find_competition(named or known or DEFAULT_COMPETITION)


def update_manifest(submission: Path | str, **entries: Any) -> Path:
    """Puts entries into the manifest of a submission, beside those that are there."""
    path = manifest_path(submission)
    write_json(path, read_manifest(submission) | entries)
    return path

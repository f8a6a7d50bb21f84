"""The manifest beside a submission: what its CSV was made of, and what Kaggle said to it."""

from pathlib import Path
from typing import Any

from inat.errors import InputError
from inat.files import read_json, write_json


def manifest_path(submission: Path | str) -> Path:
    """NAME.manifest.json beside NAME.csv or NAME.csv.gz."""
    path = Path(submission)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".manifest.json")


def read_manifest(submission: Path | str) -> dict[str, Any]:
    """The manifest of a submission; empty where there is none.

    Raises:
        InputError: it is not JSON, or no object.
    """
    path = manifest_path(submission)
    if not path.exists():
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise InputError(
            f"{path}: not a manifest (a JSON object); move it away or write the CSV again"
        )
    return manifest


def update_manifest(submission: Path | str, **entries: Any) -> Path:
    """Puts entries into the manifest of a submission, beside those that are there."""
    path = manifest_path(submission)
    write_json(path, read_manifest(submission) | entries)
    return path

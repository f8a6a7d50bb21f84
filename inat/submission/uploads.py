"""What became of the uploads of a file: the part `uploads` of its manifest."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from inat.core.errors import InputError
from inat.submission.kaggle_client import Submission
from inat.submission.manifest import manifest_path, read_manifest, update_manifest

KEYS = {"competition", "sha256", "ref", "date", "status"}


def content_mark(digest: str) -> str:
    """What stands behind each message: Kaggle itself keeps no checksum of what it was sent."""
    return f"[sha256 {digest[:12]}]"


def read_uploads(path: Path, competition: str) -> list[dict[str, Any]]:
    """The uploads of a CSV to a competition, the last one last.

    Each has its `competition`, the `sha256` of what was sent, and the fields of `Submission`; its
    status may also be sending, failed (nothing arrived) or unknown, with the reason in `error` and
    0 as `ref`.
    """
    return [entry for entry in _all_uploads(path) if entry["competition"] == competition]


def note_upload(path: Path, competition: str, digest: str, submission: Submission) -> None:
    """Writes what is known of an upload now, in place of what was known of it before."""
    entry = {"competition": competition, "sha256": digest} | asdict(submission)
    uploads = _all_uploads(path)
    places = [i for i, known in enumerate(uploads) if known["ref"] == submission.ref] or [
        i for i, known in enumerate(uploads) if known["status"] in ("sending", "unknown")
    ]
    if not places:
        uploads.append(entry)
    elif submission.ref and uploads[places[0]]["ref"]:
        # The file may have been written anew since then: what was sent stays what it was.
        uploads[places[0]] = entry | {"sha256": uploads[places[0]]["sha256"]}
    else:
        uploads[places[0]] = entry
    update_manifest(path, uploads=uploads)


def _all_uploads(path: Path) -> list[dict[str, Any]]:
    uploads = read_manifest(path).get("uploads", [])
    if not isinstance(uploads, list) or not all(
        isinstance(entry, dict) and entry.keys() >= KEYS for entry in uploads
    ):
        raise InputError(
            f"{manifest_path(path)}: uploads is not what an upload writes; take it out of the file"
        )
    return uploads

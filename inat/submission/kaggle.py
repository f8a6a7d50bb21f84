"""Sends a checked submission to Kaggle, waits for its score, and notes both in the manifest."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inat.core.errors import InputError, WorldError, one_line
from inat.core.files import sha256
from inat.core.progress import progress_bar, say
from inat.submission.csv_file import check_submission
from inat.submission.kaggle_client import (
    KaggleFault,
    Submission,
    get_submission,
    list_submissions,
    submit,
)
from inat.submission.manifest import competition_of, manifest_path, read_manifest, update_manifest

POLL_SECONDS = 10.0
MOST_LISTED = 5
KEYS = {"competition", "sha256", "ref", "date", "status"}


def upload_submission(
    csv: Path | str,
    root: Path | str,
    *,
    message: str,
    competition: str | None = None,
    again: bool = False,
    wait: float = 10.0,
) -> Submission:
    """Checks a CSV, sends it to Kaggle once, waits for its score, and notes that in its manifest.

    Nothing is ever asked. The credentials are those of the kaggle client: a token from
    https://www.kaggle.com/settings/api in ~/.kaggle/access_token. Kaggle keeps no checksum of what
    it was sent, so a mark of the content, `[sha256 ...]`, is appended to the message: it identifies
    the same bytes, whoever sent them, and a submission whose answer was lost.

    Args:
        csv: the submission, a CSV or CSV.gz file.
        root: folder of the data set, for its test photos and categories.
        message: description that Kaggle shows; a mark of the content is appended.
        competition: Kaggle name; None: the manifest's, or else inaturalist-2018.
        again: send it although the same bytes were sent before.
        wait: minutes to wait for the score; 0: do not wait.

    Raises:
        FaultsFound: the check found faults; nothing was sent.
        InputError: no message, the same bytes were sent before, no usable credentials.
        WorldError: it was not sent, Kaggle found an error in it, or the score did not come.
    """
    if not message.strip():
        raise InputError("message: is empty; say in a few words what this submission is")
    if not 0 <= wait < math.inf:
        raise InputError(f"wait: {wait:g} minutes; give 0 or more")
    path = Path(csv)
    slug = competition_of(path, competition).slug
    n_rows = check_submission(path, root, competition=slug).n_rows
    sending = _Sending(path, slug, sha256(path))
    say(f"{path}: {n_rows:,} rows, nothing wrong; sha256 {sending.digest}")
    with sending.naming_faults():
        listed = list_submissions(slug)
    say(f"{slug}: submissions so far: {len(listed)}")
    for submission in listed[:MOST_LISTED]:
        say(f"  {submission.lines()[0]}")
    if not again:
        sending.refuse_twice(listed)
    with sending.naming_faults():
        made = sending.send(f"{message} {sending.mark}", listed)
    say(f"{path}: uploaded to {slug} as submission {made.ref}")
    return sending.scored(made, wait) if wait else made


def submission_status(
    csv: Path | str | None = None, *, competition: str | None = None
) -> list[Submission]:
    """Lists your submissions to a competition with their scores, newest first.

    Args:
        csv: list only the uploads of this submission, and bring its manifest up to date.
        competition: Kaggle name; None: the manifest's, or else inaturalist-2018.

    Raises:
        InputError: nothing is known of an upload of that file; no usable credentials.
        WorldError: Kaggle gave no answer.
    """
    slug = competition_of(csv, competition).slug
    try:
        listed = list_submissions(slug)
        if csv is None:
            return listed
        sending = _Sending(Path(csv), slug, sha256(Path(csv)))
        # By the mark, or by the manifest, which then knows them all; the list ends somewhere.
        refs = {entry["ref"] for entry in sending.uploads()} - {0}
        found = [s for s in listed if sending.mark in s.description or s.ref in refs]
        older = sorted(refs - {submission.ref for submission in found}, reverse=True)
        found += [get_submission(ref) for ref in older]
    except WorldError as fault:
        raise WorldError(f"{slug}: {fault}") from None
    if not found:
        raise InputError(f"{csv}: neither {slug} nor {manifest_path(csv)} knows an upload of it")
    for submission in reversed(found):
        sending.note(submission)
    return found


@dataclass(frozen=True)
class _Sending:
    """A file on its way to a competition. What became of its uploads is in `uploads` of its
    manifest: each entry has the competition, the sha256 of what was sent, and the fields of
    `Submission`; its status may also be sending, failed (nothing arrived) or unknown, with the
    reason in `error` and 0 as `ref`."""

    path: Path
    slug: str
    digest: str

    @property
    def mark(self) -> str:
        return f"[sha256 {self.digest[:12]}]"

    @contextmanager
    def naming_faults(self) -> Iterator[None]:
        try:
            yield
        except (WorldError, InputError) as fault:
            kind = InputError if isinstance(fault, InputError) else WorldError
            raise kind(
                f"{self.path}: checked, but the upload to {self.slug} failed: {fault}"
            ) from None

    def uploads(self) -> list[dict[str, Any]]:
        return [entry for entry in self._all_uploads() if entry["competition"] == self.slug]

    def _all_uploads(self) -> list[dict[str, Any]]:
        uploads = read_manifest(self.path).get("uploads", [])
        if not isinstance(uploads, list) or not all(
            isinstance(entry, dict) and entry.keys() >= KEYS for entry in uploads
        ):
            raise InputError(
                f"{manifest_path(self.path)}: uploads is not what an upload writes; take it out "
                "of the file"
            )
        return uploads

    def note(self, submission: Submission) -> None:
        """Writes what is known of an upload now, in place of what was known of it before."""
        entry = {"competition": self.slug, "sha256": self.digest, **asdict(submission)}
        uploads = self._all_uploads()
        places = [i for i, known in enumerate(uploads) if known["ref"] == submission.ref] or [
            i for i, known in enumerate(uploads) if known["status"] in ("sending", "unknown")
        ]
        if not places:
            uploads.append(entry)
        else:
            known = uploads[places[0]]
            # The file may have been written again since then: what was sent stays what it was.
            kept = {"sha256": known["sha256"]} if submission.ref and known["ref"] else {}
            uploads[places[0]] = entry | kept
        update_manifest(self.path, uploads=uploads)

    def refuse_twice(self, listed: list[Submission]) -> None:
        """Refuses bytes that Kaggle's list or the manifest (the list ends somewhere) knows."""
        earlier = [(s.ref, s.date) for s in listed if self.mark in s.description] or [
            (entry["ref"], entry["date"])
            for entry in self.uploads()
            if entry["sha256"] == self.digest and entry["ref"]
        ]
        if earlier:
            ref, date = earlier[0]
            raise InputError(
                f"{self.path}: the same bytes were sent to {self.slug} before, as submission {ref} "
                f"of {date}; --again sends them again"
            )

    def send(self, description: str, listed: list[Submission]) -> Submission:
        """Sends the file; the manifest tells of it from before to after."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = Submission(0, now, self.path.name, description, "sending", None, None, "")
        # A manifest that cannot be written is found out while that costs nothing.
        self.note(made)
        try:
            made = replace(made, status="pending", ref=self._submit(description, listed))
        except (WorldError, InputError) as fault:
            lost = isinstance(fault, KaggleFault) and fault.in_doubt
            self.note(replace(made, status="unknown" if lost else "failed", error=str(fault)))
            raise
        self.note(made)
        return made

    def _submit(self, description: str, listed: list[Submission]) -> int:
        """Kaggle's number for the file; where its answer was lost, the list tells. Nothing is sent
        twice: the fault stays `in_doubt` where the list was not to be had either."""
        try:
            return submit(self.path, description, self.slug)
        except KaggleFault as fault:
            if not fault.in_doubt:
                raise
            lost = fault
        say(f"{lost}; looking whether Kaggle has it")
        try:
            listed_now = list_submissions(self.slug)
        except WorldError:
            raise KaggleFault(
                f"{lost}; whether Kaggle has it is not known, inat submission status will tell",
                passing=True,
                in_doubt=True,
            ) from None
        known = {submission.ref for submission in listed}
        for submission in listed_now:
            if submission.ref not in known and submission.description == description:
                return submission.ref
        raise WorldError(str(lost))

    def scored(self, made: Submission, wait: float) -> Submission:
        """The submission with its score, noted in the manifest."""
        known, began, shown = made, time.monotonic(), 0
        with progress_bar(f"score of submission {made.ref}", math.ceil(60 * wait), "") as bar:
            while known.status == "pending" and (gone := time.monotonic() - began) < 60 * wait:
                note = "pending"
                try:
                    known = get_submission(made.ref)
                except WorldError as fault:
                    if not (isinstance(fault, KaggleFault) and fault.passing):
                        raise WorldError(
                            f"{self.path}: uploaded as submission {made.ref}, but its score cannot "
                            f"be had: {fault}"
                        ) from None
                    note = str(fault)
                if known.status == "pending":
                    bar.advance(int(gone) - shown, note)
                    shown = int(gone)
                    time.sleep(min(POLL_SECONDS, 60 * wait - gone))
        self.note(known)
        if known.status == "error":
            raise WorldError(
                f"{self.path}: Kaggle could not score submission {known.ref}: "
                f"{one_line(known.error) or 'it gives no reason'}"
            )
        if known.status == "pending":
            raise WorldError(
                f"{self.path}: uploaded as submission {known.ref}, which has no score after "
                f"{wait:g} minutes; inat submission status {self.path} asks again"
            )
        return known

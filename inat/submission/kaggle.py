"""Sends a checked submission to Kaggle, waits for its score, and notes both in the manifest."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from inat.core.errors import InputError, WorldError, one_line
from inat.core.files import sha256
from inat.core.progress import progress_bar, say
from inat.submission.csv_file import check_submission
from inat.submission.kaggle_client import KaggleClient, KaggleFault, Submission
from inat.submission.manifest import competition_of, manifest_path
from inat.submission.uploads import content_mark, note_upload, read_uploads

POLL_SECONDS = 5.0
MOST_LISTED = 5


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
    path = Path(csv)
    _check_options(message, wait)
    slug = competition_of(path, competition).slug
    n_rows = check_submission(path, root, competition=slug).n_rows
    digest = sha256(path)
    say(f"{path}: {n_rows:,} rows, nothing wrong; sha256 {digest}")
    with KaggleClient() as client:
        with _naming(path, slug):
            listed = client.list_submissions(slug)
        _tell(slug, listed)
        if not again:
            _refuse_twice(path, slug, digest, listed)
        with _naming(path, slug):
            made = _send(client, path, slug, digest, message, listed)
        say(f"{path}: uploaded to {slug} as submission {made.ref}")
        return _scored(client, path, slug, digest, made, wait) if wait else made


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
    path = None if csv is None else Path(csv)
    slug = competition_of(path, competition).slug
    with KaggleClient() as client:
        try:
            listed = client.list_submissions(slug)
            return listed if path is None else _own(client, path, slug, listed)
        except WorldError as fault:
            raise WorldError(f"{slug}: {fault}") from None


def _check_options(message: str, wait: float) -> None:
    if not message.strip():
        raise InputError("message: is empty; say in a few words what this submission is")
    if not 0 <= wait < math.inf:
        raise InputError(f"wait: {wait:g} minutes; give 0 or more")


@contextmanager
def _naming(path: Path, slug: str) -> Iterator[None]:
    """Puts before a fault what could not be done, and where the checked file lies."""
    try:
        yield
    except (WorldError, InputError) as fault:
        kind = InputError if isinstance(fault, InputError) else WorldError
        raise kind(f"{path}: checked, but the upload to {slug} failed: {fault}") from None


def _tell(slug: str, listed: Sequence[Submission]) -> None:
    say(f"{slug}: submissions so far: {len(listed)}")
    for submission in listed[:MOST_LISTED]:
        say(f"  {submission.line()}")


def _refuse_twice(path: Path, slug: str, digest: str, listed: Sequence[Submission]) -> None:
    """Refuses bytes that Kaggle's list or the manifest (the list ends somewhere) knows as sent."""
    earlier = [(s.ref, s.date) for s in listed if content_mark(digest) in s.description] or [
        (entry["ref"], entry["date"])
        for entry in read_uploads(path, slug)
        if entry["sha256"] == digest and entry["ref"]
    ]
    if earlier:
        ref, date = earlier[0]
        raise InputError(
            f"{path}: the same bytes were sent to {slug} before, as submission {ref} of {date}; "
            "--again sends them again"
        )


def _send(
    client: KaggleClient,
    path: Path,
    slug: str,
    digest: str,
    message: str,
    listed: Sequence[Submission],
) -> Submission:
    """Sends a file; the manifest tells of it from before to after."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    description = f"{message} {content_mark(digest)}"
    made = Submission(0, now, path.name, description, "sending", None, None, "")
    # A manifest that cannot be written is found out while that costs nothing.
    note_upload(path, slug, digest, made)
    try:
        ref = _submit(client, path, description, slug, listed)
    except (WorldError, InputError) as fault:
        lost = isinstance(fault, KaggleFault) and fault.in_doubt
        made = replace(made, status="unknown" if lost else "failed", error=str(fault))
        note_upload(path, slug, digest, made)
        raise
    made = replace(made, status="pending", ref=ref)
    note_upload(path, slug, digest, made)
    return made


def _submit(
    client: KaggleClient, path: Path, description: str, slug: str, listed: Sequence[Submission]
) -> int:
    """Kaggle's number for the file; where its answer was lost, the list tells.

    Raises:
        KaggleFault: `in_doubt` where the list was not to be had either.
        WorldError: the file is not in the list.
    """
    try:
        return client.submit(path, description, slug)
    except KaggleFault as fault:
        if not fault.in_doubt:
            raise
        lost = fault
    say(f"{lost}; looking whether Kaggle has it")
    known = {submission.ref for submission in listed}
    try:
        listed = client.list_submissions(slug)
    except WorldError:
        raise KaggleFault(
            f"{lost}; whether Kaggle has it is not known, inat submission status will tell",
            passing=True,
            in_doubt=True,
        ) from None
    for submission in listed:
        if submission.ref not in known and submission.description == description:
            return submission.ref
    raise WorldError(str(lost))


def _scored(
    client: KaggleClient, path: Path, slug: str, digest: str, made: Submission, wait: float
) -> Submission:
    """The submission with its score, noted in the manifest."""
    try:
        known = _wait(client, made, 60 * wait)
    except WorldError as fault:
        raise WorldError(
            f"{path}: uploaded as submission {made.ref}, but its score cannot be had: {fault}"
        ) from None
    note_upload(path, slug, digest, known)
    if known.status == "error":
        raise WorldError(
            f"{path}: Kaggle could not score submission {known.ref}: "
            f"{one_line(known.error) or 'it gives no reason'}"
        )
    if known.status == "pending":
        raise WorldError(
            f"{path}: uploaded as submission {known.ref}, which has no score after {wait:g} "
            f"minutes; inat submission status {path} asks again"
        )
    return known


def _wait(client: KaggleClient, made: Submission, seconds: float) -> Submission:
    """The submission as soon as it is no longer pending, or as it is when the time is over."""
    known, began, shown = made, time.monotonic(), 0
    with progress_bar(f"score of submission {made.ref}", math.ceil(seconds), "") as bar:
        while True:
            note = "pending"
            try:
                known = client.get_submission(made.ref)
            except KaggleFault as fault:
                if not fault.passing:
                    raise
                note = str(fault)
            gone = time.monotonic() - began
            if known.status != "pending" or gone >= seconds:
                return known
            bar.advance(int(gone) - shown, note)
            shown = int(gone)
            time.sleep(min(POLL_SECONDS, seconds - gone))


def _own(
    client: KaggleClient, path: Path, slug: str, listed: Sequence[Submission]
) -> list[Submission]:
    """The uploads of a file, found by its mark or in its manifest, which then knows them all."""
    digest = sha256(path)
    refs = {entry["ref"] for entry in read_uploads(path, slug)} - {0}
    found = [s for s in listed if content_mark(digest) in s.description or s.ref in refs]
    older = sorted(refs - {submission.ref for submission in found}, reverse=True)
    found += [client.get_submission(ref) for ref in older]
    if not found:
        raise InputError(f"{path}: neither {slug} nor {manifest_path(path)} knows an upload of it")
    for submission in reversed(found):
        note_upload(path, slug, digest, submission)
    return found

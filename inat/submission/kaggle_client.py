"""Kaggle's answers, or one line that says why there is none."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat.core.errors import InatError, InputError, WorldError, one_line

# The client has no time-outs of its own, but for refused connections, which it retries for minutes.
ANSWER_SECONDS = 120.0  # most of it for loading the client from a slow disk
UPLOAD_SECONDS = 400.0
LONGEST_SAYING = 200

CHILD = Path(__file__).with_name("kaggle_child.py")
NEW_TOKEN = (
    "make a token at https://www.kaggle.com/settings/api and put it into ~/.kaggle/access_token"
)
REFUSALS = {
    401: ("Kaggle refuses the credentials of {source}", NEW_TOKEN),
    403: (
        "Kaggle refuses",
        "accept the competition's rules on its page, and see whether it still takes submissions",
    ),
    404: ("Kaggle knows no such thing", "see whether the competition still takes submissions"),
    429: ("too many requests for Kaggle", "try again later"),
    500: ("Kaggle is out of order", "try again later"),
}
"""What an HTTP status means, and the remedy; 500 stands for all from there on."""


@dataclass(frozen=True)
class Submission:
    """A submission as Kaggle lists it.

    Attributes:
        ref: Kaggle's number for it.
        date: UTC, ISO 8601; "" where Kaggle tells none.
        file_name: without folders.
        description: the message, and behind it the mark of the file's content.
        status: pending, complete or error.
        public_score: what the leaderboard shows; None before it is there, or where it is kept back.
        private_score: likewise.
        error: why Kaggle did not score it.
    """

    ref: int
    date: str
    file_name: str
    description: str
    status: str
    public_score: float | None
    private_score: float | None
    error: str

    def lines(self) -> list[str]:
        """What a person wants to know of it, for a terminal; – for a score that is not there."""
        public, private = (
            "–" if score is None else f"{score:.5f}"
            for score in (self.public_score, self.private_score)
        )
        return [
            f"{self.ref}  {self.date}  {self.status}  public {public}  private {private}  "
            f"{self.file_name}  {one_line(self.description)}"
        ]


class KaggleFault(WorldError):
    """Kaggle gave no answer, or refused.

    Attributes:
        passing: another try may succeed.
        in_doubt: what was asked for may have been done all the same.
    """

    def __init__(self, text: str, *, passing: bool, in_doubt: bool) -> None:
        super().__init__(text)
        self.passing = passing
        self.in_doubt = in_doubt


def list_submissions(competition: str) -> list[Submission]:
    """Your submissions, newest first, at most a hundred."""
    listed = ask("list", ANSWER_SECONDS, competition=competition)
    return [Submission(**fields) for fields in listed]


def get_submission(ref: int) -> Submission:
    """One submission, as it is now."""
    return Submission(**ask("get", ANSWER_SECONDS, ref=ref))


def submit(path: Path, message: str, competition: str) -> int:
    """Sends a file, once; gives Kaggle's number for it."""
    made = ask("submit", UPLOAD_SECONDS, path=str(path), message=message, competition=competition)
    if not made["stored"]:
        raise KaggleFault(
            "the file did not reach Kaggle's storage (refused or cut off on the way); "
            "try again later",
            passing=True,
            in_doubt=False,
        )
    if not made["ref"]:
        text = f"Kaggle gave no reference{quoted(without_secrets(one_line(made['said'])))}"
        raise KaggleFault(text, passing=False, in_doubt=True)
    return int(made["ref"])


def ask(call: str, seconds: float, **options: Any) -> Any:
    """What the unmodified client answers to one call, in a process that ends with it.

    Raises:
        KaggleFault: it was refused or lost on the way.
        InputError: no usable credentials.
    """
    answer = run_child(call, seconds, options)
    if "fault" in answer:
        raise error_of(answer["fault"], without_secrets(one_line(answer["said"])), answer["status"])
    return answer["value"]


def run_child(call: str, seconds: float, options: dict[str, Any]) -> dict[str, Any]:
    """What `kaggle_child` prints."""
    # -P: neither the folder of the child nor that of the user may hide the package kaggle.
    command = [sys.executable, "-P", str(CHILD), json.dumps({"call": call, **options})]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=True)
    except subprocess.SubprocessError as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        why = f"no answer within {seconds:g} s" if late else "the kaggle client ended early"
        raise KaggleFault(f"{why}; try again later", passing=True, in_doubt=True) from None
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def error_of(kind: str, said: str, status: int) -> InatError:
    """The error of a fault that the child reports; `status` is that of HTTP, if any."""
    if kind == "http":
        meaning, remedy = REFUSALS.get(min(status, 500), ("Kaggle refuses", "see its page"))
        source = next(iter(credentials()), "this machine")
        return KaggleFault(
            f"{meaning.format(source=source)}, status {status}{quoted(said)}; {remedy}",
            passing=status == 429 or status >= 500,
            in_doubt=status >= 500,
        )
    if kind == "credentials":
        where = ", ".join(credentials())
        found = f"what is in {where} is malformed or expired" if where else "there are none"
        return InputError(f"no usable Kaggle credentials: {found}; {NEW_TOKEN}")
    if kind == "import":
        return WorldError(f"the kaggle client cannot be loaded ({said}); pip install kaggle six")
    if kind == "disk":
        return WorldError(f"the kaggle client cannot read or write: {said}")
    if kind == "network":
        text = f"no connection to Kaggle ({said}); try again when there is a network"
        return KaggleFault(text, passing=True, in_doubt=True)
    text = f"Kaggle's answer cannot be read ({said}); does a proxy or a login page stand between?"
    return KaggleFault(text, passing=False, in_doubt=True)


def quoted(said: str) -> str:
    """Kaggle's own words behind a colon; nothing where it said nothing."""
    return f": {said[:LONGEST_SAYING]}" if said else ""


def credentials() -> dict[str, str]:
    """The text of all credentials, usable or not, by their place, in the order of the client."""
    folder = os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle"
    places = (
        *("KAGGLE_API_TOKEN", "~/.kaggle/access_token", "~/.kaggle/access_token.txt"),
        *("KAGGLE_USERNAME", "KAGGLE_KEY", f"{folder}/kaggle.json", "~/.kaggle/credentials.json"),
    )
    found = {}
    for place in places:
        text = os.environ.get(place, "")
        if "/" in place:
            with suppress(OSError):
                text = Path(place).expanduser().read_text(errors="replace")
        if text.strip():
            found[place] = text
    return found


def without_secrets(said: str) -> str:
    """The same with *** for keys, tokens and headers: a server may well repeat what it was sent."""
    said = re.sub(r"\b(Basic|Bearer) \S+", r"\1 ***", said)
    for place, text in credentials().items():
        if place != "KAGGLE_USERNAME":
            for secret in (text.strip(), *re.findall(r'[^\s"{}\[\],]{12,}', text)):
                said = said.replace(secret, "***")
    return said

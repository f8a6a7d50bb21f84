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
MEANINGS = {
    401: f"Kaggle refuses the credentials of {{source}}, status 401{{said}}; {NEW_TOKEN}",
    403: "Kaggle refuses, status 403{said}; accept the competition's rules on its page, and see "
    "whether it still takes submissions",
    404: "Kaggle knows no such thing, status 404{said}; see whether the competition still takes "
    "submissions",
    429: "too many requests for Kaggle, status 429{said}; try again later",
    400: "Kaggle refuses, status {status}{said}; see its page",
    500: "Kaggle is out of order, status {status}{said}; try again later",
    "network": "no connection to Kaggle ({reason}); try again when there is a network",
    "unreadable": "Kaggle's answer cannot be read ({reason}); does a proxy or a login page stand "
    "between?",
    "import": "the kaggle client cannot be loaded ({reason}); pip install kaggle six",
    "disk": "the kaggle client cannot read or write: {reason}",
}
"""What a fault of the client means, by its kind or HTTP status; 400 and 500 stand for the rest."""


@dataclass(frozen=True)
class Submission:
    ref: int  # Kaggle's number for it
    date: str  # UTC, ISO 8601; "" where Kaggle tells none
    file_name: str  # without folders
    description: str  # the message, and after it the mark of the file's content
    status: str  # pending, complete or error
    public_score: float | None  # of the leaderboard; None before it is there, or where it is hidden
    private_score: float | None
    error: str  # why Kaggle did not score it

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
    """Kaggle gave no answer, or refused."""

    def __init__(self, text: str, *, passing: bool, in_doubt: bool) -> None:
        super().__init__(text)
        self.passing = passing  # another try may succeed
        self.in_doubt = in_doubt  # what was asked for may have been done all the same


def list_submissions(competition: str) -> list[Submission]:
    """Your submissions, newest first, at most a hundred."""
    listed = ask("list", ANSWER_SECONDS, competition=competition)
    return [Submission(**fields) for fields in listed]


def get_submission(ref: int) -> Submission:
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
    """The unmodified client's answer to one call; a KaggleFault if it was refused or lost."""
    answer = run_child(call, seconds, options)
    if "fault" in answer:
        raise error_of(answer["fault"], without_secrets(one_line(answer["said"])), answer["status"])
    return answer["value"]


def run_child(call: str, seconds: float, options: dict[str, Any]) -> dict[str, Any]:
    # -P: neither the folder of the child nor that of the user may hide the package kaggle.
    command = [sys.executable, "-P", str(CHILD), json.dumps({"call": call, **options})]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=True)
    except subprocess.SubprocessError as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        why = f"no answer within {seconds:g} s" if late else "the kaggle client ended early"
        raise KaggleFault(f"{why}; try again later", passing=True, in_doubt=True) from None
    return json.loads(done.stdout)


def error_of(kind: str, said: str, status: int) -> InatError:
    """The error of a fault that the child reports; `status` is that of HTTP, if any."""
    places = list(credentials())
    if kind == "credentials":
        where = ", ".join(places)
        found = f"what is in {where} is malformed or expired" if where else "there are none"
        return InputError(f"no usable Kaggle credentials: {found}; {NEW_TOKEN}")
    key = kind if kind != "http" else status if status in MEANINGS else 500 if status > 499 else 400
    source = places[0] if places else "this machine"
    text = MEANINGS[key].format(source=source, status=status, said=quoted(said), reason=said)
    if kind in ("import", "disk"):
        return WorldError(text)
    passing = kind == "network" or status == 429 or status >= 500
    return KaggleFault(text, passing=passing, in_doubt=kind != "http" or status >= 500)


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

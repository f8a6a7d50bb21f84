"""Kaggle's answers, or one line that says why there is none."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any

import urllib3

from inat.core.errors import InatError, InputError, WorldError, one_line
from inat.core.progress import say

# The client has no time-outs of its own, but for refused connections, which it retries for minutes.
START_SECONDS = 120.0  # loading it from a slow disk, and looking up a token
ANSWER_SECONDS = 60.0
UPLOAD_SECONDS = 300.0
PAUSES = (1.0, 4.0)  # seconds before each new try of what is safe to repeat
LONGEST_PAUSE = 60.0  # that is waited where Kaggle asks for one
LONGEST_SAYING = 200

CHILD = Path(__file__).with_name("kaggle_child.py")
NEW_TOKEN = (
    "make a token at https://www.kaggle.com/settings/api and put it into ~/.kaggle/access_token"
)


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
        """What a person wants to know of it, for a terminal."""
        return [self.line()]

    def line(self) -> str:
        """The same as one line; – stands for a score that is not there."""
        public, private = (
            "–" if score is None else f"{score:.5f}"
            for score in (self.public_score, self.private_score)
        )
        return (
            f"{self.ref}  {self.date}  {self.status}  public {public}  private {private}  "
            f"{self.file_name}  {one_line(self.description)}"
        )


class KaggleFault(WorldError):
    """Kaggle gave no answer, or refused.

    Attributes:
        passing: another try may succeed.
        in_doubt: what was asked for may have been done all the same.
        pause: seconds after which Kaggle asks to be tried again; None where it asks nothing.
    """

    def __init__(
        self, text: str, *, passing: bool, in_doubt: bool, pause: float | None = None
    ) -> None:
        super().__init__(text)
        self.passing = passing
        self.in_doubt = in_doubt
        self.pause = pause


class KaggleClient:
    """The unmodified `kaggle` client, in a process of its own that ends with the `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "KaggleClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def list_submissions(self, competition: str) -> list[Submission]:
        """Own submissions, the newest first, at most a hundred.

        Raises:
            KaggleFault: none were listed, although what may pass was waited for.
            InputError: no usable credentials.
        """
        for pause in PAUSES:
            try:
                return self._list(competition)
            except KaggleFault as fault:
                wanted = pause if fault.pause is None else fault.pause
                if not fault.passing or wanted > LONGEST_PAUSE:
                    raise
                say(f"{fault} (this is done in {wanted:.0f} s)")
                time.sleep(wanted)
        return self._list(competition)

    def get_submission(self, ref: int) -> Submission:
        """One submission, as it is now.

        Raises:
            KaggleFault: no answer.
            InputError: no usable credentials.
        """
        return Submission(**self._ask("get_submission", ANSWER_SECONDS, ref=ref))

    def submit(self, path: Path, message: str, competition: str) -> int:
        """Sends a file, once; gives Kaggle's number for it.

        Raises:
            KaggleFault: it was refused or lost on the way; `in_doubt` where that is not known.
            InputError: no usable credentials.
        """
        made = self._ask(
            "submit", UPLOAD_SECONDS, path=str(path), message=message, competition=competition
        )
        if not made["stored"]:
            raise KaggleFault(
                "the file did not reach Kaggle's storage (refused or cut off on the way); "
                "try again later",
                passing=True,
                in_doubt=False,
            )
        if not made["ref"]:
            raise KaggleFault(
                f"Kaggle gave no reference{_quoted(made['said'])}", passing=False, in_doubt=True
            )
        return int(made["ref"])

    def _list(self, competition: str) -> list[Submission]:
        listed = self._ask("list_submissions", ANSWER_SECONDS, competition=competition)
        return [Submission(**fields) for fields in listed]

    def _ask(self, call: str, seconds: float, **options: Any) -> Any:
        if self._process is None:
            self._start()
        return self._exchange(call, seconds, **options)

    def _start(self) -> None:
        # -P: neither the folder of the child nor that of the user may hide the package kaggle.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        try:
            self._exchange("log_in", START_SECONDS)
        except InatError:
            self._stop()  # the next call logs in anew
            raise

    def _exchange(self, call: str, seconds: float, **options: Any) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = Timer(seconds, process.kill)
        began = time.monotonic()
        timer.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"call": call, **options}) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._stop()
            late = time.monotonic() - began >= seconds
            why = f"no answer within {seconds:g} s" if late else "the kaggle client ended early"
            raise KaggleFault(f"{why}; try again later", passing=True, in_doubt=True)
        answer = json.loads(line)
        if fault := answer.get("fault"):
            raise _error(fault)
        return answer["value"]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:  # closes the pipes and waits
                pass


def _error(fault: dict[str, Any]) -> InatError:
    """The error of a fault that the child tells of."""
    kind, said = fault["kind"], fault.get("said", "")
    if kind == "http":
        return _refusal(fault)
    if kind == "credentials":
        where = ", ".join(fault["sources"])
        found = f"what is in {where} is malformed or expired" if where else "there are none"
        return InputError(f"no usable Kaggle credentials: {found}; {NEW_TOKEN}")
    if kind == "import":
        return WorldError(f"the kaggle client cannot be loaded ({said}); pip install kaggle six")
    if kind == "disk":
        return WorldError(f"the kaggle client cannot read or write: {said}")
    if kind == "network":
        text = f"no connection to Kaggle ({said}); try again when there is a network"
        return KaggleFault(text, passing=True, in_doubt=True)
    return KaggleFault(
        f"Kaggle's answer cannot be read ({said}); does a proxy or a login page stand between?",
        passing=False,
        in_doubt=True,
    )


def _refusal(fault: dict[str, Any]) -> KaggleFault:
    """What an HTTP status of 400 or more means."""
    status, pause = fault["status"], _seconds(fault["retry_after"])
    when = "later" if pause is None else f"in {pause:.0f} s"
    source = fault["sources"][0] if fault["sources"] else "this machine"
    meaning, remedy = {
        401: (f"Kaggle refuses the credentials of {source}", NEW_TOKEN),
        403: (
            "Kaggle refuses",
            "accept the competition's rules on its page, and see whether it still takes "
            "submissions",
        ),
        404: ("Kaggle knows no such thing", "see whether the competition still takes submissions"),
        429: ("too many requests for Kaggle", f"try again {when}"),
    }.get(
        status,
        ("Kaggle is out of order", f"try again {when}")
        if status >= 500
        else ("Kaggle refuses", "see its page"),
    )
    return KaggleFault(
        f"{meaning}, status {status}{_quoted(fault['said'])}; {remedy}",
        passing=status == 429 or status >= 500,
        in_doubt=status >= 500,
        pause=pause,
    )


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, in seconds or as a date, as seconds from now."""
    if retry_after is None:
        return None
    try:
        return float(urllib3.Retry().parse_retry_after(retry_after))
    except urllib3.exceptions.InvalidHeader:
        return None


def _quoted(said: str) -> str:
    """Kaggle's own words behind a colon; nothing where it said nothing."""
    text = one_line(said)
    return f": {text[:LONGEST_SAYING]}" if text else ""

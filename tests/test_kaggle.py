"""Uploads: the unmodified kaggle client against a server on loopback that breaks when told to."""

import base64
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kaggle_server import (
    KEY,
    SIGNATURE,
    SLUG,
    USER,
    Fault,
    KaggleServer,
    lead_client_to,
    scored,
    serving,
)
from worlds import category_id

import inat
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import read_json, write_json
from inat.dataset.split import load_split
from inat.submission import Submission, kaggle, kaggle_child, kaggle_client
from inat.submission.manifest import manifest_path, read_manifest, update_manifest

REF = 40_000_001
LISTED = Fault(503, "down")
START = "StartSubmissionUpload"
RUN_CHILD = kaggle_client.run_child
BASIC = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
CHECKED = f"s.csv: checked, but the upload to {SLUG} failed: "


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[KaggleServer]:
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        lead_client_to(server.url, str(home), patch)
        patch.setenv("KAGGLE_USERNAME", USER)
        patch.setenv("KAGGLE_KEY", KEY)
        yield server


@pytest.fixture
def server(running: KaggleServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """Without faults yet. The client is loaded once, in this process: that takes half a second."""
    running.reset()
    monkeypatch.setattr(kaggle_client, "run_child", answered_here)
    monkeypatch.setattr(kaggle, "POLL_SECONDS", 0.0)
    yield running
    running.released.set()
    monkeypatch.undo()


def answered_here(call: str, _: float, options: dict[str, Any]) -> dict[str, Any]:
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        return json.loads(json.dumps(kaggle_child.answer(call, **options)))


@pytest.fixture
def place(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a valid s.csv and a link DATA to the data set."""
    (tmp_path / "DATA").symlink_to(world)
    guesses = " ".join(str(category_id(label)) for label in (2, 0, 1))
    ids = load_split(world, "test").image_ids.tolist()
    rows = "".join(f"{image_id},{guesses}\n" for image_id in ids)
    (tmp_path / "s.csv").write_text("id,predicted\n" + rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass
class Told:
    """What a command left on the terminal."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1].removeprefix("inat: ")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Runs a command; whatever comes of it, no secret is shown or written."""

    def call(*words: str) -> Told:
        status = main(["submission", *words])
        told = Told(status, *capfd.readouterr())
        written = "".join(path.read_text() for path in Path().glob("*.json"))
        for secret in (KEY, BASIC, SIGNATURE):
            assert secret not in told.out + told.err + written
        return told

    return call


def send(run: Callable[..., Told], *words: str) -> Told:
    return run("upload", "s.csv", "-m", "first light", "--data.root", "DATA", *words)


def uploads() -> list[dict[str, Any]]:
    return list(read_manifest("s.csv").get("uploads", []))


def digest() -> str:
    return hashlib.sha256(Path("s.csv").read_bytes()).hexdigest()


def description() -> str:
    return f"first light [sha256 {digest()[:12]}]"


def test_an_upload_is_checked_sent_and_scored(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.outcomes = [{}, {}, scored("0.12500", "0.2")]
    told = send(run)
    line = (
        f"{REF}  2026-01-02T03:04:05Z  complete  public 0.12500  private 0.20000  "
        f"s.csv  {description()}\n"
    )
    assert told == Told(
        0,
        line,
        f"s.csv: 8 rows, nothing wrong; sha256 {digest()}\n"
        f"{SLUG}: submissions so far: 0\n"
        f"s.csv: uploaded to {SLUG} as submission {REF}\n",
    )
    assert list(server.files.values()) == [Path("s.csv").read_bytes()]
    assert server.log == ["ListSubmissions", START, "PUT", "CreateSubmission"] + 3 * [
        "GetSubmission"
    ]
    assert uploads() == [
        {
            "competition": SLUG,
            "sha256": digest(),
            "ref": REF,
            "date": "2026-01-02T03:04:05Z",
            "file_name": "s.csv",
            "description": description(),
            "status": "complete",
            "public_score": 0.125,
            "private_score": 0.2,
            "error": "",
        }
    ]
    assert sorted(path.name for path in place.iterdir()) == ["DATA", "s.csv", "s.manifest.json"]


def test_the_manifest_keeps_what_stood_in_it(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    write_json(place / "s.manifest.json", {"competition": SLUG, "members": ["a", "b"]})
    assert send(run).status == 0
    manifest = read_manifest("s.csv")
    assert list(manifest) == ["competition", "members", "uploads"]
    assert manifest["members"] == ["a", "b"]


def test_the_manifest_names_the_competition(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    write_json(place / "s.manifest.json", {"competition": "inaturalist-2081"})
    told = send(run)
    assert told.status == 2
    assert told.last.startswith("competition: unknown name 'inaturalist-2081'; did you mean")
    assert send(run, "--competition", SLUG).status == 0


def test_wait_0_leaves_without_a_score(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    told = send(run, "--wait", "0")
    assert told.status == 0
    assert "pending  public –  private –" in told.out
    assert "GetSubmission" not in server.log
    assert uploads()[0]["status"] == "pending"


def test_nothing_is_sent_that_the_check_refuses(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    lines = Path("s.csv").read_text().splitlines()
    Path("s.csv").write_text("\n".join(lines[:-1]) + "\n")
    told = send(run)
    assert told.status == 1
    assert told.last.startswith("s.csv: 1 of 8 test photos have no row")
    assert (server.log, uploads()) == ([], [])


def test_bad_options_are_refused_before_anything_is_sent(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    told = run("upload", "s.csv", "-m", " ", "--data.root", "DATA")
    assert (told.status, told.last) == (
        2,
        "message: is empty; say in a few words what this submission is",
    )
    for minutes in ("-1", "nan", "inf"):
        told = send(run, f"--wait={minutes}")
        assert (told.status, told.last) == (2, f"wait: {minutes} minutes; give 0 or more")
    assert server.log == []


# --- what was sent before ------------------------------------------------------------------------


def test_the_same_bytes_are_sent_again_only_when_told_to(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    assert send(run).status == 0
    told = send(run)
    assert (told.status, told.last) == (
        2,
        f"s.csv: the same bytes were sent to {SLUG} before, as submission {REF} of "
        "2026-01-02T03:04:05Z; --again sends them again",
    )
    assert f"{SLUG}: submissions so far: 1\n  {REF}  2026" in told.err
    assert server.log.count("CreateSubmission") == 1
    assert send(run, "--again").status == 0
    assert server.log.count("CreateSubmission") == 2
    assert [entry["ref"] for entry in uploads()] == [REF, REF + 1]


def test_kaggles_list_knows_the_bytes_under_any_name_and_without_a_manifest(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    assert send(run).status == 0
    Path("s.manifest.json").unlink()
    Path("s.csv").rename("copy.csv")
    told = run("upload", "copy.csv", "-m", "other words", "--data.root", "DATA")
    assert told.status == 2
    assert told.last.startswith(f"copy.csv: the same bytes were sent to {SLUG} before")


def test_the_manifest_knows_the_bytes_where_kaggles_list_has_ended(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    assert send(run).status == 0
    server.submissions.clear()
    assert send(run).status == 2
    rows = Path("s.csv").read_text().splitlines()
    Path("s.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")  # other bytes
    assert send(run).status == 0


# --- faults --------------------------------------------------------------------------------------

LATER = "try again later"
RULES = "accept the competition's rules on its page, and see whether it still takes submissions"
TOKEN = "make a token at https://www.kaggle.com/settings/api and put it into ~/.kaggle/access_token"
STILL = "see whether the competition still takes submissions"
PROXY = "Kaggle's answer cannot be read (no JSON); does a proxy or a login page stand between?"
HIDDEN = "Basic *** ***"
ENDED = "Remote end closed connection without response"
NETWORK = f"no connection to Kaggle ({ENDED}); try again when there is a network"
REFUSED = {
    "401": (
        Fault(401, "no"),
        f"Kaggle refuses the credentials of KAGGLE_USERNAME, status 401: no {HIDDEN}; {TOKEN}",
    ),
    "403": (Fault(403, "closed"), f"Kaggle refuses, status 403: closed {HIDDEN}; {RULES}"),
    "404": (
        Fault(404, "what?"),
        f"Kaggle knows no such thing, status 404: what? {HIDDEN}; {STILL}",
    ),
    "400": (Fault(400, "bad"), f"Kaggle refuses, status 400: bad {HIDDEN}; see its page"),
    "429": (
        Fault(429, "slow"),
        f"too many requests for Kaggle, status 429: slow {HIDDEN}; {LATER}",
    ),
    "503": (Fault(503, "down"), f"Kaggle is out of order, status 503: down {HIDDEN}; {LATER}"),
    "HTML": (Fault(html=True), PROXY),
    "HTML and 502": (
        Fault(502, html=True),
        f"Kaggle is out of order, status 502: Bad Gateway; {LATER}",
    ),
    "dropped": (Fault(how="drop"), NETWORK),
}


@pytest.mark.parametrize("name", REFUSED)
def test_before_the_upload_a_fault_leaves_nothing_behind(
    name: str, place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    fault, text = REFUSED[name]
    server.faults["ListSubmissions"] = [fault]
    told = send(run)
    assert (told.status, told.out, told.last) == (1, "", CHECKED + text)
    assert server.fired == ["ListSubmissions"]
    assert set(server.log) == {"ListSubmissions"}
    assert sorted(path.name for path in place.iterdir()) == ["DATA", "s.csv"]


@pytest.mark.parametrize("method", [START, "CreateSubmission"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_upload_is_not_sent_twice_and_stands_in_the_manifest(
    name: str, method: str, place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    fault, text = REFUSED[name]
    server.faults[method] = [fault]
    told = send(run)
    assert (told.status, told.out, told.last) == (1, "", CHECKED + text)
    assert server.fired == [method]
    assert server.log.count(method) == 1
    (entry,) = uploads()
    assert (entry["ref"], entry["status"], entry["error"]) == (0, "failed", text)
    assert send(run).status == 0  # nothing of the failure stands in the way
    assert [entry["status"] for entry in uploads()] == ["complete"]


@pytest.mark.parametrize("name", ["503", "HTML", "dropped"])
def test_a_submission_whose_answer_was_lost_is_found(
    name: str, place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    fault = REFUSED[name][0]
    server.faults["CreateSubmission"] = [
        Fault(fault.status, fault.said, fault.headers, fault.html, fault.how, done=True)
    ]
    told = send(run)
    assert (told.status, told.out.split()[0]) == (0, str(REF))
    assert server.fired == ["CreateSubmission"]
    assert server.log.count("CreateSubmission") == 1
    assert "; looking whether Kaggle has it\n" in told.err
    assert (uploads()[0]["ref"], uploads()[0]["status"]) == (REF, "complete")


def test_with_again_an_earlier_submission_is_not_taken_for_the_lost_one(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    assert send(run).status == 0
    server.faults["CreateSubmission"] = [Fault(how="drop")]
    told = send(run, "--again")
    assert (told.status, told.last) == (1, CHECKED + NETWORK)
    assert [entry["ref"] for entry in uploads()] == [REF, 0]


def test_what_cannot_be_found_out_is_said(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.faults["CreateSubmission"] = [Fault(how="drop", done=True)]
    good = server.do

    def later_dead(method: str, asked: dict[str, Any]) -> dict[str, Any]:
        if method == "CreateSubmission":
            server.faults["ListSubmissions"] = [LISTED]
        return good(method, asked)

    server.do = later_dead  # type: ignore[method-assign]
    told = send(run)
    del server.do
    assert (told.status, told.last) == (
        1,
        f"{CHECKED}{NETWORK}; whether Kaggle has it is not known, inat submission status will tell",
    )
    assert server.fired == ["CreateSubmission", "ListSubmissions"]
    assert (uploads()[0]["ref"], uploads()[0]["status"]) == (0, "unknown")
    told = run("status", "s.csv")
    assert (told.status, told.out.split()[0]) == (0, str(REF))
    assert [(entry["ref"], entry["status"]) for entry in uploads()] == [(REF, "pending")]


def test_an_answer_without_a_reference_is_no_success(
    place: Path, server: KaggleServer, run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "create", lambda asked: {"message": f"Daily limit {KEY}", "ref": 0})
    told = send(run)
    assert (told.status, told.last) == (
        1,
        CHECKED + "Kaggle gave no reference: Daily limit ***",
    )


# --- the file on its way -------------------------------------------------------------------------


def test_a_connection_that_drops_in_the_put_once_is_mended(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.faults["PUT"] = [Fault(how="drop")]
    assert send(run).status == 0
    assert server.fired == ["PUT"]
    assert server.log.count("PUT") == 2
    assert list(server.files.values()) == [Path("s.csv").read_bytes()]


@pytest.mark.parametrize("status", [403, 503])
def test_a_put_that_is_refused_is_no_success(
    status: int, place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.faults["PUT"] = [Fault(status)]
    told = send(run)
    text = f"the file did not reach Kaggle's storage (refused or cut off on the way); {LATER}"
    assert (told.status, told.last) == (1, CHECKED + text)
    assert server.fired == ["PUT"]
    assert "CreateSubmission" not in server.log


@pytest.mark.parametrize(
    ("program", "why"),
    [("import time; time.sleep(60)", "no answer within 0.3 s"),
     ("raise SystemExit(3)", "the kaggle client ended early")],
)  # fmt: skip
def test_a_client_that_is_silent_or_dies_while_it_sends_leaves_the_upload_in_doubt(
    program: str,
    why: str,
    place: Path,
    server: KaggleServer,
    run: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = place / "child.py"
    child.write_text(program)
    really = subprocess.run

    def started(command: list[str], *, timeout: float, **options: Any) -> Any:
        seconds = 0.3 if program.startswith("import") else timeout
        return really([command[0], str(child)], timeout=seconds, **options)

    def answered(call: str, seconds: float, options: dict[str, Any]) -> dict[str, Any]:
        if call != "submit":
            server.faults["ListSubmissions"] = [] if call == "list" and not tried else [LISTED]
            return answered_here(call, seconds, options)
        tried.append(call)
        return run_child(call, 0.3, options)

    tried: list[str] = []
    run_child = RUN_CHILD
    monkeypatch.setattr(kaggle_client.subprocess, "run", started)
    monkeypatch.setattr(kaggle_client, "run_child", answered)
    told = send(run)
    assert told.status == 1
    assert told.last.startswith(f"{CHECKED}{why}; {LATER}; whether Kaggle has it is not known")
    assert tried == ["submit"]
    assert (uploads()[0]["ref"], uploads()[0]["status"]) == (0, "unknown")


# --- the score -----------------------------------------------------------------------------------


def test_a_score_that_never_comes_is_status_1_and_can_be_asked_for_later(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.outcomes = [{}]
    told = send(run, "--wait", "0.001")
    assert (told.status, told.out, told.last) == (
        1,
        "",
        f"s.csv: uploaded as submission {REF}, which has no score after 0.001 minutes; "
        "inat submission status s.csv asks again",
    )
    assert (uploads()[0]["ref"], uploads()[0]["status"]) == (REF, "pending")
    server.submissions[0] |= scored()
    told = run("status", "s.csv")
    assert (told.status, told.out.count("\n")) == (0, 1)
    assert "complete  public 0.12500  private 0.25000" in told.out
    assert (uploads()[0]["status"], uploads()[0]["public_score"]) == ("complete", 0.125)


@pytest.mark.parametrize(
    ("reason", "text"),
    [("Row 3\nis missing", "Row 3 is missing"), ("", "it gives no reason")],
)
def test_a_submission_that_ends_in_an_error_is_status_1(
    reason: str, text: str, place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.outcomes = [{}, {"status": "ERROR", "errorDescription": reason}]
    told = send(run)
    assert (told.status, told.out, told.last) == (
        1,
        "",
        f"s.csv: Kaggle could not score submission {REF}: {text}",
    )
    assert (uploads()[0]["status"], uploads()[0]["error"]) == ("error", reason)


def test_a_fault_that_passes_does_not_end_the_wait(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    passing = [Fault(503), Fault(429), Fault(how="drop")]
    server.faults["GetSubmission"] = list(passing)
    assert send(run).status == 0
    assert server.fired == ["GetSubmission"] * len(passing)


def test_a_fault_that_stays_ends_the_wait_and_names_the_submission(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    server.faults["GetSubmission"] = [Fault(403, "closed")]
    told = send(run)
    assert (told.status, told.last) == (
        1,
        f"s.csv: uploaded as submission {REF}, but its score cannot be had: "
        f"Kaggle refuses, status 403: closed {HIDDEN}; {RULES}",
    )
    assert (uploads()[0]["ref"], uploads()[0]["status"]) == (REF, "pending")


# --- status --------------------------------------------------------------------------------------


def test_status_lists_all_submissions_the_newest_first(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    assert run("status").out == ""
    assert send(run).status == 0
    assert send(run, "--again", "--wait", "0").status == 0
    lines = run("status").out.splitlines()
    assert [line.split()[0] for line in lines] == [str(REF + 1), str(REF)]
    found = inat.submission.status()
    assert found[1] == Submission(
        REF,
        "2026-01-02T03:04:05Z",
        "s.csv",
        description(),
        "complete",
        0.125,
        0.25,
        "",
    )


def test_status_of_a_file_that_was_written_anew_keeps_what_was_sent(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    assert send(run).status == 0
    before = digest()
    Path("s.csv").write_text("id,predicted\n")
    server.submissions[0] |= scored("0.5", "0.6")
    assert run("status", "s.csv").status == 0
    assert [(entry["sha256"], entry["public_score"]) for entry in uploads()] == [(before, 0.5)]


def test_status_of_a_file_that_was_never_sent_and_of_a_dead_server(
    place: Path, server: KaggleServer, run: Callable[..., Told]
) -> None:
    told = run("status", "s.csv")
    assert (told.status, told.last) == (
        2,
        f"s.csv: neither {SLUG} nor s.manifest.json knows an upload of it",
    )
    server.faults["ListSubmissions"] = [LISTED]
    told = run("status")
    assert (told.status, told.last) == (1, f"{SLUG}: {REFUSED['503'][1]}")


# --- a client of its own -------------------------------------------------------------------------


@pytest.fixture
def fresh(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KaggleServer]:
    """The server without the shared client: each call loads its own, without credentials."""
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "home" / ".kaggle").mkdir(parents=True)
        lead_client_to(server.url, str(tmp_path / "home"), patch)
        yield server
        monkeypatch.undo()  # before the environment below it is put back


def refused_credentials(world: Path, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        inat.submission.upload(valid_csv(tmp_path, world), world, message="m")
    text = str(caught.value)
    start = f"{tmp_path / 's.csv'}: checked, but the upload to {SLUG} failed: "
    assert text.startswith(start + "no usable Kaggle credentials: ")
    assert text.endswith(f"; {TOKEN}")
    return text.removeprefix(start).removesuffix(f"; {TOKEN}")


def valid_csv(tmp_path: Path, world: Path) -> Path:
    guesses = " ".join(str(category_id(label)) for label in (2, 0, 1))
    ids = load_split(world, "test").image_ids.tolist()
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\n" + "".join(f"{i},{guesses}\n" for i in ids))
    return path


def test_without_credentials_nothing_is_asked_of_anyone(
    fresh: KaggleServer, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused_credentials(world, tmp_path) == ("no usable Kaggle credentials: there are none")
    assert fresh.log == []
    assert capfd.readouterr().out == ""  # the client prints its help there
    assert not (tmp_path / "s.manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kaggle.json", f'{{"username": "ann", "key": "{KEY}"'),
        ("kaggle.json", f'["ann", "{KEY}"]'),
        ("access_token", f"{KEY}\nand more"),
        ("access_token", f"{KEY}\N{SNOWMAN}"),
        ("credentials.json", f'["{KEY}"]'),
    ],
)
def test_malformed_credentials_are_named_by_their_file_alone(
    name: str, content: str, fresh: KaggleServer, world: Path, tmp_path: Path
) -> None:
    path = tmp_path / "home" / ".kaggle" / name
    path.write_text(content)
    text = refused_credentials(world, tmp_path)
    assert text == (
        f"no usable Kaggle credentials: what is in ~/.kaggle/{name} is malformed or expired"
    )
    assert fresh.log == []


def test_a_stale_token_that_beats_a_good_key_is_named(
    fresh: KaggleServer, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / ".kaggle" / "kaggle.json").write_text(
        f'{{"username": "{USER}", "key": "{KEY}"}}'
    )
    monkeypatch.setenv("KAGGLE_API_TOKEN", "stale-token")
    fresh.faults["IntrospectToken"] = [Fault(401, "stale-token has expired")] * 2
    with pytest.raises(WorldError) as caught:
        inat.submission.upload(valid_csv(tmp_path, world), world, message="m")
    assert "Kaggle refuses the credentials of KAGGLE_API_TOKEN, status 401: *** has expired" in (
        str(caught.value)
    )
    assert fresh.fired == ["IntrospectToken"] * 2  # the import tries, and then our own log-in


def test_without_a_network_the_checked_file_is_named(
    fresh: KaggleServer, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://{USER}:{KEY}@127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(WorldError) as caught:
            inat.submission.upload(valid_csv(tmp_path, world), world, message="m")
    assert str(caught.value) == (
        f"{tmp_path / 's.csv'}: checked, but the upload to {SLUG} failed: "
        "no connection to Kaggle (Connection refused); try again when there is a network"
    )
    assert fresh.log == []
    assert not (tmp_path / "s.manifest.json").exists()


def test_a_client_that_cannot_be_loaded_is_told(
    fresh: KaggleServer, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "packages" / "six.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no six here')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(WorldError) as caught:
        inat.submission.status()
    assert str(caught.value) == (
        f"{SLUG}: the kaggle client cannot be loaded (no six here); pip install kaggle six"
    )


def test_as_a_command_it_prints_the_result_alone_and_hides_no_package(
    fresh: KaggleServer, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a kaggle.py in the user's folder, and a client that is told to be talkative."""
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    monkeypatch.setenv("VERBOSE", "1")
    (tmp_path / "kaggle.py").write_text("raise SystemExit('not the client')\n")
    valid_csv(tmp_path, world)
    words = ["submission", "upload", "s.csv", "-m", "m", "--data.root", str(world)]
    done = subprocess.run(
        [sys.executable, "-m", "inat", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(inat.__file__).parents[1])},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1), done.stderr
    assert re.match(rf"{REF}  \S+  complete  public 0.12500  private 0.25000  s.csv", done.stdout)
    assert KEY not in done.stdout + done.stderr


# --- the manifest --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "manifest"),
    [("a.csv", "a.manifest.json"), ("a.csv.gz", "a.csv.gz.manifest.json")],
)
def test_each_submission_has_a_manifest_of_its_own_beside_it(
    name: str, manifest: str, tmp_path: Path
) -> None:
    assert manifest_path(tmp_path / name) == tmp_path / manifest


def test_updating_a_manifest_replaces_the_named_entries_alone(tmp_path: Path) -> None:
    csv = tmp_path / "a.b.csv"
    assert read_manifest(csv) == {}
    assert update_manifest(csv, a=1, b=[2]) == tmp_path / "a.b.manifest.json"
    update_manifest(csv, b=3, c=None)
    assert read_manifest(csv) == {"a": 1, "b": 3, "c": None}
    assert read_json(manifest_path(csv)) == read_manifest(csv)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], "not a manifest (a JSON object); move it away or write the CSV again"),
        ({"uploads": 3}, "uploads is not what an upload writes; take it out of the file"),
        ({"uploads": [{}]}, "uploads is not what an upload writes; take it out of the file"),
    ],
)
def test_a_broken_manifest_is_found_before_anything_is_sent(
    content: object,
    text: str,
    place: Path,
    server: KaggleServer,
    run: Callable[..., Told],
) -> None:
    write_json(place / "s.manifest.json", content)
    told = send(run)
    assert (told.status, told.last) == (2, f"s.manifest.json: {text}")
    assert "CreateSubmission" not in server.log

"""Kaggle on loopback, as far as submissions go, for the unmodified client; breaks when told to."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson
import pytest

SLUG = "inaturalist-2018"
USER, KEY = "ann", "k3y-that-nobody-sees"
SIGNATURE = "signature-of-an-address"


@dataclass(frozen=True)
class Fault:
    """One broken answer.

    Attributes:
        status: of the answer.
        said: message in its JSON.
        headers: beside the ordinary ones.
        html: send a page instead of JSON.
        how: answer; drop cuts the connection; hang says nothing until the server is released.
        done: do what was asked all the same.
    """

    status: int = 200
    said: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    html: bool = False
    how: Literal["answer", "drop", "hang"] = "answer"
    done: bool = False


class KaggleServer(ThreadingHTTPServer):
    """The other end.

    Attributes:
        submissions: what was sent, the newest first, as ListSubmissions shows it.
        files: content of what was put, by token.
        outcomes: what each GetSubmission changes, in turn; the last one stays.
        faults: answers to come before the good ones, by method ("PUT" for the file).
        fired: methods whose fault was really sent, in turn.
        log: methods that were called, in turn.
        released: ends what hangs.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self) -> None:
        self.submissions: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.outcomes: list[dict[str, Any]] = [scored()]
        self.faults: dict[str, list[Fault]] = {}
        self.fired: list[str] = []
        self.log: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *where: Any) -> None:
        """A client that was killed is no fault of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*where)

    def do(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What Kaggle does and says when nothing is wrong."""
        if method == "IntrospectToken":
            return {"active": True, "username": USER}
        if method == "StartSubmissionUpload":
            token = f"token-{len(self.log)}"
            address = f"http://localhost/upload/{token}?signature={SIGNATURE}"
            return {"token": token, "createUrl": address}
        if method == "CreateSubmission":
            return self.create(asked)
        if method == "ListSubmissions":
            return {"submissions": self.submissions}
        assert method == "GetSubmission", method
        (known,) = (row for row in self.submissions if row["ref"] == asked["ref"])
        known |= self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        return known

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["competitionName"] == SLUG
        assert asked["blobFileTokens"] in self.files
        made = {
            "ref": 40_000_001 + len(self.submissions),
            "date": "2026-01-02T03:04:05.678Z",
            "fileName": "s.csv",
            "description": asked["submissionDescription"],
            "status": "PENDING",
        }
        self.submissions.insert(0, made)
        return {"message": f"Successfully submitted to {SLUG}", "ref": made["ref"]}


class Handler(BaseHTTPRequestHandler):
    server: KaggleServer

    def do_POST(self) -> None:
        method = urlsplit(self.path).path.rsplit("/", 1)[1]
        asked = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.next_fault(method)
        done = self.server.do(method, asked) if fault is None or fault.done else {}
        if fault is None:
            self.send(200, orjson.dumps(done), "application/json")
        else:
            self.send_fault(method, fault)

    def do_PUT(self) -> None:
        fault = self.next_fault("PUT")
        if fault is not None:
            self.send_fault("PUT", fault)
            return
        token = urlsplit(self.path).path.rsplit("/", 1)[1]
        self.server.files[token] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send(200, b"", "text/plain")

    def next_fault(self, method: str) -> Fault | None:
        self.server.log.append(method)
        waiting = self.server.faults.get(method)
        return waiting.pop(0) if waiting else None

    def send_fault(self, method: str, fault: Fault) -> None:
        self.server.fired.append(method)
        if fault.how == "hang":
            self.server.released.wait(30)
        elif fault.how == "answer" and fault.html:
            self.send(fault.status, b"<html>Sign in</html>", "text/html", fault.headers)
        elif fault.how == "answer":
            # A server that repeats what it was sent must not get it printed.
            said = f"{fault.said} {self.headers['Authorization']} {KEY}".strip()
            body = orjson.dumps({"code": fault.status, "message": said})
            self.send(fault.status, body, "application/json", fault.headers)
        self.close_connection = True

    def send(
        self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        own = {"Content-Type": content_type, "Content-Length": str(len(body))}
        for key, value in (own | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def scored(public: str = "0.125", private: str = "0.25") -> dict[str, Any]:
    return {"status": "COMPLETE", "publicScore": public, "privateScore": private}


@contextmanager
def serving() -> Iterator[KaggleServer]:
    with KaggleServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lead_client_to(address: str, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of a client that starts from now on goes to a server; no credentials yet."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("HOME", home)

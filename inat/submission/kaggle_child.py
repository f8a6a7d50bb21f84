"""The `kaggle` client, alone in a process: reads a request a line, writes an answer a line.

Importing the client logs in, makes a folder, prints, and swallows its own exit; its calls have no
time-outs, and its errors can show addresses that are secrets. In a process of its own it can be
killed, its output goes nowhere, and only what `fault_of` picks out leaves. This file is run by its
path and imports nothing of the kit, which would take longer to load than the client does.
"""

import base64
import http.client
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKEN_FILES = ("~/.kaggle/access_token", "~/.kaggle/access_token.txt")
OAUTH_FILE = "~/.kaggle/credentials.json"
HIDDEN = "***"


def main() -> None:
    """Answers each line of standard input; a line is written for a line read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


def answer(call: str, **options: Any) -> Any:
    """What a call gives as {"value": ...}, or why it gave nothing as {"fault": {"kind": ...}}."""
    try:
        told = {"value": CALLS[call](**options)}
    except (Exception, SystemExit) as error:
        told = {"fault": fault_of(error, logging_in=call == "log_in")}
    # A server may well repeat what it was sent.
    return without(secrets(), told)


def log_in() -> None:
    import kaggle

    # The import has tried this already and kept its failure to itself.
    kaggle.api.authenticate()


def list_submissions(competition: str) -> list[dict[str, Any]]:
    """The newest hundred."""
    import kaggle

    listed = kaggle.api.competition_submissions(competition, page_size=100) or []
    return [as_dict(submission) for submission in listed if submission is not None]


def submit(path: str, message: str, competition: str) -> dict[str, Any]:
    import kaggle

    made = kaggle.api.competition_submit(path, message, competition, quiet=True)
    failed = kaggle.api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE
    return {"stored": made.message != failed, "said": made.message, "ref": made.ref}


def get_submission(ref: int) -> dict[str, Any]:
    import kaggle
    from kagglesdk.competitions.types.competition_api_service import ApiGetSubmissionRequest

    request = ApiGetSubmissionRequest()
    request.ref = ref
    with kaggle.api.build_kaggle_client() as client:
        return as_dict(client.competitions.competition_api_client.get_submission(request))


CALLS: dict[str, Callable[..., Any]] = {
    "log_in": log_in,
    "list_submissions": list_submissions,
    "submit": submit,
    "get_submission": get_submission,
}


def as_dict(submission: Any) -> dict[str, Any]:
    return {
        "ref": submission.ref,
        "date": submission.date.isoformat(timespec="seconds") + "Z" if submission.date else "",
        "file_name": submission.file_name,
        "description": submission.description,
        "status": submission.status.name.lower(),
        "public_score": float(submission.public_score) if submission.public_score else None,
        "private_score": float(submission.private_score) if submission.private_score else None,
        "error": submission.error_description,
    }


def fault_of(error: BaseException, *, logging_in: bool) -> dict[str, Any]:
    """The kind of a fault and what is safe to tell of it."""
    if isinstance(error, ImportError):
        return {"kind": "import", "said": str(error)}
    from requests import RequestException
    from requests.exceptions import InvalidHeader

    response = getattr(error, "response", None)
    if response is not None:
        return http_fault(response)
    if isinstance(error, json.JSONDecodeError):
        return {"kind": "unreadable", "said": "no JSON"}
    # A token or key with a line break or a letter that no header can hold is met only on sending.
    if logging_in and not isinstance(error, OSError):
        return {"kind": "credentials", "sources": sources()}
    if isinstance(error, InvalidHeader | UnicodeEncodeError):
        return {"kind": "credentials", "sources": sources()}
    if isinstance(error, RequestException):
        return {"kind": "network", "said": root_cause(error)}
    if isinstance(error, OSError):
        return {"kind": "disk", "said": f"{error.strerror}: {error.filename}"}
    return {"kind": "unreadable", "said": type(error).__name__}


def http_fault(response: Any) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    code = body.get("code")
    return {
        "kind": "http",
        # The client takes a code in the body for an error, whatever the status line says.
        "status": code if isinstance(code, int) else response.status_code,
        "said": str(body.get("message") or response.reason or ""),
        "retry_after": response.headers.get("Retry-After"),
        "sources": sources(),
    }


def root_cause(error: BaseException) -> str:
    """The innermost error, in the system's words; those of the layers above show addresses."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, http.client.HTTPException):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def sources() -> list[str]:
    """Where there are credentials, usable or not, in the order in which the client takes them."""
    found = [name for name in ("KAGGLE_API_TOKEN",) if os.environ.get(name)]
    found += [name for name in TOKEN_FILES if content(name).strip()]
    found += [name for name in ("KAGGLE_USERNAME", "KAGGLE_KEY") if os.environ.get(name)]
    key_file = getattr(client_api(), "config", "")
    found += [name for name in (key_file, OAUTH_FILE) if name and content(name).strip()]
    return found


def without(hidden: list[str], told: Any) -> Any:
    """The same with *** in place of the texts to hide."""
    if isinstance(told, dict):
        return {name: without(hidden, value) for name, value in told.items()}
    if isinstance(told, list):
        return [without(hidden, value) for value in told]
    if isinstance(told, str):
        for text in hidden:
            told = told.replace(text, HIDDEN)
    return told


def secrets() -> list[str]:
    """The keys and tokens of this machine, the longest first."""
    config = config_values()
    user, key = config.get("username"), config.get("key")
    found = [key, config.get("token"), base64.b64encode(f"{user}:{key}".encode()).decode()]
    token = os.environ.get("KAGGLE_API_TOKEN", "")  # the token, or the path of its file
    found += [token, *(content(name).strip() for name in (*TOKEN_FILES, token))]
    try:
        oauth = json.loads(content(OAUTH_FILE))
        found += [oauth["access_token"], oauth["refresh_token"]]
    except (ValueError, TypeError, KeyError):
        pass
    return sorted((text for text in found if isinstance(text, str) and text), key=len, reverse=True)


def content(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(errors="replace")
    except OSError:
        return ""


def config_values() -> dict[str, Any]:
    values = getattr(client_api(), "config_values", None)
    return values if isinstance(values, dict) else {}


def client_api() -> Any:
    """The client, or None where its import failed."""
    return getattr(sys.modules.get("kaggle"), "api", None)


if __name__ == "__main__":
    main()

"""One call of the `kaggle` client, in a process of its own.

Importing the client logs in, makes a folder, prints, and swallows its own exit; its calls have no
time-outs. Here it can be killed and its output goes nowhere. This file is run by its path, with the
call as JSON; it prints what came of it as JSON, and imports nothing of the kit.
"""

import http.client
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Prints {"value": ...}, or why there is none: {"fault": ..., "said": ...}."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    print(json.dumps(answer(**json.loads(sys.argv[1]))), file=output)


def answer(call: str, **options: Any) -> dict[str, Any]:
    """What a call gives, or the kind of its fault, what may be said of it, and the HTTP status."""
    logged_in = False
    try:
        import kaggle

        kaggle.api.authenticate()  # the import has tried this, and kept its failure to itself
        logged_in = True
        return {"value": CALLS[call](kaggle.api, **options)}
    except (Exception, SystemExit) as error:
        kind, said, status = fault_of(error)
        if kind == "unreadable" and not logged_in:
            kind = "credentials"
        return {"fault": kind, "said": said, "status": status}


def list_submissions(api: Any, competition: str) -> list[dict[str, Any]]:
    listed = api.competition_submissions(competition, page_size=100) or []
    return [as_dict(submission) for submission in listed if submission is not None]


def submit(api: Any, path: str, message: str, competition: str) -> dict[str, Any]:
    made = api.competition_submit(path, message, competition, quiet=True)
    stored = made.message != api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE
    return {"stored": stored, "said": made.message, "ref": made.ref}


def get_submission(api: Any, ref: int) -> dict[str, Any]:
    from kagglesdk.competitions.types.competition_api_service import ApiGetSubmissionRequest

    request = ApiGetSubmissionRequest()
    request.ref = ref
    with api.build_kaggle_client() as client:
        return as_dict(client.competitions.competition_api_client.get_submission(request))


CALLS: dict[str, Callable[..., Any]] = {
    "list": list_submissions,
    "submit": submit,
    "get": get_submission,
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


def fault_of(error: BaseException) -> tuple[str, str, int]:
    """The kind of a fault, what may be said of it, and the HTTP status. The text of an exception
    may hold an address, which is signed here: it is never said."""
    if isinstance(error, ImportError):
        return "import", str(error), 0
    from requests import RequestException
    from requests.exceptions import InvalidHeader

    if (response := getattr(error, "response", None)) is not None:
        return "http", *refusal(response)
    if isinstance(error, json.JSONDecodeError):
        return "unreadable", "no JSON", 0
    # A token with a line break or a letter that no header can hold is met only on sending.
    if isinstance(error, InvalidHeader | UnicodeEncodeError):
        return "credentials", "", 0
    cause = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    said = getattr(cause, "strerror", None) or type(cause).__name__
    if isinstance(cause, http.client.HTTPException):
        said = str(cause)
    if isinstance(error, RequestException):
        return "network", said, 0
    if isinstance(error, OSError):
        return "disk", f"{error.strerror}: {error.filename}", 0
    return "unreadable", type(error).__name__, 0


def refusal(response: Any) -> tuple[str, int]:
    try:
        body = dict(response.json())
    except (ValueError, TypeError):
        body = {}
    code = body.get("code")  # the client takes it for an error, whatever the status line says
    status = code if isinstance(code, int) else response.status_code
    return str(body.get("message") or response.reason or ""), status


if __name__ == "__main__":
    main()

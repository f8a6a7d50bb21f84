"""metrics.jsonl: one JSON object a line, for people, notebooks and other trackers."""

import os
import time
from pathlib import Path
from typing import Any

import orjson

from inat.core.progress import say


class MetricsLog:
    """Appends to a run's metrics.jsonl."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Opens the log and cuts it to its first `keep_bytes`: what follows is written again.

        One that has fewer, by a copy or a fault of the disk, is cut to whole lines.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        if (length := self._file.seek(0, os.SEEK_END)) < keep_bytes:
            self._file.seek(0)
            keep_bytes = self._file.read().rfind(b"\n") + 1
            say(f"warning: {path}: its last lines are lost ({length:,} bytes are left)")
        self._file.truncate(keep_bytes)
        self._file.seek(0, os.SEEK_END)

    def write(self, kind: str, **values: Any) -> None:
        """Appends a line of that kind (train or validation); NumPy numbers are welcome."""
        line = {"kind": kind, **values, "time": time.time()}
        self._file.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        self._file.flush()

    def flush(self) -> None:
        """Brings what was written to the disk: a checkpoint counts on it."""
        os.fsync(self._file.fileno())

    @property
    def n_bytes(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class NoLog(MetricsLog):
    """The log of a process whose rank is not 0: it is written nowhere."""

    n_bytes = 0

    def __init__(self) -> None:
        pass

    def write(self, kind: str, **values: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

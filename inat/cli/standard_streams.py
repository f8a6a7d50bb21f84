"""Standard output and error of the command line: a reader that leaves, a closed stream or a
terminal of few characters never stops a verb in the middle of its work."""

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SUBSTITUTES = "ascii_substitutes"
"""Name of the codec error handler that replaces what a stream cannot encode."""

ASCII = {
    **dict.fromkeys("█▉▊▋▌", "#"),  # bars
    **dict.fromkeys("▍▎▏░", "."),
    **dict.fromkeys("–—−─━", "-"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤", "+"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "…": "~",
    "±": "+-",
    "×": "x",
    "•": "*",
    "→": "->",
}


class Outlet(io.FileIO):
    """A file descriptor that is written to until it fails; the rest is discarded. `error` is why it
    failed; None where it did not, or its reader had merely seen enough."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, content: "ReadableBuffer", /) -> int:
        """Writes as any file does; after an error, to nowhere."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.error = error
            # What is written later goes nowhere, by the processes that this one starts too.
            _open_nowhere(self.fileno())
            return memoryview(content).nbytes


def take_over_streams() -> Outlet:
    """Puts streams that do not fail in place of this process's own; gives standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed by the shell (`>&-`): the next file that is opened would take its place.
            _open_nowhere(descriptor)
    codecs.register_error(SUBSTITUTES, _substitute)
    output = Outlet(1)
    sys.stdout = _text(output, sys.stdout, line_buffering=output.isatty())
    sys.stderr = _text(Outlet(2), sys.stderr, line_buffering=True)
    return output


def _text(outlet: Outlet, old: TextIO | None, *, line_buffering: bool) -> io.TextIOWrapper:
    """A stream of the encoding of `old`, which is None where Python found it closed."""
    errors = old.errors if old else None
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=old.encoding if old else "utf-8",
        errors=SUBSTITUTES if errors in (None, "strict") else errors,
        line_buffering=line_buffering,
        write_through=getattr(old, "write_through", False),  # python -u
    )


def _open_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    os.set_inheritable(descriptor, True)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Characters of ASCII that look like those that cannot be encoded, or question marks."""
    assert isinstance(error, UnicodeEncodeError)
    stretch = error.object[error.start : error.end]
    return "".join(ASCII.get(character, "?") for character in stretch), error.end

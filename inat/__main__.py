"""`python -m inat` is the same as `inat`."""

import os
import sys


def run() -> None:
    """The console script: runs the command line and leaves with its exit status."""
    from inat.cli import main

    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # `inat ... | head` has read enough; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


if __name__ == "__main__":
    run()

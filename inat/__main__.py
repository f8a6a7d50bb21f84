"""`python -m inat` is the same as `inat`."""

import sys

from inat.cli.standard_streams import take_over_streams
from inat.core.threads import share_processors


def run() -> None:
    """The console script: runs the command line and leaves with its exit status.

    A reader that leaves early (`inat ... | head`) changes neither what is written to files nor the
    status; an output that cannot be written to for another reason makes 0 a 1.
    """
    output = take_over_streams()
    share_processors()
    from inat.cli.app import main

    status = main()
    sys.stdout.flush()
    if output.error is not None:
        print(f"inat: standard output: {output.error.strerror}", file=sys.stderr)
        status = status or 1
    sys.exit(status)


if __name__ == "__main__":
    run()

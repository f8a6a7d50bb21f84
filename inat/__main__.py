"""`python -m inat` is the same as `inat`."""

import sys


def run() -> None:
    """The console script: runs the command line and leaves with its exit status."""
    from inat.cli import main

    sys.exit(main())


if __name__ == "__main__":
    run()

"""Runs every notebook from top to bottom; their outputs are not kept. `make notebooks`."""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(save_to: Path | None = None) -> None:
    """Runs the notebooks in turn; `save_to` keeps the executed ones to be looked at.

    They share a folder, empty at first: each makes what it needs, and takes what one before it
    left, so that no model is trained twice.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            if any(cell.get("outputs") for cell in notebook.cells):
                sys.exit(f"{path}: holds outputs; strip them before committing")
            began = time.monotonic()
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=600, resources=resources).execute()
            if save_to:
                nbformat.write(notebook, save_to / path.name)
            print(f"{path.name}: ran in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

"""The readers under atheris, which steers damaged files by the lines of the kit that they reach.

    python tests/fuzz_atheris.py [RUNS] [TARGET]

Each target of fuzz_targets gets RUNS inputs (10,000) in a process of its own: some of hypothesis'
making, then what libFuzzer makes of them. Where atheris does not install (it has wheels
for Linux), says so and leaves.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from hypothesis import given, settings

try:
    import atheris
except ImportError:
    print("atheris is not installed (pip install atheris); tests/test_fuzz.py needs none")
    sys.exit(0)

OF_ONE = len(sys.argv) > 2

with atheris.instrument_imports(include=["inat"]) if OF_ONE else nullcontext():
    from damage import Content
    from fuzz_targets import TARGETS

    from inat.core.errors import InatError
    from inat.photos.decode import BadPhoto

RUNS = 10_000
N_FIRST = 40
LONGEST = 2**16
TARGET_OF = {target.__name__: target for targets in TARGETS.values() for target in targets}


def fuzz(name: str, runs: int, folder: Path) -> None:
    """Does not return; ends with another status than 0 where another error came out."""
    corpus = folder / "corpus"
    corpus.mkdir()
    (folder / "files").mkdir()
    contents, read = TARGET_OF[name](folder / "files")

    @settings(max_examples=N_FIRST, derandomize=True, deadline=None, database=None)
    @given(contents)
    def begin(content: Content) -> None:
        if isinstance(content, bytes):
            (corpus / hashlib.sha256(content).hexdigest()).write_bytes(content)

    def holds(content: bytes) -> None:
        try:
            read(content)
        except (InatError, BadPhoto) as error:
            assert str(error)

    begin()
    flags = [f"-atheris_runs={runs}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], holds)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes all targets, one after the other; gives the number of those that failed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    if OF_ONE:
        with tempfile.TemporaryDirectory() as folder:
            fuzz(sys.argv[2], runs, Path(folder))
    failed = 0
    for name in TARGET_OF:
        ended = subprocess.run(
            [sys.executable, __file__, str(runs), name], capture_output=True, text=True, check=False
        )
        lines = re.findall(r"cov: (\d+)", ended.stderr)
        reached = f"{lines[0]} to {lines[-1]} branches reached" if lines else ""
        told = "held" if ended.returncode == 0 else f"FAILED\n{ended.stdout}\n{ended.stderr}"
        print(f"{name:20} {runs:,} inputs  {reached:34} {told}", flush=True)
        failed += ended.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""What is left of the training rate beside other busy processes: `python tests/benchmarks/
busy_table.py FOLDER [ROUNDS]`.

Trains EfficientNet-Lite0 by `inat.train`, in a process with each of the settings of OpenMP below,
alone and beside one, two and three processes that compute without pause. Prints images per second
as shares of those of OpenMP's own settings on the quiet machine in the same round: the median over
the rounds, and the range.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

OWN = "OpenMP's own"

SETTINGS: dict[str, dict[str, str]] = {
    OWN: {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}

BUSY = (0, 1, 2, 3)
BATCH, STEPS, SKIPPED = 16, 10, 3
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def serve(world: Path, folder: Path) -> None:
    """Trains once a line of standard input, and answers with images per second."""
    import inat

    (folder / "empty.yaml").write_text("")
    overrides = {
        "data.root": str(world), "data.holdout": "none", "epochs": 1, "batch_size": BATCH,
        "sampler.epoch_size": BATCH * STEPS, "transforms.image_size": 160,
        "model.backbone": "tf_efficientnet_lite0", "model.weights": "none",
        "optim.warmup_epochs": 0, "runtime.log_every": 1, "runtime.device": "cpu",
    }  # fmt: skip
    for _ in sys.stdin:
        run = inat.train(folder / "empty.yaml", folder / "run", overrides=overrides, overwrite=True)
        lines = [orjson.loads(line) for line in run.metrics_path.read_bytes().splitlines()]
        rates = [line["images_per_second"] for line in lines if line["kind"] == "train"][SKIPPED:]
        print(f"rate {statistics.harmonic_mean(rates)}", flush=True)


def measure(name: str, world: Path, folder: Path) -> dict[int, float]:
    """Images per second with these settings, by the number of other processes."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    process = subprocess.Popen(
        [sys.executable, __file__, str(world), str(folder), "serve"],
        env=kept | SETTINGS[name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    rates = {}
    for place, count in enumerate((0, *BUSY)):  # the first time is a warm-up
        with busy(count):
            process.stdin.write("go\n")
            process.stdin.flush()
            rate = next(line for line in process.stdout if line.startswith("rate "))
        if place:
            rates[count] = float(rate.split()[1])
    process.stdin.close()
    process.wait()
    return rates


def show(shares: dict[tuple[str, int], list[float]], n_rounds: int) -> None:
    """Prints the table after each round, so that a run that is cut short still shows one."""
    print(f"{f'rounds: {n_rounds}':14}" + "".join(f"{f'beside {count}':>22}" for count in BUSY))
    for name in SETTINGS:
        cells = [shares[name, count] for count in BUSY]
        print(
            f"{name:14}"
            + "".join(
                f"{statistics.median(cell):8.2f} ({min(cell):.2f} to {max(cell):.2f})"
                for cell in cells
            ),
            flush=True,
        )


def main(folder: Path, rounds: int) -> None:
    import inat

    folder.mkdir(parents=True, exist_ok=True)
    world = folder / "world"
    if not world.is_dir():
        inat.synth(world, profile="tiny")
    shares: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        # Each round in another order: what the machine does meanwhile is nobody's advantage.
        names = [*SETTINGS][number % len(SETTINGS) :] + [*SETTINGS][: number % len(SETTINGS)]
        rates = {name: measure(name, world, folder) for name in names}
        for name, of_counts in rates.items():
            for count, rate in of_counts.items():
                shares.setdefault((name, count), []).append(rate / rates[OWN][0])
        show(shares, number + 1)


if __name__ == "__main__":
    if sys.argv[3:] == ["serve"]:
        serve(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)

"""The process table: `python tests/benchmarks/process_table.py FOLDER`.

Trains the same config in 1, 2 and 4 processes on the CPU and prints, for a network with layer norm
and one with batch norm, the SHA-256 of the order of photos, the largest difference of a weight
from that of one process, and images per second.
"""

import hashlib
import sys
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_processes import RECIPES, ended, largest_difference
from training_ranks import Ranks, global_order
from worlds import make_world

from inat.runs.run import Run

NETWORKS = {
    "layer norm, SGD": {**RECIPES["mixed"], "batch_size": 8},
    "layer norm, AdamW": {
        **RECIPES["mixed"], "batch_size": 8, "optim.name": "adamw", "optim.lr_per_256": 0.01,
    },
    "batch norm, SGD": {
        "model.backbone": "test_efficientnet", "batch_size": 16, "optim.lr_per_256": 0.1,
    },
}  # fmt: skip


def images_per_second(run: Run) -> float:
    """Of the last line of the log."""
    lines = [orjson.loads(line) for line in run.metrics_path.read_bytes().splitlines()]
    return float([line for line in lines if line["kind"] == "train"][-1]["images_per_second"])


def main(folder: Path) -> None:
    world = make_world(folder / "world", counts=(200, 100, 60, 40))
    ranks = {count: Ranks(count) for count in (1, 2, 4)}
    print("network            processes  sha256 of the order  largest difference  images/s")
    for name, settings in NETWORKS.items():
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        for count, of in ranks.items():
            run = place / f"of_{count}"
            order = global_order(ended(of.train(run, world, **settings)))
            difference = largest_difference(run, place / "of_1")
            digest = hashlib.sha256(orjson.dumps(order)).hexdigest()[:12]
            print(
                f"{name:17}  {count:9}  {digest:19}  {difference:18.1e}  "
                f"{images_per_second(Run(run)):8.0f}",
                flush=True,
            )
    for of in ranks.values():
        of.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

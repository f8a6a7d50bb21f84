"""Two steps of each stage of every shipped config, with its own network.

    python tests/benchmarks/config_steps.py FOLDER

On a world of the real competition's 8,142 species over 200 small photos (those of CIFAR's size on
one of such photos), four photos a step; prints parameters, the loss of each stage's last step, and
seconds. FOLDER keeps the world. The test suite takes the same steps with smaller networks.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_shipped_configs import FOLDER, SHIPPED, in_two_steps
from worlds import make_world

import inat
from inat.config.reading import read_config
from inat.runs.trained import open_trained

IMAGE_SIZE, LATER_SIZE = 64, 96


def overrides_of(path: Path, world: Path) -> dict[str, Any]:
    """Those of the suite, with the config's own network and larger images."""
    config = read_config(path)
    found = in_two_steps(config) | {"data.root": world, "data.holdout": "none"}
    del found["model.backbone"]
    found["runtime.log_every"] = 1
    if path.parent.name != "cifar100_lt":
        found["transforms.image_size"] = IMAGE_SIZE
        for stage in found["stages"]:
            if "transforms" in stage:
                stage["transforms"]["image_size"] = LATER_SIZE
    return found


def main(folder: Path) -> None:
    """Prints the table."""
    large = inat.synth(folder / "world", profile="inat2018", photos=200).root
    small = make_world(folder / "small", size=(32, 32))
    print(f"{'config':38} {'million parameters':>18}  {'losses':32} seconds")
    for path in SHIPPED:
        world = small if path.parent.name == "cifar100_lt" else large
        with tempfile.TemporaryDirectory() as name:
            began = time.monotonic()
            run = inat.train(path, Path(name) / "run", overrides=overrides_of(path, world))
            seconds = time.monotonic() - began
            lines = [orjson.loads(line) for line in run.metrics_path.read_bytes().splitlines()]
            steps = [line for line in lines if line["kind"] == "train"]
            assert len(steps) == 2 * len(run.config.all_stages)
            network = open_trained(run).model.network
            millions = sum(weight.numel() for weight in network.parameters()) / 1e6
            losses = ", ".join(f"{line['loss']:.2f}" for line in steps)
        title = str(path.relative_to(FOLDER).with_suffix(""))
        print(f"{title:38} {millions:18.1f}  {losses:32} {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

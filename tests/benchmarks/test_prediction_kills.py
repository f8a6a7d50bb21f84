"""`inat predict` with views, killed 20 times at random points of its life, start included."""

import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/worlds.py

from prediction_processes import content, finish, start
from tiny_runs import train_tiny
from worlds import make_world

KILLS = 20
OPTIONS = {"views": "ten-crop+scales:32,48", "part_images": 80, "pause": 0.02}


def test_twenty_kills_leave_the_bytes_of_a_prediction_that_was_left_in_peace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from inat.predictions.parts import parts_folder

    world = make_world(tmp_path / "world", counts=(80, 40, 20, 10), size=(96, 128))
    run = train_tiny(tmp_path / "run", world, **{"data.workers": 1, "data.holdout": "none"})
    finish(start(run.path, "train", name="first", **OPTIONS))
    began = time.monotonic()
    finish(start(run.path, "train", name="peace", **OPTIONS))
    seconds = time.monotonic() - began

    draw = random.Random(0)
    folder = parts_folder(run.prediction("killed"))
    lines = []
    for kill in range(KILLS):
        process = start(run.path, "train", name="killed", **OPTIONS)
        # The later a kill may come, the more often the prediction would be whole before the last.
        time.sleep(draw.uniform(0, seconds / 4))
        process.kill()
        process.join()
        n_parts = len(list(folder.glob("0*.safetensors")))
        n_left = len(list(folder.glob(".partial-*")))
        lines.append(f"kill {kill + 1}: exit {process.exitcode}, {n_parts} whole parts, "
                     f"{n_left} begun")  # fmt: skip
    finish(start(run.path, "train", name="killed", **OPTIONS))
    same = content(run.prediction("killed")) == content(run.prediction("peace"))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
        print(f"in the end: the same bytes: {same}; parts left: {folder.exists()}")
    assert same
    assert not folder.exists()

"""Prints the kill table: trainings and predictions, killed with SIGKILL at random moments.

    python tests/benchmarks/kill_table.py [KILLS]

Each run is killed, gone on with, killed again, and in the end compared with the same run left in
peace: the weights' SHA-256, metrics.jsonl but for what a clock says, and the prediction's bytes.
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/worlds.py

from training_processes import (
    digests,
    finish,
    kill_amid,
    log_lines,
    start,
    train_with_kills,
)
from worlds import make_world

RUNS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"runtime.precision": "bf16"},
    "threads": {"data.workers": 2, "data.worker_kind": "threads"},
    "worker processes": {"data.workers": 2, "data.worker_kind": "processes"},
    "accumulate, mixup": {"optim.accumulate": 2, "batch_size": 2, "transforms.mixup": 0.2},
}
PAUSE = 0.1


def predict_with_kills(world: Path, run: Path, kills: int, draw: random.Random) -> list[str]:
    """Predicts, killed so often at random moments, to the end; gives what each kill hit."""
    hit = []
    for _ in range(kills):
        hit.append(kill_amid(start("predict", world, run, {}, PAUSE), run, draw, PAUSE))
    finish(start("predict", world, run, {}))
    return hit


def prediction_bytes(run: Path) -> list[bytes]:
    """What a prediction says, without where its run lies."""
    folder = run / "predictions" / "killed"
    return [(folder / name).read_bytes() for name in ("logits.npy", "ids.npy", "labels.npy")]


def row(name: str, world: Path, folder: Path, kills: int, draw: random.Random) -> tuple[str, int]:
    """A line of the table, and how many kills it took."""
    peace, cut = folder / "peace", folder / "cut"
    folder.mkdir()
    finish(start("train", world, peace, RUNS[name]))
    finish(start("predict", world, peace, {}))
    hit = train_with_kills(world, cut, RUNS[name], kills - kills // 4, draw, PAUSE)
    hit += predict_with_kills(world, cut, kills // 4, draw)
    theirs, ours = digests(peace), digests(cut)
    same = [theirs == ours, log_lines(peace) == log_lines(cut)]
    same.append(prediction_bytes(peace) == prediction_bytes(cut))
    key = "checkpoints/last/model.safetensors"
    counts = ", ".join(f"{what} {n}" for what, n in Counter(hit).most_common())
    answers = "  ".join("same " if answer else "OTHER" for answer in same)
    digest = f"{theirs[key][:12]}  {ours[key][:12]}"
    return f"{name:18} {len(hit):5}  {digest}  {answers}  {counts}", len(hit)


def main() -> None:
    """Prints the table."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    draw = random.Random(0)
    print(f"{'run':18} kills  in peace      killed        files  log    preds  hit", flush=True)
    total = 0
    with tempfile.TemporaryDirectory() as name:
        world = make_world(Path(name) / "world")
        for place, run in enumerate(RUNS):
            line, n_kills = row(run, world, Path(name) / str(place), kills // len(RUNS), draw)
            total += n_kills
            print(line, flush=True)
    print(f"{total} kills")


if __name__ == "__main__":
    main()

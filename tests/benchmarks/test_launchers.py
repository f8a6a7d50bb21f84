"""Trainings as they are really started: with torchrun, and with accelerate launch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/worlds.py

import training_ranks
from worlds import make_world

PORT = str(training_ranks.free_port())
LAUNCHERS = {
    "torchrun": [
        "torch.distributed.run", "--nproc-per-node", "2", "--master-port", PORT, "-m", "--",
    ],
    # --multi_gpu is what starts several: with --cpu and no MPI it starts one, and says nothing.
    "accelerate": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port", PORT, "-m",
    ],
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_it_trains_in_two_processes_of_which_one_speaks(tmp_path: Path, launcher: str) -> None:
    make_world(tmp_path / "world")
    (tmp_path / "empty.yaml").write_text("")
    settings = {**training_ranks.SETTINGS, "data.root": "world", "epochs": 1}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    words = ["inat", "train", "empty.yaml", "--run", "run", *flags]
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], *words],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run: trained; next: inat predict run --split test\n"
    assert done.stderr.count("device     cpu, fp32, channels_last, 2 processes\n") == 1

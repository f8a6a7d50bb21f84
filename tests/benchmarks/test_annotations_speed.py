"""The annotations of the full-size world through the kit against json + pandas, five rounds.

Each read has a process of its own, started afresh with everything imported. What both give: name,
size, label and lineage of every training photo, place and date with it. The JSON files are in the
page cache; the kit's cache is emptied before a first read. INAT_BENCH_WORLD names a world of
`inat data synth --profile inat2018`; without it one is made, with few photo files.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from contestants import spread

from inat.dataset.split import Split, load_split

ROUNDS = 5
MIB = 2**20

Sums = tuple[int, int, int, int, float, int]


class Reading(NamedTuple):
    """One read: what it cost, and sums over what it gave."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    more_mib: float
    sums: Sums


def read_with_the_kit(root: Path) -> Split:
    return load_split(root, "train")


def sums_of_split(split: Split) -> Sums:
    assert split.locations is not None
    return (
        len(split),
        int(split.image_ids.sum()),
        int(split.labels.sum()),
        int(split.sizes.sum()),
        round(float(split.locations["lat"].sum()), 3),
        int(split.locations["date"].dropna().astype("int64").sum()),
    )


def read_with_pandas(root: Path) -> pd.DataFrame:
    """What a notebook does."""
    with (root / "train2018.json").open() as handle:
        document = json.load(handle)
    images = pd.DataFrame(document["images"])
    annotations = pd.DataFrame(document["annotations"])
    categories = pd.DataFrame(document["categories"]).sort_values("id")
    categories["label"] = np.arange(len(categories))
    with (root / "train2018_locations.json").open() as handle:
        locations = pd.DataFrame(json.load(handle))
    locations["date"] = pd.to_datetime(locations["date"], utc=True)
    return (
        images.merge(annotations.drop(columns="id"), left_on="id", right_on="image_id")
        .merge(categories, left_on="category_id", right_on="id", suffixes=("", "_category"))
        .merge(locations, how="left", on="id")
    )


def sums_of_table(table: pd.DataFrame) -> Sums:
    return (
        len(table),
        int(table["id"].sum()),
        int(table["label"].sum()),
        int(table["height"].sum() + table["width"].sum()),
        round(float(table["lat"].sum()), 3),
        int(table["date"].dropna().astype("int64").sum()),
    )


KIT = (read_with_the_kit, sums_of_split)
PANDAS = (read_with_pandas, sums_of_table)
Contender = tuple[Callable[[Path], Any], Callable[[Any], Sums]]


def in_a_fresh_process(contender: Contender, root: Path) -> Reading:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contender, root))
    process.start()
    theirs.close()
    reading: Reading = ours.recv()
    process.join()
    return reading


def _serve(pipe: Connection, contender: Contender, root: Path) -> None:
    read, sum_up = contender
    pd.to_datetime(["2018-01-01"], utc=True)  # so that no import falls into the time
    before = peak_mib()
    began, cpu_began = time.perf_counter(), time.process_time()
    found = read(root)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = peak_mib()
    pipe.send(Reading(seconds, cpu_seconds, peak, peak - before, sum_up(found)))


def peak_mib() -> float:
    """Most memory that this process has held; getrusage would count what its parent held."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def describe_seconds(root: Path, plot: Path) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "inat", "data", "describe", str(root), "--plot", str(plot)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the world's JSON files: what the kit keeps does not go to the world."""
    folder = tmp_path_factory.mktemp("annotations")
    if "INAT_BENCH_WORLD" in os.environ:
        world = Path(os.environ["INAT_BENCH_WORLD"]).absolute()
    else:
        from inat.synthetic.world import synth

        world = synth(folder / "world", profile="inat2018", photos=64).root
    (folder / "links").mkdir()
    for path in world.glob("*.json"):
        (folder / "links" / path.name).symlink_to(path)
        path.read_bytes()
    return folder / "links"


def test_annotations_are_read_faster_than_with_json_and_pandas(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    firsts, cached, peers = [], [], []
    for _ in range(ROUNDS):
        peers.append(in_a_fresh_process(PANDAS, root))
        shutil.rmtree(root / ".inat", ignore_errors=True)
        firsts.append(in_a_fresh_process(KIT, root))
        cached.append(in_a_fresh_process(KIT, root))
    with capsys.disabled():
        print(f"\nload_split(root, 'train') of {peers[0].sums[0]:,} photos; medians of {ROUNDS}")
        for name, readings in (("first", firsts), ("cached", cached), ("json + pandas", peers)):
            print(
                f"{name:14} {spread([r.seconds for r in readings])} s, "
                f"processor {spread([r.cpu_seconds for r in readings])} s, "
                f"peak {max(r.peak_mib for r in readings):.0f} MiB "
                f"({max(r.more_mib for r in readings):+.0f} by the read)"
            )
        for name, readings in (("first", firsts), ("cached", cached)):
            pairs = list(zip(peers, readings, strict=True))
            wall = spread([peer.seconds / ours.seconds for peer, ours in pairs])
            cpu = spread([peer.cpu_seconds / ours.cpu_seconds for peer, ours in pairs])
            print(f"json + pandas / {name:7} {wall}, of processor time {cpu}")
    # The figures are printed to be read; a shared machine is no place to assert a time.
    assert {reading.sums for reading in (*firsts, *cached, *peers)} == {peers[0].sums}


def test_describe_of_the_full_size_world(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    firsts, later = [], []
    for _ in range(ROUNDS):
        shutil.rmtree(root / ".inat", ignore_errors=True)
        firsts.append(describe_seconds(root, tmp_path / "profile.png"))
        later.append(describe_seconds(root, tmp_path / "profile.png"))
    kept = sum(path.stat().st_size for path in (root / ".inat").iterdir())
    with capsys.disabled():
        print(f"\ninat data describe, first {spread(firsts)} s, later {spread(later)} s")
        print(f"kept beside the data without locations: {kept / MIB:.1f} MiB")
    assert (tmp_path / "profile.png").is_file()

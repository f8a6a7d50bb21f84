"""Evaluation at the real size: 24,426 photos of 8,142 species, three each.

An interval against the obvious NumPy bootstrap of 1,000 resamples, in turn; a whole `evaluate` and
`compare` of prediction files, with the memory that they need beside the mapped files.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from contestants import spread

from inat.core.intervals import accuracy_interval
from inat.predictions.file import store, write_prediction
from inat.synthetic.world import PROFILES, train_counts

COUNTS = train_counts(PROFILES["inat2018"])
LABELS = np.repeat(np.arange(len(COUNTS)), 3)
ROUNDS = 5
CHUNK = 1024


def loop_interval(hits: np.ndarray, n_resamples: int) -> tuple[float, float]:
    """The obvious loop: a resample at a time, each species drawing three of its photos."""
    rng = np.random.default_rng(0)
    rows = hits.reshape(-1, 3).astype(float)
    own = np.arange(len(rows))[:, None]
    means = [
        rows[own, rng.integers(3, size=rows.shape)].mean(axis=1).mean() for _ in range(n_resamples)
    ]
    value = rows.mean()
    low, high = value + np.sqrt(3 / 2) * (np.quantile(means, (0.025, 0.975)) - value)
    return float(low), float(high)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_an_interval_against_the_obvious_bootstrap(capsys: pytest.CaptureFixture[str]) -> None:
    hits = np.random.default_rng(1).random(len(LABELS)) < 0.7
    found = accuracy_interval(hits, LABELS)
    assert found is not None
    loop = loop_interval(hits, 1000)
    assert (found.low, found.high) == pytest.approx(loop, abs=0.001)
    kit, naive = [], []
    for _ in range(ROUNDS):
        kit.append(seconds(lambda: accuracy_interval(hits, LABELS)))
        naive.append(seconds(lambda: loop_interval(hits, 1000)))
    with capsys.disabled():
        print("\nan interval of 24,426 photos of 8,142 species, seconds")
        print(f"  kit                {spread(kit)}")
        print(f"  1,000 resamples    {spread(naive)}")
        print(f"  loop / kit         {spread([n / k for n, k in zip(naive, kit, strict=True)])}")


def write_made_up(path: Path, seed: int) -> None:
    """A prediction file of random logits, the true species some way above the rest."""
    rng = np.random.default_rng(seed)
    n_images, n_classes = len(LABELS), len(COUNTS)
    ids = np.arange(n_images) * 7 + 3
    species = pd.DataFrame(
        {
            "category_id": np.arange(n_classes),
            "name": [f"Genus{label // 2} species{label}" for label in range(n_classes)],
            "supercategory": [f"s{label // 600}" for label in range(n_classes)],
            "kingdom": "k",
            "phylum": [f"p{label // 1000}" for label in range(n_classes)],
            "class": [f"c{label // 300}" for label in range(n_classes)],
            "order": [f"o{label // 60}" for label in range(n_classes)],
            "family": [f"f{label // 8}" for label in range(n_classes)],
            "genus": [f"g{label // 2}" for label in range(n_classes)],
            "train_count": COUNTS,
        }
    )
    photos = pd.DataFrame({"id": ids, "key": ids, "file_name": "x.jpg", "role": "unseen"})
    meta = {"competition": "inaturalist-2018", "split": "val", "logits_prior": None, "chosen": {}}
    with write_prediction(
        path, ids=ids, labels=LABELS, species=species, photos=photos, meta=meta
    ) as rows:
        for begin in range(0, n_images, CHUNK):
            own = LABELS[begin : begin + CHUNK]
            logits = rng.standard_normal((len(own), n_classes), np.float32)
            logits[np.arange(len(own)), own] += 4
            rows[begin : begin + CHUNK] = store(logits)


MEASURED = """
import sys, threading, time
from pathlib import Path
from inat.evaluation import compare, evaluate

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

peak = before = anonymous()
ended = threading.Event()
def watch():
    global peak
    while not ended.wait(0.02):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
work = {"evaluate": evaluate, "compare": compare}[sys.argv[1]](*sys.argv[2:])
took = time.perf_counter() - began
ended.set()
watcher.join()
if sys.argv[1] == "evaluate":
    began = time.perf_counter()
    work.save(Path(sys.argv[2]) / "evaluation")
    size = (Path(sys.argv[2]) / "evaluation" / "metrics.json").stat().st_size
    extra = f"; saved in {time.perf_counter() - began:.1f} s, metrics.json {size / 1e6:.1f} MB"
else:
    extra = ""
print(f"{took:.1f} s, peak anonymous memory {(peak - before) / 2**20:.0f} MiB{extra}")
"""


def test_evaluate_and_compare_at_the_real_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a", "b")):
        write_made_up(tmp_path / name, seed)
    for words in (["evaluate", "a"], ["compare", "a", "b"]):
        command = [sys.executable, "-c", MEASURED, words[0]]
        command += [str(tmp_path / name) for name in words[1:]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        with capsys.disabled():
            print(f"\n{words[0]}, 24,426 photos x 8,142 species: {done.stdout.strip()}")

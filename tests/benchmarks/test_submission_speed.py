"""Checking a submission of 149,394 rows, against the obvious lines with csv and with pandas.

The kit names every kind of fault with its first lines; the others only say that something is
wrong. All three know the photos and categories from a data set that was read before: the kit reads
its tables from the cache each time, which is timed with it; the obvious lines get theirs for free.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
from contestants import Contestant, Step, spread

from inat import submission

N_TEST, N_CLASSES, ROUNDS = 149_394, 8_142, 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations alone, with as many species, training and test photos as the real ones."""
    folder = tmp_path_factory.mktemp("world")
    labels = np.arange(437_513) % N_CLASSES
    categories = [{"id": c, "name": f"Species {c}"} for c in range(N_CLASSES)]
    train = {
        "images": [{"id": i, "file_name": f"t/{i}.jpg"} for i in range(len(labels))],
        "annotations": [
            {"id": i, "image_id": i, "category_id": c} for i, c in enumerate(labels.tolist())
        ],
        "categories": categories,
    }
    images = [{"id": i, "file_name": f"test2018/{i}.jpg"} for i in photo_ids().tolist()]
    (folder / "train2018.json").write_bytes(orjson.dumps(train))
    (folder / "test2018.json").write_bytes(orjson.dumps({"images": images}))
    return folder


@pytest.fixture(scope="module")
def path(root: Path) -> Path:
    rng = np.random.default_rng(0)
    first = rng.integers(N_CLASSES, size=N_TEST)
    guesses = (first[:, None] + [0, 1, 2]) % N_CLASSES
    rows = [f"{i},{a} {b} {c}" for i, (a, b, c) in zip(photo_ids(), guesses, strict=True)]
    path = root / "submission.csv"
    path.write_text("id,predicted\n" + "\n".join(rows) + "\n")
    return path


def photo_ids() -> np.ndarray:
    return 500_000 + np.random.default_rng(1).permutation(N_TEST)


def check_with_csv(path: Path, photos: set[str], categories: set[str]) -> int:
    seen = set()
    with path.open(newline="") as handle:
        rows = csv.reader(handle)
        assert next(rows) == ["id", "predicted"]
        for image_id, predicted in rows:
            guesses = predicted.split(" ")
            assert len(guesses) == 3
            assert len(set(guesses)) == 3
            assert all(guess in categories for guess in guesses)
            assert image_id not in seen
            seen.add(image_id)
    assert seen == photos
    return len(seen)


def check_with_pandas(path: Path, photos: set[str], categories: set[str]) -> int:
    table = pd.read_csv(path, dtype=str)
    assert list(table.columns) == ["id", "predicted"]
    assert not table["id"].duplicated().any()
    assert set(table["id"]) == photos
    guesses = table["predicted"].str.split(" ", expand=True)
    assert guesses.shape[1] == 3
    assert guesses.isin(categories).all(axis=None)
    first, second, third = (guesses[place] for place in range(3))
    assert ((first != second) & (first != third) & (second != third)).all()
    return len(table)


def kit(root: Path, path: Path) -> Iterator[Step]:
    submission.check(path, root)  # keeps the tables
    while True:
        yield lambda: submission.check(path, root)


def obvious(check: Callable[[Path, set[str], set[str]], int], path: Path) -> Iterator[Step]:
    photos, categories = set(map(str, photo_ids().tolist())), set(map(str, range(N_CLASSES)))
    while True:
        yield lambda: check(path, photos, categories)


def test_check_of_149394_rows(root: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submission.check(path, root).n_rows == N_TEST
    contestants = {
        "inat.submission.check": Contestant(kit, root, path),
        "csv module": Contestant(obvious, check_with_csv, path),
        "pandas": Contestant(obvious, check_with_pandas, path),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            seconds[name].append(contestant.seconds(1))
    with capsys.disabled():
        print(f"\n{N_TEST:,} rows of three guesses among {N_CLASSES:,} categories")
        for name, times in seconds.items():
            print(f"{name:22} {spread(times)} s")
    for contestant in contestants.values():
        contestant.stop()

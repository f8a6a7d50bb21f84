"""Prints the kill table: what writes files, killed with SIGKILL at random moments.

    python tests/benchmarks/kill_table.py [KILLS]

Each verb runs once undisturbed. Then it is started again and again, and its process group is
killed after a random part of the time it took; now and then a start is left to finish, and the
bytes of every file are compared with those of the undisturbed run. Excluded are environment.json,
checksums.json, and what a clock says in metrics.jsonl and state.json. Each change to a file takes a
little longer than usual, so that kills hit all of them, and is noted, so that the table shows what
was hit.

    kills   SIGKILLs that hit a process at work
    ends    starts that finished
    bytes   of the undisturbed run, and after the last kill
    files   "same", or the files that differ
    log     metrics.jsonl
    half    kills after which a reader accepted an output that was neither the old nor the new one
    left    leftovers beside the output after starts that finished
    hit     the last change that was begun before each kill
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/worlds.py

from training_processes import SETTINGS, context, log_lines, rest_between
from worlds import make_world, write_photo

import inat
from inat.core.errors import InatError
from inat.core.files import damaged_files
from inat.dataset.split import load_split
from inat.photos.pack import PackedPhotos
from inat.photos.sources import open_photos

PAUSE = 0.02
"""Seconds after each step, batch of a validation, checkpoint file and part of a prediction."""

CHANGE_PAUSE = 0.005
"""Seconds before each change to a file; PAUSE where it puts one into its place."""

ENDS = 0.15
"""Share of the kills after which the next start is left to finish."""

CHANGES = {
    "ctypes.dlsym": "exchange",
    "os.link": "link",
    "os.mkdir": "mkdir",
    "os.remove": "remove",
    "os.rename": "rename",
    "os.rmdir": "remove",
    "shutil.rmtree": "remove",
}
LEFTOVERS = (".partial-*", ".old-*", ".parts-*", ".importing")

context.set_forkserver_preload(
    [
        "training_processes",
        "inat.acquire.import_folders",
        "inat.acquire.pack",
        "inat.posthoc.ensemble",
        "inat.predictions.predict",
        "inat.submission",
        "inat.training.folds",
        "inat.training.loop",
        "inat.training.soup",
        "timm",
    ]
)


def train(root: Path, out: Path, **settings: Any) -> None:
    """A training, or what is left of it."""
    config = {**SETTINGS, "data.root": str(root / "world"), **settings}
    inat.train(inat.read_config(root / "empty.yaml", config), out, resume=True)


def train_folds(root: Path, out: Path) -> None:
    """Two folds and their out-of-fold prediction."""
    config = {**SETTINGS, "data.root": str(root / "world"), "epochs": 1, "data.holdout": "none"}
    inat.train_folds(inat.read_config(root / "empty.yaml", config), 2, out, resume=True)


def predict(_: Path, out: Path, split: str = "val", views: str = "centre+flip") -> None:
    """A prediction with views, in parts of a photo."""
    inat.predict(out, split, name="killed", views=views, batch_size=2)


def pack(root: Path, out: Path) -> None:
    """A pack of nine shards."""
    from inat.acquire import pack as packing

    packing.PHOTOS_PER_SHARD = 8
    packing.pack_photos(root / "world", out, short_side=32, workers=2)


def import_(root: Path, out: Path) -> None:
    """An import, with a labelled test split; it is refused where a killed one had moved all."""
    try:
        inat.import_folders(root / "photos", out, test=root / "photos_of_test")
    except InatError:
        if not (out / "train2018.json").is_file():
            raise


def ensemble(root: Path, out: Path, how: str = "mean_logprob") -> None:
    """An ensemble of two predictions."""
    members = [root / run / "predictions" / "test" for run in "ab"]
    inat.ensemble(members, out, how=how, overwrite=True)


def soup(root: Path, out: Path, runs: str = "ab") -> None:
    """A soup of two runs."""
    inat.soup([root / run for run in runs], out, overwrite=True)


def write(root: Path, out: Path, run: str = "a") -> None:
    """A submission."""
    inat.submission.write(root / run / "predictions" / "test", out / "s.csv")


def read_nothing(_root: Path, _out: Path) -> Iterator[Path]:
    """Of checkpoints, which are looked at for all verbs."""
    return iter(())


def read_predictions(_: Path, out: Path) -> Iterator[Path]:
    """Prediction files."""
    for meta in out.rglob("meta.json"):
        with suppress(InatError):
            inat.read_prediction(meta.parent)
            yield meta.parent


def read_run(_: Path, out: Path) -> Iterator[Path]:
    """A run."""
    yield inat.open_run(out).path


def read_pack(_: Path, out: Path) -> Iterator[Path]:
    """A pack."""
    if isinstance(open_photos(out, load_split(out).file_names), PackedPhotos):
        yield out


def read_data(_: Path, out: Path) -> Iterator[Path]:
    """A data set of which any split can be read."""
    for split in ("train", "val", "test"):
        with suppress(InatError):
            load_split(out, split)
            yield out


def read_submission(root: Path, out: Path) -> Iterator[Path]:
    """A submission that passes the check."""
    inat.submission.check(out / "s.csv", root / "world")
    yield out


@dataclass(frozen=True)
class Verb:
    """A line of the table.

    Attributes:
        name: of the line.
        share: kills of 100.
        run: does the work, given the folder of all inputs and the output's; it resumes, or
            replaces what is there.
        read: gives what readers accept of an output; raises InatError where they refuse it.
        before: makes what is at the output's place before; None: nothing is there.
        reach: share of the work's time within which it is killed; less than 1 where the next start
            resumes, so that it is killed several times on its way.
    """

    name: str
    share: int
    run: Callable[[Path, Path], None]
    read: Callable[[Path, Path], Iterator[Path]] = read_nothing
    before: Callable[[Path, Path], None] | None = None
    reach: float = 1


def training(name: str, share: int, **settings: Any) -> Verb:
    """A training with other settings."""
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    return Verb(f"train, {name}", share, partial(train, **settings), reach=0.4)


def of_run(root: Path, out: Path) -> None:
    """A copy of a run, with its prediction of test."""
    shutil.copytree(root / "a", out, dirs_exist_ok=True)


VERBS = (
    training("fp32", 7),
    training("bf16", 7, runtime__precision="bf16"),
    training("threads", 7, data__workers=2, data__worker_kind="threads"),
    training("processes", 4, data__workers=2, data__worker_kind="processes"),
    training("accumulate", 7, optim__accumulate=2, batch_size=2, transforms__mixup=0.2),
    Verb("train --folds", 9, train_folds, read_predictions, reach=0.4),
    Verb("predict", 10, predict, read_predictions, of_run, reach=0.4),
    Verb("data pack", 10, pack, read_pack, reach=0.4),
    Verb("data import", 12, import_, read_data),
    Verb("ensemble", 8, ensemble, read_predictions, partial(ensemble, how="rank")),
    Verb("soup", 9, soup, read_run, partial(soup, runs="ac")),
    Verb("submission write", 10, write, read_submission, partial(write, run="b")),
)


def work(verb: Callable[..., None], root: Path, out: Path, pause: bool, ready: Any) -> None:
    """What a process does: says that it is ready, and does the work of a verb."""
    import torch

    os.setpgid(0, 0)
    torch.set_num_threads(1)
    notes = out.parent / "notes"
    with (out.parent / "log").open("a") as log, redirect_stderr(log):
        rest_between(notes, PAUSE if pause else 0)
        if pause:
            sys.addaudithook(noting(out, notes))
        ready.send(None)
        verb(root, out)


def noting(out: Path, notes: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes changes to the files of an output and beside it before they happen, and waits."""
    place, handle = str(out.parent), os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    own = (str(notes), str(out.parent / "log"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        change = CHANGES.get(event)
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            change = "write"
        if change == "exchange":
            concerned = arguments[1] == "renameat2"
        elif change is not None:
            path = arguments[1 if change == "link" else 0]
            name = os.fspath(path) if isinstance(path, str | Path) else ""
            concerned = name.startswith(place) and name not in own
        if change is not None and concerned:
            os.write(handle, f"{change}\n".encode())
            time.sleep(PAUSE if change in ("rename", "exchange") else CHANGE_PAUSE)

    return hook


def start(verb: Callable[..., None], root: Path, out: Path, *, pause: bool) -> Any:
    """A process that has begun the work of a verb."""
    (out.parent / "notes").write_text("start\n")
    ready, told = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(verb, root, out, pause, told))
    process.start()
    told.close()
    ready.recv()
    return process


def finish(process: Any, out: Path) -> None:
    """Waits for a process that must end well."""
    process.join(300)
    if process.exitcode != 0:
        log = (out.parent / "log").read_text()
        raise SystemExit(f"{out}: a start ended with {process.exitcode}:\n{log[-2000:]}")


def outputs(out: Path) -> dict[str, bytes]:
    """The bytes of each file of an output, without what a clock or an id says."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
        if path.is_dir() or hidden or path.name in ("environment.json", "checksums.json"):
            continue
        if path.name == "metrics.jsonl":
            found[name] = orjson.dumps(log_lines(path.parent))
        elif path.name == "state.json":  # with the length of metrics.jsonl
            state = orjson.loads(path.read_bytes())
            found[name] = orjson.dumps({k: v for k, v in state.items() if k != "metrics_bytes"})
        else:
            found[name] = path.read_bytes()
    return found


def below(found: dict[str, bytes], out: Path, place: Path) -> dict[str, bytes]:
    """The files of an output below one of its folders."""
    return {name: content for name, content in found.items() if (out / name).is_relative_to(place)}


def is_half(verb: Verb, root: Path, out: Path, whole: list[dict[str, bytes]]) -> bool:
    """Whether a checkpoint is damaged, or a reader accepts what is none of the whole outputs."""
    for name in ("last", "best"):
        if any(damaged_files(folder) for folder in out.rglob(f"checkpoints/{name}")):
            return True
    try:
        accepted = list(verb.read(root, out))
    except InatError:
        return False
    found = outputs(out)
    return any(
        all(below(found, out, place) != below(one, out, place) for one in whole)
        for place in accepted
    )


def clear(verb: Verb, root: Path, out: Path) -> None:
    """Puts at an output's place what is there before the first start."""
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    if verb.before is not None:
        shutil.copytree(root / f"before {verb.name}", out)


def digest(found: dict[str, bytes]) -> str:
    """The first digits of the SHA-256 of an output."""
    return hashlib.sha256(orjson.dumps({k: v.hex() for k, v in found.items()})).hexdigest()[:8]


def row(verb: Verb, root: Path, kills: int, draw: random.Random) -> tuple[str, int]:
    """A line of the table, and how many kills it took."""
    out = root / "place" / "out"
    if verb.before is not None:
        verb.before(root, root / f"before {verb.name}")
    clear(verb, root, out)
    whole = [outputs(out)]
    process = start(verb.run, root, out, pause=True)
    began = time.monotonic()
    finish(process, out)
    seconds = time.monotonic() - began
    whole.append(peace := outputs(out))
    assert whole[0] != peace, "the work changes nothing"
    hit, differing, logs, left = [], set[str](), set[str](), set[str]()
    n_ends = n_half = 0
    clear(verb, root, out)
    while len(hit) < kills:
        process = start(verb.run, root, out, pause=True)
        time.sleep(draw.uniform(0, verb.reach * seconds))
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            hit.append((out.parent / "notes").read_text().split()[-1])
            n_half += is_half(verb, root, out, whole)
            if draw.random() > ENDS and len(hit) < kills:
                continue
            process = start(verb.run, root, out, pause=False)
        finish(process, out)
        n_ends += 1
        found = outputs(out)
        unlike = {name for name in found | peace if found.get(name) != peace.get(name)}
        logs |= {name for name in unlike if name.endswith("metrics.jsonl")}
        differing |= unlike - logs
        left |= {path.name for kind in LEFTOVERS for path in out.parent.rglob(kind)}
        clear(verb, root, out)
    log = "-"
    if any(name.endswith("metrics.jsonl") for name in peace):
        log = "OTHER" if logs else "same"
    answer = "same" if not differing else "OTHER: " + ", ".join(sorted(differing))
    counts = ", ".join(f"{what} {n}" for what, n in Counter(hit).most_common())
    line = (
        f"{verb.name:18} {len(hit):5} {n_ends:5}  {digest(peace)}  {digest(found)}  {answer:5}  "
        f"{log:5}  {n_half:4}  {', '.join(sorted(left)) or '-':4}  {counts}"
    )
    return line, len(hit)


def prepare(root: Path) -> None:
    """Makes what the verbs read."""
    make_world(root / "world")
    (root / "empty.yaml").write_text("")
    rng = np.random.default_rng(0)
    for folder, n_photos in (("photos", 6), ("photos_of_test", 2)):
        for species in range(4):
            for photo in range(n_photos):
                path = root / folder / f"species {species}" / f"{photo}.jpg"
                write_photo(path, species, (48, 64), rng)
    for seed, name in enumerate("abc"):
        train(root, root / name, seed=seed, epochs=1)
        inat.predict(root / name, "test")


def main() -> None:
    """Prints the table."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    draw = random.Random(0)
    began, total = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        title = f"{'verb':18} kills  ends  bytes     killed    files  log    half  left  hit"
        print(title, flush=True)
        with (root / "log").open("w") as log, redirect_stderr(log):
            prepare(root)
            for verb in VERBS:
                line, n_kills = row(verb, root, max(1, kills * verb.share // 100), draw)
                total += n_kills
                print(line, flush=True)
    print(f"{total} kills in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

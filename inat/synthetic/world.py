"""A world of invented species whose truth is known, in the layout of iNaturalist 2018.

The tree of life, the ranges, the seasons and the looks are drawn first and written to
`truth.json`; annotations and photos follow from them. One seed gives the same bytes on one
machine, whatever the number of workers.
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import orjson

from inat.core.bands import FEW_BELOW, MANY_ABOVE
from inat.core.errors import InputError, WorldError
from inat.core.files import atomic_file, read_json, write_bytes, write_json
from inat.core.progress import progress_bar
from inat.core.threads import usable_processors
from inat.synthetic import creatures

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Row = dict[str, Any]

# Goes up whenever the same options would give other bytes: `synth` then refuses an old world.
GENERATOR_VERSION = 1
MAX_SEED = 2**32 - 1
NULL_SHARE = 0.03  # of the photos lack their place, their date or all of it, as in the real files


@dataclass(frozen=True)
class Profile:
    n_species: int
    n_supercategories: int  # at most the 14 of SUPERCATEGORIES
    longest_side: int  # pixels of a photo's longest side
    # Train photos by rank, largest species first: (rank, count), log-linear in between.
    count_knots: tuple[tuple[int, int], ...]
    n_test: int  # rows, shared evenly among the species
    n_train: int | None = None  # exact number of rows; None: what the knots give
    n_val_per_species: int = 3
    n_photo_files: int | None = None  # rows share this many files; None: a file for every row


PROFILES = {
    "tiny": Profile(36, 4, 256, ((0, 130), (35, 2)), n_test=36 * 16),
    "small": Profile(64, 6, 800, ((0, 180), (63, 2)), n_test=64 * 12),
    # The knots follow the counts of the real train2018.json.
    "inat2018": Profile(
        8142, 14, 256,
        ((0, 1000), (40, 1000), (100, 623), (200, 382), (400, 223), (600, 146), (841, 101),
         (842, 100), (1200, 63), (2000, 31), (3000, 25), (4000, 22), (4917, 20), (4918, 19),
         (6000, 16), (7000, 13), (8000, 8), (8100, 7), (8141, 2)),
        n_test=149_394, n_train=437_513, n_photo_files=2000,
    ),
}  # fmt: skip

# (supercategory, kingdom, body plan)
SUPERCATEGORIES = (
    ("Insecta", "Animalia", "winged"),
    ("Plantae", "Plantae", "radial"),
    ("Actinopterygii", "Animalia", "finned"),
    ("Aves", "Animalia", "winged"),
    ("Fungi", "Fungi", "radial"),
    ("Reptilia", "Animalia", "finned"),
    ("Arachnida", "Animalia", "radial"),
    ("Mollusca", "Animalia", "winged"),
    ("Amphibia", "Animalia", "finned"),
    ("Mammalia", "Animalia", "finned"),
    ("Animalia", "Animalia", "radial"),
    ("Chromista", "Chromista", "radial"),
    ("Protozoa", "Protozoa", "winged"),
    ("Bacteria", "Bacteria", "finned"),
)

# The standard deviation that each rank adds to every latent trait.
MUTATION = {
    "supercategory": 0.55,
    "class": 0.35,
    "order": 0.50,
    "family": 0.45,
    "genus": 0.40,
    "species": 0.38,
}
RANKS = tuple(MUTATION)

# Random streams of a world; those of a photo are in `creatures`.
_TREE, _NAMES, _LOOKS, _RANGES, _IDS, _ROWS, _FILES, _PLACES, _USAGE = range(1, 10)

_JSON_NAMES = (
    "truth.json",
    "solution.csv",
    "train2018_locations.json",
    "val2018_locations.json",
    "test2018.json",
    "val2018.json",
    "train2018.json",
)
_UNFINISHED = ".unfinished-world.json"
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class World:
    """A written world: where it is and how many species, rows and photo files it has."""

    root: Path
    n_species: int
    n_train: int
    n_val: int
    n_test: int
    n_photo_files: int

    def lines(self) -> list[str]:
        return [
            f"{self.root}: {self.n_species:,} species, {self.n_train:,} train, "
            f"{self.n_val:,} val, {self.n_test:,} test, {self.n_photo_files:,} photo files"
        ]


def synth(
    out: Path | str,
    *,
    profile: Literal["tiny", "small", "inat2018"] = "small",
    seed: int = 0,
    photos: int | None = None,
    workers: int | None = None,
) -> World:
    """Writes a world of invented species with known truth into `out`.

    The layout is that of iNaturalist 2018, plus `solution.csv` (`id,expected,usage`) and
    `truth.json` (ranges, seasons and looks of the species). A world that is there already, of
    the same profile, seed and photos, is left as it is; one that was cut off is written again.

    Args:
        out: folder of the world; other files in it are left alone.
        profile: tiny (36 species, 256 px), small (64 species, 800 px) or inat2018 (8,142 species,
            the real competition's shape).
        seed: seed of everything in the world, 0 to 2**32 - 1.
        photos: number of photo files that the rows of inat2018 share; None: 2,000. They show the
            row's species or a relative: that profile is for scale, not for learning.
        workers: processes that draw; 0 draws in this one; None: one per processor. The bytes are
            the same for any number.

    Raises:
        InputError: an option is wrong, or `out` is a file or holds another world.
        WorldError: a rendering process died.
    """
    if profile not in PROFILES:
        valid = ", ".join(PROFILES)
        raise InputError(f"profile {profile!r}: there is no such profile; valid: {valid}")
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed}: give a whole number from 0 to {MAX_SEED}")
    if workers is not None and workers < 0:
        raise InputError(f"workers {workers}: give 0 (no extra process) or more")
    plan = PROFILES[profile]
    if photos is not None and plan.n_photo_files is None:
        raise InputError(
            f"photos {photos}: goes only with profile inat2018, not with {profile}, where every "
            "row has its own photo; leave photos out"
        )
    if photos is not None and photos < 2:
        raise InputError(f"photos {photos}: give at least 2, one for train and val, one for test")
    n_files = plan.n_photo_files if photos is None else photos
    identity = {
        "generator": GENERATOR_VERSION, "profile": profile, "seed": seed, "photos": n_files
    }  # fmt: skip
    out = Path(out)
    found = _world_in(out, identity)
    if found is not None:
        return found
    write_json(out / _UNFINISHED, identity)
    if workers is None:
        workers = usable_processors()
    world = _write_world(out, plan, identity, n_files, workers)
    (out / _UNFINISHED).unlink()
    return world


def train_counts(profile: Profile) -> Ints:
    """Train photos by rank, largest species first `[n_species]`. The sum is `profile.n_train` where
    given; no species leaves its shot band or the range of the knots for it."""
    ranks, knots = np.array(profile.count_knots, dtype=np.float64).T
    curve = np.exp(np.interp(np.arange(profile.n_species), ranks, np.log(knots)))
    counts: Ints = np.round(curve).astype(np.int64)
    if profile.n_train is None:
        return counts
    high = np.where(
        counts > MANY_ABOVE, counts[0], np.where(counts < FEW_BELOW, FEW_BELOW - 1, MANY_ABOVE)
    )
    low = np.where(
        counts > MANY_ABOVE, MANY_ABOVE + 1, np.where(counts < FEW_BELOW, counts[-1], FEW_BELOW)
    )
    missing = profile.n_train - int(counts.sum())
    room = (high - counts) if missing > 0 else (counts - low)
    room[[0, -1]] = 0
    step = room * abs(missing) // max(int(room.sum()), 1)
    # What flooring left over: one each for the species with the most room left.
    rest = abs(missing) - int(step.sum())
    step[np.argsort(-(room - step), kind="stable")[:rest]] += 1
    return np.sort(counts + np.sign(missing) * step)[::-1]


# --- what is there already -------------------------------------------------------------------


def _world_in(out: Path, identity: Row) -> World | None:
    """The finished world in `out` if it is the one asked for; None if `out` holds none."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder")
    photo_folders = ("train_val2018", "test2018")
    there = [name for name in (*_JSON_NAMES, *photo_folders) if (out / name).exists()]
    if not there:
        return None
    if (out / _UNFINISHED).exists():
        held = read_json(out / _UNFINISHED)
        if held == identity:
            return None
        kind = f"an unfinished world ({_described(held)})"
    else:
        is_whole = all((out / name).exists() for name in _JSON_NAMES)
        info = read_json(out / "truth.json").get("info", {}) if is_whole else {}
        if "synthetic" not in info or "world" not in info:
            kind = f"another data set ({there[0]})"
        elif info["synthetic"] == identity:
            return World(root=out, **info["world"])
        else:
            kind = f"another world ({_described(info['synthetic'])})"
    raise InputError(
        f"{out}: holds {kind}, not the one asked for ({_described(identity)}); "
        "delete the folder or give another one"
    )


def _described(identity: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in identity.items() if value is not None)


# --- the tree of life ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """Species 0..n-1 in tree order; for each rank the group of each species and the names."""

    group: dict[str, Ints]  # rank -> [n_species], groups numbered from 0
    names: dict[str, list[str]]  # rank -> name of each group


def _grow_tree(profile: Profile, seed: int) -> Tree:
    rng = creatures.stream(seed, _TREE)
    genus_sizes, left = [], profile.n_species  # of 2 to 5 species
    while left > 5:
        size = int(rng.integers(2, 6))
        if left - size == 1:
            size += 1 if size < 5 else -1
        genus_sizes.append(size)
        left -= size
    genus_sizes.append(left)
    n_genera = len(genus_sizes)
    cuts = rng.choice(n_genera - 1, min(profile.n_supercategories, n_genera) - 1, replace=False)
    top = np.zeros(n_genera, dtype=np.int64)
    top[cuts + 1] = 1
    top = top.cumsum()
    of_genus = {"supercategory": top, "genus": np.arange(n_genera)}
    below, parent = np.arange(n_genera), top
    for rank, most in (("family", 4), ("order", 4), ("class", 3)):
        groups = _grouped(parent, most, rng)
        below = groups[below]
        parent = parent[np.unique(groups, return_index=True)[1]]
        of_genus[rank] = below
    group = {rank: np.repeat(of_genus[rank], genus_sizes) for rank in of_genus}
    group["species"] = np.arange(profile.n_species)
    return Tree(group, _name_groups(group, creatures.stream(seed, _NAMES)))


def _grouped(parents: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Cuts a row of things into groups of 1 to `most` neighbours with the same parent."""
    groups = np.zeros(len(parents), dtype=np.int64)
    left = int(rng.integers(1, most + 1))
    for k in range(1, len(parents)):
        left -= 1
        new = left == 0 or parents[k] != parents[k - 1]
        groups[k] = groups[k - 1] + new
        if new:
            left = int(rng.integers(1, most + 1))
    return groups


_ENDINGS = {
    "class": ("opsida", "omorpha", "ozoa"),
    "order": ("ales", "iformes", "ptera"),
    "family": ("idae", "aceae"),
    "genus": ("us", "a", "ia", "ella", "opsis", "ium", "ops", "is"),
    "species": ("ensis", "ata", "oides", "ina", "osa", "icola", "escens", "ifera", "ula", "ica"),
}
_ONSETS = (*tuple("bcdfghlmnprstvxz"), "br", "cl", "dr", "gl", "ph", "pl", "sc", "sp", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "y")
_CODAS = ("l", "m", "n", "r", "s", "t", "x", "nd", "rn", "st")


def _name_groups(group: dict[str, Ints], rng: np.random.Generator) -> dict[str, list[str]]:
    """Invented names; none occurs twice, at whatever rank."""
    names = {"supercategory": [row[0] for row in SUPERCATEGORIES]}
    taken = set(names["supercategory"])
    for rank, endings in _ENDINGS.items():
        names[rank] = []
        while len(names[rank]) <= group[rank].max():
            parts: list[Sequence[str]] = [_ONSETS, _VOWELS, _ONSETS, endings]
            if rng.random() < 0.6:
                parts[3:3] = [_VOWELS, _CODAS]
            name = "".join(part[int(rng.integers(len(part)))] for part in parts).capitalize()
            if name not in taken:
                taken.add(name)
                names[rank].append(name)
    names["species"] = [
        f"{names['genus'][one]} {epithet.lower()}"
        for one, epithet in zip(group["genus"].tolist(), names["species"], strict=True)
    ]
    return names


# --- what is true of the species -------------------------------------------------------------


@dataclass(frozen=True)
class Species:
    """All species as columns `[n_species]`, in tree order."""

    category_id: Ints
    n_train: Ints
    plan: list[str]
    latent: Floats  # [n_species, n_traits], what `creatures` draws
    lat: Floats  # centre of the range, degrees
    lon: Floats
    range_degrees: Floats  # standard deviation of latitude and of longitude x cos(latitude)
    season_day: Floats  # peak of the season, days after 1 January
    season_days: Floats  # standard deviation


def _draw_species(profile: Profile, tree: Tree, seed: int) -> Species:
    n_species, rng = profile.n_species, creatures.stream(seed, _RANGES)
    ids = _gapped_ids(n_species, creatures.stream(seed, _IDS, 0))
    genus = tree.group["genus"]
    lat = rng.uniform(-45, 60, genus.max() + 1)[genus] + rng.normal(0, 9, n_species)
    lon = rng.uniform(-180, 180, genus.max() + 1)[genus] + rng.normal(0, 14, n_species)
    season = 190 + rng.normal(0, 45, n_species) + np.where(lat < 0, 183, 0)
    # What every ancestor changed, summed.
    n_traits = len(creatures.TRAITS)
    latent = np.zeros((n_species, n_traits))
    for k, rank in enumerate(RANKS):
        group = tree.group[rank]
        change = creatures.stream(seed, _LOOKS, k).normal(
            0, MUTATION[rank], (group.max() + 1, n_traits)
        )
        latent += change[group]
    return Species(
        category_id=ids,
        n_train=rng.permutation(train_counts(profile)),
        plan=[SUPERCATEGORIES[k][2] for k in tree.group["supercategory"]],
        latent=latent,
        lat=np.clip(lat, -70, 75),
        lon=(lon + 180) % 360 - 180,
        range_degrees=rng.uniform(2, 8, n_species),
        season_day=season % 365,
        season_days=rng.uniform(12, 45, n_species),
    )


def _gapped_ids(n: int, rng: np.random.Generator) -> Ints:
    """`n` unique ids with gaps between them, in random order."""
    return rng.permutation(rng.integers(1, 4, n).cumsum() + 10)


def _truth(tree: Tree, species: Species) -> Iterator[Row]:
    values = creatures.trait_values(species.latent)
    for k, name in enumerate(tree.names["species"]):
        yield {
            "id": int(species.category_id[k]),
            "name": name,
            "n_train": int(species.n_train[k]),
            "range": {
                "lat": round(float(species.lat[k]), 4),
                "lon": round(float(species.lon[k]), 4),
                "spread_degrees": round(float(species.range_degrees[k]), 4),
            },
            "season": {
                "peak_day": round(float(species.season_day[k]), 2),
                "spread_days": round(float(species.season_days[k]), 2),
            },
            "plan": species.plan[k],
            "appearance": dict(zip(creatures.TRAITS, values[k].round(5).tolist(), strict=True)),
        }


def _categories(tree: Tree, species: Species, seed: int) -> list[Row]:
    """The rows of `categories`, in shuffled order: a label is neither the id nor the place."""
    rows = []
    for k in creatures.stream(seed, _IDS, 1).permutation(len(species.category_id)):
        lineage = {rank: tree.names[rank][tree.group[rank][k]] for rank in RANKS}
        top = tree.group["supercategory"][k]
        rows.append(
            {
                "id": int(species.category_id[k]),
                "name": lineage.pop("species"),
                "supercategory": lineage.pop("supercategory"),
                "kingdom": SUPERCATEGORIES[top][1],
                "phylum": f"{SUPERCATEGORIES[top][0]}phyta",
                **lineage,
            }
        )
    return rows


# --- rows and files --------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotoFiles:
    """The photo files to render; the index in these columns is the photo's index."""

    species: Ints
    paths: list[str]  # relative to the world, as in `file_name`
    width: Ints
    height: Ints


@dataclass(frozen=True)
class Split:
    """The rows of train, val or test as columns, in the order of the JSON."""

    image_id: Ints
    species: Ints
    file: Ints  # index into PhotoFiles


def _draw_splits(
    profile: Profile, species: Species, n_files: int | None, seed: int
) -> tuple[dict[str, Split], Ints, int]:
    """The splits, the species that each file shows, and how many files are train and val."""
    n_species = profile.n_species
    n_test = np.full(n_species, profile.n_test // n_species)
    n_test[: profile.n_test % n_species] += 1
    n_val = np.full(n_species, profile.n_val_per_species)
    labels = [
        creatures.stream(seed, _ROWS, k).permutation(np.repeat(np.arange(n_species), counts))
        for k, counts in enumerate((species.n_train, n_val, n_test))
    ]
    ends = np.cumsum([0, *map(len, labels)])
    ids = _gapped_ids(int(ends[-1]), creatures.stream(seed, _ROWS, 3))
    if n_files is None:
        file, shown, n_train_val = np.arange(ends[-1]), np.concatenate(labels), int(ends[2])
    else:
        # Files are fewer than rows: each row has one of the species or, since species are in tree
        # order, of a relative.
        n_train_val = max(1, n_files * 3 // 4)
        n_here = n_files - n_train_val
        nearest = [part * n_train_val // n_species for part in labels[:2]]
        file = np.concatenate([*nearest, n_train_val + labels[2] * n_here // n_species])
        shown = np.concatenate(
            [np.arange(n) * n_species // n + n_species // (2 * n) for n in (n_train_val, n_here)]
        )
    splits = {
        name: Split(ids[ends[k] : ends[k + 1]], labels[k], file[ends[k] : ends[k + 1]])
        for k, name in enumerate(_SPLITS)
    }
    return splits, shown, n_train_val


def _lay_out_files(
    tree: Tree, species: Species, shown: Ints, n_train_val: int, longest_side: int, seed: int
) -> PhotoFiles:
    names = creatures.stream(seed, _FILES).bytes(16 * len(shown)).hex()
    top = tree.group["supercategory"]
    paths = []
    for k, one in enumerate(shown):
        name = f"{names[32 * k : 32 * k + 32]}.jpg"
        folder = "test2018"
        if k < n_train_val:
            folder = f"train_val2018/{SUPERCATEGORIES[top[one]][0]}/{species.category_id[one]}"
        paths.append(f"{folder}/{name}")
    sizes = [creatures.photo_size(seed, k, longest_side) for k in range(len(shown))]
    width, height = np.array(sizes, dtype=np.int64).T
    return PhotoFiles(shown, paths, width, height)


# --- rendering -------------------------------------------------------------------------------


def _render_all(
    out: Path, species: Species, files: PhotoFiles, longest_side: int, seed: int, workers: int
) -> None:
    for folder in {Path(path).parent for path in files.paths}:
        (out / folder).mkdir(parents=True, exist_ok=True)
    shown = (
        creatures.Creature(species.plan[one], species.latent[one]) for one in files.species.tolist()
    )
    jobs = zip(files.paths, shown, range(len(files.paths)), strict=True)
    render = partial(_render_one, out, seed, longest_side)
    with progress_bar("photos", len(files.paths), "photos") as bar:
        if workers == 0:
            for job in jobs:
                render(job)
                bar.advance(1)
            return
        # Spawned, not forked: a fork copies the locks of torch's and OpenCV's threads as they are.
        context = multiprocessing.get_context("spawn")
        try:
            # The processes share the cores already.
            with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
                for _ in pool.map(render, jobs, chunksize=16):
                    bar.advance(1)
        except BrokenProcessPool:
            raise WorldError(
                "a rendering process died: out of memory, or the calling script has no "
                "`if __name__ == '__main__':`; try again with workers 0"
            ) from None


def _render_one(
    out: Path, seed: int, longest_side: int, job: tuple[str, creatures.Creature, int]
) -> None:
    # Not flushed to the disk one by one, which can take longer than the rendering.
    path, creature, index = job
    content = creatures.render_jpeg(creature, seed, index, longest_side)
    try:
        (out / path).write_bytes(content)
    except OSError as error:  # one of writing names no file
        raise OSError(error.errno, error.strerror, str(out / path)) from None


# --- writing ---------------------------------------------------------------------------------


def _write_world(
    out: Path, profile: Profile, identity: Row, n_files: int | None, workers: int
) -> World:
    seed = identity["seed"]
    tree = _grow_tree(profile, seed)
    species = _draw_species(profile, tree, seed)
    splits, shown, n_train_val = _draw_splits(profile, species, n_files, seed)
    files = _lay_out_files(tree, species, shown, n_train_val, profile.longest_side, seed)
    _render_all(out, species, files, profile.longest_side, seed, workers)
    sizes = {f"n_{name}": len(splits[name].image_id) for name in _SPLITS}
    world = World(out, profile.n_species, **sizes, n_photo_files=len(files.paths))
    counts = {key: value for key, value in asdict(world).items() if key != "root"}
    info = {
        "description": "Invented species with known truth, in the layout of iNaturalist 2018",
        "version": "synthetic",
        "year": 2018,
        "contributor": "inat",
        "date_created": "2018-02-01",
        "url": "",
        "synthetic": identity,
    }
    truth = {"species": _truth(tree, species)}
    _write_tables(out / "truth.json", {**info, "world": counts}, truth)
    test = splits["test"]
    is_public = creatures.stream(seed, _USAGE).random(len(test.image_id)) < 1 / 3
    expected = species.category_id[test.species].tolist()
    scored = zip(test.image_id.tolist(), expected, is_public.tolist(), strict=True)
    lines = [
        f"{number},{label},{'Public' if seen else 'Private'}" for number, label, seen in scored
    ]
    write_bytes(out / "solution.csv", "\n".join(["id,expected,usage", *lines, ""]).encode())
    for k, name in enumerate(("train", "val")):
        rows = _location_rows(splits[name], species, creatures.stream(seed, _PLACES, k))
        path = out / f"{name}2018_locations.json"
        with atomic_file(path) as partial_path, partial_path.open("wb") as handle:
            handle.write(b"[")
            handle.writelines(_joined(rows))
            handle.write(b"]\n")
    categories = _categories(tree, species, seed)
    n_before = 0
    for name in reversed(_SPLITS):  # train last: a world with train2018.json is whole
        tables: dict[str, Iterable[Row]] = {"images": _image_rows(splits[name], files)}
        if name != "test":
            tables["annotations"] = _annotation_rows(splits[name], species, n_before + 1)
            n_before += len(splits[name].image_id)
            tables["categories"] = categories  # the real test file has images only
        tables["licenses"] = _LICENSES
        _write_tables(out / f"{name}2018.json", info, tables)
    return world


_LICENSES = [
    {"id": 1, "name": "Invented photo, free for any use", "url": "http://example.org/1"},
    {"id": 2, "name": "Invented photo, free with credit", "url": "http://example.org/2"},
]


def _image_rows(split: Split, files: PhotoFiles) -> Iterator[Row]:
    columns = zip(split.image_id.tolist(), split.file.tolist(), strict=True)
    width, height = files.width.tolist(), files.height.tolist()
    for image_id, file in columns:
        yield {
            "id": image_id,
            "width": width[file],
            "height": height[file],
            "file_name": files.paths[file],
            "license": 1 + image_id % 2,
            "rights_holder": f"observer {image_id % 97}",
        }


def _annotation_rows(split: Split, species: Species, first: int) -> Iterator[Row]:
    labels = species.category_id[split.species].tolist()
    for k, (image_id, label) in enumerate(zip(split.image_id.tolist(), labels, strict=True)):
        yield {"id": first + k, "image_id": image_id, "category_id": label}


def _location_rows(split: Split, species: Species, rng: np.random.Generator) -> Iterator[Row]:
    """Where, when and by whom: a place in the species' range, a day in its season."""
    one, n = split.species, len(split.species)
    spread = species.range_degrees[one]
    lat = np.clip(species.lat[one] + rng.normal(0, spread), -85, 85)
    lon = species.lon[one] + rng.normal(0, spread) / np.cos(np.deg2rad(species.lat[one]))
    lon = (lon + 180) % 360 - 180
    # Around the day of the season's peak, in 2013 to 2017.
    day = species.season_day[one] + rng.normal(0, species.season_days[one])
    day = (np.round(day) % 365).astype(np.int64)
    start = (rng.integers(2013, 2018, n) - 1970).astype("datetime64[Y]").astype("datetime64[s]")
    second = day * 86_400 + rng.integers(6 * 3600, 21 * 3600, n)
    moments = np.datetime_as_string(start + second.astype("timedelta64[s]"), unit="s").tolist()
    dates = [f"{moment.replace('T', ' ')}+00:00" for moment in moments]
    users = (1 + rng.zipf(1.5, n) % (1 + n // 8)).tolist()  # a few people take most photos
    # 1 lacks the place, 2 the date, 3 everything.
    lacks = np.where(rng.random(n) < NULL_SHARE, rng.integers(1, 4, n), 0)
    places = zip(lat.round(5).tolist(), lon.round(5).tolist(), strict=True)
    rows = zip(split.image_id.tolist(), places, dates, users, lacks.tolist(), strict=True)
    for image_id, (y, x), date, user, lack in rows:
        yield {
            "id": image_id,
            "lat": None if lack in (1, 3) else y,
            "lon": None if lack in (1, 3) else x,
            "date": None if lack in (2, 3) else date,
            "user_id": None if lack == 3 else user,
        }


_CHUNK = 20_000  # rows in memory at a time: half a million dicts would take a gigabyte


def _write_tables(path: Path, info: Row, tables: Mapping[str, Iterable[Row]]) -> None:
    """Writes `{"info": ..., "<table>": [rows], ...}` without holding a table in memory."""
    with atomic_file(path) as partial_path, partial_path.open("wb") as handle:
        handle.write(b'{"info":' + orjson.dumps(info))
        for name, rows in tables.items():
            handle.write(b',\n"%s":[' % name.encode())
            handle.writelines(_joined(rows))
            handle.write(b"]")
        handle.write(b"}\n")


def _joined(rows: Iterable[Row]) -> Iterator[bytes]:
    """The rows as the inside of a JSON list, in chunks."""
    between, chunk = b"\n", []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield between + orjson.dumps(chunk)[1:-1]
            between, chunk = b",\n", []
    if chunk:
        yield between + orjson.dumps(chunk)[1:-1]

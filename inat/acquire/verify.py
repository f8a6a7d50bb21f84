"""Looks at every photo of a data set: is it there, of the stated size, and can it be decoded?"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from xxhash import xxh3_64_hexdigest, xxh3_128_digest

from inat.acquire.parts import (
    Finding,
    load_splits,
    names_digest,
    naming_disk_faults,
    parse_part,
    part_range,
    photo_names,
)
from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.core.files import locked, read_json_as, sha256, write_json
from inat.core.progress import progress_bar
from inat.core.threads import in_order, stretches, usable_processors
from inat.dataset.split import Split
from inat.photos.decode import SLOW_SECONDS, BadPhoto, decode_whole, read_header
from inat.photos.pack import PackedPhotos, read_parts
from inat.photos.sources import PhotoFiles, PhotoSource, open_photos

PHOTOS_PER_BLOCK = 1024
"""Photos after which the journal is written."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Findings:
    """What was found, in the order of the file names."""

    missing: list[Finding] = field(default_factory=list)
    bad: list[Finding] = field(default_factory=list)  # they cannot be read or decoded
    recovered: list[Finding] = field(default_factory=list)  # decoded after a repair
    # Of another size, or of other bytes, than the annotations state.
    mismatched: list[Finding] = field(default_factory=list)
    slow: list[Finding] = field(default_factory=list)  # they took more than a second
    # Their bytes stand under two species, or in two of train, val and test.
    copied: list[Finding] = field(default_factory=list)

    def extend(self, other: "Findings") -> None:
        for kind, found in vars(other).items():
            getattr(self, kind).extend(found)


@dataclass(frozen=True)
class Verified:
    """What a verification found."""

    root: Path  # the folder or pack
    report: Path  # the JSON that lists all findings
    part: str  # which part of how many
    n_photos: int  # distinct photos that were looked at
    findings: Findings  # those in the photos
    damaged_files: list[Finding]  # files of a pack that are not what was written

    def lines(self) -> list[str]:
        counts = ", ".join(f"{len(found):,} {kind}" for kind, found in vars(self.findings).items())
        return [f"{self.root}: {self.n_photos:,} photos, {counts}; see {self.report}"]

    def faults(self) -> str:
        """What must be mended, in one line; "" where nothing must."""
        faults = [*self.findings.missing, *self.findings.bad, *self.damaged_files]
        if not faults:
            return ""
        damaged = f", {len(self.damaged_files):,} damaged files" if self.damaged_files else ""
        return (
            f"{self.root}: {len(self.findings.missing):,} missing, {len(self.findings.bad):,} bad "
            f"of {self.n_photos:,} photos{damaged} (first: {faults[0]}); all are listed in "
            f"{self.report}"
        )


def verify(
    root: Path | str,
    *,
    part: str = "1/1",
    workers: int | None = None,
    report: Path | str | None = None,
    competition: str = "inaturalist-2018",
) -> Verified:
    """Checks every photo of a data set or pack: is it there, whole, of its size, and not a copy?

    Photos with the same bytes are listed where they stand under two species or in two splits; of
    a part of the data set, those within the part.

    JPEGs are decoded at 1/8 of their size, for which all of their data must be read. In a pack
    every photo's checksum is compared too, and every file's SHA-256. After an interruption it
    goes on behind the last 1,024 photos that were done, unless their files have changed since.

    Args:
        root: folder of the data set, or a pack of it.
        part: I/N: the I-th of N equal stretches of the sorted file names.
        workers: threads that read and decode; 0 does it in this one; None: one per processor.
        report: JSON file for all findings; None: verify.json in ROOT, or verify.part-I-of-N.json.
        competition: Kaggle name; it decides the names of the annotation files.

    Raises:
        InputError: an option is wrong, the annotations are broken, a pack cannot be opened, or
            the report cannot be written.
        WorldError: another process writes this report, or the disk is full.
    """
    root = Path(root)
    number, n_parts = parse_part(part)
    if workers is not None and workers < 0:
        raise InputError(f"--workers {workers} is less than 0; give 0 or more")
    threads = usable_processors() if workers is None else workers
    splits = load_splits(root, find_competition(competition))
    all_names = photo_names(splits)
    sizes = _StatedSizes(splits, all_names)
    span = part_range(len(all_names), number, n_parts)
    names = all_names.slice(span.start, len(span))
    digests = np.zeros(len(all_names), np.int64)  # 0 where nothing is stated
    for split in splits:
        if split.digests is not None:
            photos = pc.index_in(split.file_names, value_set=all_names).to_numpy()
            digests[photos] = np.where(split.digests == 0, digests[photos], split.digests)
    look = _Look(open_photos(root, names), names, sizes, digests, span.start)
    default = "verify.json" if n_parts == 1 else f"verify.part-{number}-of-{n_parts}.json"
    report = Path(report) if report else root / default
    busy = f"{report}: another process verifies this; wait for it, or give another --report"
    with ExitStack() as held:
        try:  # that it cannot be written shows at once, and not in the end
            report.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(report.with_name(f".{report.name}.lock"), busy))
        except OSError as error:
            raise InputError(
                f"{report}: cannot be written ({error.strerror}); give --report FILE elsewhere"
            ) from None
        key = [names_digest(all_names), sizes.digest(), xxh3_64_hexdigest(digests.tobytes()), part]
        journal = _Journal(report, key)
        findings, contents = _look_at_all(look, len(span), journal, threads)
        findings.copied.extend(_copied(splits, names, contents))
        damaged = _damaged_files(look.source, root, number, n_parts, threads)
        verified = Verified(root, report, part, len(span), findings, damaged)
        with naming_disk_faults(report):
            content = {"root": str(root), "part": part, "n_photos": len(span)}
            content |= {**asdict(findings), "damaged_files": damaged}
            write_json(report, content)
        journal.path.unlink(missing_ok=True)
    return verified


class _StatedSizes:
    """The sizes that the annotations state of each photo: rows that share a photo may differ."""

    def __init__(self, splits: Sequence[Split], names: pa.StringArray) -> None:
        photos = [pc.index_in(split.file_names, value_set=names).to_numpy() for split in splits]
        rows = pd.DataFrame(
            np.concatenate([split.sizes for split in splits]), columns=["height", "width"]
        )
        rows["photo"] = np.concatenate(photos)
        rows = rows[(rows["height"] > 0) & (rows["width"] > 0)].drop_duplicates()
        rows = rows.sort_values("photo", kind="stable")
        self._photos = rows["photo"].to_numpy(np.int64)
        self._sizes = rows[["height", "width"]].to_numpy(np.int64)

    def of(self, photo: int) -> list[list[int]]:
        first, last = np.searchsorted(self._photos, [photo, photo + 1])
        return self._sizes[first:last].tolist()

    def digest(self) -> str:
        return xxh3_64_hexdigest(np.column_stack([self._photos, self._sizes]).tobytes())


def _copied(
    splits: Sequence[Split], names: pa.StringArray, contents: Int64[np.ndarray, "photos"]
) -> list[Finding]:
    """The photos whose bytes stand under two species or in two splits."""
    rows = pd.concat(
        pd.DataFrame(
            {
                "photo": pc.index_in(split.file_names, value_set=names).fill_null(-1).to_numpy(),
                "split": at,
                "category": np.where(
                    split.labels < 0, -1, split.taxonomy.category_ids[split.labels]
                ),
            }
        )
        for at, split in enumerate(splits)
    )
    rows = rows[rows["photo"] >= 0]
    rows = rows.assign(content=contents[rows["photo"]])
    places = rows[rows["content"] != 0].drop_duplicates(["content", "split", "category"])
    torn = places[places["content"].duplicated(keep=False)]
    rows = rows[rows["content"].isin(torn["content"])].sort_values("photo", kind="stable")
    found = {}
    for _, same in rows.groupby("content", sort=False):
        stood: set[tuple[int, int]] = set(zip(same["split"], same["category"], strict=True))
        stands = " and ".join(
            splits[at].name + ("" if category < 0 else f" as category {category}")
            for at, category in sorted(stood)
        )
        files = list(dict.fromkeys(same["photo"]))
        for photo in files:
            other = next((file for file in files if file != photo), None)
            twin = "" if other is None else f"the bytes of {names[other]}, "
            found[photo] = Finding(str(names[photo]), f"{twin}in {stands}")
    return [found[photo] for photo in sorted(found)]


class _Seen(NamedTuple):
    """A photo that was looked at: the state of its file before, the first 64 bits of the XXH3-128
    of its bytes (0 where they cannot be read), and what was found."""

    stamp: Stamp
    content: int
    findings: Findings


@dataclass(frozen=True, eq=False)
class _Look:
    source: PhotoSource
    names: pa.StringArray
    sizes: _StatedSizes
    digests: Int64[np.ndarray, "all"]  # of all parts
    first: int  # of this part

    def __call__(self, index: int) -> _Seen:
        stamp = self.stamp(index)
        name = str(self.names[index])
        findings = Findings()
        began, content = time.perf_counter(), 0
        source = self.source
        try:
            photo = source.read(index)
            content = int.from_bytes(xxh3_128_digest(photo)[:8], signed=True)
            stated_content = self.digests[self.first + index]
            # A pack holds photos that were made smaller; it has checksums of its own.
            if stated_content not in (0, content) and isinstance(source, PhotoFiles):
                text = "its bytes are not those that the annotations state (xxh3_128)"
                findings.mismatched.append(Finding(name, text))
            self._decode(photo, index, name, findings)
        except BadPhoto as error:
            gone = stamp == GONE or (isinstance(source, PackedPhotos) and source.is_missing(index))
            (findings.missing if gone else findings.bad).append(Finding(name, str(error)))
        seconds = time.perf_counter() - began
        if seconds > SLOW_SECONDS:
            findings.slow.append(Finding(name, f"took {seconds:.1f} s"))
        return _Seen(stamp, content, findings)

    def stamp(self, index: int) -> Stamp:
        """Size and times of the file that holds the photo. The last is when this system made or
        changed it, which a journal that came with the photos cannot know."""
        source = self.source
        path = source.shard_path(index) if isinstance(source, PackedPhotos) else source.path(index)
        try:
            state = Path(path).stat()
        except OSError:
            return GONE
        return state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def _decode(self, photo: bytes | memoryview, index: int, name: str, findings: Findings) -> None:
        header = read_header(photo)
        _, recovered = decode_whole(header, 8)
        if recovered:
            findings.recovered.append(Finding(name, recovered))
        # Annotations give the size before or after EXIF turned the photo.
        sizes = [header.size, header.stored_size]
        if isinstance(self.source, PackedPhotos):
            size = self.source.original_size(index)
            sizes = [size, size[::-1]]
        for stated in self.sizes.of(self.first + index):
            if tuple(stated) not in sizes:
                text = f"the annotations state {_size(stated)}, it is {_size(sizes[0])}"
                findings.mismatched.append(Finding(name, text))


GONE: Stamp = (-1, -1, -1)


def _size(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"


@dataclass(frozen=True)
class _Block:
    """What was found in a block, in which state of its files, and the contents."""

    stamp: str
    findings: Findings
    contents: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]]


@dataclass(frozen=True)
class _Kept:
    """A journal as it lies on the disk."""

    key: list[str]
    blocks: dict[str, _Block]


class _Journal:
    """The blocks of photos that an interrupted verification has done."""

    def __init__(self, report: Path, key: list[str]) -> None:
        self.path = report.with_name(f".{report.name}.journal")
        self._key = key
        self._blocks: dict[str, _Block] = {}
        with suppress(InputError):  # missing or damaged: the photos are looked at again
            kept = read_json_as(self.path, _Kept, "delete it")
            self._blocks = kept.blocks if kept.key == key else {}

    def known(self, look: _Look, block: int, photos: range, threads: int) -> _Block | None:
        """What was found in a block that was done and whose files are as they were."""
        done = self._blocks.get(str(block))
        if done is None or len(done.contents) != len(photos):
            return None
        stamps = list(in_order(look.stamp, photos, threads))
        # Where all are missing, nothing tells whose journal it is.
        return done if done.stamp == _digest(stamps) and set(stamps) != {GONE} else None

    def add(self, block: int, done: _Block) -> None:
        self._blocks[str(block)] = done
        with naming_disk_faults(self.path):
            write_json(self.path, _Kept(self._key, self._blocks), indent=False)


def _look_at_all(
    look: _Look, n_photos: int, journal: _Journal, threads: int
) -> tuple[Findings, Int64[np.ndarray, "photos"]]:
    """What was found, and the content of each photo as `_Seen` has it."""
    blocks = dict(enumerate(stretches(n_photos, PHOTOS_PER_BLOCK)))
    with progress_bar("verify", n_photos, "photos") as bar:
        found = {at: journal.known(look, at, photos, threads) for at, photos in blocks.items()}
        wanted = {at: photos for at, photos in blocks.items() if found[at] is None}
        bar.advance(n_photos - sum(map(len, wanted.values())))
        with closing(in_order(look, chain.from_iterable(wanted.values()), threads)) as looked:
            for at, photos in wanted.items():
                stamps, contents, findings = [], [], Findings()
                for seen in islice(looked, len(photos)):
                    stamps.append(seen.stamp)
                    contents.append(seen.content)
                    findings.extend(seen.findings)
                    bar.advance(1)
                done = found[at] = _Block(_digest(stamps), findings, contents)
                journal.add(at, done)
    in_all = Findings()
    for block in filter(None, found.values()):
        in_all.extend(block.findings)
    contents = list(chain.from_iterable(block.contents for block in filter(None, found.values())))
    return in_all, np.array(contents, np.int64)


def _digest(stamps: Sequence[Stamp]) -> str:
    return xxh3_64_hexdigest(np.array(stamps, np.int64).tobytes())


def _damaged_files(
    source: PhotoSource, root: Path, number: int, n_parts: int, threads: int
) -> list[Finding]:
    """The files of a pack whose SHA-256 is not the manifest's; each part looks at its share."""
    if isinstance(source, PhotoFiles):
        return []
    files = [(part.folder, file) for part in read_parts(root) for file in part.files]
    share = files[number - 1 :: n_parts]
    damaged = []
    with (
        progress_bar("checksums", len(share), "files") as bar,
        closing(in_order(lambda at: sha256(at[0] / at[1].name), share, threads)) as sums,
    ):
        for (folder, file), found in zip(share, sums, strict=True):
            if found != file.sha256:
                name = str((folder / file.name).relative_to(root))
                damaged.append(Finding(name, "its SHA-256 is not the manifest's"))
            bar.advance(1)
    return damaged

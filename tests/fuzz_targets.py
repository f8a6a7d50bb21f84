"""What is fuzzed: each reader of the kit with valid files, damaged, and what is then asked of them.

A target makes its files in a folder, and gives the damaged contents of one of them and what reads
such a content the whole way. The same targets serve the short and the long run.
"""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
import yaml
from damage import (
    VALUES,
    Content,
    array_bombs,
    csv_bombs,
    damaged_bytes,
    damaged_json,
    damaged_tree,
    json_bytes,
    parquet_bombs,
    put,
    row_bombs,
    tar_bombs,
    zip_bomb,
)
from hypothesis import strategies as st
from PIL import Image
from predictions import make_prediction
from safetensors.torch import save
from torch import nn
from worlds import make_world

from inat.acquire.pack import pack_photos
from inat.acquire.unpacking import unpack
from inat.config.reading import read_config
from inat.config.schema import Config
from inat.core.competitions import Archive
from inat.core.errors import InatError
from inat.core.files import sha256
from inat.core.priors import read_prior
from inat.dataset.split import load_split
from inat.evaluation.solution import read_solution
from inat.models.weights import read_weights
from inat.photos.decode import BadPhoto, Box, decode, decode_whole, read_header
from inat.photos.pack import PackedPhotos
from inat.photos.sources import open_photos
from inat.predictions.file import read_prediction
from inat.runs.run import open_run
from inat.submission import check, score, write
from inat.submission.manifest import manifest_path, read_manifest
from inat.training.checkpoint import LoopState, load_checkpoint, save_checkpoint

Damaged = st.SearchStrategy[Content]
Read = Callable[[Content], object]
Target = Callable[[Path], tuple[Damaged, Read]]


# --- text files ------------------------------------------------------------------------------


def annotations(folder: Path) -> tuple[Damaged, Read]:
    """train2018.json."""
    path = make_world(folder, counts=(2, 1), n_val=1, n_test=1, size=(8, 8)) / "train2018.json"
    return damaged_json(orjson.loads(path.read_bytes())), _then(path, lambda: _load(folder, "val"))


def places(folder: Path) -> tuple[Damaged, Read]:
    """val2018_locations.json."""
    make_world(folder, counts=(2, 1), n_val=1, n_test=1, size=(8, 8))
    ids = [row["id"] for row in orjson.loads((folder / "val2018.json").read_bytes())["images"]]
    dates = ["2016-08-10 14:02:11+00:00", "2017-01-02"]
    rows = [
        {"id": image_id, "lat": 1.5, "lon": -70, "date": date, "date_c": 0.25}
        for image_id, date in zip(ids, dates, strict=True)
    ]
    path = folder / "val2018_locations.json"
    return damaged_json(rows), _then(path, lambda: _load(folder, "val"))


def categories(folder: Path) -> tuple[Damaged, Read]:
    """categories.json."""
    make_world(folder, counts=(2, 1), n_val=1, n_test=1, size=(8, 8))
    listed = orjson.loads((folder / "train2018.json").read_bytes())["categories"]
    return damaged_json(listed), _then(folder / "categories.json", lambda: _load(folder, "train"))


def configs(folder: Path) -> tuple[Damaged, Read]:
    """A config's YAML."""
    tree = yaml.safe_load(Config().to_yaml())
    tree["stages"] = [{"epochs": 2, "new_head": True, "optim": {"lr_per_256": 0.01}}]
    words = (
        b"!!python/object/apply:os.system [ls]\n", b"!!binary ", b"!!set ", b"%TAG ! !\n", b"---\n",
        b"&a ", b"*a", b"<<: ", b"? ", b"[", b"{a: ", b"\t", b"|\n", b"- ", b": ", b"#", b"'",
        b"1:2:3", b"0x" + b"f" * 4000, b"2001-99-99", b"\xef\xbb\xbf", b"\x00",
    )  # fmt: skip
    # All of it, or a section alone: reading the whole takes eight times as long.
    contents = [
        damaged_bytes(yaml.safe_dump(part, sort_keys=False).encode(), words)
        | damaged_tree(part).map(json_bytes)
        for part in (
            tree,
            *({key: tree[key]} for key in tree if isinstance(tree[key], dict | list)),
        )
    ]
    path = folder / "config.yaml"
    return st.one_of(contents), _then(path, lambda: read_config(path).all_stages)


def submissions(folder: Path) -> tuple[Damaged, Read]:
    """A submission CSV, checked and scored."""
    make_world(folder, counts=(2, 1, 1, 1), n_val=1, n_test=2, size=(8, 8))
    path, solution = folder / "s.csv", folder / "solution.csv"
    ids = [line.split(",")[0] for line in solution.read_text().splitlines()[1:]]
    valid = "\n".join(["id,predicted", *(f"{image_id},2 10 28" for image_id in ids)]) + "\n"

    def read() -> None:
        with suppress(InatError):
            score(path, solution)
        check(path, folder)

    return _damaged_csv(valid.encode()), _then(path, read)


def packed_submissions(folder: Path) -> tuple[Damaged, Read]:
    """A submission as gzip packs it."""
    path, solution = folder / "s.csv.gz", folder / "solution.csv"
    solution.write_text("id,expected,usage\n1,2,Public\n")
    valid = gzip.compress(b"id,predicted\n1,2 10 28\n")
    return damaged_bytes(valid), _then(path, lambda: score(path, solution))


def solutions(folder: Path) -> tuple[Damaged, Read]:
    """A solution CSV."""
    path = folder / "solution.csv"
    valid = b"id,expected,usage\n7,2,Public\n12,10,Private\n"
    return _damaged_csv(valid), _then(path, lambda: read_solution(path))


def priors(folder: Path) -> tuple[Damaged, Read]:
    """A class prior's CSV."""
    path, ids = folder / "prior.csv", np.array([2, 10])
    return _damaged_csv(b"category_id,prior\n2,0.25\n10,0.75\n"), _then(
        path, lambda: read_prior(path, ids)
    )


def manifests(folder: Path) -> tuple[Damaged, Read]:
    """The manifest beside a submission."""
    path = manifest_path(folder / "s.csv")
    valid = {"competition": "inaturalist-2018", "sha256": "0" * 64, "uploads": [{"ref": 1}]}
    return damaged_json(valid), _then(path, lambda: read_manifest(folder / "s.csv"))


# --- prediction files ------------------------------------------------------------------------


def prediction_meta(folder: Path) -> tuple[Damaged, Read]:
    """meta.json of a prediction."""
    return _of_prediction(folder, "meta.json", lambda valid: damaged_json(orjson.loads(valid)))


def prediction_logits(folder: Path) -> tuple[Damaged, Read]:
    """logits.npy."""
    return _of_prediction(folder, "logits.npy", _damaged_npy)


def prediction_labels(folder: Path) -> tuple[Damaged, Read]:
    """labels.npy."""
    return _of_prediction(folder, "labels.npy", _damaged_npy)


def prediction_species(folder: Path) -> tuple[Damaged, Read]:
    """species.parquet."""
    return _of_prediction(folder, "species.parquet", _damaged_parquet)


def prediction_photos(folder: Path) -> tuple[Damaged, Read]:
    """photos.parquet."""
    return _of_prediction(folder, "photos.parquet", _damaged_parquet)


# --- packs and archives ----------------------------------------------------------------------


def pack_manifests(folder: Path) -> tuple[Damaged, Read]:
    """manifest.json of a pack."""
    path = _packed(folder) / "manifest.json"
    return damaged_json(orjson.loads(path.read_bytes())), _then(path, lambda: _unpacked(folder))


def pack_indices(folder: Path) -> tuple[Damaged, Read]:
    """index.arrow of a pack, whose manifest agrees."""
    part = _packed(folder)
    path, manifest = part / "index.arrow", part / "manifest.json"
    document = orjson.loads(manifest.read_bytes())

    def read() -> None:
        if not path.is_file() or path.stat().st_size > 2**20:
            return _unpacked(folder)
        document["index"] |= {"n_bytes": path.stat().st_size, "sha256": sha256(path)}
        manifest.write_bytes(orjson.dumps(document))
        return _unpacked(folder)

    return damaged_bytes(path.read_bytes()), _then(path, read)


def archives(folder: Path) -> tuple[Damaged, Read]:
    """A tar.gz or zip file."""
    members = {"train_val2018/a/1.jpg": b"photo", "x/train2018.json": b"{}", "README": b"read me"}
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as into, zipfile.ZipFile(packed, "w") as into_zip:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            into.addfile(info, io.BytesIO(content))
            into_zip.writestr(name, content)
    archive = Archive(
        name="a", part="a", md5=None, folder="train_val2018", files=("train2018.json",)
    )
    words = (b"../", b"/etc/", b"ustar", b"2", b"1", b"S")
    whole = damaged_bytes(tar.getvalue()[:4096], words).map(
        lambda content: gzip.compress(content, 1)
    )
    contents = (
        whole | damaged_bytes(gzip.compress(tar.getvalue())) | damaged_bytes(packed.getvalue())
    )
    (folder / "valid.tar").write_bytes(tar.getvalue())

    def read(content: Content) -> None:
        start = content if isinstance(content, bytes) else content.start
        path = folder / ("a.zip" if start[:1] == b"P" else "a.tar.gz")
        put(path, content)
        (folder / "train2018.json").unlink(missing_ok=True)
        unpack(path, archive, folder, lambda n_bytes: None)

    return contents, read


# --- photos and weights ----------------------------------------------------------------------


def photos(folder: Path) -> tuple[Damaged, Read]:
    """JPEG bytes: ordinary, progressive, grey, CMYK, turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return st.one_of(
        damaged_bytes(content, (b"\xff\xda", b"\xff\xc2", b"\xff\xd9", b"\xff\xd0"), keep=3)
        for content in (
            simplejpeg.encode_jpeg(_picture(), 90),
            _encoded("JPEG", progressive=True),
            _encoded("JPEG", mode="L"),
            _encoded("JPEG", mode="CMYK"),
            _encoded("JPEG", exif=exif),
        )
    ), _decode


def other_photos(folder: Path) -> tuple[Damaged, Read]:
    """PNG, WebP, GIF, TIFF and BMP bytes."""
    words = (b"IHDR", b"zTXt", b"acTL", b"EXIF", b"VP8X", b"ANMF")
    valid = [_encoded(form) for form in ("PNG", "WEBP", "GIF", "TIFF", "BMP")]
    valid += [_encoded("PNG", mode="P"), _encoded("TIFF", compression="tiff_lzw")]
    return st.one_of(damaged_bytes(content, words, keep=12) for content in valid), _decode


def photo_files(folder: Path) -> tuple[Damaged, Read]:
    """A photo of a data set."""
    path = folder / "a.jpg"
    source = open_photos(folder, pa.array([path.name]))
    return damaged_bytes(simplejpeg.encode_jpeg(_picture(), 90)), _then(
        path, lambda: _decode(source.read(0))
    )


def safetensors(folder: Path) -> tuple[Damaged, Read]:
    """Weights as safetensors, the header's JSON too."""
    path = folder / "w.safetensors"
    valid = save({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)})
    length = 8 + struct.unpack("<Q", valid[:8])[0]
    header = json.loads(valid[8:length])
    headers = damaged_json(header).map(lambda h: struct.pack("<Q", len(h)) + h + valid[length:])
    return headers | damaged_bytes(valid), _then(path, lambda: _weigh(path))


def torch_weights(folder: Path) -> tuple[Damaged, Read]:
    """Weights as torch.save writes them, in both of its formats."""
    path = folder / "w.pth"
    state = {"state_dict": {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}, "epoch": 1}
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save(state, new)
    contents = damaged_bytes(old.getvalue()) | damaged_bytes(new.getvalue())
    return contents, _then(path, lambda: _weigh(path))


def checkpoint_states(folder: Path) -> tuple[Damaged, Read]:
    """state.json and optimizer.json of a checkpoint."""
    network, optimizer = _checkpoint(folder)
    rest, state = folder / "c" / "optimizer.json", folder / "c" / "state.json"
    valid_rest, valid_state = rest.read_bytes(), state.read_bytes()
    contents = damaged_json(orjson.loads(valid_rest)) | damaged_json(orjson.loads(valid_state))

    def read(content: Content) -> None:
        is_rest = isinstance(content, bytes) and b"param_groups" in content
        put(rest, content if is_rest else valid_rest)
        put(state, valid_state if is_rest else content)
        load_checkpoint(folder / "c", network, None, optimizer)

    return contents, read


def run_models(folder: Path) -> tuple[Damaged, Read]:
    """model.json of a run."""
    (folder / "checkpoints" / "last").mkdir(parents=True)
    (folder / "config.yaml").write_text(Config().to_yaml())
    (folder / "environment.json").write_text("{}")
    valid = {
        "backbone": "resnet18", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
        "category_ids": [2, 10],
        "weights_source": "none", "precision": "fp32", "device": "cpu", "trained": "0" * 64,
    }  # fmt: skip

    def read() -> None:
        run = open_run(folder)
        _ = run.facts, run.made_by

    return damaged_json(valid), _then(folder / "model.json", read)


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "annotations": (annotations, places, categories),
    "configs": (configs,),
    "submissions": (submissions, packed_submissions, solutions, priors, manifests),
    "predictions": (prediction_meta, prediction_logits, prediction_labels, prediction_species,
                    prediction_photos),
    "packs": (pack_manifests, pack_indices),
    "archives": (archives,),
    "photos": (photos, other_photos, photo_files),
    "weights": (safetensors, torch_weights),
    "runs": (checkpoint_states, run_models),
}  # fmt: skip
"""By the kind of file; the inputs of a kind are shared out among its targets."""

AS_THEY_ARE = (photos, other_photos)
"""Those whose contents are all that there is; the others read a file, in whose place a pipe or 100
GB of zeros may lie."""

BOMBS: Mapping[Target, Callable[[Path], Sequence[Content]]] = {
    packed_submissions: lambda folder: csv_bombs(),
    solutions: lambda folder: row_bombs(b"id,expected,usage\n"),
    priors: lambda folder: row_bombs(b"category_id,prior\n"),
    prediction_logits: lambda folder: array_bombs(),
    prediction_labels: lambda folder: array_bombs(),
    prediction_species: lambda folder: parquet_bombs(
        (folder / "p" / "species.parquet").read_bytes()
    ),
    prediction_photos: lambda folder: parquet_bombs((folder / "p" / "photos.parquet").read_bytes()),
    archives: lambda folder: [*tar_bombs((folder / "valid.tar").read_bytes()), zip_bomb()],
    torch_weights: lambda folder: [zip_bomb()],
}
"""What takes gigabytes of memory or hours where it is believed; of the folder of a target."""


def _then(path: Path, read: Callable[[], object]) -> Read:
    """Writes the content to `path`, then reads."""

    def written(content: Content) -> object:
        put(path, content)
        return read()

    return written


def _load(root: Path, name: str) -> None:
    split = load_split(root, name)
    assert len(split.path(len(split) - 1).relative_to(root).parts)
    _ = split.fingerprint, split.class_counts


def _of_prediction(
    folder: Path, name: str, damaged: Callable[[bytes], Damaged]
) -> tuple[Damaged, Read]:
    path = make_prediction(folder / "p", np.eye(4)).path / name
    return damaged(path.read_bytes()), _then(path, lambda: _use(folder / "p"))


def _use(path: Path) -> None:
    found = read_prediction(path)
    _ = found.logits_prior, found.train_counts, [found.logits[rows] for rows in found.chunks(64)]
    write(found, path.parent / "s.csv")


def _packed(folder: Path) -> Path:
    make_world(folder / "root", counts=(2, 1), n_val=1, n_test=1, size=(8, 8))
    pack_photos(folder / "root", folder / "pack", workers=0)
    return next((folder / "pack" / "photos").iterdir())


def _unpacked(folder: Path) -> None:
    names = load_split(folder / "root", "train").file_names
    packed = PackedPhotos(folder / "pack", names)
    for index in range(len(packed)):
        try:
            packed.read(index)
        except BadPhoto:
            continue


def _decode(content: bytes) -> None:
    header = read_header(content)
    try:
        decode(header, [Box(0, 0, *header.size)], [8])
    except BadPhoto:
        decode_whole(header, 1)


def _weigh(path: Path) -> None:
    for name, tensor in read_weights(path).items():
        assert name.rpartition(".")[0] is not None
        torch.empty(tensor.shape).copy_(tensor)


def _checkpoint(folder: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(folder / "c", LoopState(1, 5), network, None, optimizer)
    return network, optimizer


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def _encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_picture()).convert(mode).save(file, form, **options)
    return file.getvalue()


def _damaged_csv(valid: bytes) -> Damaged:
    words = (b",", b'"', b"\n", b"\r", b"\r\n", b" ", b"\xef\xbb\xbf", b"-1", b"nan", b"1e9",
             b"9" * 30, b"\n\n", b"id,", b'""', b"\xc3", "٣".encode(), b"=1+1", b"\\")  # fmt: skip
    return damaged_bytes(valid, words)


@st.composite
def _npy_headers(draw: st.DrawFn, valid: bytes) -> bytes:
    """The array's bytes behind a header of another dtype, order or shape."""
    start = 10 + struct.unpack("<H", valid[8:10])[0]
    dtypes = st.sampled_from(
        ["<f2", ">f2", "<i8", ">i8", "|O", "|V8", "<U9", "|b1", "<c16", "<M8[ns]", "i8, O", "|S0",
         [("a", "<i8")], "", None, "<f" + "9" * 30]
    )  # fmt: skip
    sides = st.sampled_from([0, 1, 4, -1, 2**31, 2**62, 2**64, True, 1.5, None, "4"])
    shapes = st.lists(sides, max_size=4).map(tuple) | st.sampled_from([None, 4, [4, 4], (1,) * 70])
    fields = {
        "descr": draw(dtypes),
        "fortran_order": draw(st.sampled_from([False, True, 1, None])),
        "shape": draw(shapes),
    }
    text = repr(fields) if draw(st.booleans()) else repr(fields)[:-1] + ", 'more': [" * 90
    header = (text + "\n").encode()
    return valid[:8] + struct.pack("<H", len(header)) + header + valid[start:]


def _damaged_npy(valid: bytes) -> Damaged:
    words = (b"(4, 4)", b"(-4,)", b"(99999999999,)", b"True", b"'|O'", b"'>f2'", b"((((", b"PK\3\4")
    return _npy_headers(valid) | damaged_bytes(valid, words)


@st.composite
def _other_columns(draw: st.DrawFn, valid: bytes) -> bytes:
    """The table with a column of other values, or other metadata."""
    table = pq.read_table(io.BytesIO(valid))
    at = draw(st.integers(0, table.num_columns - 1))
    values = [draw(st.sampled_from(VALUES))] * table.num_rows
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError):
        column = pa.nulls(table.num_rows)
    try:
        table = table.set_column(at, table.column_names[at], column)
        if draw(st.booleans()):
            table = table.replace_schema_metadata(
                {b"pandas": draw(damaged_json({"columns": [], "index_columns": []}))}
            )
        if draw(st.booleans()):
            table = table.append_column(table.column_names[at], column)
        sink = io.BytesIO()
        pq.write_table(table.slice(0, draw(st.integers(0, table.num_rows))), sink)
    except (pa.ArrowException, ValueError):
        return valid
    return sink.getvalue()


def _damaged_parquet(valid: bytes) -> Damaged:
    return _other_columns(valid) | damaged_bytes(valid)

"""What a stranger may send in a file's place: pipes, devices, files of 100 GB that take no room,
and those that unpack to gigabytes. Each is refused at once, by name, or is a bad photo."""

import gzip
import io
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damage import array_bombs, ending, memory_below, padded, put, row_bombs, tar_bombs, zip_bomb
from predictions import make_prediction
from worlds import make_world

from inat import submission
from inat.acquire.unpacking import unpack
from inat.acquire.verify import verify
from inat.config.reading import read_config
from inat.core.arrays import MOST_ROWS, read_array, read_csv, read_table
from inat.core.competitions import Archive
from inat.core.errors import InputError, WorldError
from inat.core.files import UnfitFile, damaged_files, open_file, read_file, read_json, write_json
from inat.core.priors import read_prior
from inat.evaluation.solution import read_solution
from inat.models.weights import read_weights
from inat.photos.decode import BadPhoto
from inat.photos.sources import open_photos
from inat.predictions.file import read_prediction
from inat.runs.listing import list_runs
from inat.submission.manifest import read_manifest

Make = Callable[[Path], object]


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's path has 107 letters at most
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * 2**30)


NO_FILES: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a socket": bound_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}
STRANGE: dict[str, Make] = {**NO_FILES, "107,374,182,400 bytes": sparse}


def test_a_huge_file_that_a_list_of_checksums_names_is_not_hashed(tmp_path: Path) -> None:
    sparse(tmp_path / "model.safetensors")
    write_json(tmp_path / "checksums.json", {"model.safetensors": "0" * 64})
    with ending(), pytest.raises(UnfitFile, match=r"model\.safetensors: .*107,374,182,400 bytes"):
        damaged_files(tmp_path)


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_not_a_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    NO_FILES[kind](path)
    with ending(), pytest.raises(UnfitFile) as caught:
        open_file(path)
    assert str(caught.value) == f"{path}: {kind}, not a file; give another"
    assert isinstance(caught.value, InputError)


def test_a_file_is_opened_whatever_links_lead_to_it_and_up_to_the_stated_size(
    tmp_path: Path,
) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    assert read_file(tmp_path / "link", 3) == b"abc"
    with pytest.raises(UnfitFile, match="3 bytes, more than the 2 of such a file"):
        read_file(tmp_path / "x", 2)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "y")


def test_no_more_is_read_than_a_file_says_it_has() -> None:
    # Files of /proc say 0 and give what they like.
    assert os.stat("/proc/self/status").st_size == 0  # noqa: PTH116
    assert read_file("/proc/self/status") == b""


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "json": ("a.json", read_json),
    "config": ("c.yaml", read_config),
    "prior": ("p.csv", lambda path: read_prior(path, np.array([2, 10]))),
    "solution": ("s.csv", read_solution),
    "csv": ("s.csv", lambda path: read_csv(path, ["id"])),
    "array": ("a.npy", lambda path: read_array(path, "make it again", np.int64, ndim=1)),
    "table": ("a.parquet", lambda path: read_table(path, "make it again", {})),
    "weights": ("w.safetensors", read_weights),
    "torch weights": ("w.pth", read_weights),
    "submission": ("s.csv", lambda path: submission.score(path, path.parent / "solution.csv")),
    "packed submission": (
        "s.csv.gz", lambda path: submission.score(path, path.parent / "solution.csv")
    ),
    "manifest": ("s.manifest.json", lambda path: read_manifest(path.parent / "s.csv")),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_refuses_it_by_name(tmp_path: Path, reader: str, kind: str) -> None:
    name, read = READERS[reader]
    (tmp_path / "solution.csv").write_text("id,expected,usage\n1,2,Public\n")
    STRANGE[kind](tmp_path / name)
    with ending(), pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


PARTS = ("logits.npy", "ids.npy", "labels.npy", "species.parquet", "photos.parquet", "meta.json")


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("part", [*PARTS, "chosen_on.npy"])
def test_a_prediction_with_it_is_refused(tmp_path: Path, part: str, kind: str) -> None:
    path = make_prediction(tmp_path / "p", np.eye(4)).path
    (path / part).unlink(missing_ok=True)
    STRANGE[kind](path / part)
    with ending(), pytest.raises(InputError) as caught:
        read_prediction(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("part", ["config.yaml", "model.json", "metrics.jsonl", "state.json"])
def test_a_run_with_it_is_one_row_of_the_list(tmp_path: Path, part: str, kind: str) -> None:
    run = tmp_path / "runs" / "a"
    state = run / "checkpoints" / "last"
    state.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n")
    (run / "environment.json").write_text("{}")
    path = (state if part == "state.json" else run) / part
    path.unlink(missing_ok=True)
    STRANGE[kind](path)
    with ending():
        table = list_runs(tmp_path / "runs")
    if part == "config.yaml" and kind in NO_FILES:
        assert table.empty  # it is no run
    else:
        assert table["run"].tolist() == [str(run)]
        assert kind in NO_FILES or kind in table["note"][0]


# --- photos ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STRANGE)
def test_a_photo_in_whose_place_it_is_is_bad_and_the_others_are_looked_at(
    tmp_path: Path, kind: str
) -> None:
    root = make_world(tmp_path / "data", counts=(2, 1), n_val=1, n_test=1, size=(8, 8))
    photo = next(root.glob("test2018/*.jpg"))
    photo.unlink()
    STRANGE[kind](photo)
    names = pa.array([str(photo.relative_to(root))])
    with ending(), pytest.raises(BadPhoto, match=kind if kind != "a device" else "leads out"):
        open_photos(root, names).read(0)
    with ending():
        verified = verify(root, workers=0)
    assert [finding.file_name for finding in verified.findings.bad] == [names[0].as_py()]
    assert verified.n_photos > 1


@pytest.mark.parametrize("change", ["copied", "gone", "of other types"])
def test_a_journal_that_came_with_the_photos_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root = make_world(tmp_path / "data", counts=(2, 1), n_val=1, n_test=1, size=(8, 8))
    written = {}

    def kept(path: Path, content: object, **options: bool) -> None:
        written[path.name] = orjson.dumps(content)

    with monkeypatch.context() as patched:
        patched.setattr("inat.acquire.verify.write_json", kept)
        whole = verify(root, workers=0)
    photo = next(root.glob("test2018/*.jpg"))
    before = photo.stat()
    content = photo.read_bytes()
    photo.unlink()
    if change != "gone":
        photo.write_bytes(b"\0" * len(content))
        os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    journal = written[".verify.json.journal"]
    if change == "of other types":
        journal = journal.replace(b'"contents":[', b'"contents":["a",')
    (root / ".verify.json.journal").write_bytes(journal)
    findings = verify(root, workers=0).findings
    assert not whole.findings.bad
    assert len(findings.missing if change == "gone" else findings.bad) == 1


# --- what unpacks to more than it is ---------------------------------------------------------


def test_a_table_of_more_rows_than_photos_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_prediction(tmp_path / "p", np.eye(4), [0, 1, 2, 3]).path
    names = {"id": pa.int64(), "file_name": pa.string(), "role": pa.string()}
    rows = pa.table({name: pa.nulls(10**6, kind) for name, kind in names.items()})
    with pq.ParquetWriter(path / "photos.parquet", rows.schema) as writer:
        for _ in range(MOST_ROWS // 10**6 + 1):
            writer.write_table(rows)
    assert (path / "photos.parquet").stat().st_size < 10**5

    def unpacked(file: pq.ParquetFile) -> pa.Table:
        assert file.metadata.num_rows == 4
        return whole(file)

    whole = pq.ParquetFile.read
    monkeypatch.setattr(pq.ParquetFile, "read", unpacked)
    with pytest.raises(InputError, match=r"photos\.parquet: has 11,000,000 rows, not 4; predict"):
        read_prediction(path)
    with pytest.raises(InputError, match="has 11,000,000 rows, more than 10,000,000; again"):
        read_table(path / "photos.parquet", "again", {})


def test_a_table_of_one_long_text_many_times_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    once = pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), ["x" * 10**6])
    pq.write_table(pa.table({"name": once}), path, store_schema=False)
    assert path.stat().st_size < 10**5
    with pytest.raises(InputError, match=r"unpacks to 2,00.* bytes, too many; again"):
        read_table(path, "again", {"name": "texts"})


@pytest.mark.parametrize("values", [["a", "b", "a"], [1, 2, 3]])
def test_an_honest_table_is_read_as_it_was_written(tmp_path: Path, values: list) -> None:
    table = pd.DataFrame({"values": values, "n": [3, 2, 1]})
    table.to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet", "again", {}), table)


def test_a_submission_that_unpacks_to_more_than_one_can_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "solution.csv").write_text("id,expected,usage\n1,2,Public\n")
    path = tmp_path / "s.csv.gz"
    path.write_bytes(gzip.compress(b"\n" * 2**20))
    monkeypatch.setattr("inat.submission.rows.LARGEST_TEXT", 2**20 - 1)
    with pytest.raises(InputError, match="unpacks to more than the 1,048,575 bytes"):
        submission.score(path, tmp_path / "solution.csv")


def test_an_array_with_bytes_behind_it_is_refused(tmp_path: Path) -> None:
    path = make_prediction(tmp_path / "p", np.eye(4)).path
    with (path / "logits.npy").open("ab") as file:
        file.truncate(100 * 2**30)
    with pytest.raises(InputError, match=r"logits\.npy: no array, or cut off \(there is more"):
        read_prediction(path)


def test_more_chosen_photos_than_there_can_be_are_refused_before_they_are_read(
    tmp_path: Path,
) -> None:
    path = make_prediction(tmp_path / "p", np.eye(4)).path
    array_bombs()[-1].make(path / "chosen_on.npy")
    with memory_below(2**28), pytest.raises(InputError, match=r"chosen_on\.npy: .*too many"):
        read_prediction(path)


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_torch_weights_with_a_compressed_member_are_refused_before_it_is_unpacked(
    tmp_path: Path, member: str
) -> None:
    honest, path = tmp_path / "honest.pth", tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2**26)}, honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w") as packed:
        for info in source.infolist():
            kind = zipfile.ZIP_DEFLATED if info.filename.endswith(member) else zipfile.ZIP_STORED
            packed.writestr(info.filename, source.read(info), kind, 1)
    assert len(read_weights(honest)["a"]) == 2**26
    with pytest.raises(InputError, match="it is compressed and unpacks to 268,"):
        read_weights(path)


def test_torch_weights_with_an_endless_list_of_members_are_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    zip_bomb().make(tmp_path / "w.pth")
    with memory_below(2**28), pytest.raises(InputError, match=r"w\.pth: .*members of 4,294,967"):
        read_weights(tmp_path / "w.pth")


def test_a_packed_submission_with_zeros_between_its_streams_is_refused(tmp_path: Path) -> None:
    (tmp_path / "solution.csv").write_text("id,expected,usage\n1,2,Public\n")
    path = tmp_path / "s.csv.gz"
    padded(gzip.compress(b"id,predicted\n1,2 10 28\n"), 2**27).make(path)
    with pytest.raises(InputError, match=r"s\.csv\.gz: not compressed .*262,144 bytes of padding"):
        submission.score(path, tmp_path / "solution.csv")


def test_a_csv_of_millions_of_rows_is_refused_before_it_takes_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(row_bombs(b"a,b,c\n")[0])
    with memory_below(2**29), pytest.raises(InputError, match="has more than 1,000,000 rows"):
        read_csv(path, ["a", "b", "c"])


@pytest.mark.parametrize("at", range(4))
def test_an_archive_that_unpacks_to_gigabytes_of_no_member_is_refused(
    tmp_path: Path, at: int
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a/1.jpg"))
    path = tmp_path / "a.tar.gz"
    archive = Archive(name="a", part="a", md5=None, folder="a", files=())
    path.write_bytes(gzip.compress(file.getvalue() + bytes(2**20)))  # as tar fills its blocks
    assert unpack(path, archive, tmp_path, lambda n_bytes: None) == 1
    put(path, tar_bombs(file.getvalue())[at])
    reason = "4,194,304 bytes that belong to no member" if at in (0, 3) else "262,144 bytes of pad"
    with ending(), memory_below(2**28), pytest.raises(WorldError, match=f"more than {reason}"):
        unpack(path, archive, tmp_path, lambda n_bytes: None)


def test_a_zip_file_with_an_endless_list_of_members_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    zip_bomb().make(tmp_path / "a.zip")
    archive = Archive(name="a", part="a", md5=None, folder="a", files=())
    with memory_below(2**28), pytest.raises(WorldError, match="members of 4,294,967,294 bytes"):
        unpack(tmp_path / "a.zip", archive, tmp_path, lambda n_bytes: None)


# --- what a submission's manifest hashes -----------------------------------------------------


@pytest.mark.parametrize("member", ["/proc", "/etc/ssl", "/dev", "a pipe", "a file more", "gone"])
def test_of_a_member_no_more_is_hashed_than_the_files_of_a_prediction(
    tmp_path: Path, member: str
) -> None:
    folder = make_prediction(tmp_path / "m", np.eye(4)).path
    if member == "a pipe":
        (folder / "meta.json").unlink()
        os.mkfifo(folder / "meta.json")
    elif member == "a file more":
        sparse(folder / "private")
    elif member == "gone":
        folder.rename(tmp_path / "elsewhere")
    named = member if member.startswith("/") else str(folder)
    ensemble = make_prediction(tmp_path / "p", np.eye(4), members=[{"prediction": named}])
    with ending():
        path = submission.write(ensemble, tmp_path / "s.csv")
    (found,) = read_manifest(path)["members"]
    if member == "a file more":
        assert set(found["files"]) == set(PARTS)
    else:
        assert found == {"prediction": named, "files": None}

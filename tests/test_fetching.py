"""The network breaks; what becomes of every fault on the way."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from mirrors import (
    DATE,
    PHOTOS,
    SLUG,
    TRAIN,
    Mirror,
    fault,
    fetch,
    give_up,
    photo,
    serving,
    tarred,
    tree,
)

from inat.acquire import download as downloading
from inat.acquire import fetching
from inat.core.competitions import COMPETITIONS
from inat.core.files import read_json


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving(monkeypatch) as server:
        yield server


def test_a_cut_connection_goes_on_with_exactly_the_missing_bytes(
    tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1), photo(2))})
    mirror.cuts[PHOTOS] = [2000, 1]
    assert fetch(tmp_path).n_files == 2
    etag = mirror.etag(PHOTOS)
    assert mirror.asked() == [
        f"HEAD {PHOTOS}",
        f"GET {PHOTOS}",
        f"GET {PHOTOS} bytes=2000- {etag}",
        f"GET {PHOTOS} bytes=2001- {etag}",
    ]
    line = f"{mirror.url}{PHOTOS}: the connection was cut; trying again in 0 s\n"
    assert capsys.readouterr().err == 2 * line
    assert tree(tmp_path) == dict([photo(1), photo(2)])


def test_a_later_call_goes_on_with_exactly_the_missing_bytes(
    tmp_path: Path, mirror: Mirror
) -> None:
    content = tarred(photo(1), photo(2))
    mirror.offer({PHOTOS: content})
    assert give_up(tmp_path, mirror, 2000) == (
        f"{mirror.url}{PHOTOS}: the connection was cut; gave up after 3 tries; what came is kept: "
        "the same command goes on from there"
    )
    assert (tmp_path / (PHOTOS + ".part")).read_bytes() == content[:2000]
    assert not (tmp_path / "download.json").exists()
    mirror.cuts.clear()
    mirror.asked()
    assert fetch(tmp_path).n_files == 2
    assert mirror.asked() == [
        f"HEAD {PHOTOS}",
        f"GET {PHOTOS} bytes=2000- {mirror.etag(PHOTOS)}",
    ]
    assert tree(tmp_path) == dict([photo(1), photo(2)])


def test_a_part_that_is_whole_is_not_asked_for(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    give_up(tmp_path, mirror, 1000)
    (tmp_path / (PHOTOS + ".part")).write_bytes(mirror.files[PHOTOS])
    mirror.asked()
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked() == [f"HEAD {PHOTOS}"]


def test_patience_starts_anew_whenever_more_bytes_have_come(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.cuts[PHOTOS] = [100, 100, 0, 100, 0, 100, 0]  # never three cuts in a row without a byte
    assert fetch(tmp_path).n_files == 1


def test_a_server_that_ignores_ranges_sends_it_all_again(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1), photo(2))})
    mirror.ranges = False
    mirror.cuts[PHOTOS] = [2000, 1500]
    assert fetch(tmp_path).n_files == 2
    assert tree(tmp_path) == dict([photo(1), photo(2)])
    # Restarts that get no further than before count as no progress.
    (tmp_path / "download.json").unlink()
    mirror.cuts[PHOTOS] = [2000, 2000, 2000]
    assert "gave up after 3 tries" in fault(lambda: fetch(tmp_path))


def test_another_version_on_the_server_starts_from_the_first_byte(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    give_up(tmp_path, mirror, 1000)
    mirror.offer({PHOTOS: tarred(photo(2))})
    mirror.cuts.clear()
    mirror.asked()
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked() == [f"HEAD {PHOTOS}", f"GET {PHOTOS}"]
    assert tree(tmp_path) == dict([photo(2)])


@pytest.mark.parametrize("header", ["ETag", "Last-Modified", "Content-Length"])
def test_each_mark_of_a_version_counts(tmp_path: Path, mirror: Mirror, header: str) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    give_up(tmp_path, mirror, 1000)
    note = tmp_path / (PHOTOS + ".part.json")
    key = {"ETag": "etag", "Last-Modified": "last_modified", "Content-Length": "size"}[header]
    noted = read_json(note)
    noted[key] = 1 if key == "size" else "other"
    note.write_bytes(orjson.dumps(noted))
    mirror.cuts.clear()
    mirror.asked()
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked() == [f"HEAD {PHOTOS}", f"GET {PHOTOS}"]


def test_a_file_that_changes_under_way_starts_from_the_first_byte(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(2))})
    new = mirror.files[PHOTOS]
    mirror.files[PHOTOS] = tarred(photo(1))
    first = mirror.etag(PHOTOS)
    mirror.cuts[PHOTOS] = [1000]

    def change(asked: str) -> None:
        if mirror.log[-1].startswith(f"GET {PHOTOS} bytes"):
            mirror.files[PHOTOS] = new

    mirror.before = change
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked()[2:] == [f"GET {PHOTOS} bytes=1000- {first}"]
    assert tree(tmp_path) == dict([photo(2)])


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": 'W/"abc"'}, " " + DATE),  # a weak tag does not promise the same bytes
        ({"ETag": None}, " " + DATE),
        ({"ETag": None, "Last-Modified": None}, ""),
        ({"ETag": 'W/"abc"', "Last-Modified": None}, ""),
    ],
)
def test_if_range_takes_what_the_server_has(
    tmp_path: Path,
    mirror: Mirror,
    headers: dict[str, str | None],
    condition: str,
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.headers = headers
    mirror.cuts[PHOTOS] = [1000]
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked()[2:] == [f"GET {PHOTOS} bytes=1000-{condition}"]


@pytest.mark.parametrize("stated", ["bytes 999-3000/3001", "bytes 1000-2000/2001", "rubbish"])
def test_another_stretch_than_was_asked_for_is_not_appended(
    tmp_path: Path, mirror: Mirror, stated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.cuts[PHOTOS] = [1000]
    mirror.headers = {"Content-Range": stated}
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked()[1:] == [
        f"GET {PHOTOS}",
        f"GET {PHOTOS} bytes=1000- {mirror.etag(PHOTOS)}",
        f"GET {PHOTOS}",
    ]
    assert capsys.readouterr().err.splitlines()[1] == (
        f"{mirror.url}{PHOTOS}: it answered 206 Partial Content to a request for the rest; "
        "trying again in 0 s"
    )


def test_a_refused_range_starts_from_the_first_byte(
    tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    give_up(tmp_path, mirror, 1000)
    mirror.cuts.clear()
    mirror.statuses[f"GET {PHOTOS}"] = [416]
    mirror.asked()
    capsys.readouterr()
    assert fetch(tmp_path).n_files == 1
    assert mirror.asked()[1:] == [
        f"GET {PHOTOS} bytes=1000- {mirror.etag(PHOTOS)}",
        f"GET {PHOTOS}",
    ]
    assert capsys.readouterr().err == (
        f"{mirror.url}{PHOTOS}: it answered 416 Requested Range Not Satisfiable to a request for "
        "the rest; trying again in 0 s\n"
    )


def test_a_server_that_tells_no_length_is_believed_at_the_end(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "_refuse_full_disk", lambda *_, **__: None)
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.headers = {"Content-Length": None}
    assert fetch(tmp_path).n_files == 1
    (tmp_path / "download.json").unlink()
    mirror.cuts[PHOTOS] = [1000]  # and the MD5 is what tells that it was cut
    assert "its MD5 is" in fault(lambda: fetch(tmp_path))


def test_bytes_are_kept_as_they_lie_on_the_server(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.headers = {"Content-Encoding": "gzip"}  # as servers say of every .gz
    assert fetch(tmp_path).n_files == 1


def test_a_wrong_md5_removes_what_came(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    expected = hashlib.md5(mirror.files[PHOTOS]).hexdigest()
    mirror.files[PHOTOS] = bytearray(mirror.files[PHOTOS])
    mirror.files[PHOTOS][1500] ^= 1
    actual = hashlib.md5(mirror.files[PHOTOS]).hexdigest()
    assert fault(lambda: fetch(tmp_path)) == (
        f"{mirror.url}{PHOTOS}: its MD5 is {actual}, and {expected} was published; what came was "
        "removed: run the same command again, or give another --base-url"
    )
    assert tree(tmp_path) == {}
    assert not (tmp_path / "download.json").exists()


def test_the_md5_is_also_that_of_the_bytes_of_earlier_calls(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    give_up(tmp_path, mirror, 1000)
    part = tmp_path / (PHOTOS + ".part")
    part.write_bytes(b"x" + part.read_bytes()[1:])
    mirror.cuts.clear()
    assert "its MD5 is" in fault(lambda: fetch(tmp_path))
    assert tree(tmp_path) == {}
    assert fetch(tmp_path).n_files == 1


def test_an_archive_of_ones_own_with_a_wrong_md5_is_left_alone(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    expected = hashlib.md5(mirror.files[PHOTOS]).hexdigest()
    (tmp_path / PHOTOS).write_bytes(b"mine")
    actual = hashlib.md5(b"mine").hexdigest()
    assert fault(lambda: fetch(tmp_path)) == (
        f"{tmp_path / PHOTOS}: its MD5 is {actual}, and {expected} was published; remove it, and "
        "the same command fetches it again"
    )
    assert (tmp_path / PHOTOS).read_bytes() == b"mine"


def test_a_404_is_found_before_anything_is_fetched(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer({TRAIN: tarred(("train2018.json", b"{}")), PHOTOS: tarred(photo(1))})
    del mirror.files[PHOTOS]
    assert fault(lambda: fetch(tmp_path)) == (
        f"{mirror.url}{PHOTOS}: the server answered 404 Not Found; look at the address, or give "
        "that of a mirror (--base-url)"
    )
    assert mirror.asked() == [f"HEAD {TRAIN}", f"HEAD {PHOTOS}"]  # and it is not asked twice
    assert tree(tmp_path) == {}


def test_a_server_in_trouble_is_asked_again(
    tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.statuses = {f"HEAD {PHOTOS}": [500], f"GET {PHOTOS}": [503, 500]}
    assert fetch(tmp_path).n_files == 1
    answers = ("500 Internal Server Error", "503 Service Unavailable", "500 Internal Server Error")
    assert capsys.readouterr().err.splitlines() == [
        f"{mirror.url}{PHOTOS}: the server answered {answer}; trying again in 0 s"
        for answer in answers
    ]
    (tmp_path / "download.json").unlink()
    mirror.statuses = {f"HEAD {PHOTOS}": [500, 500, 502]}
    assert fault(lambda: fetch(tmp_path)) == (
        f"{mirror.url}{PHOTOS}: the server answered 502 Bad Gateway; gave up after 3 tries; what "
        "came is kept: the same command goes on from there"
    )


def test_the_pauses_grow_and_are_announced(
    tmp_path: Path,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(fetching, "PAUSES", (1.0, 2.0, 4.0, 8.0, 16.0))
    monkeypatch.setattr(fetching.time, "sleep", slept.append)
    mirror.offer({PHOTOS: tarred(photo(1))})
    mirror.statuses = {f"HEAD {PHOTOS}": [503] * 6}
    assert "gave up after 6 tries" in fault(lambda: fetch(tmp_path))
    assert slept == [1, 2, 4, 8, 16]
    assert "; trying again in 16 s\n" in capsys.readouterr().err


def test_a_server_that_falls_silent_is_given_up(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.05)
    ended = threading.Event()
    mirror.before = lambda asked: ended.wait(10)
    try:
        assert fault(lambda: fetch(tmp_path)) == (
            f"{mirror.url}{PHOTOS}: nothing came for 0.05 s; gave up after 3 tries; what came is "
            "kept: the same command goes on from there"
        )
    finally:
        ended.set()


def test_a_server_that_is_not_there_is_named_with_the_reason(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/a"
    assert fault(lambda: fetch(tmp_path, base_url=url)) == (
        f"{url}/{PHOTOS}: Connection refused; gave up after 3 tries; what came is kept: the same "
        "command goes on from there"
    )


def test_a_mirror_takes_the_place_of_the_organisers_address(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.offer({PHOTOS: tarred(photo(1))})
    monkeypatch.setitem(
        COMPETITIONS, SLUG, replace(COMPETITIONS[SLUG], download_url="http://127.0.0.1:9/")
    )
    assert fetch(tmp_path, base_url=mirror.url.rstrip("/")).n_files == 1
    assert read_json(tmp_path / "download.json")["archives"][PHOTOS]["url"] == mirror.url + PHOTOS

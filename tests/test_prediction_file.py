"""Prediction files: what is written is read, whole or not at all, and damage is told in a line."""

import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from predictions import make_prediction

from inat.cli.app import main
from inat.core.errors import InatError, InputError
from inat.core.files import read_json, write_json
from inat.evaluation import evaluate
from inat.posthoc.adjust import adjust
from inat.posthoc.ensemble import ensemble
from inat.predictions import file as prediction_file
from inat.predictions.file import read_prediction, store, write_prediction
from inat.predictions.meta import PredictionMeta
from inat.submission import write

PARTS = {"logits.npy", "ids.npy", "labels.npy", "species.parquet", "photos.parquet", "meta.json"}
LOGITS = np.random.default_rng(0).normal(0, 4, (5, 4)).astype(np.float32)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- round trip ------------------------------------------------------------------------------


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "p"
    labels, counts = [0, 3, -1, 2, 2], [30, 8, 3, 2]
    make_prediction(path, LOGITS, labels, counts, ids=[9, 2, 40, 1, 7], chosen={"tau": "holdout"})
    found = read_prediction(path)
    assert {part.name for part in path.iterdir()} == PARTS
    assert found.logits.dtype == np.float16
    assert isinstance(found.logits, np.memmap)
    assert found.logits.tobytes() == store(LOGITS).tobytes()
    assert found.ids.tolist() == found.photos["id"].tolist() == [9, 2, 40, 1, 7]
    assert found.labels.tolist() == labels
    assert found.category_ids.tolist() == [2, 10, 28, 56]
    assert found.train_counts.tolist() == counts
    assert (len(found), found.n_classes) == (5, 4)
    assert found.logits_prior is not None
    assert found.logits_prior.tolist() == [n / 43 for n in counts]
    assert read_json(found.path / "meta.json")["format"] == 1
    assert found.meta.chosen == {"tau": "holdout"}


def test_the_same_prediction_has_the_same_bytes(tmp_path: Path) -> None:
    make_prediction(tmp_path / "a", LOGITS)
    make_prediction(tmp_path / "b", LOGITS)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_float32_logits_are_kept_bit_for_bit_below_their_row_maximum(tmp_path: Path) -> None:
    make_prediction(tmp_path / "p", LOGITS, dtype=np.float32)
    found = read_prediction(tmp_path / "p")
    assert found.logits.dtype == np.float32
    assert isinstance(found.logits, np.memmap)
    assert found.logits.tolist() == (LOGITS - LOGITS.max(axis=1, keepdims=True)).tolist()


def test_an_unknown_prior_is_none(tmp_path: Path) -> None:
    assert make_prediction(tmp_path / "p", LOGITS, logits_prior=None).logits_prior is None


def test_chunks_cover_every_image_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS)
    assert list(prediction.chunks()) == [slice(0, 5)]
    monkeypatch.setattr(prediction_file, "CHUNK_BYTES", 2 * 4 * 4 + 1)
    assert list(prediction.chunks()) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    monkeypatch.setattr(prediction_file, "CHUNK_BYTES", 1)
    assert len(list(prediction.chunks())) == 5


# --- float16 ---------------------------------------------------------------------------------


def test_stored_logits_have_a_row_maximum_of_exactly_0_and_never_overflow() -> None:
    logits = np.array([[1e5, 0.0, 1e5], [-1e9, 3.0, 2.5], [-np.inf, 1.0, 2.0]], np.float32)
    before = logits.copy()
    stored = store(logits)
    assert stored.dtype == np.float16
    assert stored.tolist() == [[0, -65504, 0], [-65504, 0, -0.5], [-65504, -1, 0]]
    assert (logits == before).all()


def test_stored_logits_keep_the_order_of_the_first_three() -> None:
    logits = 5 * np.random.default_rng(1).normal(size=(100, 50)).astype(np.float32)
    stored = store(logits).astype(np.float32)
    assert (stored.max(axis=1) == 0).all()
    for row, kept in zip(logits, stored, strict=True):
        first, second, third = np.argsort(-row, kind="stable")[:3]
        assert kept[first] >= kept[second] >= kept[third] >= np.sort(kept)[-3]
        # Two logits can only become equal where they lie within one step of float16.
        step = 2 * np.spacing(np.float16(abs(kept[third])))
        assert kept[first] > kept[second] or row[first] - row[second] < step
        assert kept[second] > kept[third] or row[second] - row[third] < step


def test_stored_logits_are_within_half_a_step_of_float16_below_the_best() -> None:
    logits = np.random.default_rng(2).normal(100, 4, (30, 20)).astype(np.float32)
    below = logits - logits.max(axis=1, keepdims=True)
    stored = store(logits)
    steps = np.spacing(np.abs(stored)).astype(np.float32)
    assert (np.abs(stored.astype(np.float32) - below) <= 0.5 * steps + 1e-9).all()


# --- half-written ----------------------------------------------------------------------------


def write_half(path: Path) -> None:
    table = pd.DataFrame({"category_id": [2, 10], "name": ["a", "b"], "train_count": [1, 1]})
    ids = np.array([1, 2, 3])
    with write_prediction(
        path,
        ids=ids,
        labels=ids,
        species=table,
        photos=table,
        meta=PredictionMeta(competition="a", split="test", logits_prior=None, chosen={}),
    ) as rows:
        rows[0] = 1
        raise KeyboardInterrupt


def test_a_prediction_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_that_is_interrupted_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    make_prediction(tmp_path / "p", LOGITS)
    before = all_bytes(tmp_path / "p")
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "p")
    assert all_bytes(tmp_path / "p") == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


# --- damage ----------------------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def cut(name: str, by: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-by])

    return damage


def put(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(content)

    return damage


def save(name: str, values: Any, dtype: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path / name, np.array(values, dtype), allow_pickle=True)


def without(name: str, column: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        pd.read_parquet(path / name).drop(columns=column).to_parquet(path / name)

    return damage


def column(name: str, column: str, values: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        pd.read_parquet(path / name).assign(**{column: values}).to_parquet(path / name)

    return damage


def header(name: str, **fields: Any) -> Callable[[Path], None]:
    """The bytes of the array behind another header."""

    def damage(path: Path) -> None:
        array = np.load(path / name)
        said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | fields
        with (path / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, said)
            file.write(array.tobytes())

    return damage


def meta(**fields: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        write_json(path / "meta.json", read_json(path / "meta.json") | fields)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("meta.json"), "{p}: no prediction file (a folder with logits.npy and meta.json)"),
        (put("meta.json", b"[1]"), "{p}/meta.json: not of format 1; predict again"),
        (meta(format=2), "{p}/meta.json: not of format 1; predict again"),
        (meta(format="1"), "{p}/meta.json: not of format 1; predict again"),
        (cut("meta.json", 9), "{p}/meta.json: not JSON, or cut off: .+; fetch or write the .*"),
        (remove("logits.npy"), "{p}/logits.npy: there is no such file; predict again"),
        (cut("logits.npy", 1), "{p}/logits.npy: no array, or cut off (.+); predict again"),
        (cut("logits.npy", 100), "{p}/logits.npy: no array, or cut off (.+); predict again"),
        (put("logits.npy", b""), "{p}/logits.npy: no array, or cut off (.+); predict again"),
        (put("ids.npy", b"no array"), "{p}/ids.npy: no array, or cut off (.+); predict again"),
        (cut("ids.npy", 3), "{p}/ids.npy: no array, or cut off (.+); predict again"),
        (remove("ids.npy"), "{p}/ids.npy: there is no such file; predict again"),
        (save("logits.npy", LOGITS, np.float64),
         "{p}/logits.npy: holds float64, not float16 or float32; predict again"),
        (save("labels.npy", [0, 1, 2, 3, 0], np.int32),
         "{p}/labels.npy: holds int32, not int64; predict again"),
        (save("labels.npy", ["0", "1"], str), "{p}/labels.npy: holds <U1, not int64; predict .*"),
        (remove("species.parquet"), "{p}/species.parquet: there is no such file; predict again"),
        (cut("species.parquet", 20), "{p}/species.parquet: no table, or cut off (.+); predict .*"),
        (put("photos.parquet", b"id,role\n"), "{p}/photos.parquet: no table, or cut off (.+); .*"),
        (without("species.parquet", "train_count"),
         "{p}/species.parquet: has no column train_count; predict again"),
        (without("photos.parquet", "role"),
         "{p}/photos.parquet: has no column role; predict again"),
        (save("labels.npy", [0, 1, 2, 3], np.int64),
         "{p}: its parts disagree: 5 rows of logits, 5 ids, 4 labels; predict again"),
        (save("logits.npy", LOGITS[:, :3], np.float16),
         "{p}/species.parquet: has 4 rows, not 3; predict again"),
        (save("ids.npy", [1, 2], np.int64),
         "{p}: its parts disagree: 5 rows of logits, 2 ids, 5 labels; predict again"),
        (header("ids.npy", shape=(2**40,)), "{p}/ids.npy: no array, or cut off (.+); predict .*"),
        (header("ids.npy", shape=(-5,)), "{p}/ids.npy: no array, or cut off (.+); predict again"),
        (header("ids.npy", shape=(2**40, 2**40)),
         "{p}/ids.npy: no array, or cut off (.+); predict again"),
        (header("ids.npy", descr="|O"), "{p}/ids.npy: no array, or cut off (.+); predict again"),
        (header("ids.npy", descr=">i8"), "{p}/ids.npy: holds >i8, not int64; predict again"),
        (header("ids.npy", shape=(5, 1)), "{p}/ids.npy: holds 2 axes, not 1; predict again"),
        (lambda path: np.savez(path / "z", a=1) or (path / "z.npz").rename(path / "ids.npy"),
         "{p}/ids.npy: no array, or cut off (.+); predict again"),
        (save("labels.npy", [0, 1, 2, 4, 0], np.int64),
         "{p}: it has no photo, or a label that is none of its 4 species; predict again"),
        (save("labels.npy", [0, 1, 2, -2, 0], np.int64),
         "{p}: it has no photo, or a label that is none of its 4 species; predict again"),
        (column("species.parquet", "category_id", "2"),
         "{p}/species.parquet: column category_id does not hold whole numbers; predict again"),
        (column("species.parquet", "train_count", [1, 2, None, 3]),
         "{p}/species.parquet: column train_count does not hold whole numbers; predict again"),
        (column("photos.parquet", "role", 1),
         "{p}/photos.parquet: column role does not hold texts; predict again"),
        (meta(competition=None),
         "{p}/meta.json: Expected `str`, got `null` - at `$.competition`; predict again"),
        (meta(chosen=[]),
         "{p}/meta.json: Expected `object`, got `array` - at `$.chosen`; predict again"),
        (meta(logits_prior=[0.5, 0.5, None, 0]),
         "{p}/meta.json: Expected `float`, got `null` - at `$.logits_prior[2]`; predict again"),
        (meta(logits_prior=[1, 1, 0, -1]),
         "{p}/meta.json: 'logits_prior' is not a list of 4 numbers, one per species, that sum "
         "to 1; predict again"),
        (meta(logits_prior=[1e308, 1e308, 1e308, 1]),
         "{p}/meta.json: 'logits_prior' is not a list of 4 numbers, one per species, that sum "
         "to 1; predict again"),
        (save("ids.npy", [11, 18, 18, 32, 39], np.int64),
         "{p}/ids.npy: has an image twice; predict again"),
        (save("ids.npy", [11, 18, 25, 39, 32], np.int64),
         "{p}: its parts disagree: photos.parquet has other ids than ids.npy; predict again"),
        (column("species.parquet", "category_id", [2, 10, 10, 56]),
         "{p}/species.parquet: its category ids do not ascend, or one is there twice; predict "
         "again"),
        (column("species.parquet", "category_id", [2, 28, 10, 56]),
         "{p}/species.parquet: its category ids do not ascend, or one is there twice; predict "
         "again"),
    ],
)  # fmt: skip
def test_a_damaged_part_gives_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "p"
    make_prediction(path, LOGITS)
    damage(path)
    with pytest.raises(InputError) as caught:
        read_prediction(path)
    pattern = re.escape(message).replace(r"\.\+", ".+").replace(r"\.\*", ".*")
    text = str(caught.value)
    assert re.fullmatch(pattern.replace(r"\{p\}", re.escape(str(path))), text), text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["logits.npy", "ids.npy"])
@pytest.mark.parametrize("in_npy", [True, False])
def test_a_pickle_in_place_of_an_array_is_refused_and_not_run(
    tmp_path: Path, name: str, in_npy: bool
) -> None:
    path, marker = tmp_path / "p", tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    make_prediction(path, LOGITS)
    if in_npy:
        np.save(path / name, np.array([Bomb()], object), allow_pickle=True)
    else:
        (path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=re.escape(f"{path / name}: no array, or cut off")):
        read_prediction(path)
    assert not marker.exists()


def test_logits_in_columns_are_read_as_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p"
    make_prediction(path, LOGITS)
    np.save(path / "logits.npy", np.asfortranarray(store(LOGITS, np.float16)))
    assert read_prediction(path).logits.tolist() == store(LOGITS, np.float16).tolist()


def test_what_pandas_is_told_in_a_table_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "p" / "photos.parquet"
    expected = make_prediction(tmp_path / "p", LOGITS).photos
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"pandas": b"{"}), path)
    assert read_prediction(tmp_path / "p").photos.equals(expected)


def test_what_is_no_folder_is_no_prediction_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prediction file"):
        read_prediction(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no prediction file"):
        read_prediction(str(tmp_path / "file"))


# --- logits that are not finite, ids that stand twice ---------------------------------------------


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "words",
    [
        "evaluate DAMAGED --out OUT",
        "compare WHOLE DAMAGED --out OUT",
        "adjust DAMAGED --tau 1 --out OUT",
        "adjust DAMAGED --tau search --out OUT",
        "adjust WHOLE --tau search --fit DAMAGED --out OUT",
        "adjust DAMAGED --target uniform --out OUT",
        "adjust DAMAGED --target estimated --out OUT",
        "adjust WHOLE --target estimated --fit DAMAGED --out OUT",
        "adjust WHOLE --geo DAMAGED_GEO --out OUT",
        "ensemble WHOLE DAMAGED --out OUT",
        "ensemble WHOLE DAMAGED --how rank --out OUT",
        "ensemble WHOLE WHOLE --fit WHOLE DAMAGED --out OUT",
        "submission write TEST --out OUT.csv",
        "submission estimate WHOLE_TEST --on DAMAGED",
    ],
)
def test_logits_that_are_not_finite_are_refused_by_whoever_reads_them(
    words: str, logit: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {}
    for name in ("whole", "damaged", "test", "whole_test", "damaged_geo"):
        split = "test" if "test" in name else "holdout"
        place = tmp_path / name / split
        make_prediction(place, LOGITS, [0, 1, 2, 3, 0], split=split, role="held out")
        if "geo" in name:
            meta(logits="log presence", checkpoint_sha256="g")(place)
        places[name.upper()] = place
        if not name.startswith("whole"):
            logits = np.load(place / "logits.npy")
            logits[3, 1] = logit
            np.save(place / "logits.npy", logits)
    out = tmp_path / "out"
    command = [str(places.get(word, word)).replace("OUT", str(out)) for word in words.split()]
    assert main(command) == 2
    damaged = next(places[w] for w in words.split() if w in ("DAMAGED", "DAMAGED_GEO", "TEST"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"inat: {damaged / 'logits.npy'}: the logits of image 32 are not finite; predict again\n"
    )
    assert not list(tmp_path.glob("out*"))


def test_nothing_that_is_not_finite_is_stored() -> None:
    for row in ([0, np.nan], [0, np.inf], [-np.inf, -np.inf]):
        with pytest.raises(InputError, match="not finite"):
            store(np.array([[0, 1], row], np.float32))
    assert store(np.array([[0, -np.inf]], np.float32)).tolist() == [[0, -65504]]


def test_an_image_or_a_category_that_stands_twice_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has an image twice"):
        make_prediction(tmp_path / "p", LOGITS, ids=[1, 2, 3, 4, 1])
    for category_ids in ([2, 10, 10, 56], [2, 28, 10, 56]):
        with pytest.raises(InputError, match="do not ascend, or one is there twice"):
            make_prediction(tmp_path / "p", LOGITS, category_ids=category_ids)
    assert not (tmp_path / "p").exists()


ODD = [None, True, 7, 0.5, "x", [], {}, [7], {"a": 7}, [{}], "a\0b"]


@pytest.mark.parametrize(
    "field",
    ["competition", "split", "run", "checkpoint", "checkpoint_sha256", "weights", "views",
     "view_mean", "logits", "chosen", "adjusted", "how", "fit", "members", "folds", "data_root",
     "band_edges", "versions", "bad_photos", "logits_prior", "config_digest"],
)  # fmt: skip
def test_whatever_meta_json_says_gives_the_documented_error_or_none(
    tmp_path: Path, field: str
) -> None:
    path = make_prediction(tmp_path / "p", LOGITS, [0, 1, 2, 3, 0]).path
    uses = (
        lambda: evaluate(path),
        lambda: write(path, tmp_path / "s.csv"),
        lambda: adjust(path, tmp_path / "adjusted", tau=0.5, overwrite=True),
        lambda: ensemble([path, path], tmp_path / "ensemble", overwrite=True),
    )
    for value in ODD:
        meta(**{field: value})(path)
        for use in uses:
            with suppress(InatError):
                use()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (column("photos.parquet", "role", "x"),
         "{p}/photos.parquet: 'x' is no role of a photo; predict again"),
        (column("species.parquet", "supercategory", None),
         "{p}/species.parquet: column supercategory does not hold texts; predict again"),
        (column("species.parquet", "kingdom", 7),
         "{p}/species.parquet: column kingdom does not hold texts; predict again"),
    ],
)  # fmt: skip
def test_an_unknown_role_or_a_gap_in_the_lineage_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = make_prediction(tmp_path / "p", LOGITS).path
    damage(path)
    with pytest.raises(InputError) as caught:
        read_prediction(path)
    assert str(caught.value) == message.format(p=path)

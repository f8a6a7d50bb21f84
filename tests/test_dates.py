"""Dates in the notations of people, cameras, spreadsheets and GBIF, against slow readings."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from worlds import make_world

from inat.cli.app import main
from inat.core.errors import InputError
from inat.dataset.dates import Known, parse_dates
from inat.dataset.locations import places_of
from inat.dataset.split import load_split


def days(values: list[Any]) -> list[str | None]:
    """What is read of each: the moment, or None."""
    moments = parse_dates(values, "FILE: ").moments
    assert moments.dtype == np.dtype("datetime64[us]")
    return [None if np.isnat(moment) else str(moment) for moment in moments]


# Each notation in the words of strptime; those with the day or month first take a column of a kind.
YEAR_FIRST = [
    "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y/%m/%d",
    "%Y/%m/%d %H:%M", "%Y.%m.%d", "%Y:%m:%d %H:%M:%S", "%Y:%m:%d %H:%M:%S.%f", "%Y%m%d",
    "%Y%m%dT%H%M%S", "%Y%m%d_%H%M%S", "%d %B %Y", "%d-%b-%Y", "%b %d, %Y", "%B %d, %Y %I:%M %p",
    "%d %b %Y %H:%M:%S", "%Y-%b-%d", "%A, %B %d, %Y", "%a, %d %b %Y %H:%M:%S",
    "%a %b %d %Y %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S%z", "%Y-%m-%dT%H:%M%z",
    "%Y:%m:%d %H:%M:%S%z",
    "%a %b %d %Y %H:%M:%S GMT%z",
]  # fmt: skip
DAY_FIRST = ["%d.%m.%Y", "%d/%m/%Y", "%d-%m-%Y", "%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M:%S"]
MONTH_FIRST = ["%m/%d/%Y", "%m-%d-%Y", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M"]
ZONES = [timedelta(0), timedelta(hours=10), -timedelta(hours=3, minutes=30)]


def slow_date(text: str, notation: str) -> str:
    date = datetime.strptime(text, notation)
    if date.tzinfo is not None:
        date = date.astimezone(UTC).replace(tzinfo=None)
    return date.isoformat(timespec="microseconds")


def random_texts(notation: str, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    begin = datetime(1930, 1, 1)
    moments = [begin + timedelta(seconds=int(s)) for s in rng.integers(0, 2_800_000_000, 40)]
    zones = [timezone(ZONES[number]) for number in rng.integers(0, len(ZONES), 40)]
    return [
        moment.replace(microsecond=250_000, tzinfo=UTC).astimezone(zone).strftime(notation)
        for moment, zone in zip(moments, zones, strict=True)
    ]


@pytest.mark.parametrize("notation", [*YEAR_FIRST, *DAY_FIRST, *MONTH_FIRST])
def test_every_notation_is_read_as_strptime_reads_it_one_by_one(notation: str) -> None:
    texts = random_texts(notation, len(notation))
    read = parse_dates(texts, "FILE: ")
    expected = [slow_date(text, notation) for text in texts]
    assert [moment.item().isoformat(timespec="microseconds") for moment in read.moments] == expected
    assert set(read.known) == {Known.DAY}


@pytest.mark.parametrize("order", [DAY_FIRST, MONTH_FIRST])
def test_notations_mixed_in_a_column_are_read_in_the_order_that_one_date_decides(
    order: list[str],
) -> None:
    given = [(text, notation) for notation in [*YEAR_FIRST, *order]
             for text in random_texts(notation, 3)]  # fmt: skip
    shuffled = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
    read = parse_dates([text for text, _ in shuffled], "FILE: ").moments
    for (text, notation), moment in zip(shuffled, read, strict=True):
        assert moment.item().isoformat(timespec="microseconds") == slow_date(text, notation), text


def test_one_date_decides_the_order_of_a_whole_column() -> None:
    ambiguous = ["04/05/2018", "01-02-2017 3:04 PM"]
    first = ["2018-05-04T00:00:00.000000", "2017-02-01T15:04:00.000000"]
    second = ["2018-04-05T00:00:00.000000", "2017-01-02T15:04:00.000000"]
    assert days([*ambiguous, "13/05/2018"])[:2] == first
    assert days(["3.4.2018", *ambiguous])[1:] == first  # dots: day first
    assert days([*ambiguous, "05/13/2018"])[:2] == second
    assert days(["05/05/2018", None, "12-12-2017"])[1] is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([None, "04/05/2018"], ("FILE: [1]", "'04/05/2018'", "whether the day or the month")),
        (["13/05/2018", "05/13/2018"], ("[0], '13/05/2018'", "[1], '05/13/2018'", "YYYY-MM-DD")),
        (["03.04.2018", "05/13/2018"], ("[0], '03.04.2018'", "[1], '05/13/2018'")),
        ([43224], ("FILE: [0]", "43224", "YYYYMMDD", "YYYY-MM-DD")),
        (["43224"], ("'43224'", "YYYYMMDD")),
        ([43224.75], ("43224.75", "YYYYMMDD")),
        ([1525392000], ("1525392000", "YYYYMMDD")),
        (["1500"], ("'1500'", "nor a year")),
        (["1525392000.5"], ("1525392000.5", "YYYYMMDD")),
        ([1525392000000], ("1525392000000", "YYYYMMDD")),
        ([1525392000000000000], ("1525392000000000000", "YYYYMMDD")),
        ([-5], ("-5", "YYYYMMDD")),
        ([1e300], ("1e+300", "YYYYMMDD")),
        ([20181332], ("20181332", "YYYYMMDD")),
        (["2018-05-04", "0001-01-01"], ("FILE: [1]", "'0001-01-01'", "between 1800 and today")),
        (["1799-12-31 12:00:00"], ("1799", "between 1800 and today", "null")),
        (["2999-01-01"], ("2999", "between 1800 and today")),
        (["4 May 2999"], ("2999", "today")),
        ([99990101], ("99990101", "today")),
    ],
)  # fmt: skip
def test_what_may_mean_another_day_is_refused_with_the_row(
    values: list[Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as refused:
        parse_dates(values, "FILE: ")
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (20180504, "2018-05-04"), (20180504.0, "2018-05-04"),
        (20180504101112, "2018-05-04T10:11:12"),
        (" 2018-5-4 ", "2018-05-04"), ("2018-05-04 24:00", "2018-05-05"),
        ("2016-12-31T23:59:60Z", "2017-01-01"), ("2018-05-04T00:00+0200", "2018-05-03T22:00"),
        ("2018-05-04+02:00", "2018-05-03T22:00"), ("2018-05-04Z", "2018-05-04"),
        ("2018-05-04 08:30:00 UTC", "2018-05-04T08:30"), ("May 4th, 2018", "2018-05-04"),
        ("4. Mai 2018", "2018-05-04"), ("3. März 2018", "2018-03-03"),
        ("24 Dez. 2017", "2017-12-24"),
        ("Thu May 24 2018 13:14:58 GMT-0700 (PDT)", "2018-05-24T20:14:58"),
        ("2018-05-04 12:00 am", "2018-05-04"), ("2018-05-04, 12:05 p.m.", "2018-05-04T12:05"),
        ("2018-05-04/2018-05-06", "2018-05-05"), ("2018-05-04/06", "2018-05-05"),
        ("2018-05-30/06-01", "2018-05-31"), ("2018-05-04/2018-05-04", "2018-05-04"),
        ("2018-05-19T00:00Z/2018-06-02T00:00Z", "2018-05-26"),
        ("1923-06-25/1923-07-26", "1923-07-10T12:00"),
    ],
)  # fmt: skip
def test_single_dates_mean_this_moment(value: Any, moment: str) -> None:
    assert parse_dates([value], "FILE: ").moments[0] == np.datetime64(moment, "us")


@pytest.mark.parametrize(
    ("known", "values"),
    [
        (Known.NOTHING, [
            None, "", "  ", "NaT", "nan", "N/A", "null", "0000-00-00", float("nan"), 0, "--",
            "0000:00:00 00:00:00", "    :  :     :  :  ", "unknown",
        ]),
        (Known.PART, [
            "2004", 2004, "1930-01", "2018/05", "2018:05", "May 2018", "05/2018", "2018-05-00",
            "2018-00-00", "2004/2005", "2018-05/2018-06", "2018-05/06", "2018-01-01/2018-12-31",
            "2018-05-04/2018-06-05",
        ]),
        (Known.NOT_UNDERSTOOD, [
            "nonsense", "2018-02-30", "31.04.2018", "2018-13-01", "13/13/2018", "0/5/2018",
            "4/5/18", "25:00", "2018-05-04 25:00", "2018-05-04T8:75", "2018-05-04 08:30:00+25:00",
            True, [1], "2018-05-04 13:00 PM", "spring 2018", "2018-05-06/2018-05-04", "2018-05-04/",
            {}, "/2018-05-04", "May 32, 2018", "2018-05/04-06", "3000-05", "2018-05-04 PDT",
        ]),
    ],
)  # fmt: skip
def test_what_names_no_day_gives_no_day(known: Known, values: list[Any]) -> None:
    for value in values:
        read = parse_dates([value], "FILE: ")
        assert np.isnat(read.moments[0]) and read.known[0] == known, value


def test_today_is_a_date_in_every_zone_and_the_day_after_tomorrow_is_none() -> None:
    now = datetime.now(UTC)
    ahead = (now + timedelta(hours=14)).strftime("%Y-%m-%d %H:%M:%S")
    assert days([ahead])[0] is not None
    with pytest.raises(InputError, match="between 1800 and today"):
        parse_dates([(now + timedelta(days=2)).strftime("%Y-%m-%d %H:%M:%S")], "FILE: ")


def test_describe_counts_places_dates_and_texts_that_were_not_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_world(tmp_path / "world")
    ids = [row["id"] for row in orjson.loads((root / "train2018.json").read_bytes())["images"]]
    texts = ["2018:05:04 10:11:12", "spring", "2004", None, "13.5.2018"]
    rows = [
        {"id": i, "lat": 48.1, "lon": 11.5, "date": text}
        for i, text in zip(ids, texts, strict=False)
    ]
    rows.append({"id": ids[5], "lat": 48.1, "lon": None, "date": "Frühling"})
    (root / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    for _ in range(2):  # parsed, then from the cache
        assert main(["data", "describe", str(root), "--plot", str(tmp_path / "tail.png")]) == 0
        assert (
            f"places            train: 5 of {len(ids)} photos have a place, 2 a date; 1 only a "
            f"month, a year or a long interval; 2 dates were not understood (first: image {ids[1]})"
        ) in capsys.readouterr().out.splitlines()
    split = load_split(root)
    assert split.locations is not None
    assert list(split.locations.columns) == ["lat", "lon", "date"]
    by_id = dict(zip(split.image_ids.tolist(), places_of(split)[:, 2].tolist(), strict=True))
    assert by_id[ids[4]] == pytest.approx(2 * 132 / 365 - 1)
    assert np.isnan(by_id[ids[1]])
    rows[0]["date"] = 1525392000
    (root / "train2018_locations.json").write_bytes(orjson.dumps(rows))
    assert main(["data", "describe", str(root)]) == 2
    assert "train2018_locations.json: [0]: 'date' is 1525392000" in capsys.readouterr().err

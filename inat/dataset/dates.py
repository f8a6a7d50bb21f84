"""Dates as people, cameras, spreadsheets and GBIF write them; what is ambiguous is refused."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int8

from inat.core.errors import InputError

FIRST_YEAR = 1800

LONGEST_INTERVAL = timedelta(days=31)
"""Of a longer one no day is known; of a shorter one the middle is taken."""

PLAIN = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-](0\d|1[0-3]):?[0-5]\d)?$"
"""What nearly all dates of a large file look like; pandas reads these, all at once."""

ZONE = r"Z|(?:UTC|GMT)? ?[+-]\d\d(?::?\d\d)?|UTC|GMT"
CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d+))?)?"
TIME = (
    rf"(?:(?:[T ]|, ?) ?{CLOCK}(?: ?(?P<half>[ap]\.?m\.?))?(?: ?(?P<zone>{ZONE}))?(?: \([^)]*\))?"
    r"|(?P<day_zone>Z|[+-]\d\d:\d\d))?"
)
MONTH = r"(?P<name>[^\W\d_]{3,9})\.?"
YEAR_FIRST = re.compile(
    r"(?P<year>\d{4})(?P<mark>[-/.:])(?P<month>\d{1,2})(?:(?P=mark)(?P<day>\d{1,2})" + TIME + ")?",
    re.I,
)
YEAR_LAST = re.compile(
    r"(?P<first>\d{1,2})(?P<mark>[-/.])(?P<second_>\d{1,2})(?P=mark)(?P<year>\d{4})" + TIME, re.I
)
NAMED = [
    re.compile(pattern + TIME, re.I)
    for pattern in (
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)?[ -]?{MONTH},?[ -](?P<year>\d{{4}})",
        rf"{MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})",
        rf"(?P<year>\d{{4}})[ -]{MONTH}[ -](?P<day>\d{{1,2}})",
    )
]
COMPACT = re.compile(
    r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)"
    rf"(?:[T _-]?(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d)?(?P<zone>{ZONE})?)?"
)
PART = re.compile(rf"(?P<year>\d{{4}})|{MONTH},? (?P<named>\d{{4}})|\d{{1,2}}/(?P<slashed>\d{{4}})")
WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? ", re.I)
NOTHING = re.compile(r"[\s0:/.-]*|n/?a|nat|nan|none|null|unknown", re.I)
SHORT_END = re.compile(r"\d{1,2}(-\d{1,2})?")

MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan", "feb", "mar mär mrz", "apr", "may mai", "jun", "jul", "aug", "sep", "oct okt",
         "nov", "dec dez"), 1,
    )
    for name in names.split()
}  # fmt: skip
"""English and German months by their first three letters."""


class Known(IntEnum):
    """What a file says of a photo's date."""

    NOTHING = 0
    DAY = 1
    PART = 2  # the month, the year or a long interval
    NOT_UNDERSTOOD = 3


@dataclass(frozen=True)
class Dates:
    moments: np.ndarray  # datetime64[us], UTC; NaT where the day is not known
    known: Int8[np.ndarray, "dates"]  # a `Known` of each


class _Ordered(NamedTuple):
    """A date whose day and month need the column's order."""

    year: int
    first: int
    second: int
    dotted: bool
    time: timedelta


_Read = datetime | _Ordered | Known


def parse_dates(values: Sequence[Any], source: str) -> Dates:
    """Reads a column of dates; times without a zone count as UTC.

    Read are ISO 8601 (with / and . too), EXIF's 2018:05:04, day and month before the year, English
    and German names of months, and YYYYMMDD, all with a time or without. Whether the day or the
    month comes first is decided for the whole column, by the dates that allow only one order; dots
    mean day first. Of an interval of at most 31 days the middle is taken. An InputError for an
    order that no date decides or that dates contradict, and a date before 1800 or in the future.
    """
    texts = pa.array([value if type(value) is str else None for value in values], pa.string())
    texts = pc.replace_substring_regex(texts, r"^(\d{4}):(\d\d):(\d\d) ", r"\1-\2-\3 ")  # EXIF's
    plain = pc.fill_null(pc.match_substring_regex(texts, PLAIN), False).to_numpy(False)
    moments = np.full(len(values), "NaT", "datetime64[us]")
    read = pd.to_datetime(
        texts.filter(pa.array(plain)).to_pandas(), utc=True, errors="coerce", format="ISO8601"
    )
    moments[plain] = read.dt.tz_localize(None).to_numpy("datetime64[us]") if plain.any() else []
    known = np.where(np.isnat(moments), Known.NOTHING, Known.DAY).astype(np.int8)
    odd = {
        at: _read(values[at], f"{source}[{at}]")
        for at in np.flatnonzero(np.isnat(moments)).tolist()
    }
    day_first = _day_first(
        {at: found for at, found in odd.items() if isinstance(found, _Ordered)}, values, source
    )
    for at, found in odd.items():
        if isinstance(found, _Ordered):
            day, month = found[1:3] if day_first else found[2:0:-1]
            found = _moment(found.year, month, day, found.time)
        if isinstance(found, Known):
            known[at] = found
        else:
            moments[at], known[at] = np.datetime64(found, "us"), Known.DAY
    # A day to spare: a time without a zone may be ahead of UTC.
    end = np.datetime64(datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1), "us")
    beyond = np.flatnonzero((moments < np.datetime64(f"{FIRST_YEAR}")) | (moments > end))
    if len(beyond):
        at = beyond[0]
        raise InputError(
            f"{source}[{at}]: 'date' is {values[at]!r:.40}, which is not between {FIRST_YEAR} and "
            "today; fix it, or make it null"
        )
    return Dates(moments, known)


def _read(value: Any, place: str) -> _Read:
    if value is None or value != value:
        return Known.NOTHING
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:.0f}" if value == round(value) else str(value)
    elif isinstance(value, str):
        text = " ".join(value.split())
    else:
        return Known.NOT_UNDERSTOOD
    if NOTHING.fullmatch(text):
        return Known.NOTHING
    found = _read_text(WEEKDAY.sub("", text, count=1))
    if found is Known.NOT_UNDERSTOOD and re.fullmatch(r"[+-]?\d+(\.\d*)?", text):
        # Days since 1900, or seconds since 1970: nothing says which.
        raise InputError(
            f"{place}: 'date' is {value!r:.40}, a number that is neither YYYYMMDD nor a year; "
            "write dates as YYYY-MM-DD"
        )
    return found


def _read_text(text: str) -> _Read:
    if found := YEAR_FIRST.fullmatch(text):
        year, month, day = (int(found[name] or 0) for name in ("year", "month", "day"))
        if month and day:
            return _moment(year, month, day, _time(found))
        return _part(year) if month <= 12 else Known.NOT_UNDERSTOOD
    if found := YEAR_LAST.fullmatch(text):
        time = _time(found)
        first, second, year = (int(found[name]) for name in ("first", "second_", "year"))
        if time is None or not (0 < first <= 31 and 0 < second <= 31) or min(first, second) > 12:
            return Known.NOT_UNDERSTOOD
        return _Ordered(year, first, second, found["mark"] == ".", time)
    for pattern in NAMED:
        if (found := pattern.fullmatch(text)) and _month(found["name"]):
            month, day = _month(found["name"]), int(found["day"])
            return _moment(int(found["year"]), month, day, _time(found))
    if found := COMPACT.fullmatch(text):
        year, month, day = (int(found[name]) for name in ("year", "month", "day"))
        return _moment(year, month, day, _time(found))
    if found := PART.fullmatch(text):
        if found["name"] and not _month(found["name"]):
            return Known.NOT_UNDERSTOOD
        return _part(int(found["year"] or found["named"] or found["slashed"]))
    return _interval(text)


def _interval(text: str) -> datetime | Known:
    begin, slash, end = text.partition("/")
    if not slash or not re.match(r"\d{4}", begin):
        return Known.NOT_UNDERSTOOD
    if SHORT_END.fullmatch(end):  # 2018-05-04/06 and 2018-05-04/06-02
        end = begin[:10].rsplit("-", end.count("-") + 1)[0] + "-" + end
    first, last = _read_text(begin), _read_text(end) if re.match(r"\d{4}", end) else None
    if isinstance(first, datetime) and isinstance(last, datetime) and first <= last:
        short = last - first <= LONGEST_INTERVAL
        return first + (last - first) / 2 if short else Known.PART
    if {type(first), type(last)} == {Known} and Known.NOT_UNDERSTOOD not in (first, last):
        return Known.PART
    return Known.NOT_UNDERSTOOD


def _part(year: int) -> Known:
    possible = FIRST_YEAR <= year <= datetime.now(UTC).year
    return Known.PART if possible else Known.NOT_UNDERSTOOD


def _month(name: str) -> int:
    """1 to 12; 0 where it is no month."""
    return MONTHS.get(name[:3].lower(), 0)


def _moment(year: int, month: int, day: int, time: timedelta | None) -> datetime | Known:
    try:
        return Known.NOT_UNDERSTOOD if time is None else datetime(year, month, day) + time
    except (ValueError, OverflowError):  # 30 February
        return Known.NOT_UNDERSTOOD


def _time(found: re.Match[str]) -> timedelta | None:
    """The time since midnight in UTC; None where it is none."""
    groups = found.groupdict()
    hour, minute, second = (int(groups.get(name) or 0) for name in ("hour", "minute", "second"))
    if half := groups.get("half"):
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (half[0] in "pP")
    if minute > 59 or second > 60 or hour > 24 or (hour == 24 and minute + second):
        return None
    part = int(((groups.get("part") or "") + "000000")[:6])
    time = timedelta(hours=hour, minutes=minute, seconds=second, microseconds=part)
    zone = groups.get("zone") or groups.get("day_zone") or ""
    if not (shift := re.search(r"([+-])(\d\d):?(\d\d)?", zone)):
        return time
    ahead = timedelta(hours=int(shift[2]), minutes=int(shift[3] or 0))
    if ahead > timedelta(hours=14) or int(shift[3] or 0) > 59:
        return None
    return time - ahead if shift[1] == "+" else time + ahead


def _day_first(dates: dict[int, _Ordered], values: Sequence[Any], source: str) -> bool:
    """Whether the column has the day before the month."""
    days = [at for at, date in dates.items() if date.first > 12]
    days += [at for at, date in dates.items() if date.dotted and date.second <= 12]
    months = [at for at, date in dates.items() if date.second > 12]
    if days and months:
        raise InputError(
            f"{source}: 'date' has the day first in [{days[0]}], {values[days[0]]!r:.40}, and the "
            f"month first in [{months[0]}], {values[months[0]]!r:.40}; write dates as YYYY-MM-DD"
        )
    unclear = [at for at, date in dates.items() if date.first != date.second]
    if unclear and not days and not months:
        at = unclear[0]
        raise InputError(
            f"{source}[{at}]: 'date' is {values[at]!r:.40}, and no date of the file shows whether "
            "the day or the month comes first; write dates as YYYY-MM-DD"
        )
    return bool(days)

"""Values of SQL types as keys that compare: what statistics, samples and literals are brought to before any arithmetic.

A key is an int, float, Decimal, bool or str. Points in time are microseconds since 1970 (UTC for those with a zone), so
that date, timestamp and timestamptz compare with each other as the server's cross-type operators do. `scalars` places
a constant between two histogram bounds as ``convert_to_scalar`` (selfuncs.c) does.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

Key: TypeAlias = int | float | Decimal | str | bool

INFINITE: Final = 1 << 62
"""The key of 'infinity' as a date or timestamp."""
_EPOCH: Final = datetime(1970, 1, 1)
_EPOCH_DATE: Final = _EPOCH.date()
_MICROSECOND: Final = timedelta(microseconds=1)
_DAY: Final = 86_400_000_000


class Family(enum.StrEnum):
    """Types whose values compare with each other; ``OTHER`` knows only equality of the text form."""

    INTEGER = "integer"
    NUMERIC = "numeric"
    FLOAT = "float"
    TEXT = "text"
    TIME = "time"  # points in time
    BOOLEAN = "boolean"
    OTHER = "other"


_FAMILIES: Final[Mapping[str, Family]] = {
    **dict.fromkeys(("smallint", "integer", "bigint", "oid"), Family.INTEGER),
    "numeric": Family.NUMERIC,
    **dict.fromkeys(("real", "double precision"), Family.FLOAT),
    **dict.fromkeys(("text", "character varying", "character", '"char"', "name"), Family.TEXT),
    **dict.fromkeys(("date", "timestamp without time zone", "timestamp with time zone"), Family.TIME),
    "boolean": Family.BOOLEAN,
}
_SHORT_NAMES: Final[Mapping[str, str]] = {
    "int2": "smallint",
    "int4": "integer",
    "int": "integer",
    "int8": "bigint",
    "decimal": "numeric",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "varchar": "character varying",
    "bpchar": "character",
    "char": "character",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "time": "time without time zone",
    "timetz": "time with time zone",
}


def type_name(name: str) -> str:
    """The name as format_type writes it, of a name as the parser has it (``int4``, ``timestamptz``)."""
    return _SHORT_NAMES.get(name, name)


def family(name: str) -> Family:
    """The family of a type by either name."""
    return _FAMILIES.get(_SHORT_NAMES.get(name, name), Family.OTHER)


@dataclass(frozen=True, slots=True)
class Interval:
    """A span of time as the server keeps it."""

    months: int = 0
    days: int = 0
    microseconds: int = 0


def key(value: object, kind: Family) -> Key | None:
    """The value as a key of that family, None if it cannot be one. NULL has no key. Never raises."""
    if value is None:
        return None
    try:
        if kind is Family.TEXT:
            return value if isinstance(value, str) else None
        if kind in {Family.INTEGER, Family.NUMERIC, Family.FLOAT}:
            return _number(value, kind)
        if kind is Family.TIME:
            return _moment(value)
        if kind is Family.BOOLEAN:
            return _boolean(value)
    except (ValueError, ArithmeticError):
        return None
    return str(value)


def _number(value: object, kind: Family) -> Key | None:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 400:
            return None
        value = int(text) if kind is Family.INTEGER else Decimal(text)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    # NaN compares with nothing here, and sorts above everything there.
    return None if math.isnan(value) else value


def _boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text and (text in {"on", "1"} or "true".startswith(text) or "yes".startswith(text)):
        return True
    if text and (text in {"off", "of", "0"} or "false".startswith(text) or "no".startswith(text)):
        return False
    return None


def _moment(value: object) -> int | None:
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return (value - _EPOCH) // _MICROSECOND
    if isinstance(value, date):
        return (value - _EPOCH_DATE).days * _DAY
    return moment(value) if isinstance(value, str) else None


_MOMENT: Final = re.compile(
    r"(\d{4,6})-(\d{1,2})-(\d{1,2})"
    r"(?:[T ]\s*(\d{1,2}):(\d{2})(?::(\d{2})(\.\d{1,9})?)?)?\s*(Z|UTC|[+-]\d{1,2}(?::?\d{2})?)?( BC)?\s*\Z",
    re.IGNORECASE,
)


def moment(text: str) -> int | None:
    """Microseconds since 1970 of a date or timestamp in ISO form, or of ``infinity``; None for any other text."""
    text = text.strip()
    if text in {"infinity", "-infinity"}:
        return INFINITE if text == "infinity" else -INFINITE
    found = _MOMENT.match(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, zone, before = found.groups()
    if before or int(year) > 9999:
        return -INFINITE if before else INFINITE
    parts = (int(hour or 0), int(minute or 0), int(second or 0))
    try:
        days = (date(int(year), int(month), int(day)) - _EPOCH_DATE).days
    except ValueError:
        return None
    if parts[0] > 24 or parts[1] > 59 or parts[2] > 60:
        return None
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "")
        offset = int(digits[:2]) * 3600 + (int(digits[2:]) * 60 if len(digits) > 2 else 0)
        seconds += offset if zone[0] == "-" else -offset
    return days * _DAY + seconds * 1_000_000 + (round(float(fraction) * 1e6) if fraction else 0)


_SPAN: Final = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)
_CLOCK: Final = re.compile(r"([+-]?)(\d{1,4}):(\d{2})(?::(\d{2})(\.\d+)?)?\s*\Z")
_UNITS: Final[Mapping[str, tuple[int, int, int]]] = {  # months, days, microseconds
    "microsecond": (0, 0, 1),
    "millisecond": (0, 0, 1000),
    "second": (0, 0, 1_000_000),
    "sec": (0, 0, 1_000_000),
    "s": (0, 0, 1_000_000),
    "minute": (0, 0, 60_000_000),
    "min": (0, 0, 60_000_000),
    "m": (0, 0, 60_000_000),
    "hour": (0, 0, 3_600_000_000),
    "hr": (0, 0, 3_600_000_000),
    "h": (0, 0, 3_600_000_000),
    "day": (0, 1, 0),
    "d": (0, 1, 0),
    "week": (0, 7, 0),
    "w": (0, 7, 0),
    "month": (1, 0, 0),
    "mon": (1, 0, 0),
    "quarter": (3, 0, 0),
    "year": (12, 0, 0),
    "y": (12, 0, 0),
    "decade": (120, 0, 0),
    "century": (1200, 0, 0),
}


def interval(text: str) -> Interval | None:
    """An interval in the verbose form (``1 month 2 days 03:04:05``); None for any other text."""
    months = days = microseconds = 0
    text = text.strip()
    if not text or len(text) > 200:
        return None
    position = 0
    while position < len(text):
        if clock := _CLOCK.match(text, position):
            sign, hours, minutes, seconds, fraction = clock.groups()
            amount = (int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)) * 1_000_000
            amount += round(float(fraction) * 1e6) if fraction else 0
            microseconds += -amount if sign == "-" else amount
            break
        found = _SPAN.match(text, position)
        if found is None:
            return None
        name = found[2].lower()
        unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
        number = float(found[1])
        if unit is None or abs(number) > 1e9 or (number != int(number) and not unit[2]):
            return None
        months += int(number * unit[0])
        days += int(number * unit[1])
        microseconds += round(number * unit[2])
        position = found.end()
    return Interval(months, days, microseconds)


def shift(at: int, span: Interval, sign: int = 1) -> int | None:
    """A point in time plus (or minus) an interval: months first, by the calendar, then days, then the rest."""
    if abs(at) >= INFINITE:
        return at
    if span.months:
        days, rest = divmod(at, _DAY)
        try:
            day = _EPOCH_DATE + timedelta(days=days)
            month = day.year * 12 + day.month - 1 + sign * span.months
            year, month = divmod(month, 12)
            last = (date(year + month // 11, (month + 1) % 12 + 1, 1) - timedelta(days=1)).day
            at = (date(year, month + 1, min(day.day, last)) - _EPOCH_DATE).days * _DAY + rest
        except (ValueError, OverflowError):
            return None
    return at + sign * (span.days * _DAY + span.microseconds)


# ---------------------------------------------------------------------- placing a value within a histogram bin


def scalars(value: Key, low: Key, high: Key) -> tuple[float, float, float] | None:
    """The three on one scale for linear interpolation (convert_to_scalar, selfuncs.c); None if there is none."""
    if isinstance(value, str) and isinstance(low, str) and isinstance(high, str):
        return _strings(value.encode(), low.encode(), high.encode())
    if isinstance(value, str) or isinstance(low, str) or isinstance(high, str):
        return None
    try:
        converted = (float(value), float(low), float(high))
    except (OverflowError, InvalidOperation):
        return None
    return None if any(math.isnan(number) for number in converted) else converted


def _strings(value: bytes, low: bytes, high: bytes) -> tuple[float, float, float]:
    """convert_string_to_scalar: the range of characters of the bounds, widened to whole classes, is the base of a
    number; the prefix common to all three is left out."""
    first, last = (min(low + high), max(low + high)) if low + high else (ord(" "), 127)
    for start, end in ((b"A", b"Z"), (b"a", b"z"), (b"0", b"9")):
        if first <= end[0] and last >= start[0]:
            first, last = min(first, start[0]), max(last, end[0])
    if last - first < 9:
        first, last = ord(" "), 127
    shared = 0
    for one, two, three in zip(low, high, value, strict=False):
        if one != two or two != three:
            break
        shared += 1
    return tuple(_fraction(text[shared:], first, last) for text in (value, low, high))  # type: ignore[return-value]


def _fraction(text: bytes, first: int, last: int) -> float:
    """convert_one_string_to_scalar: at most twelve characters as digits behind the point."""
    base = last - first + 1
    number, denominator = 0.0, float(base)
    for character in text[:12]:
        digit = first - 1 if character < first else last + 1 if character > last else character
        number += (digit - first) / denominator
        denominator *= base
    return number


def following(prefix: str) -> str | None:
    """A string above every string that begins with the prefix (make_greater_string, like_support.c)."""
    while prefix:
        code = ord(prefix[-1]) + 1
        if code == 0xD800:
            code = 0xE000
        if code < 0x110000:
            return prefix[:-1] + chr(code)
        prefix = prefix[:-1]
    return None

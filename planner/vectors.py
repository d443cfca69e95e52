"""Columns of values with SQL's NULL, and the operators and functions that conditions use, over numpy.

A `Vector` holds one value (a constant) or one for each row of a sample; operations broadcast. Text is kept as codes
into a list of distinct words, so that a function of text costs one call per distinct word. Functions return None where
they cannot judge: an unknown type, function or unit. Nothing here raises on any values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np

from planner.selectivity_values import Family, Interval, family, interval, key, shift, type_name

Bools = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]

UNTYPED: Final = "unknown"
"""The type of a literal that takes its type from what it meets."""
_INTERVAL: Final = "interval"
_DAY: Final = 86_400_000_000
_NUMBERS: Final = frozenset({Family.INTEGER, Family.NUMERIC, Family.FLOAT})
_LONGEST_WORD: Final = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """``data`` has numbers, microseconds or booleans, or for text the place of each value in ``words``; what stands at
    a NULL means nothing. ``type`` is as format_type writes it. ``span`` is the one value of an interval constant."""

    type: str
    data: Array
    null: Bools
    words: Sequence[str] = ()
    span: Interval | None = None

    @property
    def family(self) -> Family:
        return Family.TEXT if self.type == UNTYPED else family(self.type)

    @property
    def constant(self) -> bool:
        return len(self.data) == 1


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """A condition's outcome for each row: true, or unknown (NULL); false where neither."""

    true: Bools
    unknown: Bools

    def negated(self) -> Verdict:
        return Verdict(~self.true & ~self.unknown, self.unknown)

    def both(self, other: Verdict) -> Verdict:
        true = self.true & other.true
        return Verdict(true, (self.true | self.unknown) & (other.true | other.unknown) & ~true)

    def either(self, other: Verdict) -> Verdict:
        true = self.true | other.true
        return Verdict(true, (self.unknown | other.unknown) & ~true)


_NONE: Final = np.zeros(1, dtype=bool)
_ALL: Final = np.ones(1, dtype=bool)
_ZERO: Final = np.zeros(1, dtype=np.int64)


def null(type_: str = UNTYPED) -> Vector:
    return Vector(type_, _ZERO, _ALL, ("",))


def constant(value: object, type_: str | None) -> Vector | None:
    """A literal's value; without a type by what it is."""
    natural = _natural_type(value)
    name = type_name(type_) if type_ else natural
    if value is None:
        return null(name)
    if name != natural and natural not in {UNTYPED, _INTERVAL} and family(name) is not family(natural):
        plain = constant(value, None)  # a number that was cast, like 2.5::int
        return None if plain is None else cast(plain, name)
    if name == _INTERVAL:
        span = interval(value) if isinstance(value, str) else value if isinstance(value, Interval) else None
        return None if span is None else Vector(_INTERVAL, _ZERO, _NONE, span=span)
    if name == UNTYPED:
        return Vector(UNTYPED, _ZERO, _NONE, (str(value),))
    kind = family(name)
    found = key(value, kind)
    if found is None or kind is Family.OTHER:
        return None
    if isinstance(found, str):
        return Vector(name, _ZERO, _NONE, (found,))
    if name == "date" and isinstance(found, int):
        found -= found % _DAY
    data = _array([found])
    return None if data is None else Vector(name, data, _NONE)


def _natural_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, Decimal):
        return "numeric"
    if isinstance(value, float):
        return "double precision"
    if isinstance(value, Interval):
        return _INTERVAL
    return UNTYPED


def _array(keys: Sequence[Any]) -> Array | None:
    try:
        if all(isinstance(one, bool) for one in keys):
            return np.array(keys, dtype=bool)
        if all(isinstance(one, int) and -(1 << 63) <= one < 1 << 63 for one in keys):
            return np.array(keys, dtype=np.int64)
        return np.array([float(one) for one in keys], dtype=np.float64)
    except (OverflowError, ValueError, TypeError):
        return None


def column(values: Sequence[object], type_: str) -> Vector | None:
    """A column of a sample. About 0.3 ms for 2000 values: keep it."""
    kind = family(type_)
    if kind is Family.OTHER:
        return None
    if kind is Family.TEXT:
        places: dict[str, int] = {}
        codes = [places.setdefault(value, len(places)) if isinstance(value, str) else -1 for value in values]
        data = np.array(codes, dtype=np.int64)
        missing = data < 0
        return Vector(type_, np.maximum(data, 0), missing, tuple(places) or ("",))
    keys = [key(value, kind) for value in values]
    nulls = np.array([one is None for one in keys], dtype=bool)
    filler = False if kind is Family.BOOLEAN else 0
    array = _array([filler if one is None else one for one in keys])
    return None if array is None else Vector(type_, array, nulls)


def texts(vector: Vector) -> Array:
    """The words of a text vector, one for each place."""
    return np.array(vector.words, dtype=object)[vector.data]


def typed(vector: Vector, type_: str) -> Vector | None:
    """An untyped literal as a value of that type; any other vector as it is."""
    if vector.type != UNTYPED:
        return vector
    return null(type_) if vector.null[0] else constant(vector.words[0], type_)


# ---------------------------------------------------------------------- comparing

_COMPARE: Final[Mapping[str, Callable[[Array, Array], Array]]] = {
    "=": np.equal,
    "<>": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_TEXT_COMPARE: Final[Mapping[str, Callable[[Sequence[str], str], list[bool]]]] = {
    "=": lambda words, other: [word == other for word in words],
    "<>": lambda words, other: [word != other for word in words],
    "<": lambda words, other: [word < other for word in words],
    "<=": lambda words, other: [word <= other for word in words],
    ">": lambda words, other: [word > other for word in words],
    ">=": lambda words, other: [word >= other for word in words],
}


def compare(operator: str, left: Vector, right: Vector) -> Verdict | None:
    """``left operator right`` for the six comparisons."""
    function = _COMPARE.get(operator)
    one, two = typed(left, right.type), typed(right, left.type)
    if function is None or one is None or two is None or one.span is not None or two.span is not None:
        return None
    unknown = one.null | two.null
    if one.family is Family.TEXT and two.family is Family.TEXT:
        if two.constant and not one.constant:
            word = two.words[0]
            true = np.array(_TEXT_COMPARE[operator](one.words, word), dtype=bool)[one.data]
        else:
            true = function(texts(one), texts(two)).astype(np.bool_)
    elif one.family is two.family or (one.family in _NUMBERS and two.family in _NUMBERS):
        true = function(one.data, two.data)
    else:
        return None
    true = np.asarray(true, dtype=np.bool_)
    return Verdict(true & ~unknown, unknown)


def within(operand: Vector, items: Sequence[Vector]) -> Verdict | None:
    """``operand IN (items)``; items are constants."""
    found = [typed(item, operand.type) for item in items]
    kinds = {item.family for item in found if item is not None and not item.null[0]}
    if None in found or not (kinds <= {operand.family} or (operand.family in _NUMBERS and kinds <= _NUMBERS)):
        return None
    known = [item for item in found if item is not None and not item.null[0]]
    if operand.family is Family.TEXT:
        words = {item.words[0] for item in known}
        true = np.array([word in words for word in operand.words], dtype=bool)[operand.data]
    else:
        true = np.isin(operand.data, [item.data[0] for item in known])
    true = true & ~operand.null
    with_null = len(known) < len(found)
    return Verdict(true, ~true if with_null else operand.null)


def words_where(operand: Vector, test: Callable[[str], bool]) -> Verdict | None:
    """A test of text, called once per distinct word."""
    if operand.family is not Family.TEXT:
        return None
    true = np.array([test(word) for word in operand.words], dtype=bool)[operand.data]
    return Verdict(true & ~operand.null, operand.null)


# ---------------------------------------------------------------------- arithmetic


def arithmetic(operator: str, left: Vector, right: Vector) -> Vector | None:
    """``+ - * / %`` of numbers, points in time and intervals."""
    if left.span is not None or right.span is not None:
        return _shifted(operator, left, right)
    one = typed(left, right.type)
    two = typed(right, left.type)
    if one is None or two is None:
        return None
    if Family.TIME in {one.family, two.family}:
        return _days(operator, one, two)
    if one.family not in _NUMBERS or two.family not in _NUMBERS:
        return None
    unknown = one.null | two.null
    whole = one.family is Family.INTEGER and two.family is Family.INTEGER
    a, b = (one.data, two.data) if whole else (one.data.astype(float), two.data.astype(float))
    with np.errstate(all="ignore"):
        if operator == "+":
            data = a + b
        elif operator == "-":
            data = a - b
        elif operator == "*":
            data = a * b
        elif operator in {"/", "%"}:
            unknown = unknown | (b == 0)
            divisor = np.where(b == 0, 1, b)
            # The server cuts towards zero; numpy's // goes down.
            quotient = np.trunc(a / divisor) if not whole else _cut(a, divisor)
            data = a - quotient * divisor if operator == "%" else quotient if whole else a / divisor
        else:
            return None
    if not whole and Family.FLOAT not in {one.family, two.family}:
        data = np.round(data, 10)  # numeric is exact there: 0.06 + 0.01 must reach 0.07
    wider = one.type if one.family is two.family or one.family is not Family.INTEGER else two.type
    return Vector("bigint" if whole else wider, data, unknown)


def _cut(a: Array, b: Array) -> Array:
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _days(operator: str, left: Vector, right: Vector) -> Vector | None:
    """Dates plus or minus whole days, and the days between two dates."""
    unknown = left.null | right.null
    if left.type == "date" and right.family is Family.INTEGER and operator in {"+", "-"}:
        days = right.data * _DAY
        return Vector("date", left.data + days if operator == "+" else left.data - days, unknown)
    if left.family is Family.INTEGER and right.type == "date" and operator == "+":
        return Vector("date", right.data + left.data * _DAY, unknown)
    if left.type == right.type == "date" and operator == "-":
        return Vector("integer", (left.data - right.data) // _DAY, unknown)
    return None


def _shifted(operator: str, left: Vector, right: Vector) -> Vector | None:
    """A point in time plus or minus an interval; an interval times a number is not needed for any index."""
    if left.span is not None and operator == "+":
        left, right = right, left
    span = right.span
    if span is None or left.span is not None or operator not in {"+", "-"} or left.family is not Family.TIME:
        return None
    type_ = "timestamp without time zone" if left.type == "date" else left.type
    sign = 1 if operator == "+" else -1
    if not span.months:
        return Vector(type_, left.data + sign * (span.days * _DAY + span.microseconds), left.null)
    distinct, places = np.unique(left.data, return_inverse=True)
    moved = [shift(int(at), span, sign) for at in distinct]
    if None in moved:
        return None
    return Vector(type_, np.array(moved, dtype=np.int64)[places], left.null)


# ---------------------------------------------------------------------- text


def by_word(operand: Vector, function: Callable[[str], str]) -> Vector | None:
    """A function of text that gives text."""
    if operand.family is not Family.TEXT:
        return None
    places: dict[str, int] = {}
    codes = np.array(
        [places.setdefault(function(word)[:_LONGEST_WORD], len(places)) for word in operand.words], dtype=np.int64
    )
    return Vector("text", codes[operand.data], operand.null, tuple(places))


def length(operand: Vector) -> Vector | None:
    if operand.family is not Family.TEXT:
        return None
    counts = np.array([len(word) for word in operand.words], dtype=np.int64)
    return Vector("integer", counts[operand.data], operand.null)


def concatenated(parts: Sequence[Vector], *, skip_null: bool) -> Vector | None:
    """``||`` (NULL with any NULL) or ``concat`` (NULL counts as nothing)."""
    rendered = [as_text(part) for part in parts]
    size = max((len(part.data) for part in parts), default=1)
    unknown = np.zeros(size, dtype=bool)
    columns: list[Sequence[str]] = []
    for part in rendered:
        if part is None:
            return None
        known = np.where(part.null, "", texts(part)) if skip_null else texts(part)
        unknown = unknown if skip_null else unknown | part.null
        columns.append(list(np.broadcast_to(known, (size,))))
    words = ["".join(row)[:_LONGEST_WORD] for row in zip(*columns, strict=True)] if columns else [""]
    joined = column(words, "text")
    return None if joined is None else Vector("text", joined.data, unknown, joined.words)


def as_text(vector: Vector) -> Vector | None:
    """A cast to text, where the text of a value does not depend on a setting."""
    if vector.family is Family.TEXT:
        return vector
    if vector.type == "date":
        days = vector.data.view("datetime64[us]").astype("datetime64[D]")
        return _worded([str(day) for day in days], vector.null)
    if vector.family is Family.INTEGER:
        return _worded([str(number) for number in vector.data], vector.null)
    if vector.family is Family.BOOLEAN:
        return _worded(["true" if value else "false" for value in vector.data], vector.null)
    return None


def _worded(words: Sequence[str], unknown: Bools) -> Vector | None:
    made = column(words, "text")
    return None if made is None else Vector("text", made.data, unknown, made.words)


# ---------------------------------------------------------------------- casts and numbers


def cast(vector: Vector, type_: str) -> Vector | None:
    """``vector::type``."""
    name = type_name(type_)
    kind = family(name)
    if vector.type == UNTYPED:
        return typed(vector, name) if name != _INTERVAL or vector.null[0] else constant(vector.words[0], _INTERVAL)
    if vector.type == name:
        return vector
    if kind is Family.TEXT:
        return as_text(vector) if name in {"text", "character varying"} else None
    if vector.family is Family.TEXT:
        keys = [key(word, kind) for word in vector.words]
        if kind is Family.OTHER or None in keys:
            return None
        values = _array(keys)
        return None if values is None else _day_start(Vector(name, values[vector.data], vector.null))
    if kind is Family.TIME and vector.family is Family.TIME:
        return _day_start(Vector(name, vector.data, vector.null))
    if kind in _NUMBERS and vector.family in _NUMBERS:
        if kind is not Family.INTEGER:
            return Vector(name, vector.data.astype(float), vector.null)
        if vector.family is Family.INTEGER:
            return Vector(name, vector.data, vector.null)
        rounded = np.rint(vector.data) if vector.family is Family.FLOAT else _half_away(vector.data)
        return Vector(name, _whole(rounded), vector.null)
    return None


def _day_start(vector: Vector) -> Vector:
    if vector.type != "date":
        return vector
    return Vector("date", vector.data - vector.data % _DAY, vector.null)


def _half_away(data: Array) -> Array:
    away: Array = np.sign(data) * np.floor(np.abs(data) + 0.5)
    return away


def _whole(data: Array) -> Array:
    whole: Array = np.clip(np.nan_to_num(data), -(2.0**62), 2.0**62).astype(np.int64)
    return whole


def rounded(operand: Vector, name: str, digits: int = 0) -> Vector | None:
    """abs, floor, ceil, round."""
    if operand.family not in _NUMBERS or not -20 <= digits <= 20:
        return None
    if name == "abs":
        return Vector(operand.type, np.abs(operand.data), operand.null)
    if operand.family is Family.INTEGER and digits >= 0:
        return operand
    scale = math.pow(10.0, digits)
    scaled = operand.data * scale
    if name == "round":
        data = np.rint(scaled) if operand.family is Family.FLOAT else _half_away(scaled)
    else:
        data = np.floor(scaled) if name == "floor" else np.ceil(scaled)
    return Vector(operand.type if operand.family is not Family.INTEGER else "numeric", data / scale, operand.null)


# ---------------------------------------------------------------------- time


def extracted(unit: str, operand: Vector) -> Vector | None:
    """extract and date_part."""
    if operand.family is not Family.TIME:
        return None
    at = operand.data.astype(np.int64)
    days = at // _DAY
    if unit == "epoch":
        return Vector("numeric", at / 1e6, operand.null)
    if unit in {"hour", "minute", "second"}:
        size, count = {"hour": (3_600_000_000, 24), "minute": (60_000_000, 60), "second": (1_000_000, 60)}[unit]
        data = (at // size) % count if unit != "second" else (at % 60_000_000) / 1e6
    elif unit == "dow":
        data = (days + 4) % 7
    elif unit == "isodow":
        data = (days + 3) % 7 + 1
    elif unit in {"year", "month", "quarter", "day", "doy"}:
        moments = at.view("datetime64[us]")
        months = moments.astype("datetime64[M]")
        month = months.astype(np.int64) % 12 + 1
        parts: Mapping[str, Callable[[], Array]] = {
            "year": lambda: moments.astype("datetime64[Y]").astype(np.int64) + 1970,
            "month": lambda: month,
            "quarter": lambda: (month - 1) // 3 + 1,
            "day": lambda: days - months.astype("datetime64[D]").astype(np.int64) + 1,
            "doy": lambda: days - moments.astype("datetime64[Y]").astype("datetime64[D]").astype(np.int64) + 1,
        }
        data = parts[unit]()
    else:
        return None
    return Vector("numeric", data, operand.null)


_TRUNCATE: Final[Mapping[str, str]] = {
    "year": "Y",
    "month": "M",
    "day": "D",
    "hour": "h",
    "minute": "m",
    "second": "s",
    "milliseconds": "ms",
    "microseconds": "us",
}


def truncated(unit: str, operand: Vector) -> Vector | None:
    """date_trunc."""
    if operand.family is not Family.TIME:
        return None
    at = operand.data.astype(np.int64)
    if unit == "week":
        data = (at // _DAY - (at // _DAY + 3) % 7) * _DAY
    elif unit == "quarter":
        months = at.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
        data = (months - months % 3).view("datetime64[M]").astype("datetime64[us]").astype(np.int64)
    elif unit in _TRUNCATE:
        data = at.view("datetime64[us]").astype(f"datetime64[{_TRUNCATE[unit]}]").astype("datetime64[us]")
        data = data.astype(np.int64)
    else:
        return None
    # Of a date comes a timestamp with the session's zone: as without one, since the zone is not known here.
    type_ = "timestamp without time zone" if operand.type == "date" else operand.type
    return Vector(type_, data, operand.null)


def first_known(parts: Sequence[Vector]) -> Vector | None:
    """coalesce."""
    target = next((part.type for part in parts if part.type != UNTYPED), UNTYPED)
    found = [typed(part, target) for part in parts]
    if not found or any(part is None or part.span is not None for part in found):
        return None
    known = [part for part in found if part is not None]
    result = known[0]
    for part in known[1:]:
        if result.family is not part.family:
            return None
        unknown = result.null & part.null
        if result.family is Family.TEXT:
            merged = np.where(result.null, texts(part), texts(result))
            made = column([str(word) for word in merged], "text")
            if made is None:
                return None
            result = Vector(result.type, made.data, unknown, made.words)
        else:
            result = Vector(result.type, np.where(result.null, part.data, result.data), unknown)
    return result

"""Parameter values from the bytes of a Bind message, text or binary, for the types that predicates mostly have.

Bytes come from clients: whatever they hold, nothing here raises. A value that is not understood, is out of Python's
range (infinite dates, NaN) or is long is left out, and its predicate is then one of an unknown value.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias
from uuid import UUID

from planner.graph import Const

MAX_VALUE: Final = 8192
"""Bytes of one scalar value that are looked at."""
MAX_ARRAY: Final = 256 * 1024
MAX_ELEMENTS: Final = 10_000

Decoder: TypeAlias = Callable[[bytes], object]

_EPOCH_DAY: Final = date(2000, 1, 1).toordinal()
_EPOCH: Final = datetime(2000, 1, 1)
_INT2, _INT4, _INT8, _UINT4 = struct.Struct("!h"), struct.Struct("!i"), struct.Struct("!q"), struct.Struct("!I")
_UINT2, _FLOAT4, _FLOAT8 = struct.Struct("!H"), struct.Struct("!f"), struct.Struct("!d")
_ERRORS: Final = (ValueError, ArithmeticError, struct.error, LookupError, InvalidOperation)
_MAX_DIGITS: Final = 400


def parameters(bind: bytes, types: Sequence[int]) -> dict[int, Const]:
    """The values by parameter number (from 1). ``bind`` begins at the count of format codes; ``types`` are OIDs.

    A value of a parameter without a type (0, or ``types`` is too short) is known in text format only, and is a string
    without a type, as an untyped literal is. About 1 us for each parameter.
    """
    found: dict[int, Const] = {}
    try:
        (formats,) = _UINT2.unpack_from(bind, 0)
        codes = struct.unpack_from(f"!{formats}H", bind, 2)
        at = 2 + 2 * formats
        (count,) = _UINT2.unpack_from(bind, at)
        at += 2
        for number in range(1, count + 1):
            (length,) = _INT4.unpack_from(bind, at)
            at += 4
            type_oid = types[number - 1] if number <= len(types) else 0
            if length < 0:
                found[number] = Const(None, _NAMES.get(type_oid))
                continue
            if at + length > len(bind):
                break
            binary = bool(codes[0] if formats == 1 else codes[number - 1] if number <= formats else 0)
            value = _value(bind, at, length, type_oid, binary)
            if value is not None:
                found[number] = value
            at += length
    except struct.error:
        pass  # what was read before the message ended short is as good
    return found


def _value(bind: bytes, at: int, length: int, type_oid: int, binary: bool) -> Const | None:
    element = _ARRAYS.get(type_oid)
    if length > (MAX_VALUE if element is None else MAX_ARRAY):
        return None
    data = bind[at : at + length]
    try:
        if element is not None:
            values = _binary_array(data, element) if binary else array_literal(data.decode(), _NAMES[element])
            return None if values is None else Const(values, f"{_NAMES[element]}[]")
        if type_oid in _UNTYPED:
            return None if binary else Const(data.decode())
        decoder = (_BINARY if binary else _TEXT).get(type_oid)
        if decoder is None:
            return None
        value = decoder(data)
        return None if value is None else Const(value, _NAMES[type_oid])
    except _ERRORS:
        return None


# ---------------------------------------------------------------------- text


def _text(data: bytes) -> str:
    return data.decode()


def _bool_text(data: bytes) -> bool | None:
    word = data.strip().lower()
    if word in {b"t", b"true", b"y", b"yes", b"on", b"1"}:
        return True
    return False if word in {b"f", b"false", b"n", b"no", b"off", b"0"} else None


def _int_text(data: bytes) -> int | None:
    return int(data) if len(data) <= 40 else None


def _float_text(data: bytes) -> float | None:
    value = float(data)
    return None if math.isnan(value) else value


def _numeric_text(data: bytes) -> Decimal | None:
    value = Decimal(data.decode("ascii"))
    return value if value.is_finite() and abs(value.adjusted()) <= _MAX_DIGITS else None


def _date_text(data: bytes) -> object:
    """ISO dates as such; other ways of writing depend on DateStyle, and stay text as a literal in the query would."""
    text = data.decode()
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def _timestamp_text(data: bytes) -> object:
    text = data.decode()
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return text
    return value.replace(tzinfo=None)  # the server ignores a zone here


def _timestamptz_text(data: bytes) -> object:
    """Without a zone of its own the value depends on TimeZone, and stays text."""
    text = data.decode()
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if value.tzinfo is None else value.astimezone(UTC)


def _time_text(data: bytes) -> object:
    text = data.decode()
    try:
        return time.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return text


# ---------------------------------------------------------------------- binary


def _bool_binary(data: bytes) -> bool | None:
    return data != b"\0" if len(data) == 1 else None


def _fixed(layout: struct.Struct) -> Decoder:
    def decode(data: bytes) -> object:
        (value,) = layout.unpack(data)
        return None if math.isnan(value) else value

    return decode


def _numeric_binary(data: bytes) -> Decimal | None:
    """Groups of four digits after (count, weight of the first group, sign, digits after the point); numeric_send."""
    count, weight, sign, scale = struct.unpack_from("!HhHH", data)
    digits = struct.unpack(f"!{count}H", data[8:])
    if sign not in {0, 0x4000} or abs(weight) > _MAX_DIGITS // 4 or scale > 0x3FFF or any(d > 9999 for d in digits):
        return None
    whole = 0
    for digit in digits:
        whole = whole * 10_000 + digit
    # Not by arithmetic, which rounds to the context's precision.
    value = Decimal((1 if sign else 0, tuple(map(int, str(whole))), 4 * (weight + 1 - count)))
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -scale and whole:
        value = Decimal((value.as_tuple().sign, value.as_tuple().digits[: exponent + scale] or (0,), -scale))
    return value


def _date_binary(data: bytes) -> date:
    (days,) = _INT4.unpack(data)
    return date.fromordinal(_EPOCH_DAY + days)


def _timestamp_binary(data: bytes) -> datetime:
    (microseconds,) = _INT8.unpack(data)
    return _EPOCH + timedelta(microseconds=microseconds)


def _timestamptz_binary(data: bytes) -> datetime:
    return _timestamp_binary(data).replace(tzinfo=UTC)


def _time_binary(data: bytes) -> time | None:
    (microseconds,) = _INT8.unpack(data)
    if not 0 <= microseconds < 86_400_000_000:
        return None  # 24:00 has no value in Python
    return (datetime.min + timedelta(microseconds=microseconds)).time()


def _uuid_binary(data: bytes) -> UUID:
    return UUID(bytes=data)


_NAMES: Final[dict[int, str]] = {
    16: "bool", 18: "char", 19: "name", 20: "int8", 21: "int2", 23: "int4", 25: "text", 26: "oid", 700: "float4",
    701: "float8", 1042: "bpchar", 1043: "varchar", 1082: "date", 1083: "time", 1114: "timestamp",
    1184: "timestamptz", 1700: "numeric", 2950: "uuid",
}  # fmt: skip
_OIDS: Final = {name: oid for oid, name in _NAMES.items()}
_ARRAYS: Final[dict[int, int]] = {
    1000: 16, 1003: 19, 1016: 20, 1005: 21, 1007: 23, 1009: 25, 1028: 26, 1021: 700, 1022: 701, 1014: 1042, 1015: 1043,
    1182: 1082, 1183: 1083, 1115: 1114, 1185: 1184, 1231: 1700, 2951: 2950,
}  # fmt: skip
_UNTYPED: Final = frozenset({0, 705})
_TEXT: Final[dict[int, Decoder]] = {
    16: _bool_text, 18: _text, 19: _text, 20: _int_text, 21: _int_text, 23: _int_text, 25: _text, 26: _int_text,
    700: _float_text, 701: _float_text, 1042: _text, 1043: _text, 1082: _date_text, 1083: _time_text,
    1114: _timestamp_text, 1184: _timestamptz_text, 1700: _numeric_text, 2950: lambda data: UUID(data.decode("ascii")),
}  # fmt: skip
_BINARY: Final[dict[int, Decoder]] = {
    16: _bool_binary, 18: _text, 19: _text, 20: _fixed(_INT8), 21: _fixed(_INT2), 23: _fixed(_INT4), 25: _text,
    26: _fixed(_UINT4), 700: _fixed(_FLOAT4), 701: _fixed(_FLOAT8), 1042: _text, 1043: _text, 1082: _date_binary,
    1083: _time_binary, 1114: _timestamp_binary, 1184: _timestamptz_binary, 1700: _numeric_binary, 2950: _uuid_binary,
}  # fmt: skip


# ---------------------------------------------------------------------- arrays


def _binary_array(data: bytes, element: int) -> tuple[object, ...] | None:
    """One dimension: (dimensions, flags, element type), (length, lower bound), then length and bytes of each."""
    dimensions, _, sent = struct.unpack_from("!iiI", data)
    if dimensions == 0:
        return ()
    if dimensions != 1 or sent != element:
        return None
    (count,) = _INT4.unpack_from(data, 12)
    if not 0 <= count <= MAX_ELEMENTS:
        return None
    decode = _BINARY[element]
    at = 20
    values: list[object] = []
    for _ in range(count):
        (length,) = _INT4.unpack_from(data, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        part = data[at : at + length]
        value = decode(part) if len(part) == length else None
        if value is None:
            return None
        values.append(value)
        at += length
    return tuple(values)


def array_literal(text: str, element: str) -> tuple[object, ...] | None:
    """The elements of ``{1,2,"x y",NULL}``; None if there are more dimensions, the type is not known, or the text is
    malformed."""
    oid = _OIDS.get(element)
    text = text.strip()
    if oid is None or len(text) > MAX_ARRAY or not text.startswith("{") or not text.endswith("}"):
        return None
    parts = _array_parts(text[1:-1])
    if parts is None or len(parts) > MAX_ELEMENTS:
        return None
    decode = _TEXT[oid]
    try:
        values = [None if part is None else decode(part.encode()) for part in parts]
    except _ERRORS:
        return None
    lost = any(value is None and part is not None for value, part in zip(values, parts, strict=True))
    return None if lost else tuple(values)


# Blanks before an element are never part of what follows, so that no text makes the search go back and forth.
_PART: Final = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"\s*|((?:[^"\\{},\s]|\\.)(?:[^"\\{},]|\\.)*))(,|$)', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


def _array_parts(body: str) -> list[str | None] | None:
    """Splits at commas outside quotes and takes quotes and backslashes away; NULL without quotes is None."""
    if not body.strip():
        return []
    parts: list[str | None] = []
    at = 0
    while True:
        found = _PART.match(body, at)
        if found is None:
            return None
        quoted, plain, comma = found.groups()
        if quoted is None:
            plain = plain.rstrip()
            parts.append(None if plain.upper() == "NULL" else _ESCAPE.sub(r"\1", plain))
        else:
            parts.append(_ESCAPE.sub(r"\1", quoted))
        if not comma:
            return parts
        at = found.end()

"""The messages in which the administration database answers. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from proxy.console_db.commands import CommandError
from proxy.wire.messages import cstring, error_from_fields, message, parameter_status

# Type OID and size by kind of column; everything is sent as text.
_TYPES: Final = {"text": (25, -1), "int": (20, 8), "float": (701, 8), "bool": (16, 1), "time": (1184, 8)}
_COUNT: Final = struct.Struct("!h")
_FIELD: Final = struct.Struct("!ihihih")
_LENGTH: Final = struct.Struct("!i")
_NULL: Final = _LENGTH.pack(-1)
EMPTY_QUERY: Final = message(b"I", b"")


def settings_report(version: str) -> bytes:
    """The ParameterStatus messages of a login. The server's version is the proxy's: clients must not take it for a
    PostgreSQL whose catalogs they could read."""
    reported = {
        "server_version": f"{version}/pilotwire",
        "server_encoding": "UTF8",
        "client_encoding": "UTF8",
        "standard_conforming_strings": "on",
        "integer_datetimes": "on",
        "DateStyle": "ISO, YMD",
        "TimeZone": "UTC",
        "is_superuser": "off",
    }
    return b"".join(parameter_status(name, value) for name, value in reported.items())


def row_description(columns: Sequence[tuple[str, str]]) -> bytes:
    """``columns``: name and kind of each."""
    fields = []
    for name, kind in columns:
        oid, size = _TYPES[kind]
        fields.append(_without_zero(name) + b"\0" + _FIELD.pack(0, 0, oid, size, -1, 0))
    return message(b"T", _COUNT.pack(len(columns)) + b"".join(fields))


def data_rows(rows: Iterable[Sequence[object]]) -> bytes:
    """One DataRow for each."""
    found = []
    for row in rows:
        cells = [_cell(value) for value in row]
        found.append(message(b"D", _COUNT.pack(len(cells)) + b"".join(cells)))
    return b"".join(found)


def _cell(value: object) -> bytes:
    if value is None:
        return _NULL
    text = ("t" if value else "f") if isinstance(value, bool) else str(value)
    data = _without_zero(text)
    return _LENGTH.pack(len(data)) + data


def _without_zero(text: str) -> bytes:
    # Names come from start-up packets, which may hold bytes that are no UTF-8.
    return text.replace("\0", "").encode("utf-8", "backslashreplace")


def command_complete(tag: str) -> bytes:
    return message(b"C", cstring(tag))


def notice(text: str) -> bytes:
    return error_from_fields({"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": text}, b"N")


def error(failure: CommandError) -> bytes:
    """An ErrorResponse after which the connection goes on."""
    fields = {"S": "ERROR", "V": "ERROR", "C": failure.sqlstate, "M": failure.text.replace("\0", "")}
    if failure.hint:
        fields["H"] = failure.hint
    if failure.position:
        fields["P"] = str(failure.position)
    return error_from_fields(fields)

"""The SQL that carries a client's settings from one backend to another: reading them, and putting them in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.wire.pins import STILL_NEEDED
from proxy.wire.statements import identifier, literal

# One client's settings are kept up to these sizes, in bytes (a value: in characters); beyond, it keeps its backend.
VALUE_LIMIT: Final = 8 * 1024
SETTINGS_LIMIT: Final = 64 * 1024
NAMES_LIMIT: Final = 30
"""Settings that are asked for at once: as long as they may be, with four bytes a character, they fit into a message of
the megabyte that is kept to be read."""


def capture_query(names: Iterable[bytes], pins: Iterable[int]) -> bytes:
    """Reads settings, each cut off behind the limit, and counts what still gives reason for pins."""
    columns = [
        b"pg_catalog.left(pg_catalog.current_setting("
        + literal(name)
        + b", true),"
        + str(VALUE_LIMIT + 1).encode()
        + b")"
        for name in names
    ]
    columns += [STILL_NEEDED[pin] for pin in pins]
    return b"SELECT " + b",".join(columns)


def settings_batches(present: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> list[bytes]:
    """The texts that bring a backend from one set of settings to another, to be sent one after the other.

    The client's encoding comes alone and first, since the values behind it are written in it. A role is left before
    anything is changed and taken last, since it decides what may be set.
    """
    encoding = b"client_encoding"
    batches = []
    if present.get(encoding) != wanted.get(encoding):
        batches.append(_change(encoding, wanted.get(encoding)))
    changed = [
        name
        for name in sorted({*present, *wanted})
        if present.get(name) != wanted.get(name) and name not in (encoding, b"role")
    ]
    parts = [_change(name, wanted.get(name)) for name in changed]
    if b"role" in present and (parts or present[b"role"] != wanted.get(b"role")):
        parts.insert(0, b"RESET ROLE")
        if b"role" in wanted:
            parts.append(_change(b"role", wanted[b"role"]))
    elif b"role" in wanted and b"role" not in present:
        parts.append(_change(b"role", wanted[b"role"]))
    if parts:
        batches.append(b";".join(parts))
    return batches


def _change(name: bytes, value: bytes | None) -> bytes:
    if value is None:
        return b"RESET " + b".".join(identifier(part) for part in name.split(b"."))
    return b"SELECT pg_catalog.set_config(" + literal(name) + b"," + literal(value) + b", false)"


def columns_of(data: bytes, pos: int) -> list[bytes | None]:
    """The text values of a DataRow whose body begins at ``pos``; None for NULL."""
    count = int.from_bytes(data[pos : pos + 2], "big")
    pos += 2
    values: list[bytes | None] = []
    for _ in range(count):
        length = int.from_bytes(data[pos : pos + 4], "big", signed=True)
        pos += 4
        if length < 0:
            values.append(None)
        else:
            values.append(data[pos : pos + length])
            pos += length
    return values

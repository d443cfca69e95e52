"""What a message is on the wire: one kind byte, a four-byte length that counts itself, a body.

Kinds are plain integers here because ``data[pos]`` of a bytes object is one: the relay compares them for every
message that passes and must not build a bytes object to do so.
"""

from __future__ import annotations

import struct
from types import FunctionType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mypy_extensions import i64

# Frontend kinds.
BIND: Final = 0x42  # B
CLOSE: Final = 0x43  # C
DESCRIBE: Final = 0x44  # D
EXECUTE: Final = 0x45  # E
FUNCTION_CALL: Final = 0x46  # F
FLUSH: Final = 0x48  # H
PARSE: Final = 0x50  # P
QUERY: Final = 0x51  # Q
SYNC: Final = 0x53  # S
TERMINATE: Final = 0x58  # X
COPY_DONE: Final = 0x63  # c
COPY_DATA: Final = 0x64  # d, both ways
COPY_FAIL: Final = 0x66  # f

# Backend kinds.
PARSE_COMPLETE: Final = 0x31  # 1
BIND_COMPLETE: Final = 0x32  # 2
CLOSE_COMPLETE: Final = 0x33  # 3
NOTIFICATION: Final = 0x41  # A
COMMAND_COMPLETE: Final = 0x43  # C
DATA_ROW: Final = 0x44  # D
ERROR: Final = 0x45  # E
COPY_IN: Final = 0x47  # G
COPY_OUT: Final = 0x48  # H
EMPTY_QUERY: Final = 0x49  # I
NOTICE: Final = 0x4E  # N
PARAMETER_STATUS: Final = 0x53  # S
ROW_DESCRIPTION: Final = 0x54  # T
COPY_BOTH: Final = 0x57  # W
READY: Final = 0x5A  # Z
NO_DATA: Final = 0x6E  # n
PORTAL_SUSPENDED: Final = 0x73  # s
PARAMETER_DESCRIPTION: Final = 0x74  # t

# Transaction states of ReadyForQuery.
IDLE: Final = 0x49  # I
IN_TRANSACTION: Final = 0x54  # T
FAILED: Final = 0x45  # E

HEADER: Final = struct.Struct("!BI")
HEADER_SIZE: Final = 5

# PostgreSQL's own bounds (libpq/libpq.h, PQ_LARGE_MESSAGE_LIMIT and PQ_SMALL_MESSAGE_LIMIT): 1 GB less one byte for
# messages that carry data, 10,000 bytes for the rest. A kind that no frontend may send has the limit 0.
LARGE_LIMIT: Final = 0x3FFFFFFF
SMALL_LIMIT: Final = 10_000
_LARGE = {BIND, COPY_DATA, FUNCTION_CALL, PARSE, QUERY}
_SMALL = {CLOSE, DESCRIBE, EXECUTE, FLUSH, SYNC, TERMINATE, COPY_DONE, COPY_FAIL}
FRONTEND_LIMITS: Final[tuple[int, ...]] = tuple(
    LARGE_LIMIT if kind in _LARGE else SMALL_LIMIT if kind in _SMALL else 0 for kind in range(256)
)

# A message up to this size is put together before it is looked at; a longer one streams past unread.
HOLD_LIMIT: Final = 64 * 1024


def whole_messages(data: bytes) -> tuple[list[tuple[int, int, int]], int]:
    """The whole messages that `data` begins with, as (kind, start, end), and where what is left over begins.

    For cold paths (logins, queries of the proxy's own): every message costs a tuple here. A length below 4, which no
    server sends, still moves on by a byte at least, so that any bytes are walked in a number of steps below theirs.
    """
    found: list[tuple[int, int, int]] = []
    start = 0
    while len(data) - start >= HEADER_SIZE:
        kind, length = HEADER.unpack_from(data, start)
        end = start + 1 + length
        if end > len(data):
            break
        found.append((kind, start, end))
        start = end
    return found, start


# A call of a method with positions costs the compiled build as much as looking at a hundred bytes.
_COMPILED: Final = not isinstance(whole_messages, FunctionType)
_SHORT: Final = 64


def end_of_name(data: bytes, start: int, end: int) -> int:
    """Where the zero stands that ends the string from ``start`` on, -1 when it is not in front of ``end``. For names,
    which are short."""
    if not _COMPILED:
        return data.find(0, start, end)
    at: i64 = start
    stop: i64 = start + _SHORT
    stop = min(stop, end)
    stop = min(stop, len(data))
    while at < stop:
        if data[at] == 0:
            return at
        at += 1
    return data.find(0, at, end) if at < end else -1


class ProtocolViolation(Exception):
    """The client broke the protocol; the text is the server's own wording for it (SQLSTATE 08P01)."""


def violation(kind: int, length: int) -> ProtocolViolation:
    if FRONTEND_LIMITS[kind] == 0:
        return ProtocolViolation(f"invalid frontend message type {kind}")
    return ProtocolViolation("invalid message length")

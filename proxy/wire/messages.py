"""Building single protocol messages and reading small ones: pure functions over bytes.

Field layouts are those of the PostgreSQL documentation, chapter "Message Formats". Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_LENGTH = struct.Struct("!i")

AUTHENTICATION_OK = b"R\0\0\0\x08\0\0\0\0"
FLUSH = b"H\0\0\0\x04"
SYNC = b"S\0\0\0\x04"
TERMINATE = b"X\0\0\0\x04"


def message(kind: bytes, body: bytes) -> bytes:
    """One message: the kind byte, the length (which counts itself, not the kind), the body."""
    return kind + _LENGTH.pack(len(body) + 4) + body


def cstring(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


def parse(name: bytes, text: bytes, types: bytes = b"\0\0") -> bytes:
    """``types`` is the tail from the count of parameter types on."""
    return message(b"P", name + b"\0" + text + b"\0" + types)


def bind(portal: bytes, name: bytes, rest: bytes) -> bytes:
    """``rest`` is the tail from the count of parameter format codes on."""
    return message(b"B", portal + b"\0" + name + b"\0" + rest)


def execute(portal: bytes) -> bytes:
    """Without a limit of rows."""
    return message(b"E", portal + b"\0\0\0\0\0")


def describe(kind: bytes, name: bytes) -> bytes:
    """``kind``: ``S`` for a statement, ``P`` for a portal."""
    return message(b"D", kind + name + b"\0")


def close(kind: bytes, name: bytes) -> bytes:
    """``kind``: ``S`` for a statement, ``P`` for a portal."""
    return message(b"C", kind + name + b"\0")


def is_fatal(body: bytes) -> bool:
    """Whether an ErrorResponse says that the connection ends. It may be given whole or as its body."""
    return body.find(b"\0VFATAL\0") >= 0 or body.find(b"\0VPANIC\0") >= 0


def rows_told(answer: bytes) -> int:
    """The number in the CommandComplete that an answer ends with, in front of its ReadyForQuery; -1 when there is none
    to be seen. For these bytes it takes about 0.5 us, however long they are."""
    end = len(answer) - 6
    while end > 5 and answer[end - 5 : end] == b"3\0\0\0\4":
        end -= 5  # CloseComplete
    start = answer.rfind(b"C\0\0\0", max(end - 40, 0), end)
    if start < 0 or end - start < 7 or answer[start + 4] != end - start - 1:
        return -1
    number = answer[start + 5 : end - 1].rpartition(b" ")[2]
    return int(number) if number.isdigit() else -1


def query(sql: str) -> bytes:
    return message(b"Q", cstring(sql))


def error_response(
    sqlstate: str, text: str, *, severity: str = "FATAL", detail: str | None = None, hint: str | None = None
) -> bytes:
    """An ErrorResponse with the fields that the server itself sends for errors of its own login code."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text}
    if detail is not None:
        fields["D"] = detail
    if hint is not None:
        fields["H"] = hint
    return error_from_fields(fields)


def error_from_fields(fields: Mapping[str, str], kind: bytes = b"E") -> bytes:
    """An ErrorResponse (or, with kind ``N``, a NoticeResponse) from one-letter field codes."""
    return message(kind, b"".join(code.encode() + cstring(value) for code, value in fields.items()) + b"\0")


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of the body of an ErrorResponse or NoticeResponse."""
    fields = {}
    for part in body.split(b"\0"):
        if part:
            fields[chr(part[0])] = part[1:].decode("utf-8", "surrogateescape")
    return fields


def parameter_status(name: str, value: str) -> bytes:
    return message(b"S", cstring(name) + cstring(value))


def backend_key_data(pid: int, secret: bytes) -> bytes:
    return message(b"K", _LENGTH.pack(pid) + secret)


def ready_for_query(status: bytes = b"I") -> bytes:
    return message(b"Z", status)


def cancel_request(pid: int, secret: bytes) -> bytes:
    """The whole packet of a CancelRequest; ``secret`` has 4 bytes in protocol 3.0, 4 to 256 in 3.2."""
    return struct.pack("!iii", 12 + len(secret), 80877102, pid) + secret


def startup_message(parameters: Mapping[str, str], minor: int = 0) -> bytes:
    """The whole start-up packet for protocol 3.``minor``."""
    body = struct.pack("!hh", 3, minor)
    body += b"".join(cstring(name) + cstring(value) for name, value in parameters.items()) + b"\0"
    return _LENGTH.pack(len(body) + 4) + body

"""The read-only guard, message by message.

What it refuses is replaced by something that the server cannot accept either, so that the error comes in its place in
the order and leaves the transaction as an error does; then its text is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from librt.strings import read_i32_be

from proxy.wire.frames import FUNCTION_CALL, PARSE, QUERY, ProtocolViolation
from proxy.wire.messages import error_response, message

# A read-only session's statements are looked at whole; longer ones are refused.
LIMIT: Final = 1024 * 1024
REFUSAL: Final = error_response(
    "25006",
    "this session is read-only and must stay so",
    severity="ERROR",
    hint="The proxy's read_only setting is on for this listener or user.",
)
_UNACCEPTABLE: Final = b"refused by the read-only guard"
# Functions that change a setting, or run a statement which they are given as a text: set_config, query_to_xml,
# query_to_xmlschema, query_to_xml_and_xmlschema, ts_rewrite.
_DANGEROUS: Final = frozenset({2078, 2924, 2927, 2930, 3685})


def forbidden(guard: Callable[[bytes], bool], kind: int, data: bytes, pos: int, end: int) -> bool:
    """Whether this message must not get to the server; ``guard`` says it of a text. Raises `ProtocolViolation` for a
    statement that is too long to be looked at, of which no more than the header may have arrived."""
    if kind not in (QUERY, PARSE, FUNCTION_CALL):
        return False
    if read_i32_be(data, pos + 1) > LIMIT:
        raise ProtocolViolation(f"a statement longer than {LIMIT} bytes is refused in a read-only session")
    if kind == FUNCTION_CALL:
        return end - pos >= 9 and read_i32_be(data, pos + 5) in _DANGEROUS
    start = pos + 5 if kind == QUERY else data.find(0, pos + 5, end) + 1
    stop = data.find(0, start, end)
    return start > 0 and stop >= 0 and guard(data[start:stop])  # no server reads a text that has no end


def in_place_of(kind: int, data: bytes, pos: int, end: int) -> bytes:
    """A message that the server refuses in the place of this one."""
    if kind == PARSE:
        name = data[pos + 5 : data.find(0, pos + 5, end) + 1]  # `forbidden` has found its end
        return message(b"P", name + _UNACCEPTABLE + b"\0\0\0")
    return message(b"Q", _UNACCEPTABLE + b"\0")

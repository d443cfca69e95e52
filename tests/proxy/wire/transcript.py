"""Transcripts: what each side says in turn, and what the other side is then told, as one readable expression.

    Transcript().client(parse("s"), SYNC).server(PARSED, ready()).idle()

Without ``becomes`` the bytes must come out as they went in. A transcript can be replayed with its bytes cut in other
places: nothing of what comes out may change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from proxy.steering import Steering
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.messages import message, ready_for_query

# What clients send.
SYNC = message(b"S", b"")
FLUSH = message(b"H", b"")
TERMINATE = message(b"X", b"")
COPY_DONE = message(b"c", b"")


def parse(name: str = "", text: str = "select 1", types: bytes = b"\0\0") -> bytes:
    return message(b"P", name.encode() + b"\0" + text.encode() + b"\0" + types)


def bind(name: str = "", portal: str = "", rest: bytes = b"\0\0\0\0\0\0") -> bytes:
    return message(b"B", portal.encode() + b"\0" + name.encode() + b"\0" + rest)


def describe(name: str = "", kind: bytes = b"S") -> bytes:
    return message(b"D", kind + name.encode() + b"\0")


def execute(portal: str = "", rows: int = 0) -> bytes:
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", rows))


def close(name: str = "", kind: bytes = b"S") -> bytes:
    return message(b"C", kind + name.encode() + b"\0")


def copy_data(data: bytes = b"1\n") -> bytes:
    return message(b"d", data)


def copy_fail(reason: str = "no") -> bytes:
    return message(b"f", reason.encode() + b"\0")


FUNCTION_CALL = message(b"F", struct.pack("!ihhh", 1, 0, 0, 0))

# What servers send.
PARSED = message(b"1", b"")
BOUND = message(b"2", b"")
CLOSED = message(b"3", b"")
NO_DATA = message(b"n", b"")
PARAMETERS = message(b"t", b"\0\0")
COLUMNS = message(b"T", b"\0\1a\0" + bytes(18))
EMPTY = message(b"I", b"")
SUSPENDED = message(b"s", b"")
COPY_IN = message(b"G", b"\0\0\1\0\0")
COPY_OUT = message(b"H", b"\0\0\1\0\0")
RESULT = message(b"V", struct.pack("!i", -1))
NOTIFY = message(b"A", struct.pack("!i", 7) + b"channel\0payload\0")
NOTICE = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0")


def row(*values: bytes | None) -> bytes:
    parts = [struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values]
    return message(b"D", struct.pack("!h", len(values)) + b"".join(parts))


def done(tag: str = "SELECT 1") -> bytes:
    return message(b"C", tag.encode() + b"\0")


def error(text: str = "no", code: str = "42601", severity: str = "ERROR") -> bytes:
    return message(b"E", f"S{severity}\0V{severity}\0C{code}\0M{text}\0\0".encode())


def status(name: str, value: str) -> bytes:
    return message(b"S", f"{name}\0{value}\0".encode())


def ready(state: str = "I") -> bytes:
    return ready_for_query(state.encode())


Cut = Callable[[bytes], Sequence[bytes]]


class Transcript:
    """A conversation under test; every step is checked as it is made, and remembered."""

    def __init__(self, make: Callable[[], Conversation] | None = None) -> None:
        self.make = make or (lambda: SteeredConversation(Steering()))
        self.talk = self.make()
        self.steps: list[tuple[str, bytes, bytes]] = []

    def client(self, *messages: bytes, becomes: Sequence[bytes] | None = None) -> Transcript:
        sent = b"".join(messages)
        expected = sent if becomes is None else b"".join(becomes)
        self.steps.append(("client", sent, expected))
        assert_same(self.talk.from_client(sent), expected)
        return self

    def server(self, *messages: bytes, becomes: Sequence[bytes] | None = None) -> Transcript:
        sent = b"".join(messages)
        expected = sent if becomes is None else b"".join(becomes)
        self.steps.append(("server", sent, expected))
        assert_same(self.talk.from_server(sent), expected)
        return self

    def idle(self) -> Transcript:
        assert self.talk.idle, self.talk
        assert not self.talk.owed.first, self.talk
        return self

    def busy(self) -> Transcript:
        assert not self.talk.idle, self.talk
        return self

    def replay(self, cut: Cut) -> Conversation:
        """The same again with each step's bytes cut up; what comes out, step by step, must be the same."""
        talk = self.make()
        for side, sent, expected in self.steps:
            feed = talk.from_client if side == "client" else talk.from_server
            assert_same(b"".join(feed(piece) for piece in cut(sent)), expected)
        assert (talk.idle, talk.status, list(talk.owed), talk.ready_count) == (
            self.talk.idle,
            self.talk.status,
            list(self.talk.owed),
            self.talk.ready_count,
        )
        return talk


def split(data: bytes) -> list[bytes]:
    """The messages in some bytes."""
    found, pos = [], 0
    while pos < len(data):
        end = pos + 1 + int.from_bytes(data[pos + 1 : pos + 5], "big")
        found.append(data[pos:end])
        pos = end
    return found


def assert_same(got: bytes, expected: bytes) -> None:
    if got != expected:
        raise AssertionError("\n".join(["got:", *map(repr, _split(got)), "expected:", *map(repr, _split(expected))]))


def _split(data: bytes) -> list[bytes]:
    return [part[:300] for part in split(data)]

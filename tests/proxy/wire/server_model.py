"""A model of the server's side of the protocol: reads the client's messages one by one, answers as PostgreSQL does.

What a statement does is written in its text: ``error``, ``empty``, ``begin``, ``end``, ``copyin``, ``copyout``,
``suspend``, anything else returns a row. An Execute does what its portal's name says, and a portal of that name need
not exist; a Parse or Bind with ``error`` in it fails.
"""

from __future__ import annotations

from collections import deque

from tests.proxy.wire import transcript as say


class ServerModel:
    """``synced`` is true when all that was read has been answered up to a ReadyForQuery."""

    def __init__(self) -> None:
        self.inbox: deque[bytes] = deque()
        self.state = "I"
        self.synced = True
        self.dead = False
        self._skipping = False
        self._copying = ""  # "simple" or "extended"

    def feed(self, data: bytes) -> None:
        self.inbox.extend(say.split(data))

    def step(self) -> bytes:
        """Reads one message; the answer to it."""
        raw = self.inbox.popleft()
        kind, body = chr(raw[0]), raw[5:]
        if kind == "X" or self.dead:
            self.dead = True
            return b""
        if self._copying:
            return self._copy(kind, body)
        if kind in "dcfH":
            return b""
        if self._skipping and kind != "S":
            return b""
        self.synced = False
        if kind == "S":
            self._skipping = False
            return self._ready()
        if kind == "Q":
            answer = self._run(body[:-1].decode(), simple=True)
            return answer if self._copying else answer + self._ready()
        if kind == "F":
            return (say.error() if self.state == "E" else say.RESULT) + self._ready()
        return self._extended(kind, body)

    def _ready(self) -> bytes:
        self.synced = True
        return say.ready(self.state)

    def _fail(self, *, simple: bool) -> bytes:
        if self.state == "T":
            self.state = "E"
        self._skipping = not simple
        return say.error()

    def _run(self, text: str, *, simple: bool) -> bytes:
        if self.state == "E" and text != "end":
            return self._fail(simple=simple)
        if text == "begin":
            self.state = "T"
            return say.done("BEGIN")
        if text == "end":
            self.state = "I"
            return say.done("COMMIT")
        if text == "error":
            return self._fail(simple=simple)
        if text == "empty":
            return say.EMPTY
        if text == "copyin":
            self._copying = "simple" if simple else "extended"
            return say.COPY_IN
        if text == "copyout":
            return say.COPY_OUT + say.copy_data() + say.COPY_DONE + say.done("COPY 1")
        if text == "suspend" and not simple:
            return say.row(b"1") + say.SUSPENDED
        if text == "late":
            return say.row(b"1") + say.NOTICE + self._fail(simple=simple)
        return (say.COLUMNS if simple else b"") + say.row(b"1") + say.NOTIFY + say.done()

    def _extended(self, kind: str, body: bytes) -> bytes:
        if kind == "E":
            return self._run(body.split(b"\0")[0].decode(), simple=False)
        # Of a Bind the portal alone says so: its statement may stand under another name.
        ends = b"end" in (body.split(b"\0")[:1] if kind == "B" else body.replace(b"\0", b" ").split())
        refused = kind == "D" and body[:1] == b"S"  # it has columns
        if b"error" in body or (self.state == "E" and (refused or (kind in "PB" and not ends))):
            return self._fail(simple=False)
        if kind == "D":
            return say.PARAMETERS + say.COLUMNS if body[:1] == b"S" else say.NO_DATA
        return {"P": say.PARSED, "B": say.BOUND, "C": say.CLOSED}[kind]

    def _copy(self, kind: str, body: bytes) -> bytes:
        if kind in "HS" or (kind == "d" and b"bad" not in body):
            return b""
        simple, self._copying = self._copying == "simple", ""
        if kind == "c":
            return say.done("COPY 1") + (self._ready() if simple else b"")
        if kind in "df":
            return self._fail(simple=simple) + (self._ready() if simple else b"")
        self.dead = True
        return say.error("unexpected message type during COPY from stdin", "08P01", "FATAL")

"""A model of one server process with prepared statements: what it answers, byte for byte, to a client's messages.

The text of a statement is what its execution returns; ``error`` cannot be parsed, ``fails`` fails when executed.
"""

from __future__ import annotations

import re

from tests.proxy.wire import transcript as say

_BY_NAME = re.compile(r'(deallocate|execute) "?([\w ]+?)"?$')


class PreparedServer:
    def __init__(self) -> None:
        self.state = "I"
        self.statements: dict[str, str] = {}
        self.unnamed: str | None = None
        self.portal: str | None = None
        self._skipping = False

    def answer(self, data: bytes) -> bytes:
        """The answer to some whole messages."""
        return b"".join(self._one(chr(raw[0]), raw[5:]) for raw in say.split(data))

    def _one(self, kind: str, body: bytes) -> bytes:
        if kind == "S":
            self._skipping = False
            return self._ready()
        if self._skipping or kind == "H":
            return b""
        if kind == "Q":
            self.unnamed = None
            answer = self._run(body[:-1].decode())
            if answer.startswith(b"E") and self.state == "T":
                self.state = "E"
            return answer + self._ready()
        answer = self._extended(kind, body)
        if answer.startswith(b"E"):
            self._skipping = True
            if self.state == "T":
                self.state = "E"
        return answer

    def _ready(self) -> bytes:
        if self.state == "I":
            self.portal = None
        return say.ready(self.state)

    def _extended(self, kind: str, body: bytes) -> bytes:
        first, _, rest = body.partition(b"\0")
        if kind == "P":
            return self._parse(first.decode(), rest.partition(b"\0")[0].decode())
        if kind == "B":
            text = self._text(rest.partition(b"\0")[0].decode())
            if text is None:
                return self._missing(rest.partition(b"\0")[0].decode())
            if self.state == "E" and text != "end":
                return _aborted()
            self.portal = text
            return say.BOUND
        if kind == "D":
            text = self._text(first[1:].decode())
            if text is None:
                return self._missing(first[1:].decode())
            return _aborted() if self.state == "E" and text != "end" else say.PARAMETERS + say.COLUMNS
        if kind == "C":
            name = first[1:].decode()
            if name:
                self.statements.pop(name, None)
            else:
                self.unnamed = None
            return say.CLOSED
        assert kind == "E", kind
        if self.portal is None:
            return say.error('portal "" does not exist', "34000")
        return self._run(self.portal)

    def _text(self, name: str) -> str | None:
        return self.statements.get(name) if name else self.unnamed

    def _missing(self, name: str) -> bytes:
        text = f'prepared statement "{name}" does not exist' if name else "unnamed prepared statement does not exist"
        return say.error(text, "26000")

    def _parse(self, name: str, text: str) -> bytes:
        if not name:
            self.unnamed = None
        if text == "error":
            return say.error("syntax error")
        if self.state == "E" and text not in ("end", ""):
            return _aborted()
        if name in self.statements:
            return say.error(f'prepared statement "{name}" already exists', "42P05")
        if name:
            self.statements[name] = text
        else:
            self.unnamed = text
        return say.PARSED

    def _run(self, text: str) -> bytes:
        if self.state == "E" and text not in ("end", ""):
            return _aborted()
        if text in ("begin", "end"):
            self.state = "T" if text == "begin" else "I"
            return say.done("BEGIN" if text == "begin" else "COMMIT")
        if text in ("error", "fails"):
            return say.error(text)
        if text == "":
            return say.EMPTY
        if text in ("deallocate all", "discard all"):
            if text == "discard all" and self.state != "I":
                return say.error("DISCARD ALL cannot run inside a transaction block", "25001")
            self.statements.clear()
            if text == "discard all":
                self.portal = None
            return say.done(text.upper())
        by_name = _BY_NAME.match(text)
        if by_name:
            name = by_name[2]
            if name not in self.statements:
                return self._missing(name)
            if by_name[1] == "deallocate":
                del self.statements[name]
                return say.done("DEALLOCATE")
            return self._run(self.statements[name])
        return say.row(text.encode()) + say.done()


def _aborted() -> bytes:
    return say.error("current transaction is aborted", "25P02")

"""Prepared statements that outlive a backend: what clients prepared, and what each backend holds of it.

A client's statement is known to backends by a name of ours that stands for its text and parameter types, so that
clients with the same statements share what is prepared. All bounds are in bytes: bounds by count alone have let other
proxies run out of memory.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final
from weakref import WeakValueDictionary

from proxy.wire.frames import CLOSE, HEADER, PARSE
from proxy.wire.statements import classify

# What a prepared statement costs the server beside its text is far more than this; it keeps tiny texts from being free.
_OVERHEAD: Final = 256
# Clients differ in application_name at most, mostly; beyond so many sets the oldest is not shared any more.
_REPORTED_SETS: Final = 1000


class Statement:
    """One text with its parameter types (``types`` is the tail of the Parse message from their count on)."""

    __slots__ = ("__weakref__", "flags", "name", "text", "types")

    def __init__(self, name: bytes, text: bytes, types: bytes) -> None:
        self.name = name
        self.text = text
        self.types = types
        self.flags = classify(text)

    def __repr__(self) -> str:
        return f"<Statement {self.name!r}>"

    @property
    def size(self) -> int:
        return len(self.text) + len(self.types) + _OVERHEAD

    def parse_message(self, name: bytes) -> bytes:
        body = name + b"\0" + self.text + b"\0" + self.types
        return HEADER.pack(PARSE, len(body) + 4) + body


# Stands for an unnamed statement on a backend that nobody knows, or that may not be there.
UNKNOWN: Final = Statement(b"", b"", b"\0\0")


class StatementRegistry:
    """The worker's statements by text and types; one lives as long as a client or a backend's cache holds it."""

    def __init__(self) -> None:
        # A client must not be able to guess the names behind which other clients' statements stand.
        self.prefix: Final = b"pw_" + secrets.token_hex(4).encode() + b"_"
        self._statements: WeakValueDictionary[tuple[bytes, bytes], Statement] = WeakValueDictionary()
        self._reported: OrderedDict[tuple[tuple[bytes, bytes], ...], dict[bytes, bytes]] = OrderedDict()
        self._serial = 0

    def intern(self, text: bytes, types: bytes) -> Statement:
        statement = self._statements.get((text, types))
        if statement is None:
            self._serial += 1
            statement = Statement(self.prefix + str(self._serial).encode(), text, types)
            self._statements[text, types] = statement
        return statement

    def shared(self, reported: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """One object for all equal sets of reported settings; it must not be changed by anybody."""
        key = tuple(reported.items())
        found = self._reported.get(key)
        if found is None:
            if len(self._reported) >= _REPORTED_SETS:
                self._reported.popitem(last=False)
            found = self._reported[key] = reported
        return found

    def renew(self) -> None:
        """Statements prepared from now on get new names: after DDL an old name may stand for an outdated plan."""
        self._statements.clear()

    @property
    def absent(self) -> bytes:
        """A name under which nothing is ever prepared: closing it does nothing but give a CloseComplete."""
        return self.prefix + b"0"


class PreparedCache:
    """What one backend holds: our names, least recently used first, within a bound in bytes."""

    __slots__ = ("_doubtful", "_limit", "_size", "_statements", "evictions", "unnamed")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._statements: OrderedDict[bytes, Statement] = OrderedDict()
        self._doubtful: set[bytes] = set()  # names among them that the backend may have or not
        self.unnamed: Statement | None = None
        self.evictions = 0

    def __contains__(self, statement: Statement) -> bool:
        return statement.name in self._statements

    def __len__(self) -> int:
        return len(self._statements)

    def use(self, statement: Statement) -> bool:
        """Whether the backend has it for certain; marks it as used."""
        if statement.name in self._statements and statement.name not in self._doubtful:
            self._statements.move_to_end(statement.name)
            return True
        return False

    def add(self, statement: Statement) -> list[Statement]:
        """Notes it as prepared and returns what must be closed to stay within the bound."""
        self._statements[statement.name] = statement
        self._size += statement.size
        evicted = []
        while self._size > self._limit and len(self._statements) > 1:
            name, old = self._statements.popitem(last=False)
            self._doubtful.discard(name)
            self._size -= old.size
            evicted.append(old)
        self.evictions += len(evicted)
        return evicted

    def restore(self, statement: Statement) -> None:
        """Notes as prepared what a Close that never happened would have taken away."""
        if statement.name not in self._statements:
            self._statements[statement.name] = statement
            self._size += statement.size

    def discard(self, statement: Statement) -> None:
        old = self._statements.pop(statement.name, None)
        if old is not None:
            self._doubtful.discard(statement.name)
            self._size -= old.size

    def doubt(self, statement: Statement) -> None:
        """The backend may have it or not: it must be closed before it is prepared again."""
        self.restore(statement)
        self._doubtful.add(statement.name)

    def doubtful(self, statement: Statement) -> bool:
        return statement.name in self._doubtful

    def clear(self) -> None:
        self._statements.clear()
        self._doubtful.clear()
        self._size = 0


def close_message(name: bytes) -> bytes:
    body = b"S" + name + b"\0"
    return HEADER.pack(CLOSE, len(body) + 4) + body

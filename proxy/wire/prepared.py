"""Prepared statements that outlive a backend: what clients prepared.

A client's statement is known to backends by a name of ours that stands for its text and parameter types, so that
clients with the same statements share what is prepared. What each backend holds of them is in
`proxy.wire.prepared_cache`. This module stays out of the compiled build, whose classes cannot be weakly referenced.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final
from weakref import WeakValueDictionary

from proxy.steering import Known
from proxy.wire import messages
from proxy.wire.statements import classify

# What a prepared statement costs the server beside its text is far more than this; it keeps tiny texts from being free.
_OVERHEAD: Final = 256
# Clients differ in application_name at most, mostly; beyond so many sets the oldest is not shared any more.
_SETS: Final = 1000
_NOTIFIERS: Final = 1000


# What servers have unless told otherwise. (They report it since PostgreSQL 18.)
_USUAL_PATH: Final = b'"$user", public'
# The settings by which the constants of a text are read when it is parsed; the server reports every one of them.
READING_SETTINGS: Final = (
    b"DateStyle",
    b"IntervalStyle",
    b"TimeZone",
    b"client_encoding",
    b"standard_conforming_strings",
)


def reading(text: bytes, reported: Mapping[bytes, bytes]) -> bytes:
    """By which settings the names and constants of a text are read now; b"" for one without constants whose names are
    looked for in the usual schemas."""
    path = reported.get(b"search_path", _USUAL_PATH)
    if text.find(b"'") < 0 and text.find(b"$$") < 0:
        return b"" if path == _USUAL_PATH else path
    return b"\0".join([path, *[reported.get(name, b"") for name in READING_SETTINGS]])


class Statement:
    """One text with its parameter types (``types`` is the tail of the Parse message from their count on), parsed under
    the settings that ``reading`` stands for."""

    __slots__ = ("__weakref__", "flags", "known", "name", "reading", "text", "types")

    def __init__(self, name: bytes, text: bytes, types: bytes, reading: bytes = b"") -> None:
        self.reading = reading
        self.name = name
        self.text = text
        self.types = types
        self.flags = classify(text)
        self.known: Known | None = None  # what steering knows of it, once it was prepared

    def __repr__(self) -> str:
        return f"<Statement {self.name!r}>"

    @property
    def size(self) -> int:
        return len(self.text) + len(self.types) + _OVERHEAD

    def parse_message(self, name: bytes) -> bytes:
        return messages.parse(name, self.text, self.types)


# Stands for an unnamed statement on a backend that nobody knows, or that may not be there.
UNKNOWN: Final = Statement(b"", b"", b"\0\0")


class StatementRegistry:
    """The worker's statements by text and types; one lives as long as a client or a backend's cache holds it."""

    def __init__(self) -> None:
        # A client must not be able to guess the names behind which other clients' statements stand.
        self.prefix: Final = b"pw_" + secrets.token_hex(4).encode() + b"_"
        self._statements: WeakValueDictionary[tuple[bytes, bytes, bytes], Statement] = WeakValueDictionary()
        self._sets: OrderedDict[tuple[tuple[bytes, bytes], ...], dict[bytes, bytes]] = OrderedDict()
        self._serial = 0
        # Whose NOTIFY ran on a backend last: its process id -> the one that the client was given.
        self._notifiers: dict[int, int] = {}

    def intern(self, text: bytes, types: bytes, reading: bytes = b"") -> Statement:
        statement = self._statements.get((text, types, reading))
        if statement is None:
            self._serial += 1
            statement = Statement(self.prefix + str(self._serial).encode(), text, types, reading)
            self._statements[text, types, reading] = statement
        return statement

    def shared(self, settings: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """One object for all equal sets of settings; it must not be changed by anybody."""
        key = tuple(settings.items())
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= _SETS:
                self._sets.popitem(last=False)
            found = self._sets[key] = settings
        return found

    def notified(self, backend: int, client: int) -> None:
        """A client has run NOTIFY on the backend of this process id."""
        if len(self._notifiers) >= _NOTIFIERS:
            self._notifiers.clear()
        self._notifiers[backend] = client

    def notifier(self, backend: int) -> int | None:
        """The process id by which clients know whose NOTIFY ran on this backend last."""
        return self._notifiers.get(backend)

    def renew(self) -> None:
        """Statements prepared from now on get new names: after DDL an old name may stand for an outdated plan."""
        self._statements.clear()

    @property
    def absent(self) -> bytes:
        """A name under which nothing is ever prepared: closing it does nothing but give a CloseComplete."""
        return self.prefix + b"0"

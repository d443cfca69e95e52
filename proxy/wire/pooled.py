"""A conversation whose backend changes from transaction to transaction.

What a client believes to be the state of its session is kept here and put in place on whichever backend it gets:
prepared statements under names of our own, and settings. What cannot be carried (LISTEN, temporary tables, advisory
locks, WITH HOLD cursors, SQL-level PREPARE) pins the client to its backend.

The truth about settings is asked of the server: at the end of a transaction in which a SET, RESET or set_config was
seen, their values are read with one query of our own, so that ROLLBACK, savepoints and SET LOCAL need no model here.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

from proxy.steering import LEAVE_ALONE, Steering
from proxy.wire.conversation import _KIND, OWN, Conversation
from proxy.wire.frames import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DATA_ROW,
    DESCRIBE,
    ERROR,
    HEADER,
    HOLD_LIMIT,
    LARGE_LIMIT,
    PARSE,
    QUERY,
)
from proxy.wire.messages import message
from proxy.wire.prepared import PreparedCache, Statement, StatementRegistry, close_message
from proxy.wire.statements import (
    ADVISORY,
    BY_NAME,
    DATABASE,
    HOLD,
    SET_CONFIG,
    SETS,
    TEMPORARY,
    UNTRACKABLE,
    classify,
    identifier,
    literal,
    prepared_name,
    settings_named,
)

# Why a client keeps its backend, as bits; the names are the label values of the metric.
PIN_LISTEN: Final = 1
PIN_TEMPORARY: Final = 2
PIN_ADVISORY: Final = 4
PIN_HOLD: Final = 8
PIN_PREPARE: Final = 16
PIN_SETTINGS: Final = 32  # settings that the proxy cannot carry over
PIN_LARGE: Final = 64  # an unnamed statement too long to be kept, until the next one
PIN_MEMORY: Final = 128  # more prepared statements than are kept for one client
PIN_NAMES: Final = {
    PIN_LISTEN: "listen",
    PIN_TEMPORARY: "temporary",
    PIN_ADVISORY: "advisory_lock",
    PIN_HOLD: "hold_cursor",
    PIN_PREPARE: "prepare",
    PIN_SETTINGS: "settings",
    PIN_LARGE: "large_statement",
    PIN_MEMORY: "prepared_bytes",
}
_PINS_OF_TEXT: Final = ((ADVISORY, PIN_ADVISORY), (TEMPORARY, PIN_TEMPORARY), (HOLD, PIN_HOLD))
_PINS_OF_TAG: Final = {
    b"LISTEN": PIN_LISTEN,
    b"PREPARE": PIN_PREPARE,
    b"LOAD": PIN_SETTINGS,
}
# After these a pin may have lost its reason, which the server is then asked.
_FREEING_TAGS: Final = frozenset(
    {b"UNLISTEN", b"CLOSE CURSOR", b"CLOSE CURSOR ALL", b"DEALLOCATE", b"DISCARD TEMP", b"DROP TABLE"}
)
_FREEABLE: Final = (PIN_LISTEN, PIN_ADVISORY, PIN_HOLD, PIN_PREPARE, PIN_TEMPORARY)
# Every name and operator is qualified: the client's search_path must not reach this (CVE-2025-12819).
_STILL_NEEDED: Final = (
    b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels()),"
    b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'"
    b" AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()),"
    b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_cursors WHERE is_holdable),"
    b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements WHERE from_sql),"
    b"(SELECT pg_catalog.count(*) FROM pg_catalog.pg_class"
    b" WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
)
# Reported by the server, but not settings that a client could have changed.
_NOT_SETTABLE: Final = frozenset(
    {
        b"in_hot_standby",
        b"integer_datetimes",
        b"is_superuser",
        b"server_encoding",
        b"server_version",
        b"session_authorization",
    }
)
# A long statement of which only the beginning was seen is harmless when it ends with one of these.
_HARMLESS_TAG: Final = re.compile(rb"(?:INSERT|UPDATE|DELETE|MERGE|COPY|BEGIN|COMMIT|ROLLBACK)\b")
_OUTDATED: Final = b"cached plan must not change result type"
_NAME_SEARCH: Final = 8 * 1024  # portal and statement names are looked for in so many bytes of a long message

_COPY_KINDS: Final = frozenset({COPY_DATA, COPY_DONE, COPY_FAIL})
_APPLY: Final = 0
_CAPTURE: Final = 1


class BackendState:
    """What a pooled backend carries beyond its start-up: prepared statements, settings, and what it last reported.

    ``settings`` maps lower-case names to the values put in place since start-up; ``reported`` is its ParameterStatus
    set, a dict that is replaced and never changed, so that many clients can share one.
    """

    __slots__ = ("prepared", "reported", "settings")

    def __init__(self, reported: dict[bytes, bytes], prepared_limit: int) -> None:
        self.reported = reported
        self.settings: dict[bytes, bytes] = {}
        self.prepared = PreparedCache(prepared_limit)


class PooledConversation(Conversation):
    """One client in transaction pooling. `link` before the first byte of a transaction, `unlink` after its end."""

    __slots__ = (
        "_at_link",
        "_blind",
        "_captured",
        "_changes",
        "_discarding",
        "_everything",
        "_freeing",
        "_initial",
        "_named",
        "_named_bytes",
        "_named_limit",
        "_own",
        "_own_failed",
        "_set_texts",
        "_touched",
        "_unnamed",
        "backend",
        "databases_text",
        "new_pins",
        "pins",
        "registry",
        "reported",
        "reprepared",
        "settings",
    )

    def __init__(
        self,
        steering: Steering,
        registry: StatementRegistry,
        reported: dict[bytes, bytes],
        settings: dict[bytes, bytes],
        named_limit: int,
    ) -> None:
        super().__init__(steering)
        self.registry = registry
        self.backend: BackendState | None = None
        self.reported = reported
        self.settings = settings
        self._initial = settings
        self._at_link = reported
        self._named: dict[bytes, Statement] = {}
        self._named_bytes = 0
        self._named_limit = named_limit
        self._unnamed: Statement | None = None
        # One entry for each Parse and Close in ``owed``: what to undo when the server never gets to it.
        self._changes: deque[tuple[int, bytes | None, Statement | None]] = deque()
        self._own: deque[tuple[int, list[bytes], bool]] = deque()
        self._own_failed = False
        self._captured: list[bytes | None] = []
        self.pins = 0
        self.new_pins = 0  # pins not yet counted by the session
        self._discarding = 0  # bytes of a client's message that go nowhere
        self._touched = False
        self._everything = False
        self._freeing = False
        self._blind = False
        self._set_texts: list[bytes] = []
        self.databases_text: bytes | None = None
        self.reprepared = 0

    # ------------------------------------------------------------------ changing backends

    def link(self, backend: BackendState) -> tuple[bytes, bytes]:
        """Takes a backend: (bytes to send to it first, bytes to tell the client first)."""
        self.backend = backend
        wanted = self.settings
        if backend.settings != wanted:
            batch = self._settings_batch(backend.settings, wanted)
            backend.settings = dict(wanted)
            backend.prepared.unnamed = None
            self._send_own(_APPLY, [])
            self._at_link = self.reported
            return message(b"Q", batch + b"\0"), b""
        self._at_link = self.reported
        return b"", self._report_differences()

    def adopt(self, reported: dict[bytes, bytes]) -> None:
        """What the client is told at its login: the pool's settings, with its own in their place."""
        own = {name: self._initial[name.lower()] for name in reported if name.lower() in self._initial}
        self.reported = self._at_link = {**reported, **own} if own else reported

    def unlink(self) -> bytes:
        """Gives the backend up; the beginning of a message that was kept back, to be brought along next time."""
        self.backend = None
        held, self._held = self._held, b""
        # Only COPY data that the server has refused already can still be streaming now: the rest goes nowhere.
        self._discarding, self._streaming = self._streaming, 0
        return held

    def without_strays(self, data: bytes) -> bytes:
        """Drops COPY messages that arrive outside COPY, after the server refused them, as the server itself does."""
        pos = min(self._discarding, len(data))
        self._discarding -= pos
        while len(data) - pos >= HEADER.size and data[pos] in _COPY_KINDS:
            length = HEADER.unpack_from(data, pos)[1]
            if length < 4 or length > LARGE_LIMIT:
                break
            end = pos + 1 + length
            self._discarding = max(0, end - len(data))
            pos = min(end, len(data))
        return data[pos:] if pos else data

    @property
    def releasable(self) -> bool:
        """Whether the backend can be given to another client now; asked after `settle` had nothing more to do."""
        return self.idle and not self.pins and not self._own_failed

    @property
    def failed(self) -> bool:
        """A query of the proxy's own failed: the state of this backend is not known any more."""
        return self._own_failed

    def settle(self) -> bytes:
        """At the end of a transaction: the query that must still be sent to know the session's state, or b""."""
        freeing = self._freeing and any(self.pins & pin for pin in _FREEABLE)
        names = self._names_to_capture() if self._touched or self.reported is not self._at_link else []
        everything = self._everything
        self._touched = self._everything = self._freeing = self._blind = False
        self._set_texts.clear()
        self._at_link = self.reported
        if not names and not freeing:
            return b""
        columns = [b"pg_catalog.current_setting(" + literal(name) + b", true)" for name in names]
        if freeing:
            columns.append(_STILL_NEEDED)
        self._captured = []
        self._send_own(_CAPTURE, [*names, b""] if freeing else names, everything)
        return message(b"Q", b"SELECT " + b",".join(columns) + b"\0")

    def _names_to_capture(self) -> list[bytes]:
        names = {
            name.lower()
            for name, value in self.reported.items()
            if self._at_link.get(name) != value and name not in _NOT_SETTABLE
        }
        if self._touched:
            for text in self._set_texts:
                found, everything, opaque = settings_named(text)
                names |= found
                if everything:
                    self._everything = True
                if opaque or found & UNTRACKABLE:
                    self._pin(PIN_SETTINGS)
            if self._everything:
                names |= self.settings.keys()
        return sorted(names - UNTRACKABLE)

    def _send_own(self, what: int, names: list[bytes], everything: bool = False) -> None:
        self._own.append((what, names, everything))
        self.owed.append(QUERY | OWN)
        self.idle = False

    @staticmethod
    def _settings_batch(present: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> bytes:
        """The statements that bring a backend from one set of settings to another; the role goes first and comes
        last, since it decides what may be set."""
        parts = []
        if b"role" in present and present.get(b"role") != wanted.get(b"role"):
            parts.append(b"RESET ROLE")
        for name in present:
            if name not in wanted and name != b"role":
                parts.append(b"RESET " + b".".join(identifier(part) for part in name.split(b".")))
        for name, value in sorted(wanted.items(), key=lambda item: item[0] == b"role"):
            if present.get(name) != value:
                parts.append(b"SELECT pg_catalog.set_config(" + literal(name) + b"," + literal(value) + b", false)")
        return b";".join(parts)

    def _report_differences(self) -> bytes:
        """ParameterStatus messages that bring the client's view up to date with its backend."""
        assert self.backend is not None
        theirs, ours = self.backend.reported, self.reported
        if theirs is ours:
            return b""
        changed = [(name, value) for name, value in theirs.items() if ours.get(name) != value]
        self.reported = self._at_link = theirs
        return b"".join(message(b"S", name + b"\0" + value + b"\0") for name, value in changed)

    def _pin(self, pin: int) -> None:
        if not self.pins & pin:
            self.pins |= pin
            self.new_pins |= pin

    # ------------------------------------------------------------------ from the client

    def _may_stream(self, kind: int, length: int, data: bytes, pos: int) -> bool:
        if kind in (BIND, PARSE) and length > HOLD_LIMIT:
            available = len(data) - pos
            first = data.find(0, pos + 5)
            return available > _NAME_SEARCH or (first >= 0 and data.find(0, first + 1) >= 0)
        return super()._may_stream(kind, length, data, pos)

    def _query(self, data: bytes, pos: int, end: int) -> bytes | None:
        assert self.backend is not None
        self._unnamed = self.backend.prepared.unnamed = None
        self.pins &= ~PIN_LARGE
        if end - pos > HOLD_LIMIT:
            self._blind = True
            return None
        text = data[pos + 5 : end - 1]
        flags = classify(text)
        if flags:
            self._note(text, flags)
            if flags & BY_NAME:
                return self._by_name(text)
        if self.steering.query(text) is LEAVE_ALONE:
            self.left_alone += 1
        return None

    def _note(self, text: bytes, flags: int) -> None:
        """What a statement that is about to run may do to the session."""
        if flags & SETS:
            self._set_texts.append(text)
            if flags & SET_CONFIG:
                self._touched = True
        for flag, pin in _PINS_OF_TEXT:
            if flags & flag:
                self._pin(pin)
        if flags & DATABASE:
            self.databases_text = text
        if self.pins & PIN_ADVISORY:
            self._freeing = True

    def _by_name(self, text: bytes) -> bytes | None:
        """DEALLOCATE or EXECUTE of a statement that the client prepared through the protocol."""
        found = prepared_name(text)
        statement = self._named.get(found[2]) if found is not None else None
        if found is None or statement is None:
            return None
        assert self.backend is not None
        start, end, name = found
        entry = self.owed.pop()  # our Parse, if one is needed, goes in front of the query
        before = self._ensure(statement)
        self.owed.append(entry)
        if b"deallocate" in text[:start].lower():
            self._forget(name)
            self.backend.prepared.discard(statement)
        rewritten = text[:start] + identifier(statement.name) + text[end:]
        return before + message(b"Q", rewritten + b"\0")

    def _parse(self, data: bytes, pos: int, end: int) -> bytes | None:
        assert self.backend is not None
        name_end = data.find(0, pos + 5, end)
        text_end = data.find(0, name_end + 1, end) if name_end >= 0 else -1
        if self._skipping or name_end < 0 or (text_end < 0 and end - pos <= HOLD_LIMIT):
            self._change(PARSE, None, None)
            return None
        name = data[pos + 5 : name_end]
        if end - pos > HOLD_LIMIT or self.pins & PIN_MEMORY:
            self._parse_unkept(name, large=end - pos > HOLD_LIMIT)
            return None
        statement = self.registry.intern(data[name_end + 1 : text_end], data[text_end + 1 : end])
        prepared = self.backend.prepared
        if not name:
            self._unnamed = prepared.unnamed = statement
            self.pins &= ~PIN_LARGE
            self._change(PARSE, name, statement)
            return None
        present = self._named.get(name)
        if present is not None:
            # The server must say that the name is taken.
            before = self._ensure(present)
            self._change(PARSE, None, None)
            return before + statement.parse_message(present.name)
        if self._named_bytes + statement.size > self._named_limit:
            self._pin(PIN_MEMORY)
            self._parse_unkept(name, large=False)
            return None
        self._named[name] = statement
        self._named_bytes += statement.size
        # A fresh Parse is always a real one: its errors are the client's, and its plan is of today.
        before = b""
        if statement in prepared:
            prepared.discard(statement)
            self._change(CLOSE | OWN, None, statement)
            before = close_message(statement.name)
        before += self._evict(prepared.add(statement))
        self._change(PARSE, name, statement)
        return before + statement.parse_message(statement.name)

    def _parse_unkept(self, name: bytes, *, large: bool) -> None:
        """A Parse that goes on as it is, since it is not kept for another backend."""
        assert self.backend is not None
        if name:
            self._pin(PIN_MEMORY)
        else:
            self._unnamed = self.backend.prepared.unnamed = None
            self._pin(PIN_LARGE)
        self._blind = self._blind or large
        self._change(PARSE, None, None)

    def _bind(self, data: bytes, pos: int, end: int) -> bytes | None:
        if self._skipping:
            return None
        portal_end = data.find(0, pos + 5, end)
        name_end = data.find(0, portal_end + 1, end) if portal_end >= 0 else -1
        if name_end < 0:
            return None
        name = data[portal_end + 1 : name_end]
        statement = self._named.get(name) if name else self._unnamed
        if statement is None:
            return None
        if statement.flags:
            self._note(statement.text, statement.flags)
        if self.steering.bind(statement.text, data, name_end + 1, end) is LEAVE_ALONE:
            self.left_alone += 1
        before = self._ensure(statement) if name else self._ensure_unnamed(statement)
        if not name:
            return before + data[pos:end] if before else None
        length = HEADER.unpack_from(data, pos)[1] + len(statement.name) - len(name)
        return b"".join(
            (before, HEADER.pack(BIND, length), data[pos + 5 : portal_end + 1], statement.name, data[name_end:end])
        )

    def _describe(self, data: bytes, pos: int, end: int) -> bytes | None:
        if self._skipping or data[pos + 5] != 0x53:  # 'S', a statement
            return None
        name = data[pos + 6 : end - 1]
        statement = self._named.get(name) if name else self._unnamed
        if statement is None:
            return None
        if not name:
            before = self._ensure_unnamed(statement)
            return before + data[pos:end] if before else None
        body = b"S" + statement.name + b"\0"
        return self._ensure(statement) + HEADER.pack(DESCRIBE, len(body) + 4) + body

    def _close(self, data: bytes, pos: int, end: int) -> bytes | None:
        """Close of a statement forgets the client's name; the backend keeps its copy for other clients. The server
        closes a name that is not there instead, so that its CloseComplete comes in its place in the order."""
        if self._skipping or data[pos + 5] != 0x53:
            self._change(CLOSE, None, None, owe=False)
            return None
        name = data[pos + 6 : end - 1]
        if not name:
            self._unnamed = None
            if self.backend is not None:
                self.backend.prepared.unnamed = None
        statement = self._forget(name)
        self._change(CLOSE, name, statement, owe=False)
        return close_message(self.registry.absent) if statement is not None else None

    def _forget(self, name: bytes) -> Statement | None:
        statement = self._named.pop(name, None)
        if statement is not None:
            self._named_bytes -= statement.size
        return statement

    def _ensure(self, statement: Statement) -> bytes:
        """What must be sent first for the backend to have this statement."""
        assert self.backend is not None
        prepared = self.backend.prepared
        if prepared.use(statement):
            return b""
        self.reprepared += 1
        before = self._evict(prepared.add(statement))
        self._change(PARSE | OWN, None, statement)
        return before + statement.parse_message(statement.name)

    def _ensure_unnamed(self, statement: Statement) -> bytes:
        assert self.backend is not None
        if self.backend.prepared.unnamed is statement:
            return b""
        self.reprepared += 1
        self.backend.prepared.unnamed = statement
        self._change(PARSE | OWN, b"", statement)
        return statement.parse_message(b"")

    def _evict(self, statements: list[Statement]) -> bytes:
        for statement in statements:
            self._change(CLOSE | OWN, None, statement)
        return b"".join(close_message(statement.name) for statement in statements)

    def _change(self, entry: int, name: bytes | None, statement: Statement | None, *, owe: bool = True) -> None:
        if self._skipping:
            return
        self._changes.append((entry, name, statement))
        if owe:
            self._copy_in = False
            self.owed.append(entry)

    # ------------------------------------------------------------------ from the server

    def _named_change(self) -> None:
        self._changes.popleft()

    def _dropped(self, entry: int) -> None:
        if entry & _KIND not in (PARSE, CLOSE) or not self._changes:
            return
        entry, name, statement = self._changes.popleft()
        if statement is None or self.backend is None:
            return
        prepared = self.backend.prepared
        if entry & _KIND == PARSE:
            if name == b"":
                prepared.unnamed = None
                if entry == PARSE:
                    self._unnamed = None
                return
            prepared.discard(statement)
            if name is not None and self._named.get(name) is statement:
                self._forget(name)
        elif entry == CLOSE | OWN:
            prepared.restore(statement)
        elif name is not None and name not in self._named:
            self._named[name] = statement
            self._named_bytes += statement.size

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        edited = super()._error(data, pos, end, head)
        if edited is not None:
            return edited
        body = data[pos + 5 : end]
        if _OUTDATED in body:
            self.registry.renew()
        if self.registry.prefix not in body:
            return None
        for name, statement in self._named.items():
            body = body.replace(b'"' + statement.name + b'"', b'"' + name + b'"')
        return message(b"E", body)

    def _completed(self, data: bytes, pos: int, end: int) -> None:
        tag = data[pos + 5 : end - 1]
        if self._blind and not _HARMLESS_TAG.match(tag):
            self._pin(PIN_SETTINGS)
        if tag in _PINS_OF_TAG:
            self._pin(_PINS_OF_TAG[tag])
        elif tag == b"SET" or tag == b"RESET":
            self._touched = True
        elif tag in _FREEING_TAGS:
            self._freeing = True
        elif tag == b"DISCARD ALL" or tag == b"DEALLOCATE ALL":
            self._discarded(everything=tag == b"DISCARD ALL")
        elif tag.startswith((b"ALTER ", b"DROP ", b"CREATE VIEW")):
            self.registry.renew()

    def _discarded(self, *, everything: bool) -> None:
        self._named.clear()
        self._named_bytes = 0
        if self.backend is not None:
            self.backend.prepared.clear()
        self.pins &= ~PIN_PREPARE
        if everything:
            self._unnamed = None
            self.pins = 0
            self.settings = self._initial
            if self.backend is not None:
                self.backend.settings = {}
            self._touched = False
            self._set_texts.clear()
            self._at_link = self.reported

    def _parameter_status(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        edited = super()._parameter_status(data, pos, end, head)
        name, value, _ = data[pos + 5 : end].split(b"\0", 2)
        if self.backend is not None:
            self.backend.reported = {**self.backend.reported, name: value}
            if head != QUERY | OWN:
                self.reported = self.backend.reported
        return edited

    def _own_reply(self, kind: int, data: bytes, pos: int, end: int) -> None:
        if kind == ERROR:
            self._own_failed = True
        elif kind == DATA_ROW and self._own[0][0] == _CAPTURE:
            self._captured = _columns(data, pos + 5)

    def _own_ready(self) -> bytes:
        what, names, everything = self._own.popleft()
        if self._own_failed:
            return b""
        if what == _APPLY:
            return self._report_differences()
        assert self.backend is not None
        if names and names[-1] == b"":
            names = names[:-1]
            for pin, count in zip(_FREEABLE, self._captured[len(names) :], strict=True):
                if count == b"0":
                    self.pins &= ~pin
        captured = dict(zip(names, self._captured, strict=False))
        self.backend.settings = {
            **self.settings,
            **{name: value for name, value in captured.items() if value is not None},
        }
        # RESET ALL goes back to what the client asked for at its start-up, which is not the backend's own.
        self.settings = {**self.backend.settings, **self._initial} if everything else self.backend.settings
        self.backend.settings = dict(self.backend.settings)
        self._at_link = self.reported
        return b""


def _columns(data: bytes, pos: int) -> list[bytes | None]:
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

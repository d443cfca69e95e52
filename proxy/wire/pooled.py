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
from typing import Final, NamedTuple

from proxy.steering import LEAVE_ALONE, Steering
from proxy.wire.carried import NAMES_LIMIT, SETTINGS_LIMIT, VALUE_LIMIT, capture_query, columns_of, settings_batches
from proxy.wire.conversation import _KIND, ALWAYS_WATCHED, OWN, Conversation
from proxy.wire.frames import (
    BIND,
    CLOSE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DATA_ROW,
    DESCRIBE,
    FLUSH,
    FUNCTION_CALL,
    HEADER,
    HOLD_LIMIT,
    LARGE_LIMIT,
    PARSE,
    PARSE_COMPLETE,
    QUERY,
    SYNC,
)
from proxy.wire.messages import SYNC as SYNC_MESSAGE
from proxy.wire.messages import message
from proxy.wire.pins import (
    FREEABLE,
    FREEING_TAGS,
    PIN_LARGE,
    PIN_MEMORY,
    PIN_PREPARE,
    PIN_SETTINGS,
    PINS_OF_TAG,
    PINS_OF_TEXT,
    STILL_NEEDED,
)
from proxy.wire.prepared import PreparedCache, Statement, StatementRegistry, close_message
from proxy.wire.statements import (
    BY_NAME,
    DATABASE,
    SET_CONFIG,
    SETS,
    UNLOCKS,
    UNTRACKABLE,
    classify,
    identifier,
    prepared_name,
    settings_named,
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
# In these encodings a byte of a character can look like a quote or a backslash.
_TRICKY_ENCODINGS: Final = frozenset({b"SJIS", b"BIG5", b"GBK", b"UHC", b"GB18030", b"JOHAB", b"SHIFT_JIS_2004"})
# A long statement of which only the beginning was seen is harmless when it ends with one of these.
_HARMLESS_TAG: Final = re.compile(
    rb"(?:INSERT|UPDATE|DELETE|MERGE|COPY|BEGIN|START|SAVEPOINT|RELEASE|COMMIT|ROLLBACK|DEALLOCATE)\b"
)
_OUTDATED: Final = b"cached plan must not change result type"
_FATAL: Final = (b"\0VFATAL\0", b"\0VPANIC\0")
_CANCELED: Final = b"\0C57014\0"
_OWN_TRIES: Final = 3
_NAME_SEARCH: Final = 8 * 1024  # portal and statement names are looked for in so many bytes of a long message
_TEXTS_LIMIT: Final = 64 * 1024  # texts with SET in them that are remembered within one transaction

# Sent outside COPY, or with nothing to flush, these do nothing.
_STRAY_KINDS: Final = frozenset({COPY_DATA, COPY_DONE, COPY_FAIL, FLUSH})
_APPLY: Final = 0
_CAPTURE: Final = 1
_PARSED: Final = 2
_RESTORE: Final = 3
# Added to the entry of a Query for which there is a note in ``_changes``.
_NOTED: Final = 0x400


class _Own(NamedTuple):
    """A query of the proxy's own: what for, and the settings and pins it asks about."""

    what: int
    names: tuple[bytes, ...] = ()
    pins: tuple[int, ...] = ()


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


_WATCHED: Final = ALWAYS_WATCHED | {COMMAND_COMPLETE, PARSE_COMPLETE, CLOSE_COMPLETE}


class PooledConversation(Conversation):
    """One client in transaction pooling. `link` before the first byte of a transaction, `unlink` after its end."""

    __slots__ = (
        "_again",
        "_at_link",
        "_blind",
        "_captured",
        "_changes",
        "_discarding",
        "_everything",
        "_failure",
        "_freeing",
        "_initial",
        "_named",
        "_named_bytes",
        "_named_limit",
        "_own",
        "_own_failed",
        "_set_bytes",
        "_set_tags",
        "_set_texts",
        "_to_default",
        "_touched",
        "_tries",
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
        self._names_pass = False
        self._watched = _WATCHED
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
        self._own: deque[_Own] = deque()
        self._own_failed = False
        self._failure = b""  # the body of the error that a query of our own met
        self._tries = 0
        self._again: _Own | None = None
        self._captured: list[bytes | None] = []
        self.pins = 0
        self.new_pins = 0  # pins not yet counted by the session
        self._discarding = 0  # bytes of a client's message that go nowhere
        self._touched = False
        self._everything = False
        self._freeing = False
        self._blind = False
        self._set_texts: list[bytes] = []
        self._set_bytes = 0
        self._set_tags = 0  # SET and RESET statements that ended
        self._to_default: set[bytes] = set()
        self.databases_text: bytes | None = None
        self.reprepared = 0

    # ------------------------------------------------------------------ changing backends

    def link(self, backend: BackendState) -> tuple[bytes, bytes]:
        """Takes a backend: (bytes to send to it first, bytes to tell the client first).

        When there is something to send, nothing of the client's may follow before it is answered: if it fails, the
        client's statements would run under somebody else's settings.
        """
        self.backend = backend
        self._tries = 0
        self._at_link = self.reported
        first = self._apply() if backend.settings != self.settings else b""
        return first, b"" if first else self._report_differences()

    def retry(self) -> bytes:
        """Settings that were not put in place because a cancel request hit our own query: the query again, or b""."""
        self._tries += 1
        if _CANCELED not in self._failure or self._tries >= _OWN_TRIES:
            return b""
        self._own_failed = False
        return self._apply()

    def _apply(self) -> bytes:
        assert self.backend is not None
        batches = settings_batches(self.backend.settings, self.settings)
        for _ in batches:
            self._send_own(_Own(_APPLY))
        return b"".join(message(b"Q", batch + b"\0") for batch in batches)

    def adopt(self, reported: dict[bytes, bytes]) -> None:
        """What the client is told at its login: the pool's settings, with its own in their place."""
        own = {name: self._initial[name.lower()] for name in reported if name.lower() in self._initial}
        self.reported = self._at_link = self.registry.shared({**reported, **own} if own else reported)

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
        while len(data) - pos >= HEADER.size and data[pos] in _STRAY_KINDS:
            length = HEADER.unpack_from(data, pos)[1]
            if length < 4 or length > LARGE_LIMIT:
                break
            end = pos + 1 + length
            self._discarding = max(0, end - len(data))
            pos = min(end, len(data))
        return data[pos:] if pos else data

    @property
    def answers_coming(self) -> bool:
        """Whether the server will answer up to a ReadyForQuery without another word of the client."""
        asked = [entry for entry in self.owed if entry != COPY_DONE]
        if self._streaming or self._copy_in or not asked:
            return False
        return asked[-1] & _KIND in (QUERY, SYNC, FUNCTION_CALL)

    @property
    def releasable(self) -> bool:
        """Whether the backend can be given to another client now; asked after `settle` had nothing more to do."""
        return self.idle and not self.pins and not self._own_failed

    @property
    def failed(self) -> bool:
        """Settings could not be put in place: this backend is not what the client takes it for."""
        return self._own_failed

    @property
    def failure(self) -> bytes:
        """The body of the ErrorResponse that says why."""
        return self._failure

    def settle(self) -> bytes:
        """At the end of a transaction: the query that must still be sent to know the session's state, or b""."""
        if (
            not (self._touched or self._freeing or self._set_texts or self.pins or self._blind)
            and self.reported is self._at_link
            and self._again is None
        ):
            return b""
        if self.pins & PIN_LARGE:
            return b""  # a query of ours would take the client's unnamed statement away; it is kept anyway
        if self._again is not None:
            own, self._again = self._again, None
            return self._capture(own)
        pins = tuple(pin for pin in STILL_NEEDED if self.pins & pin) if self._freeing else ()
        names = self._names_to_capture() if self._touched or self.reported is not self._at_link else ()
        own = _Own(_CAPTURE, names, pins)
        # What goes back to its default goes to what the client asked for at its start-up, not to the backend's own.
        restored = (
            self._initial.items()
            if self._everything
            else [item for item in self._initial.items() if item[0] in self._to_default]
        )
        self._touched = self._everything = self._freeing = False
        self._blind = self._blind and bool(self.pins & PIN_MEMORY)  # it may be prepared under a name of its own
        self._set_texts.clear()
        self._to_default.clear()
        self._set_bytes = self._set_tags = 0
        self._at_link = self.reported
        self._tries = 0
        if not names and not pins:
            return b""
        before = b""
        if restored:
            self._send_own(_Own(_RESTORE))
            before = message(b"Q", settings_batches({}, dict(restored))[0] + b"\0")
        return before + self._capture(own)

    def _capture(self, own: _Own) -> bytes:
        self._captured = []
        self._send_own(own)
        return message(b"Q", capture_query(own.names, own.pins) + b"\0")

    def _names_to_capture(self) -> tuple[bytes, ...]:
        changed = {name for name, value in self.reported.items() if self._at_link.get(name) != value}
        names = {name.lower() for name in changed - _NOT_SETTABLE}
        if b"session_authorization" in changed:
            self._pin(PIN_SETTINGS)
        if b"is_superuser" in changed:
            names.add(b"role")
        if self._touched:
            count = 0
            for text in self._set_texts:
                found = settings_named(text)
                names |= found.names
                count += found.count
                self._to_default = (self._to_default - found.names) | found.to_default
                self._everything = self._everything or found.everything
                if found.opaque or found.names & UNTRACKABLE:
                    self._pin(PIN_SETTINGS)
            if count < self._set_tags:
                self._pin(PIN_SETTINGS)  # a SET that was not understood
            if self._everything:
                names |= self.settings.keys() | self._initial.keys()
        names -= UNTRACKABLE
        if len(names) > NAMES_LIMIT:
            self._pin(PIN_SETTINGS)
            return ()
        return tuple(sorted(names))

    def _send_own(self, own: _Own) -> None:
        self._own.append(own)
        self.owed.append((SYNC if own.what == _PARSED else QUERY) | OWN)
        self.idle = False
        if self.backend is not None and own.what != _PARSED:
            self.backend.prepared.unnamed = None  # as any simple query, ours drops the unnamed statement

    def _report_differences(self) -> bytes:
        """ParameterStatus messages that bring the client's view up to date with its backend."""
        assert self.backend is not None
        theirs, ours = self.backend.reported, self.reported
        if theirs is ours:
            return b""
        # Equal sets become one object, so that the test above is all that is needed from then on.
        theirs = self.backend.reported = self.registry.shared(theirs)
        changed = [(name, value) for name, value in theirs.items() if ours.get(name) != value]
        self.reported = self._at_link = theirs
        return b"".join(message(b"S", name + b"\0" + value + b"\0") for name, value in changed)

    def _pin(self, pin: int) -> None:
        if not self.pins & pin:
            self.pins |= pin
            self.new_pins |= pin
            if pin & FREEABLE:
                self._freeing = True  # what a text or a tag says may be wrong, or rolled back: the server is asked

    # ------------------------------------------------------------------ from the client

    def _may_stream(self, kind: int, length: int, data: bytes, pos: int) -> bool:
        if kind in (BIND, PARSE) and length > HOLD_LIMIT:
            available = len(data) - pos
            first = data.find(0, pos + 5)
            return available > _NAME_SEARCH or (first >= 0 and data.find(0, first + 1) >= 0)
        return super()._may_stream(kind, length, data, pos)

    def _query(self, data: bytes, pos: int, end: int) -> bytes | None:
        if self._skipping:
            return None  # the server will not read it
        assert self.backend is not None
        self._unnamed = self.backend.prepared.unnamed = None
        self.pins &= ~PIN_LARGE
        if HEADER.unpack_from(data, pos)[1] > HOLD_LIMIT:
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
            if self._set_bytes <= _TEXTS_LIMIT:
                self._set_texts.append(text)
                self._set_bytes += len(text)
            if flags & SET_CONFIG:
                self._touched = True
                if self._set_bytes > _TEXTS_LIMIT:
                    self._pin(PIN_SETTINGS)
        for flag, pin in PINS_OF_TEXT:
            if flags & flag:
                self._pin(pin)
        if flags & UNLOCKS:
            self._freeing = True
        if flags & DATABASE:
            self.databases_text = text if self.databases_text is None else self.databases_text + b";" + text

    def _by_name(self, text: bytes) -> bytes | None:
        """DEALLOCATE or EXECUTE of a statement that the client prepared through the protocol."""
        found = prepared_name(text)
        statement = self._named.get(found[2]) if found is not None else None
        if found is None or statement is None:
            return None
        assert self.backend is not None
        start, end, name = found
        entry = self.owed.pop()  # what is needed first goes in front of the query
        before = b""
        prepared = self.backend.prepared
        if b"deallocate" in text[:start].lower():
            if not prepared.use(statement):
                # To deallocate a name it must be there, whatever it stands for; an empty text cannot fail.
                self._change(PARSE | OWN, None, None)
                before = message(b"P", statement.name + b"\0\0\0\0")
            self._forget(name)
            prepared.discard(statement)
            self._changes.append((QUERY, name, statement))
            entry |= _NOTED
        else:
            self._note(statement.text, statement.flags)
            if not self.owed or self.owed[-1] & _KIND in (SYNC, QUERY):
                before = self._ensure(statement)
            if before:
                # Should the Parse fail, the server would skip the query too, up to the next Sync.
                self._send_own(_Own(_PARSED))
                before += SYNC_MESSAGE
        self.owed.append(entry)
        rewritten = text[:start] + identifier(statement.name) + text[end:]
        return before + message(b"Q", rewritten + b"\0")

    def _parse(self, data: bytes, pos: int, end: int) -> bytes | None:
        assert self.backend is not None
        name_end = data.find(0, pos + 5, end)
        text_end = data.find(0, name_end + 1, end) if name_end >= 0 else -1
        large = HEADER.unpack_from(data, pos)[1] > HOLD_LIMIT
        if self._skipping:
            return None
        if name_end < 0 or (text_end < 0 and not large):
            if large:  # a name too long to be one: nothing is known of what it begins
                self._parse_unkept(b"?", large=True)
            else:
                self._change(PARSE, None, None)
            return None
        name = data[pos + 5 : name_end]
        if large or self.pins & PIN_MEMORY:
            self._parse_unkept(name, large=large)
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
        if (entry & _KIND not in (PARSE, CLOSE) and not entry & _NOTED) or not self._changes:
            return
        self._undo()

    def _undo(self) -> None:
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
            return
        if entry != CLOSE:
            prepared.restore(statement)
        if entry != CLOSE | OWN and name is not None and name not in self._named:
            self._named[name] = statement
            self._named_bytes += statement.size

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        if head == QUERY | OWN:
            self._own_failed = True
            self._failure = data[pos + 5 : end]
            # The server ends the connection: the client must know, whoever asked last.
            return None if any(fatal in self._failure for fatal in _FATAL) else b""
        if head & _NOTED:
            self.owed[0] = head & ~_NOTED
            self._undo()
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
        if tag.startswith(b"SELECT ") and not self._blind:
            return  # by far the most frequent; what a SELECT can do to the session shows in its text
        if self._blind and not _HARMLESS_TAG.match(tag):
            self._pin(PIN_SETTINGS)
        if tag in PINS_OF_TAG:
            self._pin(PINS_OF_TAG[tag])
        elif tag == b"SET" or tag == b"RESET":
            self._touched = True
            self._set_tags += 1
        elif tag in FREEING_TAGS:
            self._freeing = True
            if tag == b"DEALLOCATE" and self.owed and self.owed[0] & _NOTED:
                self.owed[0] &= ~_NOTED
                self._changes.popleft()
        elif tag == b"DISCARD ALL" or tag == b"DEALLOCATE ALL":
            self._discarded(everything=tag == b"DISCARD ALL")
        elif tag == b"DO" or tag == b"CALL":
            self._touched = self._touched or bool(self._set_texts)
        elif tag.startswith((b"ALTER ", b"DROP ", b"CREATE VIEW")):
            self.registry.renew()

    def _discarded(self, *, everything: bool) -> None:
        self._named.clear()
        self._named_bytes = 0
        if self.backend is not None:
            self.backend.prepared.clear()
        self._outlive_discard()
        self.pins &= ~(PIN_PREPARE | PIN_MEMORY)
        self._blind = False
        if everything:
            self._unnamed = None
            self.pins = 0
            self.settings = self._initial
            if self.backend is not None:
                self.backend.settings = {}
            self._touched = self._freeing = False
            self._set_texts.clear()
            self._set_bytes = self._set_tags = 0
            self._at_link = self.reported

    def _outlive_discard(self) -> None:
        """What the client prepared behind the statement that discarded everything is still to come; what it closed
        there is gone already."""
        changes, self._changes = self._changes, deque()
        for entry, name, statement in changes:
            if entry & _KIND != PARSE:
                self._changes.append((entry, None, None))
                continue
            if statement is not None and self.backend is not None:
                if name == b"":
                    self._unnamed = self.backend.prepared.unnamed = statement
                else:
                    self.backend.prepared.restore(statement)
                    if name is not None and name not in self._named:
                        self._named[name] = statement
                        self._named_bytes += statement.size
            self._changes.append((entry, name, statement))

    def _parameter_status(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        edited = super()._parameter_status(data, pos, end, head)
        name, value, _ = data[pos + 5 : end].split(b"\0", 2)
        if self.backend is not None:
            self.backend.reported = {**self.backend.reported, name: value}
            if head != QUERY | OWN:
                self.reported = self.backend.reported
        return edited

    def _own_reply(self, kind: int, data: bytes, pos: int, end: int) -> None:
        if kind == DATA_ROW and self._own[0].what == _CAPTURE:
            self._captured = columns_of(data, pos + 5)

    def _own_ready(self) -> bytes:
        own = self._own.popleft()
        if own.what == _APPLY:
            if self._own_failed or self._own:
                return b""
            assert self.backend is not None
            self.backend.settings = dict(self.settings)
            return self._report_differences()
        if own.what == _CAPTURE:
            self._learn(own)
        return self._report_differences() if own.what == _RESTORE else b""

    def _learn(self, own: _Own) -> None:
        """Takes up what the server answered about the session's state at the end of a transaction."""
        assert self.backend is not None
        if self._own_failed:
            self._own_failed = False
            self._tries += 1
            if _CANCELED in self._failure and self._tries < _OWN_TRIES:
                self._again = own  # a cancel request that came late
            else:
                self._pin(PIN_SETTINGS)
            return
        for pin, count in zip(own.pins, self._captured[len(own.names) :], strict=True):
            if count == b"0":
                self.pins &= ~pin
        captured = dict(zip(own.names, self._captured, strict=False))
        settings = {**self.settings, **{name: value for name, value in captured.items() if value is not None}}
        if not self._can_carry(settings):
            self._pin(PIN_SETTINGS)
            return
        self.settings = settings
        self.backend.settings = dict(settings)
        self._at_link = self.reported

    def _can_carry(self, settings: dict[bytes, bytes]) -> bool:
        if sum(len(name) + len(value) for name, value in settings.items()) > SETTINGS_LIMIT:
            return False
        tricky = self.reported.get(b"client_encoding", b"").upper() in _TRICKY_ENCODINGS
        return all(len(value) <= VALUE_LIMIT and (value.isascii() or not tricky) for value in settings.values())

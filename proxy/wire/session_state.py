"""What a client believes to be the state of its session, kept while backends come and go: settings, and what pins it.

The truth about settings is asked of the server: at the end of a transaction in which a SET, RESET or set_config was
seen, their values are read with one query of our own, so that ROLLBACK, savepoints and SET LOCAL need no model here.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final, NamedTuple

from librt.strings import read_i32_be

from proxy.steering import Steering
from proxy.wire import messages
from proxy.wire.carried import NAMES_LIMIT, SETTINGS_LIMIT, VALUE_LIMIT, capture_query, columns_of, settings_batches
from proxy.wire.delivery import SteeredConversation
from proxy.wire.entries import KIND, OWN, is_mark, table_of
from proxy.wire.frames import (
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DATA_ROW,
    FLUSH,
    FUNCTION_CALL,
    LARGE_LIMIT,
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
    PIN_SETTINGS,
    PINS_OF_TAG,
    PINS_OF_TEXT,
    STILL_NEEDED,
)
from proxy.wire.prepared import StatementRegistry
from proxy.wire.prepared_cache import PreparedCache
from proxy.wire.statements import (
    DATABASE,
    SET_CONFIG,
    SETS,
    UNLOCKS,
    UNTRACKABLE,
    begins_set,
    classify,
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
_OVERLAP: Final = 64  # bytes that are looked at once more with the next piece: longer than any word that counts
_CANCELED: Final = b"\0C57014\0"
_OWN_TRIES: Final = 3
_TEXTS_LIMIT: Final = 64 * 1024  # texts with SET in them that are remembered within one transaction

# Sent outside COPY, or with nothing to flush, these do nothing.
_STRAY_KINDS: Final = table_of(frozenset({COPY_DATA, COPY_DONE, COPY_FAIL, FLUSH}))
_APPLY: Final = 0
_CAPTURE: Final = 1
PARSED: Final = 2
_RESTORE: Final = 3


class Own(NamedTuple):
    """A query of the proxy's own: what for, and the settings and pins it asks about."""

    what: int
    names: tuple[bytes, ...] = ()
    pins: tuple[int, ...] = ()


class BackendState:
    """What a pooled backend carries beyond its start-up: prepared statements, settings, and what it last reported.
    ``pid`` is that of its process, 0 when it is not known.

    ``settings`` maps lower-case names to the values put in place since start-up; ``reported`` is its ParameterStatus
    set, a dict that is replaced and never changed, so that many clients can share one.
    """

    __slots__ = ("pid", "prepared", "reported", "settings")

    def __init__(self, reported: dict[bytes, bytes], prepared_limit: int, pid: int = 0) -> None:
        self.pid = pid
        self.reported = reported
        self.settings: dict[bytes, bytes] = {}
        self.prepared = PreparedCache(prepared_limit)


class SessionState(SteeredConversation):
    """The part of a pooled conversation that knows of settings and pins. `link` before the first byte of a transaction,
    `unlink` after its end."""

    __slots__ = (
        "_again",
        "_at_link",
        "_blind",
        "_captured",
        "_discarded_all",
        "_discarding",
        "_everything",
        "_failure",
        "_freeing",
        "_initial",
        "_own",
        "_own_failed",
        "_set_bytes",
        "_set_tags",
        "_set_texts",
        "_to_default",
        "_touched",
        "_tries",
        "_window",
        "backend",
        "databases_text",
        "new_pins",
        "pid",
        "pins",
        "registry",
        "reported",
        "settings",
    )

    def __init__(
        self,
        steering: Steering,
        registry: StatementRegistry,
        reported: dict[bytes, bytes],
        settings: dict[bytes, bytes],
    ) -> None:
        super().__init__(steering)
        self.registry = registry
        self.backend: BackendState | None = None
        self.reported = reported
        # Equal sets are one object, and none is ever changed: that they are equal must be seen at one look.
        self.settings = self._initial = registry.shared(settings)
        self._at_link = reported
        self._own: deque[Own] = deque()
        self._own_failed = False
        self._failure = b""  # the body of the error that a query of our own met
        self._tries = 0
        self._again: Own | None = None
        self._captured: list[bytes | None] = []
        self.pid = 0  # what the client takes for its backend's process id
        self.pins = 0
        self.new_pins = 0  # pins not yet counted by the session
        self._discarding = 0  # bytes of a client's message that go nowhere
        self._discarded_all = False
        self._touched = False
        self._everything = False
        self._freeing = False
        self._blind = False  # a text that was not kept may change settings
        self._window = b""  # the end of what was seen of it
        self._set_texts: list[bytes] = []
        self._set_bytes = 0
        self._set_tags = 0  # SET and RESET statements that ended
        self._to_default: set[bytes] = set()
        self.databases_text: bytes | None = None

    def link(self, backend: BackendState) -> tuple[bytes, bytes]:
        """Takes a backend: (bytes to send to it first, bytes to tell the client first).

        When there is something to send, nothing of the client's may follow before it is answered: if it fails, the
        client's statements would run under somebody else's settings.
        """
        self.backend = backend
        self._tries = 0
        self._at_link = self.reported
        settings = self.settings
        same = backend.settings is settings or backend.settings == settings
        first = b"" if same else self._apply()
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
            self._send_own(Own(_APPLY))
        return b"".join(message(b"Q", batch + b"\0") for batch in batches)

    def adopt(self, reported: dict[bytes, bytes]) -> None:
        """What the client is told at its login: the pool's settings, with its own in their place."""
        own = {name: self._initial[name.lower()] for name in reported if name.lower() in self._initial}
        self.reported = self._at_link = self.registry.shared({**reported, **own} if own else reported)

    def unlink(self) -> bytes:
        """Gives the backend up; the beginning of a message that was kept back, to be brought along next time."""
        self.backend = None
        self._recorded = self._retried = self._ending = None
        self.budget_ms = 0.0
        self._streaming = max(self._streaming, 0)
        self._portals.clear()
        held, self._held = self._held, b""
        # A backend that ends may have been at COPY data: the rest goes nowhere.
        self.refused_streams = False
        self._discarding, self._streaming = self._streaming, 0
        return held

    def rest_of_refused(self, data: bytes) -> int:
        """Of ``data``, how many bytes end the message that `refused_streams` is about; with its last byte the
        transaction is over."""
        rest = min(self._streaming, len(data))
        self._streaming -= rest
        if not self._streaming:
            self.refused_streams = False
            self.idle = True
        return rest

    def without_strays(self, data: bytes) -> bytes:
        """Drops COPY messages that arrive outside COPY, after the server refused them, as the server itself does."""
        pos = 0
        if self._discarding:
            pos = min(self._discarding, len(data))
            self._discarding -= pos
        while len(data) - pos >= 5 and _STRAY_KINDS[data[pos]]:
            length = read_i32_be(data, pos + 1)
            if length < 4 or length > LARGE_LIMIT:
                break
            end = pos + 1 + length
            self._discarding = max(0, end - len(data))
            pos = min(end, len(data))
        return data[pos:] if pos else data

    @property
    def answers_coming(self) -> bool:
        """Whether the server will answer up to a ReadyForQuery without another word of the client."""
        if self.budget_ms:
            return True  # to a run that is being stopped, if not to this one
        asked = [entry for entry in self.owed if not is_mark(entry)]
        if self._streaming > 0 or self._copy_in or not asked:
            return False
        return asked[-1] & KIND in (QUERY, SYNC, FUNCTION_CALL)

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
        """At the end of a transaction: what must still be sent to know the session's state, or to leave no trace of
        advice; or b""."""
        if self._hinted:
            tidy = self._tidy()
            self._send_own(Own(PARSED))
            return tidy + SYNC_MESSAGE
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
        if self._discarded_all:
            self._discarded_all = False
            self._at_link = self.reported  # what DISCARD ALL made the server report is no wish of the client's
        pins = tuple(pin for pin in STILL_NEEDED if self.pins & pin) if self._freeing else ()
        names = self._names_to_capture() if self._touched or self.reported is not self._at_link else ()
        own = Own(_CAPTURE, names, pins)
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
            self._send_own(Own(_RESTORE))
            before = message(b"Q", settings_batches({}, dict(restored))[0] + b"\0")
        return before + self._capture(own)

    def _capture(self, own: Own) -> bytes:
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

    def _send_own(self, own: Own) -> None:
        self._own.append(own)
        self.owed.append((SYNC if own.what == PARSED else QUERY) | OWN)
        self.idle = False
        if self.backend is not None and own.what != PARSED:
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
        for name, value in changed:
            self.steering.reported(name, value)
        self.reported = self._at_link = theirs
        return b"".join(message(b"S", name + b"\0" + value + b"\0") for name, value in changed)

    def _pin(self, pin: int) -> None:
        if not self.pins & pin:
            self.pins |= pin
            self.new_pins |= pin
            if pin & FREEABLE:
                self._freeing = True  # what a text or a tag says may be wrong, or rolled back: the server is asked
        elif pin & FREEABLE and self._own:
            self._freeing = True  # asked once more: the answer under way will be older than this statement

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

    def _read_on(self, data: bytes) -> None:
        """A text too long to be kept is looked through as it passes; 0.2 ms for each 64 kB. What it may do to settings
        keeps the backend, since nobody could say later which ones they were."""
        window = self._window + data
        flags = classify(window)
        self._window = window[-_OVERLAP:]
        if flags & (SETS | SET_CONFIG) and not self._blind:
            self._blind = bool(flags & SET_CONFIG) or begins_set(window)
        self._note(b"", flags & ~(SETS | SET_CONFIG | DATABASE))

    # ------------------------------------------------------------------ from the server

    def _completed(self, data: bytes, pos: int, end: int) -> None:
        tag = data[pos + 5 : end - 1]
        if self._blind and not _HARMLESS_TAG.match(tag):
            self._pin(PIN_SETTINGS)
        if tag in PINS_OF_TAG:
            self._pin(PINS_OF_TAG[tag])
        elif tag == b"SET" or tag == b"RESET":
            self._touched = True
            self._set_tags += 1
        elif tag == b"NOTIFY":
            if self.backend is not None and self.pid:
                self.registry.notified(self.backend.pid, self.pid)
        elif tag in FREEING_TAGS:
            self._freeing = True
        elif tag == b"DO" or tag == b"CALL":
            self._touched = self._touched or bool(self._set_texts)

    def _forget_state(self, *, more_behind: bool) -> None:
        """DISCARD ALL has been done; ``more_behind``: the client had already sent more."""
        self.settings = self._initial
        if self.backend is not None:
            self.backend.settings = {}
        self._discarded_all = True
        if more_behind:
            # What was noted when that was sent cannot be told from what is gone: the server is asked about all of it.
            self._touched = self._freeing = True
            return
        self.pins = 0
        self._touched = self._freeing = False
        self._set_texts.clear()
        self._set_bytes = self._set_tags = 0

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        if head != QUERY | OWN:
            return super()._error(data, pos, end, head)
        self._own_failed = True
        self._failure = data[pos + 5 : end]
        # The server ends the connection: the client must know, whoever asked last.
        return None if messages.is_fatal(self._failure) else b""

    def _parameter_status(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        edited = super()._parameter_status(data, pos, end, head)
        name, value, _ = data[pos + 5 : end].split(b"\0", 2)
        if self.backend is not None:
            self.backend.reported = {**self.backend.reported, name: value}
            if head != QUERY | OWN:
                self.reported = self.backend.reported
        return edited

    def _notified(self, data: bytes, pos: int, end: int) -> bytes | None:
        """Clients tell their own notifications by the process id that they were given at login."""
        if self.backend is None or not self.pid or end - pos < 9:
            return None
        sender = read_i32_be(data, pos + 5)
        # Of another client's it is not certain (pg_notify has no tag), but never taken for this one's own.
        pid = self.pid if sender == self.backend.pid else self.registry.notifier(sender)
        if pid is None or (pid == self.pid and sender != self.backend.pid):
            return None
        return message(b"A", pid.to_bytes(4, "big") + data[pos + 9 : end])

    def _own_reply(self, kind: int, data: bytes, pos: int, end: int) -> None:
        if kind == DATA_ROW and self._own[0].what == _CAPTURE:
            self._captured = columns_of(data, pos + 5)

    def _own_ready(self) -> bytes:
        own = self._own.popleft()
        if own.what == _APPLY:
            if self._own_failed or self._own:
                return b""
            assert self.backend is not None
            self.backend.settings = self.settings
            return self._report_differences()
        if own.what == _CAPTURE:
            self._learn(own)
        return self._report_differences() if own.what == _RESTORE else b""

    def _learn(self, own: Own) -> None:
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
            if count == b"0" and not self._freeing:
                self.pins &= ~pin
        captured = dict(zip(own.names, self._captured, strict=False))
        settings = {**self.settings, **{name: value for name, value in captured.items() if value is not None}}
        if not self._can_carry(settings):
            self._pin(PIN_SETTINGS)
            return
        self.settings = self.backend.settings = self.registry.shared(settings)
        self._at_link = self.reported

    def _can_carry(self, settings: dict[bytes, bytes]) -> bool:
        if sum(len(name) + len(value) for name, value in settings.items()) > SETTINGS_LIMIT:
            return False
        tricky = self.reported.get(b"client_encoding", b"").upper() in _TRICKY_ENCODINGS
        return all(len(value) <= VALUE_LIMIT and (value.isascii() or not tricky) for value in settings.values())

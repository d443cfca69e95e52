"""One client's conversation with a backend, as a state machine over bytes.

Bytes from the client go in at `Conversation.from_client` and come out as the bytes for the server; bytes from the
server go in at `Conversation.from_server` and come out as the bytes for the client. In between, every message header
is walked and a queue is kept of the replies that the server still owes, one entry for each message that gets a
terminating reply of its own. From that queue follows all that the proxy must know exactly: when the conversation is
between two transactions, which statement an answer belongs to, and which answers were caused by the proxy itself and
must not reach the client.

Costs: the plain path is one walk over the headers and hands the very same bytes object on; about 0.3 us a message.
Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from librt.strings import BytesWriter, read_i32_be

from proxy.steering import Decision, Steering
from proxy.wire import guarding, messages
from proxy.wire.entries import (
    ALWAYS_WATCHED,
    CLOSING,
    ENDS,
    FRESH,
    HIDDEN,
    KIND,
    NEVER_CERTAIN,
    OWN,
    READY_REPLY,
    REFUSED,
    STEERED,
    SUSPENDED,
    is_mark,
    table_of,
)
from proxy.wire.frames import (
    BIND,
    CLOSE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    COPY_BOTH,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    COPY_IN,
    DATA_ROW,
    DESCRIBE,
    ERROR,
    EXECUTE,
    FLUSH,
    FRONTEND_LIMITS,
    FUNCTION_CALL,
    HOLD_LIMIT,
    IDLE,
    NOTIFICATION,
    PARAMETER_DESCRIPTION,
    PARAMETER_STATUS,
    PARSE,
    PARSE_COMPLETE,
    QUERY,
    READY,
    SYNC,
    TERMINATE,
    ProtocolViolation,
    violation,
)
from proxy.wire.hooks import Hooks
from proxy.wire.owed import Owed

if TYPE_CHECKING:
    from mypy_extensions import i64

# A reply that must be understood whole is put together up to this size; the server never sends a larger one.
_REPLY_LIMIT: Final = 1024 * 1024
_PORTAL: Final = 0x50  # what a Describe is about: P
# Of an ErrorResponse this much is kept: severity and SQLSTATE come first.
_ERROR_START: Final = 100
_COPY_FAILED: Final = b"\0C57014\0"

# Behind an end of the transaction the server passes over these, which come from a COPY that it refused, mostly.
_STRAYS: Final = table_of(frozenset({COPY_DATA, COPY_DONE, COPY_FAIL, FLUSH}))


class Conversation(Hooks):
    """A conversation that changes nothing: what all kinds have in common.

    ``idle`` is true when the last thing that happened was a ReadyForQuery outside a transaction with nothing owed;
    ``status`` is the transaction state of the last ReadyForQuery (a byte value); ``ready_count`` counts the requests
    that got their ReadyForQuery; ``terminated`` says that the client sent Terminate, or with ``violated`` what breaks
    the protocol: it is told so when the server has answered what came before and has gone. So many ``uncertain``
    answers may come or not; then it is not idle. ``suspended`` says that the next message waits: until `decided`
    is called or, when ``budget_ms`` is not 0.0, until the answer to a run with that budget has begun. ``again`` is what
    must be sent to the server besides what the client sends, None for nothing; whoever sends it (it may be empty) sets
    it to None and gives `from_client` b"", since what is held may go on.
    """

    __slots__ = (
        "_copy_in",
        "_cut",
        "_data_sent",
        "_decision",
        "_held",
        "_names_pass",
        "_passed_over",
        "_portals",
        "_reads_on",
        "_record_from",
        "_recorded",
        "_server_dropping",
        "_server_streaming",
        "_skipping",
        "_streaming",
        "_tail",
        "_watched",
        "again",
        "breached",
        "budget_ms",
        "guard",
        "idle",
        "left_alone",
        "owed",
        "ready_count",
        "refused",
        "refused_streams",
        "status",
        "steering",
        "suspended",
        "terminated",
        "uncertain",
        "violated",
    )

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.suspended = False
        self.again: bytes | None = None
        self.budget_ms = 0.0
        self.guard: Callable[[bytes], bool] | None = None  # of a read-only session: whether a text must be refused
        self.refused = 0
        self.breached = False  # the session became able to write all the same
        self.owed = Owed()
        self.idle = True
        self.status: int = IDLE
        self.ready_count = 0
        self.left_alone = 0
        self.terminated = False
        self.violated: ProtocolViolation | None = None
        self._names_pass = True  # statement names go on as the client sent them
        self._watched: bytes = table_of(ALWAYS_WATCHED)
        self._held = b""  # the beginning of a client's message that is not complete yet
        self._streaming = 0  # bytes of a client's long message still to stream past; -1: all that comes is held
        self._reads_on = False  # that message carries a text
        self.refused_streams = False  # that message was COPY data, and the COPY has failed
        self._cut = 0  # where in the bytes that are looked at a statement ends behind which the rest is held
        self._tail = b""
        self._server_streaming = 0
        self._server_dropping = False  # what streams past goes nowhere
        self._skipping = False  # the server discards everything up to the next Sync
        self._copy_in = False
        self._data_sent = False  # of the COPY that runs
        self._passed_over = 0  # Syncs behind such data, taken for some that the server does not answer during COPY
        self.uncertain = 0
        self._decision: Decision | None = None  # on the message that was suspended
        self._portals: dict[bytes, Any] = {}  # those that were bound with advice
        # What the client sent from a steered message on, while that message might have to be sent once more.
        self._recorded: bytes | None = None
        self._record_from = 0

    def __repr__(self) -> str:
        owed = " ".join(("own " if entry & OWN else "") + chr(entry & KIND) for entry in self.owed)
        return f"<{type(self).__name__} status={chr(self.status)} idle={self.idle} owed=[{owed}]>"

    # ------------------------------------------------------------------ from the client

    def from_client(self, data: bytes) -> bytes:
        """The bytes to send to the server for these bytes of the client.

        Raises `ProtocolViolation` for what the server itself would not accept, if no answers are due: see ``violated``.
        """
        pos: i64 = self._streaming
        if pos:
            if pos < 0:
                self._held += data if self.violated is None else b""
                return b""
            self._stream_on(data, pos)
            if len(data) <= pos:
                return data
        elif self._held:
            data = self._held + data
            self._held = data if self.suspended else b""
            if self.suspended:
                return b""
        size: i64 = len(data)
        emitted: i64 = 0
        edits: BytesWriter | None = None
        rest: bytes | None = None
        owed = self.owed
        names_pass = self._names_pass
        unsteered = not self._portals
        guarded = self.guard is not None
        while size - pos >= 5:
            kind: i64 = data[pos]
            length: int = read_i32_be(data, pos + 1)
            if length < 4 or length > FRONTEND_LIMITS[kind]:
                data, size = self._broken_off(data, pos, kind, length)
                continue
            end: i64 = pos + 1 + length
            if end > size and not self._may_stream(kind, length, data, pos):
                break
            nameless = kind == DESCRIBE and (names_pass or (length > 4 and data[pos + 5] == _PORTAL))
            if kind == SYNC or (unsteered and (kind == EXECUTE or nameless)):
                self.idle = False
                if self._skipping or self._copy_in:
                    self._owe_after_trouble(kind)
                else:
                    owed.append(kind)
            else:
                if guarded:
                    edited = self._guarded_message(kind, data, pos, end if end <= size else size)
                else:
                    edited = self._client_message(kind, data, pos, end if end <= size else size)
                if edited is not None:
                    if edited is SUSPENDED:
                        self.suspended = True
                        break
                    if edits is None:
                        edits = BytesWriter()
                    edits.write(data[emitted:pos])
                    edits.write(edited)
                    emitted = end if end <= size else size
                    unsteered = not self._portals
                    if self._cut:
                        rest, data = data[self._cut :], data[: self._cut]
                        size, self._cut = self._cut, 0
            if end > size:
                self._begin_to_stream(kind, end - size)
                pos = size
                break
            pos = end
        if pos < size:
            self._held = data[pos:]
        if self._recorded is not None:
            # What stands alone up to its Sync is short; a client that goes on and on must not be kept and copied.
            if len(self._recorded) + pos - self._record_from > HOLD_LIMIT:
                self._recorded = None
            else:
                self._recorded += data[self._record_from : pos]
            self._record_from = 0
        if edits is None:
            return data if pos == size else data[:pos]
        edits.write(data[emitted:pos])
        if rest is not None:
            edits.write(self._hold_behind(rest))
        return edits.getvalue()

    def _broken_off(self, data: bytes, pos: int, kind: int, length: int) -> tuple[bytes, int]:
        """What stands in front of a violation is to be run and answered, as the server does it: a goodbye takes the
        place of the rest. Raises `ProtocolViolation` where the server owes nothing or would not take it for one."""
        if not self.owed.first or self._copy_in or self.uncertain or self._recorded is not None:
            raise violation(kind, length)  # held by no name: with its own frame it would be a cycle
        self.violated, self._streaming = violation(kind, length), -1
        data = data[:pos] + messages.FLUSH + messages.TERMINATE
        return data, len(data)

    def _begin_to_stream(self, kind: int, rest: int) -> None:
        self._streaming = rest
        self._reads_on = kind == QUERY or kind == PARSE
        self.refused_streams = self.idle
        self.idle = False

    def _stream_on(self, data: bytes, rest: int) -> None:
        """Of the long message that streams past, this much was still to come."""
        if self._reads_on:
            self._read_on(data[:rest])
        self._streaming = max(rest - len(data), 0)
        if self.refused_streams and not self._streaming:
            self.refused_streams = False
            self.idle = True

    def _hold_behind(self, rest: bytes) -> bytes:
        """A run with a budget is complete: what the client sent behind it waits. What of ours is sent behind it."""
        self._held = rest
        self._streaming = -1
        self.suspended = True
        return b""

    def decided(self, decision: Decision) -> bytes:
        """The bytes to send to the server once the message that suspended the conversation has been decided on. It may
        be suspended again, at a later message."""
        self.suspended = False
        self._decision = decision
        held, self._held = self._held, b""
        out = self.from_client(held)
        self._decision = None
        return out

    @property
    def held(self) -> int:
        """Bytes kept back until the message they begin is complete."""
        return len(self._held)

    @property
    def cancellable(self) -> bool:
        """Whether the server owes an answer to the client, not only to us."""
        return any(not entry & OWN for entry in self.owed)

    @property
    def at_boundary(self) -> bool:
        """Whether the last answer ended outside a transaction and the client's last message was Terminate at most."""
        unfinished = self._held or self._streaming or self.uncertain
        return self.status == IDLE and not unfinished and (self.idle or self.terminated)

    def _may_stream(self, kind: int, length: int, data: bytes, pos: int) -> bool:
        """Whether a message that has only partly arrived may go on as it comes, unread."""
        return kind == COPY_DATA or length > (HOLD_LIMIT if self.guard is None else guarding.LIMIT)

    def _client_message(self, kind: int, data: bytes, pos: int, end: int) -> bytes | None:
        """One message (or the beginning of one that streams past): what to send in its place, None for itself."""
        if kind == QUERY:
            self.idle = False
            return self._query(data, pos, end)
        if kind == BIND:
            self.idle = False
            return self._bind(data, pos, end)
        if self.idle and _STRAYS[kind]:
            return None
        self.idle = False
        if kind == PARSE:
            return self._parse(data, pos, end)
        if kind == DESCRIBE:
            edited = self._describe(data, pos, end)
            self._owe(DESCRIBE)
            if self._portals and self.owed.last == DESCRIBE:
                self._described()
            return edited
        if kind == CLOSE:
            edited = self._close(data, pos, end)
            self._owe(CLOSE)
            return edited
        if kind == EXECUTE:
            self._execute(data, pos, end)
            return None
        if kind == FUNCTION_CALL:
            self._owe(FUNCTION_CALL)
        elif kind == COPY_DATA:
            self._data_sent = self._copy_in
            if not self._copy_in and self.owed.first and self.owed.last != COPY_DATA:
                self.owed.append(COPY_DATA)  # see `is_mark`
        elif kind == TERMINATE:
            self.terminated = True
        elif kind == COPY_DONE or kind == COPY_FAIL:
            if self._copy_in:
                self._copy_in = False
            elif self.owed.first:
                self.owed.append(COPY_DONE)
        return None

    def _owe(self, kind: int) -> None:
        if self._skipping or self._copy_in:
            self._owe_after_trouble(kind)
        else:
            self.owed.append(kind)

    def _owe_after_trouble(self, kind: int) -> None:
        """A message sent while the server discards up to Sync, or while it reads COPY data."""
        if self._copy_in and kind == SYNC:
            self._passed_over += self._data_sent  # the server ignores it, unless the data before it ends the COPY
        elif self._copy_in:
            self._copy_in = False
            self.owed.append(kind)
        elif kind == SYNC:
            self._skipping = False
            self.owed.append(kind)

    def _guarded_message(self, kind: int, data: bytes, pos: int, end: int) -> bytes | None:
        if self.guard is None or not guarding.forbidden(self.guard, kind, data, pos, end):
            return self._client_message(kind, data, pos, end)
        self.refused += 1
        owed = len(self.owed)
        replaced = guarding.in_place_of(kind, data, pos, end)
        edited = self._client_message(replaced[0], replaced, 0, len(replaced))
        if len(self.owed) > owed:
            self.owed.last |= REFUSED
        return replaced if edited is None else edited

    # What is done with messages that carry names and texts. These note in ``owed`` what they send; for those in
    # `proxy.wire.hooks` that is done.

    def _query(self, data: bytes, pos: int, end: int) -> bytes | None:
        self._owe(QUERY)
        return None

    def _parse(self, data: bytes, pos: int, end: int) -> bytes | None:
        self._owe(PARSE)
        return None

    def _bind(self, data: bytes, pos: int, end: int) -> bytes | None:
        self._owe(BIND)
        return None

    def _execute(self, data: bytes, pos: int, end: int) -> None:
        self._owe(EXECUTE)

    # ------------------------------------------------------------------ from the server

    def from_server(self, data: bytes) -> bytes:
        """The bytes to send to the client for these bytes of the server."""
        pos: i64 = self._server_streaming
        if pos:
            if self._server_dropping:
                self._server_streaming = max(pos - len(data), 0)
                self._server_dropping = self._server_streaming > 0
                data, pos = data[pos:], 0
            elif len(data) <= pos:
                self._server_streaming = pos - len(data)
                return data
            else:
                self._server_streaming = 0
        elif self._tail:
            data = self._tail + data
            self._tail = b""
        size: i64 = len(data)
        emitted: i64 = 0
        pieces: list[bytes] | None = None
        owed = self.owed
        hidden = owed.first & HIDDEN != 0
        watched = self._watched
        while size - pos >= 5:
            kind: i64 = data[pos]
            length: int = read_i32_be(data, pos + 1)
            end: i64 = pos + 1 + length
            if (kind == DATA_ROW or kind == COPY_DATA) and not hidden:
                if end > size:
                    self._server_streaming = end - size
                    pos = size
                    break
                pos = end
                continue
            if end > size:
                if length > _REPLY_LIMIT:
                    if kind == ERROR:
                        self._long_error(data, pos)
                    elif owed.first & FRESH:
                        if pieces is None:
                            pieces = []
                        pieces.append(data[emitted:pos])
                        pieces.append(self._long_answer())
                        emitted = size if self._server_dropping else pos
                    self._server_streaming = end - size
                    pos = size
                break
            if not watched[kind]:
                # The usual cases, without a call: the reply that ends the oldest message, or one within a query.
                head: i64 = owed.first
                if head == QUERY:
                    pos = end
                    continue
                if head and head == ENDS[kind]:
                    owed.popleft()
                    pos = end
                    continue
            edited = self._server_message(kind, data, pos, end)
            if edited is not None:
                if pieces is None:
                    pieces = []
                pieces.append(data[emitted:pos])
                pieces.append(edited)
                emitted = end
            hidden = owed.first & HIDDEN != 0
            pos = end
        if pos < size:
            self._tail = data[pos:]
        if pieces is None:
            return data if pos == size else data[:pos]
        pieces.append(data[emitted:pos])
        return b"".join(pieces)

    def _server_message(self, kind: int, data: bytes, pos: int, end: int) -> bytes | None:
        """One message of the server: what to send in its place (b"" to swallow it), None for itself."""
        head = self._past_marks()
        if kind == READY:
            return self._ready(data, end, head)
        if kind == ERROR:
            return self._error(data, pos, end, head)
        if kind == PARAMETER_STATUS:
            return self._parameter_status(data, pos, end, head)
        if head & (OWN | STEERED) and kind != NOTIFICATION:
            if head == QUERY | OWN:
                self._own_reply(kind, data, pos, end)
                return b""
            if head & STEERED:
                edited = self._steered_reply(kind, data, pos, end, head)
                if edited is not None:
                    return edited
        if CLOSING[kind]:
            self._passed_over = 0
            if head & KIND == EXECUTE:
                self._ended()
            if kind == COMMAND_COMPLETE and not head & OWN:
                self._completed(data, pos, end)
        elif ENDS[kind] and head & KIND == ENDS[kind]:
            self._ended()
            if kind == PARSE_COMPLETE or kind == CLOSE_COMPLETE:
                self._named_change()
        elif kind in (COPY_IN, COPY_BOTH):
            self._copy_started(head)
            return None
        elif kind == NOTIFICATION:
            return self._notified(data, pos, end)
        elif kind not in (DATA_ROW, PARAMETER_DESCRIPTION):
            return None
        return b"" if head & OWN else None

    def _ready(self, data: bytes, end: int, head: int) -> bytes | None:
        owed = self.owed
        self.status = data[end - 1]
        self._copy_in = self._skipping = False
        self._passed_over = 0
        if READY_REPLY[head & KIND]:
            self._ended()
            self._past_marks()  # meant for a COPY that failed before it began
        elif 0 < self.uncertain < NEVER_CERTAIN:
            self.uncertain -= 1
        over = self.status == IDLE and not owed.first and not self.suspended and not self.uncertain
        # The server waits for the rest of a message that it began to get, even one of a COPY that it has refused.
        self.refused_streams = over and self._streaming > 0
        self.idle = over and not self.refused_streams
        if head & OWN:
            return b"" if head & STEERED else self._own_ready()
        self.ready_count += 1
        return None

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        self._copy_in = False
        # A Sync that was passed over may stand before the data that failed, or behind it: then it is answered. A
        # CopyFail stands behind all of them.
        if self._passed_over and data.find(_COPY_FAILED, pos, pos + _ERROR_START) < 0:
            self.uncertain = self._passed_over if len(self.owed) == 1 else NEVER_CERTAIN
        self.steering.failed(data[pos : min(end, pos + _ERROR_START)])
        if head == QUERY | OWN:
            self._own_reply(ERROR, data, pos, end)
            return b""
        if head and not READY_REPLY[head & KIND]:
            # An error in an extended batch: the server discards what follows, up to the next Sync.
            owed = self.owed
            dropped = []
            while owed.first and owed.first & KIND != SYNC:
                dropped.append(self._ended())
            self._dropped(dropped)
            self._skipping = not owed.first
        return guarding.REFUSAL if head & REFUSED else None

    def _long_error(self, data: bytes, pos: int) -> None:
        """An error so long that it streams past: what it does to the conversation, without a look at its text."""
        head = self._past_marks()
        Conversation._error(self, data, pos, len(data), head & ~REFUSED)

    def _long_answer(self) -> bytes:
        """A message so long that it streams past belongs to an answer of which nothing has got out: what goes before
        it. ``_server_dropping`` is set when it is to go nowhere."""
        self.owed.first &= ~FRESH
        return b""

    def _copy_started(self, head: int) -> None:
        owed = self.owed
        if not owed.first:
            return
        # Syncs sent right behind the COPY arrive while the server reads its data, and it ignores them.
        owed.popleft()
        self._data_sent = False
        while owed.first == SYNC or owed.first == COPY_DATA:
            if owed.popleft() == COPY_DATA:
                self._data_sent = True
            else:
                self._passed_over += self._data_sent
        self._copy_in = not owed.first
        if owed.first == COPY_DONE:
            owed.popleft()
        owed.appendleft(head)

    def _past_marks(self) -> int:
        """Drops what nothing answers; the oldest entry behind it, 0 without one."""
        owed = self.owed
        while is_mark(owed.first):
            owed.popleft()
        return owed.first

    def _ended(self) -> int:
        """The oldest entry of the queue is answered, or never will be; returns it."""
        return self.owed.popleft()

    def _parameter_status(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        if self.guard is not None and data[pos + 5 : end] == b"default_transaction_read_only\0off\0":
            self.breached = True
        return b"" if head == QUERY | OWN else None

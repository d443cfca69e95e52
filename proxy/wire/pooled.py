"""A conversation whose backend changes from transaction to transaction.

What a client believes to be the state of its session is kept here and put in place on whichever backend it gets:
prepared statements under names of our own (this module), and settings (`proxy.wire.session_state`). What cannot be
carried (LISTEN, temporary tables, advisory locks, WITH HOLD cursors, SQL-level PREPARE) pins the client to its backend.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from librt.strings import BytesWriter, read_i32_be, write_i32_be

from proxy.steering import LEAVE_ALONE, UNDECIDED, Known, Steering
from proxy.wire import guarding, messages
from proxy.wire.entries import ALWAYS_WATCHED, KIND, OWN, STEERED, SUSPENDED, table_of
from proxy.wire.frames import (
    BIND,
    CLOSE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    DESCRIBE,
    ERROR,
    FAILED,
    HOLD_LIMIT,
    NOTIFICATION,
    PARSE,
    PARSE_COMPLETE,
    QUERY,
    SYNC,
    end_of_name,
)
from proxy.wire.kept_statements import TAKEN, Change, KeptStatements
from proxy.wire.looks import look
from proxy.wire.messages import SYNC as SYNC_MESSAGE
from proxy.wire.messages import message
from proxy.wire.outcome import TIDYING, Run
from proxy.wire.pins import (
    PIN_LARGE,
    PIN_MEMORY,
    PIN_PREPARE,
    PIN_SETTINGS,
)
from proxy.wire.prepared import UNKNOWN, Statement, StatementRegistry, reading
from proxy.wire.session_state import PARSED, Own
from proxy.wire.statements import (
    BY_NAME,
    NAME_LIMIT,
    STATE,
    prepared_name,
)

_MISSING: Final = b"\0C26000\0"
_OUTDATED: Final = b"cached plan must not change result type"
_NAME_SEARCH: Final = 8 * 1024  # portal and statement names are looked for in so many bytes of a long message
_STATEMENT: Final = 0x53  # in a Describe or Close: S
_SELECT: Final = 0x53454C45  # SELE, with which no other tag begins
_SELECT_LEAST: Final = 11  # bytes of a CommandComplete with that tag
_USUAL_LIMIT: Final = 4 * 1024  # bytes of a Parse that is kept to know it again

# Added to the entry of a Query for which there is a note in ``_changes``.
_NOTED: Final = 0x400


_WATCHED: Final = table_of(ALWAYS_WATCHED | {COMMAND_COMPLETE, PARSE_COMPLETE, CLOSE_COMPLETE, NOTIFICATION})


class PooledConversation(KeptStatements):
    """One client in transaction pooling, with its prepared statements."""

    __slots__ = (
        "_bound",
        "_execute_failed",
        "_usual",
        "_usual_parse",
        "_usual_reported",
        "_usual_statement",
        "_usual_text",
        "_usual_types",
        "backend_ends",
    )

    def __init__(
        self,
        steering: Steering,
        registry: StatementRegistry,
        reported: dict[bytes, bytes],
        settings: dict[bytes, bytes],
        named_limit: int,
    ) -> None:
        super().__init__(steering, registry, reported, settings, named_limit)
        self._names_pass = False
        self._watched = _WATCHED
        self.backend_ends = False  # the server said so, behind the end of a transaction
        self._execute_failed = False  # and the client has been told why
        self._bound = b""  # the name that the client bound last: several may stand for one statement
        # The last Parse of the unnamed statement, if it means the same whenever it comes, and what it changes then.
        self._usual: Change | None = None
        self._usual_parse = b""
        self._usual_statement: Statement | None = None
        self._usual_text = b""
        self._usual_types = b""
        self._usual_reported = reported  # what the server said then: by it the text's names are looked up

    # ------------------------------------------------------------------ from the client

    def _may_stream(self, kind: int, length: int, data: bytes, pos: int) -> bool:
        if kind in (BIND, PARSE) and length > (HOLD_LIMIT if self.guard is None else guarding.LIMIT):
            available = len(data) - pos
            first = data.find(0, pos + 5)
            return available > _NAME_SEARCH or (first >= 0 and data.find(0, first + 1) >= 0)
        return super()._may_stream(kind, length, data, pos)

    def _query(self, data: bytes, pos: int, end: int) -> bytes | None:
        if self._skipping:
            return None  # the server will not read it
        large = read_i32_be(data, pos + 1) > HOLD_LIMIT
        # A message too short to be one has no text; a slice that ends before it begins fails in the compiled build.
        text = b"" if large or end - pos < 7 else data[pos + 5 : end - 1]
        # Before anything is noted: the message may come again.
        decision = self._judge_query(text, large)
        if decision is UNDECIDED:
            return SUSPENDED
        assert self.backend is not None
        self._unnamed = self.backend.prepared.unnamed = None
        self.pins &= ~PIN_LARGE
        if large:
            self._window = b""
            self._read_on(data[pos + 5 : end])
        elif text:  # else the server will say so
            flags = look(text) & STATE
            if flags:
                self._note(text, flags)
                if flags & BY_NAME:
                    self._quiet = False
                    return self._by_name(text)
            if decision is not LEAVE_ALONE:
                return self._steer_query(data, pos, end, decision)
        self._quiet = False
        self._owe(QUERY)
        return None

    def _by_name(self, text: bytes) -> bytes | None:
        """DEALLOCATE or EXECUTE of a statement that the client prepared through the protocol."""
        found = prepared_name(text)
        statement = self._named.get(found.name) if found is not None else None
        if found is None or statement is None:
            self._owe(QUERY)
            return None
        assert self.backend is not None
        entry = QUERY
        self._copy_in = False
        before = b""
        prepared = self.backend.prepared
        if found.deallocates:
            if not prepared.use(statement):
                before = self._stand_in(statement)  # to deallocate a name it must be there
            self._forget(found.name)
            prepared.discard(statement)
            self._changes.append(Change(QUERY, found.name, statement))
            entry |= _NOTED
        else:
            self._note(statement.text, statement.flags)
            if self.status != FAILED and (not self.owed.first or self.owed.last & KIND in (SYNC, QUERY)):
                before = self._ensure(statement)
            if before:
                # Should the Parse fail, the server would skip the query too, up to the next Sync.
                self._send_own(Own(PARSED))
                before += SYNC_MESSAGE
        self.owed.append(entry)
        return before + message(b"Q", found.replaced(text, statement.name) + b"\0")

    def _parse(self, data: bytes, pos: int, end: int) -> bytes | None:
        assert self.backend is not None
        if self._skipping:
            return None
        usual = self._usual
        if (
            usual is not None
            and end - pos == len(self._usual_parse)
            and data[pos:end] == self._usual_parse
            and self._parse_as_usual(usual)
        ):
            return None
        name_end = end_of_name(data, pos + 5, end)
        text_end = data.find(0, name_end + 1, end) if name_end >= 0 else -1
        large = read_i32_be(data, pos + 1) > HOLD_LIMIT
        if name_end < 0 or (text_end < 0 and not large):
            if large:  # a name too long to be one: nothing is known of what it begins
                self._parse_unkept(b"?", data[pos + 5 : end])
            else:
                self._change(PARSE, None, None)
            return None
        name = data[pos + 5 : name_end]
        if large or self.pins & PIN_MEMORY or len(name) > NAME_LIMIT:
            self._parse_unkept(name, data[pos + 5 : end])
            return None
        text = data[name_end + 1 : text_end]
        statement = self.registry.intern(text, data[text_end + 1 : end], reading(text, self.reported))
        statement.known = self.steering.known(statement.text, statement.types)
        prepared = self.backend.prepared
        before = b""
        if statement.flags & BY_NAME and name not in self._named:
            statement, before = self._parse_by_name(name, statement)
        if not name:
            self._change(PARSE, name, statement, self._unnamed)
            self._unnamed = prepared.unnamed = statement
            self.pins &= ~PIN_LARGE
            if statement.flags & BY_NAME:
                return before + statement.parse_message(b"")
            if not statement.reading and end - pos <= _USUAL_LIMIT:
                self._usual = Change(PARSE, b"", statement, statement)
                self._usual_parse = data[pos:end]
                self._usual_statement = statement
                self._usual_text = statement.text
                self._usual_types = statement.types
                self._usual_reported = self.reported
            return None
        present = self._named.get(name)
        if present is not None:
            # The server must say that the name is taken.
            before = self._ensure(present) if self.status != FAILED else self._stand_in(present)
            self._contested.add(name)
            self._change(
                PARSE | TAKEN, name, Statement(present.name, statement.text, statement.types, statement.reading)
            )
            return before + statement.parse_message(present.name)
        if self._named_bytes + statement.size > self._named_limit:
            self._pin(PIN_MEMORY)
            self._parse_unkept(name, data[pos + 5 : end])
            return None
        self._named[name] = statement
        self._named_bytes += statement.size
        # A fresh Parse is always a real one: its errors are the client's, and its plan is of today.
        if statement in prepared:
            prepared.discard(statement)
            self._change(CLOSE | OWN, None, statement)
            before += messages.close(b"S", statement.name)
        before += self._evict(prepared.add(statement))
        self._change(PARSE, name, statement)
        return before + statement.parse_message(statement.name)

    def _parse_as_usual(self, usual: Change) -> bool:
        """The very Parse of the unnamed statement that came last, which is what many clients send with each Bind: does
        what `_parse` does for it, without taking it apart. False when something else has come in between."""
        statement = self._usual_statement
        if (
            statement is None
            or self._unnamed is not statement
            or self.pins & (PIN_MEMORY | PIN_LARGE)
            or self._usual_reported is not self.reported
        ):
            return False
        statement.known = self.steering.known(self._usual_text, self._usual_types)
        assert self.backend is not None
        self.backend.prepared.unnamed = statement
        self._changes.append(usual)
        self._copy_in = False
        self.owed.append(PARSE)
        return True

    def _parse_unkept(self, name: bytes, beginning: bytes) -> None:
        """A Parse that goes on as it is, since it is not kept for another backend. What its text may do to the session
        is noted here and now: nobody will know the text when it is bound."""
        assert self.backend is not None
        if name:
            self._pin(PIN_MEMORY)
        else:
            self._change(PARSE, name, None, self._unnamed)
            self._unnamed = self.backend.prepared.unnamed = None
            self._pin(PIN_LARGE)
        self._window = b""
        self._read_on(beginning)
        if name:
            self._change(PARSE, None, None)

    def _bind(self, data: bytes, pos: int, end: int) -> bytes | None:
        if self._skipping:
            return None
        if end - pos > 6 and data[pos + 5] == 0 and data[pos + 6] == 0:
            # Both names empty, as most are: two calls less.
            portal_end, name_end, name = pos + 5, pos + 6, b""
        else:
            portal_end = end_of_name(data, pos + 5, end)
            name_end = end_of_name(data, portal_end + 1, end) if portal_end >= 0 else -1
            name = data[portal_end + 1 : name_end] if name_end >= 0 else b""
        statement = self._statement_of(name) if name_end >= 0 else None
        known = statement.known if statement is not None else None
        if (
            known is not None
            and statement is not None
            and statement.reading
            and statement.reading != reading(statement.text, self.reported)
        ):
            known = None  # parsed anew for the advice, its constants would mean something else now
        if self._contested and name in self._contested:
            known = None
        decision = self._judge_bind(known, data, pos, name_end + 1, end)
        if decision is UNDECIDED:
            return SUSPENDED
        if statement is not None and statement.flags:
            self._note(statement.text, statement.flags)
            if statement.flags & BY_NAME:
                before = self._put_target(name, statement, binds=True)
                edited = self._bind_as_it_is(data, pos, end, portal_end, None, name)
                return before + (data[pos:end] if edited is None else edited)
        if decision is not LEAVE_ALONE and known is not None:
            return self._steer_bind(data, pos, end, portal_end, known, name, decision)
        if name_end < 0:
            self._owe(BIND)
            return None
        return self._bind_named(data, pos, end, portal_end, known, name, statement)

    def _bind_as_it_is(
        self, data: bytes, pos: int, end: int, portal_end: int, known: Known | None, name: bytes
    ) -> bytes | None:
        return self._bind_named(data, pos, end, portal_end, known, name, self._statement_of(name))

    def _bind_named(
        self,
        data: bytes,
        pos: int,
        end: int,
        portal_end: int,
        known: Known | None,
        name: bytes,
        statement: Statement | None,
    ) -> bytes | None:
        """A Bind that is left alone, of what its ``name`` stands for."""
        before = self._before_bind(data, pos, portal_end, known)
        if statement is None:
            edited = None if name else self._without_unnamed(data[pos:end])
            self._owe(BIND)
            return before + (edited or data[pos:end]) if before else edited
        before = before + (self._ensure(statement) if name else self._ensure_unnamed(statement))
        self._owe(BIND)
        if not name:
            return before + data[pos:end] if before else None
        self._bound = name
        own = statement.name
        ours = BytesWriter()  # not by `messages.bind`: the length is the client's, whose long message may stream past
        ours.write(before)
        ours.append(BIND)
        write_i32_be(ours, read_i32_be(data, pos + 1) + len(own) - len(name))
        ours.write(data[pos + 5 : portal_end + 1])
        ours.write(own)
        ours.write(data[portal_end + 1 + len(name) : end])
        return ours.getvalue()

    def _vouch(self, name: bytes) -> bytes:
        if self.owed.last & KIND == PARSE:
            return b""  # most likely its own Parse, in this batch
        statement = self._statement_of(name)
        assert statement is not None
        before = self._ensure(statement) if name else self._ensure_unnamed(statement)
        if before:
            return before
        self._owe_ours(DESCRIBE, TIDYING)
        return messages.describe(b"S", statement.name if name else b"")

    def _owe_ours(self, entry: int, run: Run) -> None:
        if entry & KIND in (PARSE, CLOSE):
            self._change(entry | OWN, None, None)
            if entry & STEERED:
                self._runs.append(run)
        else:
            super()._owe_ours(entry, run)

    def _describe(self, data: bytes, pos: int, end: int) -> bytes | None:
        if self._skipping or not _names_statement(data, pos, end):
            return None
        name = data[pos + 6 : end - 1]
        statement = self._statement_of(name)
        if statement is None:
            return None if name else self._without_unnamed(data[pos:end])
        before = b""
        if statement.flags & BY_NAME:
            before = self._put_target(name, statement, binds=False)
            statement = self._statement_of(name) or statement
        if not name:
            before += self._ensure_unnamed(statement)
            return before + data[pos:end] if before else None
        return before + self._ensure(statement) + messages.describe(b"S", statement.name)

    def _close(self, data: bytes, pos: int, end: int) -> bytes | None:
        """Close of a statement forgets the client's name; the backend keeps its copy for other clients. The server
        closes a name that is not there instead, so that its CloseComplete comes in its place in the order."""
        if self._skipping or not _names_statement(data, pos, end):
            self._change(CLOSE, None, None, owe=False)
            if self._portals and end - pos > 6:
                self._portals.pop(data[pos + 6 : end - 1], None)
            return None
        name = data[pos + 6 : end - 1]
        if not name:
            self._change(CLOSE, name, self._unnamed, owe=False)
            self._unnamed = None
            if self.backend is not None:
                self.backend.prepared.unnamed = None
            return None
        statement = self._forget(name)
        self._change(CLOSE, name, statement, owe=False)
        return messages.close(b"S", self.registry.absent) if statement is not None else None

    # ------------------------------------------------------------------ from the server

    def _named_change(self) -> None:
        change = self._changes.popleft()
        if self._in_flight:
            self._landed(change)
        if not change.entry & TAKEN:
            return
        name, statement = change.name, change.statement
        self._contested.clear()
        if name is not None and statement is not None and self.backend is not None:
            # The name was free after all, since what took it failed: now it stands for another text on this backend,
            # which must not get to anybody else.
            self._pin(PIN_SETTINGS)
            self.backend.prepared.discard(statement)
            self.backend.prepared.restore(statement)
            self._named[name] = statement
            self._named_bytes += statement.size

    def _dropped(self, entries: list[int]) -> None:
        assert self.backend is not None
        self._deallocating.clear()
        changes = self._changes
        noted = [at for at, entry in enumerate(entries) if entry & KIND in (PARSE, CLOSE) or entry & _NOTED]
        undone = [(at, changes.popleft()) for at in noted if changes]
        unnamed = self._unnamed
        for at, change in reversed(undone):
            self._landed(change)
            self._undo(change, failed=at == 0)
        if changes:
            self._amend([change for _, change in undone], unnamed)
        if any(entry & KIND == QUERY for entry in entries):
            self.backend.prepared.unnamed = UNKNOWN
        if undone and changes:
            # What was sent behind them is still to come, had its effect here already, and may now fail or not.
            for change in (*(change for _, change in undone), *changes):
                if change.name == b"":
                    self.backend.prepared.unnamed = UNKNOWN
                elif change.statement is not None:
                    self.backend.prepared.doubt(change.statement)

    def _amend(self, undone: list[Change], unnamed: Statement | None) -> None:
        """What the client sent behind messages that were undone: to take it back too leads to what was before those.
        ``unnamed`` is what its unnamed statement was believed to be."""
        changes = self._changes
        never = {change.name: change.statement for change in undone if change.entry == PARSE and change.name}
        before = any(change.name == b"" and not change.entry & OWN for change in undone)
        for at, change in enumerate(changes):
            if change.name == b"" and before and not change.entry & OWN:
                statement = change.statement if change.entry == PARSE else self._unnamed
                changes[at] = Change(change.entry, b"", statement, self._unnamed)
                self._unnamed = unnamed
                before = False
            elif change.name and never.pop(change.name, None) and change.entry & KIND != PARSE:
                changes[at] = Change(change.entry, change.name)  # closes what has never been there

    def _undo(self, change: Change, *, failed: bool) -> None:
        """Takes back what a message changed here that the server refused (``failed``) or never looked at."""
        entry, name, statement = change.entry, change.name, change.statement
        if entry & TAKEN:
            self._contested.clear()
            return
        if self.backend is None:
            return
        prepared = self.backend.prepared
        if name == b"":
            prepared.unnamed = UNKNOWN
            if entry == PARSE:
                self._unnamed = None if failed else change.previous
            elif entry == CLOSE:
                self._unnamed = statement
        elif statement is None:
            return
        elif entry & KIND == PARSE:
            if not prepared.doubtful(statement):
                prepared.discard(statement)
            if name is not None and self._named.get(name) is statement:
                self._forget(name)
        else:
            if entry != CLOSE:
                prepared.doubt(statement)
            if name is not None and name not in self._named:
                self._named[name] = statement
                self._named_bytes += statement.size

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        if self.idle and not self.owed.first and not self.pins and messages.is_fatal(data[pos:end]):
            # Right behind the end of a transaction: it ends a backend that is nobody's any more, and no client.
            self.backend_ends = True
            return b""
        # What the client calls the statement that this is about, if that is known.
        about = self._changes[0].name if self._changes and (head & KIND == PARSE or head & _NOTED) else None
        if head & _NOTED:
            self.owed.first = head & ~_NOTED
            change = self._changes.popleft()
            if _MISSING not in data[pos:end]:
                self._undo(change, failed=True)
        edited = super()._error(data, pos, end, head)
        if head == PARSE | OWN and self._own and self._own[0].what == PARSED:
            self._execute_failed = True  # the client's EXECUTE, which needs that statement, comes right behind it
        elif self._execute_failed and head & KIND == QUERY and not head & OWN:
            self._execute_failed = False
            return b""
        if head == QUERY | OWN or (edited is not None and not _is_error(edited)):
            return edited
        body = data[pos + 5 : end] if edited is None else edited[5:]
        if _OUTDATED in body:
            self.registry.renew()
            if self.backend is not None:
                for statement in self._named.values():  # which one it is about is not said: all are prepared anew
                    if statement in self.backend.prepared:
                        self.backend.prepared.doubt(statement)
        if self.registry.prefix not in body:
            return edited
        bound = self._named.get(self._bound)
        if bound is not None and about is None:
            body = body.replace(b'"' + bound.name + b'"', b'"' + self._bound + b'"')
        for name, statement in self._named.items():
            if about is None or self._named.get(about) is statement:
                body = body.replace(b'"' + statement.name + b'"', b'"' + (about or name) + b'"')
        for gone, name in self._gone.items():
            body = body.replace(b'"' + gone + b'"', b'"' + name + b'"')
        return message(b"E", body)

    def _completed(self, data: bytes, pos: int, end: int) -> None:
        if end - pos > _SELECT_LEAST and read_i32_be(data, pos + 5) == _SELECT and not self._blind:
            return  # by far the most frequent; what a SELECT can do to the session shows in its text
        super()._completed(data, pos, end)
        tag = data[pos + 5 : end - 1]
        if tag == b"DEALLOCATE":
            if self.owed.first & _NOTED:
                self.owed.first &= ~_NOTED
                self._changes.popleft()
            elif self._deallocating:
                self._forget(self._deallocating.pop(0))
        elif tag == b"DISCARD ALL" or tag == b"DEALLOCATE ALL":
            self._discarded(everything=tag == b"DISCARD ALL")
        elif tag.startswith((b"ALTER ", b"DROP ", b"CREATE VIEW")):
            self.registry.renew()

    def _discarded(self, *, everything: bool) -> None:
        for name in list(self._named):
            self._forget(name)
        self._targets.clear()
        self._deallocating.clear()
        self._named_bytes = 0
        if self.backend is not None:
            self.backend.prepared.clear()
        more = self._more_behind()
        if everything:
            self._forget_state(more_behind=more)
        self._outlive_discard()
        if more:
            self._freeing = True
        else:
            self.pins &= ~(PIN_PREPARE | PIN_MEMORY)
            self._blind = False

    def _more_behind(self) -> bool:
        """Whether the client has sent more than a Sync behind what is being answered."""
        rest = iter(self.owed)
        next(rest, None)
        return any(entry & KIND != SYNC for entry in rest)

    def _outlive_discard(self) -> None:
        """What the client prepared behind the statement that discarded everything is still to come; what it closed
        there is gone already, unless it was prepared there."""
        changes, self._changes = self._changes, deque()
        for change in changes:
            entry, name, statement = change.entry, change.name, change.statement
            if name == b"" or entry & TAKEN:
                self._changes.append(change)
            elif entry & KIND != PARSE:
                self._changes.append(Change(entry, name, self._forget(name) if name is not None else None))
            else:
                if statement is not None and self.backend is not None:
                    self.backend.prepared.doubt(statement)
                    if name is not None and name not in self._named:
                        self._named[name] = statement
                        self._named_bytes += statement.size
                self._changes.append(change)


def _is_error(data: bytes) -> bool:
    """Whether this is one ErrorResponse and nothing else."""
    return len(data) > 5 and data[0] == ERROR and read_i32_be(data, 1) == len(data) - 1


def _names_statement(data: bytes, pos: int, end: int) -> bool:
    """Whether a Describe or Close is about a statement (a portal otherwise), and well formed."""
    return end - pos > 6 and data[pos + 5] == _STATEMENT and data[end - 1] == 0

"""The prepared statements that a pooled client believes to have, and what must be sent for a backend to have them.

EXECUTE, EXPLAIN EXECUTE and DEALLOCATE name a statement in their texts. Where that is one of the protocol's, it stands
under a name of ours: such a text is sent with our name in it, and behind the statement that it is about.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from proxy.steering import Steering
from proxy.wire import messages
from proxy.wire.entries import OWN
from proxy.wire.frames import CLOSE, FAILED, PARSE, SYNC
from proxy.wire.messages import message
from proxy.wire.prepared import UNKNOWN, Statement, StatementRegistry, reading
from proxy.wire.session_state import SessionState
from proxy.wire.statements import prepared_name

_GONE_LIMIT: Final = 100  # names that are not there any more, but that errors may still be about
_TARGETS: Final = 100  # EXECUTEs and DEALLOCATEs that were prepared, before those that are gone are forgotten
# Added to the note of a Parse that is sent for the server to say that its name is taken.
TAKEN: Final = 0x800


class Change:
    """What a Parse or Close (or a DEALLOCATE) that was sent changes: the kind in ``owed``, the client's name for the
    statement (empty: the unnamed one), the statement, and for a Parse of the unnamed one what was there before. Never
    changed itself."""

    __slots__ = ("entry", "name", "previous", "statement")

    def __init__(
        self,
        entry: int,
        name: bytes | None = None,
        statement: Statement | None = None,
        previous: Statement | None = None,
    ) -> None:
        self.entry = entry
        self.name = name
        self.statement = statement
        self.previous = previous


class KeptStatements(SessionState):
    """One client's statements; `proxy.wire.pooled` has the messages that make and use them."""

    __slots__ = (
        "_changes",
        "_contested",
        "_deallocating",
        "_gone",
        "_in_flight",
        "_named",
        "_named_bytes",
        "_named_limit",
        "_targets",
        "_unnamed",
        "reprepared",
    )

    def __init__(
        self,
        steering: Steering,
        registry: StatementRegistry,
        reported: dict[bytes, bytes],
        settings: dict[bytes, bytes],
        named_limit: int,
    ) -> None:
        super().__init__(steering, registry, reported, settings)
        self._named: dict[bytes, Statement] = {}
        self._named_bytes = 0
        self._gone: dict[bytes, bytes] = {}
        # Names that are taken and were parsed again all the same: what they stand for is not known until the answer.
        self._contested: set[bytes] = set()
        self._named_limit = named_limit
        self._unnamed: Statement | None = None
        # One entry for each Parse and Close in ``owed``: what to undo when the server never gets to it.
        self._changes: deque[Change] = deque()
        # Parses of ours that are not answered yet, by our name: behind a Sync nobody knows whether they were read.
        self._in_flight: dict[bytes, Change] = {}
        # What an EXECUTE or DEALLOCATE that was prepared is about: (client's name of it, our name of it) -> that name.
        self._targets: dict[tuple[bytes, bytes], bytes] = {}
        self._deallocating: list[bytes] = []  # the names that DEALLOCATEs which were bound are about
        self.reprepared = 0

    def _statement_of(self, name: bytes) -> Statement | None:
        return self._named.get(name) if name else self._unnamed

    def _forget(self, name: bytes) -> Statement | None:
        statement = self._named.pop(name, None)
        if statement is not None:
            self._named_bytes -= statement.size
            if len(self._gone) >= _GONE_LIMIT:
                self._gone.clear()
            self._gone[statement.name] = name
        return statement

    def _ensure(self, statement: Statement) -> bytes:
        """What must be sent first for the backend to have this statement."""
        assert self.backend is not None
        prepared = self.backend.prepared
        if prepared.use(statement) and not (self._in_flight and self._unsure_of(statement.name)):
            return b""
        self.reprepared += 1
        before = b""
        if statement in prepared:
            prepared.discard(statement)
            before = self._evict([statement])
        before += self._evict(prepared.add(statement))
        if statement.reading and statement.reading != reading(statement.text, self.reported):
            # Its names and constants are read in another way now than its name stands for: for this once only.
            prepared.doubt(statement)
        self._change(PARSE | OWN, None, statement)
        self._note_in_flight(statement.name)
        return before + statement.parse_message(statement.name)

    def _unsure_of(self, name: bytes) -> bool:
        """Whether a Parse of ours for this name may have been passed over, after an error in front of it, by the time
        that the server gets to what is sent now."""
        return name in self._in_flight and SYNC in self.owed

    def _note_in_flight(self, name: bytes) -> None:
        if not self._skipping:
            self._in_flight[name] = self._changes[-1]

    def _landed(self, change: Change) -> None:
        """A Parse of ours has been answered, or never will be."""
        name = change.statement.name if change.name is None and change.statement is not None else b""
        if not self._changes:
            self._in_flight.clear()
        elif self._in_flight.get(name) is change:
            del self._in_flight[name]

    def _stand_in(self, statement: Statement) -> bytes:
        """Makes its name be there, whatever it stands for: an empty text can be prepared at any time."""
        assert self.backend is not None
        prepared = self.backend.prepared
        if prepared.use(statement):
            return b""
        before = self._evict([statement]) if statement in prepared else b""
        self._change(PARSE | OWN, None, None)
        prepared.doubt(statement)
        return before + message(b"P", statement.name + b"\0\0\0\0")

    def _ensure_unnamed(self, statement: Statement) -> bytes:
        assert self.backend is not None
        if self.backend.prepared.unnamed is statement and not (self._in_flight and self._unsure_of(b"")):
            return b""
        self.reprepared += 1
        as_before = not statement.reading or statement.reading == reading(statement.text, self.reported)
        self.backend.prepared.unnamed = statement if as_before else UNKNOWN
        self._change(PARSE | OWN, b"", statement)
        self._note_in_flight(b"")
        return statement.parse_message(b"")

    def _without_unnamed(self, original: bytes) -> bytes | None:
        """A message about the unnamed statement of a client that has none: nobody else's must be there."""
        assert self.backend is not None
        if self.backend.prepared.unnamed is None:
            return None
        self.backend.prepared.unnamed = None
        self._change(CLOSE | OWN, b"", None)
        return messages.close(b"S", b"") + original

    def _evict(self, statements: list[Statement]) -> bytes:
        for statement in statements:
            self._change(CLOSE | OWN, None, statement)
        return b"".join(messages.close(b"S", statement.name) for statement in statements)

    def _change(
        self,
        entry: int,
        name: bytes | None,
        statement: Statement | None,
        previous: Statement | None = None,
        *,
        owe: bool = True,
    ) -> None:
        if self._skipping:
            return
        self._changes.append(Change(entry, name, statement, previous))
        if owe:
            self._copy_in = False
            self.owed.append(entry & ~TAKEN)

    # ------------------------------------------------------------------ statements about statements

    def _parse_by_name(self, name: bytes, statement: Statement) -> tuple[Statement, bytes]:
        """A Parse of an EXECUTE or DEALLOCATE: the statement with our name in its text, and what must be sent first
        for the server to know what it answers with."""
        found = prepared_name(statement.text)
        if found is None:
            return statement, b""
        before = b""
        inner = self._named.get(found.name)
        if inner is not None:
            text = found.replaced(statement.text, inner.name)
            statement = self.registry.intern(text, statement.types, statement.reading)
            if not found.deallocates and self.status != FAILED:
                before = self._ensure(inner)
        if len(self._targets) >= _TARGETS:
            self._targets = {key: target for key, target in self._targets.items() if key[0] in self._named}
        self._targets[name, statement.name] = found.name
        return statement, before

    def _put_target(self, name: bytes, statement: Statement, *, binds: bool) -> bytes:
        """The client's statement ``name`` is an EXECUTE or DEALLOCATE: has it be about what its target stands for by
        now, and gives what must be sent first."""
        assert self.backend is not None
        found = prepared_name(statement.text)
        target = self._targets.get((name, statement.name))
        inner = self._named.get(target) if target is not None else None
        if found is None or target is None or (inner is None and not found.name.startswith(self.registry.prefix)):
            return b""
        text = found.replaced(statement.text, target if inner is None else inner.name)
        if text != statement.text:
            fresh = self.registry.intern(text, statement.types, statement.reading)
            self._targets[name, fresh.name] = target
            if name:
                self._named[name] = fresh
                self._named_bytes += fresh.size - statement.size
            else:
                self._unnamed = fresh
        if inner is None:
            return b""
        if not found.deallocates:
            if binds:
                self._note(inner.text, inner.flags)
            return self._ensure(inner)
        if not binds:
            return b""
        if self._quiet:
            self._deallocating.clear()  # bound in an earlier transaction, and never executed
        before = self._stand_in(inner)
        self.backend.prepared.doubt(inner)
        self._deallocating.append(target)
        return before

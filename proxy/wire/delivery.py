"""A conversation whose statements can be steered: how advice gets into what the client sends, and leaves no trace.

Simple protocol: the hint comment goes in front of the text. Settings go in front of it as SET LOCAL when the statement
runs in a transaction of its own; inside the client's transaction a query of ours before it saves and sets, and one
after it puts back. Extended protocol: in place of the client's statement one of ours is bound, prepared right before
with the hint and closed right after, so that the client's own stays as it was; settings are put in place before the
Bind, where the plan is made, and back behind it.

What we send is answered to us: such replies are swallowed. Positions in errors and notices are moved back. A statement
that is refused because of what was added is sent once more as the client sent it, if nothing of its answer has got
out and nothing else can have been touched: it stood alone, outside a transaction.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from proxy.steering import LEAVE_ALONE, UNDECIDED, Decision, Known, Steering
from proxy.wire import advice, messages
from proxy.wire.conversation import FRESH, KIND, OWN, STEERED, SUSPENDED, Conversation
from proxy.wire.frames import (
    BIND,
    BIND_COMPLETE,
    CLOSE,
    COMMAND_COMPLETE,
    DESCRIBE,
    EXECUTE,
    FAILED,
    HEADER,
    HOLD_LIMIT,
    IDLE,
    IN_TRANSACTION,
    NOTICE,
    PARSE,
    QUERY,
    SYNC,
)
from proxy.wire.messages import message
from proxy.wire.prepared import READING_SETTINGS

# The statements of one client that are remembered by name for steering, in bytes of their texts.
_STATEMENT_BYTES: Final = 256 * 1024
_PORTALS: Final = 1000  # bound with advice in one transaction and remembered for their positions
# Added to the entry of a Parse whose text is remembered once it has succeeded.
_KEPT: Final = 0x4000
_ABORTED: Final = b"25P02"

_CLOSE_STATEMENT: Final = messages.close(b"S", advice.STATEMENT)

_unpack = HEADER.unpack_from


class Run:
    """One statement on its way with advice. ``name`` is the client's for it, None for a simple query; ``alone``: it may
    be sent once more; ``shift`` is how far positions are moved; ``swallow`` counts CommandCompletes of ours that come
    before its own; ``bound``: the client got its BindComplete."""

    __slots__ = ("alone", "bound", "decision", "error", "name", "shift", "swallow", "text")

    def __init__(self, decision: Decision, text: bytes, name: bytes | None, alone: bool) -> None:
        self.decision = decision
        self.text = text
        self.name = name
        self.alone = alone
        self.shift = decision.shift
        self.swallow = 0
        self.bound = False
        self.error = b""  # the message that it was refused with


class _Prepared:
    """A Parse on its way: ``known`` is None when its text is not to be remembered after all."""

    __slots__ = ("known", "name")

    def __init__(self, name: bytes, known: Known) -> None:
        self.name = name
        self.known: Known | None = known


TIDYING: Final = Run(LEAVE_ALONE, b"", None, False)


class SteeredConversation(Conversation):
    """A backend that belongs to this client alone, and statements that may be steered."""

    __slots__ = (
        "_hinted",
        "_pending",
        "_quiet",
        "_refused_run",
        "_retried",
        "_runs",
        "_succeeded",
        "_swallowed",
        "_texts",
        "_texts_size",
    )

    def __init__(self, steering: Steering) -> None:
        super().__init__(steering)
        self._texts: dict[bytes, Known] = {}  # prepared statements that may be steered, by the client's names
        self._texts_size = 0  # with those of `_pending`
        self._pending: deque[_Prepared] = deque()  # one for each entry in ``owed`` that is _KEPT
        self._succeeded: _Prepared | None = None
        self._runs: deque[Run] = deque()  # one for each entry in ``owed`` that is STEERED
        # Our statement may still be there on the backend, or pg_hint_plan may remember its hint for the next one.
        self._hinted = False
        self._quiet = True  # nothing was bound or run since the last ReadyForQuery outside a transaction
        self._refused_run: Run | None = None  # to be sent once more at ReadyForQuery
        self._retried: Run | None = None  # was sent once more
        self._swallowed = b""  # an error that ended the client's transaction in a query of ours

    # ------------------------------------------------------------------ simple queries

    def _query(self, data: bytes, pos: int, end: int) -> bytes | None:
        decision = self._judge_query(data, pos, end)
        if decision is UNDECIDED:
            return SUSPENDED
        if decision is LEAVE_ALONE:
            self._quiet = False
            self._owe(QUERY)
            return None
        return self._steer_query(data, pos, end, decision)

    def _judge_query(self, data: bytes, pos: int, end: int) -> Decision:
        decision = self._decision
        self._decision = None
        if end - pos < 7 or self._skipping or self._copy_in or self.status == FAILED:
            # A message too short to be one has no text; a slice that ends before it begins fails in the compiled build.
            decision = LEAVE_ALONE
        elif _unpack(data, pos)[1] > HOLD_LIMIT:
            self._forget_texts()  # it may say anything
            self.steering.prevented("too_large")
            decision = LEAVE_ALONE
        elif decision is None:
            text = data[pos + 5 : end - 1]
            decision = self.steering.query(text)
            if self._texts:
                self._look_for_deallocate(text)
        if decision is LEAVE_ALONE:
            self.left_alone += 1
        return decision

    def _steer_query(self, data: bytes, pos: int, end: int, decision: Decision) -> bytes | None:
        text = data[pos + 5 : end - 1]
        certain = self._certain()
        alone = certain and self._quiet and self.status == IDLE
        settings = decision.settings
        if settings and not (
            (alone and advice.may_stand_behind_others(text)) or (certain and self.status == IN_TRANSACTION)
        ):
            self._prevented("settings_not_possible_here")
            self._quiet = False
            self._owe(QUERY)
            return None
        run = Run(decision, text, None, alone)
        before = after = b""
        front = decision.prefix
        if settings and alone:
            commands = advice.set_local(decision)
            run.swallow = len(settings)
            run.shift += len(commands)
            front += commands
        elif settings:
            before = message(b"Q", advice.save_and_set(decision) + b"\0")
            after = message(b"Q", advice.put_back(decision) + b"\0")
            self._owe_steered(QUERY | OWN, run)
        self._owe_steered(QUERY | FRESH, run)
        if after:
            self._owe_steered(QUERY | OWN, run)
        self._deliver(run, pos)
        return before + message(b"Q", front + data[pos + 5 : end]) + after

    def _prevented(self, reason: str) -> None:
        self.steering.prevented(reason)
        self.left_alone += 1

    def _certain(self) -> bool:
        """Whether the state of the transaction is known: nothing of the client's is under way."""
        return all(entry & OWN for entry in self.owed)

    def _owe_steered(self, entry: int, run: Run) -> None:
        self.owed.append(entry | STEERED)
        self._runs.append(run)

    def _deliver(self, run: Run, pos: int) -> None:
        self.steering.delivered(run.decision)
        self._quiet = False
        if run.alone:
            self._recorded = b""
            self._record_from = pos

    # ------------------------------------------------------------------ prepared statements

    def _parse(self, data: bytes, pos: int, end: int) -> bytes | None:
        name_end = data.find(0, pos + 5, end)
        text_end = data.find(0, name_end + 1, end) if name_end >= 0 else -1
        large = _unpack(data, pos)[1] > HOLD_LIMIT
        if text_end < 0 or large or self._skipping or self._copy_in:
            if large:
                self._forget_texts()
            self._owe(PARSE)
            return None
        name = data[pos + 5 : name_end]
        text = data[name_end + 1 : text_end]
        self._forget_text(name)
        known = self.steering.known(text, data[text_end + 1 : end])
        if known is None or self._texts_size + len(text) > _STATEMENT_BYTES:
            if self._texts:
                self._look_for_deallocate(text)
            self._owe(PARSE)
            return None
        self.owed.append(PARSE | _KEPT)
        self._pending.append(_Prepared(name, known))
        self._texts_size += len(text)
        return None

    def _close(self, data: bytes, pos: int, end: int) -> bytes | None:
        if end - pos > 6 and data[pos + 5] == 0x53:
            self._forget_text(data[pos + 6 : end - 1])
        elif end - pos > 6 and self._portals:
            self._portals.pop(data[pos + 6 : end - 1], None)
        return None

    def _forget_text(self, name: bytes) -> None:
        """The name stands for another text from now on, or for none."""
        old = self._texts.pop(name, None)
        if old is not None:
            self._texts_size -= len(old.text)
        for prepared in self._pending:
            if prepared.name == name and prepared.known is not None:
                self._texts_size -= len(prepared.known.text)
                prepared.known = None

    def _look_for_deallocate(self, text: bytes) -> None:
        """SQL can give a name another meaning: then nothing is taken for known any more."""
        lower = text.lower()
        if b"deallocate" in lower or b"discard" in lower:
            self._forget_texts()

    def _forget_texts(self) -> None:
        for known in self._texts.values():
            self._texts_size -= len(known.text)
        self._texts.clear()
        for prepared in self._pending:
            if prepared.known is not None:
                self._texts_size -= len(prepared.known.text)
                prepared.known = None

    def _named_change(self) -> None:
        prepared, self._succeeded = self._succeeded, None
        if prepared is not None and prepared.known is not None:
            self._texts[prepared.name] = prepared.known
            self._texts_size += len(prepared.known.text)

    def _text_of(self, name: bytes) -> Known | None:
        """What this name stands for on the server when a Bind that comes now gets there."""
        # What was prepared in this very batch: if that fails, the Bind will not be looked at either.
        later = 0
        if self._pending:
            for entry in reversed(self.owed):
                if entry & KIND == SYNC:
                    break
                if entry & _KEPT:
                    later += 1
                    prepared = self._pending[-later]
                    if prepared.name == name and prepared.known is not None:
                        return prepared.known
        return self._texts.get(name)

    # ------------------------------------------------------------------ Bind and Execute

    def _bind(self, data: bytes, pos: int, end: int) -> bytes | None:
        if not (self._texts or self._pending or self._portals or self._hinted or self._runs):
            self._quiet = False
            self.left_alone += 1
            self._owe(BIND)
            return None
        portal_end = data.find(0, pos + 5, end)
        name_end = data.find(0, portal_end + 1, end) if portal_end >= 0 else -1
        name = data[portal_end + 1 : name_end] if name_end >= 0 else b""
        known = self._text_of(name) if name_end >= 0 else None
        decision = self._judge_bind(known, data, pos, name_end + 1, end)
        if decision is UNDECIDED:
            return SUSPENDED
        if decision is not LEAVE_ALONE and known is not None:
            return self._steer_bind(data, pos, end, portal_end, known, name, decision)
        before = self._before_bind(data, pos, portal_end, known)
        self._owe(BIND)
        return before + data[pos:end] if before else None

    def _judge_bind(self, known: Known | None, data: bytes, pos: int, start: int, end: int) -> Decision:
        decision = self._decision
        self._decision = None
        if known is None or self._skipping or self._copy_in or self.status == FAILED:
            decision = LEAVE_ALONE
        elif _unpack(data, pos)[1] > HOLD_LIMIT:
            self.steering.prevented("too_large")
            decision = LEAVE_ALONE
        elif decision is None:
            decision = self.steering.bind(known, data, start, end)
        if decision is LEAVE_ALONE:
            self.left_alone += 1
        return decision

    def _before_bind(self, data: bytes, pos: int, portal_end: int, known: Known | None) -> bytes:
        """What must be sent before a Bind that is left alone.

        Only statements that could be steered mind a hint that is left over, and only they may be preceded by a Parse of
        ours: it fails in a failed transaction, and in front of a ROLLBACK the client must get there.
        """
        self._quiet = False
        if self._portals and portal_end >= 0:
            self._portals.pop(data[pos + 5 : portal_end], None)
        possible = known is not None and not (self._skipping or self._copy_in or self.status == FAILED)
        return self._tidy() if possible and (self._hinted or self._runs) else b""

    def _steer_bind(
        self, data: bytes, pos: int, end: int, portal_end: int, known: Known, name: bytes, decision: Decision
    ) -> bytes | None:
        alone = self._quiet and self.status == IDLE and SYNC not in self.owed
        settings = decision.settings
        planned = not settings or advice.is_planned_at_bind(known.text)
        if not planned and not alone:
            self._prevented("settings_not_possible_here")
            return self._bind_as_it_is(data, pos, end, portal_end, known, name)
        run = Run(decision, known.text, name, alone)
        pieces = [self._close_ours() if self._hinted or self._runs else b""]
        pieces.append(self._vouch(name))
        if settings:
            pieces.append(self._run_ours(advice.save_and_set(decision), run))
        if decision.parse_for is not known:
            decision.parse_for = known
            decision.parse = messages.parse(advice.STATEMENT, decision.prefix + known.text, known.types)
        pieces.append(decision.parse)
        self._owe_ours(PARSE | STEERED, run)
        name_end = portal_end + 1 + len(name)
        pieces.append(messages.bind(data[pos + 5 : portal_end], advice.STATEMENT, data[name_end + 1 : end]))
        self._owe_steered(BIND, run)
        pieces.append(_CLOSE_STATEMENT)
        self._owe_ours(CLOSE | STEERED, run)
        if settings and planned:
            # Else it is planned when it is executed, and Sync puts back what was set.
            pieces.append(self._run_ours(advice.put_back(decision), run))
        if len(self._portals) >= _PORTALS:
            self._portals.clear()
        self._portals[data[pos + 5 : portal_end]] = run
        self._hinted = True
        self._deliver(run, pos)
        return b"".join(pieces)

    def _bind_as_it_is(
        self, data: bytes, pos: int, end: int, portal_end: int, known: Known | None, name: bytes
    ) -> bytes | None:
        before = self._before_bind(data, pos, portal_end, known)
        self._owe(BIND)
        return before + data[pos:end] if before else None

    def _vouch(self, name: bytes) -> bytes:
        """Has the server say what is wrong with the client's statement, in whose place ours is bound: that it is not
        there, or that its result is of another type now."""
        if self._pending and any(prepared.name == name for prepared in self._pending):
            return b""  # it has just been prepared
        self._owe_ours(DESCRIBE, TIDYING)
        return messages.describe(b"S", name)

    def _run_ours(self, text: bytes, run: Run) -> bytes:
        for kind in (PARSE, BIND, EXECUTE, CLOSE, CLOSE):
            self._owe_ours(kind | STEERED, run)
        name = advice.HELPER
        return b"".join(
            (
                messages.parse(name, text),
                messages.bind(name, name, b"\0\0\0\0\0\0"),
                messages.execute(name),
                messages.close(b"P", name),
                messages.close(b"S", name),
            )
        )

    def _close_ours(self) -> bytes:
        """An error may have kept ours from being closed."""
        self._owe_ours(CLOSE | STEERED, TIDYING)
        self._owe_ours(CLOSE | STEERED, TIDYING)
        return _CLOSE_STATEMENT + messages.close(b"S", advice.HELPER)

    def _tidy(self) -> bytes:
        """Leaves nothing of ours on the backend. pg_hint_plan may keep the hint of the text parsed last until a query
        is executed, and take it for one of the statement that is bound next: a text without one is parsed."""
        closes = self._close_ours()
        self._owe_ours(PARSE | STEERED, TIDYING)
        self._owe_ours(CLOSE | STEERED, TIDYING)
        self._hinted = False
        return closes + messages.parse(advice.STATEMENT, b"SELECT 1") + messages.close(b"S", advice.STATEMENT)

    def _owe_ours(self, entry: int, run: Run) -> None:
        """A message of ours in an extended batch; ``run`` goes with one that is STEERED."""
        self.owed.append(entry | OWN)
        if entry & STEERED:
            self._runs.append(run)

    def _execute(self, data: bytes, pos: int, end: int) -> None:
        run = self._portals.get(data[pos + 5 : max(data.find(0, pos + 5, end), pos + 5)])
        if run is None or self._skipping or self._copy_in:
            self._owe(EXECUTE)
        else:
            self._owe_steered(EXECUTE | FRESH, run)
            self._hinted = False

    def _described(self) -> None:
        # Its reply must not pass unseen: behind it the first row of the answer is looked out for.
        if self.owed and self.owed[-1] == DESCRIBE:
            self.owed[-1] |= STEERED
            self._runs.append(TIDYING)

    # ------------------------------------------------------------------ from the server

    def _ended(self) -> int:
        entry = self.owed.popleft()
        if entry & STEERED:
            self._runs.popleft()
        elif entry & _KEPT:
            prepared = self._succeeded = self._pending.popleft()
            if prepared.known is not None:
                self._texts_size -= len(prepared.known.text)
        return entry

    def _steered_reply(self, kind: int, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        run = self._runs[0]
        if kind == NOTICE:
            body = data[pos + 5 : end]
            if head & OWN or advice.is_about_hints(body):
                return b""
            return message(b"N", advice.moved(body, run.shift))
        if head & OWN:
            return b"" if head & KIND == QUERY else None
        if kind == COMMAND_COMPLETE and run.swallow:
            run.swallow -= 1
            return b""
        if kind == BIND_COMPLETE:
            run.bound = True
        elif head & FRESH:
            self.owed[0] = head & ~FRESH
        return None

    def _ready(self, data: bytes, end: int, head: int) -> bytes | None:
        edited = super()._ready(data, end, head)
        if self._refused_run is not None and not head & OWN:
            return self._run_again(data[end - 6 : end])
        if not head & OWN:
            self._swallowed = b""
        if self.status == IDLE and not self.owed:
            self._quiet = True
            self._recorded = None
            if self._portals:
                self._portals.clear()
            run, self._retried = self._retried, None
            if run is not None:
                self._tell_refused(run.text, run.error[5:], again=True)
        return edited

    def _run_again(self, ready: bytes) -> bytes:
        """The refused statement's ReadyForQuery: the statement is sent once more, as the client sent it."""
        run, self._refused_run = self._refused_run, None
        recorded, self._recorded = self._recorded, None
        assert run is not None
        if self.status != IDLE or self.owed or recorded is None:
            return run.error + ready
        self._retried = run
        self.ready_count -= 1
        held, suspended = self._held, self.suspended
        self._held, self.suspended = b"", False
        self._decision = LEAVE_ALONE
        self._quiet = True
        self.again += self.from_client(recorded)
        self._decision = None
        self._held, self.suspended = held, suspended
        self.idle = False
        if run.bound:
            # The client has these answers already.
            for at in range(len(self.owed)):
                entry = self.owed[at]
                if entry & KIND == EXECUTE:
                    break
                if entry & KIND in (BIND, DESCRIBE):
                    self.owed[at] = entry | OWN
        return b""

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        retried = self._retried
        if retried is not None and advice.field(retried.error[5:], b"C") == advice.field(data[pos + 5 : end], b"C"):
            self._retried = None  # it fails without advice too
        if head & STEERED:
            return self._steered_error(data, pos, end, head)
        self._hinted = self._hinted or bool(self._runs)
        edited = super()._error(data, pos, end, head)
        self._succeeded = None
        return edited

    def _steered_error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        """An error of a statement with advice, or of what advice added."""
        run = self._runs[0]
        body = data[pos + 5 : end]
        fatal = messages.is_fatal(body)  # the client must know, whoever asked
        self._hinted = True
        simple = head & KIND == QUERY
        others = not simple and any(not entry & OWN for entry in self._batch())
        Conversation._error(self, data, pos, end, head)
        self._succeeded = None
        if head & OWN and (simple or not others) and not fatal:
            # Nobody but us waits for this answer. In the client's transaction the error is its next statement's.
            self._swallowed = data[pos:end] if simple and not self._swallowed else self._swallowed
            return b""
        sqlstate = advice.field(body, b"C")
        if sqlstate == _ABORTED and self._swallowed:
            swallowed, self._swallowed = self._swallowed, b""
            return message(b"E", advice.moved(swallowed[5:], len(swallowed)))
        if (
            run is not TIDYING
            and not fatal
            and (head & OWN or sqlstate in advice.ADVICE_ERRORS or 0 < advice.position(body) <= run.shift)
        ):
            # While nothing of its answer is out, or nothing but what can be left out of the next one.
            untold = head & (OWN | FRESH) or head & KIND == BIND
            if run.alone and untold and self._recorded is not None and advice.stands_alone(self._recorded):
                run.error = data[pos:end]
                self._refused_run = run
                return b""
            self._tell_refused(run.text, body, again=False)
        body = advice.moved(body, run.shift)
        if run.name is not None:
            body = body.replace(b'"' + advice.STATEMENT + b'"', b'"' + run.name + b'"')
        return message(b"E", body)

    def _batch(self) -> list[int]:
        """The entries that the server will not answer after an error."""
        found = []
        for entry in self.owed:
            if entry & KIND == SYNC:
                break
            found.append(entry)
        return found

    def _tell_refused(self, text: bytes, body: bytes, *, again: bool) -> None:
        self.steering.refused(text, advice.field(body, b"C"), advice.field(body, b"M"), again=again)

    def _parameter_status(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        middle = data.find(0, pos + 5, end)
        name = data[pos + 5 : middle]
        self.steering.reported(name, data[middle + 1 : end - 1])
        if name in READING_SETTINGS:
            # Parsed anew for the advice, the constants of what was prepared before would mean something else now.
            self._forget_texts()
        return super()._parameter_status(data, pos, end, head)

"""A conversation whose statements can be steered: how advice gets into what the client sends, and leaves no trace.

Simple protocol: the hint comment goes in front of the text. Settings go in front of it as SET LOCAL when the statement
runs in a transaction of its own; inside the client's transaction a query of ours before it saves and sets, and one
after it puts back. Extended protocol: in place of the client's statement one of ours is bound, prepared right before
with the hint and closed right after, so that the client's own stays as it was; settings are put in place before the
Bind, where the plan is made, and back behind it.

Advice with a budget is followed where the run can be stopped and made once more: the statement stands alone up to its
Sync, all of which is there, and inside the client's transaction it runs under a savepoint of ours. What becomes of it
is in `proxy.wire.outcome`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from librt.strings import read_i32_be

from proxy.steering import LEAVE_ALONE, UNDECIDED, Decision, Known, Steering
from proxy.wire import advice, messages
from proxy.wire.entries import FRESH, KIND, OWN, STEERED, SUSPENDED
from proxy.wire.frames import (
    BIND,
    CLOSE,
    DESCRIBE,
    EXECUTE,
    FAILED,
    HOLD_LIMIT,
    IDLE,
    IN_TRANSACTION,
    PARSE,
    QUERY,
    SYNC,
    end_of_name,
)
from proxy.wire.messages import message
from proxy.wire.outcome import TIDYING, Run, SteeredOutcome
from proxy.wire.prepared import READING_SETTINGS
from proxy.wire.statements import NAME_LIMIT, prepared_name

# The statements of one client that are remembered by name for steering, in bytes of their texts.
_STATEMENT_BYTES: Final = 256 * 1024
_PORTALS: Final = 1000  # bound with advice in one transaction and remembered for their positions
_PLAIN_LIMIT: Final = 4 * 1024  # bytes of a Parse that is kept to know it again
_REMOVERS: Final = 100  # prepared statements that remove others, remembered by name
# Added to the entry of a Parse whose text is remembered once it has succeeded.
_KEPT: Final = 0x4000

_CLOSE_STATEMENT: Final = messages.close(b"S", advice.STATEMENT)


class _Prepared:
    """A Parse on its way: ``known`` is None when its text is not to be remembered after all."""

    __slots__ = ("known", "name")

    def __init__(self, name: bytes, known: Known) -> None:
        self.name = name
        self.known: Known | None = known


class SteeredConversation(SteeredOutcome):
    """A backend that belongs to this client alone, and statements that may be steered."""

    __slots__ = ("_pending", "_plain", "_plain_parse", "_removers", "_succeeded", "_texts", "_texts_size")

    def __init__(self, steering: Steering) -> None:
        super().__init__(steering)
        self._texts: dict[bytes, Known] = {}  # prepared statements that may be steered, by the client's names
        self._texts_size = 0  # with those of `_pending`
        self._pending: deque[_Prepared] = deque()  # one for each entry in ``owed`` that is _KEPT
        self._succeeded: _Prepared | None = None
        self._removers: dict[bytes, bytes] = {}  # prepared statements that are a DEALLOCATE or DISCARD; their texts
        # The last Parse of the unnamed statement that is not to be steered; its text and types.
        self._plain_parse = b""
        self._plain = (b"", b"")

    # ------------------------------------------------------------------ simple queries

    def _query(self, data: bytes, pos: int, end: int) -> bytes | None:
        large = read_i32_be(data, pos + 1) > HOLD_LIMIT
        decision = self._judge_query(b"" if large or end - pos < 7 else data[pos + 5 : end - 1], large)
        if decision is UNDECIDED:
            return SUSPENDED
        if decision is LEAVE_ALONE:
            self._quiet = False
            self._owe(QUERY)
            return None
        return self._steer_query(data, pos, end, decision)

    def _judge_query(self, text: bytes, large: bool) -> Decision:
        """``text`` is empty where the message has none, and for one too ``large`` to be put together."""
        decision = self._decision
        self._decision = None
        if not (text or large) or self._skipping or self._copy_in or self.status == FAILED or self.uncertain:
            decision = LEAVE_ALONE
        elif large:
            self._forget_texts()  # it may say anything
            self.steering.prevented("too_large")
            decision = LEAVE_ALONE
        elif decision is None:
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
        inside = certain and self.status == IN_TRANSACTION
        settings = decision.settings
        prevented = ""
        placed = inside or (alone and advice.may_stand_behind_others(text))
        if settings and not (placed and advice.is_planned_when_run(text)):
            prevented = "settings_not_possible_here"
        elif decision.budget_ms and not (decision.approved or alone or inside):
            prevented = "no_budget_possible_here"
        if prevented:
            self._prevented(prevented)
            self._quiet = False
            self._owe(QUERY)
            return None
        run = Run(decision, text, None, alone)
        if decision.budget_ms and (alone or inside):
            self._bound_run(run, data, pos, end)
        front = decision.prefix
        before: list[bytes] = []
        after: list[bytes] = []
        if settings and alone:
            commands = advice.set_local(decision)
            run.swallow = len(settings)
            run.shift += len(commands)
            front += commands
        elif settings:
            before.append(advice.save_and_set(decision))
            after.append(advice.put_back(decision))
        if run.savepoint:
            before.insert(0, advice.SAVE)
            after.append(advice.RELEASE)
        pieces = [self._query_ours(before, run), message(b"Q", front + data[pos + 5 : end])]
        self._owe_steered(QUERY | FRESH, run)
        pieces.append(self._query_ours(after, run))
        self._deliver(run, pos)
        return b"".join(pieces)

    def _query_ours(self, texts: list[bytes], run: Run) -> bytes:
        """A query of ours, in the client's transaction; none without texts."""
        if not texts:
            return b""
        self._owe_steered(QUERY | OWN, run)
        return message(b"Q", b";".join(texts) + b"\0")

    def _prevented(self, reason: str) -> None:
        self.steering.prevented(reason)
        self.left_alone += 1

    def _certain(self) -> bool:
        """Whether the state of the transaction is known: nothing of the client's is under way."""
        return all(entry & OWN for entry in self.owed)

    def _bound_run(self, run: Run, data: bytes, pos: int, until: int) -> None:
        """The run gets a budget: what the client sent for it is kept, and what is behind it is held."""
        run.batch = data[pos:until]
        run.savepoint = self.status == IN_TRANSACTION
        self._ending = run
        self.budget_ms = run.decision.budget_ms
        self._cut = until

    def _hold_behind(self, rest: bytes) -> bytes:
        super()._hold_behind(rest)
        run = self._ending
        if run is None or run.name is None or not run.savepoint:
            return b""
        release = self._run_ours(advice.RELEASE, TIDYING)
        self._owe_steered(SYNC | OWN, TIDYING)
        return release + messages.SYNC

    def _deliver(self, run: Run, pos: int) -> None:
        self.steering.delivered(run.decision)
        self._quiet = False
        self._told = 0
        if run.alone and not run.batch:
            self._recorded = b""
            self._record_from = pos

    # ------------------------------------------------------------------ prepared statements

    def _parse(self, data: bytes, pos: int, end: int) -> bytes | None:
        plain = self._plain_parse
        if plain and end - pos == len(plain) and data[pos:end] == plain and self._parse_again():
            return None
        name_end = end_of_name(data, pos + 5, end)
        text_end = data.find(0, name_end + 1, end) if name_end >= 0 else -1
        large = read_i32_be(data, pos + 1) > HOLD_LIMIT
        if text_end < 0 or large or self._skipping or self._copy_in:
            if large:
                self._forget_texts()
            self._owe(PARSE)
            return None
        name = data[pos + 5 : name_end]
        text = data[name_end + 1 : text_end]
        self._forget_text(name)
        known = self.steering.known(text, data[text_end + 1 : end])
        if known is None or self._texts_size + len(text) > _STATEMENT_BYTES or len(name) > NAME_LIMIT:
            if _removes(text):
                self._note_remover(name, text)
            elif known is None and not name and not self._texts and end - pos <= _PLAIN_LIMIT:
                self._plain_parse = data[pos:end]
                self._plain = (text, data[text_end + 1 : end])
            self._owe(PARSE)
            return None
        self.owed.append(PARSE | _KEPT)
        self._pending.append(_Prepared(name, known))
        self._texts_size += len(text)
        return None

    def _parse_again(self) -> bool:
        """The very Parse that came last and is none to be steered, which is what many clients send with each Bind: does
        what `_parse` does for it, without taking it apart. False when that is not all."""
        if self._texts or self._pending or self._skipping or self._copy_in:
            return False
        if self.steering.known(self._plain[0], self._plain[1]) is not None:
            return False
        self.owed.append(PARSE)
        return True

    def _close(self, data: bytes, pos: int, end: int) -> bytes | None:
        if end - pos > 6 and data[pos + 5] == 0x53:
            name = data[pos + 6 : end - 1]
            self._forget_text(name)
            self._removers.pop(name, None)
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
        """SQL can give a name another meaning: it is not taken for known any more, nor is any other unless the text is
        a DEALLOCATE of that one and nothing else."""
        if not _removes(text):
            return
        found = prepared_name(text)
        if (
            found is not None
            and found.deallocates
            and not text[found.end :].strip(b"; \t\r\n")
            and len(found.name) <= NAME_LIMIT
            and found.name.isascii()
        ):
            self._forget_text(found.name)
        else:
            self._forget_texts()

    def _note_remover(self, name: bytes, text: bytes) -> None:
        """It removes others whenever it is run. Names are kept until they are closed, since a Parse may fail."""
        self._look_for_deallocate(text)
        if (len(self._removers) < _REMOVERS and len(name) <= NAME_LIMIT) or name in self._removers:
            self._removers[name] = text if len(text) <= _PLAIN_LIMIT else b"discard"

    def _remove_bound(self, name: bytes) -> None:
        """A statement is bound that is not to be steered: it may remove others."""
        unknown = len(self._removers) >= _REMOVERS or len(name) > NAME_LIMIT
        text = self._removers.get(name, b"discard" if unknown else b"")
        if text:
            self._look_for_deallocate(text)

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
            for entry in self.owed.backwards():
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
        portal_end = end_of_name(data, pos + 5, end)
        name_end = end_of_name(data, portal_end + 1, end) if portal_end >= 0 else -1
        name = data[portal_end + 1 : name_end] if name_end >= 0 else b""
        known = self._text_of(name) if name_end >= 0 else None
        if known is None and (self._removers or len(name) > NAME_LIMIT):
            self._remove_bound(name)
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
        if known is None or self._skipping or self._copy_in or self.status == FAILED or self.uncertain:
            decision = LEAVE_ALONE
        elif read_i32_be(data, pos + 1) > HOLD_LIMIT:
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
        until = 0
        if decision.budget_ms and (alone or self._first_in_batch()):
            until = advice.alone_until(data, pos)
        settings = decision.settings
        planned = not settings or advice.is_planned_at_bind(known.text)
        possible = planned or (alone and advice.is_planned_when_run(known.text))
        possible = possible and portal_end - pos - 5 <= NAME_LIMIT
        if not possible or not (decision.approved or until or not decision.budget_ms):
            self._prevented("no_budget_possible_here" if possible else "settings_not_possible_here")
            return self._bind_as_it_is(data, pos, end, portal_end, known, name)
        run = Run(decision, known.text, name, alone)
        if until:
            self._bound_run(run, data, pos, until)
        pieces = [self._close_ours() if self._hinted or self._runs else b""]
        pieces.append(self._vouch(name))
        if run.savepoint:
            pieces.append(self._run_ours(advice.SAVE, run))
        if run.batch and not self._certain():
            # Until the server has answered what stands before the run, it must not be cancelled.
            pieces.append(messages.FLUSH)
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

    def _first_in_batch(self) -> bool:
        """Whether this is the client's transaction, and nothing is under way that could run or end it."""
        return self.status == IN_TRANSACTION and all(
            entry & OWN or entry & KIND in (PARSE, DESCRIBE, CLOSE) for entry in self.owed
        )

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

    def _execute(self, data: bytes, pos: int, end: int) -> None:
        run = self._portals.get(data[pos + 5 : max(end_of_name(data, pos + 5, end), pos + 5)])
        if run is None or self._skipping or self._copy_in:
            self._owe(EXECUTE)
        else:
            self._owe_steered(EXECUTE | FRESH, run)
            self._hinted = False

    def _described(self) -> None:
        # Its reply must not pass unseen: behind it the first row of the answer is looked out for.
        self.owed.last |= STEERED
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

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        edited = super()._error(data, pos, end, head)
        self._succeeded = None
        return edited

    def _parameter_status(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        middle = end_of_name(data, pos + 5, end)
        name = data[pos + 5 : middle]
        self.steering.reported(name, data[middle + 1 : end - 1])
        if name in READING_SETTINGS:
            # Parsed anew for the advice, the constants of what was prepared before would mean something else now.
            self._forget_texts()
        return super()._parameter_status(data, pos, end, head)


def _removes(text: bytes) -> bool:
    """Whether a text may free the name of a prepared statement; 0.2 us for a short one."""
    lower = text.lower()
    return lower.find(b"deallocate") >= 0 or lower.find(b"discard") >= 0

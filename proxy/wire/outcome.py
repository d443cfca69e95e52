"""What becomes of statements with advice: what is answered to us is swallowed, errors are read, and a statement may be
run again as the client sent it.

It is run again after an error that the advice may have caused, and after it went over its budget and was cancelled by
us; only when nothing of its answer has got out, and it stood alone: nothing else can have been touched.

A run with a budget is the one in ``_ending`` while ``budget_ms`` is not 0.0. Its messages are kept (``Run.batch``), and
what the client sends behind them is held until its answer begins or is over, so that it can be sent once more in its
place. Inside the client's transaction it stands between a SAVEPOINT and a RELEASE of ours. The session calls `stop`
when the budget is spent, cancels upstream, and calls `stopped` when the server has closed the connection that carried
the request: from then on the request can hit nothing any more, and the next statement may follow. A request that the
server got before it began with the statement has hit nothing: `stop` is called again. Meanwhile the answer, which may
have begun in that moment, is kept back: if it comes to its end it is the client's; if not it is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from proxy.steering import LEAVE_ALONE, Decision, Steering
from proxy.wire import advice, messages
from proxy.wire.conversation import Conversation
from proxy.wire.entries import CLOSING_REPLY, FRESH, KIND, OWN, STEERED
from proxy.wire.frames import (
    BIND,
    BIND_COMPLETE,
    CLOSE,
    COMMAND_COMPLETE,
    DESCRIBE,
    EXECUTE,
    FAILED,
    HOLD_LIMIT,
    IDLE,
    IN_TRANSACTION,
    NO_DATA,
    NOTICE,
    QUERY,
    ROW_DESCRIPTION,
    SYNC,
)
from proxy.wire.messages import message

_ABORTED: Final = b"25P02"
_SAVED: Final = b"SAVEPOINT\0"
_KEPT_LIMIT: Final = HOLD_LIMIT
"""Bytes of an answer kept back while a cancel request is on its way; beyond, it is dropped, to be asked for again."""


class Run:
    """One statement on its way with advice. ``name`` is the client's for it, None for a simple query; ``alone``: it may
    be sent once more; ``shift`` is how far positions are moved; ``swallow`` counts CommandCompletes of ours that come
    before its own.

    For one with a budget: ``batch`` is what the client sent; ``savepoint``: it runs under one of ours, and ``saved``
    that is in place; ``stopping``: a cancel request was sent, and ``sending``: one may still be on its way;
    ``answered``: the answer is complete; ``dropped``: some of it was thrown away; ``hit``: the request came too late
    and hit what we sent behind it; ``cancelled``: the client has sent a request of its own.
    """

    __slots__ = (
        "again",
        "alone",
        "answered",
        "batch",
        "cancelled",
        "decision",
        "dropped",
        "error",
        "hit",
        "kept",
        "name",
        "ready",
        "saved",
        "savepoint",
        "sending",
        "shift",
        "stopping",
        "swallow",
        "text",
    )

    def __init__(self, decision: Decision, text: bytes, name: bytes | None, alone: bool) -> None:
        self.decision = decision
        self.text = text
        self.name = name
        self.alone = alone
        self.shift = decision.shift
        self.swallow = 0
        self.error = b""  # the message that it was refused or cancelled with
        self.again = False  # it is to be sent once more, when all that is owed for it is in
        self.ready = b""  # its ReadyForQuery, meanwhile
        self.kept = b""  # the beginning of its answer, kept back
        self.batch = b""
        self.savepoint = self.saved = False
        self.stopping = self.sending = False
        self.answered = self.dropped = self.hit = False
        self.cancelled = False


TIDYING: Final = Run(LEAVE_ALONE, b"", None, False)


class SteeredOutcome(Conversation):
    """The server's half of a conversation whose statements can be steered."""

    __slots__ = (
        "_ending",
        "_hinted",
        "_quiet",
        "_retried",
        "_runs",
        "_swallowed",
        "_told",
    )

    def __init__(self, steering: Steering) -> None:
        super().__init__(steering)
        self._runs: deque[Run] = deque()  # one for each entry in ``owed`` that is STEERED
        # Our statement may still be there on the backend, or pg_hint_plan may remember its hint for the next one.
        self._hinted = False
        self._quiet = True  # nothing was bound or run since the last ReadyForQuery outside a transaction
        self._ending: Run | None = None  # has a budget, or is to be sent once more: there is more to do at its end
        self._retried: Run | None = None  # was refused and sent once more
        self._swallowed = b""  # an error that ended the client's transaction in a query of ours
        self._told = 0  # answers to Bind and Describe that the client got for the statement that was steered last

    @property
    def may_send_again(self) -> bool:
        """Whether something that was sent with advice may have to be sent once more, without."""
        return self.budget_ms > 0 or len(self._runs) > 0

    # ------------------------------------------------------------------ replies

    def _steered_reply(self, kind: int, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        run = self._runs[0]
        if kind == NOTICE:
            body = data[pos + 5 : end]
            if head & OWN or advice.is_about_hints(body):
                return b""
            notice = message(b"N", advice.moved(body, run.shift))
            return self._answer(run, kind, notice) if head & FRESH and run is self._ending else notice
        if head & OWN:
            if kind == COMMAND_COMPLETE and run.savepoint and data[pos + 5 : end] == _SAVED:
                run.saved = True
            return b"" if head & KIND == QUERY else None
        if kind == COMMAND_COMPLETE and run.swallow:
            run.swallow -= 1
            return b""
        if head & FRESH:
            if run is self._ending:
                if kind == COMMAND_COMPLETE:
                    self._completed(data, pos, end)
                return self._answer(run, kind, data[pos:end])
            self.owed.first = head & ~FRESH
        elif kind == BIND_COMPLETE:
            self._told = 1
        elif self._told and kind in (ROW_DESCRIPTION, NO_DATA) and head & KIND == DESCRIBE:
            self._told += 1
        return None

    def _answer(self, run: Run, kind: int, reply: bytes) -> bytes:
        """Something of the answer to a run with a budget, while nothing of it has got out."""
        if run.stopping:
            return self._keep(run, kind, reply)
        if kind in (ROW_DESCRIPTION, NOTICE) and len(run.kept) + len(reply) <= _KEPT_LIMIT:
            run.kept += reply  # no row yet
            return b""
        kept = self._unbound(run)
        if kind in CLOSING_REPLY and self.owed.first & KIND == EXECUTE:
            self._ended()
        return kept + reply

    def _unbound(self, run: Run) -> bytes:
        """Its answer begins to get out, so that it cannot be stopped any more: what was kept back of it."""
        self.owed.first &= ~FRESH
        self._ending = None
        self._let_go()
        kept, run.kept = run.kept, b""
        return kept

    def _let_go(self) -> None:
        """What the client has sent meanwhile may go on; whoever sends ``again`` sees to it."""
        self.budget_ms = 0.0
        self._streaming = 0
        self.suspended = False
        if self.again is None:
            self.again = b""

    def _keep(self, run: Run, kind: int, reply: bytes) -> bytes:
        """A message of the answer while a cancel request may be on its way."""
        if not run.dropped:
            run.kept += reply
            if len(run.kept) > _KEPT_LIMIT:
                run.dropped = True
                run.kept = b""
        if kind not in CLOSING_REPLY:
            return b""
        run.answered = True
        if self.owed.first & KIND == EXECUTE:
            self._ended()
        else:
            self.owed.first &= ~FRESH
        if run.dropped:
            run.again = True
            entries = self.owed.entries()
            for at, entry in enumerate(entries):
                if entry & KIND != CLOSE:
                    break
                entries[at] = entry | OWN  # it comes again
            self.owed.replace(entries)
            return b""
        kept, run.kept = run.kept, b""
        return kept

    def _long_answer(self) -> bytes:
        run = self._runs[0]
        if run is not self._ending:
            return super()._long_answer()
        if not run.stopping:
            return self._unbound(run)
        self._server_dropping = run.dropped = True
        run.kept = b""
        return b""

    # ------------------------------------------------------------------ the end

    def _ready(self, data: bytes, end: int, head: int) -> bytes | None:
        edited = super()._ready(data, end, head)
        if self._ending is not None:
            return self._ready_at_end(self._ending, data[end - 6 : end], head, edited)
        if not head & OWN:
            self._swallowed = b""
            if self._retried is not None:
                run, self._retried = self._retried, None
                self._tell_refused(run.text, run.error[5:], again=True)
        if self.status == IDLE and not self.owed.first:
            self._all_over()
        return edited

    def _all_over(self) -> None:
        """No transaction, and nothing owed."""
        self._quiet = True
        self._recorded = None
        if self._portals:
            self._portals.clear()

    def _ready_at_end(self, run: Run, ready: bytes, head: int, edited: bytes | None) -> bytes | None:
        if not head & OWN:
            self._swallowed = b""
            if run.again:
                self.ready_count -= 1
                run.ready = ready
                edited = b""
            elif run.hit and self.status == FAILED:
                edited = messages.ready_for_query(b"T")  # it will be so at once
        if (self.owed.first or run.sending) if run.batch else head & OWN:
            return edited
        told = self._end(run)
        return told if run.again else edited

    def _end(self, run: Run) -> bytes:
        """All that was owed for the run is in, and no cancel request of ours is on its way: bytes for the client."""
        self._ending = None
        if self.budget_ms:
            self._let_go()
        told = b""
        possible = bool(run.batch) or (self.status == IDLE and not self.owed.first and self._recorded is not None)
        if run.again and (not possible or (run.cancelled and run.error)):
            self.ready_count += 1
            self.steering.failed(run.error)
            told = run.error + run.ready
        elif run.again:
            self._send_once_more(run)
        elif self.status == FAILED and run.hit:
            self._more(self._roll_back(run, alone=True))
        if self.status == IDLE and not self.owed.first:
            self._all_over()
            self.idle = not self.suspended
        return told

    def _more(self, data: bytes) -> None:
        self.again = data if self.again is None else self.again + data

    def _send_once_more(self, run: Run) -> None:
        """The statement as the client sent it; advice is not asked for."""
        sent = run.batch or self._recorded or b""
        self._recorded = None
        if run.batch and run.stopping:
            self.steering.stopped()
        else:
            self._retried = run
        if self.status == FAILED:
            self._more(self._roll_back(run, alone=False))
        held, suspended = self._held, self.suspended
        self._held, self.suspended = b"", False
        self._decision = LEAVE_ALONE
        self._quiet = True
        self._more(self.from_client(sent))
        self._decision = None
        self._held, self.suspended = held, suspended
        told, self._told = self._told, 0
        entries = self.owed.entries()
        for at, entry in enumerate(entries):
            # What the client has been told already.
            if not told or entry & (KIND | OWN) == EXECUTE:
                break
            if not entry & OWN and entry & KIND in (BIND, DESCRIBE):
                entries[at] = entry | OWN
                told -= 1
        self.owed.replace(entries)

    def _roll_back(self, run: Run, *, alone: bool) -> bytes:
        """To our savepoint, with the protocol that the client uses: a simple query would take its unnamed statement
        away. ``alone``: no batch follows."""
        self.status = IN_TRANSACTION
        if run.name is None:
            self._owe_steered(QUERY | OWN, TIDYING)
            return message(b"Q", advice.ROLL_BACK + b";" + advice.RELEASE + b"\0")
        sent = self._close_ours() + self._run_ours(advice.ROLL_BACK, TIDYING) + self._run_ours(advice.RELEASE, TIDYING)
        if alone:
            self._owe_steered(SYNC | OWN, TIDYING)
            sent += messages.SYNC
        return sent

    # ------------------------------------------------------------------ errors

    def _error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        retried = self._retried
        if retried is not None and advice.field(retried.error[5:], b"C") == advice.field(data[pos + 5 : end], b"C"):
            self._retried = None  # it fails without advice too
        if head & STEERED:
            return self._steered_error(data, pos, end, head)
        self._hinted = self._hinted or bool(self._runs)
        run = self._ending
        edited = super()._error(data, pos, end, head)
        if run is not None and run.answered and run.stopping and advice.is_cancelled(data[pos + 5 : end]):
            self._unsaid(run)
            return b""
        return edited

    def _unsaid(self, run: Run) -> None:
        """An error that our cancel request made behind the answer."""
        run.hit = True
        self.steering.failed(b"")

    def _steered_error(self, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        """An error of a statement with advice, or of what advice added."""
        run = self._runs[0]
        body = data[pos + 5 : end]
        fatal = messages.is_fatal(body)  # the client must know, whoever asked
        cancelled = not fatal and advice.is_cancelled(body)
        self._hinted = True
        simple = head & KIND == QUERY
        others = not simple and any(not entry & OWN for entry in self._batch())
        Conversation._error(self, data, pos, end, head)
        ending = self._ending
        if ending is not None and ending.stopping and cancelled and not ending.cancelled:
            if ending.answered:
                self._unsaid(ending)
            else:
                self._to_be_repeated(ending, data[pos:end])
            return b""
        sqlstate = advice.field(body, b"C")
        if head & OWN and (simple or not others) and not fatal:
            # Nobody but us waits for this answer. In the client's transaction the error is its next statement's.
            self.steering.failed(b"")
            if simple and not self._swallowed and sqlstate != _ABORTED:
                self._swallowed = data[pos:end]
            return b""
        if sqlstate == _ABORTED and self._swallowed:
            swallowed, self._swallowed = self._swallowed, b""
            return message(b"E", advice.moved(swallowed[5:], len(swallowed)))
        if (
            run is not TIDYING
            and not fatal
            and not cancelled
            and (head & OWN or sqlstate in advice.ADVICE_ERRORS or 0 < advice.position(body) <= run.shift)
        ):
            # While nothing of its answer is out, or nothing but what can be left out of the next one.
            untold = head & (OWN | FRESH) or head & KIND == BIND
            if untold and not run.cancelled and self._may_repeat(run):
                self._to_be_repeated(run, data[pos:end])
                return b""
            self._tell_refused(run.text, body, again=False)
        body = advice.moved(body, run.shift)
        if run.name is not None:
            body = body.replace(b'"' + advice.STATEMENT + b'"', b'"' + run.name + b'"')
        kept, run.kept = run.kept, b""
        return kept + message(b"E", body)

    def _may_repeat(self, run: Run) -> bool:
        if run is self._ending:
            return run.saved or not run.savepoint
        return run.alone and self._recorded is not None and advice.stands_alone(self._recorded)

    def _to_be_repeated(self, run: Run, error: bytes) -> None:
        self.steering.failed(b"")
        run.error = error
        run.again = True
        run.kept = b""
        self._ending = run

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

    # ------------------------------------------------------------------ stopping

    def stop(self) -> bool | None:
        run = self._ending
        if not self.budget_ms or run is None or run.sending or run.again or run.answered:
            return False
        if run.savepoint and not run.saved:
            return None
        bound = self._told > 0
        steered = 0
        for entry in self.owed:
            if entry & FRESH:
                run.stopping = run.sending = True
                return True
            if entry & STEERED:
                bound = bound or (self._runs[steered] is run and not entry & OWN)
                steered += 1
            # Not while the server may be at something in front of it, of the client's or our own.
            if entry & KIND in (QUERY, SYNC) or not (bound or entry & OWN):
                return None
        return False

    def stopped(self, *, sent: bool) -> bytes:
        run = self._ending
        if run is None or not run.sending:
            return b""
        run.sending = False
        if not self.owed.first:
            return self._end(run)
        if not (sent or run.again or run.answered or run.dropped):
            run.stopping = False
            if run.kept:
                return self._unbound(run)
        return b""

    def cancelled(self) -> None:
        if self.budget_ms and self._ending is not None:
            self._ending.cancelled = True

    # ------------------------------------------------------------------ what the client's half sends

    def _owe_steered(self, entry: int, run: Run) -> None:
        self.owed.append(entry | STEERED)
        self._runs.append(run)

    def _owe_ours(self, entry: int, run: Run) -> None:
        """A message of ours in an extended batch; ``run`` goes with one that is STEERED."""
        self.owed.append(entry | OWN)
        if entry & STEERED:
            self._runs.append(run)

    def _run_ours(self, text: bytes, run: Run) -> bytes:
        raise NotImplementedError

    def _close_ours(self) -> bytes:
        raise NotImplementedError

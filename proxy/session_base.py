"""What all sessions have in common: ending, counting, flow control, waiting for advice, and watching over the budget of
what runs with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.login import Login
from proxy.steering import Decision
from proxy.steering.steerer import SessionSteering
from proxy.steering.waiting import Wait
from proxy.transports import Portions, write_at_once
from proxy.upstream.backend import Backend, Owner
from proxy.wire.conversation import Conversation
from proxy.wire.frames import ProtocolViolation
from proxy.wire.messages import error_response

if TYPE_CHECKING:
    from proxy.context import WorkerContext

_now: Final = time.monotonic
SHUTDOWN: Final = error_response("57P01", "terminating connection due to administrator command")
BREACHED: Final = error_response("25006", "this session is read-only, but something in it turned that off")
# While a client's own messages wait for a backend, about this much of them is read. Not to read at all would hide
# that the client has left, and it would keep its place in the queue.
PENDING_LIMIT: Final = 16 * 1024
# So many answers may be owed to a client before its next messages wait: more than any pipeline in use has, in 400 kB.
OWED_LIMIT: Final = 10_000
# Seconds after which the server is taken to have begun with what it was sent, also where its processor is busy.
_JUST_SENT: Final = 0.1
# When a run over its budget cannot be cancelled yet, after so many seconds it is looked at again; when it goes on all
# the same after a cancel request, which hit nothing if the server had not begun with it, another one is sent, after a
# pause that doubles.
_LOOK_AGAIN: Final = 0.005
# (Two numbers, no tuple: the compiled build finds a constant tuple of numbers unset.)
_CANCEL_AGAIN: Final = 0.1
_CANCEL_AGAIN_AT_MOST: Final = 3.2


class Session(Owner):
    """A logged-in client, with the callbacks of `asyncio.Protocol`. (To inherit from that class would
    keep the compiled build from giving this one fields of its own.) The hot path is `data_received` and `server_data`
    of the subclasses."""

    __slots__ = (
        "_answered_at",
        "_began",
        "_client_full",
        "_closing",
        "_eof_due",
        "_leaving",
        "_pause",
        "_portions",
        "_ready_seen",
        "_server_full",
        "_since",
        "_steering",
        "_timer",
        "_tracer",
        "_wait",
        "_write",
        "backend",
        "context",
        "counters",
        "key",
        "login",
        "slow_ms",
        "talk",
        "transport",
    )

    def __init__(self, context: WorkerContext, login: Login, transport: asyncio.Transport, talk: Conversation) -> None:
        self.context = context
        self.talk = talk
        self.counters = context.databases.of(login.database)
        self.login = login
        self.transport = transport
        self._write: Callable[[bytes], None] = transport.write  # looked up once
        self.backend: Backend | None = None
        self.key: tuple[int, bytes] = (0, b"")
        self._answered_at = 0.0  # when the last batch was
        self._since = 0.0  # when the batch that is running arrived
        self._began = 0.0  # when the transaction's first batch did, once that was answered and left it open
        self._ready_seen = 0
        self._closing = False  # to be ended at the next transaction boundary
        self._leaving = False
        self._steering = talk.steering if isinstance(talk.steering, SessionSteering) else None
        self._wait: Wait | None = None  # for advice; made when there is something to wait for
        self._timer: asyncio.TimerHandle | None = None  # goes off when the budget of what runs is spent
        self._tracer = context.tracer
        self._pause = 0.0  # until what goes on all the same is cancelled again
        self._eof_due = False  # the server is to be told that the client has sent all it will
        self._portions: Portions | None = None  # made at the first great read
        self._server_full = False  # the server does not read
        self._client_full = False  # the client does not read
        self.slow_ms: float = context.slow_ms
        if not login.tls:
            write_at_once(transport)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.login.user}@{self.login.database} {self.talk!r} backend={self.backend!r}>"

    # ------------------------------------------------------------------ ends

    def end_when_idle(self) -> None:
        """Ends the session with 57P01 as soon as it is outside a transaction with nothing owed."""
        self._closing = True
        if self._between_transactions():
            self.finish(SHUTDOWN)

    def _between_transactions(self) -> bool:
        return self.talk.idle

    def finish(self, response: bytes) -> None:
        """Says why and closes; the client gets what was written before."""
        if not self.transport.is_closing():
            self.transport.write(response)
            self.transport.close()
        self._leaving = True

    def abort(self) -> None:
        self._leaving = True
        self.transport.abort()

    def _last_words(self) -> None:
        """The server has answered, and gone."""
        if self.talk.violated is not None:
            self._violated(self.talk.violated)
        else:
            self.transport.close()

    def _violated(self, error: ProtocolViolation) -> None:
        self.counters.protocol_errors += 1
        login = self.login
        self.context.log.event("protocol_error", level="warning", id=login.id, peer=login.peer, error=str(error))
        self.finish(error_response("08P01", str(error)))

    def _answered(self, talk: Conversation, out: bytes) -> None:
        """Bookkeeping for each ReadyForQuery that reached the client, at the end of ``out``; about 0.7 us."""
        counters = self.counters
        counters.statements += talk.ready_count - self._ready_seen
        self._ready_seen = talk.ready_count
        if talk.refused:
            counters.read_only_refused += talk.refused
            talk.refused = 0
        if talk.breached:
            login = self.login
            self.context.log.event("read_only_breached", level="error", id=login.id, user=login.user, peer=login.peer)
            self.finish(BREACHED)
        if talk.left_alone:
            counters.steering_left_alone += talk.left_alone
            talk.left_alone = 0
        if not talk.owed.first and self._since:
            since, self._since = self._since, 0.0
            now = self._answered_at = _now()
            took = now - since
            counters.observe_latency(took)
            if talk.idle:
                counters.transaction_seconds += now - (self._began or since)
                self._began = 0.0
            elif not self._began:
                self._began = since
            if took * 1000 >= self.slow_ms:
                self.context.log_slow(self, took)
            tracer = self._tracer
            if tracer is not None:
                tracer.statement(self, took, out)
            steering = self._steering
            if steering is not None and steering.template is not None:
                steering.done(took, out)
            if steering is not None:
                steering.text = b""
            else:
                talk.steering.text = b""
        if talk.idle:
            counters.transactions += 1
            if self._steering is not None and self._steering.local:
                self._steering.transaction_over()

    # ------------------------------------------------------------------ advice

    def _suspended(self) -> None:
        """The conversation waits, for advice or for a run with a budget; meanwhile not much more is read than waits
        already."""
        wait = self._wait
        if self.talk.budget_ms:
            self._watch()
        elif wait is None:
            assert self._steering is not None
            wait = self._wait = Wait(self.talk, self._steering, self._decided)
            wait.begin()
        else:
            wait.begin()
        if self.talk.suspended and self.talk.held > PENDING_LIMIT:
            self.transport.pause_reading()

    def _decided(self, decision: Decision) -> None:
        """Advice has come, or is not waited for any longer."""
        backend = self.backend
        if backend is None or self.transport.is_closing():
            self.talk.suspended = False
            return
        try:
            out = self.talk.decided(decision)
        except ProtocolViolation as error:
            self._violated(error)
            return
        self._sent(backend, out)
        if self.talk.budget_ms:
            self._watch()
        if not self._server_full and not self.transport.is_closing():
            self._resume_reading()

    def _sent(self, backend: Backend, out: bytes) -> None:
        """What the conversation made of the client's bytes goes to the server."""
        raise NotImplementedError

    @property
    def just_sent(self) -> bool:
        """Whether what runs was sent so short a time ago that the server may not have begun with it."""
        return self.talk.owed.first != 0 and _now() - self._since < _JUST_SENT

    def without_advice(self) -> bool:
        """Ends the wait for advice: what the client has sent goes on as it is. Whether there was one."""
        return self._wait is not None and self._wait.end()

    # ------------------------------------------------------------------ budgets

    def _watch(self) -> None:
        if self._timer is None:
            self._pause = _CANCEL_AGAIN
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.talk.budget_ms / 1000, self._over_budget)

    def _over_budget(self) -> None:
        self._timer = None
        backend = self.backend
        if backend is None or self.transport.is_closing():
            return
        stop = self.talk.stop()
        if stop is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._over_budget)
        elif stop:
            backend.cancelling += 1  # nobody else gets it
            self.context.spawn(self._stop(backend))

    async def _stop(self, backend: Backend) -> None:
        """Cancels what runs; it is run again as the client sent it once no cancel request is on its way any more."""
        try:
            sent = await self.context.stop(backend)
            if self.backend is backend and not self.transport.is_closing():
                out = self.talk.stopped(sent=sent)
                if out:
                    self.counters.bytes_to_client += len(out)
                    self.transport.write(out)
                self.server_data(backend, b"")  # for what else there is to do
                if self.talk.budget_ms and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(self._pause, self._over_budget)
                    self._pause = min(self._pause * 2, _CANCEL_AGAIN_AT_MOST)
        finally:
            self.context.cancel_over(backend)

    async def _stop_for_nobody(self, backend: Backend) -> None:
        """Cancels what runs on a backend that ends with its client. Nobody hears any more whether the server had begun
        with it, so that the request hit it: a few more follow."""
        try:
            pause = _CANCEL_AGAIN
            while await self.context.stop(backend) and pause <= _CANCEL_AGAIN_AT_MOST:
                await asyncio.sleep(pause)
                pause *= 4
        finally:
            self.context.cancel_over(backend)

    def _send_again(self, backend: Backend, talk: Conversation) -> None:
        """Sends what the conversation has for the server, and lets go on what the client sent meanwhile."""
        again, talk.again = talk.again, None
        if again:
            backend.transport.write(again)
        if not talk.budget_ms and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._go_on_behind(backend)
        self.go_on_reading()

    def _go_on_behind(self, backend: Backend) -> None:
        """What the client has sent behind a run with a budget, if anything."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError

    def server_data(self, backend: Backend, data: bytes) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------------ measuring, some ten times a second

    def _probe_client(self, data: bytes) -> None:
        self.counters.probe_client = False
        begun = _now()
        self.data_received(data)
        self.counters.observe_wire(_now() - begun)

    def _probe_server(self, backend: Backend, data: bytes) -> None:
        self.counters.probe_server = False
        begun = _now()
        self.server_data(backend, data)
        self.counters.observe_wire(_now() - begun)

    def _unwatched(self) -> None:
        """The session is over: nobody waits for anything."""
        if self._wait is not None:
            self._wait.abandon()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        backend = self.backend
        if self.talk.budget_ms and backend is not None and not backend.lost:
            # A plan that is terrible would go on for nobody.
            backend.cancelling += 1
            self.context.spawn(self._stop_for_nobody(backend))

    # ------------------------------------------------------------------ flow control

    def stop_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def go_on_reading(self) -> None:
        """Reads from the client again, unless there is another reason not to."""
        if not self._server_full and not self.transport.is_closing() and not self.talk.suspended:
            self._resume_reading()

    def _in_portions(self, data: bytes) -> bool:
        """Whether what was read, a great deal, is handled in portions instead of at once."""
        if self._portions is None:
            self._portions = Portions(self.transport, self.data_received, self._read_on_behind, self._owed_much)
        return self._portions.begin(data)

    def _owed_much(self) -> bool:
        """Whether so many answers are owed that the client's next messages can wait. (Of messages without a Sync the
        server keeps back 8 kB of answers, 1,600 of the shortest.)"""
        return len(self.talk.owed) > OWED_LIMIT

    def _read_on_behind(self) -> None:
        """A great read has been handled, and others have had their turn."""
        self.go_on_reading()

    def _resume_reading(self) -> None:
        if self._portions is None or not self._portions.rest:
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client does not read: stop reading from the server."""
        self._client_full = True
        if self.backend is not None:
            self.backend.read(wanted=False)

    def resume_writing(self) -> None:
        self._client_full = False
        if self.backend is not None:
            self.backend.read(wanted=True)

    def server_writable(self, writable: bool) -> None:
        """The server does not read, or does again."""
        self._server_full = not writable
        if self.transport.is_closing():
            return
        if writable:
            self._resume_reading()
        else:
            self.transport.pause_reading()

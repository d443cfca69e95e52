"""One logged-in client: the asyncio protocol on its transport, joined to a backend.

`DedicatedSession` owns a backend for life (session pooling, replication, relayed logins); `PooledSession` borrows one
for each transaction. Both only move bytes between two transports and a `Conversation`, which decides what they mean.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final, cast

from librt.strings import read_i32_be

from proxy.login import Login
from proxy.session_base import PENDING_LIMIT, SHUTDOWN, Session
from proxy.transports import GREAT_READ
from proxy.upstream.backend import Backend, reported_settings
from proxy.upstream.errors import UpstreamError
from proxy.upstream.pool import BackendPool
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.entries import NEVER_CERTAIN
from proxy.wire.frames import FRONTEND_LIMITS, HOLD_LIMIT, NOTICE, TERMINATE, ProtocolViolation, violation
from proxy.wire.messages import backend_key_data, error_fields, error_response, parameter_status, ready_for_query
from proxy.wire.pins import PIN_NAMES
from proxy.wire.statements import databases_named

if TYPE_CHECKING:
    from proxy.context import WorkerContext

_now: Final = time.monotonic
LOST: Final = error_response(
    "08006",
    "pilotwire lost its connection to the server",
    detail="The transaction that was running, if any, was rolled back or its outcome is unknown.",
)
_UNCERTAIN: Final = error_response(
    "08P01",
    "pilotwire cannot tell which answers of the server are still to come",
    detail="A COPY failed while a Sync that had been sent behind some of its data was under way.",
    hint="Send no Sync between the data of a COPY, or use session pooling.",
)


class DedicatedSession(Session):
    """A client with a backend of its own, opened with its own start-up settings and closed when it leaves."""

    __slots__ = ("_pending", "_talk", "_task")

    def __init__(self, context: WorkerContext, login: Login, transport: asyncio.Transport, pending: bytes) -> None:
        self._talk = context.conversation(login)
        super().__init__(context, login, transport, self._talk)
        self._pending = pending
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.transport.pause_reading()
        self.transport.set_protocol(cast("asyncio.Protocol", self))
        self._task = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            backend = await self.context.open_dedicated(self.login)
        except UpstreamError as error:
            login = self.login
            self.context.log.event("backend_failed", level="warning", id=login.id, user=login.user, error=str(error))
            self.finish(error.response)
            return
        finally:
            self._task = None
        if self._leaving or self.transport.is_closing():
            backend.start(self.context.backend_ended)
            backend.close(polite=True)
            return
        self._own(backend)
        for setting in reported_settings(backend.greeting).items():
            self._talk.steering.reported(*setting)
        greeting = b"".join(backend.greeting)
        backend.greeting = []
        self.transport.write(greeting + backend_key_data(*self.key) + ready_for_query())
        backend.replay_early()
        self._go_on()

    def _go_on(self) -> None:
        """The client has been greeted: what it sent meanwhile is taken up."""
        pending, self._pending = self._pending, b""
        self.transport.resume_reading()
        if pending:
            self.data_received(pending)
        if self._closing:
            self.end_when_idle()

    def _between_transactions(self) -> bool:
        return self.talk.idle or self.talk.refused_streams

    def adopt(self, backend: Backend) -> None:
        """Goes on with a client that has logged in with the server itself, over this backend."""
        self.counters.backend_opened(backend.how)
        self._own(backend)
        self.transport.set_protocol(cast("asyncio.Protocol", self))

    def _own(self, backend: Backend) -> None:
        self.backend = backend
        backend.owner = self
        self.key = (backend.pid, backend.secret)
        self.context.register(self)
        backend.start(self.context.backend_ended)

    def data_received(self, data: bytes) -> None:
        talk = self._talk
        backend = self.backend
        counters = self.counters
        if counters.probe_client:
            self._probe_client(data)
            return
        if len(data) >= GREAT_READ and self._in_portions(data):
            return
        counters.bytes_from_client += len(data)
        if backend is None:
            return  # the server is gone, and the client is being told
        try:
            out = talk.from_client(data)
        except ProtocolViolation as error:
            self._violated(error)
            return
        if not self._since:
            self._since = _now()
        if talk.terminated:
            self._send(backend, out)
        elif out:
            backend.write(out)
        if talk.suspended:
            self._suspended()

    def _sent(self, backend: Backend, out: bytes) -> None:
        if self._talk.terminated:
            self._send(backend, out)
        elif out:
            backend.transport.write(out)

    def _send(self, backend: Backend, out: bytes) -> None:
        """The client's last bytes; the server, which gets its Terminate too, closes the connection after them."""
        backend.transport.write(out)

    def server_data(self, backend: Backend, data: bytes) -> None:
        counters = self.counters
        if counters.probe_server:
            self._probe_server(backend, data)
            return
        talk = self._talk
        out = talk.from_server(data)
        if out:
            counters.bytes_to_client += len(out)
            self._write(out)
        if talk.ready_count != self._ready_seen:
            self._answered(talk, out)
            if self._closing and talk.idle:
                self.finish(SHUTDOWN)
        if talk.again is not None:
            self._send_again(backend, talk)
        if self._eof_due:
            self._pass_eof_on(backend)

    def _go_on_behind(self, backend: Backend) -> None:
        if self._talk.held:
            self.data_received(b"")

    def _pass_eof_on(self, backend: Backend) -> None:
        """Tells the server that the client has sent all it will, unless something of it may have to be sent again."""
        self._eof_due = isinstance(self._talk, SteeredConversation) and self._talk.may_send_again
        if not self._eof_due and not backend.lost:
            backend.write_eof()

    def eof_received(self) -> bool:
        """The client has sent all it will; as with the server, it may still read its answers."""
        self.without_advice()
        backend = self.backend
        if backend is None or backend.lost or not backend.transport.can_write_eof() or self.login.tls:
            return False
        self._pass_eof_on(backend)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = True
        self._unwatched()
        backend, self.backend = self.backend, None
        if backend is not None:
            # A client that vanished is told to the server as it is: the connection ends without a Terminate.
            backend.read(wanted=True)
            backend.close(polite=self._talk.idle and not self._talk.terminated)
        self.context.ended(self, exc)

    def server_lost(self, backend: Backend, error: Exception | None) -> None:
        self.backend = None
        if not self.transport.is_closing():
            self._last_words()


class RelayedTalk(Conversation):
    """A conversation nothing is known about: a replication stream."""

    __slots__ = ()

    @property
    def cancellable(self) -> bool:
        """The server, which has this client alone behind the connection, drops a request that finds nothing to end."""
        return True

    def from_client(self, data: bytes) -> bytes:
        self.idle = False
        return data

    def from_server(self, data: bytes) -> bytes:
        return data


class PooledSession(Session):
    """A client that borrows a backend for each transaction."""

    __slots__ = ("_applying", "_greeted", "_half_closed", "_pending", "_pool", "_talk", "cancel_due", "waiting")

    def __init__(
        self, context: WorkerContext, login: Login, transport: asyncio.Transport, pool: BackendPool, pending: bytes
    ) -> None:
        self._talk = context.pooled_conversation(login, pool)
        super().__init__(context, login, transport, self._talk)
        self._pool = pool
        self._pending = pending  # bytes of the client that wait for a backend, or for a cancel to be over
        self.waiting = False  # in the pool's queue
        self.cancel_due = False  # what waits there is to be cancelled
        self._greeted = False
        self._half_closed = False  # the client has sent all it will
        self._applying = False  # the client's settings are being put in place; its bytes wait until they are

    def start(self) -> None:
        self.transport.set_protocol(cast("asyncio.Protocol", self))
        if self._pool.connected:
            self._greet()
            pending, self._pending = self._pending, b""
            if pending:
                self.data_received(pending)
        else:
            # The server's settings are not known yet, or not whether it is still there and would have this client.
            self._borrow()

    def _greet(self) -> None:
        self._greeted = True
        talk = self._talk
        talk.adopt(self._pool.reported)
        for setting in talk.reported.items():
            talk.steering.reported(*setting)
        reported = [
            parameter_status(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
            for name, value in talk.reported.items()
        ]
        notices = [raw for raw in self._pool.greeting if raw[0] == NOTICE]
        self.key = self.context.new_key(long=self.login.minor >= 2)
        talk.pid = self.key[0]
        self.context.register(self)
        self.transport.write(b"".join([*notices, *reported, backend_key_data(*self.key), ready_for_query()]))
        if self._closing:
            self.end_when_idle()

    def _between_transactions(self) -> bool:
        return self._greeted and self.backend is None and not self.waiting and self._talk.idle

    # ------------------------------------------------------------------ borrowing

    def _borrow(self) -> None:
        backend = self._pool.take(self)
        if backend is not None:
            self._link(backend)
        elif not self._leaving:
            self.waiting = True
            self._hold_back()

    def granted(self, backend: Backend) -> None:
        self.waiting = False
        if not self._greeted:
            self._greet()
            self._pool.give_back(backend, _now())
        else:
            self._link(backend)
            if self.cancel_due:
                self.cancel_due = False
                self.context.spawn(self.context.cancel(*self.key, self._talk.ready_count))
        if not self._applying:
            self.go_on_reading()
        if self._greeted and self.backend is None and self._pending:
            pending, self._pending = self._pending, b""
            self.data_received(pending)

    def refused(self, response: bytes) -> None:
        self.waiting = False
        self.finish(response)

    def _link(self, backend: Backend) -> None:
        assert backend.state is not None
        self.backend = backend
        backend.owner = self
        if self._client_full:
            backend.read(wanted=False)
        if backend.full:  # what was sent into a COPY that failed is still on its way to it
            self.server_writable(False)
        first, tell = self._talk.link(backend.state)
        if tell:
            self.transport.write(tell)
        if first:
            self._applying = True
            backend.transport.write(first)
            return
        pending, self._pending = self._pending, b""
        self._forward(backend, pending)

    def _applied(self, backend: Backend) -> None:
        """The client's settings are in place, or could not be put there."""
        talk = self._talk
        if talk.failed:
            again = talk.retry()
            if again:
                backend.transport.write(again)
                return
            self._lose(backend, _not_applied(talk.failure))
            return
        self._applying = False
        pending, self._pending = self._pending, b""
        self._forward(backend, pending)
        self.go_on_reading()

    def data_received(self, data: bytes) -> None:
        counters = self.counters
        if counters.probe_client:
            self._probe_client(data)
            return
        if len(data) >= GREAT_READ and self._in_portions(data):
            return
        counters.bytes_from_client += len(data)
        self._take(data)

    def _take(self, data: bytes) -> None:
        backend = self.backend
        if backend is not None and not backend.cancelling and not self._pending:
            self._forward(backend, data)
            return
        data = self._pending + data if self._pending else data
        if backend is None and not self.waiting:
            data = self._talk.without_strays(data)
        self._pending = data
        if not data:
            return
        if backend is not None or self.waiting or not self._greeted:
            self._hold_back()
        elif self._worth_a_backend(data):
            self._borrow()

    def _read_on_behind(self) -> None:
        if len(self._pending) <= PENDING_LIMIT:
            self.go_on_reading()

    def _hold_back(self) -> None:
        if len(self._pending) > PENDING_LIMIT:
            self.transport.pause_reading()

    def _worth_a_backend(self, data: bytes) -> bool:
        """A backend is taken for a whole message, or for one so long that it must stream: a client that sends a byte
        now and then must not hold one."""
        if len(data) < 5:
            return False
        length = read_i32_be(data, 1)
        if length < 4 or length > FRONTEND_LIMITS[data[0]]:
            self._violated(violation(data[0], length))
            return False
        if data[0] == TERMINATE:
            self._leave()
            return False
        return len(data) > length or length > HOLD_LIMIT

    def _forward(self, backend: Backend, data: bytes) -> None:
        talk = self._talk
        if talk.refused_streams:
            self._end_refused(backend, data)
            return
        if talk.uncertain:
            self._lose(backend, _UNCERTAIN)
            return
        try:
            out = talk.from_client(data)
        except ProtocolViolation as error:
            self._violated(error)
            return
        if not self._since:
            self._since = _now()
        self._sent(backend, out)
        if talk.suspended:
            self._suspended()

    def _end_refused(self, backend: Backend, data: bytes) -> None:
        """Sends the rest of a message of COPY data that the server does not want any more, but waits for."""
        rest = self._talk.rest_of_refused(data)
        backend.transport.write(data[:rest])
        if self._talk.idle:
            self._transaction_over(backend)
        if rest < len(data):
            self._take(data[rest:])

    def _sent(self, backend: Backend, out: bytes) -> None:
        talk = self._talk
        if talk.databases_text is not None:
            self._clear_databases(backend, out)
        elif out:
            # A Terminate goes along: what stands before it is to be run, and the backend ends with its client.
            backend.write(out)
        if talk.terminated:
            if talk.violated is None and not self._answers_coming():
                self._leave()
        elif talk.new_pins:
            self._count_pins()

    def _clear_databases(self, backend: Backend, out: bytes) -> None:
        """Idle backends keep a database from being dropped or copied: they are closed, everywhere, first."""
        text, self._talk.databases_text = self._talk.databases_text, None
        assert text is not None
        self.transport.pause_reading()
        backend.cancelling += 1  # keeps further messages back, and the backend in our hands

        async def clear() -> None:
            try:
                for database in databases_named(text):
                    await self.context.clear_database(database)
            finally:
                if not backend.lost:
                    backend.transport.write(out)
                self.context.cancel_over(backend)

        self.context.spawn(clear())

    def _count_pins(self) -> None:
        for pin, name in PIN_NAMES.items():
            if self._talk.new_pins & pin:
                self.counters.pinned[name] += 1
        self._talk.new_pins = 0

    # ------------------------------------------------------------------ answers

    def server_data(self, backend: Backend, data: bytes) -> None:
        counters = self.counters
        if counters.probe_server:
            self._probe_server(backend, data)
            return
        talk = self._talk
        out = talk.from_server(data)
        if out:
            counters.bytes_to_client += len(out)
            self._write(out)
        if talk.ready_count != self._ready_seen:
            self._answered(talk, out)
        if talk.idle:
            self._transaction_over(backend)
        elif talk.uncertain >= NEVER_CERTAIN:
            self._lose(backend, _UNCERTAIN)
        if talk.again is not None:
            self._send_again(backend, talk)
        if self._half_closed and not self._answers_coming():
            self.transport.close()

    def eof_received(self) -> bool:
        """The client has sent all it will; as with the server, it may still read its answers."""
        self.without_advice()
        # While it waits in the queue it is taken to have left, as most clients that end there have.
        self._half_closed = not self.login.tls and not self.waiting and self._answers_coming()
        return self._half_closed

    def _go_on_behind(self, backend: Backend) -> None:
        if self.backend is not backend:
            self._take(b"")
        elif self._talk.held and not backend.cancelling:
            self._forward(backend, b"")

    def _answers_coming(self) -> bool:
        return self.waiting or (self.backend is not None and (self._applying or self._talk.answers_coming))

    def _transaction_over(self, backend: Backend) -> None:
        talk = self._talk
        if backend.cancelling:
            return  # `after_cancel` comes back to this
        if talk.terminated:
            return  # the server, which has the client's Terminate too, ends the connection; nobody else may get it
        if self._applying:
            self._applied(backend)
            return
        own = talk.settle()
        if talk.backend_ends:
            talk.backend_ends = False
            self._outlive(backend, known=not own)
            return
        if own:
            backend.transport.write(own)
            return
        if talk.new_pins:
            self._count_pins()
        if talk.reprepared:
            self.counters.statements_reprepared += talk.reprepared
            talk.reprepared = 0
        if talk.releasable:
            self._release(backend)
        elif self._closing:
            self.finish(SHUTDOWN)

    def _outlive(self, backend: Backend, *, known: bool) -> None:
        """The backend is ending behind a transaction's end; ``known``: the client's state is, so that it can go on."""
        if not known:
            self._lose(backend)
            return
        self._part(backend)
        self._pool.retire(backend, polite=False)
        if self._closing:
            self.finish(SHUTDOWN)

    def _release(self, backend: Backend) -> None:
        self._part(backend)
        self._pool.give_back(backend, self._answered_at or _now())
        if self._closing:
            self.finish(SHUTDOWN)

    def _part(self, backend: Backend) -> None:
        """Client and backend go their ways; neither takes along that the other has not been reading."""
        self.backend = None
        self._pending = self._talk.unlink()
        backend.read(wanted=True)
        if self._server_full:
            self.server_writable(True)

    def after_cancel(self, backend: Backend) -> None:
        """No cancel request is on its way to this backend any more: what was kept back goes on."""
        if self.backend is not backend:
            return
        if not self._applying:
            pending, self._pending = self._pending, b""
            if pending or self._talk.held:
                self._forward(backend, pending)
        if self._talk.idle and self.backend is backend:
            self._transaction_over(backend)
        self.go_on_reading()

    # ------------------------------------------------------------------ leaving

    def _leave(self) -> None:
        """The client said goodbye."""
        self._leaving = True
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = True
        self._unwatched()
        if self.waiting:
            self.waiting = False
            self._pool.forget(self)
        backend = self.backend
        if backend is not None:
            self._lose(backend)
        self.context.ended(self, exc)

    def _lose(self, backend: Backend, response: bytes = LOST) -> None:
        """A backend whose state is not known, or that is bound to this client, ends with it."""
        self.backend = None
        # In the middle of anything, above all of a message, the server must see the connection end as it is.
        polite = self._talk.idle
        self._talk.unlink()
        backend.read(wanted=True)
        self._pool.retire(backend, polite=polite)
        if not self.transport.is_closing():
            self.finish(response)

    def server_lost(self, backend: Backend, error: Exception | None) -> None:
        self.backend = None
        self._talk.unlink()
        # Inside a transaction, or with state on it, the client must know; the server's own FATAL came before, if any.
        self._last_words()


def new_secret(*, long: bool) -> bytes:
    """A cancel key's secret: 4 bytes for protocol 3.0; 32, as the server's own, for 3.2."""
    return os.urandom(32 if long else 4)


def _not_applied(failure: bytes) -> bytes:
    """What a client is told whose settings the server refused on another connection than the one that took them."""
    fields = error_fields(failure)
    return error_response(
        fields.get("C", "08006"),
        f"pilotwire cannot put your session's settings in place on another server connection: {fields.get('M', '')}",
    )

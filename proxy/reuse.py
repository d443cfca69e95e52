"""Session pooling with reuse (``session_reuse``): a backend serves one client until it leaves, then, after DISCARD ALL,
the next one with the same user, database and start-up settings. Some state survives DISCARD ALL, so this is opt-in.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from proxy.login import Login
from proxy.session import DedicatedSession
from proxy.upstream.backend import Backend, reported_settings, run_alone
from proxy.upstream.pool import BackendPool
from proxy.wire.messages import TERMINATE, backend_key_data, ready_for_query

if TYPE_CHECKING:
    from proxy.context import WorkerContext

_DISCARD_TIMEOUT: Final = 10.0


class ReusingSession(DedicatedSession):
    """A dedicated session whose backend came from the ready list, and goes back there if its state is known."""

    __slots__ = ("_pool", "_waiting")

    def __init__(
        self, context: WorkerContext, login: Login, transport: asyncio.Transport, pool: BackendPool, pending: bytes
    ) -> None:
        super().__init__(context, login, transport, pending)
        self._pool = pool
        self._waiting = False

    def start(self) -> None:
        self.transport.pause_reading()
        self.transport.set_protocol(cast("asyncio.Protocol", self))
        backend = self._pool.take(self)
        if backend is not None:
            self.granted(backend)
        else:
            self._waiting = not self._leaving

    def granted(self, backend: Backend) -> None:
        self._waiting = False
        if self._leaving or self.transport.is_closing():
            self._pool.give_back(backend, self.context.now())
            return
        self.backend = backend
        backend.owner = self
        # The backend will serve others: its own cancel key must not stay with this client.
        self.key = self.context.new_key(long=self.login.minor >= 2)
        self.context.register(self)
        for setting in reported_settings(self._pool.greeting).items():
            self._talk.steering.reported(*setting)
        greeting = b"".join(self._pool.greeting)
        self.transport.write(greeting + backend_key_data(*self.key) + ready_for_query())
        self._go_on()

    def refused(self, response: bytes) -> None:
        self._waiting = False
        self.finish(response)

    def _send(self, backend: Backend, out: bytes) -> None:
        if not self._talk.owed.first:
            out = out.removesuffix(TERMINATE)
            self.transport.close()
        # Where answers are still to come the Terminate goes along, and the server ends the connection behind them.
        if out:
            backend.transport.write(out)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._pool.forget(self)
        self._leaving = True
        self._unwatched()
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.read(wanted=True)
            known = not self._talk.owed.first and self._talk.at_boundary
            if known and not backend.cancelling and not self.context.draining:
                self.context.spawn(self._recycle(backend))
            else:
                self._pool.retire(backend)
        self.context.ended(self, exc)

    async def _recycle(self, backend: Backend) -> None:
        try:
            async with asyncio.timeout(_DISCARD_TIMEOUT):
                clean = await run_alone(backend, "DISCARD ALL")
        except TimeoutError:
            clean = False
        if clean:
            self._pool.give_back(backend, self.context.now())
        else:
            self._pool.retire(backend)

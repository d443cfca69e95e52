"""Taking a connection over from asyncpg, and handing it back.

asyncpg opens, encrypts and authenticates a connection; then its transport gets a protocol of ours and raw bytes flow.
This is the one module that touches what asyncpg does not promise to keep; `self_check` names the version when
something is gone. What is touched, and why:

* ``asyncpg.connect_utils.protocol``: the class made for each new connection is replaced by a subclass, since asyncpg
  tells neither which start-up packet it sends (it insists on a client_encoding of its own) nor the exact messages the
  server greets with, which the client must see as they are. The subclass behaves as the original unless the
  connection is being opened by `opening`.
* ``PoolConnectionProxy._con``, ``Connection._transport``, ``Connection._protocol``: what is taken over, and what must
  hear of the end of the connection, because asyncpg cannot notice it any more.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import asyncpg
import asyncpg.connect_utils
import asyncpg.protocol

from proxy.upstream.scram_exchange import ScramExchange
from proxy.wire.frames import ERROR, NOTICE, PARAMETER_STATUS, READY, whole_messages

# The greeting of a server is a few hundred bytes; more than this is not kept.
_GREETING_LIMIT: Final = 64 * 1024


class Opening:
    """One connection being opened: the start-up packet to send, and what the server answered to it.

    ``greeting`` holds the ParameterStatus and NoticeResponse messages up to the first ReadyForQuery, ``error`` the
    ErrorResponse that ended the attempt, all of them whole messages as they came.
    """

    __slots__ = ("_buffer", "_done", "_make_exchange", "error", "exchange", "greeting", "startup")

    def __init__(self, startup: bytes, make_exchange: Callable[[], ScramExchange] | None) -> None:
        self.startup = startup
        self._make_exchange = make_exchange
        self.exchange: ScramExchange | None = None
        self.greeting: list[bytes] = []
        self.error: bytes | None = None
        self._buffer = b""
        self._done = False

    def restart(self) -> None:
        """The next attempt begins: another host, or with TLS after one without."""
        self.exchange = self._make_exchange() if self._make_exchange is not None else None
        self.greeting = []
        self._buffer = b""
        self._done = False

    def feed(self, data: bytes) -> None:
        if self._done or len(self._buffer) > _GREETING_LIMIT:
            return
        data = self._buffer + data
        messages, rest = whole_messages(data)
        for kind, start, end in messages:
            if kind == PARAMETER_STATUS or kind == NOTICE:
                self.greeting.append(data[start:end])
            elif kind == ERROR:
                self.error = data[start:end]
            elif kind == READY:
                self._done = True
                return
        self._buffer = data[rest:]


_opening: ContextVar[Opening | None] = ContextVar("pilotwire_opening", default=None)


class _FirstWrite:
    """A transport whose first write is replaced: asyncpg believes to have sent its own start-up packet."""

    def __init__(self, transport: asyncio.Transport, startup: bytes) -> None:
        self._transport = transport
        self._startup: bytes | None = startup

    def write(self, data: bytes) -> None:
        startup, self._startup = self._startup, None
        self._transport.write(data if startup is None else startup)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _TappedProtocol(asyncpg.protocol.Protocol):  # type: ignore[misc]  # asyncpg ships no types for it
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._opening = _opening.get()

    def connection_made(self, transport: asyncio.Transport) -> None:
        if self._opening is not None:
            self._opening.restart()
            self._raw = transport
            super().connection_made(_FirstWrite(transport, self._opening.startup))
        else:
            super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        opening = self._opening
        if opening is not None:
            if opening.exchange is not None:
                data, reply = opening.exchange.feed(data)
                if reply:
                    self._raw.write(reply)
            opening.feed(data)
        if data:
            super().data_received(data)


def install() -> None:
    """Makes asyncpg use the tapped protocol; once per process."""
    tapped = types.ModuleType("asyncpg.protocol (tapped)")
    tapped.__dict__.update(asyncpg.protocol.__dict__)
    tapped.__dict__["Protocol"] = _TappedProtocol
    asyncpg.connect_utils.protocol = tapped


def self_check() -> None:
    """RuntimeError naming the asyncpg version when something this module needs is not there."""
    missing = [
        name
        for name, there in (
            ("connect_utils.protocol.Protocol", hasattr(asyncpg.connect_utils.protocol, "Protocol")),
            ("protocol.Protocol.connection_made", hasattr(asyncpg.protocol.Protocol, "connection_made")),
            ("protocol.Protocol.data_received", hasattr(asyncpg.protocol.Protocol, "data_received")),
            ("protocol.Protocol.backend_secret", hasattr(asyncpg.protocol.Protocol, "backend_secret")),
            ("pool.PoolConnectionProxy._con", "_con" in asyncpg.pool.PoolConnectionProxy.__slots__),
            ("connection.Connection._transport", "_transport" in asyncpg.Connection.__slots__),
            ("connection.Connection._protocol", "_protocol" in asyncpg.Connection.__slots__),
        )
        if not there
    ]
    if missing:
        raise RuntimeError(
            f"asyncpg {asyncpg.__version__} cannot be used: {', '.join(missing)} is gone;"
            " install a version that pilotwire's pyproject.toml allows"
        )


@contextmanager
def opening(startup: bytes, make_exchange: Callable[[], ScramExchange] | None = None) -> Iterator[Opening]:
    """Connections opened by this task (and those it starts) inside the block send this start-up packet, and leave
    SCRAM to what ``make_exchange`` gives."""
    attempt = Opening(startup, make_exchange)
    token = _opening.set(attempt)
    try:
        yield attempt
    finally:
        _opening.reset(token)


class TakenConnection:
    """An asyncpg connection whose transport is ours for now."""

    __slots__ = ("_connection", "_lent", "_on_return", "_protocol", "address", "pid", "secret", "transport")

    def __init__(self, lent: Any, on_return: Callable[[], None]) -> None:
        connection = lent._con
        self._on_return = on_return
        self._lent = lent
        self._connection = connection
        self._protocol = connection._protocol
        self.transport: asyncio.Transport = connection._transport
        self.address: str | tuple[str, int] = connection._addr
        self.pid: int = self._protocol.backend_pid
        self.secret: bytes = (self._protocol.backend_secret & 0xFFFFFFFF).to_bytes(4, "big")

    def take(self, protocol: asyncio.Protocol) -> None:
        self.transport.set_protocol(protocol)

    def ended(self, error: Exception | None) -> None:
        """The connection is gone: asyncpg is told, and its pool gets the place back."""
        self._protocol.connection_lost(error)
        self._connection.terminate()
        self._on_return()

    async def prove(self) -> None:
        """Hands the connection back to asyncpg for one query of its own; the caller takes it again after that.

        Only after a ReadyForQuery in state I that was seen, with nothing owed, nothing unread, and DISCARD ALL done:
        asyncpg's own idea of the state is that of the time the connection was taken. Raises what asyncpg raises. The
        place in the pool stays ours all the while, or another opening might be lent this connection.
        """
        self.transport.set_protocol(self._protocol)
        await self._lent.fetchval("SELECT 1")

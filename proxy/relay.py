"""``auth = "relay"``: the client and the server authenticate with each other, the proxy only carries the messages.

Until the server's first ReadyForQuery bytes pass unread, but for two things. SCRAM-SHA-256-PLUS is taken off the list
of methods, since binding to a TLS channel cannot work through a proxy that ends it. Where both sides have TLS, the
client must say ``channel_binding=disable``: its proof tells the server otherwise that the offer was kept from it, and
the server's refusal goes on with a hint. And of a read-only client nothing but its password messages passes: what it
sends behind them waits for the session, whose guard reads it. After the login the client has an ordinary session with
its own backend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from proxy.login import Login
from proxy.session import DedicatedSession
from proxy.session_base import SHUTDOWN
from proxy.upstream.backend import Backend
from proxy.upstream.direct import connect
from proxy.upstream.errors import UpstreamError, unreachable
from proxy.wire.frames import ERROR, READY, whole_messages
from proxy.wire.messages import message, startup_message

if TYPE_CHECKING:
    from proxy.context import WorkerContext

_AUTHENTICATION: Final = 0x52  # R
_KEY_DATA: Final = 0x4B  # K
_PASSWORD: Final = 0x70  # p
_SASL: Final = b"\0\0\0\x0a"
_PLUS: Final = b"SCRAM-SHA-256-PLUS\0"
_REFUSED: Final = b"\0C28000\0"
_HINT: Final = (
    b"HTLS ends at pilotwire, so that the client cannot be bound to its channel with the server: "
    b"connect with channel_binding=disable.\0"
)
_LOGIN_LIMIT: Final = 64 * 1024  # a login is a few kilobytes


class _ServerSide(asyncio.Protocol):
    def __init__(self, session: RelaySession) -> None:
        self._session = session

    def data_received(self, data: bytes) -> None:
        self._session.from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.server_gone()


class RelaySession(asyncio.Protocol):
    """A client while it logs in with the server itself."""

    def __init__(
        self, context: WorkerContext, login: Login, transport: asyncio.Transport, startup: bytes, pending: bytes
    ) -> None:
        self.context = context
        self.login = login
        self.key: tuple[int, bytes] = (0, b"")
        self._transport = transport
        if login.read_only:
            startup = startup_message(
                {"user": login.user, "database": login.database, **context.startup_settings(login)}
            )
        self._startup = startup
        self._pending = pending  # bytes of the client that wait for the server or, of a read-only one, for the session
        self._server: asyncio.Transport | None = None
        self._address: str | tuple[str, int] = ""
        self._buffer = b""
        self._carried = 0
        self._stripped = False  # something was taken off the list of methods

    def start(self) -> None:
        self._transport.pause_reading()
        self._transport.set_protocol(self)
        self.context.spawn(self._connect())

    async def _connect(self) -> None:
        await self.context.pauses.over(self.login.database)
        try:
            async with asyncio.timeout(self.context.settings.login_timeout):
                server, _, self._address = await connect(self.context.settings, self.context.tls)
        except (UpstreamError, TimeoutError) as error:
            # Each host in turn may take its whole connect_timeout, and all of them longer than a login may.
            refused = error if isinstance(error, UpstreamError) else unreachable(self.context.settings.dsn.hosts, error)
            self._transport.write(refused.response)
            self._transport.close()
            return
        if self._transport.is_closing():
            server.abort()
            return
        self._server = server
        server.set_protocol(_ServerSide(self))
        server.write(self._startup)
        self._forward(server, b"")
        asyncio.get_running_loop().call_later(self.context.settings.login_timeout, self._too_late)
        self._transport.resume_reading()

    def _too_late(self) -> None:
        if self in self.context.sessions:
            self.abort()

    def data_received(self, data: bytes) -> None:
        self._carried += len(data)
        if self._carried > _LOGIN_LIMIT:
            self.abort()
        elif self._server is None:
            self._pending += data  # a new transport reads once before it heeds that it shall not
        else:
            self._forward(self._server, data)

    def _forward(self, server: asyncio.Transport, data: bytes) -> None:
        """Sends the server what the client has sent, of a read-only one as far as it is of the login."""
        data, self._pending = self._pending + data, b""
        if self.login.read_only:
            end = 0
            for kind, _, message_end in whole_messages(data)[0]:
                if kind != _PASSWORD:
                    break
                end = message_end
            data, self._pending = data[:end], data[end:]
        if data:
            server.write(data)

    def from_server(self, data: bytes) -> None:
        """Messages of the server up to its first ReadyForQuery."""
        data = self._buffer + data
        messages, rest = whole_messages(data)
        out = []
        for kind, start, end in messages:
            raw = data[start:end]
            if kind == _AUTHENTICATION and raw[5:9] == _SASL and _PLUS in raw:
                raw = message(b"R", raw[5:].replace(_PLUS, b""))
                self._stripped = True
            elif kind == ERROR and self._stripped and self.login.tls and _REFUSED in raw and b"\0H" not in raw:
                raw = message(b"E", raw[5:-1] + _HINT + b"\0")
            elif kind == _KEY_DATA:
                self.key = (int.from_bytes(raw[5:9], "big"), raw[9:])
            out.append(raw)
            if kind == READY:
                self._transport.write(b"".join(out))
                self._become_session(data[end:])
                return
        self._buffer = data[rest:]
        if len(self._buffer) > _LOGIN_LIMIT:
            self.abort()
        elif out:
            self._transport.write(b"".join(out))

    def _become_session(self, rest: bytes) -> None:
        server, self._server = self._server, None
        assert server is not None
        pid, secret = self.key
        backend = Backend(
            server, pid=pid, secret=secret, address=self._address, greeting=[], now=self.context.now(), taken=None
        )
        session = DedicatedSession(self.context, self.login, self._transport, b"")
        self.context.sessions.replace(self, session)
        session.adopt(backend)
        if rest:
            backend.data_received(rest)
        if self._pending:
            session.data_received(self._pending)

    def server_gone(self) -> None:
        self._server = None
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._server is not None:
            self._server.close()
        self.context.ended(self, exc)

    def end_when_idle(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(SHUTDOWN)
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

"""Direct links: connections that pilotwire opens and logs in itself, for what asyncpg cannot do.

That is: replication connections, users known only by a SCRAM verifier, channel binding towards the server, and
clients that authenticate with the server themselves (``auth = "relay"``).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from proxy.dsn import Host
from proxy.login import Credential
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts, peer_end_point_hash
from proxy.upstream.backend import Backend
from proxy.upstream.errors import UpstreamError, unreachable
from proxy.upstream.login import UpstreamLogin

_SSL_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"


class _Collector(asyncio.Protocol):
    """Hands what arrives to a coroutine, until the backend takes the transport over."""

    def __init__(self) -> None:
        self._data = b""
        self._waiter: asyncio.Future[None] | None = None
        self._lost: BaseException | None = None

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError("the server closed the connection")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        while not self._data:
            if self._lost is not None:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data, self._data = self._data, b""
        return data


async def connect(
    settings: ProxySettings, tls: TlsContexts
) -> tuple[asyncio.Transport, _Collector, str | tuple[str, int]]:
    """A connection to the first host that answers, encrypted as ``server_tls_mode`` says. Raises `UpstreamError`."""
    failure: BaseException = ConnectionError("no host is configured")
    for host in settings.dsn.hosts:
        try:
            async with asyncio.timeout(settings.connect_timeout):
                return await _connect_host(host, tls)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            failure = error
    raise unreachable(settings.dsn.hosts, failure)


async def _connect_host(host: Host, tls: TlsContexts) -> tuple[asyncio.Transport, _Collector, str | tuple[str, int]]:
    loop = asyncio.get_running_loop()
    if host.is_unix:
        transport, collector = await loop.create_unix_connection(_Collector, host.socket_path)
        return transport, collector, host.socket_path
    transport, collector = await loop.create_connection(_Collector, host.host, host.port)
    if tls.server_side is not None and tls.server_mode not in ("disable", "allow"):
        try:
            transport = await _encrypt(transport, collector, host, tls)
        except BaseException:
            transport.abort()
            raise
    return transport, collector, (host.host, host.port)


async def _encrypt(
    transport: asyncio.Transport, collector: _Collector, host: Host, tls: TlsContexts
) -> asyncio.Transport:
    transport.write(_SSL_REQUEST)
    answer = await collector.read()
    if answer == b"S":
        assert tls.server_side is not None
        encrypted = await asyncio.get_running_loop().start_tls(
            transport, collector, tls.server_side, server_hostname=host.host
        )
        if encrypted is None:
            raise ConnectionError("the connection was closed during the TLS handshake")
        return encrypted
    if answer != b"N" or tls.server_mode != "prefer":
        raise ConnectionError("the server does not support TLS, but server_tls_mode demands it")
    return transport


async def open_direct(
    settings: ProxySettings, tls: TlsContexts, startup: bytes, user: str, credential: Credential
) -> Backend:
    """Connects and logs in with this start-up packet. Raises `UpstreamError`."""
    transport, collector, address = await connect(settings, tls)
    login = UpstreamLogin(startup, user, credential, _binding(transport))
    try:
        async with asyncio.timeout(settings.connect_timeout):
            transport.write(login.start())
            while not login.done:
                try:
                    arrived = await collector.read()
                except OSError:
                    login.connection_lost()
                    arrived = b""
                for data in login.receive(arrived) if arrived else ():
                    transport.write(data)
                if login.failed is not None:
                    raise UpstreamError(login.failed)
    except (OSError, TimeoutError) as error:
        transport.abort()
        raise unreachable(settings.dsn.hosts, error) from error
    except BaseException:
        transport.abort()
        raise
    return Backend(
        transport,
        pid=login.pid,
        secret=login.secret,
        address=address,
        greeting=login.greeting,
        now=asyncio.get_running_loop().time(),
        taken=None,
        early=login.rest,
    )


def _binding(transport: asyncio.Transport) -> bytes | None:
    encrypted = transport.get_extra_info("ssl_object")
    return peer_end_point_hash(encrypted) if encrypted is not None else None

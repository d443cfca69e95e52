"""Direct links: connections that pilotwire opens and logs in itself, for what asyncpg cannot do.

That is: replication connections, users known only by a SCRAM verifier, channel binding towards the server, and
clients that authenticate with the server themselves (``auth = "relay"``).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final

from proxy.dsn import Host
from proxy.login import Credential
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts, peer_end_point_hash
from proxy.upstream.backend import Backend, reported_settings
from proxy.upstream.errors import UpstreamError, unreachable
from proxy.upstream.hosts import passes
from proxy.upstream.login import UpstreamLogin
from proxy.wire.messages import error_fields

_SSL_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"
# SQLSTATEs of a host that cannot be had: it starts or stops, or closed the connection without a word.
_NEXT_HOST: Final = frozenset({"57P03", "08006"})
# What pg_hba.conf refuses with TLS, or without.
_NOT_THIS_WAY: Final = "28000"


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
                return await _connect_host(host, tls, _encryptions(host, tls)[0])
        except (OSError, TimeoutError, ssl.SSLError) as error:
            failure = error
    raise unreachable(settings.dsn.hosts, failure)


def _encryptions(host: Host, tls: TlsContexts) -> tuple[bool, ...]:
    """With TLS or without: in which order a host is tried; the second when it refuses the first."""
    if host.is_unix or tls.server_side is None or tls.server_mode == "disable":
        return (False,)
    return {"allow": (False, True), "prefer": (True, False)}.get(tls.server_mode, (True,))


async def _connect_host(
    host: Host, tls: TlsContexts, encrypted: bool
) -> tuple[asyncio.Transport, _Collector, str | tuple[str, int]]:
    loop = asyncio.get_running_loop()
    if host.is_unix:
        transport, collector = await loop.create_unix_connection(_Collector, host.socket_path)
        return transport, collector, host.socket_path
    transport, collector = await loop.create_connection(_Collector, host.host, host.port)
    if encrypted:
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
    """Connects and logs in with this start-up packet, to the first host that ``target_session_attrs`` wants. Raises
    `UpstreamError`: what the last host said, or the refusal of one that no other host is asked after."""
    failure: Exception = ConnectionError("no host is configured")
    wanted = settings.target_session_attrs
    for attributes in passes(wanted):
        for host in settings.dsn.hosts:
            try:
                async with asyncio.timeout(settings.connect_timeout):
                    backend = await _log_in_to(host, tls, startup, user, credential)
            except (OSError, TimeoutError) as error:
                failure = error
                continue
            except UpstreamError as refusal:
                if _sqlstate(refusal) not in _NEXT_HOST:
                    raise
                failure = refusal
                continue
            if _will_do(attributes, reported_settings(backend.greeting)):
                return backend
            backend.close(polite=True)
            failure = ConnectionError(f"none of the hosts is what target_session_attrs wants: {wanted}")
    raise failure if isinstance(failure, UpstreamError) else unreachable(settings.dsn.hosts, failure) from failure


def _will_do(attributes: str, reported: Mapping[bytes, bytes]) -> bool:
    """Whether a server with this ParameterStatus set is what one of libpq's target_session_attrs asks for. Servers
    before 14 do not report what it takes to know; they will do."""
    standby = reported.get(b"in_hot_standby")
    if attributes == "any" or standby is None:
        return True
    if attributes in ("primary", "standby"):
        return (standby == b"on") is (attributes == "standby")
    read_only = standby == b"on" or reported.get(b"default_transaction_read_only") == b"on"
    return read_only is (attributes == "read-only")


def _sqlstate(refusal: UpstreamError) -> str:
    return error_fields(refusal.response[5:]).get("C", "")


async def _log_in_to(host: Host, tls: TlsContexts, startup: bytes, user: str, credential: Credential) -> Backend:
    """One host, with TLS and without as far as ``server_tls_mode`` allows it. Raises `UpstreamError`, OSError."""
    *others, last = _encryptions(host, tls)
    for encrypted in others:
        try:
            return await _log_in(host, tls, encrypted, startup, user, credential)
        except ssl.SSLError:
            continue
        except UpstreamError as refusal:
            if _sqlstate(refusal) != _NOT_THIS_WAY:
                raise
    return await _log_in(host, tls, last, startup, user, credential)


async def _log_in(
    host: Host, tls: TlsContexts, encrypted: bool, startup: bytes, user: str, credential: Credential
) -> Backend:
    transport, collector, address = await _connect_host(host, tls, encrypted)
    login = UpstreamLogin(startup, user, credential, _binding(transport))
    try:
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

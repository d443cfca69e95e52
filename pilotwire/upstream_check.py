"""Whether the upstream is there: once with a real login at the start, later by a bare connection for /readyz."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Final

import asyncpg

from pilotwire.errors import StartError
from proxy.auth.upstream_secret import dsn_user, find_password
from proxy.dsn import Host
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts, TlsError
from proxy.upstream.hosts import connect_first, tls_options

REACH_SECONDS: Final = 2.0
"""How long one host may take to accept a bare connection."""
FRESH_SECONDS: Final = 2.0
"""How long an answer of ``Reachability`` is good for; a scraper or a load balancer asks about that often."""


_CHECK: Final = "check host and port, and that the server runs"


async def check_upstream(settings: ProxySettings) -> None:
    """Logs in as the DSN's user when we hold what that needs, else only connects.

    Raises StartError with one sentence: what cannot be reached, why, and what to check.
    """
    dsn = settings.dsn
    user = dsn_user(dsn)
    try:
        password = find_password(dsn, user, settings.password, settings.upstream_passfile)
    except (OSError, ValueError) as error:
        raise StartError(str(error)) from None
    if settings.auth_method == "relay" or (password is None and settings.auth_method != "trust"):
        if not await _any_reachable(dsn.hosts, settings.connect_timeout):
            raise StartError(f"cannot reach the upstream {dsn.text()}: {_CHECK}")
        return
    try:
        tls = TlsContexts(settings)
    except TlsError as error:
        raise StartError(str(error)) from None
    try:
        connection = await connect_first(
            hosts=dsn.hosts,
            target_session_attrs=settings.target_session_attrs,
            limit=settings.connect_timeout,
            user=user,
            password=password,
            database=dsn.database or user,
            **tls_options(tls, dsn.hosts),
            server_settings={"application_name": "pilotwire"},
        )
    except asyncpg.PostgresError as error:
        raise StartError(f"the upstream {dsn.text()} refuses the connection: {error}") from None
    except TimeoutError:
        raise StartError(
            f"cannot reach the upstream {dsn.text()} within {settings.connect_timeout:g} s: check host and port"
        ) from None
    except (OSError, asyncpg.InterfaceError) as error:
        raise StartError(f"cannot reach the upstream {dsn.text()}: {_reason(error)}") from None
    with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.close(timeout=REACH_SECONDS)


def _reason(error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            return f"the connection was refused; {_CHECK}"
        case FileNotFoundError():
            return f"no socket is there; {_CHECK}"
        case socket.gaierror():
            return f"the host's name is not known ({error.strerror}); check its spelling and the name server"
        case OSError() if error.strerror:
            return f"{error.strerror}; {_CHECK}"
        case _:
            return f"{str(error) or type(error).__name__}; {_CHECK}"


async def reach(host: Host, limit: float) -> bool:
    """Whether a connection to ``host`` is accepted within ``limit`` seconds."""
    try:
        async with asyncio.timeout(limit):
            if host.is_unix:
                _, writer = await asyncio.open_unix_connection(host.socket_path)
            else:
                _, writer = await asyncio.open_connection(host.host, host.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _any_reachable(hosts: tuple[Host, ...], limit: float) -> bool:
    """Asks all at once: whoever probes us does not wait for one that is silent when another answers."""
    asked = [asyncio.ensure_future(reach(host, limit)) for host in hosts]
    try:
        for answer in asyncio.as_completed(asked):
            if await answer:
                return True
        return False
    finally:
        for task in asked:
            task.cancel()


class Reachability:
    """Answers whether any host of the upstream accepts connections, asking it at most every ``FRESH_SECONDS``."""

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._answer = False
        self._lock = asyncio.Lock()

    async def __call__(self, hosts: tuple[Host, ...]) -> bool:
        async with self._lock:
            if time.monotonic() - self._asked > FRESH_SECONDS:
                self._answer = await _any_reachable(hosts, REACH_SECONDS)
                self._asked = time.monotonic()
            return self._answer

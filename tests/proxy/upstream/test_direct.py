"""Direct links to one of several hosts: which one is taken, and what is said when none will do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from proxy.login import NoCredential
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts
from proxy.upstream.direct import open_direct
from proxy.upstream.errors import UpstreamError
from proxy.upstream.opener import Opener
from proxy.wire.messages import error_response, parameter_status, ready_for_query, startup_message
from tests.proxy.auth.servers import TlsServer
from tests.support.postgres import Postgres

READY = ready_for_query()
PRIMARY, STANDBY = parameter_status("in_hot_standby", "off"), parameter_status("in_hot_standby", "on")


@asynccontextmanager
async def serving(answer: Callable[[bytes], Awaitable[bytes]]) -> AsyncIterator[int]:
    """The port of a server that reads once, says what ``answer`` makes of that, and waits for the end."""
    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await answer(await reader.read(10_000)))
        if writer.can_write_eof():
            writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.ensure_future(serve(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1") as listening:
        yield listening.sockets[0].getsockname()[1]
        await asyncio.gather(*served, return_exceptions=True)


def standby_of(postgres: Postgres) -> AbstractAsyncContextManager[int]:
    """A server that greets as the real one does, but for what it says of itself."""

    async def answer(startup: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(postgres.host, postgres.port)
        writer.write(startup)
        greeting = await reader.readuntil(READY)
        writer.close()
        await writer.wait_closed()
        return greeting.replace(PRIMARY, STANDBY)

    return serving(answer)


def saying(said: bytes) -> AbstractAsyncContextManager[int]:
    """A server that says this to everybody."""

    async def answer(startup: bytes) -> bytes:
        return said

    return serving(answer)


async def reached(attributes: str, *ports: int) -> int:
    """The port of the host that a replication connection gets to."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    settings = ProxySettings.model_validate(
        {
            "upstream": f"postgresql://postgres@{hosts}/postgres",
            "target_session_attrs": attributes,
            "server_tls_mode": "disable",
        }
    )
    startup = startup_message({"user": "postgres", "database": "postgres"})
    backend = await open_direct(settings, TlsContexts(settings), startup, "postgres", NoCredential())
    address = backend.address
    backend.abort()
    assert isinstance(address, tuple)
    return address[1]


async def test_the_host_is_chosen_by_what_it_is(postgres: Postgres) -> None:
    async with standby_of(postgres) as standby:
        primary = postgres.port
        for wanted in ("read-write", "primary"):
            assert await reached(wanted, standby, primary) == primary
        for wanted in ("read-only", "standby", "prefer-standby"):
            assert await reached(wanted, primary, standby) == standby
        assert await reached("any", standby, primary) == standby
        assert await reached("prefer-standby", primary) == primary
        with pytest.raises(UpstreamError, match="none of the hosts is what target_session_attrs wants: read-write"):
            await reached("read-write", standby)


async def test_a_host_that_cannot_be_had_is_passed_by(postgres: Postgres) -> None:
    starting = error_response("57P03", "the database system is starting up")
    async with saying(starting) as first, saying(b"") as second:
        assert await reached("any", first, second, postgres.port) == postgres.port
        with pytest.raises(UpstreamError) as refused:
            await reached("any", second, first)
        assert refused.value.response == starting
    refusal = error_response("28P01", "no")
    async with saying(refusal) as first:
        with pytest.raises(UpstreamError) as refused:
            await reached("any", first, postgres.port)
        assert refused.value.response == refusal


@pytest.mark.parametrize(
    ("mode", "user", "encrypted"),
    [("allow", "clear_only", False), ("allow", "tls_only", True), ("prefer", "clear_only", False)],
)
async def test_what_pg_hba_refuses_one_way_is_tried_the_other_way(
    tls_server: TlsServer, mode: str, user: str, encrypted: bool
) -> None:
    upstream = f"postgresql://{user}@{tls_server.host}:{tls_server.port}/postgres"
    settings = ProxySettings.model_validate({"upstream": upstream, "server_tls_mode": mode})
    startup = startup_message({"user": user, "database": "postgres"})
    backend = await open_direct(settings, TlsContexts(settings), startup, user, NoCredential())
    assert (backend.transport.get_extra_info("ssl_object") is not None) is encrypted
    backend.abort()
    only = settings.model_copy(update={"server_tls_mode": "disable" if encrypted else "require"})
    with pytest.raises(UpstreamError) as refused:
        await open_direct(only, TlsContexts(only), startup, user, NoCredential())
    assert b"C28000" in refused.value.response


async def test_names_are_resolved_anew(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fail-over by name the next connection goes to the new address, through asyncpg's pool too."""
    resolve = socket.getaddrinfo
    address = ["127.0.0.2"]  # where nobody listens

    def moving(host: str, *arguments: Any, **options: Any) -> Any:
        return resolve(address[0] if host == "db.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", moving)
    upstream = f"postgresql://postgres@db.example:{postgres.port}/postgres"
    settings = ProxySettings.model_validate({"upstream": upstream, "server_tls_mode": "disable"})
    opener = Opener(settings, TlsContexts(settings), "postgres", "postgres", NoCredential(), 2)
    startup = startup_message({"user": "postgres", "database": "postgres"})
    for attempt in (opener.open({}), opener.open_direct(startup)):
        with pytest.raises(UpstreamError, match=r"cannot connect to the server at db\.example"):
            await attempt
    address[0] = postgres.host
    opened = [await opener.open({}), await opener.open_direct(startup)]
    assert [backend.how for backend in opened] == ["pool", "direct"]
    for backend in opened:
        backend.abort()
    opener.close()

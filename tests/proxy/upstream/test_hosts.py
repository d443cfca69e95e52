"""Several hosts of which the first says nothing: whoever connects gets to the next one within a time of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import asyncpg
import pytest

from pilotwire.errors import StartError
from pilotwire.upstream_check import Reachability, check_upstream
from planner import catalog
from planner.catalog import CatalogWatcher
from planner.catalogs import connector
from planner.control import Upstream
from proxy.auth.query import AuthQuery, QuerySettings
from proxy.dsn import Host, parse_dsn
from proxy.login import NoCredential
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts
from proxy.upstream.cancel import send_cancel
from proxy.upstream.errors import UpstreamError
from proxy.upstream.hosts import connect_first
from proxy.upstream.opener import Opener
from tests.conftest import StartProxy
from tests.proxy.auth.listener import RecordedLog
from tests.proxy.auth.servers import Certificates, TlsServer
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.waiting import eventually

LIMIT = 1.5
"""For each host, in seconds. Half a second was too little for a good one where others use the machine too."""


@contextlib.contextmanager
def hushed(kind: str) -> Iterator[int]:
    """The port of a host that accepts and never answers (``mute``), or does not even accept (``full``)."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0 if kind == "full" else 100)
        port: int = listening.getsockname()[1]
        # The kernel drops what comes for a full queue, as a network does for a machine that is switched off.
        for _ in range(4 if kind == "full" else 0):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


@pytest.fixture(params=["full", "mute"])
def silent(request: pytest.FixtureRequest) -> Iterator[int]:
    with hushed(request.param) as port:
        yield port


def dsn(postgres: Postgres, *first: int) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in (*first, postgres.port))
    return f"postgresql://postgres@{hosts}/postgres"


def settings_of(upstream: str, **more: object) -> ProxySettings:
    values = {"upstream": upstream, "server_tls_mode": "disable", "connect_timeout": LIMIT, "auth": "trust"}
    return ProxySettings.model_validate(values | more)


async def took(work: Awaitable[object]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


@pytest.mark.parametrize("attributes", ["any", "read-write", "prefer-standby"])
async def test_a_silent_host_costs_its_own_time_only(postgres: Postgres, silent: int, attributes: str) -> None:
    settings = settings_of(dsn(postgres, silent), target_session_attrs=attributes)
    opener = Opener(settings, TlsContexts(settings), "postgres", "postgres", NoCredential(), 2)
    began = time.monotonic()
    backend = await opener.open({})
    # Asked once, also where two passes over the hosts are made.
    assert LIMIT * 0.9 < time.monotonic() - began < LIMIT * 1.9
    assert backend.address == ("127.0.0.1", postgres.port)
    backend.abort()
    opener.close()


@pytest.mark.parametrize(("kind", "mode"), [("full", "session"), ("mute", "transaction")])
async def test_clients_are_served_by_the_next_host(proxy: StartProxy, postgres: Postgres, kind: str, mode: str) -> None:
    with hushed(kind) as silent:
        target = proxy(upstream=dsn(postgres, silent), connect_timeout=LIMIT, pool_mode=mode)
        connection = await asyncpg.connect(target.dsn(), timeout=10)
        assert await connection.fetchval("show port") == str(postgres.port)
        await connection.close()


async def test_the_check_at_the_start_goes_on_to_the_next_host(postgres: Postgres, silent: int) -> None:
    assert await took(check_upstream(settings_of(dsn(postgres, silent)))) < LIMIT * 2
    with pytest.raises(StartError, match=rf"cannot reach the upstream .* within {LIMIT:g} s"):
        await check_upstream(settings_of(f"postgresql://postgres@127.0.0.1:{silent}/postgres"))


async def test_readiness_does_not_wait_for_a_silent_host(postgres: Postgres) -> None:
    """Whoever probes gives up sooner than the silent one."""
    reachable = Reachability()
    with hushed("full") as silent:
        hosts = settings_of(dsn(postgres, silent)).dsn.hosts
        began = time.monotonic()
        assert await reachable(hosts)
        assert time.monotonic() - began < LIMIT


async def test_auth_query_goes_on_to_the_next_host(postgres: Postgres, silent: int) -> None:
    settings = QuerySettings(
        dsn=parse_dsn(dsn(postgres, silent)),
        sql="SELECT $1::text, 'secret'",
        user="postgres",
        password=None,
        timeout=LIMIT,
        tls=lambda: {"ssl": False},
    )
    query = AuthQuery(settings, RecordedLog())
    try:
        assert await query.look_up("ann") is not None
    finally:
        await query.close()


async def test_the_planner_reads_the_catalog_of_the_next_host(
    postgres: Postgres, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_CONNECT_SECONDS", LIMIT)  # no limit for all hosts together
    hosts = (("127.0.0.1", silent), ("127.0.0.1", postgres.port))
    upstream = Upstream(hosts, "postgres", "", "postgres", {"sslmode": "disable"}, LIMIT)
    watcher = CatalogWatcher(connect=connector(upstream, "postgres"))
    assert await watcher.refresh() is not None
    await watcher.close()


async def test_what_a_host_refuses_is_asked_of_no_other(postgres: Postgres) -> None:
    hosts = [Host("127.0.0.1", postgres.port), Host("127.0.0.1", free_port())]
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await connect_first(
            hosts=hosts, target_session_attrs="any", limit=LIMIT, user="postgres", database="none_such", ssl=False
        )


async def test_none_that_will_do_is_said_so(postgres: Postgres) -> None:
    hosts = [Host("127.0.0.1", free_port()), Host("127.0.0.1", postgres.port)]
    with pytest.raises(ConnectionError, match=r"none of the hosts is standby \(target_session_attrs\)"):
        await connect_first(hosts=hosts, target_session_attrs="standby", limit=5, user="postgres", ssl=False)


async def test_a_cancel_reaches_the_host_that_is_there(proxy: StartProxy, postgres: Postgres) -> None:
    """One with a server's own key, of a client that another instance serves, goes to every host."""
    target = proxy(upstream=dsn(postgres, free_port()), connect_timeout=LIMIT)
    elsewhere = await asyncpg.connect(postgres.dsn())
    sleeping = asyncio.ensure_future(elsewhere.execute("select pg_sleep(61)"))
    running = "select count(*) from pg_stat_activity where state = 'active' and query ~ 'sleep.61.$'"
    await eventually(lambda: postgres.sql(running) == "1")
    pid, secret = elsewhere._protocol.backend_pid, elsewhere._protocol.backend_secret
    key = secret if isinstance(secret, bytes) else int(secret).to_bytes(4, "big", signed=True)
    await send_cancel((target.host, target.port), pid, key, None, require_tls=False)
    with pytest.raises(asyncpg.QueryCanceledError):
        await asyncio.wait_for(sleeping, 5)
    await elsewhere.close()


async def test_a_cancel_that_is_hung_up_on_is_a_lost_connection() -> None:
    """As behind a balancer that accepts for a server that is not there."""

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = TlsContexts(ProxySettings.model_validate({"upstream": "postgresql://a@b/c"})).server_side
    assert context is not None
    async with await asyncio.start_server(hang_up, "127.0.0.1") as server:
        with pytest.raises(ConnectionError):
            await send_cancel(server.sockets[0].getsockname(), 1, b"1234", context, require_tls=False)


async def by_opener(settings: ProxySettings) -> None:
    opener = Opener(settings, TlsContexts(settings), "cert_user", "postgres", NoCredential(), 2)
    (await opener.open({})).abort()
    opener.close()


@pytest.mark.parametrize("mode", ["allow", "prefer", "require"])
@pytest.mark.parametrize("connect", [by_opener, check_upstream])
async def test_our_certificate_is_shown_in_every_mode(
    tls_server: TlsServer,
    certificates: Certificates,
    mode: str,
    connect: Callable[[ProxySettings], Awaitable[None]],
) -> None:
    certificate, key = certificates.client["cert_user"]
    upstream = f"postgresql://cert_user@{tls_server.host}:{tls_server.port}/postgres"
    bare = {"server_tls_mode": mode, "connect_timeout": 10}
    await connect(settings_of(upstream, server_tls_cert=str(certificate), server_tls_key=str(key), **bare))
    with pytest.raises((UpstreamError, StartError)):
        await connect(settings_of(upstream, **bare))
    # Over TLS a connection that was refused is closed when the server's own end of it has come.
    selector = cast("Any", asyncio.get_running_loop())._selector
    await eventually(lambda: len(selector.get_map()) == 1, what="nothing is open but the loop itself")

"""The regret budget where the network or another worker makes it hard: cancels that take their time, TLS, a server that
takes no cancel, a client's cancel in the very moment of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from proxy.wire.messages import query
from tests.conftest import StartProxy
from tests.proxy.auth.servers import PASSWORD, TlsServer
from tests.proxy.pooled_fixtures import sample
from tests.proxy.steering.planner import ScriptedPlanner, scripted_planner
from tests.proxy.steering.test_delivery_extended import batch, errors, kinds, rows
from tests.proxy.wire.transcript import SYNC, bind, execute, parse
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.tcpfault import TcpFault
from tests.support.wireclient import WireClient

TERRIBLE = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_material": "off", "enable_memoize": "off"}
TEXT = "select count(*) from generate_series(1, 30000) a(k) join generate_series(1, 30000) b(k) using (k)"
BUDGET_MS = 60.0


@pytest.fixture
def planner() -> Iterator[ScriptedPlanner]:
    with scripted_planner() as found:
        found.steer(settings=TERRIBLE, budget_ms=BUDGET_MS)
        yield found


async def behind(
    proxy: StartProxy, planner: ScriptedPlanner, server: TcpFault, workers: int = 1, **settings: object
) -> Proxy:
    """A proxy whose server is reached through ``server``, which needs this thread's loop while it starts."""
    dsn = f"postgresql://postgres@{server.host}:{server.port}/postgres"

    def start() -> Proxy:
        started: Proxy = proxy(
            upstream=dsn,
            server_tls_mode="disable",
            planner_socket=str(planner.path),
            steer_deadline_ms=5000,
            steer_min_joins=2,
            workers=workers,
            **settings,
        )
        planner.wait_connected(workers)
        return started

    return await asyncio.to_thread(start)


@pytest.mark.parametrize(
    ("pool_mode", "workers"), [("session", 2), pytest.param("transaction", 1, marks=pytest.mark.long)]
)
async def test_the_clients_cancel_while_ours_is_on_its_way(
    postgres: Postgres, proxy: StartProxy, planner: ScriptedPlanner, pool_mode: str, workers: int
) -> None:
    """Ours takes 100 ms to get to the server, and the client's comes then, at whichever worker: it is the client that
    has cancelled."""
    async with TcpFault(postgres) as slow:
        started = await behind(proxy, planner, slow, pool_mode=pool_mode, workers=workers)
        client = await WireClient.connect(started)
        slow.delay = 0.1
        for begin in ("", "begin"):
            for _ in range(2):
                await client.query(begin)
                planner.change()
                client.send(query(TEXT))
                await asyncio.sleep(BUDGET_MS / 1000 + 0.04)
                await client.cancel(started)
                answer = await client.until(b"Z")
                assert [error["C"] for error in errors(answer)] == ["57014"], kinds(answer)
                assert client.status == ("E" if begin else "I")
                await client.query("rollback")
                assert await client.value("select 'untouched'") == "untouched"
        slow.delay = 0.0
        client.reset()


@pytest.mark.long
async def test_a_slow_cancel_hits_nothing_else(postgres: Postgres, proxy: StartProxy, planner: ScriptedPlanner) -> None:
    async with TcpFault(postgres) as slow:
        started = await behind(proxy, planner, slow)
        client = await WireClient.connect(started)
        slow.delay = 0.02
        # It ends while the request is on its way, or is hit by it.
        planner.steer(settings=TERRIBLE, budget_ms=20.0)
        for number, count in enumerate((1500, 2500, 3500)):
            for begin in ("", "begin"):
                await client.query(begin)
                # Each of a kind of its own, so that none is known to be cheap.
                text = TEXT.replace("30000", str(count)).replace("a(k)", f"a{number}{begin}(k)")
                client.send(query(text) + query("select 'behind'"))
                assert rows(await client.until(b"Z")) == [str(count)]
                assert rows(await client.until(b"Z")) == ["behind"]
                found = await batch(client, parse("", text), bind(), execute(), SYNC, query("select 'behind'"))
                assert rows(found) == [str(count)]
                assert rows(await client.until(b"Z")) == ["behind"]
                assert client.status == ("T" if begin else "I")
                await client.query("commit")
        assert sample(started, "steering_stopped_total") > 0
        slow.delay = 0.0
        client.reset()


@pytest.mark.long
async def test_a_server_that_takes_no_cancel(postgres: Postgres, proxy: StartProxy, planner: ScriptedPlanner) -> None:
    """The statement then takes what it takes with its advice."""
    async with TcpFault(postgres) as server:
        started = await behind(proxy, planner, server)
        client = await WireClient.connect(started)
        await client.query("select 1")
        assert server._server is not None
        server._server.close()
        text = TEXT.replace("30000", "5000")
        assert await client.value(text) == "5000"
        assert await client.value("select 'next'") == "next"
        assert sample(started, "steering_stops_failed_total") >= 1
        client.reset()


async def test_over_tls(tls_server: TlsServer, proxy: StartProxy, planner: ScriptedPlanner) -> None:
    for connected, pool_mode in enumerate(("session", "transaction"), 1):
        started = proxy(
            upstream=f"postgresql://scram_user:{quote(PASSWORD)}@{tls_server.host}:{tls_server.port}/postgres",
            server_tls_mode="require",
            auth="trust",
            pool_mode=pool_mode,
            planner_socket=str(planner.path),
            steer_deadline_ms=5000,
            steer_min_joins=2,
        )
        planner.wait_connected(connected)
        client = await WireClient.connect(started, user="scram_user")
        assert await client.value("select ssl from pg_stat_ssl where pid = pg_backend_pid()") == "t"
        assert await client.value(TEXT) == "30000"
        assert sample(started, "steering_stopped_total") == 1
        client.reset()

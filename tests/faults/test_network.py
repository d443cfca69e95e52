"""A network that cuts, delays, tears apart and goes silent, on either side of the proxy."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.wire.messages import message, query
from tests.faults.conftest import StartProxy
from tests.faults.load import Load, Report
from tests.faults.state import resident, settled, watch
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.scale import scale
from tests.support.tcpfault import Direction, TcpFault
from tests.support.wireclient import ServerError, WireClient

HANGING = 10.0
"""Seconds after which a client that has heard nothing counts as left hanging."""
WORDS = {"57P03", "08006", "57P01"}
"""What a client may be told when the server's side of its connection broke; or nothing, as when a server dies."""


async def behind(proxy: StartProxy, fault: TcpFault, **settings: object) -> Proxy:
    """A proxy whose server is reached through `fault`, which needs this thread's loop while the proxy starts."""
    dsn = f"postgresql://postgres@{fault.host}:{fault.port}/postgres"
    target: Proxy = await asyncio.to_thread(proxy, upstream=dsn, server_tls_mode="disable", **settings)
    return target


async def talk(server: TcpFault | Proxy, database: str) -> str:
    """Logs in, runs a query of each protocol, leaves: 'served', or how it ended instead."""
    try:
        client = await WireClient.connect(server, database, timeout=HANGING)
        try:
            assert await client.query("select 'simple', repeat('x', 300)", HANGING) == [("simple", "x" * 300)]
            client.send(
                message(b"P", b"s\0select $1::text\0\0\0")
                + message(b"B", b"\0s\0\0\0\0\1\0\0\0\3abc\0\0")
                + message(b"E", b"\0\0\0\0\0")
                + message(b"S", b"")
            )
            async with asyncio.timeout(HANGING):
                answer = await client.until_ready()
            assert [body for kind, body in answer if kind == b"D"] == [b"\0\1\0\0\0\3abc"]
            assert await client.query("select 'last'", HANGING) == [("last",)]
            await client.close()
        finally:
            client.reset()
    except ServerError as error:
        return error.sqlstate
    except ConnectionError:
        return "lost"
    return "served"


async def measure(fault: TcpFault, target: Proxy, database: str) -> dict[Direction, int]:
    """How many bytes pass each way when nothing is broken."""
    assert await talk(target, database) == "served"
    passed = dict(fault.passed)
    fault.cut()
    return passed


DIRECTIONS: tuple[Direction, Direction] = ("up", "down")


@pytest.mark.parametrize("steps", scale(12, 400))
async def test_the_servers_side_cut_at_every_step(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, steps: int
) -> None:
    """Cut after N bytes, for N over login and queries: an answer, an error or the end, and never a wait."""
    async with TcpFault(postgres) as fault:
        target = await behind(proxy, fault, pool_mode=mode, workers=1, connect_timeout=5)
        watcher = await watch(postgres)
        for direction in DIRECTIONS:
            total = (await measure(fault, target, database))[direction]
            outcomes: dict[str, int] = {}
            cuts = sorted({total * step // steps for step in range(steps + 1)})
            for cut in cuts:
                fault.cut_after[direction] = cut
                outcome = await talk(target, database)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                assert outcome in WORDS | {"lost", "served"}, f"cut {direction} after {cut} of {total}: {outcome}"
                assert outcome != "served" or cut > total * 0.8, f"served, and cut {direction} after {cut} of {total}"
                # In transaction mode a backend outlives the client; each cut is to meet a new one.
                fault.heal()
                fault.cut()
            print(f"\ncut {direction}, {mode} mode: iterations {len(cuts)}, {total} bytes, client saw {outcomes}")
            assert len(cuts) - outcomes.get("served", 0) > len(cuts) // 2
        assert await talk(target, database) == "served"
        fault.cut()
        await settled(target, watcher, database)


@pytest.mark.parametrize("steps", scale(12, 400))
async def test_the_clients_side_cut_at_every_step(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, steps: int
) -> None:
    """A cut connection leaves no session and no backend behind; the next client finds everything in order."""
    target = proxy(pool_mode=mode, workers=1, pool_size=2, pool_overflow=0)
    watcher = await watch(postgres)
    async with TcpFault(target) as fault:
        for direction in DIRECTIONS:
            fault.heal()
            assert await talk(fault, database) == "served"
            total = dict(fault.passed)[direction]
            cuts = sorted({total * step // steps for step in range(steps)})
            for cut in cuts:
                fault.cut_after[direction] = cut
                assert await talk(fault, database) in ("lost", "served")
            print(f"\nclients cut {direction}, {mode} mode: iterations {len(cuts)}, {total} bytes")
        fault.heal()
        # Two of two backends must be there to be had.
        assert set(await asyncio.gather(talk(fault, database), talk(fault, database))) == {"served"}
        await settled(target, watcher, database, idle=2)


async def test_cut_under_load(proxy: StartProxy, postgres: Postgres, database: str, mode: str) -> None:
    async with TcpFault(postgres) as fault:
        target = await behind(proxy, fault, pool_mode=mode, workers=2)
        report = Report(f"all server connections cut, {mode} mode", least=4)
        async with Load(target, database, clients=8, transactions=True) as load:
            for _ in range(3):
                report.hit(await load.busy(4))
                assert fault.cut() >= 8
                await load.all_answered(3)
        assert {failure.sqlstate for failure in load.failures} <= WORDS | {""}, load.failures
        watcher = await watch(postgres)
        await settled(target, watcher, database, idle=60)
        report.close(load.failures, load.answered, most=200)


async def test_a_slow_network_that_tears_everything_apart(proxy: StartProxy, postgres: Postgres, mode: str) -> None:
    """Three bytes at a time on both sides: every header arrives in pieces, and every answer is right."""
    async with TcpFault(postgres) as server_side:
        target = await behind(proxy, server_side, pool_mode=mode, workers=1)
        async with TcpFault(target) as client_side:
            server_side.piece = client_side.piece = 3
            assert await talk(client_side, "postgres") == "served"
            server_side.piece = client_side.piece = 701
            client_side.delay = server_side.delay = 0.002
            client = await WireClient.connect(client_side)
            rows = await client.query("select n, repeat(n::text, 40) from generate_series(1000, 1500) n")
            assert rows == [(str(n), str(n) * 40) for n in range(1000, 1501)]
            await client.close()


async def test_a_server_that_goes_silent_at_login(proxy: StartProxy, postgres: Postgres, mode: str) -> None:
    """connect_timeout ends the wait for a server that accepts and says nothing; then the network heals."""
    async with TcpFault(postgres) as fault:
        target = await behind(proxy, fault, pool_mode=mode, workers=1, connect_timeout=1)
        fault.silent = True
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"57P03.*timed out"):
            await WireClient.connect(target, timeout=HANGING)
        assert 0.9 < time.monotonic() - started < 8
        fault.heal()
        assert await talk(target, "postgres") == "served"


async def test_a_server_that_does_not_read(proxy: StartProxy, postgres: Postgres, mode: str) -> None:
    """A long COPY towards a network that stands still: the client is held back, and memory stays as it is."""
    async with TcpFault(postgres) as fault:
        target = await behind(proxy, fault, pool_mode=mode, workers=1)
        client = await WireClient.connect(target)
        await client.query("create temporary table copied (t text)")
        client.send(query("copy copied from stdin"))
        await client.until(b"G")
        (worker,) = target.workers()
        before = resident(worker)
        fault.silent = True
        row = message(b"d", b"x" * 8191 + b"\n")
        sent = 0
        try:
            async with asyncio.timeout(2):
                while sent < 20_000:
                    client.send(row)
                    sent += 1
                    await client.writer.drain()
        except TimeoutError:
            grown = resident(worker) - before
            assert grown < 8 << 20, f"the worker grew by {grown >> 20} MB"
        else:
            pytest.fail("160 MB were taken from the client while the server took nothing")
        fault.silent = False
        client.send(message(b"c", b""))
        await client.until_ready()
        assert await client.value("select count(*) from copied") == str(sent)

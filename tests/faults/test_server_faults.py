"""The server behind the proxy ends connections, restarts, is gone, or is another one now."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import StartPostgres, StartProxy
from tests.faults.load import Load, Report
from tests.faults.state import becomes, settled, watch
from tests.support.postgres import Postgres
from tests.support.scale import scale
from tests.support.waiting import eventually, wait_until
from tests.support.wireclient import ServerError, WireClient

AT_ONCE = 3.0
"""Seconds within which a client must know that there is no server."""


def postmaster(server: Postgres) -> int:
    pid = server.server.pid
    assert pid is not None
    return pid


def stop_immediately(server: Postgres) -> None:
    """What `pg_ctl stop -m immediate` does, which leaves the data for crash recovery."""
    os.kill(postmaster(server), signal.SIGQUIT)
    wait_until(lambda: not server.server.running, what="the server has gone")


@pytest.mark.parametrize("iterations", scale(3, 30))
async def test_busy_backends_terminated(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, iterations: int
) -> None:
    """pg_terminate_backend of what clients use: they get the server's own words, and nobody else notices."""
    target = proxy(pool_mode=mode, workers=2)
    watcher = await watch(postgres)
    report = Report(f"pg_terminate_backend of busy backends, {mode} mode", least=4)
    killed = 0
    async with Load(target, database, clients=10, transactions=True) as load:
        for _ in range(iterations):
            report.hit(await load.busy(4))
            rows = await watcher.query(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                f" where datname = '{database}' and state <> 'idle' order by random() limit 3"
            )
            killed += len(rows)
            await load.all_answered(2)
        assert killed >= iterations, "the server had busy backends to end"
        # One may have become idle before the signal arrived, and then its pool replaces it unseen.
        least = killed if mode == "session" else 1
        await eventually(lambda: len(load.failures) >= least, 10, "the clients were told")
    # Without a word where a query met the end of its connection: the server's reset then overtakes what it said.
    kinds = {failure.sqlstate for failure in load.failures}
    assert "57P01" in kinds, load.failures
    assert kinds <= {"57P01", ""}, load.failures
    await settled(target, watcher, database, idle=60)
    report.notes.append(f"backends ended {killed}")
    report.close(load.failures, load.answered, killed)


async def test_idle_backends_terminated(proxy: StartProxy, postgres: Postgres, database: str, mode: str) -> None:
    """In session mode the client of an idle backend learns of its end; in transaction mode there is none to tell."""
    target = proxy(pool_mode=mode, workers=1, pool_size=4)
    watcher = await watch(postgres)
    clients = [await WireClient.connect(target, database) for _ in range(4)]
    await asyncio.gather(*(client.query("select pg_sleep(0.1)") for client in clients))
    await watcher.query(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{database}'")
    if mode == "session":
        for client in clients:
            with pytest.raises(ServerError, match="57P01"):
                await client.query("select 1")
    else:
        assert [await client.value("select 7") for client in clients] == ["7"] * 4
    for client in clients:
        client.reset()
    await settled(target, watcher, database, idle=4)
    assert "internal_error" not in target.log_text()


@pytest.mark.parametrize("iterations", scale(1, 5))
async def test_the_server_restarts(
    proxy: StartProxy, start_postgres: StartPostgres, mode: str, iterations: int
) -> None:
    """Immediate mode, under load: no process of the proxy is restarted, and clients get on as soon as it is there."""
    server = await asyncio.to_thread(start_postgres)
    target = proxy(server, pool_mode=mode, workers=2, connect_timeout=5)
    report = Report(f"restart of the server, {mode} mode", least=4)
    async with Load(target, clients=8, transactions=True) as load:
        pids = await asyncio.to_thread(target.pids)
        for _ in range(iterations):
            report.hit(await load.busy(4))
            await asyncio.to_thread(stop_immediately, server)
            # While it is down, a client is told so at once, in the words drivers understand as "try again".
            started = time.monotonic()
            with pytest.raises(ServerError, match=r"57P03.*cannot connect to the server at"):
                await WireClient.connect(target)
            assert time.monotonic() - started < AT_ONCE
            await asyncio.to_thread(server.start)
            await load.all_answered(3)
        assert target.pids() == pids
    kinds = {failure.sqlstate for failure in load.failures}
    # '' is a connection cut by the server's death, which PostgreSQL's own clients see just so.
    assert kinds <= {"57P01", "57P02", "57P03", ""}, load.failures
    watcher = await watch(server)
    await settled(target, watcher, "postgres", idle=60)
    report.close(load.failures, load.answered, most=10**6)


async def test_a_server_that_is_down_from_the_start_of_a_session(
    proxy: StartProxy, start_postgres: StartPostgres, mode: str
) -> None:
    server = await asyncio.to_thread(start_postgres)
    target = proxy(server, pool_mode=mode, workers=1)
    waiting = await WireClient.connect(target)
    await waiting.query("select 1")
    await asyncio.to_thread(server.kill)
    # One that was connected: in transaction mode it is told when it wants a backend, and keeps nothing of the old.
    started = time.monotonic()
    with pytest.raises((ServerError, ConnectionError)):
        await waiting.query("select 1")
    for _ in range(3):
        with pytest.raises(ServerError, match="57P03"):
            await WireClient.connect(target)
    assert time.monotonic() - started < AT_ONCE
    await asyncio.to_thread(server.start)
    client = await WireClient.connect(target)
    assert await client.value("select 5") == "5"


async def _first_to_answer(connect: Callable[[], Any], wanted: int) -> WireClient:
    """Connects again and again until the answer comes from the server on port `wanted`."""
    found: list[WireClient] = []

    async def reached() -> bool:
        try:
            client: WireClient = await connect()
        except (ServerError, OSError):
            return False
        if await client.value("select inet_server_port()") == str(wanted):
            found.append(client)
            return True
        client.reset()
        return False

    await becomes(reached, f"clients are served by the server on port {wanted}", 20)
    return found[0]


async def test_failing_over_to_another_host(proxy: StartProxy, start_postgres: StartPostgres, mode: str) -> None:
    """Two hosts in the DSN; whoever takes writes is used, and the proxy needs no restart to find that out."""
    first = await asyncio.to_thread(start_postgres)
    second = await asyncio.to_thread(start_postgres, config={"default_transaction_read_only": "on"})
    target = proxy(
        first,
        upstream=f"postgresql://postgres@{first.host}:{first.port},{second.host}:{second.port}/postgres",
        target_session_attrs="read-write",
        pool_mode=mode,
        workers=2,
        server_tls_mode="disable",
    )
    pids = await asyncio.to_thread(target.pids)
    report = Report(f"fail-over, {mode} mode", least=3)
    async with Load(target, clients=6, transactions=True) as load:
        client = await _first_to_answer(lambda: WireClient.connect(target), first.port)
        client.reset()
        report.hit(await load.busy(3))
        await asyncio.to_thread(first.kill)
        # Nobody takes writes now: an error, and no writes to the wrong one.
        await eventually(lambda: any(failure.where == "connecting" for failure in load.failures), 10)
        assert not [failure for failure in load.failures if failure.sqlstate == "25006"]
        await asyncio.to_thread(second.configure, config={"default_transaction_read_only": "off"})
        await asyncio.to_thread(second.server.wait_reloaded, "default_transaction_read_only", "off")
        await load.all_answered(3)
        client = await _first_to_answer(lambda: WireClient.connect(target), second.port)
        await client.query("create table promoted (n int)")
        # And back again when the first has returned and the second is gone.
        report.hit(await load.busy(3))
        await asyncio.to_thread(first.start)
        await asyncio.to_thread(second.kill)
        client = await _first_to_answer(lambda: WireClient.connect(target), first.port)
        await load.all_answered(3)
    assert target.pids() == pids
    report.close(load.failures, load.answered, most=10**6)

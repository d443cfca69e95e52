"""Running out: of the server's connections, of places in the queue, of file descriptors."""

from __future__ import annotations

import asyncio
import resource
import time

import psutil
import pytest

from proxy.wire.messages import query
from tests.faults.conftest import StartPostgres, StartProxy
from tests.faults.load import Load, Report
from tests.faults.state import becomes, metric, settled, watch
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from tests.support.wireclient import Lost, ServerError, WireClient

AT_ONCE = 3.0


async def test_sorry_too_many_clients_already(proxy: StartProxy, start_postgres: StartPostgres, mode: str) -> None:
    """A full server: in session mode its own words reach the client, in transaction mode there is a queue instead."""
    server = await asyncio.to_thread(
        start_postgres, config={"max_connections": 10, "superuser_reserved_connections": 0, "max_wal_senders": 0}
    )
    target = proxy(server, pool_mode=mode, workers=1, pool_size=20)
    report = Report(f"a full server, {mode} mode", least=3)
    async with Load(target, clients=6, transactions=True) as load:
        others = [
            client
            for client in await asyncio.gather(*(WireClient.connect(server) for _ in range(12)), return_exceptions=True)
            if isinstance(client, WireClient)
        ]
        assert len(others) < 12, "the server is full"
        report.hit(await load.busy(3))
        if mode == "session":
            for _ in range(5):
                with pytest.raises(ServerError) as refused:
                    await WireClient.connect(target)
                assert refused.value.sqlstate == "53300"
                assert refused.value.text == "sorry, too many clients already"
        else:
            # There are backends, if not as many as there may be: more clients share them.
            load.add(6)
        await load.all_answered(3)
        for other in others:
            other.reset()

        async def served() -> bool:
            try:
                client = await WireClient.connect(target)
            except ServerError:
                return False
            await client.close()
            return True

        await becomes(served, "there is room on the server again")
        await load.all_answered(3)
    report.close(load.failures, load.answered)


async def test_the_queue_is_full(proxy: StartProxy, postgres: Postgres, database: str) -> None:
    target = proxy(pool_mode="transaction", workers=1, pool_size=1, pool_overflow=1, queue_limit=3, queue_timeout=60)
    watcher = await watch(postgres)
    clients = [await WireClient.connect(target, database) for _ in range(8)]
    for holder in clients[:2]:
        await holder.query("begin")
    waiting = clients[2:5]
    for client in waiting:
        client.send(query("select 1"))

    async def queued() -> bool:
        return await metric(target, "pilotwire_pool_waiting") == 3

    await becomes(queued, "three wait")
    for client in clients[5:]:
        started = time.monotonic()
        with pytest.raises(ServerError) as refused:
            await client.query("select 2")
        assert time.monotonic() - started < AT_ONCE
        assert refused.value.sqlstate == "53300"
        assert f'pool "postgres@{database}"' in refused.value.text
        assert "queue is full" in refused.value.text
        client.reset()
    assert await metric(target, "pilotwire_queue_rejected_total") == 3
    for holder in clients[:2]:
        await holder.query("commit")
    for client in waiting:
        await client.until_ready()
    for client in clients[:5]:
        await client.close()
    await settled(target, watcher, database, idle=1)


async def test_waiting_too_long(proxy: StartProxy, database: str) -> None:
    target = proxy(pool_mode="transaction", workers=1, pool_size=1, pool_overflow=0, queue_timeout=1)
    holder = await WireClient.connect(target, database)
    waiter = await WireClient.connect(target, database)
    await holder.query("begin")
    started = time.monotonic()
    with pytest.raises(ServerError) as refused:
        await waiter.query("select 1")
    assert 0.9 < time.monotonic() - started < 5
    assert refused.value.sqlstate == "53300"
    assert "queue_timeout" in refused.value.text
    assert await metric(target, "pilotwire_pool_wait_timeouts_total") == 1
    assert await holder.value("select 1") == "1"


async def test_max_clients(proxy: StartProxy, database: str, mode: str) -> None:
    """However many workers there are, and however many come at once."""
    target = proxy(pool_mode=mode, workers=2, max_clients=4)
    came = await asyncio.gather(*[WireClient.connect(target, database) for _ in range(12)], return_exceptions=True)
    clients = [client for client in came if isinstance(client, WireClient)]
    assert len(clients) == 4, came
    for _ in range(3):
        with pytest.raises(ServerError, match=r"53300: sorry, too many clients already"):
            await WireClient.connect(target, database)
    for client in clients:
        assert await client.value("select 1") == "1"
    await clients.pop().close()

    async def served() -> bool:
        try:
            await WireClient.connect(target, database)
        except ServerError:
            return False
        return True

    await becomes(served, "a place has become free")


async def test_out_of_file_descriptors(proxy: StartProxy, postgres: Postgres, database: str, mode: str) -> None:
    """Those who are connected work on, those who come are told or wait, and nothing spins; then all is well again."""
    target = proxy(pool_mode=mode, workers=1, connect_timeout=3, login_timeout=5)
    (worker,) = target.workers()
    watcher = await watch(postgres)
    report = Report(f"out of descriptors, {mode} mode", least=3)
    async with Load(target, database, clients=6, transactions=True) as load:
        process = psutil.Process(worker)
        _, hard = process.rlimit(resource.RLIMIT_NOFILE)
        # Room for three more, where a session needs two.
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 3, hard))
        report.hit(await load.busy(3))
        crowd = await asyncio.gather(
            *(WireClient.connect(target, database, timeout=2) for _ in range(20)), return_exceptions=True
        )
        await load.all_answered(10)
        refused = [outcome for outcome in crowd if isinstance(outcome, Exception)]
        assert refused, "there was room for all"
        assert {type(outcome) for outcome in refused} <= {TimeoutError, ServerError, Lost}, refused
        # No room at all, and nobody to be sent away: who comes waits, and the worker must not try without pause.
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), hard))
        report.hit(await load.busy(3))
        pauses = -target.log_text().count("accept_paused")
        spent = -sum(process.cpu_times()[:2])
        waiting = [await WireClient.open(target) for _ in range(3)]
        await load.all_answered(60)
        pauses += target.log_text().count("accept_paused")
        spent += sum(process.cpu_times()[:2])
        assert 0 < pauses < 50, f"the worker tried to accept {pauses} times"
        assert spent < 1, f"the worker used {spent:.1f} s of CPU time for next to nothing"
        for client in waiting:
            client.reset()
        for outcome in crowd:
            if isinstance(outcome, WireClient):
                outcome.reset()
        process.rlimit(resource.RLIMIT_NOFILE, (hard, hard))
        load.add(6)
        await load.all_answered(3)
    assert target.workers() == [worker]
    await eventually(lambda: target.metrics()["pilotwire_workers_ready"] == 1)
    await settled(target, watcher, database, idle=40)
    report.notes.append(f"refused {len(refused)} of {len(crowd)}")
    report.close(load.failures, load.answered)

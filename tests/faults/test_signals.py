"""SIGTERM and SIGHUP while clients work."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.faults.conftest import StartProxy, alive
from tests.faults.load import Load, Report
from tests.faults.state import backends, becomes, nothing_left, watch
from tests.support.postgres import Postgres
from tests.support.scale import scale
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient

NOTED = "insert into done values ($n) returning (select $n from pg_sleep(0.01))"


async def test_a_drain_loses_no_statement(proxy: StartProxy, postgres: Postgres, database: str, mode: str) -> None:
    """Each statement writes a row: what was answered must be there, and what got 57P01 must not."""
    drain = 1.0
    target = proxy(workers=2, pool_mode=mode, drain_timeout=drain)
    watcher = await watch(postgres)
    table = await WireClient.connect(postgres, database)
    await table.query("create table done (n int primary key)")
    report = Report(f"SIGTERM under load, {mode} mode", least=4)
    inside = await WireClient.connect(target, database)
    await inside.query("begin")
    await inside.query("insert into done values (-1)")
    async with Load(target, database, clients=10, statement=NOTED, transactions=True, reconnect=False) as load:
        pids = await asyncio.to_thread(target.pids)
        report.hit(await load.busy(4))
        target.signal(signal.SIGTERM)
        stopped = time.monotonic()
        while time.monotonic() - stopped < drain * 0.8:
            await load.all_answered(1)
        assert not load.failures, "the connected are served until drain_timeout has passed"
        with pytest.raises(ConnectionRefusedError):
            await WireClient.connect(target, database)
        await eventually(lambda: len(load.failures) == len(load.clients), 15, "each client was ended")
        ended = time.monotonic() - stopped
        assert drain * 0.9 < ended < drain + 3
    assert {failure.sqlstate for failure in load.failures} == {"57P01"}, load.failures
    assert {failure.where for failure in load.failures} <= {"idle", "query"}, "only outside a transaction"
    # Whoever is inside a transaction is waited for.
    assert target.process.poll() is None
    await inside.query("insert into done values (-2)")
    await inside.query("commit")
    with pytest.raises(ServerError, match="57P01"):
        await inside.query("select 1")
    assert await table.value("select count(*) from done where n < 0") == "2"
    assert await asyncio.to_thread(target.process.wait, 10) == 0
    inside.reset()
    # Single statements are rows by themselves; those of a transaction that never saw its COMMIT are not.
    there = {int(row[0] or 0) for row in await table.query("select n from done where n > 0")}
    answered, refused = load.outcomes
    assert answered <= there, f"answered and not there: {sorted(answered - there)[:5]}"
    assert not refused & there, f"refused by 57P01 and there all the same: {sorted(refused & there)[:5]}"
    await table.close()
    await nothing_left(watcher, database)
    await watcher.close()
    assert not any(alive(pid) for pid in pids)
    report.close(load.failures, load.answered, len(load.clients))


async def test_a_second_sigterm_ends_at_once(proxy: StartProxy, postgres: Postgres, database: str, mode: str) -> None:
    target = proxy(workers=2, pool_mode=mode, drain_timeout=600)
    watcher = await watch(postgres)
    report = Report(f"two SIGTERM under load, {mode} mode", least=4)
    async with Load(target, database, clients=8, transactions=True, reconnect=False) as load:
        pids = await asyncio.to_thread(target.pids)
        report.hit(await load.busy(4))
        target.signal(signal.SIGTERM)
        await load.all_answered(3)
        target.signal(signal.SIGTERM)
        ended = time.monotonic()
        assert await asyncio.to_thread(target.process.wait, 10) == 0
        assert time.monotonic() - ended < 8
        await eventually(lambda: len(load.failures) == len(load.clients), 5)
    assert not any(alive(pid) for pid in pids)
    await nothing_left(watcher, database)
    await watcher.close()
    report.close(load.failures, load.answered, len(load.clients))


@pytest.mark.parametrize("iterations", scale(6, 100))
async def test_sighup_under_load(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, iterations: int
) -> None:
    target = proxy(workers=2, pool_mode=mode)
    report = Report(f"SIGHUP under load, {mode} mode", least=4)
    async with Load(target, database, clients=10, transactions=True) as load:
        workers = target.workers()
        for turn in range(iterations):
            size = 20 + turn % 2
            target.write_config(pool_size=size, log_slow_ms=500 + turn)
            report.hit(await load.busy(4))
            target.signal(signal.SIGHUP)
            await eventually(
                lambda turn=turn: target.log_text().count("reloaded") > turn,  # type: ignore[misc]
                10,
                "the settings were read again",
            )
            await load.all_answered(1)
        # Settings that are wrong change nothing.
        target.config_file.write_text("pool_size = 0\n")
        report.hit(await load.busy(4))
        target.signal(signal.SIGHUP)
        await asyncio.to_thread(target.wait_log, "reload_failed")
        await load.all_answered(2)
        assert target.workers() == workers
    report.close(load.failures, load.answered)


async def test_a_new_pool_size_holds_after_sighup(proxy: StartProxy, postgres: Postgres, database: str) -> None:
    target = proxy(pool_mode="transaction", pool_size=2, pool_overflow=0, workers=1)
    watcher = await watch(postgres)

    async def opened() -> bool:
        return await backends(watcher, database) == 5

    async with Load(target, database, clients=5) as load:
        assert await backends(watcher, database) == 2
        target.write_config(pool_size=5)
        target.signal(signal.SIGHUP)
        await becomes(opened, "the pool has grown to its new size")
        await load.all_answered()
    assert not load.failures
    await watcher.close()

"""Processes of the proxy that are killed or stopped while clients work."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial

import pytest

from tests.faults.conftest import StartProxy, alive
from tests.faults.load import Load, LoadClient, Report
from tests.faults.state import nothing_left, settled, watch
from tests.pilotwire.test_supervisor import assert_none_fell, counters
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.scale import scale
from tests.support.waiting import eventually

STOPPED_SECONDS = 1.0


def of(numbers: set[int], client: LoadClient) -> bool:
    return client.number in numbers


def replaced(target: Proxy, victim: int) -> bool:
    workers = target.workers()
    return len(workers) == 2 and victim not in workers and target.metrics()["pilotwire_workers_ready"] == 2


@pytest.mark.parametrize("iterations", scale(2, 20))
async def test_kill_9_of_a_worker(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, iterations: int
) -> None:
    target = proxy(workers=2, pool_mode=mode)
    watcher = await watch(postgres)
    report = Report(f"kill -9 of a worker, {mode} mode", least=2)
    async with Load(target, database, clients=12, transactions=True) as load:
        expected = 0
        for _ in range(iterations):
            shares = await load.spread(target, 3)
            await load.all_answered(1)
            before = await asyncio.to_thread(counters, target)
            seen = len(load.failures)
            victim, numbers = min(shares.items(), key=lambda share: len(share[1]))
            report.hit(await load.busy(2, partial(of, numbers)))
            os.kill(victim, signal.SIGKILL)
            await load.all_answered(3)
            hurt = load.failures[seen:]
            assert {failure.client for failure in hurt} == numbers, "each client of that worker, and nobody else"
            assert {failure.sqlstate for failure in hurt} == {""}, hurt
            expected += len(numbers)
            await eventually(partial(replaced, target, victim), 90)
            assert_none_fell(before, await asyncio.to_thread(counters, target))
    await settled(target, watcher, database, idle=40)
    await asyncio.to_thread(target.stop)
    await nothing_left(watcher, database)
    await watcher.close()
    report.close(load.failures, load.answered, expected)


@pytest.mark.parametrize("iterations", scale(1, 10))
async def test_a_worker_that_is_stopped(proxy: StartProxy, database: str, mode: str, iterations: int) -> None:
    target = proxy(workers=2, pool_mode=mode)
    report = Report(f"SIGSTOP and SIGCONT of a worker, {mode} mode", least=2)
    async with Load(target, database, clients=10, transactions=True) as load:
        for _ in range(iterations):
            shares = await load.spread(target, 3)
            victim, numbers = min(shares.items(), key=lambda share: len(share[1]))
            report.hit(await load.busy(2, partial(of, numbers)))
            os.kill(victim, signal.SIGSTOP)
            try:
                started = time.monotonic()
                while time.monotonic() - started < STOPPED_SECONDS:
                    await load.all_answered(5, but=frozenset(numbers))
                # A client that comes now is served by the other worker.
                load.add(2)
                await load.all_answered(1, but=frozenset(numbers))
            finally:
                os.kill(victim, signal.SIGCONT)
            await load.all_answered(5)
        assert target.workers() == sorted(shares)
    report.close(load.failures, load.answered)


async def test_kill_9_of_the_supervisor(proxy: StartProxy, postgres: Postgres, database: str, mode: str) -> None:
    """Its workers serve who is connected for drain_timeout, and nothing is left behind after that."""
    target = proxy(workers=2, pool_mode=mode, drain_timeout=2)
    watcher = await watch(postgres)
    report = Report(f"kill -9 of the supervisor, {mode} mode", least=4)
    async with Load(target, database, clients=10, transactions=True, reconnect=False) as load:
        workers = await asyncio.to_thread(target.workers)
        report.hit(await load.busy(4))
        target.signal(signal.SIGKILL)
        killed = time.monotonic()
        while time.monotonic() - killed < 1.5:
            await load.all_answered(2)
        assert not load.failures, "clients were served on"
        await eventually(lambda: not any(alive(pid) for pid in workers), 20, "the workers have ended")
        took = time.monotonic() - killed
        assert 1.9 < took < 8, f"drain_timeout is 2 s, and the workers ended after {took:.1f} s"
    assert {failure.sqlstate for failure in load.failures} == {"57P01"}, load.failures
    assert "transaction" not in {failure.where for failure in load.failures}, load.failures
    await nothing_left(watcher, database)
    await watcher.close()
    report.close(load.failures, load.answered, len(load.clients))

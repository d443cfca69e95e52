"""Modes, and switching them while statements run: the kill switch."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.conftest import StartProxy
from tests.proxy.steering.planner import ScriptedPlanner
from tests.proxy.steering.statements import MARK, seen
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient


async def switched(proxy: Proxy, times: int) -> None:
    await eventually(lambda: proxy.log_text().count("mode_set") >= times, what="the mode is switched")


async def comes_back(client: WireClient, mark: str) -> bool:
    """Whether a new statement's text arrives at the server with `mark` before it, and nothing else."""
    text = seen()
    return await client.value(text) == mark + text


async def test_the_kill_switch(client: WireClient, planner: ScriptedPlanner, steered: Proxy) -> None:
    planner.steer(MARK)
    before = steered.log_text().count("mode_set")
    text = seen()
    assert await client.value(text) == MARK + text
    steered.signal(signal.SIGUSR2)
    await switched(steered, before + 1)
    await eventually(lambda: comes_back(client, ""), what="the worker has heard of it")
    asks = len(planner.asks)
    text = seen()
    assert await client.value(text) == text
    assert len(planner.asks) == asks
    # What the settings say does not turn it on again.
    steered.signal(signal.SIGHUP)
    await eventually(lambda: "mode_kept" in steered.log_text(), what="the settings are read")
    assert await client.value(text) == text
    assert len(steered.workers()) == 1
    steered.signal(signal.SIGUSR2)
    await switched(steered, before + 2)
    await eventually(lambda: comes_back(client, MARK), what="the worker has heard of it")


async def test_who_waits_for_advice_is_not_steered_either(
    client: WireClient, planner: ScriptedPlanner, steered: Proxy
) -> None:
    planner.steer(MARK)
    planner.delay = 1.5
    before = steered.log_text().count("mode_set")
    text = seen()
    task = asyncio.create_task(client.value(text))
    await eventually(lambda: len(planner.asks) > 0, what="the planner is asked")
    steered.signal(signal.SIGUSR2)
    await switched(steered, before + 1)
    assert await task == text
    steered.signal(signal.SIGUSR2)
    await switched(steered, before + 2)


@pytest.mark.long
async def test_a_worker_started_later_goes_by_it(proxy: StartProxy, planner: ScriptedPlanner, shop: str) -> None:
    """Also where a signal reaches the whole group, the workers live on."""
    started = proxy(planner_socket=str(planner.path), steer_deadline_ms=5000, steer_min_joins=2)
    planner.steer(MARK)
    (worker,) = started.workers()
    os.kill(worker, signal.SIGUSR2)
    started.signal(signal.SIGUSR2)
    await switched(started, 1)
    assert started.workers() == [worker]
    os.kill(worker, signal.SIGKILL)
    await eventually(lambda: "worker_restarted" in started.log_text(), what="the worker is started again")
    client = await WireClient.connect(started, shop)
    text = seen()
    assert await client.value(text) == text
    assert planner.asks == []
    client.reset()

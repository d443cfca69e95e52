"""The nursery: workers are forked by it, and serve on, and come back, without it."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.conftest import StartProxy
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient


def nursery_of(target: Proxy) -> psutil.Process:
    found = [child for child in psutil.Process(target.process.pid).children() if "nursery" in " ".join(child.cmdline())]
    assert len(found) == 1, found
    return found[0]


async def is_served(target: Proxy) -> bool:
    client = await WireClient.connect(target)
    try:
        return await client.value("select 1") == "1"
    finally:
        await client.close()


async def comes_back(target: Proxy, pid: int) -> int:
    """Ends the only worker, and returns the next one."""
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: target.workers() and target.workers() != [pid], 20)
    (other,) = target.workers()
    await eventually(lambda: f"worker_restarted worker=0 pid={other}" in target.log_text())
    return other


async def test_workers_are_its_children_and_are_told_apart(proxy: StartProxy) -> None:
    target = proxy(workers=2)
    nursery = nursery_of(target)
    titles = {child.pid: " ".join(child.cmdline()).strip() for child in nursery.children()}
    assert sorted(titles) == sorted(target.workers())
    assert sorted(titles.values()) == ["pilotwire: worker 0", "pilotwire: worker 1"]
    # Nothing of the supervisor's is open there but the socket between the two, and what it says goes where ours goes.
    assert sorted(os.readlink(f"/proc/{nursery.pid}/fd/{fd}").partition(":")[0] for fd in (0, 1, 2)) == sorted(
        [os.devnull, str(target.log_file), str(target.log_file)]
    )
    assert nursery.num_fds() == 4


async def test_how_a_worker_ended_is_known(proxy: StartProxy) -> None:
    target = proxy(workers=1)
    (first,) = target.workers()
    second = await comes_back(target, first)
    assert await is_served(target)
    assert f'worker_died worker=0 how="killed by {signal.Signals.SIGKILL.name}"' in target.log_text()
    assert psutil.Process(second).ppid() == nursery_of(target).pid
    assert not psutil.pid_exists(first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_it_workers_start_by_themselves(proxy: StartProxy, number: int) -> None:
    target = proxy(workers=1)
    nursery = nursery_of(target)
    (first,) = target.workers()
    client = await WireClient.connect(target)
    nursery.send_signal(number)
    assert await client.value("select 2") == "2"
    second = await comes_back(target, first)
    client.reset()
    assert await is_served(target)
    assert psutil.Process(second).ppid() == target.process.pid
    assert not nursery.is_running() or nursery.status() == psutil.STATUS_ZOMBIE
    await comes_back(target, second)
    assert await is_served(target)
    log = target.log_text()
    assert log.count('how="nobody saw how"') == 1
    assert log.count('how="killed by SIGKILL"') == 1


async def test_it_ends_with_the_supervisor(proxy: StartProxy) -> None:
    target = proxy(workers=1)
    nursery = nursery_of(target)
    target.process.send_signal(signal.SIGKILL)
    await eventually(lambda: not nursery.is_running() or nursery.status() == psutil.STATUS_ZOMBIE, 5)

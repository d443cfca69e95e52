"""The nursery: workers are forked by it, and serve on, and come back, without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pilotwire.nursery import Nursery, NurseryLostError
from tests.conftest import StartProxy
from tests.support.ports import free_port
from tests.support.postgres import Postgres
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
    await asyncio.to_thread(target.wait_log, f'worker_died worker=0 how="killed by {signal.Signals.SIGKILL.name}"')
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
    await asyncio.to_thread(target.wait_log, 'how="killed by SIGKILL"')
    log = target.log_text()
    assert log.count("nursery_lost") == 1
    assert log.count('how="nobody saw how"') == 1
    assert log.count('how="killed by SIGKILL"') == 1


async def test_it_ends_with_the_supervisor(proxy: StartProxy) -> None:
    target = proxy(workers=1)
    nursery = nursery_of(target)
    target.process.send_signal(signal.SIGKILL)
    await eventually(lambda: not nursery.is_running() or nursery.status() == psutil.STATUS_ZOMBIE, 5)


async def test_connections_of_all_workers_have_ids_of_their_own(proxy: StartProxy) -> None:
    """Though the workers are copies of one process, and one that comes back is too."""
    target = proxy(workers=2)
    clients = []
    while len({line.split()[2] for line in logins(target)}) < 2:
        clients.append(await WireClient.connect(target))
        await asyncio.sleep(0.02)
    for client in clients:
        client.reset()
    for pid in target.workers():
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: target.log_text().count("worker_restarted") == 2)
    before = len(logins(target))
    for _ in range(6):
        assert await is_served(target)
    await eventually(lambda: len(logins(target)) == before + 6)
    ids = [re.findall(r" id=(\S+)", line)[0] for line in logins(target)]
    assert len(set(ids)) == len(ids)


def logins(target: Proxy) -> list[str]:
    return [line for line in target.log_text().splitlines() if " login " in line]


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
async def test_with_its_outputs_closed(postgres: Postgres, closed: str, tmp_path: Path) -> None:
    port, admin = free_port(), free_port()
    command = [
        sys.executable, "-m", "pilotwire", "serve", "--upstream", postgres.dsn(),
        "--store", "none", "--evidence", "none", "--auth", "trust",
        "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}",
    ]  # fmt: skip
    with subprocess.Popen(  # noqa: ASYNC220
        ["sh", "-c", f"exec {shlex.join(command)} {closed}"], env={**os.environ, "PILOTWIRE_STATE_DIR": str(tmp_path)}
    ) as process:

        async def connected() -> WireClient | None:
            assert process.poll() is None
            with contextlib.suppress(OSError):
                return await WireClient.connect(SimpleNamespace(host="127.0.0.1", port=port))
            return None

        client = await eventually(connected, 30)
        assert client is not None
        assert await client.value("select 3") == "3"
        client.reset()
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("nursery" in " ".join(child.cmdline()) for child in children)
        process.kill()
        await eventually(lambda: not [one for one in children if one.is_running() and one.status() != "zombie"], 10)


@pytest.fixture
def talk() -> Iterator[tuple[Nursery, socket.socket]]:
    """A nursery whose answers the test gives."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    with theirs:
        nursery = Nursery(ours, pid)
        yield nursery, theirs
        nursery.close()


async def test_an_answer_that_was_there_in_time_counts(
    talk: tuple[Nursery, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the supervisor stood still until the time was up."""
    monkeypatch.setattr("pilotwire.nursery.ANSWER_SECONDS", 0.05)
    nursery, theirs = talk
    asked = asyncio.create_task(nursery.reap(7))
    await asyncio.sleep(0.01)
    theirs.send(b'{"status": 3}')
    time.sleep(0.2)  # noqa: ASYNC251
    assert await asked == 3


async def test_no_answer(talk: tuple[Nursery, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotwire.nursery.ANSWER_SECONDS", 0.05)
    nursery, _ = talk
    told: list[str] = []
    nursery.on_lost = told.append
    for _ in range(2):
        with pytest.raises(NurseryLostError):
            await nursery.reap(7)
    assert told == ["it did not answer for 0.05 s"]
    with pytest.raises(ProcessLookupError):
        os.kill(nursery.pid, 0)


async def test_sockets_are_read_when_the_turn_has_come(talk: tuple[Nursery, socket.socket]) -> None:
    """A drain may close them while another worker is being forked: what has their numbers then is not ours to give."""
    nursery, theirs = talk
    open_then: list[int] = [theirs.fileno()]
    first = asyncio.create_task(nursery.reap(7))
    second = asyncio.create_task(nursery.fork(0, theirs.fileno(), lambda: open_then))
    await asyncio.sleep(0.01)
    open_then = []
    theirs.recv(4096)
    theirs.send(b'{"status": 0}')
    await first
    await asyncio.sleep(0.01)
    data, fds, _, _ = socket.recv_fds(theirs, 4096, 10)
    assert json.loads(data)["fds"] == [theirs.fileno()]
    assert len(fds) == 1
    os.close(fds[0])
    theirs.send(b'{"refused": "no more processes"}')
    with pytest.raises(NurseryLostError, match="no more processes"):
        await second

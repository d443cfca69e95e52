"""Handing the sockets over to a new process with clients connected, connecting and cancelling."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from pilotwire.errors import StartError
from pilotwire.handover import VERSION, ControlSocket, ask_for_sockets
from pilotwire.listening import Listening, bind
from proxy.control import encode
from proxy.dsn import parse_listen
from proxy.wire.messages import ready_for_query, startup_message
from tests.pilotwire.test_supervisor import assert_none_fell, counters, restarted
from tests.support.proxy import AnyProcess, Proxy
from tests.support.waiting import eventually, wait_until

StartProxy = Callable[..., Proxy]
HAND_OVERS = 4
OPENED = 'pilotwire_backends_opened_total{how="pool"}'


def take_over(target: Proxy) -> AnyProcess:
    """Starts a successor, waits until it has taken over, and returns the old process, which drains."""
    old = target.process
    new = target.start("--takeover")
    target.process = new

    def done() -> bool:
        assert new.poll() is None, target.log_text()
        return f"took_over from_pid={old.pid}" in target.log_text()

    wait_until(done, 30, "the new process has taken over")
    return old


def opened_more_than(target: Proxy, floor: float) -> bool:
    return target.metrics()[OPENED] > floor


async def test_clients_stay_and_new_ones_are_served_by_the_new_process(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(control_socket=str(tmp_path / "control"), workers=2, drain_timeout=110)
    await asyncio.to_thread(wait_until, (tmp_path / "control").exists)
    assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o600
    staying = await asyncpg.connect(target.dsn())
    backend = await staying.fetchval("select pg_backend_pid()")
    before = await asyncio.to_thread(counters, target)
    old = await asyncio.to_thread(take_over, target)
    assert await staying.fetchval("select pg_backend_pid()") == backend
    fresh = await asyncpg.connect(target.dsn())
    assert await fresh.fetchval("select 1") == 1
    assert old.poll() is None
    await staying.close()
    assert await asyncio.to_thread(old.wait, 20) == 0
    await asyncio.to_thread(target.wait_log, f"predecessor_ended pid={old.pid}")
    # What the old process counted up to its end is in the new one's numbers.
    assert_none_fell(before, await asyncio.to_thread(counters, target))
    assert await fresh.fetchval("select 2") == 2
    await fresh.close()


async def test_no_counter_falls_at_any_moment_of_a_hand_over(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(control_socket=str(tmp_path / "control"), workers=2, drain_timeout=110)
    os.kill((await asyncio.to_thread(target.workers))[0], signal.SIGKILL)
    await eventually(partial(restarted, target, 1))
    await eventually(lambda: target.metrics()["pilotwire_workers_ready"] == 2)
    staying = await asyncpg.connect(target.dsn())
    for _ in range(20):
        await staying.fetchval("select 1")
    enough = asyncio.Event()

    async def scrape() -> None:
        before = await asyncio.to_thread(counters, target)
        while not enough.is_set():
            after = await asyncio.to_thread(counters, target)
            assert_none_fell(before, after)
            before = after
        assert before["pilotwire_worker_restarts_total"] == 1

    scraping = [asyncio.create_task(scrape()) for _ in range(4)]
    drained = [await asyncio.to_thread(take_over, target) for _ in range(2)]
    await asyncio.to_thread(target.wait_log, f"serving listen={target.host}:{target.port} admin")
    await staying.close()
    for old in drained:
        assert await asyncio.to_thread(old.wait, 20) == 0
    enough.set()
    await asyncio.gather(*scraping)


async def test_pgbench_and_a_long_connection_see_no_error(proxy: StartProxy, tmp_path: Path) -> None:
    """`pgbench -C` makes a connection for each transaction, so that some are in the queue at every hand-over."""
    target = proxy(control_socket=str(tmp_path / "control"), workers=2, drain_timeout=110)
    script = tmp_path / "script.sql"
    script.write_text("select 1;\n")
    long = await asyncpg.connect(target.dsn())
    pgbench = subprocess.Popen(  # noqa: ASYNC220
        [
            str(target.postgres.bin("pgbench")),
            *("-n", "-C", "-c", "4", "-T", "600", "-f", str(script)),
            *("-h", target.host, "-p", str(target.port), "-U", target.postgres.user, "postgres"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = 0.0
    drained: list[AnyProcess] = []
    try:
        for _ in range(HAND_OVERS):
            old = await asyncio.to_thread(take_over, target)
            before = target.metrics()[OPENED]
            assert await long.fetchval("select 42") == 42
            # Work went on through the new process before the next one comes.
            await eventually(partial(opened_more_than, target, before + 5), 30)
            served = target.metrics()[OPENED]
            drained.append(old)
            assert pgbench.poll() is None, pgbench.communicate()
    finally:
        pgbench.send_signal(signal.SIGINT)
        _, said = await asyncio.to_thread(pgbench.communicate, timeout=30)
    print(f"hand-overs: {HAND_OVERS}, connections made: {served:g}, pgbench said: {said!r}")
    assert "error" not in said.lower()
    assert "fatal" not in said.lower()
    assert served > HAND_OVERS * 5
    assert await long.fetchval("select 43") == 43
    # The first of them served the long connection to its end, the others theirs.
    assert drained[0].poll() is None
    await long.close()
    for old in drained:
        assert await asyncio.to_thread(old.wait, 30) == 0


def test_who_is_logging_in_at_the_hand_over_gets_in(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(control_socket=str(tmp_path / "control"), drain_timeout=110)
    packet = startup_message({"user": target.postgres.user, "database": "postgres"})
    with socket.create_connection((target.host, target.port), 20) as client:
        # The old process has accepted this one and waits for the rest of its start-up message.
        client.sendall(packet[:6])
        old = take_over(target)
        client.sendall(packet[6:])
        said = b""
        while not said.endswith(ready_for_query()):
            data = client.recv(4096)
            assert data, f"the connection was closed after {said!r}"
            said += data
        assert said.startswith(b"R")
        assert old.poll() is None
    assert old.wait(20) == 0


async def test_a_cancel_goes_back_to_the_process_that_drains(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(control_socket=str(tmp_path / "control"), pool_mode="transaction", drain_timeout=110)
    connection = await asyncpg.connect(target.dsn(), statement_cache_size=0)
    # Two hand-overs: the key must find its way through the process in between.
    oldest = await asyncio.to_thread(take_over, target)
    middle = await asyncio.to_thread(take_over, target)
    sleeping = asyncio.create_task(connection.fetchval("select pg_sleep(59)"))
    running = "select count(*) from pg_stat_activity where state = 'active' and query ~ 'sleep.59.$'"
    await eventually(lambda: target.postgres.sql(running) == "1")
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    await eventually(lambda: target.postgres.sql(running) == "0")
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    assert await asyncio.to_thread(oldest.wait, 20) == 0
    assert await asyncio.to_thread(middle.wait, 20) == 0


async def test_a_successor_that_fails_leaves_the_old_process_serving(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(control_socket=str(tmp_path / "control"))
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        failed = await asyncio.to_thread(target.start, "--takeover", "--listen", taken)
        assert await asyncio.to_thread(failed.wait, 30) == 1
    await asyncio.to_thread(target.wait_log, "takeover_abandoned")
    connection = await asyncpg.connect(target.dsn())
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    # And it can still be taken over from.
    old = await asyncio.to_thread(take_over, target)
    assert await asyncio.to_thread(old.wait, 20) == 0


async def test_what_was_switched_holds_in_both_processes(proxy: StartProxy, tmp_path: Path) -> None:
    """An upgrade must not undo a kill switch, nor a pause; and what is switched while the old process drains is
    switched in it too."""
    target = proxy(control_socket=str(tmp_path / "control"), workers=1, drain_timeout=110, mode="on")
    staying = await asyncpg.connect(target.dsn())
    target.signal(signal.SIGUSR2)
    await asyncio.to_thread(target.wait_log, "mode_set before=on mode=off")
    old = await asyncio.to_thread(take_over, target)
    status, text = await asyncio.to_thread(target.http, "/api/mode")
    assert (status, json.loads(text)["mode"]) == (200, "off")
    await asyncio.to_thread(target.wait_log, "mode_inherited")
    target.signal(signal.SIGUSR2)
    await asyncio.to_thread(target.wait_log, "mode_set before=off mode=on")
    # Who still drains goes by it.
    await eventually(lambda: target.log_text().count("mode_inherited") == 2, 10)
    await staying.close()
    assert await asyncio.to_thread(old.wait, 20) == 0


def test_without_takeover_a_control_socket_in_use_is_refused(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(control_socket=str(tmp_path / "control"))
    second = target.start("--listen", "127.0.0.1:0", "--admin", "")
    assert second.wait(30) == 1
    target.wait_log(f"control_socket: {tmp_path / 'control'} is taken")
    assert target.http_status("/readyz") == 200


def test_takeover_with_nobody_there_starts_afresh(proxy: StartProxy, tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "control"))
    stale.close()
    target = proxy(control_socket=str(tmp_path / "control"), arguments=("--takeover",))
    target.wait_log("takeover_nobody")


def test_a_socket_of_another_user_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, 12345)
        with pytest.raises(StartError, match="not a socket of this user"):
            ask_for_sockets(str(path))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xff\xff\xff",
        encode({"kind": "sockets", "version": VERSION + 1, "pid": 1, "sockets": [], "worker_ids": []}),
        encode({"kind": "sockets", "version": VERSION, "pid": 1, "sockets": [{}], "worker_ids": []}),
        encode({"kind": "else"}),
    ],
)
def test_an_answer_that_is_none_is_a_start_error(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "control"
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True);"
        "c,_=s.accept(); c.sendall(bytes.fromhex(sys.argv[2])); c.close()"
    )
    command = [sys.executable, "-c", script, str(path), answer.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StartError, match="did not hand its sockets over"):
            ask_for_sockets(str(path))


async def test_sockets_pass_with_their_names_and_roles(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    listen, admin = bind(parse_listen("127.0.0.1:0"), 16), bind(parse_listen("127.0.0.1:0"), 16)
    links: list[socket.socket] = []
    control = ControlSocket(path, lambda: ([("listen", listen), ("admin", admin)], [3, 4]), links.append, pytest.fail)
    control.open(replace=False)
    received = await asyncio.to_thread(ask_for_sockets, path)
    assert received is not None
    assert received.worker_ids == {3, 4}
    assert received.pid == os.getpid()
    assert received.listen["127.0.0.1:0"].address == listen.address
    assert received.admin["127.0.0.1:0"].address == admin.address
    control.close()
    assert ask_for_sockets(path) is None
    given: list[Listening] = [listen, admin, *received.listen.values(), *received.admin.values()]
    for entry in given:
        entry.close(keep_file=False)
    for link in (received.link, *links):
        link.close()

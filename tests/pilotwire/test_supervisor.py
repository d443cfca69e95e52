"""The supervisor with real processes and signals: restart, counters, drain, reload, refusing to start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually, wait_until

StartProxy = Callable[..., Proxy]
StartPostgres = Callable[..., Postgres]


async def connect(target: Proxy) -> asyncpg.Connection:
    return await asyncpg.connect(target.dsn(), statement_cache_size=0, timeout=20)


def counters(target: Proxy) -> dict[str, float]:
    """The samples that must never fall."""
    return {
        name: value
        for name, value in target.metrics().items()
        if (name.startswith("pilotwire_") and name.endswith(("_total", "_count", "_sum"))) or "_total{" in name
    }


def assert_none_fell(before: dict[str, float], after: dict[str, float]) -> None:
    assert before
    fallen = {name: (value, after.get(name)) for name, value in before.items() if after.get(name, -1.0) < value}
    assert not fallen


def restarted(target: Proxy, times: int) -> bool:
    return target.metrics()["pilotwire_worker_restarts_total"] >= times


async def test_clients_are_served_and_counted(proxy: StartProxy) -> None:
    target = proxy(workers=2)
    connection = await connect(target)
    assert await connection.fetchval("select 41 + 1") == 42
    before = await asyncio.to_thread(target.metrics)
    assert before["pilotwire_clients_current"] == 1
    assert before["pilotwire_workers_ready"] == 2
    await connection.close()
    await eventually(lambda: target.metrics()["pilotwire_clients_current"] == 0)
    memory = {name: value for name, value in target.metrics().items() if "resident" in name}
    assert len(memory) == 3
    assert min(memory.values()) > 5_000_000


async def test_a_killed_worker_is_started_again_and_no_counter_falls(proxy: StartProxy) -> None:
    target = proxy(workers=2)
    for round_ in range(3):
        for _ in range(4):
            connection = await connect(target)
            await connection.fetchval("select 1")
            await connection.close()
        before = await asyncio.to_thread(counters, target)
        victim = (await asyncio.to_thread(target.workers))[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(partial(restarted, target, round_ + 1))
        await eventually(lambda: target.metrics()["pilotwire_workers_ready"] == 2)
        assert_none_fell(before, await asyncio.to_thread(counters, target))
        assert victim not in target.workers()
    await asyncio.to_thread(target.wait_log, "killed by SIGKILL")


async def test_clients_of_other_workers_do_not_notice_a_killed_one(proxy: StartProxy) -> None:
    target = proxy(workers=2)
    connections: list[asyncpg.Connection] = []

    def by_worker() -> dict[int, int]:
        return {
            pid: sum(
                entry.status == psutil.CONN_ESTABLISHED and entry.laddr.port == target.port
                for entry in psutil.Process(pid).net_connections("tcp")
            )
            for pid in target.workers()
        }

    try:
        while len(connections) < 100 and 0 in by_worker().values():
            connections.append(await connect(target))
        spread = by_worker()
        assert 0 not in spread.values(), "one worker took all clients"
        victim = min(spread, key=lambda pid: spread[pid])
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: sum(connection.is_closed() for connection in connections) == spread[victim])
        for connection in connections:
            if not connection.is_closed():
                assert await connection.fetchval("select 7") == 7
    finally:
        await asyncio.gather(*(connection.close(timeout=5) for connection in connections))


async def test_sigterm_serves_the_connected_until_they_leave(proxy: StartProxy) -> None:
    target = proxy(drain_timeout=30, workers=2)
    connection = await connect(target)
    await connection.execute("begin")
    target.signal(signal.SIGTERM)
    await asyncio.to_thread(target.wait_log, "stopping")
    assert await connection.fetchval("select 42") == 42
    await connection.execute("commit")
    assert await connection.fetchval("select 43") == 43
    await eventually(lambda: not _accepts(target))
    assert target.http_status("/readyz") == 503
    assert target.http_status("/healthz") == 200
    assert target.process.poll() is None
    await connection.close()
    assert await asyncio.to_thread(target.process.wait, 20) == 0


async def test_after_the_drain_timeout_clients_get_57p01_outside_a_transaction(proxy: StartProxy) -> None:
    target = proxy(drain_timeout=0.5)
    idle, busy = await connect(target), await connect(target)
    notices: list[object] = []
    busy.add_termination_listener(notices.append)
    await busy.execute("begin")
    target.signal(signal.SIGTERM)
    await eventually(idle.is_closed)
    # Still inside its transaction, well after the limit.
    assert await busy.fetchval("select pg_sleep(0.5) is not null") is True
    assert not busy.is_closed()
    await busy.execute("commit")
    await eventually(busy.is_closed)
    assert await asyncio.to_thread(target.process.wait, 20) == 0


async def test_a_second_sigterm_ends_at_once(proxy: StartProxy) -> None:
    target = proxy(drain_timeout=300)
    connection = await connect(target)
    await connection.execute("begin")
    target.signal(signal.SIGTERM)
    await asyncio.to_thread(target.wait_log, "stopping")
    target.signal(signal.SIGTERM)
    assert await asyncio.to_thread(target.process.wait, 10) == 0
    await eventually(connection.is_closed)


async def test_a_killed_supervisor_leaves_nothing_behind(proxy: StartProxy) -> None:
    target = proxy(drain_timeout=3, workers=2)
    workers = target.workers()
    connection = await connect(target)
    os.kill(target.process.pid, signal.SIGKILL)
    await asyncio.to_thread(target.process.wait)
    await eventually(lambda: not _accepts(target))
    # Who is connected may finish.
    assert await connection.fetchval("select 42") == 42
    await connection.close()
    await eventually(lambda: not any(_runs(pid) for pid in workers), 15)


async def test_a_killed_supervisors_workers_end_clients_that_stay(proxy: StartProxy) -> None:
    target = proxy(drain_timeout=0.5)
    workers = target.workers()
    connection = await connect(target)
    os.kill(target.process.pid, signal.SIGKILL)
    await asyncio.to_thread(target.process.wait)
    await eventually(connection.is_closed)
    await eventually(lambda: not any(_runs(pid) for pid in workers), 15)


async def test_a_cancel_reaches_the_worker_that_its_key_names(proxy: StartProxy) -> None:
    target = proxy(workers=3, pool_mode="transaction")
    connection = await connect(target)
    for _ in range(8):
        # Each cancel request is a connection of its own and lands on any of the workers.
        sleeping = asyncio.create_task(connection.fetchval("select pg_sleep(60)"))
        await eventually(
            lambda: (
                target.postgres.sql(
                    "select count(*) from pg_stat_activity where state = 'active' and query ~ 'sleep.60.$'"
                )
                == "1"
            )
        )
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert await connection.fetchval("select 1") == 1
    await connection.close()


def test_sighup_applies_what_it_can_and_tells_the_rest(proxy: StartProxy) -> None:
    target = proxy()
    target.write_config(log_level="debug", pool_mode="transaction")
    target.signal(signal.SIGHUP)
    target.wait_log("reload_needs_restart")
    log = target.log_text()
    assert "changed=log_level" in log
    assert "settings=pool_mode" in log
    target.write_config(pool_size=-1)
    target.signal(signal.SIGHUP)
    target.wait_log("reload_failed")
    assert target.http_status("/readyz") == 200


async def test_sighup_sends_existing_pools_to_another_upstream(
    proxy: StartProxy, start_postgres: StartPostgres
) -> None:
    """Pools of transaction mode live as long as their clients: what they open next must know the new settings."""
    first, second = start_postgres(), start_postgres()
    target = proxy(first, pool_mode="transaction", workers=1)
    client = await asyncpg.connect(target.dsn(), statement_cache_size=0)
    assert await client.fetchval("show port") == str(first.port)
    target.write_config(upstream=second.dsn())
    target.signal(signal.SIGHUP)
    target.wait_log("changed=upstream")
    first.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    await eventually(lambda: target.metrics()["pilotwire_backends_closed_total"] >= 1)
    assert await client.fetchval("show port") == str(second.port)
    await client.close()


def test_a_taken_port_is_one_line_and_exit_status_1(postgres: Postgres, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        ended = _serve(postgres.dsn(), "--listen", taken, "--auth", "trust")
    assert ended.returncode == 1
    assert "is taken" in ended.stderr
    assert taken in ended.stderr
    assert len(_errors(ended)) == 1


def test_an_unreachable_upstream_is_one_line_and_exit_status_1() -> None:
    ended = _serve(f"postgresql://nobody@127.0.0.1:{free_port()}/db", "--listen", "127.0.0.1:0", "--auth", "trust")
    assert ended.returncode == 1
    assert "cannot reach the upstream" in ended.stderr
    assert "the connection was refused" in ended.stderr
    assert len(_errors(ended)) == 1


def test_an_upstream_that_refuses_the_login_is_one_line(postgres: Postgres) -> None:
    dsn = postgres.dsn("no_such_database")
    ended = _serve(dsn, "--listen", "127.0.0.1:0", "--auth", "trust")
    assert ended.returncode == 1
    assert "no_such_database" in ended.stderr
    assert len(_errors(ended)) == 1


def test_ctrl_c_during_the_start_ends_quietly(postgres: Postgres) -> None:
    command = [*_command(postgres.dsn()), "--listen", "127.0.0.1:0", "--auth", "trust"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: psutil.Process(process.pid).children(), 20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    assert process.returncode == 0


async def test_a_unix_socket_replaces_a_stale_one_and_goes_at_the_end(proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.6432"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    target = proxy(listen=[str(path)])
    connection = await asyncpg.connect(host=str(tmp_path), port=6432, user=target.postgres.user, database="postgres")
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    assert await asyncio.to_thread(target.stop) == 0
    assert not path.exists()


def test_sockets_given_by_systemd_are_served(postgres: Postgres) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        address = given.getsockname()
        # What systemd does: the socket becomes descriptor 3, and the variables name the process that gets it.
        script = "import os,sys; os.environ['LISTEN_PID']=str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
        command = [
            sys.executable,
            "-c",
            script,
            *_command(postgres.dsn()),
            "--listen",
            "127.0.0.1:1",
            "--auth",
            "trust",
        ]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{given.fileno()}', "bash", *command],
            env={**os.environ, "LISTEN_FDS": "1"},
            pass_fds=[given.fileno()],
            stderr=subprocess.PIPE,
        )
    try:

        async def ask() -> object:
            connection = await asyncpg.connect(
                host=address[0], port=address[1], user=postgres.user, database="postgres", timeout=30
            )
            try:
                return await connection.fetchval("select 1")
            finally:
                await connection.close()

        assert asyncio.run(ask()) == 1
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def _accepts(target: Proxy) -> bool:
    try:
        socket.create_connection((target.host, target.port), 1).close()
    except OSError:
        return False
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _errors(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said, without the warnings about settings that come before."""
    return [line for line in ended.stderr.splitlines() if " WARNING " not in line]


def _command(upstream: str) -> list[str]:
    return [sys.executable, "-m", "pilotwire", "serve", "--upstream", upstream, "--admin", f"127.0.0.1:{free_port()}"]


def _serve(upstream: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_command(upstream), *arguments], capture_output=True, text=True, timeout=60, check=False)

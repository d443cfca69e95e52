"""The administration database from psql and asyncpg, against a real proxy and server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from proxy.console_db.commands import SHOWN
from tests.conftest import StartPostgres, StartProxy
from tests.pilotwire.test_handover import take_over
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

SECRETS = ("planted-upstream", "planted-admin-token", "planted-password", "planted-reader")


def run(proxy: Proxy, sql: str, user: str = "postgres", *options: str, password: str = "planted-password") -> str:
    """psql's output, errors included."""
    done = start(proxy, sql, user, *options, password=password)
    out, _ = done.communicate(timeout=20)
    return out


def start(
    proxy: Proxy, sql: str, user: str = "postgres", *options: str, password: str = "planted-password"
) -> subprocess.Popen[str]:
    command = ["psql", "-XAt", "-v", "VERBOSITY=verbose", *options, "-c", sql, proxy.dsn("pilotwire", user=user)]
    environment = {**os.environ, "PGPASSWORD": password}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, env=environment
    )


async def shown(proxy: Proxy, sql: str, until: Callable[[str], bool], user: str = "postgres") -> str:
    """What `sql` shows once `until` holds of it: what was sent a moment ago is on its way."""

    text = ""

    async def seen() -> bool:
        nonlocal text
        text = await asyncio.to_thread(run, proxy, sql, user, password=SECRETS[0])
        return until(text)

    try:
        await eventually(seen)
    except TimeoutError:
        raise TimeoutError(f"{sql} shows something else: {text}") from None
    return text


@pytest.fixture(scope="module")
def pooled(module_proxy: StartProxy, tmp_path_factory: pytest.TempPathFactory) -> Proxy:
    """In transaction mode, with two workers, secrets planted everywhere, one reader and one stranger.

    (The DSN's password counts before the users file; the server trusts everybody.)"""
    users = tmp_path_factory.mktemp("users") / "users.txt"
    users.touch(mode=0o600)
    users.write_text('"postgres" "planted-password"\n"reader" "planted-reader"\n"stranger" "planted-reader"\n')
    return module_proxy(
        auth="scram-sha-256", users_file=str(users), upstream_password="planted-upstream", workers=2,
        admin_token="planted-admin-token", pool_mode="transaction", stats_users=["reader"], admin_users=["postgres"],
    )  # fmt: skip


def test_psql_sees_every_table(pooled: Proxy) -> None:
    wanted = [name.upper() for name in SHOWN if name != "memory"]
    output = run(pooled, "; ".join(f"SHOW {name}" for name in wanted), password=SECRETS[0])
    assert "ERROR" not in output
    assert "pilotwire 0." in output
    assert "pool_mode|transaction|session|no" in output
    assert "SHOW MEMORY" in output
    # There is no store here, and that is said.
    assert "ERROR:  55000" in run(pooled, "SHOW MEMORY", password=SECRETS[0])


def test_no_secret_is_ever_shown(pooled: Proxy) -> None:
    output = run(pooled, "SHOW CONFIG; SHOW CLIENTS; SHOW STATS; SHOW upstream_password", password=SECRETS[0])
    output += run(pooled, "SET upstream_password = 'planted-upstream-2'", password=SECRETS[0])
    assert "ERROR:  22023: upstream_password can be changed in the configuration only" in output
    assert "upstream_password|********" in output
    for secret in SECRETS:
        assert secret not in output
        assert secret not in pooled.log_text()


def test_only_those_named_get_in_and_readers_only_read(pooled: Proxy) -> None:
    reader = {"password": "planted-reader"}
    assert "pilotwire 0." in run(pooled, "SHOW VERSION", "reader", **reader)
    for command in ("RELOAD", "PAUSE", "RESUME postgres", "KILL 0.1", "SET mode = off"):
        assert "ERROR:  42501: permission denied" in run(pooled, command, "reader", **reader)
    assert "permission denied for the administration database" in run(pooled, "SHOW VERSION", "stranger", **reader)
    assert "password authentication failed" in run(pooled, "SHOW VERSION", "reader", password="wrong")


def test_what_is_not_understood_is_refused_and_the_connection_goes_on(pooled: Proxy) -> None:
    output = run(pooled, "SELECT 1", "postgres", "-c", "SHOW WEATHER", "-c", "SHOW VERSION", password=SECRETS[0])
    assert 'ERROR:  42601: syntax error at or near "SELECT"' in output
    assert "ERROR:  42704" in output
    assert "pilotwire 0." in output


async def test_the_extended_protocol_is_refused_politely(pooled: Proxy) -> None:
    connection = await asyncpg.connect(pooled.dsn("pilotwire", password=SECRETS[0]))
    try:
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await connection.fetch("SHOW VERSION")
        assert await connection.execute("SHOW VERSION") == "SHOW"
    finally:
        await connection.close()


async def test_a_client_is_listed_and_killed(pooled: Proxy) -> None:
    client = await asyncpg.connect(pooled.dsn(password=SECRETS[0]), server_settings={"application_name": "the victim"})
    sleeping = asyncio.create_task(client.execute("SELECT pg_sleep(60)"))
    listed = await shown(pooled, "SHOW CLIENTS", lambda text: "|active|" in text)
    (line,) = [line for line in listed.splitlines() if "the victim" in line]
    cells = line.split("|")
    assert cells[3] == "active"
    assert cells[0] in await asyncio.to_thread(run, pooled, "SHOW SERVERS", password=SECRETS[0])
    await asyncio.to_thread(pooled.wait_log, cells[-1])  # the name of the connection in the log
    assert await asyncio.to_thread(run, pooled, f"KILL {cells[0]}", password=SECRETS[0]) == "KILL\n"
    with pytest.raises(asyncpg.PostgresError):
        await asyncio.wait_for(sleeping, 10)
    assert f"there is no client {cells[0]}" in await asyncio.to_thread(
        run, pooled, f"KILL {cells[0]}", password=SECRETS[0]
    )


async def test_pause_lets_transactions_end_and_new_ones_wait(pooled: Proxy) -> None:
    """The server may even be restarted meanwhile: nobody notices more than the time it takes."""
    admin = "postgres"
    clients = [await asyncpg.connect(pooled.dsn(password=SECRETS[0])) for _ in range(4)]
    busy = clients[0].transaction()
    await busy.start()
    pause = await asyncio.to_thread(start, pooled, "PAUSE", admin, password=SECRETS[0])
    try:
        await asyncio.to_thread(pooled.wait_log, "paused database=all")
        waiting = [asyncio.create_task(client.fetchval("SELECT 40 + 2")) for client in clients[1:]]
        # The transaction goes on, and PAUSE waits for it.
        assert await clients[0].fetchval("SELECT 1") == 1
        assert pause.poll() is None
        await busy.commit()
        assert (await asyncio.to_thread(pause.communicate, None, 10))[0] == "PAUSE\n"
        # While a server connection is there, its greeting is known, and a newcomer waits with its first statement only.
        newcomer = asyncio.create_task(asyncpg.connect(pooled.dsn(password=SECRETS[0])))
        four_wait = ["4", "0", "0", "0"]  # and there is no server connection
        listed = await shown(
            pooled, "SHOW POOLS", lambda text: text.splitlines()[0].split("|")[3:7] == four_wait, admin
        )
        assert listed.splitlines()[0].split("|")[3:7] == four_wait
        assert listed.count("|1\n") == 1
        assert not any(task.done() for task in waiting)
        assert await asyncio.to_thread(run, pooled, "RESUME", admin, password=SECRETS[0]) == "RESUME\n"
        assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [42, 42, 42]
        clients.append(await asyncio.wait_for(newcomer, 10))
    finally:
        pause.kill()
        await asyncio.to_thread(run, pooled, "RESUME", admin, password=SECRETS[0])
        for client in clients:
            await client.close()


async def test_one_database_is_paused_and_waiting_has_no_end_of_its_own(pooled: Proxy, postgres: Postgres) -> None:
    pooled.write_config(queue_timeout=0.5, queue_limit=1)
    said = await asyncio.to_thread(run, pooled, "RELOAD", password=SECRETS[0])
    assert said == "NOTICE:  00000: changed: queue_limit, queue_timeout\nRELOAD\n"
    clients = [await asyncpg.connect(pooled.dsn(password=SECRETS[0])) for _ in range(4)]
    another = postgres.create_database()  # template1 must stay free: others are made from it meanwhile
    other = await asyncpg.connect(pooled.dsn(another, password=SECRETS[0]))
    try:
        assert await asyncio.to_thread(run, pooled, 'PAUSE "postgres"', password=SECRETS[0]) == "PAUSE\n"
        waiting = [asyncio.create_task(client.fetchval("SELECT 1")) for client in clients]
        assert await other.fetchval("SELECT 2") == 2
        await asyncio.sleep(1.8)
        assert not any(task.done() for task in waiting)
        assert "postgres|" in await asyncio.to_thread(run, pooled, "SHOW DATABASES", password=SECRETS[0])
        assert await asyncio.to_thread(run, pooled, "RESUME postgres", password=SECRETS[0]) == "RESUME\n"
        assert await asyncio.gather(*waiting) == [1, 1, 1, 1]
    finally:
        pooled.write_config(queue_timeout=30, queue_limit=1000)
        await asyncio.to_thread(run, pooled, "RESUME; RELOAD", password=SECRETS[0])
        for client in (*clients, other):
            await client.close()
        postgres.drop_database(another)


async def test_a_pause_that_waits_can_be_cancelled_and_holds(pooled: Proxy) -> None:
    client = await asyncpg.connect(pooled.dsn(password=SECRETS[0]))
    pause = None
    try:
        async with client.transaction():
            await client.fetchval("SELECT 1")
            before = pooled.log_text().count("paused database=all")
            pause = await asyncio.to_thread(start, pooled, "PAUSE", password=SECRETS[0])
            await eventually(lambda: pooled.log_text().count("paused database=all") > before, what="the pause begins")
            pause.send_signal(signal.SIGINT)
            said, _ = await asyncio.to_thread(pause.communicate, None, 10)
            assert "ERROR:  57014: canceling statement due to user request" in said
        waits = asyncio.create_task(client.fetchval("SELECT 1"))
        await asyncio.sleep(0.2)
        assert not waits.done()
        await asyncio.to_thread(run, pooled, "RESUME", password=SECRETS[0])
        assert await waits == 1
    finally:
        await asyncio.to_thread(run, pooled, "RESUME", password=SECRETS[0])
        await client.close()


async def test_it_can_be_reached_when_no_other_client_can(pooled: Proxy) -> None:
    pooled.write_config(max_clients=1)
    clients: list[asyncpg.Connection] = []

    async def fill() -> None:
        while True:
            clients.append(await asyncpg.connect(pooled.dsn(password=SECRETS[0])))

    try:
        assert "max_clients" in await asyncio.to_thread(run, pooled, "RELOAD", password=SECRETS[0])
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await fill()
        # In every worker, whichever takes the connection.
        for _ in range(4):
            assert "pilotwire 0." in await asyncio.to_thread(run, pooled, "SHOW VERSION", password=SECRETS[0])
        for client in clients:
            await client.close()
    finally:
        pooled.write_config(max_clients=10000)
        await asyncio.to_thread(run, pooled, "RELOAD", password=SECRETS[0])


async def test_in_session_mode_new_logins_wait(proxy: StartProxy) -> None:
    started = proxy(workers=1)
    early = await asyncpg.connect(started.dsn())
    try:
        assert "1 server connections stay" in await asyncio.to_thread(run, started, "PAUSE")
        late = asyncio.create_task(asyncpg.connect(started.dsn()))
        assert await early.fetchval("SELECT 1") == 1
        await asyncio.sleep(0.3)
        assert not late.done()
        # A worker that is started again still keeps them waiting.
        os.kill(started.workers()[0], signal.SIGKILL)
        started.wait_log("worker_restarted")
        with pytest.raises((OSError, asyncpg.PostgresError)):
            await late
        late = asyncio.create_task(asyncpg.connect(started.dsn()))
        await asyncio.sleep(0.3)
        assert not late.done()
        assert await asyncio.to_thread(run, started, "RESUME") == "RESUME\n"
        client = await asyncio.wait_for(late, 10)
        assert await client.fetchval("SELECT 1") == 1
        await client.close()
    finally:
        early.terminate()


async def test_set_mode_and_others(pooled: Proxy) -> None:
    def said(sql: str) -> str:
        return run(pooled, sql, password=SECRETS[0])

    assert said("SET mode = observe; SHOW mode") == "SET\nobserve\n"
    assert "ERROR:  22023" in said("SET mode = sideways")
    assert said("SET log_slow_ms = 700; SHOW log_slow_ms; SHOW mode; SET mode = on") == "SET\n700\nobserve\nSET\n"
    assert "can be changed in the configuration only" in said("SET auth = trust")
    assert "cannot be changed without a restart" in said("SET pool_mode = session")
    assert "log_slow_ms: " in said("SET log_slow_ms = soon")
    await asyncio.to_thread(pooled.wait_log, "command=SET name=log_slow_ms value=700 outcome=done")


async def test_a_real_database_of_that_name_is_reached_where_ours_is_switched_off(
    pooled: Proxy, postgres: Postgres
) -> None:
    direct = await asyncpg.connect(postgres.dsn())
    await direct.execute("CREATE DATABASE pilotwire")
    pooled.write_config(admin_database="")
    try:
        assert "RELOAD" in await asyncio.to_thread(run, pooled, "RELOAD", password=SECRETS[0])
        client = await asyncpg.connect(pooled.dsn("pilotwire", password=SECRETS[0]))
        assert await client.fetchval("SELECT current_database()") == "pilotwire"
        await client.close()
    finally:
        pooled.write_config(admin_database="pilotwire")
        pooled.signal(signal.SIGHUP)
        await direct.execute("DROP DATABASE pilotwire WITH (FORCE)")
        await direct.close()


@pytest.mark.long
async def test_the_server_is_restarted_and_the_proxy_replaced_behind_a_pause(
    proxy: StartProxy, start_postgres: StartPostgres, tmp_path: Path
) -> None:
    """No client notices more than the time it takes."""
    server = await asyncio.to_thread(start_postgres)
    started = proxy(server, pool_mode="transaction", workers=2, control_socket=str(tmp_path / "control"))
    clients = [await asyncpg.connect(started.dsn()) for _ in range(4)]
    for client in clients:
        await client.fetchval("SELECT 1")
    assert await asyncio.to_thread(run, started, "PAUSE") == "PAUSE\n"
    waiting = [asyncio.create_task(client.fetchval("SELECT 42")) for client in clients[:2]]
    old = await asyncio.to_thread(take_over, started)
    await asyncio.to_thread(server.restart)
    waiting += [asyncio.create_task(client.fetchval("SELECT 42")) for client in clients[2:]]
    late = asyncio.create_task(asyncpg.connect(started.dsn()))
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in (*waiting, late))
    # The new process knows what is paused, and tells the old one when it is not any more.
    assert "|1\n" in await asyncio.to_thread(run, started, "SHOW DATABASES")
    assert await asyncio.to_thread(run, started, "RESUME") == "RESUME\n"
    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [42] * 4
    for client in (*clients, await late):
        await client.close()
    assert await asyncio.to_thread(old.wait, 20) == 0

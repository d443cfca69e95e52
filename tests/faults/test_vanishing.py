"""Clients that vanish without a goodbye, in every state a session can be in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.wire.messages import message, query, startup_message
from tests.faults.conftest import StartProxy
from tests.faults.state import becomes, metric, settled, watch
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.scale import scale
from tests.support.wireclient import WireClient

SYNC = message(b"S", b"")
FLUSH = message(b"H", b"")
State = Callable[[Proxy, str], Awaitable[WireClient]]
STATES: dict[str, State] = {}


def state(make: State) -> State:
    STATES[make.__name__] = make
    return make


@state
async def nothing_said(target: Proxy, database: str) -> WireClient:
    return await WireClient.open(target)


@state
async def half_a_startup_packet(target: Proxy, database: str) -> WireClient:
    client = await WireClient.open(target)
    client.send(startup_message({"user": "postgres", "database": database})[:11])
    return client


@state
async def backend_being_opened(target: Proxy, database: str) -> WireClient:
    client = await WireClient.open(target)
    client.send(startup_message({"user": "postgres", "database": database}))
    await client.until(b"R")
    return client


@state
async def idle(target: Proxy, database: str) -> WireClient:
    return await WireClient.connect(target, database)


@state
async def query_running(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("select pg_sleep(0.3)"))
    return client


@state
async def query_just_sent(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("set statement_timeout = 77000; select 1"))
    return client


@state
async def in_a_transaction(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    await client.query("begin; create table never (n int); set local work_mem = '77MB'")
    return client


@state
async def in_a_failed_transaction(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("begin") + query("select 1/0"))
    await client.until(b"E")
    await client.until(b"Z")
    return client


@state
async def with_settings_and_a_role(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    await client.query("set work_mem = '77MB'")
    await client.query("set role pg_monitor")
    return client


@state
async def header_only(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("select 1")[:5])
    return client


@state
async def half_a_parse(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(message(b"P", b"stmt\0select 1\0\0\0") + message(b"P", b"other\0" + b"x" * 90_000)[:70_000])
    return client


@state
async def batch_without_sync(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(message(b"P", b"\0set work_mem = '77MB'\0\0\0") + message(b"B", b"\0\0\0\0\0\0\0\0") + FLUSH)
    client.send(message(b"E", b"\0\0\0\0\0") + FLUSH)
    await client.until(b"C")
    return client


@state
async def portal_suspended(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(message(b"P", b"\0select generate_series(1, 100)\0\0\0") + message(b"B", b"p\0\0\0\0\0\0\0\0"))
    client.send(message(b"E", b"p\0\0\0\0\5") + FLUSH)
    await client.until(b"s")
    return client


@state
async def error_before_sync(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(message(b"P", b"\0select nonsense\0\0\0") + message(b"B", b"\0\0\0\0\0\0\0\0") + FLUSH)
    await client.until(b"E")
    return client


@state
async def pipeline_unread(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(b"".join(query(f"select {n}, repeat('y', 1000)") for n in range(200)))
    return client


@state
async def large_result_unread(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("select repeat('z', 10000) from generate_series(1, 3000)"))
    await client.until(b"D")
    return client


@state
async def copy_in(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("copy (select 1) to stdout; copy pg_largeobject_metadata from stdin"))
    await client.until(b"G")
    client.send(message(b"d", b"123\t10\t\\N\n")[:8])
    return client


@state
async def copy_out(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    client.send(query("copy (select repeat('w', 1000) from generate_series(1, 30000)) to stdout"))
    await client.until(b"d")
    return client


@state
async def listening(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    await client.query("listen something")
    return client


@state
async def temp_table_and_lock(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    await client.query("create temporary table mine (n int)")
    await client.query("select pg_advisory_lock(4711)")
    return client


@state
async def sql_prepared_and_cursor(target: Proxy, database: str) -> WireClient:
    client = await WireClient.connect(target, database)
    await client.query("prepare mine as select 1")
    await client.query("declare c cursor with hold for select 1")
    return client


UNTOUCHED = (
    "select (select setting = reset_val from pg_settings where name = 'work_mem'),"
    " current_user, current_setting('statement_timeout'), pg_current_xact_id_if_assigned() is null,"
    " (select count(*) from pg_listening_channels()), (select count(*) from pg_prepared_statements where from_sql),"
    " (select count(*) from pg_cursors), (select count(*) from pg_class where relnamespace = pg_my_temp_schema()),"
    " (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),"
    " to_regclass('never') is null, pg_sleep(0.05)"
)
CLEAN = ("t", "postgres", "0", "t", "0", "0", "0", "0", "0", "t", "")


async def look_at_all_backends(target: Proxy, database: str, count: int) -> None:
    """As many clients as there may be backends, at the same time: each must find a session like a new one."""
    clients = [await WireClient.connect(target, database) for _ in range(count)]
    answers = await asyncio.gather(*(client.query(UNTOUCHED) for client in clients))
    assert {answer[0] for answer in answers} == {CLEAN}
    assert {client.status for client in clients} == {"I"}
    for client in clients:
        await client.close()


@pytest.mark.parametrize("repeat", scale(2, 50))
@pytest.mark.parametrize("options", [{}, {"session_reuse": True}, {"pool_mode": "transaction"}], ids=str)
async def test_vanishing_in_every_state(
    proxy: StartProxy, postgres: Postgres, database: str, options: dict[str, object], repeat: int
) -> None:
    """No backend is used again in a state nobody knows, and nobody is counted for ever."""
    size = 4
    target = proxy(workers=1, pool_size=size, pool_overflow=0, **options)
    watcher = await watch(postgres)
    pooled = size if options else 0
    for name, make in STATES.items():
        for _ in range(repeat):
            client = await make(target, database)
            client.reset()
        try:
            await look_at_all_backends(target, database, size)
        except (AssertionError, OSError, TimeoutError) as error:
            raise AssertionError(f"after a client vanished in the state {name}: {error}") from error
    await settled(target, watcher, database, idle=pooled)
    assert await watcher.value("select count(*) from pg_locks where locktype = 'advisory' and objid = 4711") == "0"
    print(f"\nvanishing clients, {options}: states {len(STATES)}, iterations {repeat * len(STATES)}")


async def test_vanishing_while_waiting_for_a_backend(proxy: StartProxy, postgres: Postgres, database: str) -> None:
    target = proxy(workers=1, pool_mode="transaction", pool_size=1, pool_overflow=0)
    watcher = await watch(postgres)
    holder = await WireClient.connect(target, database)
    waiters = [await WireClient.connect(target, database) for _ in range(5)]
    await holder.query("begin")
    for waiter in waiters:
        waiter.send(query("create table never (n int)"))

    async def queued(count: int) -> bool:
        return await metric(target, "pilotwire_pool_waiting") == count

    await becomes(lambda: queued(5), "all are in the queue")
    for waiter in waiters:
        waiter.reset()
    await becomes(lambda: queued(0), "those that vanished have left the queue")
    await holder.query("commit")
    await holder.close()
    await look_at_all_backends(target, database, 1)
    await settled(target, watcher, database, idle=1)

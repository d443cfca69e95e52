"""Session pooling for real: a backend of its own for each client, opened as the client asked and gone with it; and
back-pressure, which both kinds of session have."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import asyncpg
import psutil
import pytest

from proxy.wire.messages import message, query, startup_message
from tests.conftest import StartProxy
from tests.proxy.pooled_fixtures import backend_gone, backends, clients, sample
from tests.proxy.wire.transcript import COPY_DONE, copy_data
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient

MEGABYTE = 1 << 20
GROWTH = 8 * MEGABYTE


@pytest.fixture(scope="module")
def session(module_proxy: StartProxy) -> Proxy:
    return module_proxy(pool_mode="session")


async def test_a_backend_for_life(session: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(session, database, 2) as (first, second):
        await first.query("create temp table x (a int); prepare p as select 1; set work_mem = '5MB'; listen c")
        assert first.pid != second.pid
        assert await first.value("select pg_backend_pid()") == str(first.pid)
        assert await first.query("execute p") == [("1",)]
        assert await second.value("show work_mem") != "5MB"
        await second.query("notify c, 'hello'")
        assert (await first.until(b"A"))[-1][1].endswith(b"c\0hello\0")
        await first.close()
        await backend_gone(postgres, database, first.pid)
        assert await second.query("select 1") == [("1",)]


async def test_the_client_is_told_what_the_server_says(session: Proxy, database: str, postgres: Postgres) -> None:
    settings = {
        "application_name": "mine",
        "DateStyle": "German",
        "options": "-c search_path=a,b -c work_mem=5MB",
        "client_encoding": "LATIN1",
    }
    look = "select current_setting('work_mem'), current_setting('search_path')"
    async with clients(session, database, 1, **settings) as (proxied,):
        direct = await WireClient.connect(postgres, database, settings=settings)
        assert proxied.parameters == direct.parameters
        for client in (direct, proxied):
            await client.query("set work_mem = '6MB'; set search_path = c; reset all")
            assert await client.query(look) == [("5MB", "a,b")]
        assert proxied.parameters == direct.parameters
        await direct.close()


async def test_every_backend_comes_from_an_asyncpg_pool(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="session", workers=1)
    async with clients(started, database, 40) as opened:
        assert len({client.pid for client in opened}) == 40
        assert sample(started, "backends_opened_total", 'how="pool"') == 40
        assert sample(started, "backends_current") == 40
    await eventually(lambda: sample(started, "backends_current") == 0)
    assert sample(started, "backends_opened_total", 'how="direct"') == 0
    async with clients(started, database, 1):
        assert sample(started, "backends_closed_total") == 40


async def test_refusals_are_the_server_s_own(session: Proxy, postgres: Postgres) -> None:
    for target in (postgres, session):
        with pytest.raises(ServerError, match='3D000: database "nobody" does not exist'):
            await WireClient.connect(target, "nobody")
        with pytest.raises(ServerError, match="22023: invalid value for parameter"):
            await WireClient.connect(target, settings={"IntervalStyle": "nonsense"})
        with pytest.raises(ServerError, match="42704: unrecognized configuration parameter"):
            await WireClient.connect(target, settings={"nonsense": "x"})


async def test_a_database_is_free_when_its_client_has_left(session: Proxy, postgres: Postgres) -> None:
    for number in range(5):
        database = postgres.create_database()
        async with clients(session, database, 1) as (client,), clients(session, "postgres", 1) as (admin,):
            if not number:  # the server waits for 5 s before it says so
                with pytest.raises(ServerError, match="55006"):
                    await admin.query(f"drop database {database}")
            await client.close()
            await admin.query(f"drop database {database}")


async def test_the_server_s_last_words_reach_the_client(session: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(session, database, 2) as (idle, busy):
        busy.send(query("select pg_sleep(60)"))
        for client in (idle, busy):
            postgres.sql(f"select pg_terminate_backend({client.pid})")
            seen = await client.until_closed()
            assert b"C57P01" in seen[-1][1]
            assert [kind for kind, _ in seen] == ([b"E"] if client is idle else [b"T", b"E"])


async def test_vanished_clients_take_their_backends_along(session: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(session, database, 3) as (idle, open_, sending):
        await open_.query("create table t (a text)")
        await open_.query("begin; insert into t values ('x')")
        sent = query("insert into t values ('" + "x" * 100_000 + "') -- and so on")
        sending.send(sent[:-3])
        await sending.writer.drain()
        for client in (idle, open_, sending):
            client.reset()
            await backend_gone(postgres, database, client.pid)
    assert postgres.sql("select count(*) from t", database) == "0"


async def test_leaving_before_the_backend_is_there(session: Proxy, database: str, postgres: Postgres) -> None:
    for _ in range(20):
        client = await WireClient.open(session)
        client.send(startup_message({"user": "postgres", "database": database}))
        await client.writer.drain()
        await asyncio.sleep(random.random() * 0.01)
        client.reset()
    await eventually(lambda: not backends(postgres, database))
    await eventually(lambda: sample(session, "clients_current") == 0)


async def test_a_query_sent_with_the_start_up(session: Proxy, database: str) -> None:
    client = await WireClient.open(session)
    client.send(startup_message({"user": "postgres", "database": database}) + query("select 1") + message(b"X", b""))
    seen = [kind for kind, _ in await client.until_closed()]
    client.reset()
    assert seen[-5:] == [b"Z", b"T", b"D", b"C", b"Z"]


async def test_asyncpg_s_own_pool(session: Proxy, database: str) -> None:
    async with asyncpg.create_pool(session.dsn(database), min_size=2, max_size=4) as pool:
        values = await asyncio.gather(*(pool.fetchval("select $1::int", number) for number in range(50)))
    assert values == list(range(50))


@pytest.mark.parametrize("data", [b"p\0\0\0\x08abcd", b"Q\0\0\0\1", b"\xff\xff\xff\xff\xff", b"B\x7f\xff\xff\xff"])
async def test_a_broken_protocol_is_refused(session: Proxy, database: str, data: bytes, postgres: Postgres) -> None:
    async with clients(session, database, 2) as (bad, good):
        bad.send(data)
        seen = await bad.until_closed()
        assert b"C08P01" in seen[-1][1]
        await backend_gone(postgres, database, bad.pid)
        assert await good.query("select 1") == [("1",)]


# ---------------------------------------------------------------------- back-pressure

MODES = pytest.mark.parametrize("mode", ["session", "transaction"])


def resident(proxy: Proxy) -> int:
    return max(psutil.Process(pid).memory_info().rss for pid in proxy.workers())


async def still(value: object, proxy: Proxy) -> int:
    """The worker's memory once nothing moves any more."""
    before = -1
    while (now := await asyncio.to_thread(resident, proxy)) != before:
        before = now
        await asyncio.sleep(0.3)
    return now


@MODES
async def test_a_client_that_does_not_read(proxy: StartProxy, database: str, postgres: Postgres, mode: str) -> None:
    started = proxy(pool_mode=mode, workers=1)
    async with clients(started, database, 2) as (client, other):
        warm = "select repeat('x', 1000) from generate_series(1, 20000)"
        assert len(await client.query(warm)) == len(await other.query(warm)) == 20_000
        before = resident(started)
        rows = 300_000
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a client that stops, bytes unread
        client.send(query(f"select repeat('x', 1000) from generate_series(1, {rows})"))
        blocked = f"select count(*) from pg_stat_activity where datname = '{database}' and wait_event = 'ClientWrite'"
        await eventually(lambda: postgres.sql(blocked) == "1", timeout=30, what="the server waits for us")
        grown = resident(started) - before
        assert grown < GROWTH, f"{grown / MEGABYTE:.1f} MB"
        assert await other.query("select 1") == [("1",)]
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        count = 0
        while (seen := await client.message())[0] != b"Z":
            count += seen[0] == b"D"
        assert count == rows
        grown = resident(started) - before
        assert grown < GROWTH, f"{grown / MEGABYTE:.1f} MB"


@MODES
async def test_a_server_that_does_not_read(proxy: StartProxy, database: str, postgres: Postgres, mode: str) -> None:
    started = proxy(pool_mode=mode, workers=1)
    async with clients(started, database, 2) as (client, other):
        await client.query("create unlogged table t (a text)")
        pid = int(await client.value("select pg_backend_pid()") or 0)
        chunk = copy_data(b"x" * 999 + b"\n") * 100
        client.send(query("copy t from stdin"))
        await client.until(b"G")
        for _ in range(20):
            client.send(chunk)
            await client.writer.drain()
        # Stopped amid its work it may hold a lock that the whole server waits for.
        waiting = f"select wait_event from pg_stat_activity where pid = {pid}"
        await eventually(lambda: postgres.sql(waiting) == "ClientRead")
        before = resident(started)
        sent = 20

        async def pump(upto: int) -> None:
            nonlocal sent
            while sent < upto:
                client.send(chunk)
                sent += 1
                await client.writer.drain()

        os.kill(pid, signal.SIGSTOP)
        try:
            task = asyncio.create_task(pump(3000))
            seen = -1
            while seen != sent:
                seen = sent
                await asyncio.sleep(0.5)
            assert seen < 2000, "nobody pushed back"
            grown = resident(started) - before
            assert grown < GROWTH, f"{grown / MEGABYTE:.1f} MB"
            assert await other.query("select 1") == [("1",)]
        finally:
            os.kill(pid, signal.SIGCONT)
        await task
        client.send(COPY_DONE)
        await client.until_ready()
        assert await client.value("select count(*) from t") == str(3000 * 100)
        grown = resident(started) - before
        assert grown < GROWTH, f"{grown / MEGABYTE:.1f} MB"


@MODES
async def test_giving_up_on_a_client_that_does_not_read(
    proxy: StartProxy, database: str, postgres: Postgres, mode: str
) -> None:
    """Its backend was not read from; nobody may inherit that."""
    started = proxy(pool_mode=mode, workers=1, pool_size=1, pool_overflow=0)
    async with clients(started, database, 2) as (client, other):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(query("select repeat('x', 1000) from generate_series(1, 100000)"))
        blocked = f"select pid from pg_stat_activity where datname = '{database}' and wait_event = 'ClientWrite'"
        pid = await eventually(lambda: postgres.sql(blocked), timeout=30)
        client.reset()
        await backend_gone(postgres, database, int(pid))
        assert len(await other.query("select repeat('x', 1000) from generate_series(1, 20000)")) == 20_000


async def test_one_client_s_result_does_not_starve_the_others(session: Proxy, database: str) -> None:
    async with clients(session, database, 2) as (reader, other):
        reader.send(query("select repeat('x', 1000) from generate_series(1, 200000)"))

        async def read() -> None:
            await reader.until_ready()

        task = asyncio.create_task(read())
        turns = 0
        while not task.done():
            async with asyncio.timeout(5):
                await other.query("select 1")
            turns += 1
        await task
        assert turns > 5

"""The ready list: its limits, its queue, its housekeeping, and what it does for somebody who wants a database alone."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from tests.conftest import StartPostgres, StartProxy
from tests.proxy.pooled_fixtures import backend_gone, backends, clients, sample, waits
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.tcpfault import TcpFault
from tests.support.waiting import eventually
from tests.support.wireclient import Lost, ServerError, WireClient


async def pid_of(client: WireClient) -> int:
    return int(await client.value("select pg_backend_pid()") or 0)


async def test_every_backend_comes_from_an_asyncpg_pool(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=3)
    async with clients(started, database, 6) as opened:
        await asyncio.gather(*(client.query("select pg_sleep(0.05)") for client in opened))
    assert 1 <= sample(started, "backends_opened_total", 'how="pool"') <= 6
    assert sample(started, "backends_opened_total", 'how="direct"') == 0


async def test_waiting_is_first_come_first_served(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0)
    async with clients(started, database, 6) as (holder, *others):
        await holder.query("begin")
        order: list[int] = []

        async def ask(number: int) -> None:
            await others[number].query("select 1")
            order.append(number)

        tasks = []
        for number in range(len(others)):
            tasks.append(asyncio.create_task(ask(number)))
            await waits(started, tasks[-1], number + 1)
        await holder.query("commit")
        await asyncio.gather(*tasks)
        assert order == sorted(order)
    assert sample(started, "pool_waits_total") >= 5
    assert sample(started, "pool_wait_seconds_total") > 0


async def test_overflow_is_for_a_rush(proxy: StartProxy, database: str, postgres: Postgres) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=2)
    async with clients(started, database, 4) as opened:
        for client in opened[:3]:
            await client.query("begin")
        assert len(backends(postgres, database)) == 3
        task = asyncio.create_task(opened[3].value("select 1"))
        await waits(started, task)
        assert len(backends(postgres, database)) == 3
        for client in opened[:3]:
            await client.query("commit")
        assert await task == "1"
        await eventually(lambda: len(backends(postgres, database)) == 1)


async def test_overflow_is_not_opened_and_closed_all_the_time(proxy: StartProxy, database: str) -> None:
    """Ended as soon as nobody waited, they were missed a moment later: hundreds were opened each second."""
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=2)
    async with clients(started, database, 6) as opened:

        async def work(client: WireClient) -> None:
            for _ in range(50):
                await client.query("select 1")

        await asyncio.gather(*(work(client) for client in opened))
    assert 1 <= sample(started, "backends_opened_total", 'how="pool"') <= 3


async def test_the_queue_has_a_limit(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0, queue_limit=1)
    async with clients(started, database, 3) as (holder, waiter, refused):
        await holder.query("begin")
        task = asyncio.create_task(waiter.value("select 1"))
        await waits(started, task)
        with pytest.raises(ServerError, match="its queue is full") as caught:
            await refused.query("select 2")
        assert caught.value.sqlstate == "53300"
        assert caught.value.fatal
        assert f'"postgres@{database}"' in caught.value.text
        assert caught.value.fields["D"] == "The pool has 1 of at most 1 connections, 0 of them free."
        await holder.query("commit")
        assert await task == "1"
    assert sample(started, "queue_rejected_total") == 1


async def test_without_a_queue_the_pool_is_still_filled(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=1, queue_limit=0, workers=1)
    async with clients(started, database, 3) as (*served, refused):
        await asyncio.gather(*(client.query("begin") for client in served))
        with pytest.raises(ServerError, match="its queue is full"):
            await refused.query("select 1")
        for client in served:
            await client.query("commit")


async def test_the_queue_has_a_time_limit(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0, queue_timeout=1)
    async with clients(started, database, 2) as (holder, waiter):
        await holder.query("begin")
        with pytest.raises(ServerError, match="queue_timeout") as caught:
            await waiter.query("select 1")
        assert caught.value.sqlstate == "53300"
        assert await holder.query("select 1") == [("1",)]
        await holder.query("commit")
    assert sample(started, "pool_wait_timeouts_total") == 1
    await eventually(lambda: sample(started, "pool_waiting") == 0)


async def test_clients_that_gave_up_waiting_take_nothing_with_them(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0)
    async with clients(started, database, 4) as (holder, *others):
        await holder.query("begin")
        tasks = []
        for number, other in enumerate(others):
            tasks.append(asyncio.create_task(other.query("select 1")))
            await waits(started, tasks[-1], number + 1)
        for other in others[:2]:
            other.reset()
        for task in tasks[:2]:
            with contextlib.suppress(Lost):
                await task
        await holder.query("commit")
        assert await tasks[2] == [("1",)]
        assert await holder.query("select 2") == [("2",)]


async def test_idle_backends_end(proxy: StartProxy, database: str, postgres: Postgres) -> None:
    """Although they are checked more often than they may idle."""
    started = proxy(
        pool_mode="transaction", pool_size=3, pool_min=1, server_idle_timeout=3, server_check_delay=1, workers=1
    )
    async with clients(started, database, 3) as opened:
        for client in opened:
            await client.query("begin")
        for client in opened:
            await client.query("commit")
        assert len(backends(postgres, database)) == 3
        await eventually(lambda: len(backends(postgres, database)) == 1, timeout=20)
        assert sample(started, "handed_back_total") >= 1


async def test_backends_have_a_lifetime(proxy: StartProxy, database: str, postgres: Postgres) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0, server_lifetime=2)
    async with clients(started, database, 2) as (busy, idle):
        first = await pid_of(busy)
        await busy.query("begin")
        await eventually(
            lambda: (
                postgres.sql(f"select now() - backend_start > '2.2 s' from pg_stat_activity where pid = {first}") == "t"
            )
        )
        assert await pid_of(busy) == first  # never in a transaction
        await busy.query("commit")
        second = await pid_of(idle)
        assert second != first
        await backend_gone(postgres, database, second)


async def test_without_limits_backends_are_kept(proxy: StartProxy, database: str, postgres: Postgres) -> None:
    """0 means never, not at once."""
    started = proxy(pool_mode="transaction", pool_min=1, server_lifetime=0, server_idle_timeout=0, workers=1)
    async with clients(started, database, 2) as opened:
        for client in opened:
            await client.query("begin")
        for client in opened:
            await client.query("commit")
        held = backends(postgres, database)
        assert len(held) == 2
        await asyncio.sleep(2.5)  # it keeps house once a second
        assert backends(postgres, database) == held
        assert sample(started, "backends_opened_total", 'how="pool"') == 2


@pytest.mark.parametrize(("before", "after", "kept"), [(3600, 1, False), (1, 0, True)])
async def test_a_lifetime_that_changes_holds_for_backends_in_use(
    proxy: StartProxy, database: str, before: int, after: int, kept: bool
) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0, server_lifetime=before, workers=1)
    async with clients(started, database, 1) as (client,):
        first = await pid_of(client)
        await client.query("begin")
        started.write_config(server_lifetime=after)
        started.signal(signal.SIGHUP)
        started.wait_log("changed=server_lifetime")
        await asyncio.sleep(1.2)
        # Back and out again at once, so that the pool never finds it idle.
        await client.query("commit")
        assert (await pid_of(client) == first) is kept


async def test_the_minimum_is_kept(proxy: StartProxy, database: str, postgres: Postgres) -> None:
    started = proxy(pool_mode="transaction", pool_size=4, pool_min=2)
    async with clients(started, database, 1) as (client,):
        pid = await pid_of(client)
        await eventually(lambda: len(backends(postgres, database)) == 2)
        postgres.sql(f"select pg_terminate_backend({pid})")
        await backend_gone(postgres, database, pid)
        await eventually(lambda: len(backends(postgres, database)) == 2)


async def test_an_idle_backend_is_handed_back_to_asyncpg_and_taken_again(
    proxy: StartProxy, database: str, postgres: Postgres
) -> None:
    started = proxy(pool_mode="transaction", pool_size=1, pool_overflow=0, server_check_delay=1)
    async with clients(started, database, 2, application_name="mine") as (client, other):
        await client.query("set my.own = 'x'; set search_path = x")
        pid = await pid_of(client)
        await eventually(lambda: sample(started, "handed_back_total") >= 2, timeout=20)
        assert await pid_of(other) == pid
        assert await other.query(
            "select nullif(current_setting('my.own', true), ''), current_setting('search_path')"
        ) == [(None, '"$user", public')]
        assert await client.query("select current_setting('my.own'), current_setting('search_path')") == [("x", "x")]
        assert await client.value("show application_name") == "mine"
    assert sample(started, "backends_opened_total", 'how="pool"') == 1
    assert "backend_check_failed" not in started.log_text()


async def test_an_idle_backend_follows_the_server_s_configuration(
    proxy: StartProxy, start_postgres: StartPostgres
) -> None:
    server = start_postgres()
    started = proxy(server, pool_mode="transaction", pool_size=1, pool_overflow=0, server_check_delay=1)
    async with clients(started, "postgres", 1) as (client,):
        await client.query("select 1")
        server.configure(config={"timezone": "Asia/Tokyo"})
        await eventually(lambda: server.sql("show timezone") == "Asia/Tokyo")
        checked = sample(started, "handed_back_total")
        await eventually(lambda: sample(started, "handed_back_total") > checked, timeout=20)
        assert await client.value("show timezone") == "Asia/Tokyo"
        assert client.parameters["TimeZone"] == "Asia/Tokyo"


@pytest.mark.parametrize("workers", [1, 2])
async def test_idle_backends_do_not_keep_a_database(proxy: StartProxy, postgres: Postgres, workers: int) -> None:
    started = proxy(pool_mode="transaction", pool_size=2, workers=workers)
    for text in (
        "drop database {0}",
        "create database {1} template {0}",
        'alter database "{0}" rename to {1}',
        "DROP DATABASE IF EXISTS {0}",
        "/* now */ create database {1} with template = {0} strategy file_copy",
    ):
        database = postgres.create_database()
        async with clients(started, database, 4) as opened, clients(started, "postgres", 1) as (admin,):
            for client in opened:
                await client.query("begin")
            for client in opened:
                await client.query("commit")
            assert backends(postgres, database)
            async with asyncio.timeout(4):  # the server itself would wait 5 s for them and give up
                await admin.query(text.format(database, database + "x"))
            assert await admin.query("select 1") == [("1",)]


async def test_a_database_in_use_is_kept(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=2)
    async with clients(started, database, 1) as (client,), clients(started, "postgres", 1) as (admin,):
        await client.query("begin")
        with pytest.raises(ServerError, match="55006"):
            await admin.query(f"drop database {database}")
        await client.query("commit")
        await admin.query(f"drop database {database}")


async def test_idle_backends_being_checked_do_not_keep_a_database(proxy: StartProxy, database: str) -> None:
    started = proxy(pool_mode="transaction", pool_size=20, server_check_delay=0.01)
    async with clients(started, database, 10) as opened, clients(started, "postgres", 1) as (admin,):
        for turn in range(3):
            for client in opened:
                await client.query("begin")
            for client in opened:
                await client.query("commit")
            await eventually(lambda: sample(started, "handed_back_total") > 0)
            async with asyncio.timeout(4):
                await admin.query(f"create database {database}_{turn} template {database} strategy wal_log")


async def test_a_server_that_is_down(proxy: StartProxy, start_postgres: StartPostgres) -> None:
    server = start_postgres()
    started = proxy(server, pool_mode="transaction", pool_size=2)
    async with clients(started, "postgres", 2) as (first, second):
        await first.query("select 1")
        server.stop()
        with pytest.raises(ServerError, match=r"57P0[13]"):
            await first.query("select 1")
        server.start()

        async def works() -> list[tuple[str | None, ...]]:
            try:
                async with clients(started, "postgres", 1) as (client,):
                    return await client.query("select 2")
            except (ServerError, Lost):
                return []

        assert await eventually(works) == [("2",)]
        assert await second.query("select 3") == [("3",)]


async def test_nobody_is_greeted_for_a_backend_that_is_being_opened(proxy: StartProxy, postgres: Postgres) -> None:
    """What the server's settings were is known from before; whether it is there is not, until a backend is."""
    async with TcpFault(postgres) as fault:
        dsn = f"postgresql://postgres@{fault.host}:{fault.port}/postgres"
        # Its start needs this thread's loop, which the fault runs in.
        started: Proxy = await asyncio.to_thread(
            proxy, upstream=dsn, server_tls_mode="disable", pool_mode="transaction", workers=1
        )
        async with clients(started, "postgres", 1) as (before,):
            await before.query("select 1")
        fault.silent = True
        fault.cut()
        await eventually(lambda: sample(started, "pool_servers", 'pool="postgres@postgres"') == 0)
        opened = fault.accepted
        first = asyncio.create_task(WireClient.connect(started))
        await eventually(lambda: fault.accepted > opened)
        second = asyncio.create_task(WireClient.connect(started))
        greeted, _ = await asyncio.wait({first, second}, timeout=1)
        assert not greeted
        fault.heal()
        for client in await asyncio.gather(first, second):
            assert await client.value("select 2") == "2"
            await client.close()

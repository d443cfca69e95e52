"""Cancel requests: they reach the query they are meant for, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from proxy.wire.messages import cancel_request, query, startup_message
from tests.conftest import StartProxy
from tests.proxy.pooled_fixtures import clients, sample
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient

ROUNDS = 150


@pytest.fixture(scope="module")
def one(module_proxy: StartProxy) -> Proxy:
    return module_proxy(pool_mode="transaction", pool_size=1, pool_overflow=0)


@pytest.fixture(scope="module")
def session(module_proxy: StartProxy) -> Proxy:
    return module_proxy(pool_mode="session")


async def running(postgres: Postgres, database: str, text: str) -> None:
    look = (
        f"select count(*) from pg_stat_activity where datname = '{database}' and state = 'active'"
        f" and query like '%{text}%' and pid <> pg_backend_pid()"
    )
    await eventually(lambda: postgres.sql(look) != "0", what=f"{text} runs")


@pytest.mark.parametrize("mode", ["one", "session"])
async def test_a_cancel_reaches_its_query(
    request: pytest.FixtureRequest, mode: str, database: str, postgres: Postgres
) -> None:
    proxy: Proxy = request.getfixturevalue(mode)
    async with clients(proxy, database, 1) as (client,):
        for _ in range(3):
            client.send(query("select pg_sleep(60)"))
            await running(postgres, database, "pg_sleep")
            await client.cancel(proxy)
            with pytest.raises(ServerError, match="57014: canceling statement due to user request"):
                await client.until_ready()
            assert await client.query("select 1") == [("1",)]


@pytest.mark.parametrize("mode", ["one", "session"])
async def test_a_cancel_on_a_replication_connection(
    request: pytest.FixtureRequest, mode: str, database: str, postgres: Postgres
) -> None:
    """Where nothing is known of what runs, the server says whether there is anything to cancel."""
    proxy: Proxy = request.getfixturevalue(mode)
    async with clients(proxy, database, 1, replication="database") as (client,):
        await client.cancel(proxy)
        client.send(query("select pg_sleep(60)"))
        await running(postgres, database, "pg_sleep")
        await client.cancel(proxy)
        with pytest.raises(ServerError, match="57014: canceling statement due to user request"):
            await client.until_ready()
        assert await client.query("select 1") == [("1",)]


async def test_a_cancel_waits_for_the_proxys_own_query(
    module_proxy: StartProxy, database: str, postgres: Postgres
) -> None:
    """The client's settings are put in place first: a cancel that arrives then is meant for what comes behind them."""
    proxy = module_proxy(pool_mode="transaction", pool_size=1, pool_overflow=0)
    async with clients(proxy, database, 2) as (one, other):
        await one.query("set statement_timeout = 54321")
        await other.query("set statement_timeout = 12345")  # the backend has this one's settings now
        await other.query("begin; lock table pg_class in access exclusive mode")
        hit = 0
        for _ in range(20):
            task = asyncio.create_task(other.query("commit"))
            one.send(query("select pg_sleep(20)"))
            await task
            await one.cancel(proxy)
            with pytest.raises(ServerError, match="57014"):
                await asyncio.wait_for(one.until_ready(), 10)
            hit += 1
            await other.query("set statement_timeout = 12345")
            await other.query("begin; select 1")
        assert hit == 20


async def test_a_cancel_of_what_waited_hits_nothing_behind_it(one: Proxy, database: str) -> None:
    """The cancel's connection has ended long before there is a backend, and the client goes on at once."""
    async with clients(one, database, 2) as (first, second):
        await first.query("set statement_timeout = 54321")
        await second.query("set statement_timeout = 12345")  # put in place in front of each statement
        for _ in range(30):
            await first.query("begin")
            second.send(query("select 1"))
            await asyncio.sleep(0.005)
            await second.cancel(one)
            await first.query("commit")
            with contextlib.suppress(ServerError):
                await second.until_ready()
            assert await second.query("select pg_sleep(0.01)") == [("",)]


async def test_nobody_else_is_hit(one: Proxy, database: str) -> None:
    """Two clients, one backend. One of them cancels all the time, but waits for each cancel before it goes on: then
    neither its next query nor anything of the other's may ever be cancelled."""
    before = sample(one, "cancels_forwarded_total")
    hit = 0
    async with clients(one, database, 2) as (first, second):
        finished = asyncio.Event()

        async def others() -> int:
            for count in itertools.count():
                if finished.is_set():
                    return count
                await second.query(random.choice(["select 1", "select pg_sleep(0.002)", "begin; select 1; commit"]))
            raise AssertionError

        other = asyncio.create_task(others())
        for number in range(ROUNDS):
            text = random.choice(["select 1", "select pg_sleep(0.001)", "select pg_sleep(0.01)", "set my.own = 'x'"])
            first.send(query(text))
            if number % 3:
                await asyncio.sleep(random.random() * 0.004)
            cancels = [first.cancel(one) for _ in range(random.choice([1, 1, 3]))]
            answer, *_ = await asyncio.gather(first.until_ready(), *cancels, return_exceptions=True)
            if isinstance(answer, ServerError):
                assert answer.sqlstate == "57014"
                hit += 1
            elif isinstance(answer, BaseException):
                raise answer
            assert await first.query("select pg_sleep(0.001)") == [("",)]
            assert not other.done() or other.result()
        finished.set()
        count = await other
        assert await first.query("select 1") == [("1",)]
    forwarded = sample(one, "cancels_forwarded_total") - before
    print(f"{ROUNDS} rounds, {forwarded:.0f} cancels forwarded, {hit} queries hit, {count} queries of the other client")
    assert hit > ROUNDS // 20
    assert count > ROUNDS // 2
    assert forwarded > ROUNDS // 10


async def test_a_storm_of_cancels_hits_its_own_client_only(one: Proxy, database: str) -> None:
    async with clients(one, database, 3) as (first, second, third):
        await third.query("set search_path = third")
        finished = asyncio.Event()

        async def work(client: WireClient, path: str) -> int:
            for count in itertools.count():
                if finished.is_set():
                    return count
                assert await client.query("show search_path") == [(path,)]
                await client.query("select pg_sleep(0.001)")
            raise AssertionError

        async def storm() -> None:
            while not finished.is_set():
                await first.cancel(one)

        tasks = [
            asyncio.create_task(work(second, '"$user", public')),
            asyncio.create_task(work(third, "third")),
            *(asyncio.create_task(storm()) for _ in range(3)),
        ]
        hit = 0
        for number in range(ROUNDS):
            try:
                await first.query(f"set my.own = '{number}'")
                await first.query("select pg_sleep(0.005)")
                seen = await first.value("select current_setting('my.own')")
            except ServerError as error:
                if error.sqlstate != "57014":
                    raise
                hit += 1
            else:
                assert seen == str(number)
        finished.set()
        counts = await asyncio.gather(*tasks)
        print(f"{ROUNDS} rounds, {hit} hit; the others ran {counts[:2]} queries")
        assert hit
        assert all(count for count in counts[:2])


async def test_long_keys(one: Proxy, database: str, postgres: Postgres) -> None:
    """A client of protocol 3.2 gets 32 bytes, as from the server; one of 3.0 gets 4."""
    client = await WireClient.open(one)
    client.send(startup_message({"user": "postgres", "database": database}, minor=2))
    await client.until_ready()
    assert len(client.secret) == 32
    client.send(query("select pg_sleep(60)"))
    await running(postgres, database, "pg_sleep")
    await client.cancel(one)
    with pytest.raises(ServerError, match="57014"):
        await client.until_ready()
    client.reset()
    async with clients(one, database, 1) as (short,):
        assert len(short.secret) == 4


async def test_wrong_secrets_are_dropped(one: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(one, database, 2) as (client, other):
        await client.query("begin")
        client.send(query("select 42 from pg_sleep(0.5)"))
        await running(postgres, database, "pg_sleep")
        before = sample(one, "cancels_dropped_total")
        wrong = [
            os.urandom(4),
            other.secret,
            client.secret + b"\0",
            client.secret[:3],
            client.secret * 8,
            bytes(4),
            b"",
        ]
        for pid, secret in [*((client.pid, secret) for secret in wrong), (client.pid ^ 1, client.secret)]:
            canceller = await WireClient.open(one)
            canceller.send(cancel_request(pid, secret))
            assert await canceller.until_closed() == []
            canceller.reset()
        assert [body for kind, body in await client.until_ready() if kind == b"D"] == [b"\0\1\0\0\0\x0242"]
        assert sample(one, "cancels_dropped_total") > before


async def test_between_queries_a_cancel_does_nothing(one: Proxy, database: str) -> None:
    async with clients(one, database, 1) as (client,):
        before = sample(one, "cancels_forwarded_total")
        for _ in range(5):
            await client.cancel(one)
            assert await client.query("select 1") == [("1",)]
        assert sample(one, "cancels_forwarded_total") == before


async def test_a_cancel_while_settings_are_put_in_place(one: Proxy, database: str) -> None:
    """It may be too early to do anything, but it must not make the client run under another's settings."""
    async with clients(one, database, 2) as (first, second):
        await first.query("set search_path = first")
        for _ in range(ROUNDS // 3):
            await second.query("select 1")
            first.send(query("show search_path"))
            answer, _ = await asyncio.gather(first.until_ready(), first.cancel(one), return_exceptions=True)
            if isinstance(answer, ServerError):
                assert answer.sqlstate == "57014"
            elif isinstance(answer, BaseException):
                raise answer
            else:
                assert (b"D", b"\0\1\0\0\0\5first") in answer


@pytest.mark.parametrize("mode", ["one", "session"])
async def test_a_cancel_that_is_quicker_than_its_query(
    request: pytest.FixtureRequest, mode: str, database: str, postgres: Postgres
) -> None:
    """The server's process has not begun with the query when the signal comes, which it drops; another follows."""
    proxy: Proxy = request.getfixturevalue(mode)
    async with clients(proxy, database, 1) as (client,):
        ((pid,),) = await client.query("select pg_backend_pid()")
        backend = psutil.Process(int(str(pid)))
        backend.suspend()
        try:
            client.send(query("select pg_sleep(60)"))
            cancelling = asyncio.create_task(client.cancel(proxy))
            await eventually(lambda: sigint_waits(backend.pid), what="the signal has come")
        finally:
            backend.resume()
        with pytest.raises(ServerError, match="57014: canceling statement due to user request"):
            await client.until_ready()
        await cancelling
        assert await client.query("select 1") == [("1",)]


def sigint_waits(pid: int) -> bool:
    """Whether a process that is stopped has a SIGINT to take."""
    status = Path(f"/proc/{pid}/status").read_text()
    waiting = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(waiting.split()[1], 16) & 1 << signal.SIGINT - 1)


async def test_a_cancel_of_what_waits_for_a_backend(one: Proxy, database: str) -> None:
    """It is not lost: the query ends with an error as soon as it gets a backend, and the next one is not hit."""
    async with clients(one, database, 2) as (first, second):
        await first.query("begin")
        second.send(query("select pg_sleep(60)"))
        await eventually(lambda: sample(one, "pool_waiting") >= 1, what="a client waits for a backend")
        await second.cancel(one)
        await first.query("commit")
        with pytest.raises(ServerError, match="57014: canceling statement due to user request"):
            await second.until_ready()
        assert await second.query("select 1") == [("1",)]
        assert await first.query("select 1") == [("1",)]

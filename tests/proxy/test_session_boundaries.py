"""Where one client's transaction ends and another's begins: nothing may stay on the backend, nor be waited for."""

from __future__ import annotations

import asyncio
import socket

import psutil
import pytest

from proxy.wire.messages import query
from tests.conftest import StartProxy
from tests.proxy.pooled_fixtures import clients, kinds, sample
from tests.proxy.wire.transcript import COPY_DONE, SYNC, bind, copy_data, execute, parse
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient

CONFIGURE = "select set_config('app.tenant', 'first', false)"


async def answers(client: WireClient, count: int, data: bytes) -> None:
    """Sends all of it at once and reads as many ReadyForQuery."""
    client.send(data)
    for _ in range(count):
        await client.until_ready()


DISCARD = query("discard all")
BEHIND = {
    "simple": query(CONFIGURE),
    "extended": parse("", CONFIGURE) + bind() + execute() + SYNC,
    "named": parse("s", CONFIGURE) + bind("s") + execute() + SYNC,
}


@pytest.mark.parametrize("how", BEHIND)
async def test_settings_changed_right_behind_discard_all(two: Proxy, database: str, how: str) -> None:
    """As drivers do that put the reset of a pooled connection in front of its next command."""
    async with clients(two, database, 2) as (first, second):
        await answers(first, 2, DISCARD + BEHIND[how])
        for _ in range(2):  # on both backends
            await second.query("begin")
            assert not await second.value("select current_setting('app.tenant', true)")
            assert await first.value("select current_setting('app.tenant', true)") == "first"
            await second.query("commit")


@pytest.mark.parametrize("discard", [DISCARD, query("deallocate all")])
async def test_a_lock_taken_right_behind_it(two: Proxy, database: str, discard: bytes) -> None:
    async with clients(two, database, 2) as (first, second):
        await answers(first, 2, discard + query("select pg_advisory_lock(1)"))
        await second.query("begin")
        assert await first.value("select pg_advisory_unlock(1)") == "t"
        await second.query("commit")


async def test_a_temporary_table_made_right_behind_it(two: Proxy, database: str) -> None:
    async with clients(two, database, 3) as (first, second, third):
        await answers(first, 2, DISCARD + query("create temp table mine (a int)"))
        await second.query("begin")
        assert await first.query("select * from mine") == []
        await answers(first, 1, DISCARD)
        await third.query("begin")  # nothing is left of it: both backends are free for others


async def test_a_lock_by_a_statement_that_was_not_kept(two: Proxy, database: str) -> None:
    """Beyond max_prepared_bytes a client keeps its backend; what it prepares from then on counts all the same."""
    text = "select 1 /*" + "x" * 70_000 + "*/"
    async with clients(two, database, 2) as (first, second):
        assert await kinds(first, parse("large", text), SYNC) == b"1Z"
        lock = parse("l", "select pg_advisory_lock(2)") + bind("l") + execute() + SYNC
        assert await kinds(first, lock) == b"12DCZ"
        await first.query("deallocate all")
        await second.query("begin")
        assert await first.value("select pg_advisory_unlock(2)") == "t"
        await second.query("commit")


async def test_a_copy_that_fails_while_much_is_on_its_way(two: Proxy, database: str) -> None:
    """Its backend is free again, for all that the server has not read yet; the client is listened to all the same."""
    async with clients(two, database, 2) as (client, other):
        await client.query("create table t (a int)")
        for _ in range(5):
            client.send(query("copy t from stdin"))
            await client.until(b"G")
            for _ in range(200):
                client.send(copy_data(b"not a number\n" * 5000))
                await asyncio.sleep(0)
            client.send(COPY_DONE)
            with pytest.raises(ServerError, match="22P02"):
                await client.until_ready()
            assert await client.value("select 1") == "1"
            assert await other.value("select 2") == "2"


async def test_constants_of_a_statement_prepared_again_under_other_settings(two: Proxy, database: str) -> None:
    """They are the client's own matter: another one with the same text must not find them."""
    text = "select timestamptz '2024-01-01 00:00' = timestamptz '2024-01-01 00:00+00'"
    async with clients(two, database, 3, TimeZone="UTC") as (first, second, holder):
        assert await kinds(first, parse("s", text), SYNC) == b"1Z"
        assert await kinds(second, parse("s", text), SYNC) == b"1Z"
        await holder.query("begin")  # takes the backend that has it
        await first.query("begin; set local timezone = 'Asia/Tokyo'")
        assert await kinds(first, bind("s"), execute(), SYNC) == b"2DCZ"
        await first.query("commit")
        second.send(bind("s") + execute() + SYNC)
        assert (b"D", b"\0\1\0\0\0\1t") in await second.until_ready()
        await holder.query("commit")


async def test_one_text_means_different_tables_in_different_schemas(two: Proxy, database: str) -> None:
    """The server tells of search_path since version 18."""
    async with clients(two, database, 2) as (first, second):
        await first.query("create schema a; create schema b; create table a.t (c int); create table b.t (c text)")
        await first.query("insert into a.t values (1); insert into b.t values ('x')")
        await first.query("set search_path = a")
        await second.query("set search_path = b")
        for client in (first, second):
            assert await kinds(client, parse("s", "select * from t"), SYNC) == b"1Z"
        for client, answer in ((first, b"1"), (second, b"x")) * 3:
            client.send(bind("s") + execute() + SYNC)
            assert (b"D", b"\0\1\0\0\0\1" + answer) in await client.until_ready()


async def test_an_outdated_plan_is_made_anew_when_it_is_tried_again(two: Proxy, database: str) -> None:
    """A table changed where the proxy does not look: the server refuses the old plan once, as it does directly."""
    run = bind("s") + execute() + SYNC
    async with clients(two, database, 2) as (client, holder):
        await client.query("create table t (a int)")
        assert await kinds(client, parse("s", "select * from t"), SYNC) == b"1Z"
        assert await kinds(client, run) == b"2CZ"
        await holder.query("begin")
        assert await kinds(client, run) == b"2CZ"  # now both backends have it
        await holder.query("commit")
        two.postgres.sql("alter table t add b int", database)
        await client.query("deallocate s")
        assert await kinds(client, parse("s", "select * from t"), SYNC) == b"1Z"
        await holder.query("begin")
        seen = [await kinds(client, run) for _ in range(3)]
        await holder.query("commit")
        assert seen[1:] == [b"2CZ", b"2CZ"]


async def test_an_execute_that_cannot_be_prepared_again_fails_once(two: Proxy, database: str) -> None:
    async with clients(two, database, 2) as (client, other):
        await client.query("create table gone (a int)")
        await kinds(client, parse("s", "select * from gone"), SYNC)
        await other.query("drop table gone")
        await other.query("begin")
        assert await kinds(client, query("execute s")) == b"EZ"
        await other.query("commit")
        assert await kinds(client, query("select 1")) == b"TDCZ"


async def test_names_too_long_to_be_kept(two: Proxy, database: str) -> None:
    name = "n" * 5000
    async with clients(two, database, 2) as (client, other):
        assert await kinds(client, parse(name, "select 1"), SYNC) == b"1Z"
        await other.query("begin")
        assert await kinds(client, bind(name), execute(), SYNC) == b"2DCZ"
        await other.query("commit")


async def test_more_settings_than_are_read_at_once(two: Proxy, database: str) -> None:
    columns = ", ".join(f"set_config('app.a{number}', repeat('ä', 8000), false)" for number in range(130))
    async with clients(two, database, 2) as (client, other):
        assert await kinds(client, query(f"select {columns}")) == b"TDCZ"
        assert await kinds(client, query("select 1")) == b"TDCZ"
        await other.query("begin")
        assert await client.value("select length(current_setting('app.a99'))") == "8000"
        assert not await other.value("select current_setting('app.a99', true)")
        await other.query("commit")


async def test_a_client_that_stopped_reading_before_its_next_transaction(two: Proxy, database: str) -> None:
    """Its answers stay with the server, whichever backend they come from."""
    async with clients(two, database, 1) as (client,):
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(1500):
            client.send(query("select repeat('x', 7000)"))
            await asyncio.sleep(0.0005)
        [worker] = two.workers()
        before = psutil.Process(worker).memory_info().rss
        client.send(query("select repeat('x', 1000) from generate_series(1, 200000)"))
        await asyncio.sleep(2)
        assert psutil.Process(worker).memory_info().rss - before < 8 * 1024 * 1024


async def test_a_client_that_is_gone_before_its_last_answer(proxy: StartProxy, database: str) -> None:
    """It has said that nothing more comes and does not wait for the answer: its place is free again."""
    started = proxy(max_clients=5)
    for _ in range(10):
        client = await WireClient.connect(started, database)
        # The first piece of the answer makes the client's system refuse the second one.
        client.send(query("select repeat('x', 20000); select pg_sleep(0.05)"))
        client.writer.write_eof()
        client.writer.close()
        await eventually(lambda: sample(started, "clients_current") == 0)
        client.reset()

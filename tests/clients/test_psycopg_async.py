"""psycopg 3, asynchronous: many connections of one event loop at once, pipelines, copy, notifications, cancel."""

# Where an error comes up, at the statement or at the end of a block, is the driver's business: blocks may hold several.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import AsyncConnectionPool

from tests.clients.server import wait_until_running
from tests.clients.target import Target
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("psycopg 3")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@pytest.fixture(scope="session")
def client_version() -> str:
    return psycopg.__version__


@pytest.fixture
async def connection(target: Target) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(target.dsn(), autocommit=True) as opened:
        yield opened


async def test_many_connections_at_once_mix_nothing_up(target: Target) -> None:
    async def work(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(target.dsn(), prepare_threshold=1) as connection:
            await connection.execute(f"set work_mem = '{1000 + number}kB'")
            await connection.commit()
            for step in range(15):
                cursor = await connection.execute(
                    "select %s::int, %s::int, current_setting('work_mem')", [number, step]
                )
                assert await cursor.fetchone() == (number, step, f"{1000 + number}kB")
                if step % 3:
                    await connection.commit()
                else:
                    await connection.rollback()

    await asyncio.gather(*(work(number) for number in range(20)))


async def test_pipeline(connection: Connection) -> None:
    await connection.execute("create table piped (a int primary key)")
    async with connection.pipeline():
        cursors = [await connection.execute("insert into piped values (%s) returning a", [n]) for n in range(200)]
        assert [await cursor.fetchone() for cursor in cursors] == [(n,) for n in range(200)]
    with pytest.raises(errors.UniqueViolation):
        async with connection.pipeline():
            await connection.execute("insert into piped values (500)")
            await connection.execute("insert into piped values (1)")
    cursor = await connection.execute("select count(*) from piped")
    assert await cursor.fetchone() == (200,)


@pytest.mark.parametrize("form", ["text", "binary"])
async def test_copy(connection: Connection, form: str) -> None:
    rows = [(number, f"\u00e4\t{number}\\") for number in range(3000)]
    await connection.execute(f"create table copied_{form} (a int4, b text)")
    async with connection.cursor() as cursor:
        async with cursor.copy(f"copy copied_{form} from stdin (format {form})") as copy:
            copy.set_types(["int4", "text"])
            for row in rows:
                await copy.write_row(row)
        async with cursor.copy(f"copy (select * from copied_{form} order by a) to stdout (format {form})") as copy:
            copy.set_types(["int4", "text"])
            assert [row async for row in copy.rows()] == rows


async def test_leaving_a_copy_early(connection: Connection) -> None:
    """An exception in the block cancels the COPY; the rest of it must not turn up in the next answer."""
    async with connection.cursor() as cursor:
        with pytest.raises(LookupError):
            async with cursor.copy("copy (select generate_series(1, 1000000)) to stdout") as copy:
                assert await copy.read() == b"1\n"
                raise LookupError
        await cursor.execute("select 'alive'")
        assert await cursor.fetchone() == ("alive",)


async def test_server_side_cursor(target: Target) -> None:
    async with (
        await psycopg.AsyncConnection.connect(target.dsn()) as connection,
        connection.cursor("named") as cursor,
    ):
        cursor.itersize = 64
        await cursor.execute("select * from generate_series(1, 1000)")
        assert [row[0] async for row in cursor] == list(range(1, 1001))


async def test_stream_left_early(connection: Connection) -> None:
    async with connection.cursor() as cursor:
        rows = cursor.stream("select n, repeat('z', 1000) from generate_series(1, 50000) n")
        stream = cast(AsyncGenerator[tuple[Any, ...]], rows)
        assert (await anext(stream))[0] == 1
        await stream.aclose()
        await cursor.execute("select 'alive'")
        assert await cursor.fetchone() == ("alive",)


async def test_notifications_while_idle(target: Target, connection: Connection) -> None:
    async with await psycopg.AsyncConnection.connect(target.dsn(), autocommit=True) as listener:
        await listener.execute("listen quiet")

        async def listen() -> list[str]:
            return [found.payload async for found in listener.notifies(timeout=10, stop_after=3)]

        listening = asyncio.create_task(listen())
        for number in range(3):
            await connection.execute("select pg_notify('quiet', %s)", [str(number)])
        assert await listening == ["0", "1", "2"]


async def test_a_cancelled_task_cancels_its_query(connection: Connection, target: Target, postgres: Postgres) -> None:
    task = asyncio.create_task(connection.execute("select pg_sleep(60) /* task */"))
    await asyncio.to_thread(wait_until_running, postgres, target, "task")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cursor = await connection.execute("select 'alive'")
    assert await cursor.fetchone() == ("alive",)


async def test_cancel_reaches_its_own_query_only(target: Target, postgres: Postgres) -> None:
    """Of two sleeping queries of one client program, the one that was meant ends."""
    async with (
        await psycopg.AsyncConnection.connect(target.dsn(), autocommit=True) as one,
        await psycopg.AsyncConnection.connect(target.dsn(), autocommit=True) as two,
    ):
        first = asyncio.create_task(one.execute("select pg_sleep(60) /* first */"))
        second = asyncio.create_task(two.execute("select pg_sleep(60) /* second */"))
        for text in ("first", "second"):
            await asyncio.to_thread(wait_until_running, postgres, target, text)
        await one.cancel_safe(timeout=10)
        with pytest.raises(errors.QueryCanceled):
            await first
        assert not second.done()
        await two.cancel_safe(timeout=10)
        with pytest.raises(errors.QueryCanceled):
            await second


async def test_its_own_pool(target: Target) -> None:
    async with AsyncConnectionPool(target.dsn(), min_size=2, max_size=5, open=False) as pool:

        async def work(number: int) -> int:
            async with pool.connection() as connection:
                cursor = await connection.execute("select %s::int * 2", [number])
                row = await cursor.fetchone()
                assert row is not None
                return int(row[0])

        assert await asyncio.gather(*(work(number) for number in range(60))) == [2 * number for number in range(60)]


async def test_tls_and_scram(secure_target: Target) -> None:
    async with await psycopg.AsyncConnection.connect(secure_target.dsn(channel_binding="require")) as connection:
        cursor = await connection.execute("select current_user, count(*) from generate_series(1, 10000)")
        assert await cursor.fetchone() == (secure_target.user, 10_000)
        assert connection.pgconn.ssl_in_use

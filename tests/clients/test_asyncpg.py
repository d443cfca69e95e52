"""asyncpg: its pool and that pool's reset, its names of statements, cursors, binary copy, notifications, timeouts."""

# Where an error comes up, at the statement or at the end of a block, is the driver's business: blocks may hold several.
# ruff: noqa: PT012

from __future__ import annotations

import asyncio
import datetime
import decimal
import io
import json
import ssl
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.clients.server import wait_until_running
from tests.clients.target import Target
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("asyncpg")


@pytest.fixture(scope="session")
def client_version() -> str:
    return str(asyncpg.__version__)


@pytest.fixture
async def connection(target: Target) -> AsyncIterator[Any]:
    opened = await asyncpg.connect(target.dsn())
    yield opened
    await opened.close()


async def test_values_come_back(connection: Any) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, 30, 1, 999999, tzinfo=datetime.UTC)
    values = {
        "int8": -(2**63),
        "numeric": decimal.Decimal("12345.678900"),
        "float8": 1.5e300,
        "text": "t\u00e9xt \u4e16",
        "bytea": b"\x00\xff",
        "bool": True,
        "timestamptz": moment,
        "date": moment.date(),
        "interval": datetime.timedelta(days=3, microseconds=5),
        "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "int4[]": [[1, 2], [3, None]],
        "int4range": asyncpg.Range(1, 10),
        "point": asyncpg.Point(1.5, -2),
        "bit(5)": asyncpg.BitString("10101"),
        "json": '{"a": 1}',
    }
    marks = ", ".join(f"${number}::{kind}" for number, kind in enumerate(values, 1))
    assert list(await connection.fetchrow(f"select {marks}", *values.values())) == list(values.values())


async def test_types_of_the_database_itself(connection: Any) -> None:
    """asyncpg introspects what it does not know with queries of its own."""
    await connection.execute("create type colour as enum ('red', 'green'); create type pair as (a int, b text)")
    await connection.execute(
        "create domain positive as int check (value > 0); create table typed (c colour, p pair[], d positive)"
    )
    await connection.execute("insert into typed values ($1, $2, $3)", "green", [(1, "x"), (2, None)], 5)
    row = await connection.fetchrow("select * from typed")
    assert (row["c"], [tuple(pair) for pair in row["p"]], row["d"]) == ("green", [(1, "x"), (2, None)], 5)
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    assert await connection.fetchval("select $1::jsonb", {"a": [1, None]}) == {"a": [1, None]}
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("insert into typed (d) values ($1)", -1)


async def test_several_statements_in_one_message(connection: Any) -> None:
    status = await connection.execute(
        "create temp table t (a int); insert into t values (1), (2); update t set a = a + 1"
    )
    assert status == "UPDATE 2"
    assert await connection.fetchval("select sum(a) from t") == 5


async def test_prepared_statements(connection: Any) -> None:
    statement = await connection.prepare("select n * $1::int as product from generate_series(1, $2::int) n")
    assert [attribute.name for attribute in statement.get_attributes()] == ["product"]
    assert [parameter.name for parameter in statement.get_parameters()] == ["int4", "int4"]
    for factor in range(10):
        assert [row["product"] for row in await statement.fetch(factor, 3)] == [factor, 2 * factor, 3 * factor]
    plan = await statement.explain(2, 3)
    assert plan[0]["Plan"]["Node Type"] == "Function Scan"


async def test_connections_whose_statement_names_are_the_same(target: Target) -> None:
    """Every asyncpg connection calls its statements __asyncpg_stmt_1__ and so on; each means its own."""
    connections = [await asyncpg.connect(target.dsn()) for _ in range(6)]

    async def work(number: int, connection: Any) -> None:
        for step in range(25):
            assert await connection.fetchval(f"select {number}000 + $1::int", step) == number * 1000 + step
            assert await connection.fetchval("select $1::text || $2", f"{number}", "!") == f"{number}!"

    await asyncio.gather(*(work(number, connection) for number, connection in enumerate(connections)))
    for connection in connections:
        await connection.close()


async def test_a_small_statement_cache(target: Target) -> None:
    connection = await asyncpg.connect(target.dsn(), statement_cache_size=5)
    for round_ in range(3):
        for number in range(20):
            assert await connection.fetchval(f"select $1::int + {number}", round_) == round_ + number
    await connection.reload_schema_state()
    assert await connection.fetchval("select $1::int + 3", 1) == 4
    await connection.close()


async def test_a_table_that_changes_under_a_cached_statement(connection: Any) -> None:
    await connection.execute("create table changing (a int); insert into changing values (1)")
    assert [tuple(row) for row in await connection.fetch("select * from changing")] == [(1,)]
    await connection.execute("alter table changing add column b text default 'new'")
    assert [tuple(row) for row in await connection.fetch("select * from changing")] == [(1, "new")]


async def test_transactions(connection: Any) -> None:
    await connection.execute("create table t_x (a int)")
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with connection.transaction():
            await connection.execute("insert into t_x values (1)")
            await connection.fetch("select 1/0")
    async with connection.transaction(isolation="serializable"):
        await connection.execute("insert into t_x values (2)")
        with pytest.raises(asyncpg.UndefinedTableError):
            async with connection.transaction():
                await connection.execute("insert into t_x values (3)")
                await connection.execute("select * from absent")
        assert await connection.fetchval("show transaction_isolation") == "serializable"
    assert [row["a"] for row in await connection.fetch("select a from t_x")] == [2]
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with connection.transaction(readonly=True):
            await connection.execute("insert into t_x values (4)")


async def test_cursors(connection: Any) -> None:
    async with connection.transaction():
        cursor = connection.cursor("select n from generate_series(1, $1::int) n", 1000, prefetch=64)
        assert [row["n"] async for row in cursor] == list(range(1, 1001))
        opened = await connection.cursor("select n from generate_series(1, 100) n")
        assert await opened.forward(10) == 10
        assert [row["n"] for row in await opened.fetch(5)] == [11, 12, 13, 14, 15]
        assert (await opened.fetchrow())["n"] == 16


async def test_executemany_and_fetchmany(connection: Any) -> None:
    await connection.execute("create table many (a int primary key, b text)")
    await connection.executemany("insert into many values ($1, $2)", [(n, "x" * (n % 100)) for n in range(3000)])
    assert await connection.fetchval("select count(*) from many") == 3000
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.executemany("insert into many values ($1, $2)", [(n, "") for n in range(5000, 0, -1)])
    assert await connection.fetchval("select count(*) from many") == 3000
    rows = await connection.fetchmany("insert into many values ($1, 'new') returning a", [(n,) for n in (7001, 7002)])
    assert [row["a"] for row in rows] == [7001, 7002]


async def test_copy_of_records(connection: Any) -> None:
    records = [(n, f"\u00e4 {n}", decimal.Decimal(n) / 4, None) for n in range(10_000)]
    await connection.execute("create table copied (a int, b text, c numeric, d date)")
    assert await connection.copy_records_to_table("copied", records=records) == "COPY 10000"
    assert [tuple(row) for row in await connection.fetch("select * from copied order by a")] == records
    for form in ("csv", "binary"):
        buffer = io.BytesIO()
        assert await connection.copy_from_table("copied", output=buffer, format=form) == "COPY 10000"
        buffer.seek(0)
        await connection.execute(f"create table copied_{form} (like copied)")
        assert await connection.copy_to_table(f"copied_{form}", source=buffer, format=form) == "COPY 10000"
        difference = f"select count(*) from (table copied except all table copied_{form}) d"
        assert await connection.fetchval(difference) == 0


async def test_a_copy_that_fails_on_either_side(connection: Any) -> None:
    await connection.execute("create table refused (a int check (a < 10))")

    async def gives_up() -> AsyncIterator[bytes]:
        yield b"1\n"
        raise LookupError("no more")

    with pytest.raises(LookupError):
        await connection.copy_to_table("refused", source=gives_up())
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.copy_records_to_table("refused", records=[(n,) for n in range(20_000)])
    query = "select 10 / (1000 - n) from generate_series(1, 5000) n"
    with pytest.raises(asyncpg.DivisionByZeroError):
        await connection.copy_from_query(query, output=io.BytesIO())
    assert await connection.fetchval("select count(*) from refused") == 0


async def test_notifications(target: Target, connection: Any) -> None:
    received: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(target.dsn())
    await listener.add_listener("news", lambda _connection, _pid, _channel, payload: received.put_nowait(payload))
    for number in range(5):
        await connection.execute("select pg_notify('news', $1)", str(number))
    assert [await asyncio.wait_for(received.get(), 10) for _ in range(5)] == ["0", "1", "2", "3", "4"]
    await listener.close()


async def test_logged_notices(connection: Any) -> None:
    seen: list[str] = []
    connection.add_log_listener(lambda _connection, message: seen.append(message.message))
    await connection.execute("do $$ begin raise warning 'careful'; raise notice 'note'; end $$")
    await connection.fetchval("select 1")
    assert seen == ["careful", "note"]


async def test_a_time_limit_cancels_the_query(connection: Any, target: Target, postgres: Postgres) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await connection.fetch("select pg_sleep(60)", timeout=0.2)
    assert await connection.fetchval("select 'alive'") == "alive"
    task = asyncio.create_task(connection.fetch("select pg_sleep(60) /* task */"))
    await asyncio.to_thread(wait_until_running, postgres, target, "task")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await connection.fetchval("select 'alive'") == "alive"


async def test_cancels_in_a_row_hit_nothing_else(connection: Any) -> None:
    """The query after a time limit must never get the cancel of the one before."""
    for number in range(10):
        with pytest.raises(asyncio.TimeoutError):
            await connection.fetch("select pg_sleep(60)", timeout=0.02)
        assert (
            await connection.fetchval("select $1::int + count(*) from generate_series(1, 20000)", number)
            == number + 20000
        )


async def test_its_own_pool(target: Target) -> None:
    """More tasks than connections; the pool resets each connection on release, as it does by default."""
    async with asyncpg.create_pool(target.dsn(), min_size=3, max_size=8) as pool:
        await pool.execute("create table pooled (a int)")

        async def work(number: int) -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("set local work_mem = '1MB'")
                await connection.execute("insert into pooled values ($1)", number)
                await connection.execute("select pg_advisory_lock(1); select pg_advisory_unlock(1)")

        await asyncio.gather(*(work(number) for number in range(100)))
        assert await pool.fetchval("select count(distinct a) from pooled") == 100
        async with pool.acquire() as connection:
            await connection.execute("set work_mem = '7MB'; create temp table leftover (a int)")
        for _ in range(10):
            assert await pool.fetchval("show work_mem") != "7MB"


async def test_a_pool_that_is_abused(target: Target) -> None:
    """A connection released in mid-transaction is rolled back; one whose task is cancelled is replaced or usable."""
    async with asyncpg.create_pool(target.dsn(), min_size=1, max_size=2) as pool:
        await pool.execute("create table abused (a int)")
        async with pool.acquire() as connection:
            await connection.execute("begin; insert into abused values (1)")
        assert await pool.fetchval("select count(*) from abused") == 0
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await pool.fetch("select pg_sleep(60)", timeout=0.05)
        assert await asyncio.gather(*(pool.fetchval("select $1::int", n) for n in range(10))) == list(range(10))


async def test_settings_of_the_start(target: Target) -> None:
    settings = {"work_mem": "6MB", "application_name": "matrix", "search_path": "pg_catalog", "TimeZone": "Asia/Tokyo"}
    connection = await asyncpg.connect(target.dsn(), server_settings=settings)
    for _ in range(3):
        for name, value in settings.items():
            assert await connection.fetchval(f"show {name}") == value
        await connection.execute("set work_mem = '8MB'")
        await connection.reset()
    assert connection.get_settings().TimeZone == "Asia/Tokyo"
    assert connection.get_server_version().major >= 14
    await connection.close()


async def test_errors_at_the_start(target: Target) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError, match='database "absent" does not exist'):
        await asyncpg.connect(target.dsn(), database="absent")
    with pytest.raises(asyncpg.CantChangeRuntimeParamError):
        await asyncpg.connect(target.dsn(), server_settings={"max_connections": "5"})


async def test_errors_point_at_the_place(connection: Any) -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError) as caught:
        await connection.fetch("select '\u00e4\u00e4' frm nowhere")
    assert (caught.value.sqlstate, caught.value.position) == ("42601", "17")


async def test_big_values(connection: Any) -> None:
    big = bytes(range(256)) * 40_000
    assert await connection.fetchval("select $1::bytea || $1::bytea", big) == big + big


async def test_tls_and_scram(secure_target: Target) -> None:
    context = ssl.create_default_context(cafile=str(secure_target.certificate_authority))
    context.set_alpn_protocols(["postgresql"])
    address = {
        "host": secure_target.host,
        "port": secure_target.port,
        "database": secure_target.database,
        "ssl": context,
    }
    connection = await asyncpg.connect(user=secure_target.user, password=secure_target.password, **address)
    assert await connection.fetchval("select current_user") == secure_target.user
    assert await connection.fetchval("select $1::text", "x" * 2_000_000) == "x" * 2_000_000
    await connection.close()
    with pytest.raises(asyncpg.InvalidPasswordError, match="password authentication failed for user"):
        await asyncpg.connect(user=secure_target.user, password="wrong", **address)
    for direct in (True, False):
        more = await asyncpg.connect(
            user=secure_target.user, password=secure_target.password, direct_tls=direct, **address
        )
        assert await more.fetchval("select 1") == 1
        await more.close()

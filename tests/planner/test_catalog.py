"""Reading the catalog of a real server, and keeping it up to date through whatever happens to the database."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from planner.catalog import CatalogSettings, CatalogWatcher, load
from planner.snapshot import ForeignKey, Snapshot
from tests.planner.made_schema import SCHEMA
from tests.support.postgres import Postgres

QUICK = CatalogSettings(poll=0.1, pause=0.0, statement_timeout=5)


async def until(check: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture
def database(postgres: Postgres) -> str:
    name = postgres.create_database()
    postgres.sql(
        "CREATE TABLE one (id integer PRIMARY KEY, name text); INSERT INTO one VALUES (1, 'a'), (2, 'b')", name
    )
    return name


@pytest_asyncio.fixture
async def connection(postgres: Postgres, database: str) -> AsyncIterator[Any]:
    opened = await asyncpg.connect(postgres.dsn(database))
    yield opened
    await opened.close()


def test_tables_columns_and_keys(made: Snapshot) -> None:
    patron, item, parcel = (made.tables["public", name] for name in ("patron", "item", "parcel"))
    assert {name: column.type for name, column in patron.columns.items()} == {
        "id": "integer", "name": "text", "mail": "character varying", "town": "text", "area": "character",
        "born": "date", "vip": "boolean", "score": "numeric", "balance": "double precision", "remark": "text",
        "since": "timestamp with time zone", "tag": "integer[]",
    }  # fmt: skip
    assert patron.columns["id"].not_null
    assert not patron.columns["name"].not_null
    assert patron.rows == 6000
    assert [(index.columns, index.unique) for index in patron.indexes] == [(("id",), True), (("born",), False)]
    assert item.indexes[0].columns == ("sale_id", "place")
    assert parcel.foreign_keys == (ForeignKey(("sale_id", "place"), ("public", "item"), ("sale_id", "place")),)
    assert patron.steerable
    assert made.server_version >= 140000
    assert made.default_search_path == ("public",)


def test_statistics_are_values_of_their_types(made: Snapshot) -> None:
    columns = made.tables["public", "patron"].columns

    def known(name: str) -> set[type]:
        statistics = columns[name].statistics
        assert statistics is not None
        return {type(value) for value in (*statistics.common_values, *statistics.histogram)}

    assert known("id") == {int}
    assert known("town") == {str}
    assert known("born") == {date}
    assert known("vip") == {bool}
    assert known("score") == {Decimal}
    assert known("balance") == {float}
    assert known("since") == {datetime}
    statistics = columns["since"].statistics
    assert statistics is not None
    first = statistics.histogram[0]
    assert isinstance(first, datetime)
    assert first.tzinfo == UTC
    vip = columns["vip"].statistics
    assert vip is not None
    assert vip.null_frac == pytest.approx(0.05, abs=0.02)
    assert sum(vip.common_freqs) == pytest.approx(1 - vip.null_frac, abs=1e-5)
    assert (columns["id"].least, columns["id"].greatest) == (1, 6000)
    assert columns["town"].least is None
    area = columns["area"].statistics
    assert area is not None
    assert all(len(str(value)) == 2 for value in area.common_values)


def test_extended_statistics(made: Snapshot) -> None:
    (extended,) = made.tables["public", "patron"].extended
    assert extended.columns == ("town", "area")
    assert extended.dependencies[frozenset({"town"}), "area"] == pytest.approx(1, abs=0.01)
    assert extended.n_distinct[frozenset({"town", "area"})] == pytest.approx(41, abs=3)


def test_what_must_be_left_alone_is_told_apart(made: Snapshot) -> None:
    assert made.tables["public", "hidden"].row_security
    assert not made.tables["public", "hidden"].steerable
    assert made.tables["public", "hidden"].sample is None
    assert made.tables["public", "good"].kind == "v"
    assert made.find("pg_class", None, ("public",)) == made.tables["pg_catalog", "pg_class"]
    assert {"random", "nextval", "clock_timestamp"} <= made.volatile_functions
    assert not {"lower", "now", "sum", "date_trunc"} & made.volatile_functions


def test_a_partitioned_table_has_the_rows_of_its_partitions(made: Snapshot) -> None:
    parted = made.tables["public", "parted"]
    assert (parted.kind, parted.rows) == ("p", 5000)
    assert parted.columns["at"].statistics is not None
    assert parted.sample is not None
    assert parted.sample.size == 5000


def test_samples(made: Snapshot) -> None:
    patron, item = made.tables["public", "patron"], made.tables["public", "item"]
    assert patron.sample is not None
    assert (patron.sample.size, patron.sample.fraction) == (6000, 1.0)
    assert "tag" not in patron.sample.columns
    assert item.sample is not None
    assert 7000 < item.sample.size < 9000
    assert item.sample.fraction == pytest.approx(item.sample.size / item.rows)
    assert {len(values) for values in item.sample.columns.values()} == {item.sample.size}


async def test_the_same_schema_has_the_same_hash_elsewhere(postgres: Postgres, made: Snapshot) -> None:
    other = postgres.create_database()
    postgres.sql("CREATE TABLE first_oid_is_another (x integer); DROP TABLE first_oid_is_another", other)
    postgres.sql(SCHEMA.split("INSERT INTO patron")[0], other)
    opened = await asyncpg.connect(postgres.dsn(other))
    before = (await load(opened)).schema_hash
    assert before != made.schema_hash
    postgres.sql("DROP TABLE patron", other)
    postgres.sql(SCHEMA.split("INSERT INTO patron")[0], other)
    assert (await load(opened)).schema_hash == before
    postgres.sql("ALTER TABLE patron ALTER id TYPE bigint", other)
    assert (await load(opened)).schema_hash != before
    await opened.close()


async def test_pg_hint_plan_is_seen_where_every_session_has_it(postgres: Postgres, connection: Any) -> None:
    assert ("hint_plan" in (await load(connection)).capabilities) is postgres.hint_plan
    if postgres.hint_plan:
        without = await asyncpg.connect(
            postgres.dsn(connection.get_settings().application_name or "postgres"),
            server_settings={"session_preload_libraries": ""},
        )
        assert "hint_plan" not in (await load(without)).capabilities
        await without.close()


async def test_strange_names_and_values(postgres: Postgres, database: str, connection: Any) -> None:
    postgres.sql(
        """
        CREATE SCHEMA "we""ird"; CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
        CREATE TABLE "we""ird"."Ta ble" ("Co""l" text, "select" positive, at timestamp, gone integer, big text,
            n numeric);
        ALTER TABLE "we""ird"."Ta ble" DROP COLUMN gone;
        INSERT INTO "we""ird"."Ta ble" SELECT 'a' || i % 3, i, CASE i % 4 WHEN 0 THEN 'infinity'::timestamp
            WHEN 1 THEN '-infinity' WHEN 2 THEN '0044-03-15 BC' ELSE '2020-01-01' END, repeat('x', 100000), 'NaN'
            FROM generate_series(1, 400) i;
        CREATE INDEX ON "we""ird"."Ta ble" (at);
        ANALYZE "we""ird"."Ta ble";
        """,
        database,
    )
    snapshot = await load(connection)
    table = snapshot.tables['we"ird', "Ta ble"]
    assert list(table.columns) == ['Co"l', "select", "at", "big", "n"]
    assert table.columns["select"].type == "integer"
    assert table.sample is not None
    assert set(table.sample.columns) == {'Co"l', "select", "at", "n"}
    assert "0044-03-15 00:00:00 BC" in table.sample.columns["at"]  # beyond Python's calendar: as text
    statistics = table.columns["at"].statistics
    assert statistics is not None
    assert "infinity" in statistics.common_values
    assert table.rows == 400


async def test_long_text_is_cut_and_memory_is_bounded(postgres: Postgres, database: str, connection: Any) -> None:
    postgres.sql(
        "CREATE TABLE wide AS SELECT i, repeat('x', 300) AS t FROM generate_series(1, 3000) i; ANALYZE wide", database
    )
    settings = CatalogSettings(value_characters=200, sample_bytes=1 << 18)
    sample = (await load(connection, settings=settings)).tables["public", "wide"].sample
    assert sample is not None
    assert 500 < sample.size < 1500
    assert {len(str(value)) for value in sample.columns["t"]} == {200}
    short = (await load(connection, settings=CatalogSettings(value_characters=100))).tables["public", "wide"].sample
    assert short is not None
    assert list(short.columns) == ["i"]  # documents stay out
    none = await load(connection, sample_rows=0)
    assert none.tables["public", "wide"].sample is None


async def test_a_table_that_may_not_be_read_only_lacks_its_sample(postgres: Postgres, database: str) -> None:
    role = postgres.create_role("secret")
    postgres.sql(f"ANALYZE; CREATE TABLE mine AS SELECT 1 AS a; ALTER TABLE mine OWNER TO {role}", database)
    opened = await asyncpg.connect(postgres.dsn(database, role), password="secret")
    snapshot = await load(opened)
    await opened.close()
    assert snapshot.tables["public", "one"].sample is None
    assert snapshot.tables["public", "mine"].sample is not None


async def test_a_locked_table_keeps_the_sample_it_had(postgres: Postgres, database: str, connection: Any) -> None:
    postgres.sql("ANALYZE", database)
    before = await load(connection)
    holder = await asyncpg.connect(postgres.dsn(database))
    async with holder.transaction():
        await holder.execute("LOCK TABLE one IN ACCESS EXCLUSIVE MODE")
        settings = CatalogSettings(statement_timeout=2)
        after = await load(connection, settings=settings, known=before)
    await holder.close()
    assert after.tables["public", "one"].sample == before.tables["public", "one"].sample is not None


async def test_a_temporary_table_of_the_same_name_makes_a_table_doubtful(
    postgres: Postgres, database: str, connection: Any
) -> None:
    other = await asyncpg.connect(postgres.dsn(database))
    await other.execute("CREATE TEMPORARY TABLE one (x integer)")
    assert (await load(connection)).tables["public", "one"].temporary
    await other.close()


async def test_the_event_loop_is_not_kept(made_dsn: str) -> None:
    """Steps are measured in the CPU time of this thread: another program's turn on the core is none of the load's, and
    neither is the collection of all the garbage of the tests before."""
    opened = await asyncpg.connect(made_dsn)
    longest, stop = 0.0, False

    async def tick() -> None:
        nonlocal longest
        last = time.thread_time()
        while not stop:
            now = time.thread_time()
            longest, last = max(longest, now - last), now
            await asyncio.sleep(0)

    gc.collect()
    gc.freeze()
    ticking = asyncio.create_task(tick())
    try:
        await load(opened)
    finally:
        gc.unfreeze()
    stop = True
    await ticking
    await opened.close()
    print(f"\nlongest step of a load: {longest * 1e3:.1f} ms")
    assert longest < 0.1


# ---------------------------------------------------------------------- the watcher


async def test_the_watcher_sees_changes(postgres: Postgres, database: str) -> None:
    seen: list[Snapshot] = []
    async with CatalogWatcher(postgres.dsn(database), settings=QUICK, changed=seen.append) as watcher:
        first = await watcher.ready(10)
        assert first.generation == 1
        postgres.sql("ALTER TABLE one ADD COLUMN extra date", database)
        await until(lambda: "extra" in watcher.snapshot.tables["public", "one"].columns, "the new column")  # type: ignore[union-attr]
        postgres.sql("ANALYZE one", database)
        await until(
            lambda: watcher.snapshot.tables["public", "one"].columns["id"].statistics is not None,  # type: ignore[union-attr]
            "the statistics",
        )
        postgres.sql("INSERT INTO one SELECT i FROM generate_series(10, 5000) i", database)
        await until(lambda: watcher.snapshot.tables["public", "one"].rows > 10, "the rows")  # type: ignore[union-attr]
        loads = watcher.loads
        await asyncio.sleep(0.5)
        assert watcher.loads <= loads + 1  # the server counts changes a moment late
        assert watcher.failures == 0
    assert [snapshot.generation for snapshot in seen] == list(range(1, len(seen) + 1))
    assert first.tables["public", "one"].columns.keys() == {"id", "name"}


async def test_the_watcher_refreshes_on_its_schedule_and_on_request(postgres: Postgres, database: str) -> None:
    settings = CatalogSettings(poll=0.05, interval=0.3)
    async with CatalogWatcher(postgres.dsn(database), settings=settings) as watcher:
        await watcher.ready(10)
        await until(lambda: watcher.loads >= 3, "loads on schedule")
    slow = CatalogSettings(poll=60, interval=60)
    async with CatalogWatcher(postgres.dsn(database), settings=slow) as watcher:
        await watcher.ready(10)
        watcher.request()
        await until(lambda: watcher.loads == 2, "the load that was asked for")


async def test_a_database_that_is_watched_can_be_dropped(postgres: Postgres) -> None:
    name = postgres.create_database()
    async with CatalogWatcher(postgres.dsn(name), settings=QUICK) as watcher:
        await watcher.ready(10)
        await asyncio.to_thread(postgres.sql, f"DROP DATABASE {name}")
        assert watcher.snapshot is not None


async def test_the_watcher_survives_the_database(start_postgres: Callable[..., Postgres]) -> None:
    server = start_postgres()
    server.sql("CREATE TABLE one (id integer)")
    failures: list[Exception] = []
    watcher = CatalogWatcher(server.dsn(), settings=QUICK, failed=failures.append)
    watcher.start()
    before = await watcher.ready(10)
    await asyncio.to_thread(server.kill)
    await until(lambda: watcher.failures >= 2, "failures are counted")
    assert watcher.snapshot is before
    assert failures
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.sql, "CREATE TABLE two (id integer)")
    await until(lambda: ("public", "two") in watcher.snapshot.tables, "it is back")  # type: ignore[union-attr]
    await until(lambda: watcher.failures_in_a_row == 0, "nothing fails any more")
    await watcher.close()
    await watcher.close()


async def test_a_backend_that_hangs_is_given_up(postgres: Postgres, database: str) -> None:
    settings = QUICK.model_copy(update={"statement_timeout": 0.5})
    opened: list[Any] = []
    hung: list[int] = []

    async def connect() -> Any:
        opened.append(await asyncpg.connect(postgres.dsn(database)))
        if len(opened) == 2:
            hung.append(opened[-1].get_server_pid())
            os.kill(hung[0], signal.SIGSTOP)
        return opened[-1]

    async with CatalogWatcher(connect=connect, settings=settings) as watcher:
        await watcher.ready(10)
        try:
            await until(lambda: watcher.failures > 0, "the failure is counted")
            await until(lambda: len(opened) > 2 and watcher.failures_in_a_row == 0, "another connection")
        finally:
            os.kill(hung[0], signal.SIGCONT)
        assert opened[1].is_closed()


async def test_a_refresh_at_once_raises_and_close_interrupts(postgres: Postgres) -> None:
    watcher = CatalogWatcher(postgres.dsn("no_such_database"))
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await watcher.refresh()
    watcher.start()
    await until(lambda: watcher.failures == 1, "the failure")
    with pytest.raises(TimeoutError):
        await watcher.ready(0.05)
    begun = time.monotonic()
    await watcher.close()
    assert time.monotonic() - begun < 8
    assert watcher.snapshot is None
    with pytest.raises(ValueError, match="either"):
        CatalogWatcher()


async def test_connections_can_be_made_by_the_caller(postgres: Postgres, database: str) -> None:
    opened: list[Any] = []

    async def connect() -> Any:
        opened.append(await asyncpg.connect(postgres.dsn(database)))
        return opened[-1]

    watcher = CatalogWatcher(connect=connect)
    assert ("public", "one") in (await watcher.refresh()).tables
    await watcher.close()
    assert len(opened) == 1
    assert opened[0].is_closed()

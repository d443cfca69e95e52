"""Loading into a real server: every row, every key, and a marker that only a finished load leaves."""

from __future__ import annotations

import asyncpg
import pytest

from pilotwire.demo import load, schema
from pilotwire.demo.training_queries import training_queries
from pilotwire.demo.workload import workload
from tests.support.postgres import Postgres

# One database, filled by the first test and used by all.
pytestmark = pytest.mark.xdist_group("demo load")
SCALE = 0.005


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    return postgres.create_database()


async def test_load_is_whole_and_known_again(postgres: Postgres, database: str) -> None:
    dsn = postgres.dsn(database)
    told: list[tuple[str, float]] = []
    assert not await load.is_loaded(dsn, 1, SCALE)
    rows = await load.load(dsn, 1, SCALE, lambda step, share: told.append((step, share)))
    assert await load.is_loaded(dsn, 1, SCALE)
    assert not await load.is_loaded(dsn, 2, SCALE)
    counts = [int(postgres.sql(f"SELECT count(*) FROM {table}", database)) for table in schema.PRIMARY_KEYS]
    assert sum(counts) == rows
    keys = postgres.sql(
        "SELECT contype, count(*) FROM pg_constraint "
        "WHERE contype IN ('f', 'p') AND connamespace = 'public'::regnamespace GROUP BY 1",
        database,
    )
    assert sorted(keys.splitlines()) == [f"f|{len(schema.FOREIGN_KEYS)}", f"p|{len(schema.PRIMARY_KEYS)}"]
    assert postgres.sql("SELECT count(*) > 40 FROM pg_stats WHERE schemaname = 'public'", database) == "t"
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert told[-1] == ("loaded", 1.0)


async def test_nulls_money_and_dates_arrive_as_they_are(postgres: Postgres, database: str) -> None:
    answers = postgres.sql(
        "SELECT count(*) FILTER (WHERE promotion_id IS NULL) > 0, min(promotion_id) >= 1, min(total) > 0 FROM orders;"
        "SELECT count(*) FILTER (WHERE city IS NULL), count(*) FILTER (WHERE kind = 'online') FROM stores;"
        "SELECT count(*) FILTER (WHERE discontinued_on IS NULL) > 0, bool_and(price = round(price, 2)) FROM products",
        database,
    ).splitlines()
    assert answers == ["t|t|t", "12|12", "t|t"]


async def test_an_interrupted_load_is_not_taken_for_a_whole_one(postgres: Postgres, database: str) -> None:
    def fail(step: str, _: float) -> None:
        if step.startswith("checking"):
            raise RuntimeError(step)

    with pytest.raises(RuntimeError):
        await load.load(postgres.dsn(database), 1, SCALE, fail)
    assert not await load.is_loaded(postgres.dsn(database), 1, SCALE)
    await load.load(postgres.dsn(database), 1, SCALE, lambda *_: None)


async def test_every_statement_and_training_query_is_valid_here(postgres: Postgres, database: str) -> None:
    connection = await asyncpg.connect(postgres.dsn(database), ssl=False)
    try:
        for statement in workload(1, SCALE):
            await connection.execute(statement.sql)
        for sql in training_queries(1, scale=SCALE):
            await connection.execute(f"EXPLAIN {sql}")
    finally:
        await connection.close()

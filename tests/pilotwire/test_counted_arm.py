"""True rows from counting, as advice."""

from __future__ import annotations

import pytest

from pilotwire.counted_arm import counted_advice
from planner.catalog_load import load
from planner.explore.server import connect
from tests.planner.explore.shop import SCHEMA, SLOW
from tests.support.postgres import Postgres


@pytest.fixture(scope="module")
def shop_dsn(postgres: Postgres) -> str:
    database = postgres.create_database()
    postgres.sql(SCHEMA, database)
    return postgres.dsn(database)


async def test_every_join_is_counted(shop_dsn: str) -> None:
    connection = await connect(shop_dsn)
    try:
        snapshot = await load(connection)
        sql = SLOW.replace("WHERE", "JOIN sold s ON s.part_id = p.id WHERE")
        advice = await counted_advice(connection, sql, snapshot, (), 20.0)
        assert advice is not None
        told = {frozenset(one.aliases): one.rows for one in advice.rows}
        for aliases, query in {
            "ps": "SELECT count(*) FROM part p JOIN sold s ON s.part_id = p.id WHERE p.kind = 7 AND p.sort = 7 "
            "AND p.kind + p.sort = 14 AND p.kind - p.sort = 0",
            "pqs": sql,
        }.items():
            if frozenset(aliases) in told:
                assert told[frozenset(aliases)] == max(await connection.fetchval(query), 1)
        assert frozenset("ps") in told
        assert advice.relations == 3
        for other in ("SELECT 1", "not sql", "SELECT count(*) FROM part"):
            assert await counted_advice(connection, other, snapshot, (), 20.0) is None
        assert await counted_advice(connection, sql, snapshot, (), 0.0) is None
        assert not connection.is_in_transaction()
    finally:
        await connection.close()

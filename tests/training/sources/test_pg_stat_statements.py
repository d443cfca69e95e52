"""Statements that a real pg_stat_statements counted, with likely values."""

from __future__ import annotations

import asyncpg
import pytest

from planner.catalog_load import load
from planner.snapshot import Snapshot
from tests.conftest import StartPostgres
from tests.training import shop
from training.errors import TrainingError
from training.queries import OWN
from training.sources.parameters import VARIANTS
from training.sources.pg_stat_statements import read_statements

JOINED = "SELECT count(*) FROM customers c JOIN orders o ON c.id = o.customer_id"


async def test_the_dearest_statements_are_taken(start_postgres: StartPostgres) -> None:
    server = start_postgres(config={"shared_preload_libraries": "pg_stat_statements"})
    connection = await asyncpg.connect(shop.create(server))
    try:
        await connection.execute("CREATE SCHEMA extensions; CREATE EXTENSION pg_stat_statements SCHEMA extensions")
        for age in (20, 30):
            await connection.fetch(f"{JOINED} WHERE c.age < {age}")
        await connection.fetch(f"{JOINED} WHERE o.placed >= date '2024-05-01' - interval '1 day'")
        await connection.fetch("SELECT * FROM orders WHERE id = 5")
        await connection.fetch(f"SELECT {OWN} count(*) FROM customers c, orders o WHERE c.id = o.customer_id")
        snapshot = await load(connection)
        told = await read_statements(connection, snapshot, ("public",), limit=100)
        none = await read_statements(connection, snapshot, ("public",), limit=0)
    finally:
        await connection.close()
    filled = [one for one in told.statements if "c.age" in one.text]
    assert 1 <= len(filled) <= VARIANTS
    assert all("$" not in one.text and one.calls == 2 and one.total_ms > 0 for one in filled)
    assert told.left_out["no join of tables"] >= 1
    assert told.left_out["counted by pilotwire itself"] == 1
    assert not any("count(*) FROM customers c, orders o" in one.text for one in told.statements)
    assert none.statements == []


async def test_where_it_is_not_installed(shop_dsn: str, shop_snapshot: Snapshot) -> None:
    connection = await asyncpg.connect(shop_dsn)
    try:
        with pytest.raises(
            TrainingError, match="pg_stat_statements is not installed in this database: CREATE EXTENSION"
        ):
            await read_statements(connection, shop_snapshot, ("public",), limit=5)
    finally:
        await connection.close()

"""Fixtures of the planner's tests that need a database with the made-up schema."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from planner.catalog import load
from planner.snapshot import Snapshot
from tests.planner.made_schema import SCHEMA
from tests.support.postgres import Postgres


@pytest.fixture(scope="session")
def made_dsn(postgres: Postgres) -> str:
    """A database with `made_schema.SCHEMA`, to be read only."""
    database = postgres.create_database()
    postgres.sql(SCHEMA, database)
    return postgres.dsn(database)


@pytest.fixture(scope="session")
def made(made_dsn: str) -> Snapshot:
    """What the catalog says of it; small tables are sampled whole."""

    async def read() -> Snapshot:
        connection = await asyncpg.connect(made_dsn)
        try:
            return await load(connection, sample_rows=8000)
        finally:
            await connection.close()

    return asyncio.run(read())

"""The shop's database, made once for the tests of this folder."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from planner.catalog_load import load
from planner.snapshot import Snapshot
from tests.support.postgres import Postgres
from tests.training import shop


@pytest.fixture(scope="session")
def shop_dsn(postgres: Postgres) -> str:
    return shop.create(postgres)


@pytest.fixture(scope="session")
def shop_snapshot(shop_dsn: str) -> Snapshot:
    async def read() -> Snapshot:
        connection = await asyncpg.connect(shop_dsn)
        try:
            return await load(connection)
        finally:
            await connection.close()

    return asyncio.run(read())

"""The small database of `shop`, made once, on a server with pg_hint_plan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from planner.explore.server import connect
from tests.planner.explore.shop import SCHEMA
from tests.support.postgres import Postgres


@pytest.fixture(scope="session")
def shop_dsn(hinted_postgres: Postgres) -> str:
    database = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, database)
    return hinted_postgres.dsn(database)


@pytest.fixture
async def shop(shop_dsn: str) -> AsyncIterator[Any]:
    connection = await connect(shop_dsn)
    yield connection
    await connection.close()

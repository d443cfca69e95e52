"""A database with a chain of four tables, and sessions in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.planner.dialects.plans import Session
from tests.support.postgres import Postgres
from tests.support.wireclient import WireClient

SCHEMA = """\
CREATE TABLE a AS SELECT g AS id, g % 100 AS k FROM generate_series(1, 1000) g;
CREATE TABLE b AS SELECT g AS id, g % 100 AS k, g % 1000 + 1 AS a_id FROM generate_series(1, 5000) g;
CREATE TABLE c AS SELECT g AS id, g % 100 AS k, g % 5000 + 1 AS b_id FROM generate_series(1, 20000) g;
CREATE TABLE d AS SELECT g AS id, g % 100 AS k, g % 20000 + 1 AS c_id FROM generate_series(1, 20000) g;
CREATE TABLE t AS SELECT g AS id, g % 10 AS k FROM generate_series(1, 100) g;
CREATE INDEX ON d (k);
VACUUM ANALYZE;
"""
OpenSession = Callable[..., Awaitable[Session]]


@pytest.fixture(scope="package")
def hinted_database(hinted_postgres: Postgres) -> Iterator[str]:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    yield name
    hinted_postgres.drop_database(name)


@pytest.fixture
async def open_session(hinted_postgres: Postgres, hinted_database: str) -> AsyncIterator[OpenSession]:
    """Open sessions: ``await open_session(geqo="off")``, the settings in the start-up packet; no parallel plans."""
    opened: list[WireClient] = []

    async def start(**settings: str) -> Session:
        wanted = {"max_parallel_workers_per_gather": "0", **settings}
        opened.append(await WireClient.connect(hinted_postgres, hinted_database, settings=wanted))
        return Session(opened[-1])

    yield start
    for client in opened:
        await client.close()


@pytest.fixture
async def session(open_session: OpenSession) -> Session:
    return await open_session()


@pytest.fixture(scope="package")
def plain_database(postgres: Postgres) -> Iterator[str]:
    """The same tables for what needs no pg_hint_plan."""
    name = postgres.create_database()
    postgres.sql(SCHEMA, name)
    yield name
    postgres.drop_database(name)


@pytest.fixture
async def plain_session(postgres: Postgres, plain_database: str) -> AsyncIterator[Session]:
    client = await WireClient.connect(postgres, plain_database, settings={"max_parallel_workers_per_gather": "0"})
    yield Session(client)
    await client.close()

"""Types of parameters that a client left open, as the server gives them."""

from __future__ import annotations

import asyncpg
import pytest

from planner.catalog import load
from planner.param_types import ARRAYS, OIDS, completed, infer
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from tests.support.postgres import Postgres

SCHEMA = """
CREATE TABLE a (id int, big bigint, small smallint, name text, code varchar(10), made date, at timestamptz,
    price numeric, share float8, ok bool, tag uuid);
CREATE TABLE b (id int, a_id int, name text);
"""
CONDITIONS = [
    "a.id = $1",
    "$1 < a.big",
    "a.small IN ($1, $2)",
    "a.id = ANY ($1)",
    "a.made BETWEEN $1 AND $2",
    "a.name LIKE $1",
    "a.code = $1",
    "a.at >= $1 OR a.price = $2",
    "NOT (a.share > $1)",
    "a.tag = $1 AND b.name = $2",
    "a.id = $1::bigint",
    "a.ok = $1",
    "b.id = a.id AND a.name <> ALL ($1)",
]


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    name = postgres.create_database()
    postgres.sql(SCHEMA, name)
    return name


async def test_they_are_those_that_the_server_gives(postgres: Postgres, database: str) -> None:
    connection = await asyncpg.connect(postgres.dsn(database))
    try:
        snapshot = await load(connection)
        for text in CONDITIONS:
            sql = f"SELECT * FROM a JOIN b ON b.a_id = a.id WHERE {text}"
            statement = await connection.prepare(sql)
            wanted = {number: type.oid for number, type in enumerate(statement.get_parameters(), 1)}
            assert _inferred(sql, snapshot) == wanted, text
    finally:
        await connection.close()


def _inferred(sql: str, snapshot: Snapshot) -> dict[int, int]:
    graph = read(sql).graph
    assert graph is not None
    return infer(resolve(graph, snapshot, ("public",)))


def test_given_types_stay() -> None:
    assert completed((20, 0), {1: 23, 2: 25}) == (20, 25)
    assert completed((), {2: 25}) == (0, 25)
    assert completed((20, 23), {1: 25}) == (20, 23)
    assert completed((0,), {}) == (0,)
    assert completed((0, 0, 0), {1: 25}) == (25, 0, 0)


async def test_oids_are_the_servers(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.dsn())
    try:
        for name, oid in OIDS.items():
            found = await connection.fetchval("SELECT $1::regtype::oid", name)
            assert found == oid or name in ("varchar", "character varying")
            if oid in ARRAYS:
                assert await connection.fetchval("SELECT typarray FROM pg_type WHERE oid = $1", oid) == ARRAYS[oid]
    finally:
        await connection.close()

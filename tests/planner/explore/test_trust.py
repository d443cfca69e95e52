"""Code of users with fewer rights than ours is not run with ours, however it comes into a statement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.explore.server import NotExplorableError
from planner.explore.trust import check_trusted, named
from tests.support.postgres import Postgres

PLAIN = "SELECT count(*) FROM one JOIN two USING (a) WHERE lower(b) LIKE 'x%' AND a BETWEEN 1 AND 2"


@pytest.fixture
async def weak(postgres: Postgres) -> AsyncIterator[tuple[Any, Any]]:
    """A superuser's connection to a database of its own, and that of somebody who may create there."""
    database = postgres.create_database()
    role = postgres.create_role("secret")
    postgres.sql(
        "CREATE TABLE one (a int, b text); CREATE TABLE two (a int);"
        f"GRANT CREATE ON SCHEMA public TO {role}; GRANT SELECT ON one, two TO {role}",
        database,
    )
    ours = await asyncpg.connect(postgres.dsn(database))
    theirs = await asyncpg.connect(postgres.dsn(database, role), password="secret")
    yield ours, theirs
    await ours.close()
    await theirs.close()
    postgres.drop_database(database)


CASES: dict[str, tuple[str, str]] = {
    "a function": (
        "CREATE FUNCTION trap(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
        "SELECT count(*) FROM one JOIN two USING (a) WHERE a = public.TRAP(1)",
    ),
    "a quoted function": (
        "CREATE FUNCTION \"Trap door\"(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
        'SELECT 1 FROM one, two WHERE one.a = "Trap door"(1)',
    ),
    "a function by another spelling": (
        "CREATE FUNCTION trap(one) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'",
        "SELECT one.trap FROM one, two",
    ),
    "a built-in's name": ("CREATE FUNCTION lower(one) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT 1::text'", PLAIN),
    "an operator": (
        "CREATE FUNCTION same(int, text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';"
        "CREATE OPERATOR = (LEFTARG = int, RIGHTARG = text, FUNCTION = same)",
        "SELECT 1 FROM one JOIN two ON one.b IN (two.a)",
    ),
    "a domain": ("CREATE DOMAIN small AS int CHECK (VALUE < 10)", "SELECT 1 FROM one JOIN two ON one.a = '3'::small"),
    "a view": ("CREATE VIEW three AS SELECT a FROM two", "SELECT 1 FROM one JOIN three USING (a)"),
    "a cast": (
        "CREATE TYPE mine AS (x int);"
        "CREATE FUNCTION to_mine(int) RETURNS mine IMMUTABLE LANGUAGE sql AS 'SELECT ROW($1)::mine';"
        "CREATE CAST (int AS mine) WITH FUNCTION to_mine(int) AS IMPLICIT",
        "SELECT 1 FROM one, two",
    ),
}


@pytest.mark.parametrize(("made", "sql"), CASES.values(), ids=CASES)
async def test_what_another_user_made_is_not_run_with_our_rights(weak: tuple[Any, Any], made: str, sql: str) -> None:
    ours, theirs = weak
    await check_trusted(ours, PLAIN)
    await theirs.execute(made)
    with pytest.raises(NotExplorableError, match="another user"):
        await check_trusted(ours, sql)
    # They are welcome to what is their own.
    await check_trusted(theirs, sql)
    assert not ours.is_in_transaction()


async def test_a_superusers_own_are_trusted(weak: tuple[Any, Any]) -> None:
    ours, _ = weak
    await ours.execute("CREATE FUNCTION kind(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
    for connection in weak:
        await check_trusted(connection, "SELECT kind(a) FROM one JOIN two USING (a)")


async def test_the_look_itself_cannot_be_led_astray(weak: tuple[Any, Any]) -> None:
    ours, theirs = weak
    await theirs.execute("CREATE FUNCTION lower(name) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT ''x''::text'")
    await ours.execute("SET search_path = public, pg_catalog")
    with pytest.raises(NotExplorableError, match="another user"):
        await check_trusted(ours, PLAIN)


def test_names_and_operators() -> None:
    names, operators = named('SELECT "Ünde ""r", größe+1 FROM a.B WHERE x @> $1 AND y<>-1 /* c */ -- d\n AND \'e\' = e')
    assert {'ünde "r', "größe", "a", "b", "x", "y", "e"} <= set(names)
    assert not {"c", "d"} & set(names)
    assert {"@>", "<>", "+", "="} <= set(operators)


@pytest.mark.parametrize("sql", ['SELECT U&"\\0061"(1)', "SELECT 'x", "SELECT \0"])
def test_what_cannot_be_read_is_not_trusted(sql: str) -> None:
    with pytest.raises(NotExplorableError):
        named(sql)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_quoted_name_is_found(name: str) -> None:
    if "\0" in name or not name or any("\ud800" <= character <= "\udfff" for character in name):
        return
    found: Callable[[str], tuple[list[str], list[str]]] = named
    assert name.lower() in found('SELECT "{}" FROM a, "ß" b'.format(name.replace('"', '""')))[0]

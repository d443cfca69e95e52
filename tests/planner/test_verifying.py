"""Plans looked at on a real server: arms that change nothing, advice not followed, what cannot be explained."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from planner.advice import Advice, RowsAdvice
from planner.dialects import render
from planner.memory.keys import params_of
from planner.verifying import FAILED, HONOURED, MAX_WAITING, NOT_HONOURED, SAME_PLAN, Verifier
from planner.weighing import Verification
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA, WITH_PARAMETER

CAPABILITIES = frozenset({"hint_plan"})


@pytest.fixture(scope="module")
def shop(hinted_postgres: Postgres) -> Iterator[str]:
    with psycopg.connect(hinted_postgres.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE verifying")
    with psycopg.connect(hinted_postgres.dsn("verifying"), autocommit=True) as connection:
        connection.execute(SCHEMA)
    yield hinted_postgres.dsn("verifying")
    with psycopg.connect(hinted_postgres.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE verifying WITH (FORCE)")


@contextlib.asynccontextmanager
async def verifying(dsn: str) -> AsyncIterator[Any]:
    """A function that has something looked at and gives the outcome."""
    outcomes: asyncio.Queue[str] = asyncio.Queue()
    verifier = Verifier(
        lambda database: lambda: asyncpg.connect(dsn, statement_cache_size=0),
        lambda what, outcome: outcomes.put_nowait(outcome),
    )
    task = asyncio.create_task(verifier.run())

    async def look(what: Verification) -> str:
        assert verifier.put(what)
        async with asyncio.timeout(20):
            return await outcomes.get()

    yield look
    task.cancel()
    await asyncio.wait([task])


def what(advice: Advice, text: str = QUERY, params: str = "") -> Verification:
    return Verification("0" * 32, "arm", advice, render(advice, CAPABILITIES), "verifying", "public", text, params)


async def test_outcomes(shop: str) -> None:
    rows = (RowsAdvice(("c", "o", "i"), 12345.0),)
    async with verifying(shop) as look:
        assert await look(what(Advice(settings={"enable_hashjoin": "off"}))) == HONOURED
        assert await look(what(Advice(settings={"geqo": "off"}))) == SAME_PLAN
        assert await look(what(Advice(rows=rows))) in (HONOURED, SAME_PLAN)
        ignored = what(Advice(settings={"enable_hashjoin": "off"}))
        # As where the extension is not there: the comment says it and nobody reads it.
        unheard = Verification(
            ignored.key, "arm", ignored.advice, render(Advice(), CAPABILITIES), "verifying", "public", QUERY, ""
        )
        assert await look(unheard) == NOT_HONOURED
        params = params_of(["north"])
        assert await look(what(Advice(settings={"enable_hashjoin": "off"}), WITH_PARAMETER, params)) == HONOURED
        for text in ("SELECT nothing FROM nowhere a JOIN x b ON true", "DELETE FROM items", "SELEC", "\ud800"):
            assert await look(what(Advice(settings={"geqo": "off"}), text)) == FAILED
        # And goes on after all of that.
        assert await look(what(Advice(settings={"enable_hashjoin": "off"}))) == HONOURED


async def test_a_server_that_is_away_costs_nothing() -> None:
    async with verifying("postgresql://postgres@127.0.0.1:1/x") as look:
        for _ in range(3):
            assert await look(what(Advice(settings={"geqo": "off"}))) == FAILED


async def test_only_so_many_wait() -> None:
    verifier = Verifier(lambda database: lambda: asyncpg.connect(""), lambda what, outcome: None)
    one = what(Advice(settings={"geqo": "off"}))
    for number in range(MAX_WAITING):
        assert verifier.put(Verification(f"{number:032x}", one.arm, one.advice, one.rendered, "d", "public", QUERY, ""))
    assert not verifier.put(Verification("f" * 32, one.arm, one.advice, one.rendered, "d", "public", QUERY, ""))
    assert verifier.put(Verification(f"{0:032x}", one.arm, one.advice, one.rendered, "d", "public", QUERY, ""))

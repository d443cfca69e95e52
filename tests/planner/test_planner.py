"""The library: connecting, deciding, models that come and go, and the two examples as programs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

import planner as package
from planner import Planner
from planner.features import flat
from tests.support.models import hints_model, saboteur_model
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA, WITH_PARAMETER, constant_model
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def dsn(hinted_postgres: Postgres) -> str:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    return hinted_postgres.dsn(name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    constant_model(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planner(dsn: str, models: Path) -> AsyncIterator[Planner]:
    async with await Planner.connect(dsn, models=models, sample_rows=500) as planner:
        yield planner


async def test_the_rewritten_statement_gives_the_same_answer(planner: Planner, dsn: str) -> None:
    decision = await planner.advise(WITH_PARAMETER, ["north"])
    assert (decision.steered, decision.reason, decision.model) == (True, "", "times-e2-1.0.0")
    assert decision.sql == decision.prefix + WITH_PARAMETER
    assert decision.setup == ()
    assert {one.aliases for one in decision.estimates} == {("c", "o"), ("o", "i"), ("c", "o", "i")}
    connection = await asyncpg.connect(dsn)
    try:
        plain = await connection.fetchval(WITH_PARAMETER, "north")
        assert await connection.fetchval(decision.sql, "north") == plain > 0
    finally:
        await connection.close()


async def test_values_count(planner: Planner) -> None:
    known = await planner.advise(WITH_PARAMETER, ["nowhere"])
    literal = await planner.advise(WITH_PARAMETER.replace("$1", "'nowhere'"))
    unknown = await planner.advise(WITH_PARAMETER)
    assert known.prefix == literal.prefix != unknown.prefix
    assert (await planner.advise(WITH_PARAMETER, {1: "nowhere"})).prefix == known.prefix


async def test_what_is_left_alone_is_unchanged_and_says_why(planner: Planner) -> None:
    decision = await planner.advise("SELECT 1")
    assert (decision.sql, decision.reason, decision.steered) == ("SELECT 1", "no_join", False)
    assert (await planner.advise("SELEC 1")).reason == "syntax"
    assert (await planner.advise(QUERY, search_path=["nowhere"])).reason == "unknown_table"
    assert (await planner.advise(QUERY, search_path=["public"])).steered


async def test_the_model_is_looked_at_again(dsn: str, tmp_path: Path) -> None:
    async with await Planner.connect(dsn, models=tmp_path, sample_rows=0) as planner:
        assert (await planner.advise(QUERY)).reason == "no_model"
        constant_model(tmp_path)
        await eventually(lambda: planner.decide(QUERY).steered)
        saboteur_model(tmp_path / "later.onnx", "nan", features=flat.NAMES)
        await eventually(lambda: planner.decide(QUERY).reason == "failed")


async def test_settings_are_statements(dsn: str, tmp_path: Path) -> None:
    hints_model(
        tmp_path / "arms.onnx",
        arms={"default": {}, "careful": {"enable_nestloop": "off"}},
        log_latency_ratios=[0.0, -1.0],
        features=flat.NAMES,
        featurizer=("flat", flat.VERSION),
        clip=(-5.0, 5.0),
    )
    async with await Planner.connect(dsn, models=tmp_path, sample_rows=0) as planner:
        # A session without the library, as on a stock server.
        object.__setattr__(planner._watcher, "snapshot", _stock(planner))
        decision = await planner.advise(QUERY)
        assert (decision.sql, decision.setup) == (QUERY, ("SET LOCAL enable_nestloop = 'off'",))


def _stock(planner: Planner) -> object:
    return replace(planner.snapshot, capabilities=frozenset())


async def test_an_unreachable_database_is_an_error(dsn: str) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await Planner.connect(dsn.rpartition("/")[0] + "/no_such_database")


async def test_many_at_once(planner: Planner) -> None:
    decisions = await asyncio.gather(*(planner.advise(WITH_PARAMETER, [str(number)]) for number in range(50)))
    assert all(decision.steered for decision in decisions)


async def test_the_package_offers_two_names_and_loads_nothing_before() -> None:
    assert package.Decision.__name__ == "Decision"
    with pytest.raises(AttributeError):
        _ = package.nothing
    script = (
        "import sys, planner.messages, planner.control; "
        "print([name for name in ('pglast', 'onnxruntime', 'numpy', 'asyncpg') if name in sys.modules])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert said.strip() == b"[]"


@pytest.mark.parametrize(
    "command", [["with_asyncpg.py", WITH_PARAMETER, "north"], ["with_sqlalchemy.py", "north"]], ids=lambda it: it[0]
)
async def test_the_examples_run(command: list[str], dsn: str, models: Path, hinted_postgres: Postgres) -> None:
    expected = hinted_postgres.sql(QUERY, dsn.rpartition("/")[2])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / command[0]),
        *command[1:],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "DSN": dsn, "MODELS": str(models)},
    )
    said, complained = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complained.decode()
    assert said.decode().split()[-1] == expected
    assert complained.decode().strip().splitlines()[-1] == "steered"

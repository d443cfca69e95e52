"""Proxies in both pool modes with a scripted planner behind them, and a client of each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import StartProxy
from tests.proxy.steering.planner import ScriptedPlanner, scripted_planner
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.wireclient import WireClient


@pytest.fixture(scope="module")
def planner_process() -> Iterator[ScriptedPlanner]:
    with scripted_planner() as planner:
        yield planner


@pytest.fixture(scope="module", params=["session", "transaction"])
def steered(
    request: pytest.FixtureRequest, module_proxy: StartProxy, postgres: Postgres, planner_process: ScriptedPlanner
) -> Proxy:
    """A proxy whose statements wait long enough for any answer."""
    before = planner_process.connections
    started = module_proxy(
        pool_mode=request.param, planner_socket=str(planner_process.path), steer_deadline_ms=5000, steer_min_joins=2
    )
    planner_process.wait_connected(before + 1)
    return started


@pytest.fixture
def planner(planner_process: ScriptedPlanner) -> ScriptedPlanner:
    planner_process.reset()
    return planner_process


@pytest.fixture(scope="module")
def shop(postgres: Postgres) -> str:
    """A database with two small tables, ``left_side`` (a, b) and ``right_side`` (b, c)."""
    database = postgres.create_database()
    postgres.sql(
        "create table left_side as select i as a, i % 10 as b from generate_series(1, 1000) i;"
        "create table right_side as select i as b, 'é' || i as c from generate_series(1, 10) i;"
        "analyze;"
        # Immutable, so that its value is that of the time of planning.
        "create function planned_with(text) returns text language plpgsql immutable as"
        " 'begin return current_setting($1); end';"
        # Does not like statements with advice from a given number on.
        "create function picky(a int, at int) returns int language plpgsql as $$ begin"
        "  if a >= at and current_query() like '%advised%' then raise 'no advice' using errcode = 'XX000'; end if;"
        "  return a; end $$",
        database,
    )
    return database


@pytest.fixture
async def client(steered: Proxy, shop: str) -> AsyncIterator[WireClient]:
    found = await WireClient.connect(steered, shop)
    yield found
    found.reset()

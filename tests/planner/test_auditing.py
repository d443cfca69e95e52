"""Statements run again to see how many rows the joins inside them give."""

from __future__ import annotations

import asyncio
import contextlib
import json

import asyncpg
import psycopg
import pytest

from planner import auditing
from planner.accuracy import MAX_SAMPLE_BYTES, MAX_SAMPLES, Accuracy
from planner.advice import Advice
from planner.advise import Outcome, SubPlan, look
from planner.auditing import BUSY, FAILED, SILENT, STOPPED, TOLD, Auditor
from planner.control import Limits
from planner.counters import Counters
from planner.graph import QueryGraph
from planner.memory.entries import Facts
from planner.snapshot import Snapshot
from planner.sql import read
from tests.support.waiting import eventually

# The limit leaves the sort, and so the joins below it, to be read to the end.
TEXT = (
    "SELECT s.state, sum(i.amount) FROM sale s JOIN item i ON i.sale_id = s.id JOIN ware w ON w.id = i.ware_id "
    "WHERE s.shop < $1 GROUP BY s.state ORDER BY 2 LIMIT 1"
)
TRUE = "SELECT count(*) FROM sale s JOIN item i ON i.sale_id = s.id JOIN ware w ON w.id = i.ware_id WHERE s.shop < 9"
SALE, ITEM, WARE = 1, 2, 4
LIMITS = Limits(audits_per_hour=1e6, audit_most_active=1000)


class Stage:
    """Predictions of one statement, and what looks at them."""

    def __init__(self, snapshot: Snapshot, dsn: str, limits: Limits = LIMITS) -> None:
        self.snapshot = snapshot
        self.counters = Counters()
        self.accuracy = Accuracy(self.counters)
        self.limits = limits
        self.auditor = Auditor(
            lambda _: lambda: asyncpg.connect(dsn, statement_cache_size=0),
            self.accuracy,
            self.counters,
            lambda: self.limits,
        )

    def decide(self, text: str = TEXT, params: str = '["9"]', rows: float = 100.0, key: str = "k") -> None:
        graph = read(text).graph
        assert graph is not None
        self.accuracy.decided(
            Facts(key, "t", "db", "public", "f", text=text, params=params), graph, self.of(graph, rows)
        )

    def of(self, graph: QueryGraph, rows: float) -> Outcome:
        resolved = look(graph, self.snapshot).resolved
        assert resolved is not None
        masks = (SALE | ITEM, ITEM | WARE, SALE | ITEM | WARE)
        plans = tuple(SubPlan(0, mask, (), 1.0, rows) for mask in masks)
        return Outcome(Advice(), "", sub_plans=plans, resolved=resolved)

    async def look(self) -> str:
        one = self.accuracy.pick()
        assert one is not None
        return await self.auditor.look(one, self.limits)


async def test_joins_inside_a_statement_are_compared_with_what_they_give(made: Snapshot, made_dsn: str) -> None:
    with psycopg.connect(made_dsn) as connection:
        (true,) = connection.execute(TRUE).fetchone() or (0,)
    stage = Stage(made, made_dsn)
    stage.decide(rows=true)
    assert await stage.look() == TOLD
    found = stage.counters.snapshot()
    model = sum(count for name, count in found.items() if name.startswith("sub_plan_q_error{"))
    server = sum(count for name, count in found.items() if name.startswith("sub_plan_q_error_server{"))
    assert model == server >= 1
    # All three joined is the whole, for which just this was predicted, and 1 by the server.
    assert found["sub_plan_q_error{1.1}"] >= 1
    assert found["sub_plan_q_error_server_sum"] >= true > 1
    assert stage.accuracy.pick() is None, "it is looked at once"


async def test_outcomes(made: Snapshot, made_dsn: str) -> None:
    stage = Stage(made, made_dsn)
    stage.decide(params='["nine"]')
    assert await stage.look() == FAILED
    stage.decide(params="[]")
    assert await stage.look() == FAILED
    stage.decide(TEXT.replace("$1", "0 AND false"), "")
    assert await stage.look() == SILENT
    stage.limits = Limits(audits_per_hour=1, audit_limit_ms=1.0, audit_most_active=1000)
    stage.decide(TEXT.replace("s.shop < $1", "md5(repeat(s.state, 100000)) <> ''"), "")
    assert await stage.look() == STOPPED
    stage.limits = Limits(audits_per_hour=1, audit_most_active=-1)
    stage.decide()
    assert await stage.look() == BUSY
    gone = Stage(made, "postgresql://nobody@127.0.0.1:1/none")
    gone.decide()
    assert await gone.look() == FAILED


def test_what_is_kept_is_bounded(made: Snapshot, made_dsn: str) -> None:
    stage = Stage(made, made_dsn)
    stage.decide(params=json.dumps(["x" * MAX_SAMPLE_BYTES]))
    stage.decide("SELECT count(*) FROM (SELECT s.id FROM sale s JOIN item i ON i.sale_id = s.id) q JOIN ware w ON true")
    assert stage.accuracy.pick() is None
    for number in range(MAX_SAMPLES + 5):
        stage.decide(key=str(number))
    kept = []
    while (one := stage.accuracy.pick()) is not None:
        kept.append(one.key)
    assert sorted(kept, key=int) == [str(number) for number in range(5, MAX_SAMPLES + 5)]


async def test_only_where_a_setting_allows_it(made: Snapshot, made_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "LOOK_SECONDS", 0.005)
    stage = Stage(made, made_dsn, Limits())
    stage.decide()
    task = asyncio.create_task(stage.auditor.run())
    try:
        await asyncio.sleep(0.1)
        assert stage.counters.snapshot() == {}
        stage.limits = LIMITS
        await eventually(lambda: stage.counters.snapshot().get("accuracy_samples{told}") == 1, 20)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

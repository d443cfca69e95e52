"""Predictions against the rows that statements gave."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from model_runtime.store import ModelStore
from planner.accuracy import Accuracy, q_error, root
from planner.advice import Advice
from planner.advise import Outcome, SubPlan
from planner.counters import Counters
from planner.graph import QueryGraph
from planner.memory.entries import Facts
from planner.messages import Observed
from planner.sql import read
from tests.planner.test_engine import ask
from tests.planner.test_engine_evidence import Server
from tests.support.shop import QUERY, constant_model

JOIN = "FROM a JOIN b ON a.x = b.x"
FACTS = Facts("k", "t", "db", "", "f")


def graph(text: str) -> QueryGraph:
    found = read(text).graph
    assert found is not None
    return found


def predicted(rows: float | None, native: float = 50.0, mask: int = 3) -> Outcome:
    return Outcome(
        Advice(), "", sub_plans=(SubPlan(0, 1, ("a",), 9.0, 9.0), SubPlan(0, mask, ("a", "b"), native, rows))
    )


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT * {JOIN}",
        f"SELECT a.x, row_number() OVER () {JOIN} WHERE a.y = 3 ORDER BY 1",
        "SELECT * FROM a, b WHERE a.x = b.x FOR UPDATE OF a",
        f"WITH w AS (SELECT 1) SELECT * {JOIN}",
        f"SELECT a.x, (SELECT max(y) FROM c) {JOIN}",
        f"CREATE TABLE t AS SELECT * {JOIN}",
        f"COPY (SELECT * {JOIN}) TO STDOUT",
    ],
)
def test_statements_that_give_the_rows_of_their_join(text: str) -> None:
    assert root(graph(text), predicted(100.0)) == (100.0, 50.0)
    assert root(graph(text), predicted(None)) is None
    assert root(graph(text), predicted(100.0, mask=7)) is None


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT count(*) {JOIN}",
        f"SELECT a.x {JOIN} GROUP BY a.x",
        f"SELECT DISTINCT a.x {JOIN}",
        f"SELECT * {JOIN} LIMIT 10",
        f"SELECT * {JOIN} OFFSET 10",
        f"SELECT unnest(a.y) {JOIN}",
        "SELECT * FROM a LEFT JOIN b ON a.x = b.x",
        f"SELECT * {JOIN} WHERE EXISTS (SELECT FROM c WHERE c.x = a.x)",
        f"SELECT a.x {JOIN} UNION ALL SELECT 1",
        f"SELECT * {JOIN} WHERE a.y > (SELECT avg(y) FROM c)",
        f"SELECT a.x {JOIN} UNION SELECT b.x {JOIN}",
        f"EXPLAIN SELECT * {JOIN}",
    ],
)
def test_statements_that_give_other_rows(text: str) -> None:
    assert root(graph(text), predicted(100.0)) is None


def test_the_arms_of_a_union_all_add_up() -> None:
    text = f"SELECT a.x {JOIN} UNION ALL SELECT b.x {JOIN}"
    first = graph(text).blocks[0].arms
    arms = tuple(SubPlan(arm, 3, ("a", "b"), 10.0, 100.0 * arm) for arm in first)
    assert len(arms) == 2
    assert root(graph(text), Outcome(Advice(), "", sub_plans=arms)) == (100.0 * sum(first), 20.0)
    assert root(graph(f"{text} LIMIT 5"), Outcome(Advice(), "", sub_plans=arms)) is None
    assert root(graph(text), Outcome(Advice(), "", sub_plans=arms[:1])) is None


def test_q_error() -> None:
    assert [q_error(10, 100), q_error(100, 10), q_error(0.1, 0), q_error(5, 5)] == [10.0, 10.0, 1.0, 1.0]


def test_what_is_counted() -> None:
    counters = Counters()
    accuracy = Accuracy(counters)
    accuracy.decided(FACTS, graph(f"SELECT * {JOIN}"), predicted(100.0, native=1.0))
    for rows in (200, -1):
        accuracy.observed("k", rows)
    accuracy.observed("nobody", 5)
    assert counters.snapshot() == {
        "root_q_error{2.0}": 1,
        "root_q_error_sum": 2.0,
        "root_q_error_server{1000.0}": 1,
        "root_q_error_server_sum": 200.0,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    folder = tmp_path_factory.mktemp("models")
    constant_model(folder)
    store = ModelStore(folder)
    store.reload()
    yield store
    store.close()


def test_the_engine_compares_a_models_prediction_with_what_comes(store: ModelStore) -> None:
    server = Server(store)
    asked = ask(QUERY.replace("count(*)", "c.id"))
    answer = server.run(asked, {})
    seen = Observed(asked.database, asked.template, 100.0, False, rows=10**9, query=answer.query)
    server.engine.observed(seen)
    failed = Observed(asked.database, asked.template, 100.0, False, rows=5, query=answer.query, failed=True)
    server.engine.observed(failed)
    counts = server.counters.snapshot()
    assert sum(count for name, count in counts.items() if name.startswith("root_q_error{")) == 1
    # The model predicts e squared times as many rows as the server, everywhere.
    apart = counts["root_q_error_server_sum"] / counts["root_q_error_sum"]
    assert math.isclose(apart, math.e**2, rel_tol=1e-3)

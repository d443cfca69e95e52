"""Values in place of parameters, given ones and likely ones."""

from __future__ import annotations

import random
from dataclasses import replace

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.snapshot import Snapshot
from planner.sql import read
from training.queries import Query, Workload
from training.sources.parameters import bound, likely, variants, with_likely_values

JOINED = "SELECT count(*) FROM customers c JOIN orders o ON c.id = o.customer_id WHERE "


def test_values_go_where_their_numbers_are() -> None:
    text = "SELECT 'ü $1', $2 FROM a -- $1\nWHERE x = $1 AND y = $12"
    assert (
        bound(text, {1: "it's", 2: None, 12: "5"}) == "SELECT 'ü $1', NULL FROM a -- $1\nWHERE x = 'it''s' AND y = '5'"
    )
    assert bound("SELECT 1", {}) == "SELECT 1"
    assert bound("SELECT $3", {1: "a"}) is None
    assert bound("SELECT 'open", {1: "a"}) is None
    assert bound("SELECT $1", {1: "a\0"}) is None


@given(st.text(st.characters(exclude_categories=["Cs"])))
async def test_no_value_ends_its_literal(value: str) -> None:
    text = bound(JOINED + "o.status = $1", {1: value})
    if text is None:
        assert "\0" in value
        return
    graph = read(text).graph
    assert graph is not None
    assert len(graph.blocks[0].predicates) == 1


@pytest.mark.parametrize(
    "condition",
    [
        "c.age < $1",
        "c.age BETWEEN $1 AND $2",
        "o.status = $1 AND o.placed >= $2::date",
        "o.status IN ($1, $2)",
        "c.id = ANY ($1)",
        "o.status LIKE $1 OR NOT c.age > $2",
        "c.age > $1 GROUP BY c.id HAVING count(*) > $2 LIMIT $3",
    ],
)
async def test_likely_values(condition: str, shop_snapshot: Snapshot, shop_dsn: str) -> None:
    text = JOINED + condition
    if "GROUP BY" in condition:
        text = text.replace("count(*)", "c.id, $4", 1)
    connection = await asyncpg.connect(shop_dsn)
    try:
        for seed in range(5):
            filled, reason = likely(text, shop_snapshot, ("public",), random.Random(seed))
            assert filled is not None, reason
            assert "$" not in filled
            await connection.fetch(filled)
            if condition.startswith("c.age BETWEEN"):
                assert await connection.fetchval(filled.replace("$", "")) >= 0
        assert likely(text, shop_snapshot, ("public",), random.Random(1)) == likely(
            text, shop_snapshot, ("public",), random.Random(1)
        )
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (JOINED + "c.age + $1 > 5", "no likely value for $1"),
        (JOINED + "c.nothing = $1", "no likely value for $1"),
        ("SELECT * FROM nowhere n, orders o WHERE n.id = o.id AND n.x = $1", "no likely value for $1"),
    ],
)
def test_no_likely_value(text: str, reason: str, shop_snapshot: Snapshot) -> None:
    filled, why = likely(text, shop_snapshot, ("public",), random.Random(1))
    assert filled is None
    assert why == reason


def test_without_a_sample_statistics_tell(shop_snapshot: Snapshot) -> None:
    """The most common values, and bounds of the histogram."""
    tables = {place: replace(table, sample=None) for place, table in shop_snapshot.tables.items()}
    bare = replace(shop_snapshot, tables=tables)
    texts, reason = variants(JOINED + "o.status = $1 AND c.age < $2", bare, ("public",), count=20)
    assert not reason
    assert len(texts) > 5
    orders = bare.tables["public", "orders"].columns["status"].statistics
    assert orders is not None
    assert orders.common_values
    found = {text.split("o.status = '")[1].split("'")[0] for text in texts}
    assert found <= {str(value) for value in (*orders.common_values, *orders.histogram)}
    assert texts == variants(JOINED + "o.status = $1 AND c.age < $2", bare, ("public",), count=20)[0]


def test_a_workload_keeps_what_has_no_parameters(shop_snapshot: Snapshot) -> None:
    texts = [JOINED + "c.age < 4", JOINED + "c.age < $1", JOINED + "c.age + $1 > 5", "SELECT '$1'", "SELEC $1"]
    queries = tuple(Query(line, text) for line, text in enumerate(texts, 1))
    workload, given = with_likely_values(Workload(queries), shop_snapshot, ("public",))
    assert given == 1
    assert {query.line for query in workload.queries} == {1, 2, 4, 5}
    assert [(one.line, one.reason) for one in workload.skipped] == [
        (3, "it has parameters without values (no likely value for $1)")
    ]

"""Made-up statements are ones that PostgreSQL runs, that join what may be joined, and that find rows."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog_load import load
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from tests.support.postgres import Postgres
from tests.training import shop
from training.dataset import collect
from training.generate import Joint, Seen, generate, joints, literal_of, seen
from training.queries import Query, Workload

ODD = """
CREATE TYPE mood AS ENUM ('well', 'ill');
CREATE DOMAIN small AS int CHECK (VALUE < 1000000);
CREATE TABLE "Big One" ("Key" text, part int, moods mood[], place point, doc jsonb, span int4range, took interval,
    id uuid, raw bytea, at timestamptz, n numeric, f float8, s small, PRIMARY KEY ("Key", part));
CREATE TABLE child ("Key" text, part int, note text, flag bool, FOREIGN KEY ("Key", part) REFERENCES "Big One");
CREATE TABLE nothing (id int PRIMARY KEY, "Key" text);
CREATE TABLE lonely (id int PRIMARY KEY);
INSERT INTO "Big One" SELECT 'k''"' || n % 50, n, ARRAY['well'::mood], point(n, n), '{"a": 1}', int4range(n, n + 5),
    '1 day',
    gen_random_uuid(), '\\x01', now() - n * interval '1 hour', CASE n % 9 WHEN 0 THEN 'NaN'::numeric ELSE n / 7.0 END,
    CASE n % 5 WHEN 0 THEN 'infinity'::float8 ELSE -n END, n FROM generate_series(1, 300) n;
INSERT INTO child SELECT "Key", part, 'it''s 50% of \\' || part, part % 2 = 0 FROM "Big One", generate_series(1, 3);
ANALYZE;
"""


async def snapshot_of(dsn: str) -> Snapshot:
    connection = await asyncpg.connect(dsn)
    try:
        return await load(connection)
    finally:
        await connection.close()


def seen_in(texts: list[str], snapshot: Snapshot) -> Seen:
    graphs = [graph for text in texts if (graph := read(text).graph) is not None]
    return seen(block for graph in graphs for block in resolve(graph, snapshot, ("public",)).blocks)


async def test_they_follow_the_workloads_joins_and_find_rows(shop_dsn: str, shop_snapshot: Snapshot) -> None:
    workload = seen_in(shop.queries(60, seed=1), shop_snapshot)
    ways = joints(shop_snapshot, workload)
    found = {(way.left[1], way.right[1], way.columns) for way in ways}
    assert ("customers", "orders", (("id", "customer_id"),)) in found
    # Equated through a third: nobody wrote it.
    assert ("orders", "reviews", (("customer_id", "customer_id"),)) in found
    assert not any({"regions", "items"} == {left, right} for left, right, _ in found)
    assert workload.filtered["public", "items", "amount"] > 0

    texts = generate(shop_snapshot, ways, workload, 80, seed=4)
    assert len(set(texts)) == 80
    assert texts == generate(shop_snapshot, ways, workload, 80, seed=4)
    assert texts != generate(shop_snapshot, ways, workload, 80, seed=5)
    collected = collect(Workload(tuple(Query(0, text) for text in texts)), shop_snapshot, ("public",))
    assert (collected.queries, collected.uncountable, collected.skipped) == (80, 0, ())
    assert {len(block.resolved.block.relations) for block in collected.blocks} == {2, 3, 4, 5}
    connection = await asyncpg.connect(shop_dsn)
    try:
        rows = [await connection.fetchval(text) for text in texts[:50]]
    finally:
        await connection.close()
    assert sum(one > 0 for one in rows) >= 20


def test_half_of_them_join_as_the_workload_does(shop_snapshot: Snapshot) -> None:
    """Rare ways as often as frequent ones, a table with itself too; what is not connected, or no table, is none."""
    self_join = "SELECT 1 FROM orders a, orders b, items i WHERE a.customer_id = b.customer_id AND i.order_id = a.id"
    once = "SELECT 1 FROM regions r, customers c WHERE c.region_id = r.id AND r.name = 'x'"
    apart = "SELECT 1 FROM regions r, items i WHERE r.id < 4"
    derived = "SELECT 1 FROM (SELECT id FROM orders LIMIT 3) o, items i WHERE i.order_id = o.id"
    inner = "SELECT i.order_id FROM regions r, orders b, items i WHERE i.order_id = b.id"
    outer = f"SELECT 1 FROM customers c, orders o WHERE o.customer_id = c.id AND c.id IN ({inner})"
    workload = seen_in([self_join, once, once, apart, derived, outer], shop_snapshot)
    assert [shape.tables for shape in workload.shapes] == [
        (("public", "orders"), ("public", "orders"), ("public", "items")),
        (("public", "regions"), ("public", "customers")),
        (("public", "customers"), ("public", "orders")),
    ]
    texts = generate(shop_snapshot, joints(shop_snapshot, workload), workload, 100, seed=2)
    as_seen = [text for text in texts if '"orders" AS t1, "public"."orders" AS t2' in text]
    assert len(as_seen) >= 8
    assert all('t1."customer_id" = t2."customer_id"' in text for text in as_seen)


async def test_odd_schemas(postgres: Postgres) -> None:
    """Composite keys, quoted names, types that nobody knows, values that are no literals, tables without rows."""
    database = postgres.create_database()
    postgres.sql(ODD, database)
    snapshot = await snapshot_of(postgres.dsn(database))
    ways = joints(snapshot, Seen())
    assert ways == [Joint(("public", "child"), ("public", "Big One"), (("Key", "Key"), ("part", "part")))]
    texts = generate(snapshot, ways, Seen(), 60, seed=1)
    assert len(texts) > 30
    collected = collect(Workload(tuple(Query(0, text) for text in texts)), snapshot, ("public",))
    assert collected.skipped == ()
    connection = await asyncpg.connect(postgres.dsn(database))
    try:
        for text in texts:
            await connection.fetchval(text)
    finally:
        await connection.close()


async def test_names_are_looked_at_where_nothing_else_tells(shop_snapshot: Snapshot) -> None:
    found = {(way.left[1], way.right[1]) for way in joints(shop_snapshot, Seen())}
    assert {("customers", "orders"), ("customers", "regions"), ("items", "products")} <= found


async def test_nothing_to_join(postgres: Postgres) -> None:
    database = postgres.create_database()
    postgres.sql("CREATE TABLE a (x int); CREATE TABLE b (y text); INSERT INTO a VALUES (1); ANALYZE", database)
    snapshot = await snapshot_of(postgres.dsn(database))
    assert generate(snapshot, joints(snapshot, Seen()), Seen(), 10, seed=1) == []


@pytest.mark.parametrize(
    ("value", "kind", "literal"),
    [
        (5, "integer", "5"),
        (-5, "integer", "(-5)"),
        (Decimal("1.50"), "numeric", "1.50"),
        (Decimal("NaN"), "numeric", None),
        (float("inf"), "double precision", None),
        (True, "boolean", "true"),
        (date(2024, 5, 1), "date", "'2024-05-01'::date"),
        (datetime(2024, 5, 1, 3), "timestamp without time zone", "'2024-05-01 03:00:00'::timestamp without time zone"),
        ("it's", "text", "'it''s'"),
        ("a\\b", "text", None),
        ("a\0b", "text", None),
        (None, "text", None),
        ([1], "integer[]", None),
    ],
)
def test_literals(value: object, kind: str, literal: str | None) -> None:
    assert literal_of(value, kind) == literal


@given(st.one_of(st.text(), st.floats(), st.integers(), st.decimals(), st.datetimes(), st.binary(), st.none()))
def test_a_literal_is_one_value_for_the_parser(value: object) -> None:
    literal = literal_of(value, "text")
    if literal is not None and "\ud800" not in str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace"):
        text = f"SELECT 1 FROM a, b WHERE a.x = b.y AND a.z = {literal}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return
        graph = read(text).graph
        assert graph is not None
        assert len(graph.blocks[0].predicates) == 1

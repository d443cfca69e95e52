"""Counts of sub-plans: both forms give the true rows, and what they count is what the statement says."""

from __future__ import annotations

import asyncpg
import pytest

from planner.graph import QueryBlock
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.subplans import connected
from tests.training import shop
from training.counting import BlockCounts, Count, selects, source_of


def blocks(sql: str, snapshot: Snapshot) -> list[tuple[QueryBlock, BlockCounts]]:
    graph = read(sql).graph
    assert graph is not None
    found = []
    whole = resolve(graph, snapshot, ("public",))
    for resolved in whole.blocks:
        select = source_of(resolved.block, selects(sql))
        if select is not None:
            counts = BlockCounts(select, resolved.block, resolved.tables, whole.graph.blocks)
            found.append((resolved.block, counts))
    return found


def count(sql: str, snapshot: Snapshot, *aliases: str) -> Count | None:
    """How the join of these aliases of the outermost block is counted."""
    block, counts = blocks(sql, snapshot)[0]
    return counts.count(sum(relation.bit for relation in block.relations if relation.alias in aliases))


def plain(sql: str, snapshot: Snapshot, *aliases: str) -> str:
    found = count(sql, snapshot, *aliases)
    assert found is not None
    return found.plain


async def test_both_forms_count_what_the_query_returns(shop_dsn: str, shop_snapshot: Snapshot) -> None:
    connection = await asyncpg.connect(shop_dsn)
    factored = several = 0
    try:
        for sql in shop.queries(60, largest=5):
            ((block, counts),) = blocks(sql, shop_snapshot)
            masks = connected(block)
            assert block.everything in masks
            for mask in masks:
                found = counts.count(mask)
                assert found is not None, sql
                rows = await connection.fetchval(found.plain)
                if mask == block.everything:
                    assert rows == await connection.fetchval(sql), sql
                if found.factored is not None:
                    assert rows == await connection.fetchval(found.factored), found.factored
                    factored += 1
                    several += "+" in found.factored
    finally:
        await connection.close()
    assert factored > 100
    assert several > 50


def test_equal_sub_plans_of_different_queries_have_one_text(shop_snapshot: Snapshot) -> None:
    first = "SELECT 1 FROM customers c, orders o, items i WHERE c.id = o.customer_id AND i.order_id = o.id AND o.id > 5"
    second = (
        "SELECT max(age) FROM public.orders AS x JOIN customers y ON x.customer_id = y.id "
        "JOIN regions ON region_id = regions.id WHERE x.id > 5 GROUP BY region_id"
    )
    assert plain(first, shop_snapshot, "c", "o") == plain(second, shop_snapshot, "x", "y")
    assert plain(first, shop_snapshot, "c", "o") == (
        'SELECT count(*) FROM "public"."customers" AS "customers", "public"."orders" AS "orders" '
        'WHERE ("customers"."id" = "orders"."customer_id") AND (orders.id > 5)'
    )


def test_what_equalities_imply_belongs_to_a_sub_plan(shop_snapshot: Snapshot) -> None:
    sql = (
        "SELECT 1 FROM customers c, orders o, reviews r "
        "WHERE c.id = o.customer_id AND c.id = r.customer_id AND c.id = 10 AND c.age > 3"
    )
    assert plain(sql, shop_snapshot, "o", "r").endswith(
        'WHERE ("orders"."customer_id" = "reviews"."customer_id") AND ("orders"."customer_id" = 10) '
        'AND ("reviews"."customer_id" = 10)'
    )


async def test_what_an_or_implies_belongs_to_a_sub_plan(shop_dsn: str, shop_snapshot: Snapshot) -> None:
    joined = "c.id = o.customer_id AND i.order_id = o.id"
    sql = (
        f"SELECT count(*) FROM customers c, orders o, items i WHERE ({joined} AND c.age > 30 AND i.amount < 3) "
        f"OR (c.age < 20 AND o.id > 5 AND {joined})"
    )
    assert plain(sql, shop_snapshot, "c", "o").endswith(
        'WHERE ("customers"."id" = "orders"."customer_id") AND ((customers.age > 30) OR (customers.age < 20))'
    )
    connection = await asyncpg.connect(shop_dsn)
    try:
        whole = plain(sql, shop_snapshot, "c", "o", "i")
        assert await connection.fetchval(whole) == await connection.fetchval(sql) > 0
    finally:
        await connection.close()


def test_self_joins_keep_their_relations_apart(shop_snapshot: Snapshot) -> None:
    sql = "SELECT 1 FROM orders a JOIN orders b ON a.customer_id = b.customer_id AND a.id < b.id WHERE b.id = 7"
    found = count(sql, shop_snapshot, "a", "b")
    assert found == Count(
        'SELECT count(*) FROM "public"."orders" AS "orders 2", "public"."orders" AS "orders" '
        'WHERE ("orders 2".id = 7) AND ("orders"."customer_id" = "orders 2"."customer_id") '
        'AND (orders.id < "orders 2".id)'
    )


@pytest.mark.parametrize(
    "where",
    [
        "EXISTS (SELECT FROM reviews r WHERE r.customer_id = c.id)",
        "NOT EXISTS (SELECT FROM reviews r WHERE r.customer_id = c.id)",
        "c.id IN (SELECT customer_id FROM reviews)",
    ],
)
def test_semi_and_anti_joins_are_above(where: str, shop_snapshot: Snapshot) -> None:
    sql = f"SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id WHERE {where}"
    assert plain(sql, shop_snapshot, "c", "o").endswith('WHERE ("customers"."id" = "orders"."customer_id")')


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.age > (SELECT 5)",
        "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.id NOT IN (SELECT 1)",
        "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id AND c.age > $1",
        "SELECT 1 FROM customers c LEFT JOIN orders o ON o.customer_id = c.id",
        "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id WHERE 1 > 2",
        "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c IS NOT NULL",
        "SELECT 1 FROM customers c JOIN orders o(a, b) ON b = c.id",
        "SELECT 1 FROM customers c NATURAL JOIN orders o",
        "SELECT 1 FROM customers c JOIN nowhere o ON o.customer_id = c.id",
        "SELECT 1 FROM customers c, LATERAL (SELECT * FROM orders WHERE customer_id = c.id) o",
        "SELECT 1 FROM customers c JOIN orders o TABLESAMPLE system (10) ON o.customer_id = c.id",
    ],
)
def test_what_cannot_be_moved_is_not_counted(sql: str, shop_snapshot: Snapshot) -> None:
    assert count(sql, shop_snapshot, "c", "o") is None


def test_the_preserved_side_of_an_outer_join_is_counted(shop_snapshot: Snapshot) -> None:
    sql = (
        "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id "
        "LEFT JOIN items i ON i.order_id = o.id AND c.loyal WHERE o.id < 9 AND i.order_id IS NULL"
    )
    assert plain(sql, shop_snapshot, "c", "o").endswith(
        'WHERE ("customers"."id" = "orders"."customer_id") AND (orders.id < 9)'
    )
    assert count(sql, shop_snapshot, "o", "i") is None


def test_using_joins_by_its_columns(shop_snapshot: Snapshot) -> None:
    sql = "SELECT 1 FROM orders o JOIN reviews r USING (customer_id) WHERE customer_id < 50"
    assert plain(sql, shop_snapshot, "o", "r").endswith(
        'WHERE ("orders"."customer_id" = "reviews"."customer_id") AND (orders.customer_id < 50)'
    )


def test_only_and_schemas_stay(shop_snapshot: Snapshot) -> None:
    sql = "SELECT 1 FROM ONLY public.orders o JOIN items i ON i.order_id = o.id"
    assert 'ONLY "public"."orders" AS "orders"' in plain(sql, shop_snapshot, "o", "i")


def test_blocks_that_look_alike_are_not_mixed_up(shop_snapshot: Snapshot) -> None:
    arm = "SELECT o.id FROM orders o JOIN items i ON i.order_id = o.id WHERE o.id < {}"
    wrapped = f'WITH "größe" AS ({arm.format(5)}) SELECT id FROM "größe" UNION ALL {arm.format(9)}'
    texts = [found.plain for _, counts in blocks(wrapped, shop_snapshot) if (found := counts.count(3))]
    assert [text[-20:] for text in texts] == [" AND (orders.id < 5)", " AND (orders.id < 9)"]
    same = blocks(f"{arm.format(5)} UNION ALL {arm.format(5)}", shop_snapshot)
    assert len({counts.count(3) for _, counts in same}) == 1
    nested = f"SELECT 1 FROM regions g JOIN customers c ON c.region_id = g.id WHERE c.id IN ({arm.format(5)})"
    assert len(blocks(nested, shop_snapshot)) == 2


def test_a_cte_between_two_tables_joins_them(shop_snapshot: Snapshot) -> None:
    sql = (
        "WITH w AS (SELECT id AS who FROM customers) SELECT 1 FROM w, orders o, reviews r "
        "WHERE o.customer_id = who AND r.customer_id = w.who AND o.id < 9"
    )
    ((_, counts),) = [(block, counts) for block, counts in blocks(sql, shop_snapshot) if len(block.relations) == 3]
    found = counts.count(0b110)
    assert found is not None
    assert found.plain.endswith('WHERE ("orders"."customer_id" = "reviews"."customer_id") AND (orders.id < 9)')
    assert counts.count(0b011) is None


def test_what_an_outer_row_or_a_sub_query_filters_is_not_counted(shop_snapshot: Snapshot) -> None:
    joined = "orders o JOIN items i ON i.order_id = o.id JOIN reviews r ON r.customer_id = o.customer_id"
    outer = f"SELECT 1 FROM customers c, regions g WHERE (SELECT count(*) FROM {joined} WHERE r.customer_id = c.id) > 2"
    (inner,) = [counts for block, counts in blocks(outer, shop_snapshot) if len(block.relations) == 3]
    assert inner.count(0b011) is None  # the outer row's value goes on from r to o
    sql = f"SELECT 1 FROM {joined} WHERE i.amount > (SELECT avg(x.id) FROM regions x)"
    assert count(sql, shop_snapshot, "o", "i") is None
    assert count(sql, shop_snapshot, "o", "r") is not None

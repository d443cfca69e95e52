"""From statements to arrays: what is taken, what is left out and why, and that targets are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from planner.estimates import BlockEstimates
from planner.features import flat
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from tests.training import shop
from training.dataset import UNCOUNTABLE, assemble, collect
from training.queries import Query, Workload

JOIN = "SELECT count(*) FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.age < 30"


def workload(*statements: str) -> Workload:
    return Workload(tuple(Query(line, text) for line, text in enumerate(statements, 1)))


def test_features_are_those_that_serving_computes(shop_snapshot: Snapshot) -> None:
    (block,) = collect(workload(JOIN), shop_snapshot, ("public",)).blocks
    graph = read(JOIN).graph
    assert graph is not None
    estimates = BlockEstimates(resolve(graph, shop_snapshot, ("public",)).blocks[0], shop_snapshot)
    assert np.array_equal(block.features, flat.encode(estimates, [3]))
    assert block.native == pytest.approx([estimates.rows(3)])
    assert block.tables == ("public.customers", "public.orders")
    assert block.joins == ("public.customers.id = public.orders.customer_id",)


def test_templates_are_joins_without_values_and_names(shop_snapshot: Snapshot) -> None:
    same = "SELECT 1 FROM orders, customers AS x WHERE x.id = customer_id AND x.age > 70 AND loyal"
    more = f"{JOIN} AND o.id IN (SELECT order_id FROM items)"
    other = "SELECT 1 FROM customers c JOIN reviews o ON o.customer_id = c.id"
    blocks = collect(workload(JOIN, same, more, other), shop_snapshot, ("public",)).blocks
    assert [block.template == blocks[0].template for block in blocks] == [True, True, True, False]
    assert [block.query for block in blocks] == [0, 1, 2, 3]


def test_what_is_skipped_is_named(shop_snapshot: Snapshot) -> None:
    collected = collect(
        workload(
            JOIN,
            "UPDATE orders SET status = 'new'",
            "SELECT * FROM orders",
            "SELECT 1 FROM orders o JOIN nowhere n ON n.id = o.id",
            f"{JOIN} AND o.id = $1",
            f"{JOIN} AND random() < 0.5",
            f"/*+ SeqScan(c) */ {JOIN}",
            "SELECT 1 FROM customers c JOIN orders o ON o.customer_id = c.id AND c.id NOT IN (SELECT 1)",
        ),
        shop_snapshot,
        ("public",),
    )
    assert collected.queries == 1
    assert collected.uncountable == 1
    reasons = {skipped.line: skipped.reason for skipped in collected.skipped}
    assert reasons == {
        2: "it is not a query",
        3: "no join of tables",
        4: "it joins a table that is not in the database, or not on the search path",
        5: "it has parameters without values",
        6: "it calls volatile functions",
        7: "it has a hint of its own",
        8: UNCOUNTABLE,
    }


def test_targets_are_logarithms_of_the_ratio_and_empty_joins_are_left_out(shop_snapshot: Snapshot) -> None:
    collected = collect(workload(*shop.queries(12)), shop_snapshot, ("public",))
    names = [name for block in collected.blocks for name in block.digests]
    rows = {name: float(number % 3) * 10 for number, name in enumerate(dict.fromkeys(names)) if number % 5}
    data = assemble(collected.blocks, rows)
    labelled = [name for name in names if name in rows]
    assert data.empty == sum(rows[name] == 0 for name in labelled) > 0
    assert len(data) == len(labelled) - data.empty > 10
    assert data.actual.tolist() == [rows[name] for name in labelled if rows[name]]
    assert data.native * np.exp(data.target) == pytest.approx(data.actual)
    assert data.features.shape == (len(data), len(flat.NAMES))
    assert data.features.dtype == np.float32
    assert data.queries == len(set(data.query.tolist())) > 5


def test_no_labels_at_all(shop_snapshot: Snapshot) -> None:
    collected = collect(workload(JOIN), shop_snapshot, ("public",))
    data = assemble(collected.blocks, {})
    assert len(data) == 0
    assert data.features.shape == (0, len(flat.NAMES))
    assert data.target.shape == (0,)


def test_lower_bounds_are_taken_in_on_either_side_of_the_estimate(shop_snapshot: Snapshot) -> None:
    """A bound of no rows says nothing, and nothing is judged by bounds; true rows come before them."""
    (block,) = collect(workload(JOIN), shop_snapshot, ("public",)).blocks
    name, native = block.digests[0], float(block.native[0])
    for bound in (native / 4, native * 4):
        data = assemble([block], {}, {name: bound})
        assert (data.actual.tolist(), data.lower.tolist(), data.judged.tolist()) == ([bound], [True], [False])
    assert len(assemble([block], {}, {name: 0.0})) == 0
    assert assemble([block], {name: 7.0}, {name: 9.0}).lower.tolist() == [False]

"""Features of a statement: its join, what is done with it, and the default plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner import subplans
from planner.features import featurizer, flat, statement
from planner.snapshot import Snapshot
from tests.planner.features.shop import estimates, snapshot

JOIN = "SELECT {} FROM buyer b JOIN orders o ON o.buyer_id = b.id WHERE b.age > 60 {}"
PLAN: dict[str, Any] = {
    "Node Type": "Sort", "Startup Cost": 50.0, "Total Cost": 100.0, "Plan Rows": 10,
    "Plans": [{
        "Node Type": "Nested Loop", "Startup Cost": 0.0, "Total Cost": 90.0, "Plan Rows": 10,
        "Plans": [
            {"Node Type": "Seq Scan", "Startup Cost": 0.0, "Total Cost": 30.0, "Plan Rows": 7},
            {"Node Type": "Seq Scan", "Startup Cost": 0.0, "Total Cost": 10.0, "Plan Rows": 99},
        ],
    }],
}  # fmt: skip


@pytest.fixture(scope="module")
def shop() -> Snapshot:
    return snapshot()


def features(sql: str, shop: Snapshot, plan: dict[str, Any] | None = None) -> dict[str, float]:
    made = featurizer("statement", statement.VERSION)
    assert isinstance(made, statement.Statement)
    query = estimates(sql, shop)
    found = made.inputs(query, subplans.connected(query.block, query)[-1:], plan)["features"]
    assert (found.shape, found.dtype) == ((1, len(statement.NAMES)), np.float32)
    return dict(zip(statement.NAMES, found[0].tolist(), strict=True))


def test_the_join_comes_first(shop: Snapshot) -> None:
    query = estimates(JOIN.format("1", ""), shop)
    masks = subplans.connected(query.block, query)
    found = statement.Statement().inputs(query, masks)["features"]
    np.testing.assert_array_equal(found[:, : len(flat.NAMES)], flat.encode(query, masks))
    assert len(set(statement.NAMES)) == len(statement.NAMES)


def test_what_is_done_with_it(shop: Snapshot) -> None:
    plain = features(JOIN.format("1", ""), shop)
    more = features(JOIN.format("b.region, count(*)", "GROUP BY b.region ORDER BY 1 LIMIT 5"), shop)
    names = ("group_by", "aggregates", "order_by", "limit", "distinct", "sub_queries")
    assert [plain[name] for name in names] == [0] * 6
    assert [more[name] for name in names] == [1, 1, 1, 1, 0, 0]
    exists = features(JOIN.format("1", "AND EXISTS (SELECT 1 FROM item i WHERE i.order_id = o.id)"), shop)
    assert exists["sub_queries"] == 1
    # The buyer's key has an index, the order's buyer has none.
    assert (plain["indexed_joins"], plain["unindexed_joins"]) == (1, 1)


def test_the_plan(shop: Snapshot) -> None:
    without = features(JOIN.format("1", ""), shop)
    assert not any(value for name, value in without.items() if name.startswith("plan "))
    found = features(JOIN.format("1", ""), shop, PLAN)
    assert (found["plan planned"], found["plan steps"], found["plan startup_share"]) == (1, 4, 0.5)
    assert (found["plan Nested Loop steps"], found["plan Seq Scan steps"], found["plan Hash Join steps"]) == (1, 2, 0)
    assert found["plan Nested Loop cost_share"] == pytest.approx(0.5)
    assert found["plan Seq Scan cost_share"] == pytest.approx(0.4)
    assert found["plan loops"] == pytest.approx(np.log(8))
    assert found["plan Seq Scan rows"] == pytest.approx(np.log(100))


def test_a_plan_may_be_deep_and_wide() -> None:
    deep = PLAN
    for _ in range(5000):
        deep = {**PLAN, "Plans": [deep]}
    assert statement.described(deep)[0] == 1

"""Rows read out of plans are the rows that counting finds, whatever the plan; and what a plan does not tell is left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from planner.plan_rows import harvest, shown
from planner.snapshot import Snapshot
from tests.training import shop
from training.dataset import Block, collect
from training.explained import Candidate, Explainer
from training.queries import Query, Workload
from training.training_set import EXACT, TrainingSet

SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"enable_hashjoin": "off"},
    {"enable_hashjoin": "off", "enable_mergejoin": "off"},
    {"enable_nestloop": "off", "enable_hashjoin": "off"},
    {"enable_hashjoin": "off", "enable_sort": "off"},
    {"max_parallel_workers_per_gather": "2", "parallel_setup_cost": "0", "parallel_tuple_cost": "0",
     "min_parallel_table_scan_size": "0", "min_parallel_index_scan_size": "0"},
)  # fmt: skip
TAILS = ("", " LIMIT 3", " ORDER BY 1 LIMIT 2")


def blocks(texts: list[str], snapshot: Snapshot) -> list[Block]:
    found = collect(Workload(tuple(Query(0, text) for text in texts)), snapshot, ("public",))
    return [block for block in found.blocks if block.readable]


async def run(connection: asyncpg.Connection[Any], text: str, settings: dict[str, str]) -> dict[str, Any]:
    async with connection.transaction(readonly=True):
        for name, value in {"enable_self_join_elimination": "off", **settings}.items():
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        found = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {text}"))
    plan: dict[str, Any] = found[0]["Plan"]
    return plan


async def test_plans_tell_the_true_rows(shop_dsn: str, shop_snapshot: Snapshot) -> None:
    texts = [
        query.replace("count(*)", "*" if number % 2 else "count(*)") + TAILS[number % 3 if number % 2 else 0]
        for number, query in enumerate(shop.queries(45, seed=11))
    ]
    checked = stopped_early = 0
    connection = await asyncpg.connect(shop_dsn)
    try:
        for block in blocks(texts, shop_snapshot):
            counts = dict(zip(block.masks, block.counts, strict=True))
            for number, settings in enumerate(SETTINGS):
                plan = await run(connection, texts[block.query], settings)
                rows = harvest(plan, block.resolved, shop_snapshot.server_version)
                stopped_early += "LIMIT" in texts[block.query] and len(rows) < len(shown(plan, block.resolved))
                for mask, actual in rows.items():
                    assert actual == await connection.fetchval(counts[mask].plain), (texts[block.query], number)
                    checked += 1
    finally:
        await connection.close()
    assert checked > 250


def node(kind: str, rows: float, *children: dict[str, Any], loops: float = 1, **more: Any) -> dict[str, Any]:
    for place, child in enumerate(children):
        child.setdefault("Parent Relationship", "Inner" if place else "Outer")
    return {"Node Type": kind, "Actual Rows": rows, "Actual Loops": loops, "Plans": list(children), **more}


def scan(alias: str, rows: float = 5, *, parallel: bool = False, loops: float = 1, **more: Any) -> dict[str, Any]:
    return node("Seq Scan", rows, loops=loops, Alias=alias, **{"Parallel Aware": parallel}, **more)


def join(kind: str, rows: float, *children: dict[str, Any], **more: Any) -> dict[str, Any]:
    return node(kind, rows, *children, **{"Join Type": "Inner", **more})


@pytest.fixture
def block(shop_snapshot: Snapshot) -> Block:
    text = "SELECT count(*) FROM customers c, orders o, items i WHERE c.id = o.customer_id AND o.id = i.order_id"
    return blocks([text], shop_snapshot)[0]


def pair(rows: float, kind: str = "Hash Join", **more: Any) -> dict[str, Any]:
    return join(kind, rows, scan("c"), node("Hash", 5, scan("o")), **more)


SUB_PLAN = node("Result", 1) | {"Parent Relationship": "SubPlan"}


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (join("Hash Join", 9, pair(4), node("Hash", 5, scan("i"))), {3: 4, 7: 9}),
        (join("Merge Join", 9, pair(4), scan("i")), {7: 9}),
        (join("Merge Join", 9, node("Sort", 4, pair(4)), scan("i")), {3: 4, 7: 9}),
        (node("Limit", 9, join("Hash Join", 9, node("Hash", 4, pair(4)), scan("i"))), {3: 4}),
        (node("Limit", 1, node("Aggregate", 1, pair(4), Strategy="Plain"), scan("i")), {3: 4}),
        (node("Limit", 1, node("Aggregate", 1, pair(4), Strategy="Sorted"), scan("i")), {}),
        (join("Nested Loop", 9, scan("i"), pair(4)), {7: 9}),
        (join("Hash Join", 0, pair(1), node("Hash", 0, scan("i", 0))), {7: 0}),
        (join("Hash Join", 9, pair(4, **{"Join Type": "Semi"}), node("Hash", 5, scan("i"))), {}),
        (join("Hash Join", 9, node("Aggregate", 4, pair(4)), node("Hash", 5, scan("i"))), {3: 4}),
        (join("Hash Join", 9, pair(4), node("Hash", 5, scan("i")), SUB_PLAN), {3: 4}),
        (join("Hash Join", 9, pair(4), node("Hash", 5, scan("x"))), {}),
        (join("Hash Join", 9, pair(4), node("Hash", 0, scan("i", loops=0), loops=0)), {7: 9}),
    ],
)  # fmt: skip
def test_what_a_plan_tells(plan: dict[str, Any], told: dict[int, float], block: Block) -> None:
    assert harvest(plan, block.resolved, 180000) == told


def test_rows_of_several_workers_are_added_up(block: Block) -> None:
    def gathered(mean: float, *, parallel: bool) -> dict[str, Any]:
        inner = join(
            "Hash Join", mean, scan("c", parallel=parallel, loops=3), node("Hash", 5, scan("o"), loops=3), loops=3
        )
        return join("Hash Join", 9, node("Gather", 3 * mean, inner), node("Hash", 5, scan("i")))

    assert harvest(gathered(40, parallel=True), block.resolved, 170000) == {3: 120, 7: 9}
    assert harvest(gathered(40, parallel=False), block.resolved, 170000) == {7: 9}
    # A mean of 2 may have been 1.5: too uncertain before fractions were shown.
    assert harvest(gathered(2, parallel=True), block.resolved, 170000) == {7: 9}
    assert harvest(gathered(2.33, parallel=True), block.resolved, 180000) == {3: 7, 7: 9}


def test_statements_whose_plans_are_not_read(shop_snapshot: Snapshot) -> None:
    joined = "SELECT count(*) FROM customers c JOIN orders o ON c.id = o.customer_id"
    texts = [
        f"{joined} WHERE EXISTS (SELECT FROM items i WHERE i.order_id = o.id)",
        f"WITH x AS ({joined}) SELECT * FROM x",
        f"{joined} FOR UPDATE OF c",
        "INSERT INTO regions SELECT c.id, '' FROM customers c JOIN orders o ON c.id = o.customer_id",
    ]
    found = collect(Workload(tuple(Query(0, text) for text in texts)), shop_snapshot, ("public",))
    assert not any(one.readable for one in found.blocks)
    assert len(blocks([joined], shop_snapshot)) == 1


async def test_statements_are_run_for_what_is_not_known(shop_dsn: str, shop_snapshot: Snapshot, tmp_path: Path) -> None:
    texts = shop.queries(12, seed=3)
    found = blocks(texts, shop_snapshot)
    candidates = [
        Candidate(texts[block.query], block.resolved, dict(zip(block.masks, block.digests, strict=True)))
        for block in found
    ]
    truth = {name: count.plain for block in found for name, count in zip(block.digests, block.counts, strict=True)}
    done: list[int] = []
    with TrainingSet(tmp_path / "set") as kept:
        explainer = Explainer(shop_dsn, kept, budget=20, timeout=5, progress=lambda at, of: done.append(at))
        first = await explainer.run(candidates)
        assert (first.candidates, first.failed, first.stopped) == (len(found), 0, 0)
        assert first.labels == len(kept.rows) >= 0.4 * len(truth)
        assert done == list(range(len(done)))
        again = await Explainer(shop_dsn, kept, budget=20, timeout=5).run(candidates)
        assert again.labels <= 0.1 * len(truth)
        rows = kept.rows
    connection = await asyncpg.connect(shop_dsn)
    try:
        for name, actual in rows.items():
            assert actual == await connection.fetchval(truth[name])
    finally:
        await connection.close()


async def test_what_takes_too_long_or_fails_is_counted(shop_dsn: str, shop_snapshot: Snapshot, tmp_path: Path) -> None:
    joined = "FROM customers c, orders o WHERE c.id = o.customer_id"
    texts = [f"SELECT count(pg_sleep(0.01)) {joined}", f"SELECT count(1 / (c.id - c.id)) {joined}"]
    (one, other) = blocks([f"SELECT count(*) {joined}"] * 2, shop_snapshot)
    candidates = [
        Candidate(text, block.resolved, dict(zip(block.masks, block.digests, strict=True)))
        for text, block in zip(texts, (one, other), strict=True)
    ]
    with TrainingSet(tmp_path / "set") as kept:
        found = await Explainer(shop_dsn, kept, budget=20, timeout=0.2, arms={}).run(candidates)
        assert (found.stopped, found.failed, found.labels) == (1, 1, 0)
        assert found.first_failure == "division by zero"
        started = asyncio.get_running_loop().time()
        assert (await Explainer(shop_dsn, kept, budget=0, timeout=5).run(candidates)).run == 0
        assert asyncio.get_running_loop().time() - started < 4
        kept.add_label(one.digests[0], EXACT, 2000, 1, "counted")
        assert (await Explainer(shop_dsn, kept, budget=20, timeout=5).run(candidates)).candidates == 0

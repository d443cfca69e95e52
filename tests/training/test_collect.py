"""From several sources into one training set, on a replica, with arms; and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncpg
import pytest

from planner.memory.arms import PORTFOLIO
from planner.memory.records import DEFAULT_ARM
from tests.conftest import StartPostgres
from tests.support.postgres import Postgres
from tests.training import shop
from training.collect import Filled, Limits, Sources, fill
from training.errors import TrainingError
from training.queries import Query, Workload, read_text
from training.sources.parameters import VARIANTS
from training.steps import Step
from training.training_set import TrainingSet

QUERIES = shop.queries(12, seed=21)


def workload(texts: list[str]) -> Workload:
    return Workload(tuple(Query(number, text) for number, text in enumerate(texts, 1)))


async def run(
    place: Path, dsn: str, sources: Sources, limits: Limits | None = None, generate: int | None = 0
) -> tuple[Filled, TrainingSet]:
    with TrainingSet(place) as kept:
        filled = await fill(kept, dsn, sources, limits or Limits(), generate_count=generate, tell=lambda step: None)
    return filled, kept


async def test_sources_add_up_and_nothing_is_done_twice(shop_dsn: str, tmp_path: Path) -> None:
    log = tmp_path / "postgresql.log"
    connection = await asyncpg.connect(shop_dsn)
    try:
        explained = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {QUERIES[6]}"))[0]
    finally:
        await connection.close()
    explained["Query Text"] = QUERIES[6]
    log.write_text(
        f"LOG:  duration: 5.0 ms  statement: {QUERIES[7]}\n"
        f"LOG:  duration: 9.0 ms  plan:\n{json.dumps(explained, indent=1)}\n".replace("\n ", "\n\t ").replace(
            "\n}", "\n\t}"
        )
    )
    place = tmp_path / "set"
    first, _ = await run(place, shop_dsn, Sources(workload(QUERIES[:6]), logs=(log,)))
    assert (first.statements, first.told) == (8, {"log": 2, "file": 6})
    assert first.from_plans > 0
    assert first.labels.left == first.labels.failed == 0
    assert first.labels.wanted == first.labels.known + first.labels.counted
    second, kept = await run(place, shop_dsn, Sources(workload(QUERIES[:9])), generate=15)
    assert (second.statements, second.generated, second.told) == (9, 15, {"file": 1})
    assert second.labels.known >= first.labels.wanted
    labelled = second.labelled(kept)
    assert {labelled.workload.queries[number].generated for number in labelled.data.query} == {False, True}
    assert ((labelled.data.weight < 1) == [labelled.workload.queries[q].generated for q in labelled.data.query]).all()
    for row in range(0, len(labelled.data), 7):
        block = labelled.blocks[labelled.data.block[row]]
        place_in_block = labelled.data.place[row]
        assert kept.rows[block.digests[place_in_block]] == labelled.data.actual[row]
        assert (block.features[place_in_block] == labelled.data.features[row]).all()
    third, _ = await run(tmp_path / "set", shop_dsn, Sources(), Limits(budget=0), generate=15)
    assert (third.labels.left, third.generated_labels.left) == (0, 0)


async def test_arms_are_measured(shop_dsn: str, tmp_path: Path) -> None:
    heavy = [
        "SELECT count(*) FROM items i, items j, products p WHERE i.product_id = p.id AND j.product_id = p.id "
        f"AND p.kind = {kind}"
        for kind in (1, 2)
    ]
    filled, kept = await run(tmp_path / "set", shop_dsn, Sources(workload(heavy)), Limits(budget=5, arms=8))
    assert filled.arms.measured + filled.arms.skipped == 2
    assert filled.arms.measured >= 1
    runs = filled.labelled(kept).arms
    default = [one for one in runs if one.arm == DEFAULT_ARM]
    assert len(default) == filled.arms.measured
    assert all(one.ms == one.default_ms > 0 and one.plan is not None and "Plan" in one.plan for one in default)
    assert {one.arm for one in runs} <= {DEFAULT_ARM, *PORTFOLIO}
    assert {one.status for one in runs} <= {"timed", "stopped", "same_plan", "failed"}
    assert any(one.status == "same_plan" for one in runs)
    again, _ = await run(tmp_path / "set", shop_dsn, Sources(workload(heavy)), Limits(budget=0, arms=5))
    assert again.arms.known >= 1


async def test_labels_come_from_the_replica(postgres: Postgres, shop_dsn: str, tmp_path: Path) -> None:
    """A copy with half of the orders: its rows are the ones that are counted."""
    database = postgres.create_database()
    postgres.sql(f"{shop.SCHEMA} DELETE FROM orders WHERE id > 1000; ANALYZE", database)
    text = "SELECT count(*) FROM customers c JOIN orders o ON c.id = o.customer_id"
    limits = Limits(label_dsn=postgres.dsn(database))
    filled, kept = await run(tmp_path / "set", shop_dsn, Sources(workload([text])), limits)
    assert list(kept.rows.values()) == [1000]
    assert filled.notes == []

    postgres.sql("TRUNCATE items; ANALYZE", database)
    filled, _ = await run(tmp_path / "set", shop_dsn, Sources(workload([text])), limits)
    assert "counts of the one may not hold for the other" in filled.notes[0]
    away = Limits(label_dsn="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TrainingError, match=r"for labelling \(--label-dsn\): the database cannot be reached"):
        await run(tmp_path / "set", shop_dsn, Sources(workload([text])), away)

    other = postgres.create_database()
    with pytest.raises(TrainingError, match=r"has other tables than .*: it must be a replica or a copy of it"):
        await run(tmp_path / "set", shop_dsn, Sources(workload([text])), Limits(label_dsn=postgres.dsn(other)))


async def test_tables_without_rows_statistics_or_known_types(postgres: Postgres, tmp_path: Path) -> None:
    database = postgres.create_database()
    postgres.sql(
        "CREATE TYPE mood AS ENUM ('well', 'ill'); CREATE TABLE empty (id int PRIMARY KEY, m mood);"
        "CREATE TABLE bare (id int, place point, m mood, doc jsonb); "
        "INSERT INTO bare SELECT n, point(n, n), 'well', '{}' FROM generate_series(1, 500) n; "
        "CREATE TABLE full_one (id int, m mood); "
        "INSERT INTO full_one SELECT n % 90, 'ill' FROM generate_series(1, 900) n; ANALYZE full_one; ANALYZE empty",
        database,
    )
    texts = """
        SELECT count(*) FROM empty e JOIN bare b ON b.id = e.id;
        SELECT count(*) FROM full_one f JOIN bare b ON b.id = f.id WHERE b.m = 'well' AND b.place <@ box '(0,0),(9,9)';
        SELECT count(*) FROM full_one f JOIN bare b ON b.m < f.m AND b.id = f.id WHERE b.doc @> '{}';
        SELECT count(*) FROM full_one f, nowhere n WHERE f.id = n.id;
        SELECT count(*) FROM full_one f JOIN bare b ON b.id = f.id WHERE f.id + $1 > 7;
        SELEC 1;
    """
    filled, kept = await run(tmp_path / "set", postgres.dsn(database), Sources(read_text(texts)), generate=20)
    own = [block for block in filled.collected.blocks if not block.generated]
    assert sorted(kept.rows[name] for block in own for name in block.digests) == [0, 90, 890]
    reasons = " ".join(str(one) for one in filled.skipped)
    assert "syntax error" in reasons
    assert "parameters without values (no likely value for $1)" in reasons
    assert filled.labels.failed == 0


async def test_statements_with_parameters_get_likely_values(shop_dsn: str, tmp_path: Path) -> None:
    """A file made from pg_stat_statements: what is counted has values, the same ones each time."""
    text = "SELECT count(*) FROM orders o JOIN items i ON i.order_id = o.id WHERE o.status = $1 AND i.amount < $2"
    first, kept = await run(tmp_path / "set", shop_dsn, Sources(read_text(f"{text}; SELECT 1")), generate=0)
    texts = [query.text for query in first.workload.queries if "orders" in query.text]
    assert first.given_values == 1
    assert 1 < len(texts) <= VARIANTS
    assert not any("$" in text for text in texts)
    assert first.labels.known + first.labels.counted == len(kept.rows) > 0
    again, _ = await run(tmp_path / "set", shop_dsn, Sources(read_text(text)), generate=0)
    assert {query.text for query in again.workload.queries} == {*texts, "SELECT 1"}
    assert (again.explained.run, again.labels.counted, again.labels.left) == (0, 0, 0)


async def test_a_database_that_goes_away_while_queries_are_run(start_postgres: StartPostgres, tmp_path: Path) -> None:
    server = start_postgres()
    dsn = shop.create(server)
    running = asyncio.Event()

    async def collect() -> None:
        with TrainingSet(tmp_path / "set") as kept:
            await fill(
                kept, dsn, Sources(workload(shop.queries(60, seed=4))), Limits(explain_share=0.9),
                generate_count=0, tell=told,
            )  # fmt: skip

    def told(step: Step) -> None:
        if step.name == "running queries" and step.done >= 3:
            running.set()

    task = asyncio.create_task(collect())
    await asyncio.wait_for(running.wait(), 30)
    await asyncio.to_thread(server.kill)
    with pytest.raises(TrainingError, match=r"gone in the middle of (running statements|counting) .*to go on$"):
        await task
    with TrainingSet(tmp_path / "set") as kept:
        assert len(kept.rows) >= 3
        assert len(kept.statements) == len(set(shop.queries(60, seed=4)))


async def test_nothing_to_learn_from(shop_dsn: str, tmp_path: Path) -> None:
    log = tmp_path / "postgresql.log"
    log.write_text("2025-01-01 LOG:  statement: SELECT 1\n2025-01-01 LOG:  statement: EXPLAIN SELECT 1\n")
    with pytest.raises(TrainingError, match=r"\(1 left out: (no join of tables|it is an EXPLAIN); 1 left out: "):
        await run(tmp_path / "set", shop_dsn, Sources(logs=(log,)))
    with pytest.raises(TrainingError, match="there is no statement to learn from"):
        await run(tmp_path / "set", shop_dsn, Sources())

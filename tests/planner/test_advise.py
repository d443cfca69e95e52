"""The decision on real statements over a real catalog, with real models whose answer is known."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest

from model_runtime.manifest import Abstention, KnownTemplates, Vocabulary
from model_runtime.runner import Model, ModelError
from planner.advise import NOTHING, Models, Options, Outcome, Reason, advise, best_arm, relation_hash
from planner.catalog import load
from planner.dialects import render
from planner.features import flat, statement
from planner.memory.convert import to_stored
from planner.memory.records import StoredAdvice
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.subplans import MOST_PAIRS
from planner.templates import digest, template
from tests.support.models import cardinality_model, hints_model, load_model, saboteur_model
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA, constant_model

ARMS = {"default": {}, "no_nestloop": {"enable_nestloop": "off"}, "no_hash": {"enable_hashjoin": "off"}}


@pytest.fixture(scope="module")
def shop(hinted_postgres: Postgres) -> str:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    return name


@pytest.fixture(scope="module")
def snapshot(hinted_postgres: Postgres, shop: str) -> Snapshot:
    async def read_catalog() -> Snapshot:
        connection = await asyncpg.connect(hinted_postgres.dsn(shop))
        try:
            return await load(connection)
        finally:
            await connection.close()

    return asyncio.run(read_catalog())


def model(folder: Path, log_ratio: float = 2.0, **manifest: Any) -> Model:
    return load_model(constant_model(folder, log_ratio=log_ratio, **manifest))


def arms(folder: Path, *ratios: float, **manifest: Any) -> Model:
    path = folder / "arms.onnx"
    values = {"clip": (-10.0, 10.0), **manifest}
    hints_model(
        path, arms=ARMS, log_latency_ratios=ratios, features=flat.NAMES, featurizer=("flat", flat.VERSION), **values
    )
    return load_model(path)


def decide(sql: str, snapshot: Snapshot, models: Models, **options: Any) -> Outcome:
    reading = read(sql)
    assert reading.graph is not None, reading.reason
    return advise(reading.graph, snapshot, models, options=Options(**options))


def without(snapshot: Snapshot, capability: str) -> Snapshot:
    return replace(snapshot, capabilities=snapshot.capabilities - {capability}, derived={})


def test_every_join_of_the_plan_has_the_advised_rows(
    hinted_postgres: Postgres, shop: str, snapshot: Snapshot, tmp_path: Path
) -> None:
    outcome = decide(QUERY, snapshot, Models(model(tmp_path)))
    assert outcome.reason == ""
    assert outcome.model == "times-e2-1.0.0"
    for sub_plan in outcome.sub_plans:
        assert sub_plan.rows == pytest.approx(sub_plan.native * math.exp(2.0))
    assert {frozenset(rows.aliases) for rows in outcome.advice.rows} == {
        frozenset("co"),
        frozenset("oi"),
        frozenset("coi"),
    }
    prefix = render(outcome.advice, snapshot.capabilities).prefix
    plan = json.loads(
        hinted_postgres.sql(f"SET max_parallel_workers_per_gather = 0; {prefix}EXPLAIN (FORMAT JSON) {QUERY}", shop)
    )[0]["Plan"]
    advised = {frozenset(rows.aliases): round(rows.rows) for rows in outcome.advice.rows}
    joins = []

    def walk(node: dict[str, Any]) -> set[str]:
        aliases = {node["Alias"]} if "Alias" in node else set()
        for child in node.get("Plans", ()):
            aliases |= walk(child)
        if "Join" in node["Node Type"] or node["Node Type"] == "Nested Loop":
            joins.append((frozenset(aliases), node["Plan Rows"]))
        return aliases

    walk(plan)
    assert joins
    assert all(rows == advised[aliases] for aliases, rows in joins)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT * FROM customers c", Reason.NO_JOIN),
        ("SELECT * FROM customers c, (SELECT 1 AS one) s", Reason.NO_JOIN),
        ("SELECT * FROM customers c LEFT JOIN orders o ON o.customer_id = c.id", Reason.OUTER_JOIN),
        ("SELECT * FROM customers c JOIN nowhere n ON n.id = c.id", Reason.UNKNOWN_TABLE),
        ("SELECT * FROM customers c JOIN big_orders b ON b.customer_id = c.id", Reason.VIEW),
        ("SELECT * FROM orders o JOIN secrets s ON s.order_id = o.id", Reason.ROW_SECURITY),
        (QUERY + " AND odd(c.tier)", Reason.VOLATILE),
        (
            QUERY + " UNION ALL SELECT q.id FROM orders q JOIN items j ON j.order_id = q.id",
            Reason.UNION_ALL,
        ),
        (
            "SELECT * FROM customers a JOIN orders b ON b.customer_id = a.id WHERE a.id IN "
            "(SELECT b.customer_id FROM orders b JOIN items a ON a.order_id = b.id)",
            Reason.DUPLICATE_ALIAS,
        ),
        (
            "SELECT * FROM products p WHERE p.id > 5 OR EXISTS "
            "(SELECT 1 FROM orders o JOIN items i ON i.order_id = o.id WHERE i.product_id = p.id)",
            Reason.CORRELATED,
        ),
    ],
)
def test_reasons(sql: str, reason: str, snapshot: Snapshot, tmp_path: Path) -> None:
    outcome = decide(sql, snapshot, Models(model(tmp_path)))
    assert (outcome.reason, outcome.advice) == (reason, NOTHING)
    assert outcome.template_wide


def test_joins_without_an_alias_of_their_own_are_left_out(snapshot: Snapshot, tmp_path: Path) -> None:
    """A hint reaches each level that has all of its names, so one of them must be the statement's only one."""
    sql = (
        "WITH a AS (SELECT count(*) FROM orders o JOIN customers c ON c.id = o.customer_id), "
        "b AS (SELECT count(*) FROM orders o JOIN items x ON x.order_id = o.id "
        "JOIN products p ON p.id = x.product_id), "
        "d AS (SELECT count(*) FROM items x JOIN products p ON p.id = x.product_id) SELECT * FROM a, b, d"
    )
    outcome = decide(sql, snapshot, Models(model(tmp_path)))
    assert [rows.aliases for rows in outcome.advice.rows] == [("o", "c")]
    assert {(one.block, one.aliases) for one in outcome.sub_plans if one.reason == Reason.DUPLICATE_ALIAS} == {
        (2, ("o", "x")),
        (2, ("x", "p")),
        (2, ("o", "x", "p")),
        (3, ("x", "p")),
    }


def test_joins_of_a_level_that_has_an_alias_twice_are_left_out(snapshot: Snapshot, tmp_path: Path) -> None:
    sql = (
        "SELECT 1 FROM (SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id) a, "
        "(SELECT o.id FROM orders o JOIN items x ON x.order_id = o.id JOIN products p ON p.id = x.product_id) b"
    )
    outcome = decide(sql, snapshot, Models(model(tmp_path)))
    assert [rows.aliases for rows in outcome.advice.rows] == [("x", "p")]


def test_only_what_reads_no_outer_row_is_hinted_in_a_sub_query(snapshot: Snapshot, tmp_path: Path) -> None:
    """EXISTS in an OR is planned for one row and, hashed, for all of them: one number would be wrong for one."""
    sql = (
        "SELECT * FROM products p WHERE p.id > 5 OR EXISTS (SELECT 1 FROM items i JOIN orders o ON i.order_id = o.id "
        "JOIN customers c ON c.id = o.customer_id WHERE i.product_id = p.id)"
    )
    outcome = decide(sql, snapshot, Models(model(tmp_path)))
    assert [rows.aliases for rows in outcome.advice.rows] == [("o", "c")]


def test_two_levels_with_an_alias_in_common_both_get_their_rows(
    hinted_postgres: Postgres, shop: str, snapshot: Snapshot, tmp_path: Path
) -> None:
    sql = (
        "SELECT (SELECT count(*) FROM orders o JOIN customers c ON c.id = o.customer_id), "
        "(SELECT count(*) FROM orders o JOIN items i ON i.order_id = o.id)"
    )
    outcome = decide(sql, snapshot, Models(model(tmp_path)))
    prefix = render(outcome.advice, snapshot.capabilities).prefix
    plan = hinted_postgres.sql(f"SET max_parallel_workers_per_gather = 0; {prefix}EXPLAIN (FORMAT JSON) {sql}", shop)
    found = [
        node["Plans"][0]["Plan Rows"]
        for node in json.loads(plan)[0]["Plan"]["Plans"]
        if node["Node Type"] == "Aggregate"
    ]
    assert sorted(found) == sorted(round(rows.rows) for rows in outcome.advice.rows)
    assert len(found) == 2


def test_each_block_is_advised_and_outer_joins_only_inside_their_islands(snapshot: Snapshot, tmp_path: Path) -> None:
    sql = (
        "WITH recent AS (SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id) "
        "SELECT 1 FROM recent r JOIN items i ON i.order_id = r.id "
        "UNION SELECT 2 FROM products p "
        "LEFT JOIN (orders q JOIN items j ON j.order_id = q.id) ON j.product_id = p.id"
    )
    outcome = decide(sql, snapshot, Models(model(tmp_path)))
    assert {rows.aliases for rows in outcome.advice.rows} == {("o", "c"), ("q", "j")}


def test_without_a_model_or_a_dialect_nothing_is_computed(snapshot: Snapshot, tmp_path: Path) -> None:
    assert decide(QUERY, snapshot, Models()).reason == Reason.NO_MODEL
    stock = without(snapshot, "hint_plan")
    outcome = decide(QUERY, stock, Models(model(tmp_path)))
    assert (outcome.reason, outcome.sub_plans) == (Reason.NO_DIALECT, ())
    shown = decide(QUERY, stock, Models(model(tmp_path)), estimate_anyway=True)
    assert (shown.reason, len(shown.sub_plans)) == (Reason.NO_DIALECT, 3)


def test_corrections_near_one_and_short_statements_are_not_worth_it(snapshot: Snapshot, tmp_path: Path) -> None:
    assert decide(QUERY, snapshot, Models(model(tmp_path, 0.1))).reason == Reason.NO_CHANGE
    steered = Models(model(tmp_path))
    outcome = decide(QUERY, snapshot, steered)
    assert outcome.estimated_ms > 1
    assert decide(QUERY, snapshot, steered, min_ms=outcome.estimated_ms + 1).reason == Reason.CHEAP
    point = decide(QUERY + " AND c.id = 7", snapshot, steered)
    assert point.estimated_ms < outcome.estimated_ms / 10


def test_predictions_are_clipped_as_the_manifest_says(snapshot: Snapshot, tmp_path: Path) -> None:
    outcome = decide(QUERY, snapshot, Models(model(tmp_path, 9.0, clip=(-1.0, 1.0))))
    assert all(one.rows == pytest.approx(one.native * math.e) for one in outcome.sub_plans)
    smaller = decide(QUERY, snapshot, Models(model(tmp_path, -50.0, clip=(-60.0, 1.0))))
    assert all(rows.rows == 1.0 for rows in smaller.advice.rows)


def test_joins_with_a_table_of_which_nothing_is_left_are_not_raised(snapshot: Snapshot, tmp_path: Path) -> None:
    sql = "SELECT * FROM products p JOIN items i ON i.product_id = p.id JOIN orders o ON o.id = i.order_id"
    empty = f"{sql} WHERE p.category = 'none such'"

    def told(statement: str, log_ratio: float) -> dict[str, bool]:
        """Per join whether its rows are what the model says, not the server's."""
        outcome = decide(statement, snapshot, Models(model(tmp_path, log_ratio)))
        return {
            "".join(one.aliases): one.rows == pytest.approx(one.native * math.exp(log_ratio))
            for one in outcome.sub_plans
        }

    assert told(f"{sql} WHERE p.category = 'c3'", 2.0) == {"pi": True, "io": True, "pio": True}
    assert told(empty, 2.0) == {"pi": False, "io": True, "pio": False}
    # 1 row is the least that can be told, so that only the join of 30,000 shows that lowering goes on.
    assert told(empty, -2.0)["io"]


@pytest.mark.parametrize(
    ("tail", "held"),
    [
        ("ORDER BY o.total LIMIT 9000", True),
        ("ORDER BY o.total LIMIT 8500 OFFSET 500", True),
        ("ORDER BY o.total LIMIT 4", False),  # the server itself expects more
        ("ORDER BY o.total", False),
        ("LIMIT 9000", False),
    ],
)
def test_an_ordered_limit_does_not_come_to_hope_for_an_early_stop(
    snapshot: Snapshot, tmp_path: Path, tail: str, *, held: bool
) -> None:
    outcome = decide(f"{QUERY.replace('count(*)', 'c.id, o.id')} {tail}", snapshot, Models(model(tmp_path)))
    rows = {"".join(one.aliases): (one.native, one.rows) for one in outcome.sub_plans}
    native, advised = rows["coi"]
    assert advised == pytest.approx(9000.0 if held else native * math.exp(2.0))
    assert rows["co"][1] == pytest.approx(rows["co"][0] * math.exp(2.0))


def test_what_the_model_has_not_seen_is_left_alone(snapshot: Snapshot, tmp_path: Path) -> None:
    elsewhere = dict.fromkeys(flat.NAMES[:3], (-9e9, -8e9))
    outside = model(tmp_path, ranges=elsewhere)
    assert decide(QUERY, snapshot, Models(outside)).reason == Reason.OUT_OF_RANGE
    forgiving = model(tmp_path, ranges=elsewhere, abstention=Abstention(outside_ranges=3))
    assert decide(QUERY, snapshot, Models(forgiving)).reason == ""
    part = model(tmp_path, vocabulary=Vocabulary(tables=("public.customers", "public.orders")))
    assert [rows.aliases for rows in decide(QUERY, snapshot, Models(part)).advice.rows] == [("c", "o")]
    unsure = model(tmp_path, log_std=2.0, abstention=Abstention(log_std=1.0))
    assert decide(QUERY, snapshot, Models(unsure)).reason == Reason.OUT_OF_RANGE


def test_templates_that_were_trained_on_have_limits_of_their_own(snapshot: Snapshot, tmp_path: Path) -> None:
    graph = read(QUERY).graph
    assert graph is not None
    (block,) = resolve(graph, snapshot, ("public",)).blocks
    known = KnownTemplates(log_std=3.0, factor=1.5, templates=(digest(template(block)),))
    trained = Models(model(tmp_path, log_std=2.0, abstention=Abstention(log_std=1.0, known=known)))
    assert all(one.rows == pytest.approx(one.native * math.e**3) for one in decide(QUERY, snapshot, trained).sub_plans)
    assert decide(f"{QUERY} AND c.id < 40", snapshot, trained).reason == ""
    assert decide(f"{QUERY} AND c.id = i.id", snapshot, trained).reason == Reason.OUT_OF_RANGE


def test_a_changed_schema_switches_off_what_changed(snapshot: Snapshot, tmp_path: Path) -> None:
    assert decide(QUERY, snapshot, Models(model(tmp_path, schema_hash=snapshot.schema_hash))).reason == ""
    stale = decide(QUERY, snapshot, Models(model(tmp_path, schema_hash="other")))
    assert (stale.reason, stale.template_wide) == (Reason.SCHEMA_MISMATCH, True)
    hashes = {
        f"public.{name}": relation_hash(snapshot.tables["public", name], snapshot) for name in ("customers", "orders")
    }
    partly = model(tmp_path, schema_hash="other", relation_hashes={**hashes, "public.items": "other"})
    outcome = decide(QUERY, snapshot, Models(partly))
    assert [rows.aliases for rows in outcome.advice.rows] == [("c", "o")]


def test_a_model_of_another_featurizer_is_left_alone(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    cardinality_model(path, featurizer=("flat", "0.0.1"))
    outcome = decide(QUERY, snapshot, Models(load_model(path)))
    assert outcome.reason == Reason.UNKNOWN_FEATURIZER


def test_a_model_that_fails_is_an_error_for_the_caller_to_catch(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "nan.onnx"
    saboteur_model(path, "nan", features=flat.NAMES)
    with pytest.raises(ModelError):
        decide(QUERY, snapshot, Models(load_model(path)))


def test_a_model_of_settings_chooses_the_best_arm_by_a_margin(snapshot: Snapshot, tmp_path: Path) -> None:
    stock = without(snapshot, "hint_plan")
    chosen = decide(QUERY, stock, Models(hints=arms(tmp_path, 0.0, -1.0, -0.5)))
    assert (chosen.reason, dict(chosen.advice.settings)) == ("", {"enable_nestloop": "off"})
    assert chosen.model == "arms-1.0.0"
    assert decide(QUERY, stock, Models(hints=arms(tmp_path, 0.0, -0.1, -0.05))).reason == Reason.NO_CHANGE
    assert decide(QUERY, stock, Models(hints=arms(tmp_path, -1.0, 0.0, 0.0))).reason == Reason.NO_CHANGE
    elsewhere = arms(tmp_path, 0.0, -1.0, 0.0, vocabulary=Vocabulary(tables=("public.customers",)))
    assert decide(QUERY, stock, Models(hints=elsewhere)).reason == Reason.OUT_OF_RANGE
    assert decide(QUERY, stock, Models(hints=arms(tmp_path, 0.0, -1.0, 0.0, schema_hash="other"))).reason == (
        Reason.SCHEMA_MISMATCH
    )


def test_an_arm_is_taken_only_where_it_is_surely_better(snapshot: Snapshot, tmp_path: Path) -> None:
    stock = without(snapshot, "hint_plan")

    def chosen(*spreads: float, **manifest: Any) -> Outcome:
        return decide(QUERY, stock, Models(hints=arms(tmp_path, 0.0, -1.0, -0.5, log_std=spreads, **manifest)))

    sure = chosen(0.1, 0.1, 0.1)
    assert sure.arm == "no_nestloop"
    assert sure.expected_gain == pytest.approx(math.e)
    # The better prediction is the less certain one.
    assert chosen(0.1, 0.5, 0.1).arm == "no_hash"
    assert chosen(0.1, 0.6, 0.25).arm == "no_hash"
    unsure = chosen(0.1, 0.7, 0.4)
    assert (unsure.reason, unsure.arm, unsure.advice) == (Reason.UNCERTAIN, "", NOTHING)
    assert chosen(0.1, 0.3, 0.3, abstention=Abstention(log_std=0.2)).reason == Reason.UNCERTAIN
    assert not unsure.template_wide


@pytest.mark.parametrize(
    ("ratios", "spreads", "expected"),
    [
        ([-1.0, -0.5], None, 0),
        ([-1.0, -0.5], [1.0, 0.1], 1),
        ([-1.0, -0.5], [1.0, 1.0], "uncertain"),
        ([-0.2, 0.5], [0.01, 0.01], "no_change"),
        ([0.0, -9.0], [0.1, 0.1], 1),
    ],
)
def test_the_best_arm(ratios: list[float], spreads: list[float] | None, expected: int | str) -> None:
    settings = [{"enable_nestloop": "off"}, {"enable_hashjoin": "off"}]
    found, why = best_arm(np.array(ratios), None if spreads is None else np.array(spreads), settings)
    assert (why if found is None else found) == expected
    # The default among the arms is never an arm.
    assert best_arm(np.array([-5.0]), None, [{}]) == (None, Reason.NO_CHANGE)


def test_a_model_of_statements_may_be_told_the_plan(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "statements.onnx"
    features = statement.NAMES
    weights = np.zeros((len(features), 1), np.float32)
    weights[features.index("plan planned")] = -1.0
    hints_model(
        path,
        arms={"no_nestloop": {"enable_nestloop": "off"}},
        log_latency_ratios=[0.0],
        weights=weights,
        features=features,
        featurizer=("statement", statement.VERSION),
        clip=(-10.0, 10.0),
    )
    models = Models(hints=load_model(path))
    plan = {"Node Type": "Seq Scan", "Total Cost": 10.0, "Startup Cost": 0.0, "Plan Rows": 5}
    assert decide(QUERY, snapshot, models, plan=plan).arm == "no_nestloop"
    assert decide(QUERY, snapshot, models).reason == Reason.NO_CHANGE


def test_rows_come_before_settings_where_both_can_be_told(snapshot: Snapshot, tmp_path: Path) -> None:
    both = Models(model(tmp_path), arms(tmp_path, 0.0, -1.0, 0.0))
    assert decide(QUERY, snapshot, both).model == "times-e2-1.0.0"
    agrees = Models(model(tmp_path, 0.0), both.hints)
    assert decide(QUERY, snapshot, agrees).model == "arms-1.0.0"


def test_advice_for_a_join_of_too_many_orders_can_be_stored(snapshot: Snapshot, tmp_path: Path) -> None:
    tables = ", ".join(f"orders o{number}" for number in range(14))
    joins = " AND ".join(f"o{number}.customer_id = o0.customer_id" for number in range(1, 14))
    advice = decide(f"SELECT 1 FROM {tables} WHERE {joins}", snapshot, Models(model(tmp_path))).advice
    assert advice.join_pairs == MOST_PAIRS
    assert "geqo" not in render(advice, snapshot.capabilities).prefix
    stored = to_stored(advice)
    assert msgspec.json.decode(msgspec.json.encode(stored), type=StoredAdvice) == stored

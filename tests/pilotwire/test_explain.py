"""``pilotwire explain`` on a real server: what it prints, what it never does, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotwire.cli import run_program
from pilotwire.explain_reasons import REASONS
from pilotwire.explain_view import q_error, short
from pilotwire.plan_tree import changed, parse
from pilotwire.sql_text import condition
from planner.advise import Reason
from planner.features import flat
from planner.sql import read
from tests.support.models import saboteur_model
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA, WITH_PARAMETER, constant_model

Explain = Any


@pytest.fixture(scope="module")
def dsn(hinted_postgres: Postgres) -> str:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    return hinted_postgres.dsn(name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    constant_model(folder)
    return folder


@pytest.fixture
def explain(dsn: str, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Runs the command; its output, and its exit code must be 0 unless told otherwise."""

    def run(sql: str, *options: str, columns: int = 80, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run_program(["explain", "--upstream", dsn, "--models", str(models), sql, *options]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


@pytest.mark.parametrize("columns", [80, 120])
def test_everything_is_shown_and_fits(explain: Explain, columns: int) -> None:
    text = explain(QUERY, "--analyze", columns=columns)
    for part in ("c customers", "c.region = 'north'", "o.customer_id = c.id", "> hint_plan", '/*+ Rows("c" "o" #'):
        assert part in text
    assert "as PostgreSQL plans it" in text
    assert "with the advice" in text
    assert "Steered: for the join of" in text
    # Two runs of one plan compare nothing.
    why = " ".join(text.split())
    assert (
        ("by chance" in why)
        is ("the plan stays the same" in why)
        is ("times faster" not in why and "slower" not in why)
    )
    assert max(map(len, text.splitlines())) <= columns


def test_long_advice_is_cut_between_hints(explain: Explain) -> None:
    names = "abcdef"
    joins = "".join(f" JOIN customers very_long_alias_{name} ON very_long_alias_{name}.id = c.id" for name in names)
    sql = f"SELECT count(*) FROM customers c{joins}"
    text = " ".join(explain(sql).split())
    assert "more characters; --json has all" in text
    assert text.count("Rows(") == text.partition("more characters")[0].count(") ")
    whole = json.loads(explain(sql, "--json"))["advice"]["hint_plan"]
    assert whole.count("Rows(") > text.count("Rows(")


def test_json_has_true_rows_and_both_plans(explain: Explain, hinted_postgres: Postgres, dsn: str) -> None:
    found = json.loads(explain(QUERY, "--analyze", "--json"))
    assert (found["steered"], found["reason"], found["model"]) == (True, "", "times-e2-1.0.0")
    whole = found["sub_plans"][-1]
    assert whole["aliases"] == ["c", "o", "i"]
    assert whole["true"] == int(hinted_postgres.sql(QUERY, dsn.rpartition("/")[2]))
    assert whole["model"] > whole["native"]
    assert all(found["plans"][name]["execution_ms"] > 0 for name in ("plain", "steered"))
    assert found["dialect"] == "hint_plan"
    assert set(found["advice"]) == {"hint_plan", "settings", "plan_advice"}
    assert [relation["alias"] for relation in found["blocks"][0]["relations"]] == ["c", "o", "i"]


def test_without_analyze_nothing_is_executed(explain: Explain) -> None:
    found = json.loads(explain(QUERY + " AND pg_sleep(600) IS NULL", "--json"))
    assert found["plans"]["plain"]["execution_ms"] is None
    assert all(one["true"] is None for one in found["sub_plans"])


def test_what_writes_is_not_executed_even_with_analyze(explain: Explain, hinted_postgres: Postgres, dsn: str) -> None:
    before = hinted_postgres.sql("SELECT count(*) FROM items", dsn.rpartition("/")[2])
    text = explain(
        "INSERT INTO items SELECT o.id, 1, 1 FROM orders o JOIN customers c ON c.id = o.customer_id", "--analyze"
    )
    assert "was not executed" in text
    assert hinted_postgres.sql("SELECT count(*) FROM items", dsn.rpartition("/")[2]) == before
    text = explain("SELECT nextval('s') FROM orders o JOIN items i ON i.order_id = o.id", "--analyze")
    assert "Left alone" in text


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 1", "it joins no tables"),
        ("SELEC 1", "PostgreSQL's parser does not accept it"),
        ("VACUUM", "it is a utility statement"),
        (f"/*+ SeqScan(c) */ {QUERY}", "existing hints win"),
        (f"/* pilotwire: off */ {QUERY}", "opted out"),
        ("SELECT * FROM big_orders b JOIN items i ON i.order_id = b.id", "a hint would reach unseen"),
        ("SELECT * FROM secrets s JOIN items i ON i.order_id = s.order_id", "row-level security"),
    ],
)
def test_why_not(explain: Explain, sql: str, said: str) -> None:
    text = " ".join(explain(sql).split())
    assert "Left alone: " in text
    assert said in text


def test_parameters_and_explain_itself(explain: Explain) -> None:
    literal = json.loads(explain(QUERY, "--json"))
    given = json.loads(explain(WITH_PARAMETER, "--param", "north", "--json"))
    inside = json.loads(explain(f"EXPLAIN (COSTS OFF) {QUERY}", "--json"))
    assert given["sub_plans"] == literal["sub_plans"] == inside["sub_plans"]
    assert inside["plans"]["steered"] is not None
    number = json.loads(explain(WITH_PARAMETER.replace("c.region = $1", "c.tier = $1"), "-p", "2", "--json"))
    assert number["plans"]["plain"] is not None
    missing = json.loads(explain(WITH_PARAMETER, "--analyze", "--json"))
    assert missing["steered"]
    assert missing["plans"] == {"plain": None, "steered": None}
    assert "0 of 1 parameters" in missing["notes"][0]
    more = json.loads(explain(WITH_PARAMETER, "-p", "north", "-p", "south", "--json"))
    assert more["plans"] == given["plans"]
    assert "has 1 parameters" in more["notes"][0]
    wrong = json.loads(explain(WITH_PARAMETER.replace("c.region = $1", "c.id = ANY($1)"), "-p", "{1}", "--json"))
    assert wrong["notes"][0].startswith("EXPLAIN failed: ")


def test_true_rows_are_counted_in_every_block(explain: Explain) -> None:
    inner = "SELECT o.id, o.customer_id FROM orders o JOIN items i ON i.order_id = o.id"
    found = json.loads(
        explain(
            f"WITH bought AS MATERIALIZED ({inner}) SELECT count(*) FROM bought JOIN customers c "
            "ON c.id = bought.customer_id WHERE c.id IN "
            "(SELECT q.id FROM products q JOIN items j ON j.product_id = q.id)",
            "--analyze",
            "--json",
        )
    )
    assert {"".join(one["aliases"]): one["true"] for one in found["sub_plans"]} == {"oi": 30000, "qj": 30000}


def test_without_a_model_and_with_a_broken_one(dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["explain", "--upstream", dsn, QUERY]) == 0
    text = capsys.readouterr().out
    assert "Name a folder of models with --models." in text
    assert "no model serves" in text
    saboteur_model(tmp_path / "nan.onnx", "nan", features=flat.NAMES)
    assert run_program(["explain", "--upstream", dsn, "--models", str(tmp_path), QUERY]) == 0
    text = capsys.readouterr().out
    assert "The model failed" in text
    assert "Left alone: the decision failed." in text
    assert not list(tmp_path.glob(".*")), "it only looks"


def test_errors_are_one_line(explain: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["explain", "--upstream", "postgresql://u@127.0.0.1:1/d", "SELECT 1"]) == 1
    said = capsys.readouterr().err
    assert "cannot reach" in said
    assert said.count("\n") == 1
    assert run_program(["explain", "--upstream", "postgresql://u:secret@127.0.0.1/d", "SELECT 1"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_every_reason_has_a_sentence() -> None:
    assert {str(reason) for reason in Reason} <= REASONS.keys()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.x = 5", "a.x = 5"),
        ("a.x IN (1, 2, 3, 4, 5, 6)", "a.x in (1, 2, 3, 4, ... 2 more)"),
        ("a.name NOT LIKE 'x%' OR a.x IS NOT NULL", "a.name not like 'x%' or a.x is not null"),
        ("lower(a.name) = $1", "lower(a.name) = $1"),
        ("a.x + 1 > 3", "a.x + 1 > 3"),
        ("NOT (a.x = 1 AND (a.y = 2 OR a.z))", "not (a.x = 1 and (a.y = 2 or a.z))"),
        ("a.x = (SELECT 1)", "a.x = ..."),
    ],
)
def test_conditions_as_text(text: str, shown: str) -> None:
    graph = read(f"SELECT * FROM a JOIN b ON a.id = b.id WHERE {text}").graph
    assert graph is not None
    block = graph.blocks[0]
    found = [condition(one.condition, block) for one in (*block.predicates, *block.outer_predicates)]
    assert shown in " and ".join(found)


def test_numbers() -> None:
    assert [short(number) for number in (0, 1, 999.6, 1234, 1_250_000, 3e9, 2e12)] == [
        "0",
        "1",
        "1k",
        "1.23k",
        "1.25M",
        "3G",
        "2T",
    ]
    assert (q_error(100, 10), q_error(10, 100), q_error(0.5, 0)) == (10, 10, 1)


def test_plans_are_compared_step_by_step() -> None:
    def plan(join: str, *children: dict[str, Any]) -> dict[str, Any]:
        return {"Plan": {"Node Type": join, "Plan Rows": 5, "Total Cost": 1.5, "Plans": list(children)}}

    a = {"Node Type": "Seq Scan", "Alias": "a", "Plan Rows": 1, "Actual Rows": 2, "Actual Loops": 3}
    b = {"Node Type": "Index Scan", "Alias": "b", "Plan Rows": 1}
    one, two = parse(plan("Nested Loop", a, b)), parse(plan("Hash Join", a, b))
    turned = parse(plan("Nested Loop", b, a))
    assert changed(one.root, two.root) == {0}
    assert changed(one.root, one.root) == set()
    assert changed(one.root, turned.root) == {0}, "outer and inner side changed places"
    assert [(depth, node.name, node.actual) for depth, node in one.root.walk()] == [
        (0, "Nested Loop", None),
        (1, "Seq Scan a", 6),
        (1, "Index Scan b", None),
    ]
    assert (one.cost, one.execution_ms) == (1.5, None)

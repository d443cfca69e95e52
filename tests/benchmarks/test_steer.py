"""The steering benchmark's arithmetic, its refusal without data, and that the product knows none of its data sets."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.steer import shape, told
from benchmarks.steer_cost import cached_us, template_us
from benchmarks.steer_results import Measured, Results, SetResults
from benchmarks.steer_sets import ROOT, TRAVEL_FILES, TRAVEL_TABLES, counted
from benchmarks.steer_truth import SubPlan, q_errors
from pilotwire.demo import schema
from training.evaluate.measure import Series, q_error

BLIND = ("planner", "proxy", "model_runtime", "training")
GENERAL = frozenset({
    "age", "amount", "channel", "class", "code", "comments", "cost", "count", "date", "id", "kind", "location",
    "method", "name", "orders", "price", "products", "reason", "region", "returns", "status", "stores", "tags",
    "title", "total", "users", "views", "votes",
})  # fmt: skip
"""Names of tables and columns that are ordinary words too: what a function returns, join orders, comments, views ...
They may be used as words; a string literal that consists of nothing else may be one of them only if in `LITERALS`."""
LITERALS = frozenset({
    "age", "cost", "count", "date", "id", "kind", "location", "method", "name", "reason", "status", "title", "total",
    "votes",  # what the trees of an ensemble say, as ONNX knows it
})  # fmt: skip
"""Of the general words, those that are also keys of messages, settings, catalogs and types."""
TRAVEL_COLUMNS = frozenset(
    [
        "id",
        "reputation",
        "creationdate",
        "views",
        "upvotes",
        "downvotes",
        "lastaccessdate",
        "age",
        "location",
        "accountid",
        "posttypeid",
        "score",
        "viewcount",
        "owneruserid",
        "answercount",
        "commentcount",
        "favoritecount",
        "lasteditoruserid",
        "parentid",
        "acceptedanswerid",
        "lastactivitydate",
        "lasteditdate",
        "closeddate",
        "communityowneddate",
        "title",
        "postid",
        "userid",
        "votetypeid",
        "bountyamount",
        "date",
        "name",
        "class",
        "tagbased",
        "relatedpostid",
        "linktypeid",
        "count",
        "excerptpostid",
        "wikipostid",
        "tagname",
    ]
)


def demo_names() -> set[str]:
    found = set(schema.PRIMARY_KEYS)
    for line in schema.TABLES.splitlines():
        if match := re.match(r"    ([a-z_]+) [a-z]", line):
            found.add(match[1])
    return found


def literals(text: str) -> set[str]:
    """The string literals of a module, documentation left out."""
    tree = ast.parse(text)
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }


def leaks(file: str, text: str, names: set[str]) -> list[str]:
    """Where a module knows a data set: its special names anywhere, its general ones as a literal."""
    words = set(re.findall(r"[a-z_]+", text.lower()))
    found = [f"{file}: {name}" for name in sorted((names - GENERAL) & words)]
    return found + [f"{file}: {name!r}" for name in sorted(names & GENERAL - LITERALS & literals(text))]


def test_the_product_knows_no_name_of_either_data_set() -> None:
    names = demo_names() | TRAVEL_COLUMNS | set(TRAVEL_TABLES)
    assert len(names) > 80
    found = []
    for package in BLIND:
        for file in sorted((ROOT / package).rglob("*.py")):
            found += leaks(str(file.relative_to(ROOT)), file.read_text(), names)
    assert found == []


def test_a_leak_would_be_seen() -> None:
    names = demo_names() | TRAVEL_COLUMNS
    assert leaks("x", "def f():\n    return 'posts of owneruserid'", names) == ["x: owneruserid"]
    assert leaks("x", "SPECIAL = 'orders'", names) == ["x: 'orders'"]
    assert leaks("x", '"""What it returns."""\n# join orders\nfirst = "name"', names) == []


def test_the_lists_are_those_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ.get("TRAVEL_SE") or ROOT.parent / "shared" / "data" / "travel_se")
    if not (folder / "schema.sql").exists():
        pytest.skip("travel_se is not on this machine")
    columns = set()
    for body in re.findall(r"CREATE TABLE \w+ \((.*)\);", (folder / "schema.sql").read_text()):
        columns |= {part.split()[0] for part in body.split(", ")}
    assert columns == TRAVEL_COLUMNS


def test_without_travel_one_line_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.steer", "--parts", "travel"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRAVEL_SE": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert TRAVEL_FILES[0] in line
    assert "set TRAVEL_SE" in line
    assert done.stdout == ""


def test_counted_lines() -> None:
    assert counted("12||SELECT 1;\n\n3000000000||/* a || b */ SELECT 2;\n") == [
        (12, "SELECT 1"),
        (3_000_000_000, "/* a || b */ SELECT 2"),
    ]


def test_q_errors_leave_empty_joins_out() -> None:
    assert q_error(10, 1000) == q_error(1000, 10) == 100
    assert q_error(0.001, 1) == 1
    plans = [SubPlan("q", ("a", "b"), 10.0, 90.0, 100.0), SubPlan("q", ("a", "c"), 10.0, 5.0, 0.0)]
    found = q_errors(plans)
    assert found["p50"] == found["max"]
    assert found["p50"] == pytest.approx((10.0, 100 / 90))
    assert q_errors(plans[1:]) == {}


def test_plans_are_told_apart_by_what_they_do_and_what_they_expect() -> None:
    scan = {"Node Type": "Seq Scan", "Alias": "a", "Plan Rows": 5}
    one = {"Node Type": "Hash Join", "Join Type": "Inner", "Plan Rows": 10, "Plans": [scan, scan]}
    other = {**one, "Plan Rows": 99}
    assert shape(one) == shape(other)
    assert told(one) == [10, 5, 5] != told(other)
    assert shape(one) != shape({**one, "Node Type": "Nested Loop"})


def test_promises_and_json() -> None:
    found = SetResults("travel_se", {"file": "00"})
    for number, (before, after) in enumerate(((900.0, 450.0), (60.0, 130.0), (80.0, 50.0), (40.0, 20.0))):
        series = {"direct": Series([before], 1, 0, "SELECT 1"), "steered": Series([after], 1, 0, "SELECT 1")}
        found.queries.append(Measured(f"q{number}", "SELECT 1", "" if number else "no_change", series, True))
    results = Results({"rounds": 1}, sets=[found])
    by_name = {verdict.name: verdict for verdict in results.verdicts()}
    assert by_name["travel_se: total without the two largest"].value == pytest.approx(100 / 150)
    assert not by_name["travel_se: more than twice slower"].passed
    assert by_name["travel_se: geometric mean"].value == pytest.approx((2 * 60 / 130 * 1.6 * 2) ** 0.25)
    assert dict(found.reasons()) == {"no_change": 1, "advised": 3}
    assert '"over_2": 1' in results.as_json()
    found.queries[1].series["steered"].timeouts = 1
    without = found.summary("steered", timeouts=False)
    assert without is not None
    assert (without.statements, without.over_2) == (3, 0)


async def test_decisions_in_the_worker_stay_cheap() -> None:
    """Ten times the promise: a machine under tests is no place to measure, but a slip of that size is a mistake."""
    assert await cached_us() < 50
    assert template_us() < 150

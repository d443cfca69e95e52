"""Reading statements: which are steered, which are left alone and why, and that no text makes it raise."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.graph import Command, QueryGraph
from planner.sql import MAX_BYTES, qualify, read
from tests.planner.describe import describe

STATEMENTS = Path(__file__).with_name("statements.txt")


def corpus() -> list[tuple[str, list[str]]]:
    """Statements with the lines that describe their graphs."""
    found: list[tuple[str, list[str]]] = []
    for line in STATEMENTS.read_text().splitlines():
        if line.startswith("    "):
            found[-1][1].append(line.strip())
        elif not line.startswith("--"):
            found.append((line, []))
    return found


CORPUS = corpus()


def graph_of(text: str) -> QueryGraph:
    reading = read(text)
    assert reading.graph is not None, reading.reason
    assert reading.reason == ""
    return reading.graph


def summary(graph: QueryGraph) -> list[str]:
    lines = describe(graph)
    if graph.draft is not None:
        lines.append("open")
    if graph.parameters:
        lines.append(f"parameters {graph.parameters}")
    if graph.functions:
        lines.append("functions " + " ".join(sorted(graph.functions)))
    return lines if graph.read_only else [*lines, "writes"]


@pytest.mark.parametrize(("text", "expected"), CORPUS, ids=[text[:60] for text, _ in CORPUS])
def test_statement_is_read_as_written_down(text: str, expected: list[str]) -> None:
    assert summary(graph_of(text)) == expected


@pytest.mark.parametrize(
    ("text", "command", "read_only"),
    [
        ("SELECT 1 FROM a", Command.SELECT, True),
        ("EXPLAIN SELECT 1 FROM a", Command.EXPLAIN, True),
        ("EXPLAIN (ANALYZE, BUFFERS) SELECT 1 FROM a", Command.EXPLAIN, True),
        ("EXPLAIN INSERT INTO t SELECT 1 FROM a", Command.EXPLAIN, False),
        ("DECLARE c CURSOR FOR SELECT 1 FROM a", Command.DECLARE, True),
        ("COPY (SELECT 1 FROM a) TO STDOUT", Command.COPY, True),
        ("CREATE TABLE t AS SELECT 1 FROM a", Command.CREATE_TABLE_AS, False),
        ("CREATE MATERIALIZED VIEW t AS SELECT 1 FROM a", Command.CREATE_TABLE_AS, False),
        ("SELECT 1 INTO t FROM a", Command.CREATE_TABLE_AS, False),
        ("INSERT INTO t SELECT 1 FROM a", Command.INSERT, False),
        ("WITH a AS (SELECT 2 FROM b) INSERT INTO t SELECT 1 FROM a RETURNING x", Command.INSERT, False),
        ("PREPARE p (int) AS SELECT 1 FROM a WHERE x = $1", Command.PREPARE, True),
        ("SELECT 1 FROM a FOR SHARE", Command.SELECT, False),
    ],
)
def test_steered_kinds(text: str, command: Command, read_only: bool) -> None:
    graph = graph_of(text)
    assert graph.command is command
    assert graph.read_only is read_only
    assert [relation.alias for relation in graph.blocks[0].relations] == ["a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  -- nothing\n;", "empty"),
        ("SELEC 1", "syntax"),
        ("SELECT 'open", "syntax"),
        ("SELECT 1 \0 FROM a", "syntax"),
        ("SELECT '\ud800'", "syntax"),
        ("SELECT 1; SELECT 2", "several_statements"),
        ("UPDATE a SET x = 1", "not_a_query"),
        ("DELETE FROM a USING b", "not_a_query"),
        ("MERGE INTO a USING b ON a.x = b.x WHEN MATCHED THEN DO NOTHING", "not_a_query"),
        ("INSERT INTO a VALUES (1)", "not_a_query"),
        ("INSERT INTO a DEFAULT VALUES", "not_a_query"),
        ("EXPLAIN DELETE FROM a", "not_a_query"),
        ("BEGIN", "utility"),
        ("SET x = 1", "utility"),
        ("COPY a TO STDOUT", "utility"),
        ("COPY a FROM STDIN", "utility"),
        ("EXECUTE p (1)", "utility"),
        ("EXPLAIN EXECUTE p (1)", "utility"),
        ("CREATE TABLE t AS EXECUTE p", "utility"),
        ("REFRESH MATERIALIZED VIEW v", "utility"),
        ("CREATE VIEW v AS SELECT 1", "utility"),
        ("DO $$ begin end $$", "utility"),
        ("/*+ SeqScan(a) */ SELECT 1 FROM a", "hinted"),
        ("SELECT 1 /*+ SeqScan(a) */ FROM a", "hinted"),
        ("/* x /*+ y */ z */ SELECT 1", "hinted"),
        ("SELECT 1 -- /*+ x */", "hinted"),
        ("SELECT 'é' /*+ x */", "hinted"),
        ("/* pilotwire: off */ SELECT 1", "opted_out"),
        ("SELECT 'é' /*PILOTWIRE:OFF*/", "opted_out"),
        ("/*+ open", "syntax"),
        ("SELECT '" + "x" * MAX_BYTES + "'", "too_large"),
        ("SELECT '" + "é" * (MAX_BYTES // 2) + "'", "too_large"),
        ("SELECT " + "(SELECT " * 150 + "1" + ")" * 150, "too_deep"),
        ("SELECT 1" + " + 1" * 3000, "too_deep"),
        ("SELECT a" + "::text" * 5000, "too_deep"),
        ("SELECT 1 FROM a" + " JOIN a ON x" * 2000, "too_deep"),
        ("SELECT " + "NOT " * 20000 + "a", "too_large"),
        ("SELECT " + "NOT " * 15000 + "a", "syntax"),  # the parser's own stack ends first
    ],
)
def test_left_alone_for_a_reason(text: str, reason: str) -> None:
    reading = read(text)
    assert reading.graph is None
    assert reading.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '/*+ x */' FROM a",
        "SELECT $$/*+ x */$$, E'\\'/*+' FROM a",
        'SELECT "/*+ x */" FROM a',
        "SELECT '/* pilotwire: off */' FROM a",
        "/* a + b */ SELECT 1 FROM a",
        "/* pilotwire: offer */ SELECT 1 FROM a",
    ],
)
def test_literals_and_other_comments_are_no_hints(text: str) -> None:
    assert graph_of(text).blocks[0].relations[0].alias == "a"


@pytest.mark.parametrize(
    ("text", "at"),
    [("SELECT 1", 0), ("  SELECT 1", 2), ("/* é */ -- x\n SELECT 1", 15), ("/* x */ EXPLAIN SELECT 1;", 8)],
)
def test_the_statements_byte_offset(text: str, at: int) -> None:
    assert read(text).query_at == at
    assert text.encode()[at:].startswith((b"SELECT", b"EXPLAIN"))


def test_a_long_list_of_conditions_is_not_deep() -> None:
    text = "SELECT 1 FROM a WHERE " + " AND ".join(f"x{i} = {i}" for i in range(2000))
    assert len(graph_of(text).blocks[0].predicates) == 2000
    assert len(graph_of("SELECT x FROM a" + " UNION SELECT x FROM a" * 90).blocks[0].arms) == 91


# ---------------------------------------------------------------------- qualify

TABLES = {
    (None, "orders"): ["id", "customer", "placed"],
    (None, "customers"): ["id", "name", "region"],
    (None, "regions"): ["region", "title"],
    ("other", "orders"): ["id", "note"],
}


def columns_of(schema: str | None, name: str) -> Collection[str] | None:
    return TABLES.get((schema, name))


def qualified(text: str) -> list[str]:
    graph = graph_of(text)
    assert graph.draft is not None
    done = qualify(graph, columns_of)
    assert done.draft is None
    return describe(done)


def test_nothing_to_qualify_costs_nothing() -> None:
    graph = graph_of("SELECT name FROM orders o, customers c WHERE o.customer = c.id")
    assert qualify(graph, columns_of) is graph


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "SELECT 1 FROM orders, customers WHERE customer = customers.id AND placed > $1 AND name LIKE 'x%'",
            [
                "from orders, customers",
                "inner orders.customer = customers.id",
                "[orders] orders.placed > $1",
                "[customers] customers.name like 'x%'",
            ],
        ),
        (
            "SELECT 1 FROM customers NATURAL JOIN regions WHERE title = 'x' AND region = 'y'",
            [
                "from customers, regions",
                "inner customers.region = regions.region",
                "[regions] regions.title = 'x'",
                "[customers] customers.region = 'y'",
            ],
        ),
        (
            "SELECT 1 FROM orders o JOIN customers c ON customer = c.id JOIN regions USING (region)",
            ["from orders o, customers c, regions", "inner o.customer = c.id", "inner c.region = regions.region"],
        ),
        (
            "SELECT 1 FROM customers c LEFT JOIN orders o ON c.id = customer WHERE placed = 3",
            ["from customers c, orders o", "inner c.id = o.customer", "[o] o.placed = 3"],
        ),
        (
            "SELECT 1 FROM customers WHERE EXISTS (SELECT 1 FROM orders WHERE customer = customers.id AND placed = 1)",
            [
                "0: from customers",
                "0: semi customers.id = orders.customer in 1",
                "1: from orders",
                "1: [orders] orders.placed = 1",
            ],
        ),
        (
            "SELECT 1 FROM customers WHERE id IN (SELECT customer FROM orders WHERE region = 'x')",
            [
                "0: from customers",
                "0: semi customers.id = orders.customer in 1",
                "1: from orders",
                "1: [- outer] <outer column> = 'x'",
            ],
        ),
        (
            "SELECT 1 FROM (SELECT * FROM orders) o, customers c WHERE customer = c.id AND note = 1",
            [
                "0: from subquery1 o, customers c",
                "0: inner o.customer = c.id",
                "0: [- opaque] <column note> = 1",
                "1: from orders",
            ],
        ),
        (
            "SELECT 1 FROM other.orders o, regions WHERE note = title GROUP BY region",
            ["from other.orders o, regions", "inner o.note = regions.title", "group by regions.region"],
        ),
        (
            "SELECT 1 FROM unheard_of u, regions WHERE title = 'x' AND whatever = 2",
            ["from unheard_of u, regions", "[regions] regions.title = 'x'", "[u] u.whatever = 2"],
        ),
    ],
)
def test_bare_names_find_their_relations(text: str, expected: list[str]) -> None:
    assert qualified(text) == expected


# ---------------------------------------------------------------------- whatever comes


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_without_raising(text: str) -> None:
    assert (read(text).graph is None) == bool(read(text).reason)


WORDS = sorted({word for text, _ in CORPUS for word in text.replace("(", " ( ").replace(")", " ) ").split()})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mixed_up_statements_are_read_without_raising(data: st.DataObject) -> None:
    """Statements of the corpus with words replaced by others; what still parses has a sound graph."""
    text, _ = data.draw(st.sampled_from(CORPUS))
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    for _ in range(data.draw(st.integers(1, 3))):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(WORDS))
    reading = read(" ".join(words))
    assert reading.reason != "not_understood"
    if reading.graph is not None:
        check(reading.graph)
        check(qualify(reading.graph, lambda _, name: ["x", "y", "z", "k"] if name in {"a", "b"} else None))


@pytest.mark.parametrize("text", [text for text, _ in CORPUS], ids=[text[:60] for text, _ in CORPUS])
def test_corpus_graphs_are_sound(text: str) -> None:
    check(graph_of(text))


def check(graph: QueryGraph) -> None:
    """Every index is one of something."""
    describe(graph)
    for index, block in enumerate(graph.blocks):
        assert block.index == index
        assert all(0 <= arm < len(graph.blocks) for arm in block.arms)
        for place, relation in enumerate(block.relations):
            assert relation.index == place
            assert relation.block is None or 0 <= relation.block < len(graph.blocks)
        for predicate in (*block.predicates, *block.outer_predicates):
            assert 0 <= predicate.relations <= block.everything


def test_reading_is_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what it takes; fails only where something is out of all proportion."""
    tables = [f"SELECT count(*) FROM {', '.join(f't{i} AS a{i}' for i in range(n))} WHERE " for n in (5, 10)]
    for n, start in zip((5, 10), tables, strict=True):
        joins = [f"a{i}.parent = a{random.Random(i).randrange(i)}.id" for i in range(1, n)]
        filters = [f"a{i}.amount >= {i} AND a{i}.name = 'x{i}'" for i in range(n)]
        text = start + " AND ".join(joins + filters)
        took = []
        for _ in range(100):
            begun = time.thread_time()
            read(text)
            took.append(time.thread_time() - begun)
        with capsys.disabled():
            print(f" {n} tables, {len(text)} bytes: {min(took) * 1e6:.0f} us", end="")
        assert min(took) < 0.005

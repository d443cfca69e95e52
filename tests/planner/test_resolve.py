"""Relations of a query looked up in a snapshot as the server would."""

from __future__ import annotations

import pytest

from planner.graph import Column, Compare
from planner.resolve import resolve
from planner.snapshot import ColumnInfo, Snapshot, TableInfo
from planner.sql import read


def table(
    schema: str, name: str, *columns: str, kind: str = "r", security: bool = False, doubtful: bool = False
) -> TableInfo:
    infos = {column: ColumnInfo(column, "integer", number) for number, column in enumerate(columns, 1)}
    return TableInfo(1, schema, name, kind, 100.0, 1, infos, row_security=security, temporary=doubtful)


TABLES = [
    table("public", "a", "id", "x"),
    table("public", "b", "id", "y"),
    table("other", "a", "id", "z"),
    table("public", "v", "id", kind="v"),
    table("public", "f", "id", kind="f"),
    table("public", "m", "id", kind="m"),
    table("public", "s", "id", security=True),
    table("public", "t", "id", doubtful=True),
    table("public", "pg_class", "oid"),
    table("pg_catalog", "pg_class"),
]
SNAPSHOT = Snapshot("d", 180000, {(one.schema, one.name): one for one in TABLES})


def resolved(text: str, *path: str) -> list[tuple[str, str]]:
    """(schema or "", reason) of each relation of the first block."""
    graph = read(text).graph
    assert graph is not None
    block = resolve(graph, SNAPSHOT, path or ("public",)).blocks[0]
    assert block.known == sum(1 << place for place, found in enumerate(block.tables) if found is not None)
    return [(found.schema if found else "", why) for found, why in zip(block.tables, block.reasons, strict=True)]


@pytest.mark.parametrize(
    ("relation", "found"),
    [
        ("a", ("public", "")),
        ("other.a", ("other", "")),
        ("m", ("public", "")),
        ("nowhere", ("", "unknown_table")),
        ("other.b", ("", "unknown_table")),
        ("v", ("", "view")),
        ("f", ("", "foreign_table")),
        ("s", ("", "row_security")),
        ("t", ("", "temporary")),
        ("pg_class", ("", "system_table")),
        ("public.pg_class", ("public", "")),
        ("a TABLESAMPLE SYSTEM (1)", ("", "tablesample")),
        ("(SELECT 1 AS id) q", ("", "subquery")),
        ("generate_series(1, 3) g", ("", "function")),
    ],
)
def test_one_relation(relation: str, found: tuple[str, str]) -> None:
    assert resolved(f"SELECT 1 FROM {relation}") == [found]


def test_the_search_path_decides() -> None:
    assert resolved("SELECT 1 FROM a JOIN b ON true", "other", "public") == [("other", ""), ("public", "")]
    assert resolved("SELECT 1 FROM a JOIN b ON true", "other") == [("other", ""), ("", "unknown_table")]
    assert resolved("SELECT 1 FROM a", "missing") == [("", "unknown_table")]


def test_a_cte_hides_a_table_of_its_name() -> None:
    assert resolved("WITH a AS (SELECT 1 AS id) SELECT 1 FROM a JOIN b ON a.id = b.id") == [("", "cte"), ("public", "")]


def test_columns_without_a_table_find_theirs() -> None:
    graph = read("SELECT 1 FROM a JOIN b ON a.id = b.id WHERE y = 5 AND x < 3 AND nothing = 1").graph
    assert graph is not None
    found = resolve(graph, SNAPSHOT, ("public",))
    conditions = [one.condition for one in found.graph.blocks[0].predicates if not one.opaque]
    assert [one.left for one in conditions if isinstance(one, Compare)] == [Column(1, "y"), Column(0, "x")]
    assert found.reasons == frozenset()
    assert resolve(graph, SNAPSHOT, ("other",)).reasons == {"unknown_table"}

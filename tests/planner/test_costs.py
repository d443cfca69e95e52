"""The rough time of a query: right order of magnitude, against what really takes that long."""

from __future__ import annotations

from planner.advise import Models, Options, advise
from planner.snapshot import ColumnInfo, ColumnStatistics, IndexInfo, Snapshot, TableInfo
from planner.sql import read


def _snapshot(rows: float) -> Snapshot:
    def table(name: str, key: str, *columns: str) -> TableInfo:
        statistics = {
            key: ColumnStatistics(0.0, -1.0 if key == "id" else -0.5),
            "kind": ColumnStatistics(0.0, 10.0),
        }
        infos = {
            column: ColumnInfo(column, "integer", number, statistics=statistics[column])
            for number, column in enumerate((key, *columns), 1)
        }
        indexes = (IndexInfo(f"{name}_{key}", (key,), unique=key == "id"),)
        return TableInfo(1, "public", name, "r", rows, int(rows / 100), infos, indexes)

    tables = (table("parent", "id", "kind"), table("child", "parent_id", "kind"))
    return Snapshot("d", 180000, {("public", one.name): one for one in tables}, capabilities=frozenset({"hint_plan"}))


def _ms(where: str, rows: float) -> float:
    graph = read(f"SELECT * FROM parent p JOIN child c ON c.parent_id = p.id {where}").graph
    assert graph is not None
    return advise(graph, _snapshot(rows), Models(), options=Options(estimate_anyway=True)).estimated_ms


def test_reading_two_tables_grows_with_them() -> None:
    small, large = _ms("", 1e4), _ms("", 1e6)
    assert 1 < small < 20
    assert 100 < large < 2000


def test_a_point_query_is_cheap_however_large_the_tables() -> None:
    assert _ms("WHERE p.id = 7", 1e6) < 1
    assert _ms("WHERE p.kind = 7", 1e6) > 50, "no index on it"


def test_relations_that_nothing_joins_are_added_up() -> None:
    graph = read("SELECT * FROM parent p JOIN child c ON c.parent_id = p.id, parent q, (SELECT 1) s").graph
    assert graph is not None
    found = advise(graph, _snapshot(1e4), Models(), options=Options(estimate_anyway=True))
    assert found.estimated_ms > _ms("", 1e4)


def test_an_outer_join_is_no_product() -> None:
    graph = read(
        "SELECT * FROM parent p LEFT JOIN child c ON c.parent_id = p.id JOIN child d ON d.parent_id = p.id"
    ).graph
    assert graph is not None
    found = advise(graph, _snapshot(1e5), Models(), options=Options(estimate_anyway=True))
    assert found.estimated_ms < 10 * _ms("", 1e5)

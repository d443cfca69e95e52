"""The demo's statements and training queries: drawn by a seed, apart from each other, and understood by the planner."""

from __future__ import annotations

from pilotwire.demo.training_queries import FILTERS, KEYS, training_queries
from pilotwire.demo.workload import quoted, workload
from planner.sql import read


def test_a_seed_gives_the_same_statements_and_another_asks_about_other_things() -> None:
    assert workload(1) == workload(1)
    differing = [one.name for one, other in zip(workload(1), workload(2), strict=True) if one.sql != other.sql]
    assert len(differing) > 35
    assert training_queries(1, 30) == training_queries(1, 30)
    assert training_queries(1, 30) != training_queries(2, 30)


def test_the_workload_is_what_a_shop_asks() -> None:
    statements = workload(1)
    assert len({one.name for one in statements}) == len(statements) >= 40
    joined = []
    for one in statements:
        graph = read(one.sql).graph
        assert graph is not None, one.name
        joined.append(graph.joined)
    assert sum(4 <= tables <= 8 for tables in joined) > 20
    text = "\n".join(one.sql for one in statements)
    for word in ("WITH ", "HAVING", "NOT EXISTS", "LEFT JOIN", "LIMIT", "UNION ALL", "OVER (", "ROLLUP"):
        assert word in text
    assert sum(one.kind == "point" for one in statements) >= 5


def test_nothing_measured_is_trained_on() -> None:
    trained = training_queries(1)
    assert len(trained) == len(set(trained)) == 240
    assert not {one.sql for one in workload(1)} & set(trained)


def test_every_training_query_is_a_tree_of_joins_with_conditions() -> None:
    tables = {key.table for key in KEYS} | {key.other for key in KEYS}
    assert tables == set(FILTERS)
    for sql in training_queries(3, 120):
        graph = read(sql).graph
        assert graph is not None, sql
        [block] = graph.blocks
        assert 2 <= len(block.relations) <= 6
        assert len(block.edges) >= len(block.relations) - 1


def test_a_quote_in_a_name_stays_inside_its_literal() -> None:
    assert quoted("Children's Books") == "'Children''s Books'"
    assert all(read(one.sql).graph is not None for seed in range(30) for one in workload(seed))

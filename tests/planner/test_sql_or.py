"""What follows from an OR: edges that all of its arms share, and filters of single relations."""

from __future__ import annotations

import pytest

from planner.graph import And, Column, Compare, Const, Or, QueryBlock
from planner.sql import read
from planner.sql_equivalence import equivalences
from planner.sql_or import restriction


def block(condition: str, tables: str = "a, b") -> QueryBlock:
    graph = read(f"SELECT 1 FROM {tables} WHERE {condition}").graph
    assert graph is not None
    return graph.blocks[0]


@pytest.mark.parametrize(
    ("condition", "edges", "predicates"),
    [
        ("a.x = b.x AND a.y = 1 OR a.x = b.x AND b.y = 2", 1, 1),
        ("(a.x = b.x AND a.y = 1) OR (b.y = 2 AND  a.x  =  b.x)", 1, 1),
        ("a.x = b.x AND a.y = 1 OR a.x = b.x", 1, 0),
        ("a.x = b.x AND a.z = b.z AND a.y = 1 OR a.x = b.x AND b.y = 2 AND a.z = b.z", 2, 1),
        ("a.x = b.x AND a.y = 1 OR a.x = b.y AND a.y = 1", 0, 2),
        ("a.x = b.x AND a.y = 1 OR a.y = 2", 0, 1),
        ("a.x = b.x OR b.x = a.x", 0, 1),
    ],
)
def test_what_all_arms_ask_for_is_asked_for(condition: str, edges: int, predicates: int) -> None:
    found = block(condition)
    assert (len(found.edges), len(found.predicates)) == (edges, predicates)


def test_a_sub_query_in_all_arms_stays_where_it_is() -> None:
    found = block("EXISTS (SELECT 1 FROM c WHERE c.x = a.x) AND a.y = 1 OR EXISTS (SELECT 1 FROM c WHERE c.x = a.x)")
    assert (found.edges, len(found.predicates)) == ((), 1)


def test_arms_filter_each_relation_that_all_of_them_name() -> None:
    found = block("a.x = b.x AND (a.y = 1 AND b.y = 2 OR a.y = 3 AND (a.z = 5 AND b.y = 7 OR a.z = 6))")
    (implied,) = equivalences(found).implied.values()
    (only,) = implied
    y, z = Column(0, "y"), Column(0, "z")
    assert only.relations == 1
    assert only.condition == Or((
        Compare("=", y, Const(1)),
        And((
            Compare("=", y, Const(3)),
            Or((Compare("=", z, Const(5)), Compare("=", z, Const(6)))),
        )),
    ))  # fmt: skip
    assert equivalences(found).filters(0) == (only,)
    assert equivalences(found).filters(1) == ()


def test_other_conditions_imply_nothing() -> None:
    assert restriction(Compare("=", Column(0, "x"), Column(1, "x")), 1) is None

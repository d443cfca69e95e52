"""What a block's equalities imply: clauses nowhere written, filters by constants, and nothing counted twice."""

from __future__ import annotations

import pytest

from planner.graph import JoinEdge, QueryBlock
from planner.sql import read
from planner.sql_equivalence import Equivalences, equivalences
from tests.planner.describe import column, condition


def prepared(text: str) -> tuple[QueryBlock, Equivalences]:
    graph = read(text).graph
    assert graph is not None
    return graph.blocks[0], equivalences(graph.blocks[0])


def shown(block: QueryBlock, edges: tuple[JoinEdge, ...]) -> list[str]:
    return [f"{column(edge.left, block)} {edge.operator} {column(edge.right, block)}" for edge in edges]


def filters(block: QueryBlock, found: Equivalences) -> list[str]:
    return [
        condition(predicate.condition, block)
        for relation in block.relations
        for predicate in found.filters(relation.index)
    ]


CHAIN = "SELECT 1 FROM a, b, c WHERE a.x = b.x AND b.x = c.x"


def test_a_chain_joins_its_ends() -> None:
    block, found = prepared(CHAIN)
    assert found.neighbours == (0b110, 0b101, 0b011)
    assert shown(block, found.edges(0b101)) == ["a.x = c.x"]
    assert shown(block, found.edges(0b111)) == ["a.x = b.x", "b.x = c.x"]
    assert shown(block, found.between(0b001, 0b100)) == ["a.x = c.x"]
    assert shown(block, found.between(0b100, 0b011)) == ["c.x = b.x"]
    assert filters(block, found) == []


def test_a_circle_is_counted_once() -> None:
    _, found = prepared(CHAIN + " AND a.x = c.x")
    assert len(found.edges(0b111)) == 2
    assert len(found.between(0b001, 0b110)) == 1


def test_a_constant_filters_every_member_and_leaves_no_clause() -> None:
    block, found = prepared(CHAIN + " AND a.x = 5")
    assert filters(block, found) == ["b.x = 5", "c.x = 5"]
    assert found.edges(0b111) == ()
    assert found.between(0b001, 0b110) == ()
    assert found.neighbours == (0b110, 0b101, 0b011)


@pytest.mark.parametrize("constant", ["$1", "$1::date", "now()", "'2020-01-01'::date + 1"])
def test_what_counts_as_a_constant(constant: str) -> None:
    _, found = prepared(f"SELECT 1 FROM a, b WHERE a.x = b.x AND a.x = {constant}")
    assert len(found.filters(1)) == 1
    assert found.edges(0b11) == ()


@pytest.mark.parametrize("other", ["null", "(SELECT 1)", "a.y", "f(a.y)"])
def test_what_does_not(other: str) -> None:
    _, found = prepared(f"SELECT 1 FROM a, b WHERE a.x = b.x AND a.x = {other}")
    assert found.filters(1) == ()
    assert len(found.edges(0b11)) == 1


def test_two_columns_of_one_relation() -> None:
    block, found = prepared("SELECT 1 FROM a, b WHERE a.x = b.x AND a.y = b.x")
    assert filters(block, found) == ["a.x = a.y"]
    assert len(found.edges(0b11)) == 1


def test_two_conditions_between_two_tables() -> None:
    block, found = prepared("SELECT 1 FROM a, b WHERE a.x = b.x AND a.y = b.y AND a.z < b.z")
    assert sorted(shown(block, found.edges(0b11))) == ["a.x = b.x", "a.y = b.y", "a.z < b.z"]
    assert sorted(shown(block, found.between(0b10, 0b01))) == ["b.x = a.x", "b.y = a.y", "b.z > a.z"]
    assert found.edges(0b01) == ()


def test_classes_that_grow_together() -> None:
    block, found = prepared("SELECT 1 FROM a, b, c, d WHERE a.x = b.x AND c.x = d.x AND b.x = d.x")
    assert [sorted(column(member, block) for member in group.members) for group in found.classes] == [
        ["a.x", "b.x", "c.x", "d.x"]
    ]
    assert len(found.edges(0b1111)) == 3
    assert shown(block, found.edges(0b0101)) == ["a.x = c.x"]


def test_a_constant_goes_through_outer_joins_to_the_nullable_side_only() -> None:
    block, found = prepared("SELECT 1 FROM a LEFT JOIN b ON a.x = b.x LEFT JOIN c ON b.x = c.x WHERE a.x = 5")
    assert filters(block, found) == ["b.x = 5", "c.x = 5"]
    assert found.neighbours == (0, 0, 0)
    block, found = prepared("SELECT 1 FROM a LEFT JOIN b ON a.x = b.x AND b.x = 5")
    assert filters(block, found) == []


def test_semi_joins_take_no_part() -> None:
    block, found = prepared("SELECT 1 FROM a, b WHERE a.x = b.y AND a.x IN (SELECT c.x FROM c)")
    assert shown(block, found.edges(0b11)) == ["a.x = b.y"]
    assert found.neighbours == (0b10, 0b01)

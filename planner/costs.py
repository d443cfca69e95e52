"""A rough time for a query from numbers of rows, good to an order of magnitude: is it worth thinking about at all?

A greedy left-deep join over whatever row counts the caller believes in. It starts at the table with fewest rows left
after its filters and adds, again and again, the connected table that keeps the result smallest. A table is read whole
or by an index, whichever is less; a join costs its output. The constants are per row in milliseconds, measured on warm
data of an ordinary machine: reading a row in a sequence 0.0001, finding one by an index 0.002, passing one up 0.0002.
They are no model of a plan and are used for no choice between plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Final

from planner.estimates import BlockEstimates
from planner.graph import Column, Compare, InList, JoinKind, QueryBlock
from planner.snapshot import TableInfo

START_MS: Final = 0.05
SCAN_MS: Final = 0.0001
LOOKUP_MS: Final = 0.002
OUTPUT_MS: Final = 0.0002
DEFAULT_ROWS: Final = 1000.0
"""Rows of a relation that is no table (a function, a sub-query)."""


def estimated_ms(
    block: QueryBlock, tables: tuple[TableInfo | None, ...], estimates: BlockEstimates, rows: Callable[[int], float]
) -> float:
    """Milliseconds for the joins of one block; ``rows`` gives the rows of a set of relations. O(n^2) calls of it."""
    count = len(block.relations)
    filtered = [estimates.filtered_rows(number) if tables[number] else DEFAULT_ROWS for number in range(count)]
    neighbours = _neighbours(block)
    outer = reduce(or_, (1 << edge.right.relation for edge in block.edges if edge.kind is JoinKind.LEFT), 0)
    total = START_MS
    left = set(range(count))
    while left:
        start = min(left, key=lambda number: filtered[number])
        left.discard(start)
        joined, size = 1 << start, filtered[start]
        total += _read_ms(block, start, tables[start], filtered[start])
        inner, widened = joined, 1.0
        while candidates := [number for number in left if neighbours.get(number, 0) & joined]:
            outputs = {
                number: _outer_rows(block, estimates, number, joined, size, filtered[number])
                if outer >> number & 1
                else rows(inner | 1 << number) * widened
                for number in candidates
            }
            best = min(candidates, key=lambda number: outputs[number])
            left.discard(best)
            output = outputs[best]
            by_index = LOOKUP_MS * (size + output) if _join_index(block, best, joined, tables[best]) else float("inf")
            total += min(_read_ms(block, best, tables[best], filtered[best]), by_index) + OUTPUT_MS * output
            if outer >> best & 1:
                widened *= output / max(size, 1.0)
            else:
                inner |= 1 << best
            joined, size = joined | 1 << best, output
    return total


def _outer_rows(
    block: QueryBlock, estimates: BlockEstimates, number: int, joined: int, size: float, filtered: float
) -> float:
    """The rows after a LEFT join, which loses none of those before it."""
    share = 1.0
    for edge in block.edges:
        if edge.kind is JoinKind.LEFT and edge.right.relation == number and joined >> edge.left.relation & 1:
            share *= estimates.edge_selectivity(edge)
    return max(size * filtered * share, size)


def _neighbours(block: QueryBlock) -> Mapping[int, int]:
    found: dict[int, int] = {}
    for edge in block.edges:
        if edge.block is None and edge.kind is not JoinKind.FULL:
            found[edge.left.relation] = found.get(edge.left.relation, 0) | 1 << edge.right.relation
            found[edge.right.relation] = found.get(edge.right.relation, 0) | 1 << edge.left.relation
    return found


def _read_ms(block: QueryBlock, number: int, table: TableInfo | None, filtered: float) -> float:
    if table is None:
        return SCAN_MS * DEFAULT_ROWS
    scan = SCAN_MS * max(table.rows, 1.0)
    leading = {index.columns[0] for index in table.indexes if index.columns}
    for predicate in block.filters(number):
        condition = predicate.condition
        operand = condition.left if isinstance(condition, Compare) else None
        if isinstance(condition, InList):
            operand = condition.operand
        if isinstance(operand, Column) and operand.name in leading:
            return min(scan, LOOKUP_MS * max(filtered, 1.0))
    return scan


def _join_index(block: QueryBlock, number: int, joined: int, table: TableInfo | None) -> bool:
    """Whether an index begins with a column that joins the table to the set ``joined``."""
    if table is None:
        return False
    leading = {index.columns[0] for index in table.indexes if index.columns}
    for edge in block.edges:
        if edge.block is not None or edge.operator != "=":
            continue
        for near, far in ((edge.left, edge.right), (edge.right, edge.left)):
            if near.relation == number and joined >> far.relation & 1 and near.name in leading:
                return True
    return False

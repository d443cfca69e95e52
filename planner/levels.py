"""Which blocks of a statement the server plans together: hints see all aliases of one such level, and no others.

A sub-query in FROM, a CTE that is used once and an EXISTS or IN that becomes a join are merged into the block around
them (pull_up_subqueries and pull_up_sublinks, prepjointree.c) unless they aggregate, limit, combine or lock.
"""

from __future__ import annotations

from collections import Counter

from planner.graph import JoinKind, QueryBlock, QueryGraph, RelationKind


def levels(graph: QueryGraph) -> list[int]:
    """For each block the number of its level, which is that of the outermost block in it. About a microsecond for each
    relation."""
    uses = Counter(
        relation.block for block in graph.blocks for relation in block.relations if relation.kind is RelationKind.CTE
    )
    around: dict[int, int] = {}
    for block in graph.blocks:
        for relation in block.relations:
            if relation.block is not None and uses.get(relation.block, 1) == 1:
                around[relation.block] = block.index
        for edge in block.edges:
            if edge.block is not None and edge.kind in (JoinKind.SEMI, JoinKind.ANTI):
                around[edge.block] = block.index
    found: list[int] = []
    for block in graph.blocks:
        index, seen = block.index, set[int]()
        while index in around and index not in seen and _merges(graph.blocks[index]):
            seen.add(index)
            index = around[index]
        found.append(index)
    return found


def _merges(block: QueryBlock) -> bool:
    """is_simple_subquery."""
    return not (
        block.aggregates
        or block.group_by
        or block.distinct
        or block.having
        or block.windows
        or block.limit is not None
        or block.offset is not None
        or block.arms
        or block.set_operation is not None
        or block.locking
        or block.recursive
    )

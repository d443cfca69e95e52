"""Which joins of a query to predict: connected sets of relations, as bit masks.

Rows can be stated absolutely only for inner joins, so a set stays within one island of its block, and only for tables,
whose statistics are known. Where all connected sets fit under the limit they are all taken; else a narrower beam
keeps the smallest of each size, grown only from sets kept before, so that a spine of sub-plans leads up to the whole
always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Protocol

from planner.graph import JoinEdge, QueryBlock, RelationKind
from planner.snapshot import TableInfo
from planner.sql_equivalence import Equivalences, equivalences

LIMIT: Final = 200
BEAM: Final = 128
"""How many sets are kept where there are more than the limit. The server multiplies on from the largest that it was
told, and a decision about 200 sets of ten tables takes a third longer."""
MOST_PAIRS: Final = 10_000.0
"""Where `join_pairs` stops counting; reached in about 2 ms."""
_SHAPES: Final = 1000
"""Joined shapes for which is kept what does not depend on values: statements come with ever-new literals."""


class Estimates(Protocol):
    """What the beam reads of `planner.estimates.BlockEstimates`."""

    @property
    def tables(self) -> Sequence[TableInfo | None]: ...
    @property
    def equivalences(self) -> Equivalences: ...
    @property
    def connected(self) -> dict[int, tuple[int, ...]]: ...
    def filtered_rows(self, relation: int, /) -> float: ...
    def edge_selectivity(self, edge: JoinEdge, /) -> float: ...


def connected(block: QueryBlock, estimates: Estimates | None = None, limit: int = LIMIT) -> list[int]:
    """Connected inner-join sets of two and more tables of one island, smaller ones first, at most ``limit``.

    Where there are more, `BEAM` of them. Without estimates the beam, which has no sizes to go by, keeps the sets with
    the most edges. 0.2 ms for a chain of ten tables, below 1 ms for ten tables joined on one key (1013 sets).
    """
    if estimates is not None and limit in estimates.connected:
        return list(estimates.connected[limit])
    found = estimates.equivalences if estimates is not None else equivalences(block)
    neighbours = _neighbours(block, estimates, found)
    if limit <= 0 or not any(neighbours):
        return []
    masks: Sequence[int] | None = _enumerated(neighbours, limit)
    if masks is None:
        weight = _edge_count(neighbours) if estimates is None else _rough_rows(found, neighbours, estimates)
        masks = _beam(neighbours, min(limit, BEAM), weight)
    if estimates is not None:
        estimates.connected[limit] = tuple(masks)
    return list(masks)


def join_pairs(block: QueryBlock, most: float = MOST_PAIRS) -> float:
    """About how many pairs of sub-plans the server weighs when it searches all join orders of the block.

    A connected set of k relations and e edges splits in two connected halves in k - 1 ways if it is a tree and in
    2**(k-1) - 1 if all are joined with all; between these the count here goes by the number of cycles. Outer and semi
    joins count as inner ones, which is too many. ``most`` stands for any number above it: infinity could not be stored
    with the advice, as JSON.
    """
    neighbours = list(equivalences(block).neighbours)
    for edge in block.edges:
        if edge.block is None:
            neighbours[edge.left.relation] |= 1 << edge.right.relation
            neighbours[edge.right.relation] |= 1 << edge.left.relation
    return _pairs(tuple(neighbours), most)


@lru_cache(_SHAPES)
def _pairs(neighbours: tuple[int, ...], most: float) -> float:
    pairs = 0.0
    level = {1 << index: (joined, 0) for index, joined in enumerate(neighbours)}
    for size in range(2, len(neighbours) + 1):
        following: dict[int, tuple[int, int]] = {}
        for mask, (around, edges) in level.items():
            rest = around & ~mask
            while rest:
                bit = rest & -rest
                rest ^= bit
                grown = mask | bit
                if grown not in following:
                    joined = neighbours[bit.bit_length() - 1]
                    total = edges + (joined & mask).bit_count()
                    following[grown] = (around | joined, total)
                    pairs += min(2.0 ** (size - 1) - 1, (size - 1) * (total - size + 2.0))
                if pairs >= most:
                    return most
        level = following
    return pairs


def _neighbours(block: QueryBlock, estimates: Estimates | None, found: Equivalences) -> tuple[int, ...]:
    """Per relation the set of relations that a sub-plan may take in next to it."""
    usable = 0
    islands: dict[int, int] = {}
    for relation in block.relations:
        if relation.kind is RelationKind.TABLE and not relation.lateral and not relation.sampled:
            table = None if estimates is None else estimates.tables[relation.index]
            if estimates is None or (table is not None and table.steerable):
                usable |= relation.bit
        islands[relation.island] = islands.get(relation.island, 0) | relation.bit
    return tuple(
        found.neighbours[relation.index] & usable & islands[relation.island] & ~relation.bit
        if usable & relation.bit
        else 0
        for relation in block.relations
    )


def _grown(level: dict[int, int], neighbours: Sequence[int], most: int) -> dict[int, int] | None:
    """The sets of one relation more, each with the union of its relations' neighbours; None above ``most``."""
    following: dict[int, int] = {}
    for mask, around in level.items():
        rest = around & ~mask
        while rest:
            bit = rest & -rest
            rest ^= bit
            following[mask | bit] = around | neighbours[bit.bit_length() - 1]
        if len(following) > most:
            return None
    return following


@lru_cache(_SHAPES)
def _enumerated(neighbours: tuple[int, ...], limit: int) -> tuple[int, ...] | None:
    """All connected sets, or None when there are more than ``limit``."""
    found: list[int] = []
    level: dict[int, int] | None = {1 << index: around for index, around in enumerate(neighbours) if around}
    while level:
        level = _grown(level, neighbours, limit - len(found))
        if level is None:
            return None
        found += sorted(level)
    return tuple(found)


def _beam(neighbours: Sequence[int], limit: int, weight: Callable[[int, int, float], float]) -> list[int]:
    """The lightest sets of each size. Small sizes, from which the
    others are built, get more of the limit; what one size leaves goes to those above it."""
    found: list[int] = []
    largest = _largest_component(neighbours)
    level = {1 << index: around for index, around in enumerate(neighbours) if around}
    weights = {mask: weight(0, mask.bit_length() - 1, 0.0) for mask in level}
    for size in range(2, largest + 1):
        following: dict[int, int] = {}
        heavy: dict[int, float] = {}
        for mask, around in level.items():
            rest = around & ~mask
            while rest:
                bit = rest & -rest
                rest ^= bit
                grown = mask | bit
                if grown not in following:
                    following[grown] = around | neighbours[bit.bit_length() - 1]
                    heavy[grown] = weight(mask, bit.bit_length() - 1, weights[mask])
        share = max(2 * (limit - len(found)) // (largest - size + 2), 1)
        kept = sorted(following, key=lambda mask: (heavy[mask], mask))[:share]
        found += kept
        level = {mask: following[mask] for mask in kept}
        weights = heavy
    # With more sizes than the limit allows sets, the spine's upper end counts most.
    return found if len(found) <= limit else found[-limit:]


def _largest_component(neighbours: Sequence[int]) -> int:
    largest = 0
    left = (1 << len(neighbours)) - 1
    while left:
        reached = left & -left
        border = reached
        while border:
            bit = border & -border
            new = neighbours[bit.bit_length() - 1] & ~reached
            reached |= new
            border = border & ~bit | new
        left &= ~reached
        largest = max(largest, reached.bit_count())
    return largest


def _edge_count(neighbours: Sequence[int]) -> Callable[[int, int, float], float]:
    """Fewer for more edges."""
    return lambda mask, relation, before: before - (neighbours[relation] & mask).bit_count()


def _rough_rows(
    found: Equivalences, neighbours: Sequence[int], estimates: Estimates
) -> Callable[[int, int, float], float]:
    """The logarithm of a set's rows, grown relation by relation by its most selective edge: enough to rank by."""
    count = len(neighbours)
    rows = [math.log(max(estimates.filtered_rows(index), 1.0)) if neighbours[index] else 0.0 for index in range(count)]
    selectivity: list[dict[int, float]] = [{} for _ in range(count)]
    for left in range(count):
        above = neighbours[left] >> (left + 1) << (left + 1)
        while above:
            bit = above & -above
            above ^= bit
            right = bit.bit_length() - 1
            total = 0.0
            for edge in found.between(1 << left, bit):
                total += math.log(min(max(estimates.edge_selectivity(edge), 1e-12), 1.0))
            selectivity[left][bit] = selectivity[right][1 << left] = total

    sharpest = [sorted((value, bit) for bit, value in one.items()) for one in selectivity]

    def weight(mask: int, relation: int, before: float) -> float:
        for value, bit in sharpest[relation]:
            if bit & mask:
                return before + rows[relation] + value
        return before + rows[relation]

    return weight

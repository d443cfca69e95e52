"""What joins mean: which outer joins are really inner ones, which relations inner joins alone connect, and which
conditions filter a scan.

Follows PostgreSQL's ``reduce_outer_joins`` (prepjointree.c) and ``distribute_qual_to_rels`` (initsplan.c), with a
narrower notion of a strict condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Final, TypeAlias

from planner.graph import (
    And,
    Call,
    Cast,
    Column,
    Compare,
    Condition,
    Expression,
    InList,
    JoinEdge,
    JoinKind,
    Like,
    Not,
    NullTest,
    Or,
    Predicate,
    Truth,
)
from planner.sql_expressions import COMMUTED

STRICT_CALLS: Final = frozenset({"+", "-", "*", "/", "%"})


@dataclass(slots=True)
class Conjunct:
    """One condition of WHERE or ON. ``edges``: it is a semi or anti join, wholly told by these edges."""

    condition: Condition
    relations: int
    outer: bool = False
    opaque: bool = False
    edges: tuple[JoinEdge, ...] = ()


@dataclass(slots=True)
class Join:
    """``kind`` is INNER, LEFT or FULL. The masks are the relations below each side."""

    kind: JoinKind
    left: JoinTree
    right: JoinTree
    left_mask: int
    right_mask: int
    conditions: list[Conjunct] = field(default_factory=list)


JoinTree: TypeAlias = int | Join
"""A relation's index, or a join."""


def mask_of(tree: JoinTree) -> int:
    return 1 << tree if isinstance(tree, int) else tree.left_mask | tree.right_mask


@dataclass(slots=True)
class Settled:
    """A block's joins and conditions in the graph's terms; ``islands`` has one number for each relation."""

    islands: list[int]
    edges: list[JoinEdge] = field(default_factory=list)
    predicates: list[Predicate] = field(default_factory=list)
    outer_predicates: list[Predicate] = field(default_factory=list)


def settle(items: Sequence[JoinTree], where: Sequence[Conjunct], relations: int) -> Settled:
    """``items`` are those of FROM."""
    settled = Settled([0] * relations)
    joins = [item for item in items if isinstance(item, Join)]
    if any(_has_outer(join) for join in joins):
        rejected = _rejected(where)
        for join in joins:
            _reduce(join, rejected)
        _Islands(settled).number(joins, where)
        return settled
    for join in joins:
        _place_inner(join, settled)
    for conjunct in where:
        _place(conjunct, settled)
    return settled


def _has_outer(tree: JoinTree) -> bool:
    while isinstance(tree, Join):
        if tree.kind is not JoinKind.INNER or _has_outer(tree.right):
            return True
        tree = tree.left
    return False


def _place_inner(tree: JoinTree, settled: Settled) -> None:
    if isinstance(tree, Join):
        _place_inner(tree.left, settled)
        _place_inner(tree.right, settled)
        for conjunct in tree.conditions:
            _place(conjunct, settled)


def edge_of(conjunct: Conjunct) -> JoinEdge | None:
    condition = conjunct.condition
    if type(condition) is Compare:
        left, right = condition.left, condition.right
        if type(left) is Column and type(right) is Column and left.relation != right.relation:
            return JoinEdge(left, right, condition.operator)
    return None


def _place(conjunct: Conjunct, settled: Settled) -> None:
    """A condition between inner-joined relations."""
    if conjunct.edges:
        settled.edges.extend(conjunct.edges)
        return
    edge = edge_of(conjunct)
    if edge is not None:
        settled.edges.append(edge)
    else:
        settled.predicates.append(_predicate(conjunct))


def _predicate(conjunct: Conjunct) -> Predicate:
    return Predicate(conjunct.condition, conjunct.relations, conjunct.outer, conjunct.opaque)


# ---------------------------------------------------------------------- outer joins that are none


def strict(condition: Condition, wanted: bool = True) -> int:
    """The relations of which a row of nulls cannot make the condition true (or, if not ``wanted``, false)."""
    match condition:
        case Compare(_, left, right):
            return _nulls(left) | _nulls(right)
        case InList(operand, values, _):
            return _nulls(operand) if values else 0
        case Like(operand, pattern):
            return _nulls(operand) | _nulls(pattern)
        case NullTest(operand, negated):
            return _nulls(operand) if negated is wanted else 0
        case Truth(operand):
            return _nulls(operand)
        case Not(child):
            return strict(child, not wanted)
        case And(children) | Or(children):
            masks = [strict(child, wanted) for child in children]
            if isinstance(condition, And) is wanted:
                return reduce(or_, masks, 0)
            return reduce(and_, masks, -1) if masks else 0


def _nulls(expression: Expression) -> int:
    """The relations whose nulls make the expression null."""
    if isinstance(expression, Column):
        return 1 << expression.relation
    if isinstance(expression, Cast):
        return _nulls(expression.operand)
    if isinstance(expression, Call) and expression.name in STRICT_CALLS:
        found = 0
        for argument in expression.args:
            found |= _nulls(argument)
        return found
    return 0


def _rejected(conjuncts: Sequence[Conjunct]) -> int:
    found = 0
    for conjunct in conjuncts:
        found |= strict(conjunct.condition)
        for edge in conjunct.edges:
            if edge.kind is JoinKind.SEMI:
                found |= 1 << edge.left.relation
    return found


def _reduce(tree: JoinTree, rejected: int) -> None:
    """``rejected``: the relations whose rows of nulls something above throws away."""
    if isinstance(tree, int):
        return
    if tree.kind is JoinKind.FULL:
        left, right = rejected & tree.left_mask, rejected & tree.right_mask
        if left and right:
            tree.kind = JoinKind.INNER
        elif left:
            tree.kind = JoinKind.LEFT
        elif right:
            tree.kind = JoinKind.LEFT
            tree.left, tree.right = tree.right, tree.left
            tree.left_mask, tree.right_mask = tree.right_mask, tree.left_mask
    elif tree.kind is JoinKind.LEFT and rejected & tree.right_mask:
        tree.kind = JoinKind.INNER
    own = _rejected(tree.conditions)
    if tree.kind is JoinKind.INNER:
        _reduce(tree.left, rejected | own)
        _reduce(tree.right, rejected | own)
    elif tree.kind is JoinKind.LEFT:
        _reduce(tree.left, rejected)
        _reduce(tree.right, own)
    else:
        _reduce(tree.left, 0)
        _reduce(tree.right, 0)


# ---------------------------------------------------------------------- islands


class _Islands:
    """Numbers the islands, then finds each condition's place."""

    def __init__(self, settled: Settled) -> None:
        self.settled = settled
        self.count = 1
        self.masks = [0]
        self.waiting: list[tuple[Conjunct, Join | None, int]] = []

    def number(self, items: Sequence[Join], where: Sequence[Conjunct]) -> None:
        below = 0
        for item in items:
            below |= mask_of(item)
            self.visit(item, 0)
        self.masks[0] |= ((1 << len(self.settled.islands)) - 1) & ~below
        self.waiting += [(conjunct, None, 0) for conjunct in where]
        for conjunct, join, island in self.waiting:
            if join is None:
                self.inside(conjunct, island)
            else:
                self.at_outer_join(conjunct, join, island)

    def visit(self, tree: JoinTree, island: int) -> None:
        if isinstance(tree, int):
            self.settled.islands[tree] = island
            self.masks[island] |= 1 << tree
            return
        left = self.another() if tree.kind is JoinKind.FULL else island
        right = island if tree.kind is JoinKind.INNER else self.another()
        self.visit(tree.left, left)
        self.visit(tree.right, right)
        join = None if tree.kind is JoinKind.INNER else tree
        # What a LEFT join says of its right side alone filters that side.
        self.waiting += [(conjunct, join, island if join is None else right) for conjunct in tree.conditions]

    def another(self) -> int:
        self.masks.append(0)
        self.count += 1
        return self.count - 1

    def inside(self, conjunct: Conjunct, island: int) -> None:
        if conjunct.edges or conjunct.relations & ~self.masks[island] == 0:
            _place(conjunct, self.settled)
        else:
            self.settled.outer_predicates.append(_predicate(conjunct))

    def at_outer_join(self, conjunct: Conjunct, join: Join, island: int) -> None:
        if join.kind is JoinKind.LEFT and conjunct.relations and conjunct.relations & ~join.right_mask == 0:
            self.inside(conjunct, island)
            return
        edge = edge_of(conjunct)
        if edge is not None:
            one, other = 1 << edge.left.relation, 1 << edge.right.relation
            if one & join.left_mask and other & join.right_mask:
                self.settled.edges.append(JoinEdge(edge.left, edge.right, edge.operator, join.kind))
                return
            if one & join.right_mask and other & join.left_mask:
                turned = JoinEdge(edge.right, edge.left, COMMUTED[edge.operator], join.kind)
                self.settled.edges.append(turned)
                return
        self.settled.outer_predicates.append(_predicate(conjunct))

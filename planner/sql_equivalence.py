"""Which columns a block's conditions make equal, and what follows from it: PostgreSQL's equivalence classes.

``a.x = b.x AND b.x = c.x`` lets the server join a with c directly, by a clause that is nowhere written; with
``a.x = 5`` besides it filters all three tables by 5 and joins them by no clause at all. An estimate that multiplies the
edges as they are written counts such conditions twice. `equivalences` works out what the server uses instead
(equivclass.c); it is pure and costs about 15 us for a five-table join, so compute it once for a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.graph import (
    Call,
    Cast,
    Column,
    Compare,
    Const,
    Expression,
    JoinEdge,
    JoinKind,
    Or,
    Param,
    Predicate,
    QueryBlock,
)
from planner.sql_expressions import COMMUTED
from planner.sql_or import restriction


@dataclass(frozen=True, slots=True)
class EquivalenceClass:
    """``members`` (at least two) are equal in every row of the join, and equal to ``constant`` if there is one.
    ``written`` are the edges of the query that say so."""

    members: tuple[Column, ...]
    constant: Expression | None = None
    written: tuple[JoinEdge, ...] = ()

    @property
    def relations(self) -> int:
        mask = 0
        for member in self.members:
            mask |= 1 << member.relation
        return mask


@dataclass(frozen=True, slots=True)
class Equivalences:
    """Everything about inner joins only. ``others`` are inner edges that make nothing equal (``<`` and the like).
    ``neighbours`` has for each relation the set of those that an edge, written or implied, joins it with. ``implied``
    has the filters that follow from a join condition with an OR; they are among `filters` too."""

    classes: tuple[EquivalenceClass, ...]
    others: tuple[JoinEdge, ...]
    neighbours: tuple[int, ...]
    derived: Mapping[int, tuple[Predicate, ...]] = field(default_factory=dict)
    implied: Mapping[Predicate, tuple[Predicate, ...]] = field(default_factory=dict)

    def filters(self, relation: int) -> tuple[Predicate, ...]:
        """Filters on that relation that follow from others, and are not written: ``column = constant``,
        ``column = column`` of one relation, and what the arms of an OR say of it."""
        return self.derived.get(relation, ())

    def edges(self, mask: int) -> tuple[JoinEdge, ...]:
        """The join clauses of a set of relations, each condition counted once: as many of a class as make its members
        there equal, none of a class with a constant, and the other edges."""
        found = [edge for edge in self.others if edge.relations & ~mask == 0]
        for group in self.classes:
            if group.constant is None:
                _span(group, mask, found)
        return tuple(found)

    def between(self, left: int, right: int) -> tuple[JoinEdge, ...]:
        """The clauses that join two disjoint sets: one of each class (a written one if there is one), and the other
        edges from one set to the other. Their left columns are those of ``left``."""
        found = []
        for group in self.classes:
            if group.constant is None:
                edge = _between(group, left, right)
                if edge is not None:
                    found.append(edge)
        both = left | right
        for edge in self.others:
            if edge.relations & ~both == 0 and edge.relations & left and edge.relations & right:
                found.append(edge if 1 << edge.left.relation & left else _turned(edge))
        return tuple(found)


def _span(group: EquivalenceClass, mask: int, found: list[JoinEdge]) -> None:
    """A spanning tree of the members within ``mask``: written edges first, then from the first member."""
    within = group.relations & mask
    if within & (within - 1) == 0:
        return
    part = {relation: 1 << relation for relation in range(within.bit_length()) if within >> relation & 1}
    for edge in group.written:
        one, other = part.get(edge.left.relation), part.get(edge.right.relation)
        if one is not None and other is not None and one != other:
            found.append(edge)
            _unite(part, one | other)
    members = {member.relation: member for member in reversed(group.members) if member.relation in part}
    first, *rest = sorted(members.values(), key=group.members.index)
    for member in rest:
        one, other = part[first.relation], part[member.relation]
        if one != other:
            found.append(JoinEdge(first, member))
            _unite(part, one | other)


def _unite(part: dict[int, int], mask: int) -> None:
    for relation in part:
        if mask >> relation & 1:
            part[relation] = mask


def _between(group: EquivalenceClass, left: int, right: int) -> JoinEdge | None:
    for edge in group.written:
        one, other = 1 << edge.left.relation, 1 << edge.right.relation
        if one & left and other & right:
            return edge
        if one & right and other & left:
            return _turned(edge)
    from_left = next((member for member in group.members if left >> member.relation & 1), None)
    from_right = next((member for member in group.members if right >> member.relation & 1), None)
    return None if from_left is None or from_right is None else JoinEdge(from_left, from_right)


def _turned(edge: JoinEdge) -> JoinEdge:
    return JoinEdge(edge.right, edge.left, COMMUTED[edge.operator])


# ---------------------------------------------------------------------- making them


def equivalences(block: QueryBlock) -> Equivalences:
    """What the block's inner equalities imply. Filters that read enclosing blocks take no part."""
    others: list[JoinEdge] = []
    outer: list[JoinEdge] = []
    written: list[JoinEdge] = []
    group_of: dict[Column, list[Column]] = {}
    for edge in block.edges:
        if edge.block is not None:
            continue
        if edge.kind is JoinKind.LEFT and edge.operator == "=":
            outer.append(edge)
        elif edge.kind is JoinKind.INNER and edge.operator == "=":
            written.append(edge)
            _merge(group_of, edge.left, edge.right)
        elif edge.kind is JoinKind.INNER:
            others.append(edge)
    constants = _constants(block)
    derived: dict[int, list[Predicate]] = {}
    known: dict[Column, Expression] = dict(constants)
    classes = []
    for members in {id(group): group for group in group_of.values()}.values():
        constant = next((constants[member] for member in members if member in constants), None)
        edges = tuple([edge for edge in written if group_of[edge.left] is members])
        classes.append(EquivalenceClass(tuple(members), constant, edges))
        if constant is None:
            _same_relation(members, derived)
        else:
            for member in members:
                known[member] = constant
                if member not in constants:
                    _derive(derived, Compare("=", member, constant))
    _through_outer_joins(outer, known, derived)
    implied = _implied(block)
    for predicates in implied.values():
        for predicate in predicates:
            derived.setdefault(predicate.relations.bit_length() - 1, []).append(predicate)
    return Equivalences(
        tuple(classes),
        tuple(others),
        tuple(_neighbours(len(block.relations), classes, others)),
        {relation: tuple(predicates) for relation, predicates in derived.items()},
        implied,
    )


def _merge(group_of: dict[Column, list[Column]], left: Column, right: Column) -> None:
    one, other = group_of.get(left), group_of.get(right)
    if one is None and other is None:
        group_of[left] = group_of[right] = [left, right]
    elif other is None:
        assert one is not None
        one.append(right)
        group_of[right] = one
    elif one is None:
        other.append(left)
        group_of[left] = other
    elif one is not other:
        one += other
        for member in other:
            group_of[member] = one


def _constants(block: QueryBlock) -> dict[Column, Expression]:
    found: dict[Column, Expression] = {}
    for predicate in block.predicates:
        condition = predicate.condition
        if (
            type(condition) is Compare
            and condition.operator == "="
            and type(condition.left) is Column
            and not predicate.outer
            and _is_constant(condition.right)
        ):
            found.setdefault(condition.left, condition.right)
    return found


def _is_constant(expression: Expression) -> bool:
    if isinstance(expression, Const):
        return expression.value is not None
    if isinstance(expression, Cast):
        return _is_constant(expression.operand)
    if isinstance(expression, Call):
        return all(_is_constant(argument) for argument in expression.args)
    return isinstance(expression, Param)


def _implied(block: QueryBlock) -> dict[Predicate, tuple[Predicate, ...]]:
    """The filters that follow from each join condition that is an OR."""
    found: dict[Predicate, tuple[Predicate, ...]] = {}
    for predicate in block.predicates:
        if isinstance(predicate.condition, Or) and predicate.relations.bit_count() > 1:
            if predicate.opaque or predicate.outer:
                continue
            filters = [
                Predicate(condition, relation.bit)
                for relation in block.relations
                if predicate.relations & relation.bit
                and (condition := restriction(predicate.condition, relation.bit)) is not None
            ]
            if filters:
                found[predicate] = tuple(filters)
    return found


def _derive(derived: dict[int, list[Predicate]], condition: Compare) -> None:
    assert isinstance(condition.left, Column)
    relation = condition.left.relation
    derived.setdefault(relation, []).append(Predicate(condition, 1 << relation))


def _same_relation(members: list[Column], derived: dict[int, list[Predicate]]) -> None:
    """Two members of one relation are equal by themselves, which filters it."""
    last: dict[int, Column] = {}
    for member in members:
        before = last.get(member.relation)
        if before is not None:
            _derive(derived, Compare("=", before, member))
        last[member.relation] = member


def _through_outer_joins(
    edges: list[JoinEdge], known: dict[Column, Expression], derived: dict[int, list[Predicate]]
) -> None:
    """A constant on the preserved side filters the nullable side too: no other row of it can match."""
    waiting = edges
    while waiting:
        rest = []
        for edge in waiting:
            constant = known.get(edge.left)
            if constant is None:
                rest.append(edge)
            elif edge.right not in known:
                known[edge.right] = constant
                _derive(derived, Compare("=", edge.right, constant))
        if len(rest) == len(waiting):
            return
        waiting = rest


def _neighbours(relations: int, classes: list[EquivalenceClass], others: list[JoinEdge]) -> list[int]:
    found = [0] * relations
    for mask in (*(group.relations for group in classes), *(edge.relations for edge in others)):
        for relation in range(relations):
            if mask >> relation & 1:
                found[relation] |= mask & ~(1 << relation)
    return found

"""What PostgreSQL itself would estimate for the tables and inner joins of one query block, without asking it.

`BlockEstimates` follows set_baserel_size_estimates and set_joinrel_size_estimates (costsize.c), equivclass.c and
joinrels.c: which clauses apply when a relation joins a set, and in which order a set's size comes about, matter as much
as each selectivity. A set is sized once, by the first pair of sub-sets that the server's search meets: relations in
their order, each joined to what came before as soon as a clause connects it. Here that order is found directly, so a
set costs one multiplication beyond its first part.

Everything is computed when first asked for and kept; ten tables and 200 sets take about 1 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from planner.graph import (
    NO_PARAMETERS,
    Column,
    Compare,
    Condition,
    Expression,
    JoinEdge,
    JoinKind,
    Like,
    Or,
    Parameters,
    Predicate,
    relations_of,
)
from planner.resolve import ResolvedBlock
from planner.sampling import matching_rows
from planner.selectivity import (
    DEFAULT_INEQUALITY,
    DEFAULT_MATCH,
    ColumnModel,
    clamp_rows,
    column_model,
    expression_model,
    join_equal,
)
from planner.selectivity_clauses import Judged, Judgement, TableFilters, conjuncts, relabels
from planner.selectivity_values import Family, family
from planner.snapshot import Snapshot, TableInfo
from planner.sql_equivalence import Equivalences, equivalences
from planner.vectors import Bools

__all__ = ["BlockEstimates", "Judgement"]

UNKNOWN_ROWS: Final = 1000.0
"""Of a relation that is no table: what the server takes for a function that it knows nothing of."""
_MOST_KEPT: Final = 50_000
_Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Key:
    """A foreign key between two relations of the block, and the places of the classes that its columns are in."""

    referencing: int
    referenced: int
    classes: frozenset[int]
    constants: tuple[Column, ...]  # referenced columns that are equal to a constant
    rows: float  # of the referenced table


class BlockEstimates:
    """Native estimates of one block. ``params`` are the values of ``$n`` as far as known. Not for several threads."""

    def __init__(self, resolved: ResolvedBlock, snapshot: Snapshot, params: Parameters | None = None) -> None:
        self.resolved = resolved
        self.block = resolved.block
        self.tables: Sequence[TableInfo | None] = resolved.tables
        self.snapshot = snapshot
        self.params: Parameters = params or NO_PARAMETERS
        self._judged: dict[int, Judged] = {}
        self._filtered: dict[int, float] = {}
        self._matches: dict[int, Bools | None] = {}
        self._rows: dict[int, float] = {}
        self._conditions: dict[int, list[Condition]] = {}
        self._pairs: dict[tuple[Column, Column], float] = {}
        self._others: dict[int, float] = {}
        # Kept here by `planner.subplans.connected`, which is asked for the same block several times.
        self.connected: dict[int, tuple[int, ...]] = {}

    @cached_property
    def equivalences(self) -> Equivalences:
        """The block's classes of columns that inner joins make equal."""
        return equivalences(self.block)

    # ------------------------------------------------------------------ single relations

    def table_rows(self, relation: int) -> float:
        """All rows of the relation's table; a guess of 1000 for what is no table."""
        table = self.tables[relation]
        return UNKNOWN_ROWS if table is None else table.rows

    def conditions(self, relation: int) -> list[Condition]:
        """The conjuncts that filter the relation: its own predicates and those that follow from equal columns."""
        found = self._conditions.get(relation)
        if found is None:
            found = [part for predicate in self.block.filters(relation) for part in conjuncts(predicate.condition)]
            found += [predicate.condition for predicate in self.equivalences.filters(relation)]
            self._conditions[relation] = found
        return found

    def filter_selectivity(self, relation: int) -> float:
        """Which share of the table's rows the server expects the filters to keep, from 0 to 1."""
        return self._judge(relation)[0]

    def judgement(self, relation: int) -> Judgement:
        """How the filters were judged; `Judgement.SAMPLE` where the server guesses and the sample can tell."""
        judgement = self._judge(relation)[1]
        if judgement > Judgement.SAMPLE and self.sample_selectivity(relation) is not None:
            return Judgement.SAMPLE
        return judgement

    def _judge(self, relation: int) -> Judged:
        found = self._judged.get(relation)
        if found is None:
            table = self.tables[relation]
            conditions = self.conditions(relation)
            if table is None:
                found = (1.0, Judgement.UNKNOWN)
            elif not conditions:
                found = (1.0, Judgement.STATISTICS)
            else:
                found = TableFilters(self.snapshot, table, self.params).all_of(conditions)
                if any(predicate.opaque for predicate in self.block.filters(relation)):
                    found = (found[0], Judgement.UNKNOWN)
            self._judged[relation] = found
        return found

    def filtered_rows(self, relation: int) -> float:
        """The server's estimate of the rows that a scan of the relation gives (set_baserel_size_estimates)."""
        found = self._filtered.get(relation)
        if found is None:
            found = clamp_rows(self.table_rows(relation) * self.filter_selectivity(relation))
            self._filtered[relation] = found
        return found

    def sample_matches(self, relation: int) -> Bools | None:
        """Which rows of the table's sample pass all filters of the relation, derived ones included; None without a
        sample or when a filter cannot be evaluated. All of them without filters."""
        if relation not in self._matches:
            table = self.tables[relation]
            found: Bools | None = None
            if table is not None and not any(predicate.outer for predicate in self.block.filters(relation)):
                found = matching_rows(self.conditions(relation), self.snapshot, table, self.params)
            self._matches[relation] = found
        return self._matches[relation]

    def sample_selectivity(self, relation: int) -> float | None:
        """Which share of the sampled rows satisfies all filters together, above 0 (no row counts as half of one, so
        that the share has a logarithm); None as for `sample_matches`, but always 1.0 for a table without filters."""
        if self.tables[relation] is not None and not self.conditions(relation):
            return 1.0
        matches = self.sample_matches(relation)
        return None if matches is None else max(float(np.count_nonzero(matches)), 0.5) / len(matches)

    # ------------------------------------------------------------------ joins

    def edge_selectivity(self, edge: JoinEdge) -> float:
        """Which share of all pairs of rows an inner join on that edge keeps. 1000 rows are assumed for unknown
        relations."""
        return self._pair(edge.left, edge.right, edge.operator)

    def _pair(self, left: Column, right: Column, operator: str = "=") -> float:
        if operator in {"=", "<>"}:
            found = self._pairs.get((left, right))
            if found is None:
                found = self._equal(left, right)
                self._pairs[left, right] = self._pairs[right, left] = found
            return 1.0 - found if operator == "<>" else found
        # scalarltjoinsel and the like do not look at the columns.
        return DEFAULT_INEQUALITY

    def _equal(self, left: Column, right: Column) -> float:
        one, two = self._side(left, right), self._side(right, left)
        if one is None or two is None:
            return join_equal(self._alone(left, one), self._alone(right, two))
        place = ("join", one, two)
        found = self.snapshot.derived.get(place)
        if not isinstance(found, float):
            found = join_equal(self._alone(left, one), self._alone(right, two))
            if len(self.snapshot.derived) < _MOST_KEPT:
                self.snapshot.derived[place] = found
        return found

    def _alone(self, column: Column, place: _Place | None) -> ColumnModel:
        table = self.tables[column.relation]
        if table is None or place is None:
            return expression_model(self.table_rows(column.relation))
        return column_model(self.snapshot, table, column.name)

    def _side(self, column: Column, other: Column) -> _Place | None:
        """Where the statistics of one side of an equality are; None where there are none, or where the server converts
        that side first."""
        table = self.tables[column.relation]
        info = table.columns.get(column.name) if table is not None else None
        if table is None or info is None:
            return None
        facing = self._type(other)
        if facing is not None and _converted(info.type, facing):
            return None
        return table.schema, table.name, column.name

    def _type(self, column: Column) -> str | None:
        table = self.tables[column.relation]
        info = table.columns.get(column.name) if table is not None else None
        return info.type if info is not None else None

    def rows(self, mask: int) -> float:
        """The server's estimate of the rows of the inner join of that set of relations, all filters applied; the
        filtered rows of a single one. A whole number from 1; for an empty set 1."""
        found = self._rows.get(mask)
        if found is not None:
            return found
        order = self._order(mask)
        prefix, rows = 0, 1.0
        for relation in order:
            bit = 1 << relation
            whole = prefix | bit
            known = self._rows.get(whole)
            if known is None:
                alone = self.filtered_rows(relation)
                known = clamp_rows(rows * alone * self._step(prefix, relation)) if prefix else alone
                self._rows[whole] = known
            prefix, rows = whole, known
        return rows

    def _order(self, mask: int) -> list[int]:
        """The order in which join_search_one_level comes to the set first: always the first relation that some clause
        connects to those before it."""
        neighbours = self._neighbours
        order: list[int] = []
        left, reach = mask & self.block.everything, 0
        while left:
            candidates = left & reach or left
            bit = candidates & -candidates
            relation = bit.bit_length() - 1
            order.append(relation)
            left ^= bit
            reach |= neighbours[relation]
        return order

    @cached_property
    def _neighbours(self) -> list[int]:
        neighbours = list(self.equivalences.neighbours)
        for predicate in self._join_predicates:
            for relation in _members(predicate.relations):
                neighbours[relation] |= predicate.relations & ~(1 << relation)
        return neighbours

    @cached_property
    def _join_predicates(self) -> list[Predicate]:
        return [predicate for predicate in self.block.predicates if predicate.relations & (predicate.relations - 1)]

    @cached_property
    def _by_relation(self) -> list[list[tuple[int, Column, tuple[tuple[int, Column], ...]]]]:
        """For each relation its classes without a constant: the place of the class, the relation's first member, and
        the members of other relations, each with the bit of its relation."""
        found: list[list[tuple[int, Column, tuple[tuple[int, Column], ...]]]] = [[] for _ in self.block.relations]
        for place, one in enumerate(self.equivalences.classes):
            if one.constant is None:
                for inner in {member.relation: member for member in reversed(one.members)}.values():
                    others = ((1 << it.relation, it) for it in one.members if it.relation != inner.relation)
                    found[inner.relation].append((place, inner, tuple(others)))
        return found

    @cached_property
    def _other_edges(self) -> list[list[JoinEdge]]:
        found: list[list[JoinEdge]] = [[] for _ in self.block.relations]
        for edge in self.block.edges:
            if edge.kind is JoinKind.INNER and edge.operator != "=":
                found[edge.left.relation].append(edge)
                found[edge.right.relation].append(edge)
        return found

    def _step(self, prefix: int, relation: int) -> float:
        """The selectivity of all clauses that apply when the relation joins that set (calc_joinrel_size_estimate):
        one clause per equivalence class, foreign keys in place of the clauses that they account for."""
        share, gone = self._foreign_share(prefix, relation)
        for place, inner, others in self._by_relation[relation]:
            if place in gone:
                continue
            for bit, outer in others:
                if prefix & bit:
                    share *= self._pair(outer, inner)
                    break
        for edge in self._other_edges[relation]:
            other = edge.right.relation if edge.left.relation == relation else edge.left.relation
            if prefix >> other & 1:
                share *= self._pair(edge.left, edge.right, edge.operator)
        whole = prefix | 1 << relation
        for index, predicate in enumerate(self._join_predicates):
            if predicate.relations >> relation & 1 and predicate.relations & whole == predicate.relations:
                found = self._others.get(index)
                if found is None:
                    found = self._others[index] = self._beyond_filters(predicate)
                share *= found
        return share

    def _beyond_filters(self, predicate: Predicate) -> float:
        """What a join condition keeps of the rows that the filters left which follow from it
        (consider_new_or_clause)."""
        share = self._joined(predicate.condition)
        for implied in self.equivalences.implied.get(predicate, ()):
            table = self.tables[implied.relations.bit_length() - 1]
            if table is not None:
                kept = TableFilters(self.snapshot, table, self.params).one(implied.condition)[0]
                share = min(share / kept, 1.0) if kept > 0.0 else share
        return share

    def _joined(self, condition: Condition) -> float:
        """The selectivity of a join condition that is no edge between plain columns (join_selectivity)."""
        share = 1.0
        for part in conjuncts(condition):
            share *= self._joined_part(part)
        return share

    def _joined_part(self, condition: Condition) -> float:
        relations = relations_of(condition)
        if relations.bit_count() == 1:
            table = self.tables[relations.bit_length() - 1]
            return TableFilters(self.snapshot, table, self.params).one(condition)[0] if table is not None else 0.5
        match condition:
            case Compare(operator, Column() as left, Column() as right):
                return self._pair(left, right, operator)
            case Compare(operator, left, right) if operator in {"=", "<>"}:
                share = join_equal(self._expression(left), self._expression(right))
                return 1.0 - share if operator == "<>" else share
            case Compare():
                return DEFAULT_INEQUALITY
            case Or(children):
                share = 0.0
                for child in children:
                    part = self._joined(child)
                    share = share + part - share * part
                return share
            case Like(_, _, negated):
                return 1.0 - DEFAULT_MATCH if negated else DEFAULT_MATCH
        return 0.5

    def _expression(self, expression: Expression) -> ColumnModel:
        if isinstance(expression, Column):
            table = self.tables[expression.relation]
            if table is not None:
                return column_model(self.snapshot, table, expression.name)
        read = relations_of(expression)
        return expression_model(self.table_rows(read.bit_length() - 1) if read.bit_count() == 1 else 0.0)

    # ------------------------------------------------------------------ foreign keys

    @cached_property
    def _keys_of(self) -> list[list[tuple[int, _Key]]]:
        """For each relation the keys that it has a side of that counts, with the relation on the other side."""
        found: list[list[tuple[int, _Key]]] = [[] for _ in self.tables]
        for key in self._foreign_keys:
            if key.classes:
                found[key.referencing].append((key.referenced, key))
                found[key.referenced].append((key.referencing, key))
        return found

    @cached_property
    def _foreign_keys(self) -> list[_Key]:
        """match_foreign_keys_to_quals (initsplan.c): the keys whose columns are all joined in this block."""
        classes: Mapping[Column, tuple[int, bool]] = {
            member: (place, one.constant is not None)
            for place, one in enumerate(self.equivalences.classes)
            for member in one.members
        }
        keys: list[_Key] = []
        for referencing, table in enumerate(self.tables):
            for key in table.foreign_keys if table is not None else ():
                for referenced, target in enumerate(self.tables):
                    if target is None or referenced == referencing or (target.schema, target.name) != key.target:
                        continue
                    places: set[int] = set()
                    constants: list[Column] = []
                    for name, target_name in zip(key.columns, key.target_columns, strict=True):
                        own = classes.get(Column(referencing, name))
                        other = classes.get(Column(referenced, target_name))
                        if own is None or own != other:
                            break
                        if own[1]:
                            constants.append(Column(referenced, target_name))
                        else:
                            places.add(own[0])
                    else:
                        keys.append(
                            _Key(referencing, referenced, frozenset(places), tuple(constants), max(target.rows, 1.0))
                        )
        return keys

    def _foreign_share(self, prefix: int, relation: int) -> tuple[float, set[int]]:
        """get_foreign_key_join_selectivity (costsize.c): each referencing row meets exactly one referenced row. The
        selectivity, and the classes that need no clause of their own any more."""
        share = 1.0
        gone: set[int] = set()
        for other, key in self._keys_of[relation]:
            if not prefix >> other & 1 or key.classes & gone:
                continue
            gone |= key.classes
            share /= key.rows
            for column in key.constants:
                share /= self._constant_share(column) or 1.0
        return share, gone

    def _constant_share(self, column: Column) -> float:
        table = self.tables[column.relation]
        constant = next(one.constant for one in self.equivalences.classes if column in one.members)
        if table is None or constant is None:
            return 1.0
        return TableFilters(self.snapshot, table, self.params).one(Compare("=", column, constant))[0]


def _members(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


_NUMBERS: Final = (Family.INTEGER, Family.NUMERIC, Family.FLOAT)


def _converted(source: str, facing: str) -> bool:
    """Whether ``source = facing`` converts the source side to the other type, so that its statistics are not used."""
    one, two = family(source), family(facing)
    if one in _NUMBERS and two in _NUMBERS:
        return _NUMBERS.index(one) < _NUMBERS.index(two)
    if one is Family.TEXT and two is Family.TEXT:
        return source == "character" and facing != "character" and not relabels(source, facing)
    return False

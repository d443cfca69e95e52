"""Statements made up from a database's own schema, for databases that have few of their own to learn from.

As in the literature on learned cardinalities (Kipf et al. 2019): a random walk over the ways in which tables can be
joined, then filters on some columns of the tables it came to. What can be joined is told by foreign keys and by the
joins that the workload makes, and what those equate is equated among all: with ``a.x = c.id`` and ``b.x = c.id`` also
a and b are joined. Only where there is neither, names are looked at. Every other statement joins as one of the
workload does, the rare ways as often as the frequent ones, so that no template is known by a handful of values alone.
The values in a table's filters all come from one row of its sample, so that they are as frequent as in the data, and do
not contradict each other.

The same seed and the same snapshot give the same statements. No I/O.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Final

from planner.graph import Column, JoinKind
from planner.resolve import ResolvedBlock
from planner.selectivity_values import Family, family
from planner.snapshot import ColumnInfo, ForeignKey, Snapshot, TableInfo
from training.factoring import quoted

LARGEST: Final = 5
"""The most tables that a random walk joins."""
LARGEST_SEEN: Final = 12
"""The most tables of a workload's join that is taken as it is."""
FILTERED: Final = 0.65
"""The chance that a table is filtered at all."""
AS_SEEN: Final = 0.5
"""The chance that a statement joins as one of the workload does, where it has any."""
FEW_VALUES: Final = 50
"""A column of at most so many values is compared for equality."""
SEEN_WEIGHT: Final = 5
"""How much likelier a column is filtered that the workload filters."""
MOST_JOINTS: Final = 2000
_WORD: Final = re.compile(r"[^\W\d_]{3,12}")
_Place = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Joint:
    """One way to join two tables, given as (schema, table): ``columns`` are equal one for one."""

    left: _Place
    right: _Place
    columns: tuple[tuple[str, str], ...]

    def turned(self) -> Joint:
        return Joint(self.right, self.left, tuple((right, left) for left, right in self.columns))


@dataclass(frozen=True, slots=True)
class Shape:
    """The join of one statement: its ``tables``, one of which may occur several times, and which of their columns are
    equal, as (place among the tables, column) twice."""

    tables: tuple[_Place, ...]
    equal: tuple[tuple[int, str, int, str], ...]


@dataclass(slots=True)
class Seen:
    """What a workload does with its tables: ``edges`` are pairs of (schema, table, column), ``filtered`` columns,
    ``shapes`` its different joins in the order in which they came."""

    edges: set[tuple[tuple[str, str, str], tuple[str, str, str]]] = field(default_factory=set)
    filtered: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    shapes: dict[Shape, None] = field(default_factory=dict)


def seen(blocks: Iterable[ResolvedBlock]) -> Seen:
    """The joins and the filtered columns of these blocks."""
    found = Seen()
    for resolved in blocks:
        for edge in resolved.block.edges:
            if edge.kind is JoinKind.INNER and edge.operator == "=":
                left, right = _column(resolved, edge.left), _column(resolved, edge.right)
                if left is not None and right is not None:
                    found.edges.add((min(left, right), max(left, right)))
        for predicate in resolved.block.predicates:
            if predicate.relations.bit_count() == 1:
                for column in _columns(predicate.condition):
                    if (name := _column(resolved, column)) is not None:
                        found.filtered[name] += 1
        if (shape := _shape(resolved)) is not None:
            found.shapes[shape] = None
    return found


def _shape(resolved: ResolvedBlock) -> Shape | None:
    """The inner equality joins of a block, None where they do not connect all of its relations."""
    relations, tables = resolved.block.relations, [table for table in resolved.tables if table is not None]
    if not 2 <= len(tables) <= LARGEST_SEEN or len(tables) < len(relations) or not all(map(_usable, tables)):
        return None
    equal = []
    group = list(range(len(tables)))
    for edge in resolved.block.edges:
        left, right = edge.left, edge.right
        if edge.kind is not JoinKind.INNER or edge.operator != "=" or edge.block is not None:
            continue
        if left.name not in tables[left.relation].columns or right.name not in tables[right.relation].columns:
            continue
        equal.append((left.relation, left.name, right.relation, right.name))
        old, new = group[right.relation], group[left.relation]
        group = [new if one == old else one for one in group]
    if len(set(group)) > 1:
        return None
    return Shape(tuple((table.schema, table.name) for table in tables), tuple(sorted(set(equal))))


def _column(resolved: ResolvedBlock, column: Column) -> tuple[str, str, str] | None:
    table = resolved.tables[column.relation] if column.relation < len(resolved.tables) else None
    return None if table is None or column.name not in table.columns else (table.schema, table.name, column.name)


def _columns(node: object) -> Iterable[Column]:
    if isinstance(node, Column):
        yield node
        return
    for name in getattr(node, "__dataclass_fields__", ()):
        value = getattr(node, name)
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "__dataclass_fields__"):
                yield from _columns(part)


def joints(snapshot: Snapshot, workload: Seen) -> list[Joint]:
    """All ways to join two different tables of the database that somebody vouches for, sorted."""
    tables = {place: table for place, table in snapshot.tables.items() if _usable(table)}
    found: set[Joint] = set()
    equal: list[set[tuple[str, str, str]]] = []
    for place, table in tables.items():
        for key in table.foreign_keys:
            if key.target in tables and all(key.columns) and all(key.target_columns):
                _take_key(place, key, found, equal)
    for left, right in sorted(workload.edges):
        _unite(equal, left, right)
    if not equal and not found:
        for left, right in _named_alike(tables):
            _unite(equal, left, right)
    for group in equal:
        members = sorted(member for member in group if member[:2] in tables)
        for index, one in enumerate(members):
            for other in members[index + 1 :]:
                if one[:2] != other[:2] and len(found) < MOST_JOINTS:
                    found.add(Joint(one[:2], other[:2], ((one[2], other[2]),)))
    return sorted(found)


def _usable(table: TableInfo) -> bool:
    return table.steerable and table.schema != "pg_catalog" and table.rows >= 1


def _take_key(place: _Place, key: ForeignKey, found: set[Joint], equal: list[set[tuple[str, str, str]]]) -> None:
    if len(key.columns) == 1:
        _unite(equal, (*place, key.columns[0]), (*key.target, key.target_columns[0]))
    elif place != key.target:
        found.add(Joint(place, key.target, tuple(zip(key.columns, key.target_columns, strict=True))))


def _unite(equal: list[set[tuple[str, str, str]]], left: tuple[str, str, str], right: tuple[str, str, str]) -> None:
    joined = {left, right}
    for group in [group for group in equal if group & joined]:
        joined |= group
        equal.remove(group)
    equal.append(joined)


def _named_alike(tables: Mapping[_Place, TableInfo]) -> list[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """Columns that look like references: ``x_id``, ``xid`` or a unique column's own name, where the table x (or xs)
    has a unique column of that type."""
    unique = [
        (place, index.columns[0], table.columns[index.columns[0]].type)
        for place, table in sorted(tables.items())
        for index in table.indexes
        if index.unique and not index.partial and len(index.columns) == 1 and index.columns[0] in table.columns
    ]
    found = []
    for place, table in sorted(tables.items()):
        for column in table.columns.values():
            for target, key, kind in unique:
                plain = target[1].lower().removesuffix("s")
                stems = {plain, target[1].lower()}
                names = {f"{stem}_{key}" for stem in stems} | {f"{stem}{key}" for stem in stems}
                if key != "id":
                    names.add(key)
                if target != place and column.type == kind and column.name.lower() in {name.lower() for name in names}:
                    found.append(((*place, column.name), (*target, key)))
    return found


def generate(snapshot: Snapshot, ways: Sequence[Joint], workload: Seen, count: int, seed: int) -> list[str]:
    """``count`` different statements, fewer where the schema has no more; none without a way to join."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    around: dict[_Place, list[Joint]] = {}
    for way in ways:
        around.setdefault(way.left, []).append(way)
        around.setdefault(way.right, []).append(way.turned())
    places = sorted(around)
    shapes = list(workload.shapes)
    texts: dict[str, None] = {}
    for _ in range(4 * count if places else 0):
        if len(texts) >= count:
            break
        texts[_statement(snapshot, around, places, workload, shapes, chance)] = None
    return list(texts)


def _statement(
    snapshot: Snapshot,
    around: Mapping[_Place, Sequence[Joint]],
    places: Sequence[_Place],
    workload: Seen,
    shapes: Sequence[Shape],
    chance: random.Random,
) -> str:
    shape = chance.choice(shapes) if shapes and chance.random() < AS_SEEN else _walk(around, places, chance)
    joined = {(*way.left, pair[0]) for ways in around.values() for way in ways for pair in way.columns}
    conditions = [
        f"t{left + 1}.{quoted(left_column)} = t{right + 1}.{quoted(right_column)}"
        for left, left_column, right, right_column in shape.equal
    ]
    for number, place in enumerate(shape.tables, 1):
        if chance.random() < FILTERED:
            conditions += _filters(snapshot.tables[place], f"t{number}", workload, joined, chance)
    tables = ", ".join(
        f"{quoted(schema)}.{quoted(name)} AS t{number}" for number, (schema, name) in enumerate(shape.tables, 1)
    )
    return f"SELECT count(*) FROM {tables} WHERE {' AND '.join(conditions)}"  # noqa: S608


def _walk(around: Mapping[_Place, Sequence[Joint]], places: Sequence[_Place], chance: random.Random) -> Shape:
    """A random walk over the ways to join."""
    chosen = {chance.choice(places): 0}
    equal: list[tuple[int, str, int, str]] = []
    size = chance.choices(range(2, LARGEST + 1), weights=[LARGEST - number / 2 for number in range(2, LARGEST + 1)])[0]
    while len(chosen) < size:
        # Every table that can be reached is as likely as any other, however many ways lead to it.
        reached: dict[_Place, list[Joint]] = {}
        for place in chosen:
            for way in around[place]:
                if way.right not in chosen:
                    reached.setdefault(way.right, []).append(way)
        if not reached:
            break
        place = chance.choice(sorted(reached))
        way = chance.choice(reached[place])
        number = chosen[place] = len(chosen)
        equal += [(chosen[way.left], left, number, right) for left, right in way.columns]
    return Shape(tuple(chosen), tuple(equal))


def _filters(
    table: TableInfo, alias: str, workload: Seen, joined: set[tuple[str, str, str]], chance: random.Random
) -> list[str]:
    """Up to three conditions that one sampled row satisfies."""
    sample = table.sample
    if sample is None or not sample.size:
        return []
    columns, weights = [], []
    for name in sorted(sample.columns):
        place = (table.schema, table.name, name)
        often = workload.filtered.get(place, 0)
        if name not in table.columns or (place in joined and not often) or (not often and _is_key(table, name)):
            continue
        columns.append(table.columns[name])
        weights.append(1 + SEEN_WEIGHT * (often > 0))
    row = chance.randrange(sample.size)
    found: dict[str, str] = {}
    for _ in range(chance.choices((1, 2, 3), weights=(3, 2, 1))[0] if columns else 0):
        column = chance.choices(columns, weights=weights)[0]
        values = sample.columns[column.name]
        text = _condition(column, f"{alias}.{quoted(column.name)}", values[row], values, chance)
        if text:
            found[column.name] = text
    return list(found.values())


def _is_key(table: TableInfo, column: str) -> bool:
    return any(index.unique and index.columns == (column,) for index in table.indexes)


def _condition(
    column: ColumnInfo, name: str, value: object, values: Sequence[object], chance: random.Random
) -> str | None:
    """A condition on the column that ``value`` satisfies, None where there is none of interest."""
    kind = family(column.type)
    if value is None:
        return f"{name} IS NULL"
    if kind is Family.BOOLEAN:
        return name if value else f"NOT {name}"
    literal = literal_of(value, column.type)
    if literal is None or kind is Family.OTHER:
        return None
    statistics = column.statistics
    few = statistics is not None and 0 < statistics.n_distinct <= FEW_VALUES
    common = statistics is not None and value in statistics.common_values
    if kind is Family.TEXT:
        return _text_condition(name, str(value), literal, values, few or common, chance)
    another = chance.choice(values)
    other = literal_of(another, column.type)
    forms = [f"{name} <= {literal}", f"{name} >= {literal}"] * 2
    if other is not None:
        low, high = sorted((value, another), key=_order)
        forms.append(f"{name} BETWEEN {literal_of(low, column.type)} AND {literal_of(high, column.type)}")
    if few or common:
        forms += [f"{name} = {literal}"] * 3
        if other is not None and other != literal:
            forms.append(f"{name} IN ({literal}, {other})")
    return chance.choice(forms)


def _order(value: object) -> tuple[float, str]:
    if isinstance(value, int | float | Decimal):
        return float(value), ""
    return 0.0, value.isoformat() if isinstance(value, date) else str(value)


def _text_condition(
    name: str, value: str, literal: str, values: Sequence[object], equality: bool, chance: random.Random
) -> str:
    forms = [f"{name} = {literal}"] * (3 if equality else 1)
    words = _WORD.findall(value)
    if words:
        forms += [f"{name} LIKE '%{chance.choice(words)}%'"] * 2
    if value[:3].isalnum() and len(value) > 3:
        forms.append(f"{name} LIKE '{value[:3]}%'")
    other = literal_of(chance.choice(values), "text")
    if equality and other is not None and other != literal:
        forms.append(f"{name} IN ({literal}, {other})")
    return chance.choice(forms)


def literal_of(value: object, kind: str) -> str | None:
    """The value as a literal of that type (by format_type's name); None for NULL and for what has no plain one."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) or (isinstance(value, Decimal) and value.is_finite()):
        return f"{value}" if value >= 0 else f"({value})"
    if isinstance(value, str):
        return None if "\0" in value else "'" + value.replace("'", "''") + "'" if "\\" not in value else None
    if isinstance(value, date | datetime):
        return f"'{value.isoformat(sep=' ') if isinstance(value, datetime) else value.isoformat()}'::{kind}"
    return None

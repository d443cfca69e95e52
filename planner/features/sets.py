"""The sets of MSCN (Kipf et al., 2019): of each sub-plan its tables, its joins and its predicates, over a vocabulary.

Every element is a row: a one-hot word of the vocabulary and a few numbers; what belongs to no element is masked out.
Unlike the flat features these name tables and columns, so a model knows only what its vocabulary has: `Sets.known` says
for which sub-plans that is so. Values of predicates are placed between the smallest and largest of their column's
statistics.

A bitmap says which rows of a table's sample pass the filters, one bit a row, as in MSCN. There the sample is a part of
the model; here it is the planner's, read again with every refresh. So a row's place among the bits comes from what the
row says, not from where it stands: the rows are dealt out by a hash of their key, and of those that fall to one place
the least hash has it. A row that leaves the sample changes its own bit and no other, and the same row has the same bit
in every process. The model is told nothing of the rows but the bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from planner.features import flat
from planner.features.flat import Estimates
from planner.features.keys import Array
from planner.graph import (
    NO_PARAMETERS,
    And,
    Cast,
    Column,
    Compare,
    Condition,
    Const,
    Expression,
    InList,
    JoinEdge,
    Like,
    NullTest,
    Param,
    Parameters,
)
from planner.selectivity import column_model
from planner.selectivity_values import key, scalars
from planner.snapshot import Snapshot, TableInfo
from planner.subplans import connected

VERSION: Final = "2"
OPERATORS: Final = ("=", "<>", "<", "<=", ">", ">=", "in", "not in", "like", "not like", "null", "not null", "other")
NUMBERS: Final = {
    "tables": ("native", "rows", "filtered", "sample_shift", "sampled"),
    "joins": ("selectivity", *flat.JOINED),
    "predicates": ("value", "length"),
}
_MOST_PREDICATES: Final = 64
"""Of one relation; the rest is left out."""
MAX_BITMAP: Final = 1024
PARTS: Final = ("tables", "joins", "predicates")


class Vocabulary(Protocol):
    """`model_runtime.manifest.Vocabulary`, or anything with these words."""

    @property
    def tables(self) -> Sequence[str]: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def joins(self) -> Sequence[str]: ...
    @property
    def operators(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a vocabulary in a fixed order: ``schema.table``, ``schema.table.column``,
    ``schema.table.column = schema.table.column`` with its sides in order, operators."""

    tables: tuple[str, ...]
    columns: tuple[str, ...]
    joins: tuple[str, ...]
    operators: tuple[str, ...] = OPERATORS


@dataclass(frozen=True, slots=True)
class Options:
    """``bitmap``: how many rows of each table's sample are looked at one by one, 0 to `MAX_BITMAP`."""

    bitmap: int = 0

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Options:
        """From a manifest. ValueError for what is not known."""
        bitmap = options.get("bitmap", 0)
        if set(options) - {"bitmap"} or not isinstance(bitmap, int) or not 0 <= bitmap <= MAX_BITMAP:
            raise ValueError(f"the sets featurizer takes one option, bitmap, from 0 to {MAX_BITMAP}")
        return cls(int(bitmap))


def vocabulary(workload: Sequence[Estimates]) -> Words:
    """The words of a workload: every table, every joined pair of columns, every filtered column of its sub-plans."""
    tables: set[str] = set()
    columns: set[str] = set()
    joins: set[str] = set()
    for estimates in workload:
        used = 0
        for mask in connected(estimates.block, estimates):
            used |= mask
        for relation, table in enumerate(estimates.tables):
            if table is not None and used >> relation & 1:
                tables.add(_table(table))
                columns.update(name for name, *_ in _predicates(estimates, relation))
        joins.update(name for name, _ in _edges(estimates, used))
    return Words(tuple(sorted(tables)), tuple(sorted(columns - {""})), tuple(sorted(joins)))


@dataclass(frozen=True, slots=True, eq=False)
class _Element:
    """``row`` is its features, None if a word is unknown; it belongs to each sub-plan that has all ``relations``."""

    relations: int
    row: Array | None


class Sets:
    """The featurizer over one vocabulary."""

    name = "sets"
    version = VERSION

    def __init__(self, words: Vocabulary, options: Options | None = None) -> None:
        self.options = options or Options()
        self._tables = {word: index for index, word in enumerate(words.tables)}
        self._columns = {word: index for index, word in enumerate(words.columns)}
        self._joins = {word: index for index, word in enumerate(words.joins)}
        self._operators = {word: index for index, word in enumerate(words.operators)}
        self.names = names(words, self.options)

    def inputs(self, estimates: Estimates, masks: Sequence[int]) -> dict[str, Array]:
        """``tables`` [n, T, a], ``joins`` [n, J, b], ``predicates`` [n, P, c], and ``<set>_mask`` [n, size] with 1 for
        an element; float32. Sizes are those of the largest sub-plan, at least 1. Elements with unknown words are left
        out."""
        found: dict[str, Array] = {}
        for part, (rows, index) in self.elements(estimates, masks).items():
            padded = np.vstack([np.zeros((1, rows.shape[1]), dtype=np.float32), rows])
            found[part] = padded[index]
            found[f"{part}_mask"] = (index > 0).astype(np.float32)
        if masks:
            native = native_logarithms(estimates, masks)
            found["tables"][:, :, self.native_place] = native[:, None] * found["tables_mask"]
        return found

    def elements(self, estimates: Estimates, masks: Sequence[int]) -> dict[str, tuple[Array, Array]]:
        """The same without repetition, for training: of each set its elements float32 [elements, width], and which of
        them each sub-plan has, int32 [n, size]: numbers from 1, 0 for none. ``native`` is 0 in all elements, since it
        belongs to the sub-plan: `native_logarithms`."""
        return {part: _indexed(rows, masks, len(self.names[part])) for part, rows in self._found(estimates, masks)}

    @property
    def native_place(self) -> int:
        """Which number of a table's element is the logarithm of the sub-plan's native estimate."""
        return self.names["tables"].index("native")

    def known(self, estimates: Estimates, masks: Sequence[int]) -> Array:
        """bool [n]: the vocabulary has all words of the sub-plan."""
        used = 0
        for mask in masks:
            used |= mask
        unknown = [edge.relations for word, edge in _edges(estimates, used) if word not in self._joins]
        for relation, table in enumerate(estimates.tables):
            if used >> relation & 1 and not self._knows(estimates, relation, table):
                unknown.append(1 << relation)
        return np.array([all(mask & one != one for one in unknown) for mask in masks], dtype=bool)

    def _knows(self, estimates: Estimates, relation: int, table: TableInfo | None) -> bool:
        """The table, and the columns and operators of its filters."""
        return (
            table is not None
            and _table(table) in self._tables
            and all(
                (not column or column in self._columns) and operator in self._operators
                for column, operator, *_ in _predicates(estimates, relation)
            )
        )

    def _found(self, estimates: Estimates, masks: Sequence[int]) -> list[tuple[str, list[_Element]]]:
        used = 0
        for mask in masks:
            used |= mask
        relations = [index for index in range(used.bit_length()) if used >> index & 1]
        tables = [_Element(1 << index, self._table_row(estimates, index)) for index in relations]
        joins = [
            _Element(both, self._row("joins", (self._joins.get(word),), numbers))
            for word, both, numbers in _joins(estimates, used)
        ]
        predicates = [
            _Element(1 << index, self._predicate_row(column, operator, value, length))
            for index in relations
            for column, operator, value, length in _predicates(estimates, index)
        ]
        return list(zip(PARTS, (tables, joins, predicates), strict=True))

    def _table_row(self, estimates: Estimates, relation: int) -> Array | None:
        table = estimates.tables[relation]
        if table is None:
            return None
        rows, filtered = estimates.table_rows(relation), estimates.filtered_rows(relation)
        seen = estimates.sample_selectivity(relation)
        shift = 0.0 if seen is None else _ln(max(seen, 1e-9)) - _ln(max(estimates.filter_selectivity(relation), 1e-9))
        bits = _bitmap(estimates, relation, table, self.options.bitmap) if self.options.bitmap else None
        numbers = (0.0, _ln(rows), _ln(filtered), shift, float(bits is not None))
        row = self._row("tables", (self._tables.get(_table(table)),), numbers)
        if row is not None and bits is not None:
            row[-len(bits) :] = bits
        return row

    def _predicate_row(self, column: str, operator: str, value: float, length: float) -> Array | None:
        # A predicate of no single column (an OR of two, a function) has the operator alone.
        place = self._columns.get(column) if column else -1
        return self._row("predicates", (place, self._operators.get(operator)), (value, length))

    def _row(self, part: str, words: Sequence[int | None], numbers: Sequence[float]) -> Array | None:
        """One-hot words, the first counted from 0 and a second behind all of the first, then the numbers."""
        row = np.zeros(len(self.names[part]), dtype=np.float32)
        start = 0
        for word, group in zip(words, self._groups(part), strict=True):
            if word is None:
                return None
            if word >= 0:
                row[start + word] = 1.0
            start += group
        row[start : start + len(numbers)] = numbers
        return row

    def _groups(self, part: str) -> tuple[int, ...]:
        if part == "tables":
            return (len(self._tables),)
        return (len(self._joins),) if part == "joins" else (len(self._columns), len(self._operators))


def names(words: Vocabulary, options: Options | None = None) -> dict[str, tuple[str, ...]]:
    """What each element of each set carries, in order: `model_runtime.manifest.SetFeatures`."""
    bitmap = (options or Options()).bitmap
    return {
        "tables": (*words.tables, *NUMBERS["tables"], *(f"bit {index}" for index in range(bitmap))),
        "joins": (*words.joins, *NUMBERS["joins"]),
        "predicates": (*words.columns, *words.operators, *NUMBERS["predicates"]),
    }


def native_logarithms(estimates: Estimates, masks: Sequence[int]) -> Array:
    """Of each sub-plan the natural logarithm of the native estimate, float32 [n]."""
    return np.array([_ln(estimates.rows(mask)) for mask in masks], dtype=np.float32)


def _indexed(rows: Sequence[_Element], masks: Sequence[int], width: int) -> tuple[Array, Array]:
    usable = [(element.relations, element.row) for element in rows if element.row is not None]
    chosen = [[place for place, (one, _) in enumerate(usable, 1) if mask & one == one] for mask in masks]
    index = np.zeros((len(masks), max((len(one) for one in chosen), default=0) or 1), dtype=np.int32)
    for place, one in enumerate(chosen):
        index[place, : len(one)] = one
    return np.array([row for _, row in usable], dtype=np.float32).reshape(len(usable), width), index


# ---------------------------------------------------------------------- bitmaps


def _bitmap(estimates: Estimates, relation: int, table: TableInfo, size: int) -> Array | None:
    """Which of the rows at each place pass all filters, [size]; None where that cannot be told."""
    if table.sample is None or not table.sample.size:
        return None
    filtered = bool(estimates.block.filters(relation) or estimates.equivalences.filters(relation))
    matches = estimates.sample_matches(relation)
    if filtered and matches is None:
        return None
    rows = _places(estimates.snapshot, table, size)
    passing: Array = np.ones(len(rows), dtype=bool) if matches is None else matches[rows]
    return (passing & (rows >= 0)).astype(np.float32)


def _places(snapshot: Snapshot, table: TableInfo, size: int) -> Array:
    """Which sampled row each bit is for, [size], -1 for none. Computed once per snapshot: some 3 us a row."""
    place = ("places", table.schema, table.name, size)
    found = snapshot.derived.get(place)
    if not isinstance(found, np.ndarray):
        found = snapshot.derived[place] = _dealt(table, size)
    return found


def _dealt(table: TableInfo, size: int) -> Array:
    assert table.sample is not None
    columns = table.sample.columns
    keys = (index.columns for index in table.indexes if index.unique and not index.partial)
    # By the key, so that a row that changes elsewhere keeps its place.
    names = next((key for key in keys if key and all(name in columns for name in key)), tuple(columns))
    least: dict[int, tuple[int, int]] = {}
    for row, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        rank, place = divmod(int.from_bytes(digest, "big"), size)
        least[place] = min(least.get(place, (rank, row)), (rank, row))
    rows = np.full(size, -1, dtype=np.int64)
    for place, (_, row) in least.items():
        rows[place] = row
    return rows


# ---------------------------------------------------------------------- words and numbers of a query


def _ln(value: float) -> float:
    return math.log(max(value, 1e-30))


def _table(table: TableInfo) -> str:
    return f"{table.schema}.{table.name}"


def _edges(estimates: Estimates, used: int) -> list[tuple[str, JoinEdge]]:
    """Every edge, written or implied, of a class without a constant and every other, with its word."""
    edges = [edge for edge in estimates.equivalences.others if edge.relations & ~used == 0]
    for group in estimates.equivalences.classes:
        members = [member for member in group.members if used >> member.relation & 1]
        for place, left in enumerate(members if group.constant is None else ()):
            edges += [JoinEdge(left, right) for right in members[place + 1 :] if right.relation != left.relation]
    found = []
    for edge in edges:
        sides = [_column(estimates, edge.left), _column(estimates, edge.right)]
        if "" not in sides:
            # Equality has no direction; for the others the word says which side is which.
            sides = sorted(sides) if edge.operator in ("=", "<>") else sides
            found.append((f" {edge.operator} ".join(sides), edge))
    return found


def _joins(estimates: Estimates, used: int) -> list[tuple[str, int, tuple[float, ...]]]:
    """The word of each edge, its relations, its numbers: ln of the native selectivity, and `flat.JOINED`."""
    evidence: dict[tuple[Column, Column], list[float]] = {}
    for group in estimates.equivalences.classes:
        evidence |= flat.joined(estimates, group, used)
    nothing = [0.0] * len(flat.JOINED)
    return [
        (
            word,
            edge.relations,
            (_ln(estimates.edge_selectivity(edge)), *evidence.get((edge.left, edge.right), nothing)),
        )
        for word, edge in _edges(estimates, used)
    ]


def _column(estimates: Estimates, column: Column) -> str:
    table = estimates.tables[column.relation]
    return "" if table is None else f"{_table(table)}.{column.name}"


def _predicates(estimates: Estimates, relation: int) -> list[tuple[str, str, float, float]]:
    """Column ("" for none), operator, value from 0 to 1, ln(1 + length of a list)."""
    table = estimates.tables[relation]
    if table is None:
        return []
    found: list[tuple[str, str, float, float]] = []
    pending: list[Condition] = [
        predicate.condition
        for predicate in (*estimates.block.filters(relation), *estimates.equivalences.filters(relation))
    ]
    while pending and len(found) < _MOST_PREDICATES:
        condition = pending.pop(0)
        if isinstance(condition, And):
            pending = [*condition.children, *pending]
            continue
        column, operator, values, length = _parts(condition)
        if column is None:
            found.append(("", "other", 0.0, 0.0))
            continue
        parameters = getattr(estimates, "params", NO_PARAMETERS)
        placed = [_placed(value, estimates.snapshot, table, column.name, parameters) for value in values[:10]]
        mean = sum(placed) / len(placed) if placed else 0.0
        found.append((f"{_table(table)}.{column.name}", operator, mean, math.log1p(length)))
    return found


def _parts(condition: Condition) -> tuple[Column | None, str, Sequence[Expression], int]:
    """The column, the operator as in `OPERATORS`, the values, and the length of a list."""
    if isinstance(condition, Compare) and isinstance(condition.left, Column):
        return condition.left, condition.operator, (condition.right,), 0
    if isinstance(condition, InList) and isinstance(condition.operand, Column):
        operator = "not in" if condition.negated else "in"
        return condition.operand, operator, condition.values, len(condition.values)
    if isinstance(condition, Like) and isinstance(condition.operand, Column):
        return condition.operand, "not like" if condition.negated else "like", (), 0
    if isinstance(condition, NullTest) and isinstance(condition.operand, Column):
        return condition.operand, "not null" if condition.negated else "null", (), 0
    return None, "other", (), 0


def _placed(expression: Expression, snapshot: Snapshot, table: TableInfo, column: str, parameters: Parameters) -> float:
    """Where the value lies between the column's smallest and largest; 0.5 if that cannot be said."""
    while isinstance(expression, Cast):
        expression = expression.operand
    if isinstance(expression, Param):
        expression = parameters.get(expression.number, expression)
    if not isinstance(expression, Const):
        return 0.5
    model = column_model(snapshot, table, column)
    value = key(expression.value, model.family)
    bounds = [bound for bound in (*model.histogram[:1], *model.histogram[-1:], *model.common) if bound is not None]
    if value is None or not bounds:
        return 0.5
    try:
        scaled = scalars(value, min(bounds), max(bounds))
    except TypeError:
        return 0.5
    if scaled is None or scaled[2] <= scaled[1]:
        return 0.5
    return min(max((scaled[0] - scaled[1]) / (scaled[2] - scaled[1]), 0.0), 1.0)

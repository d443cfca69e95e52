"""Values for a statement's ``$1``, ``$2``: those it was run with, or likely ones where nobody kept them.

pg_stat_statements keeps statements without their values, and files of queries are made from it. A value for
``column = $1`` is taken from the column's sample, all of one relation from the same row, so that they go together, or,
where there is no sample, from the column's statistics: its most common values, each as often as it is in the table, and
the histogram's bounds. Bounds of ranges are put where they leave something between them. Parameters outside of
conditions, whose values do not change what is joined, get a 1. A parameter in a condition that compares no column with
it cannot be guessed, and then the statement is of no use.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from pglast.parser import ParseError, scan

from planner.graph import (
    And,
    Cast,
    Column,
    Compare,
    Condition,
    Expression,
    InList,
    Like,
    Not,
    Or,
    Param,
)
from planner.resolve import ResolvedBlock, resolve
from planner.selectivity_values import Family, family, key
from planner.snapshot import ColumnStatistics, Snapshot, TableInfo
from planner.sql import read
from training.queries import Query, Skipped, Workload, excerpt
from training.words import in_words

VARIANTS: Final = 3
"""How often a statement without values is taken, with other values each time."""
AS_SAMPLED: Final = 200
UPPER = frozenset({"<", "<="})
LOWER = frozenset({">", ">="})


def bound(text: str, values: Mapping[int, str | None]) -> str | None:
    """The text with the values (as PostgreSQL writes them; None: NULL) in place of its parameters; None when one is
    missing or the text cannot be read."""
    try:
        tokens = [token for token in scan(text) if token.name == "PARAM"]
    except ParseError:
        return None
    # Offsets are of characters.
    pieces, at = [], 0
    for token in tokens:
        number = int(text[token.start + 1 : token.end + 1])
        if number not in values:
            return None
        value = values[number]
        if value is not None and "\0" in value:
            return None
        pieces += [text[at : token.start], "NULL" if value is None else quoted_value(value)]
        at = token.end + 1
    return "".join([*pieces, text[at:]])


def quoted_value(value: str) -> str:
    """A literal without a type, which takes the one that its place asks for."""
    text = value.replace("'", "''")
    return f"'{text}'" if "\\" not in text else " E'" + text.replace("\\", "\\\\") + "'"


def variants(
    text: str, snapshot: Snapshot, search_path: tuple[str, ...], *, seed: int = 0, count: int = VARIANTS
) -> tuple[list[str], str]:
    """Up to ``count`` different statements with likely values, or none and why. The same text, snapshot and seed give
    the same ones, whatever else is asked for."""
    chance = random.Random(f"{seed} {text}")  # noqa: S311 - nothing secret
    found: dict[str, None] = {}
    for _ in range(count):
        filled, reason = likely(text, snapshot, search_path, chance)
        if filled is None:
            return [], reason
        found[filled] = None
    return list(found), ""


def with_likely_values(
    workload: Workload, snapshot: Snapshot, search_path: tuple[str, ...], *, seed: int = 0, count: int = VARIANTS
) -> tuple[Workload, int]:
    """The workload with the `variants` of its statements that have parameters in place of these, and how many such
    statements got values. Those that got none are among the skipped."""
    queries: list[Query] = []
    skipped = list(workload.skipped)
    given = 0
    for query in workload.queries:
        graph = read(query.text).graph if "$" in query.text else None
        if graph is None or not graph.parameters:
            queries.append(query)
            continue
        texts, reason = variants(query.text, snapshot, search_path, seed=seed, count=count)
        given += bool(texts)
        queries += [Query(query.line, text, query.generated) for text in texts]
        if not texts:
            skipped.append(Skipped(query.line, f"it has parameters without values ({reason})", excerpt(query.text)))
    return Workload(tuple(queries), tuple(skipped)), given


def likely(
    text: str, snapshot: Snapshot, search_path: tuple[str, ...], chance: random.Random
) -> tuple[str | None, str]:
    """The statement with likely values, or None and why there are none."""
    reading = read(text)
    if reading.graph is None:
        return None, in_words(reading.reason)
    graph = resolve(reading.graph, snapshot, search_path)
    values: dict[int, str | None] = {}
    unknown: set[int] = set()
    for block in graph.blocks:
        rows: dict[int, int] = {}
        for predicate in (*block.block.predicates, *block.block.outer_predicates):
            if predicate.opaque:
                unknown |= set(_params(predicate.condition))
            _guess(predicate.condition, block, rows, values, chance)
            unknown |= set(_params(predicate.condition)) - values.keys()
    if missing := sorted(unknown - values.keys()):
        return None, f"no likely value for ${missing[0]}"
    everything = {number: values.get(number, "1") for number in range(1, reading.graph.parameters + 1)}
    filled = bound(text, everything)
    return (filled, "") if filled is not None else (None, "its parameters cannot be found")


def _params(node: object) -> Sequence[int]:
    if isinstance(node, Param):
        return [node.number]
    found: list[int] = []
    for name in getattr(node, "__dataclass_fields__", ()):
        value = getattr(node, name)
        for part in value if isinstance(value, tuple) else (value,):
            found += _params(part)
    return found


def _guess(
    condition: Condition,
    block: ResolvedBlock,
    rows: dict[int, int],
    values: dict[int, str | None],
    chance: random.Random,
) -> None:
    if isinstance(condition, And | Or):
        for child in condition.children:
            _guess(child, block, rows, values, chance)
    elif isinstance(condition, Not):
        _guess(condition.child, block, rows, values, chance)
    elif isinstance(condition, Compare):
        for one, other, operator in (
            (condition.left, condition.right, condition.operator),
            (condition.right, condition.left, ""),
        ):
            if isinstance(one, Column) and (number := _number(other)) is not None:
                _put(values, number, _value(one, operator, block, rows, chance))
    elif isinstance(condition, InList) and isinstance(condition.operand, Column):
        for place, value in enumerate(condition.values):
            if (number := _number(value)) is not None:
                whole = len(condition.values) == 1 and not place
                # Of a list each value from a row of its own. A single parameter may be a whole array.
                found = _value(condition.operand, "any" if whole else "", block, {}, chance)
                _put(values, number, found)
    elif (
        isinstance(condition, Like)
        and isinstance(condition.operand, Column)
        and (number := _number(condition.pattern)) is not None
    ):
        found = _value(condition.operand, "", block, rows, chance)
        _put(values, number, None if found is None else f"%{found[:4].strip('%_')}%")


def _put(values: dict[int, str | None], number: int, value: str | None) -> None:
    if value is not None:
        values.setdefault(number, value)


def _number(node: Expression) -> int | None:
    while isinstance(node, Cast):
        node = node.operand
    return node.number if isinstance(node, Param) else None


def _value(
    column: Column, operator: str, block: ResolvedBlock, rows: dict[int, int], chance: random.Random
) -> str | None:
    table: TableInfo | None = block.tables[column.relation] if column.relation < len(block.tables) else None
    info = table.columns.get(column.name) if table is not None else None
    if info is None:
        return None
    values: Sequence[object] = (
        table.sample.columns.get(column.name, ()) if table is not None and table.sample is not None else ()
    )
    known = [value for value in values if value is not None]
    if not known:
        values = known = _from_statistics(info.statistics)
    if not known:
        return None
    kind = family(info.type)
    if operator in UPPER | LOWER and kind not in (Family.OTHER, Family.BOOLEAN):
        ordered = sorted(known, key=lambda value: _sortable(value, kind))
        share = chance.uniform(0.4, 1.0) if operator in UPPER else chance.uniform(0.0, 0.6)
        return _text(ordered[min(int(share * len(ordered)), len(ordered) - 1)])
    row = rows.setdefault(column.relation, chance.randrange(len(values)))
    # Another column may have come from statistics, which have no rows.
    value = values[row] if row < len(values) and values[row] is not None else chance.choice(known)
    return _text(value) if operator != "any" else "{" + _element(_text(value)) + "}"


def _from_statistics(statistics: ColumnStatistics | None) -> list[object]:
    """What a sample of `AS_SAMPLED` rows would show, as far as the statistics tell: common values by their frequency,
    and the histogram's bounds in the place of the rest."""
    if statistics is None:
        return []
    found: list[object] = []
    for value, share in zip(statistics.common_values, statistics.common_freqs, strict=False):
        found += [value] * max(1, round(share * AS_SAMPLED))
    rest = max(1.0 - statistics.null_frac - sum(statistics.common_freqs), 0.0)
    bounds = statistics.histogram
    return found + list(bounds) * (max(1, round(rest * AS_SAMPLED / len(bounds))) if bounds else 0)


def _sortable(value: object, kind: Family) -> tuple[float, str]:
    found = key(value, kind)
    return (0.0, found) if isinstance(found, str) else (float(found or 0), "")


def _text(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _element(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

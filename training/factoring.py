"""Counting a join without producing it: sums of products over a join tree.

The join's relations are made a tree by its equalities. Each sub-tree is grouped by the columns that its parent asks
for and hands up how many rows stand behind each value; a parent multiplies what its children say and adds up (message
passing, as in Yannakakis' algorithm and in factorised databases). A child whose asked columns are unique needs no
grouping and is joined as it is. The root is chosen so that as few rows as possible are grouped. No I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Key = tuple[int, str]
"""A column: the relation's index in its block, and a name."""
Tree = Mapping[int, Mapping[int, Sequence[tuple[Key, Key]]]]
"""For each relation its neighbours and the equalities with each: (own column, the neighbour's column)."""


@dataclass(slots=True)
class Item:
    """One relation: its name in the count, its text in FROM, its table's rows and unique keys, its own conditions."""

    alias: str
    source: str
    rows: float
    unique: Sequence[frozenset[str]] = ()
    conditions: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Part:
    """A SELECT in the making: what it reads, on which conditions, and the factors of a row's weight."""

    sources: list[str]
    conditions: list[str]
    factors: list[str]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def factored(items: Mapping[int, Item], classes: Sequence[Sequence[Key]]) -> str | None:
    """The count as sums of products. ``classes`` are sets of columns that are all equal. None when the equalities leave
    the relations apart or connect them in a circle."""
    tree = _tree(items, classes)
    if tree is None:
        return None
    root = min(items, key=lambda index: (_grouped_rows(items, tree, index, None), items[index].alias))
    part = _part(items, tree, classes, root, None)
    where = f" WHERE {' AND '.join(part.conditions)}" if part.conditions else ""
    return f"SELECT {_weight(part)} FROM {', '.join(part.sources)}{where}"  # noqa: S608


def _tree(items: Mapping[int, Item], classes: Sequence[Sequence[Key]]) -> Tree | None:
    """The join tree; classes of two relations come first, wider ones then follow the edges there are."""
    edges: dict[int, dict[int, list[tuple[Key, Key]]]] = {index: {} for index in items}
    for members in sorted(classes, key=lambda keys: len({key[0] for key in keys})):
        column: dict[int, Key] = {}
        for key in members:
            column.setdefault(key[0], key)
        group = {index: index for index in column}
        pairs = [(left, right) for left in column for right in column if left < right]
        for left, right in sorted(pairs, key=lambda pair: pair[1] not in edges[pair[0]]):
            if group[left] != group[right]:
                old, new = group[right], group[left]
                group = {index: new if place == old else place for index, place in group.items()}
                edges[left].setdefault(right, []).append((column[left], column[right]))
                edges[right].setdefault(left, []).append((column[right], column[left]))
    if sum(len(neighbours) for neighbours in edges.values()) != 2 * (len(items) - 1):
        return None
    reached: set[int] = set()
    waiting = [next(iter(items))]
    while waiting:
        index = waiting.pop()
        reached.add(index)
        waiting += [neighbour for neighbour in edges[index] if neighbour not in reached]
    return edges if len(reached) == len(items) else None


def _is_unique(items: Mapping[int, Item], tree: Tree, index: int, parent: int) -> bool:
    asked = {own[1] for own, _ in tree[index][parent]}
    return any(key <= asked for key in items[index].unique)


def _grouped_rows(items: Mapping[int, Item], tree: Tree, index: int, parent: int | None) -> float:
    """How many rows of tables are grouped below a relation and in it."""
    total = 0.0 if parent is None or _is_unique(items, tree, index, parent) else items[index].rows
    return total + sum(_grouped_rows(items, tree, child, index) for child in tree[index] if child != parent)


def _part(
    items: Mapping[int, Item], tree: Tree, classes: Sequence[Sequence[Key]], index: int, parent: int | None
) -> _Part:
    """The relation with all that hangs on it."""
    item = items[index]
    part = _Part([item.source], list(item.conditions), [])
    for members in classes:
        same = [name for place, name in members if place == index]
        part.conditions += [_equal(item, left, item, right) for left, right in itertools.pairwise(same)]
    for child in sorted(tree[index], key=lambda child: items[child].alias):
        if child == parent:
            continue
        below = _part(items, tree, classes, child, index)
        keys = tree[index][child]
        if _is_unique(items, tree, child, index):
            part.sources += below.sources
            part.conditions += below.conditions
            part.factors += below.factors
            part.conditions += [_equal(item, own[1], items[child], other[1]) for own, other in keys]
            continue
        name = quoted(f"{items[child].alias} +")
        columns = [f"{quoted(items[child].alias)}.{quoted(other[1])}" for _, other in keys]
        shown = ", ".join(f"{column} AS k{number}" for number, column in enumerate(columns))
        where = f" WHERE {' AND '.join(below.conditions)}" if below.conditions else ""
        part.sources.append(
            f"(SELECT {shown}, {_weight(below)} AS n FROM {', '.join(below.sources)}{where} "  # noqa: S608
            f"GROUP BY {', '.join(columns)}) AS {name}"
        )
        part.conditions += [
            f"({quoted(item.alias)}.{quoted(own[1])} = {name}.k{number})" for number, (own, _) in enumerate(keys)
        ]
        part.factors.append(f"{name}.n")
    return part


def _equal(left: Item, left_column: str, right: Item, right_column: str) -> str:
    return f"({quoted(left.alias)}.{quoted(left_column)} = {quoted(right.alias)}.{quoted(right_column)})"


def _weight(part: _Part) -> str:
    """How many rows of the join stand behind a group. Double precision: exact up to 2^53, and then close enough."""
    if not part.factors:
        return "count(*)::float8"
    return f"coalesce(sum({' * '.join(part.factors)}), 0)::float8"

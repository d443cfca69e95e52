"""True cardinalities out of plans that were run: one EXPLAIN (ANALYZE) tells the rows of several sub-plans at once.

A step of a plan tells the rows of a sub-plan only under conditions, all of which `harvest` checks:

- it joins tables by inner joins alone, and nothing below it drops, repeats or adds rows for another reason
- it was run to its end: not below a LIMIT, nor on a side of a merge join, which stops when the other side is used up,
  nor on the outer side of a hash join whose other side is empty, unless something in between reads all rows first
- it was not run once per row of something else with that row's values: the inner sides of nested loops and the
  sub-plans of expressions are left out
- in a parallel plan, where each worker counts its own rows, the rows of all loops are added up, for steps that share
  the work; those that every worker does alone are left out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from planner.graph import Command, QueryGraph
from planner.resolve import ResolvedBlock

FOUR_EYES: Final = 0.05
"""A mean of rows per loop is rounded; it is used when that is off by no more than this share."""
_JOINS: Final = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_SCANS: Final = frozenset(
    {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Tid Scan", "Tid Range Scan"}
)
_PASSING: Final = frozenset({"Sort", "Incremental Sort", "Materialize", "Memoize", "Hash", "Gather", "Gather Merge"})
"""Steps that hand on the rows they get."""
_READING_ALL: Final = frozenset({"Sort", "Hash", "Aggregate"})
"""Steps that read everything before they give anything; of aggregates those that do not go by sorted groups."""
Node = Mapping[str, Any]


def harvestable(graph: QueryGraph, block: ResolvedBlock) -> bool:
    """Whether the plan of such a statement can be read: one block of tables, no name twice. What other blocks ask may
    reach the tables of this one (a constant in an EXISTS, a filter above a sub-query), so their rows are not the
    sub-plan's."""
    with_relations = [one for one in graph.blocks if one.relations]
    aliases = list(graph.aliases)
    return (
        graph.command is Command.SELECT
        and graph.read_only
        and len(with_relations) == 1
        and with_relations[0].index == block.block.index
        and len(set(aliases)) == len(aliases)
        and all(table is not None for table in block.tables)
    )


def harvest(plan: Node, block: ResolvedBlock, server_version: int) -> dict[int, float]:
    """True rows by set of relations, from one plan that was run (the object under ``Plan`` of EXPLAIN's JSON). Empty
    for plans that lack a table of the block: what was removed from the plan filters nothing any more."""
    places = {relation.alias: relation.index for relation in block.block.relations}
    if {str(node["Alias"]) for node in walk(plan) if "Alias" in node} != set(places):
        return {}
    found: dict[int, float] = {}
    _Harvest(places, 0.005 if server_version >= 180_000 else 0.5, found).visit(plan, complete=True, parallel=False)
    return found


def shown(plan: Node, block: ResolvedBlock) -> set[int]:
    """The sub-plans that running this plan might tell; ``plan`` need not have been run."""
    places = {relation.alias: relation.index for relation in block.block.relations}
    found: dict[int, float] = {}
    _Harvest(places, None, found).visit(plan, complete=True, parallel=False)
    return set(found)


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


@dataclass(slots=True)
class _Harvest:
    """``rounding`` is how far a mean may be off by being rounded; None for plans that were not run."""

    places: Mapping[str, int]
    rounding: float | None
    found: dict[int, float]

    def visit(self, node: Node, *, complete: bool, parallel: bool) -> int:
        """The set of relations whose inner join the step gives, 0 when it is something else. ``complete``: whoever is
        above reads all of it."""
        kind = str(node.get("Node Type"))
        parallel = parallel or kind in ("Gather", "Gather Merge")
        mask, sound = 0, kind in _JOINS or kind in _SCANS or kind in _PASSING
        for child in node.get("Plans", ()):
            relation = child.get("Parent Relationship")
            if relation in ("SubPlan", "InitPlan"):
                # A condition with a sub-plan in it is none that sub-plans of joins have.
                sound = False
                continue
            if str(child.get("Node Type", "")).startswith(("Bitmap Index", "BitmapAnd", "BitmapOr")):
                continue
            inner = kind == "Nested Loop" and relation == "Inner"
            below = (
                self._of_scans(child)
                if inner
                else self.visit(child, complete=self._read_up(node, child, complete), parallel=parallel)
            )
            sound = sound and below != 0 and not mask & below
            mask |= below
        if kind in _JOINS and node.get("Join Type") != "Inner":
            sound = False
        if kind in _SCANS:
            place = self.places.get(str(node.get("Alias")))
            mask, sound = (1 << place, sound) if place is not None else (0, False)
        if not sound:
            return 0
        if kind in _JOINS and complete:
            self._take(node, mask, parallel)
        return mask

    def _of_scans(self, node: Node) -> int:
        """The relations of an inner side, none of whose rows are of use."""
        return _Harvest(self.places, self.rounding, {}).visit(node, complete=False, parallel=False)

    def _read_up(self, node: Node, child: Node, complete: bool) -> bool:
        """Whether the child's rows were all asked for."""
        kind = str(node.get("Node Type"))
        if kind in _READING_ALL and node.get("Strategy", "Plain") != "Sorted":
            return True
        if kind in ("Limit", "Merge Join"):
            return False
        if kind == "Hash Join" and child.get("Parent Relationship") == "Outer":
            return complete and not any(_empty(other) for other in node.get("Plans", ()) if other is not child)
        return complete and kind in _JOINS | _PASSING | {
            "Aggregate",
            "Group",
            "Unique",
            "WindowAgg",
            "ProjectSet",
            "Result",
        }

    def _take(self, node: Node, mask: int, parallel: bool) -> None:
        if self.rounding is None:
            self.found.setdefault(mask, 0.0)
            return
        loops = float(node.get("Actual Loops", 0))
        mean = float(node.get("Actual Rows", 0))
        if loops == 1:
            self.found.setdefault(mask, mean)
        elif loops > 1 and parallel and _shared(node) and self.rounding <= FOUR_EYES * mean:
            self.found.setdefault(mask, round(mean * loops))


def _empty(node: Node) -> bool:
    return "Actual Rows" in node and not float(node["Actual Rows"])


def _shared(node: Node) -> bool:
    """Whether workers share the step's work: its outermost scan is a parallel one."""
    while children := node.get("Plans"):
        node = next((child for child in children if child.get("Parent Relationship") == "Outer"), children[0])
    return bool(node.get("Parallel Aware"))

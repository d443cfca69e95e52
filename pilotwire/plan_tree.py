"""Plans as EXPLAIN (FORMAT JSON) tells them, made small enough to be compared and shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_JOINS: Final = {"Nested Loop", "Hash Join", "Merge Join"}


@dataclass(frozen=True, slots=True)
class PlanNode:
    """``aliases`` are the relations below and at this node; ``name`` is the kind of node with what it reads, ``rows``
    what the server expects, ``actual`` what came (of all loops together), None when it was not run."""

    name: str
    aliases: frozenset[str]
    rows: float
    actual: float | None
    children: tuple[PlanNode, ...]
    join: bool = False

    @property
    def key(self) -> tuple[str, frozenset[str], tuple[frozenset[str], ...]]:
        """What makes two nodes of two plans the same step."""
        return self.name, self.aliases, tuple(child.aliases for child in self.children)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, PlanNode]]:
        """All nodes, each with its depth, parents first."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """``cost`` is the server's own, times are milliseconds; ``execution_ms`` is None when it was not run."""

    root: PlanNode
    cost: float
    planning_ms: float | None
    execution_ms: float | None


def parse(document: Mapping[str, Any]) -> Plan:
    """One element of EXPLAIN's JSON array."""
    return Plan(
        _node(document["Plan"]),
        float(document["Plan"].get("Total Cost", 0.0)),
        document.get("Planning Time"),
        document.get("Execution Time"),
    )


def _node(found: Mapping[str, Any]) -> PlanNode:
    children = tuple(_node(child) for child in found.get("Plans", ()))
    kind = str(found["Node Type"])
    own = found.get("Alias")
    aliases = frozenset(alias for child in children for alias in child.aliases) | ({str(own)} if own else frozenset())
    kind = {"left": f"{kind} Left", "right": f"{kind} Right", "full": f"{kind} Full", "semi": f"{kind} Semi"}.get(
        str(found.get("Join Type", "")).lower(), kind
    )
    if found.get("Strategy") in ("Hashed", "Sorted", "Mixed") and kind == "Aggregate":
        kind = {"Hashed": "HashAggregate", "Sorted": "GroupAggregate", "Mixed": "MixedAggregate"}[found["Strategy"]]
    name = f"{kind} {own}" if own else kind
    if found.get("Index Name") and not own:
        name = f"{kind} {found['Index Name']}"
    loops = found.get("Actual Loops")
    actual = None if loops is None else float(found.get("Actual Rows", 0)) * float(loops)
    expected = float(found.get("Plan Rows", 0))
    return PlanNode(name, aliases, expected, actual, children, str(found["Node Type"]) in _JOINS)


def changed(plan: PlanNode, other: PlanNode) -> set[int]:
    """The positions, in the order of ``walk``, of the nodes of ``plan`` that ``other`` has not."""
    known = {node.key for _, node in other.walk()}
    return {position for position, (_, node) in enumerate(plan.walk()) if node.key not in known}

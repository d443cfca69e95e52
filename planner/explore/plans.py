"""A plan as EXPLAIN gives it: what it does (`Plan.shape`), what it expects, and whether it obeys advice. No I/O.

Two plans with the same shape do the same work, whatever rows and costs they were chosen by: running both would measure
noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from planner.advice import Advice

Node = Mapping[str, Any]

_WORK: Final = (
    "Node Type", "Alias", "Schema", "Relation Name", "Index Name", "CTE Name", "Function Name", "Subplan Name",
    "Join Type", "Parent Relationship", "Strategy", "Partial Mode", "Operation", "Command", "Scan Direction",
    "Workers Planned", "Single Copy", "Cache Key", "Cache Mode", "Inner Unique", "Sort Key", "Presorted Key",
    "Group Key", "Hash Cond", "Merge Cond", "Index Cond", "Recheck Cond", "Join Filter", "TID Cond",
)  # fmt: skip
"""What a step does. Filters are left out: their conditions may come in another order in a plan of the same work."""


class Plan:
    """One plan; ``root`` is the tree of EXPLAIN (FORMAT JSON) with the server's own names. ``execution_ms`` only with
    ANALYZE, else 0.0."""

    def __init__(self, explained: str | bytes | list[Any]) -> None:
        """Raises ValueError for what is not EXPLAIN's JSON."""
        try:
            found = json.loads(explained) if isinstance(explained, str | bytes) else explained
            self.root: dict[str, Any] = found[0]["Plan"]
            self.planning_ms = float(found[0].get("Planning Time", 0.0))
            self.execution_ms = float(found[0].get("Execution Time", 0.0))
            self.cost = float(self.root["Total Cost"])
            self.rows = float(self.root["Plan Rows"])
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"not a plan: {error!r}") from None

    def __repr__(self) -> str:
        return f"Plan({self.shape}, cost {self.cost:.0f}, rows {self.rows:.0f})"

    def __iter__(self) -> Iterator[Node]:
        """Every step, parents first."""
        return _walk(self.root)

    @cached_property
    def shape(self) -> str:
        """A digest of what the plan does, equal for plans that do the same work."""
        described = json.dumps(_described(self.root), sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(described.encode(errors="surrogatepass"), digest_size=8).hexdigest()

    @cached_property
    def joins(self) -> dict[frozenset[str], float]:
        """The expected rows of each join by the aliases that it joins; the outermost join of equal aliases counts."""
        found: dict[frozenset[str], float] = {}
        _joins(self.root, found)
        return found


_SWITCHED: Final = {
    "enable_nestloop": "Nested Loop",
    "enable_hashjoin": "Hash Join",
    "enable_mergejoin": "Merge Join",
    "enable_seqscan": "Seq Scan",
    "enable_indexscan": "Index Scan",
    "enable_indexonlyscan": "Index Only Scan",
    "enable_bitmapscan": "Bitmap Heap Scan",
}


def honoured(plan: Plan, default: Plan, advice: Advice) -> bool:
    """Whether ``plan``, made under ``advice``, shows that the server obeyed, or at least does not show that it did not.

    Rows show as the expected rows of a join; of a join looked up once per outer row, or cut short by a LIMIT, they do
    not, so one join that says what was told is enough. A method that is switched off and used all the same shows in
    the costs up to PostgreSQL 17 and as "Disabled" since. Other settings may have no effect, and then leave no trace.
    """
    if plan.shape != default.shape or abs(plan.cost - default.cost) > 1e-9 * max(plan.cost, default.cost, 1.0):
        return True
    if advice.rows:
        told = {frozenset(one.aliases): max(round(one.rows), 1) for one in advice.rows}
        shown = {aliases: round(rows) for aliases, rows in plan.joins.items() if aliases in told}
        if shown and not any(rows == told[aliases] for aliases, rows in shown.items()):
            return False
    off = {_SWITCHED.get(name) for name, value in advice.settings.items() if value == "off"}
    return not any(node["Node Type"] in off and not node.get("Disabled") for node in plan)


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _described(node: Node) -> list[Any]:
    own = {key: node[key] for key in _WORK if key in node}
    return [own, *(_described(child) for child in node.get("Plans", ()))]


def _joins(node: Node, found: dict[frozenset[str], float]) -> frozenset[str]:
    below: frozenset[str] = frozenset()
    for child in node.get("Plans", ()):
        aliases = _joins(child, found)
        # A sub-plan in an expression is no part of the join.
        if child.get("Parent Relationship") not in ("InitPlan", "SubPlan"):
            below |= aliases
    if "Alias" in node:
        below |= {node["Alias"]}
    if "Join Type" in node and len(below) > 1:
        found[below] = float(node["Plan Rows"])
    return below

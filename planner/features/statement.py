"""Features of a whole statement, for models that choose planner settings: its join, what is done with it, and the
default plan where the caller could ask for it.

The join is that of the block that joins most, by its flat features (`planner.features.flat`). What the server would do
without advice says much about which settings can help, but it takes an EXPLAIN to know, which the proxy does not run
before a statement: all features of the plan are 0 then, ``planned`` among them, and models are trained on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from planner.features import flat
from planner.features.flat import Estimates
from planner.features.keys import Array
from planner.graph import JoinKind, QueryBlock

VERSION: Final = "1"
Node = Mapping[str, Any]
"""A step of EXPLAIN (FORMAT JSON): the object under "Plan"."""
_STATEMENT: Final = (
    "group_by", "aggregates", "distinct", "order_by", "windows", "limit", "outer_joins", "sub_queries",
    "other_relations", "indexed_joins", "unindexed_joins",
)  # fmt: skip
_STEPS: Final = (
    "Nested Loop", "Hash Join", "Merge Join", "Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Sort",
    "Incremental Sort", "Materialize", "Memoize", "Aggregate", "Gather",
)  # fmt: skip
_PLAN: Final = (
    "planned",
    "cost",
    "rows",
    "startup_share",
    "steps",
    *(f"{step} steps" for step in _STEPS),
    *(f"{step} rows" for step in _STEPS),
    *(f"{step} cost_share" for step in _STEPS),
    "loops",
)
NAMES: Final[tuple[str, ...]] = (*flat.NAMES, *_STATEMENT, *(f"plan {name}" for name in _PLAN))
_MOST_STEPS: Final = 1000


class Statement:
    """The featurizer of this module, as `planner.features.featurizer` gives it."""

    name = "statement"
    version = VERSION
    names = NAMES

    def inputs(self, estimates: Estimates, masks: Sequence[int], plan: Node | None = None) -> dict[str, Array]:
        """``features`` float32 [n, `NAMES`] for the joins ``masks`` of the block, as a rule its largest one alone."""
        rest = np.array([*_statement(estimates), *described(plan)], dtype=np.float32)
        joins = flat.encode(estimates, masks)
        return {"features": np.hstack([joins, np.broadcast_to(rest, (len(joins), len(rest)))])}


def _statement(estimates: Estimates) -> list[float]:
    block = estimates.block
    outer = sum(edge.kind in (JoinKind.LEFT, JoinKind.FULL) for edge in block.edges)
    indexed, unindexed = _indexed(estimates, block)
    return [
        float(len(block.group_by)),
        float(len(block.aggregates)),
        float(block.distinct),
        float(block.order_by),
        float(block.windows),
        float(block.limit is not None),
        float(outer),
        float(sum(edge.block is not None for edge in block.edges)),
        float(sum(table is None for table in estimates.tables)),
        indexed,
        unindexed,
    ]


def _indexed(estimates: Estimates, block: QueryBlock) -> tuple[float, float]:
    """How many sides of the joins can be looked up by an index that begins with their column, and how many not."""
    found = [0.0, 0.0]
    for edge in block.edges:
        for column in (edge.left, edge.right) if edge.block is None else (edge.left,):
            table = estimates.tables[column.relation]
            leading = {index.columns[0] for index in table.indexes if index.columns} if table is not None else ()
            found[column.name not in leading] += 1
    return found[0], found[1]


def described(plan: Node | None) -> list[float]:
    """The features of a plan, `_PLAN`; zeros for None and for what is no plan. Costs and rows as logarithms."""
    nothing = [0.0] * len(_PLAN)
    if plan is None:
        return nothing
    try:
        steps = list(_steps(plan))
        total = max(float(plan["Total Cost"]), 1e-6)
        counts = dict.fromkeys(_STEPS, 0.0)
        rows = dict.fromkeys(_STEPS, 0.0)
        shares = dict.fromkeys(_STEPS, 0.0)
        loops = 0.0
        for step in steps:
            kind = str(step["Node Type"]).replace("Gather Merge", "Gather")
            below = step.get("Plans", ())
            if kind == "Nested Loop" and below:
                loops = max(loops, math.log1p(max(float(below[0]["Plan Rows"]), 0.0)))
            if kind in counts:
                counts[kind] += 1
                rows[kind] = max(rows[kind], math.log1p(max(float(step["Plan Rows"]), 0.0)))
                own = float(step["Total Cost"]) - sum(float(child["Total Cost"]) for child in below)
                shares[kind] += min(max(own / total, 0.0), 1.0)
        found = [
            1.0,
            math.log1p(total),
            math.log1p(max(float(plan["Plan Rows"]), 0.0)),
            min(max(float(plan["Startup Cost"]) / total, 0.0), 1.0),
            float(len(steps)),
            *counts.values(),
            *rows.values(),
            *shares.values(),
            loops,
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return nothing
    return found if all(map(math.isfinite, found)) else nothing


def _steps(plan: Node) -> Iterator[Node]:
    """All steps, at most `_MOST_STEPS`, without recursion: a plan can be deep."""
    waiting = [plan]
    for _ in range(_MOST_STEPS):
        if not waiting:
            return
        step = waiting.pop()
        yield step
        waiting.extend(step.get("Plans", ()))

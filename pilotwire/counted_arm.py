"""The advice from counting the sub-plans of this very statement: what a perfect cardinality model would say of it.

Joins PostgreSQL counts in a moment are counted (`training.counting`), the smallest first, within a time limit that they
all share; joins that take too long are left out, and then the server's own estimate of them stands.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from planner.advice import Advice, RowsAdvice
from planner.estimates import BlockEstimates
from planner.graph import NO_PARAMETERS
from planner.resolve import ResolvedBlock, resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.subplans import connected, join_pairs
from training.counting import BlockCounts, Count, selects, source_of

ONE_COUNT_SECONDS: Final = 5.0
LEAST_SECONDS: Final = 0.001
_SETTINGS: Final = (
    "SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL geqo = off;"
    " SET LOCAL join_collapse_limit = 20; SET LOCAL from_collapse_limit = 20"
)


@dataclass(frozen=True, slots=True)
class _SubPlan:
    aliases: tuple[str, ...]
    native: float
    count: Count


async def counted_advice(
    connection: Any, sql: str, snapshot: Snapshot, path: Sequence[str], seconds: float
) -> Advice | None:
    """Counts within ``seconds`` over an asyncpg connection, read-only; None where nothing can be counted or stated."""
    try:
        blocks = _blocks(sql, snapshot, tuple(path) or snapshot.default_search_path)
        sub_plans = [sub_plan for block in blocks for sub_plan in _sub_plans(block, sql, snapshot)]
    except Exception:
        # An odd statement, odd statistics: the others are counted all the same.
        return None
    end = time.monotonic() + seconds
    rows: list[RowsAdvice] = []
    for sub_plan in sorted(sub_plans, key=lambda one: (len(one.aliases), one.native)):
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            break
        found = await _count(connection, sub_plan.count, min(left, ONE_COUNT_SECONDS))
        if found is not None:
            rows.append(RowsAdvice(sub_plan.aliases, max(found, 1.0)))
    if not rows:
        return None
    return Advice(
        tuple(rows),
        relations=max(len(block.block.relations) for block in blocks),
        join_pairs=max(join_pairs(block.block) for block in blocks),
    )


def _blocks(sql: str, snapshot: Snapshot, path: tuple[str, ...]) -> list[ResolvedBlock]:
    """The blocks whose joins can be named: a hint reaches every block where its aliases are found."""
    graph = read(sql).graph
    if graph is None:
        return []
    resolved = resolve(graph, snapshot, path)
    if any(block.block.set_operation == "union all" for block in resolved.blocks):
        return []
    aliases = list(resolved.graph.aliases)
    return [
        block
        for block in resolved.blocks
        if len(block.block.relations) > 1
        and all(aliases.count(relation.alias) == 1 for relation in block.block.relations)
    ]


def _sub_plans(block: ResolvedBlock, sql: str, snapshot: Snapshot) -> list[_SubPlan]:
    tree = source_of(block.block, selects(sql))
    if tree is None:
        return []
    estimates = BlockEstimates(block, snapshot, NO_PARAMETERS)
    counts = BlockCounts(tree, block.block, block.tables)
    found = []
    for mask in connected(block.block, estimates):
        count = counts.count(mask)
        if count is not None:
            aliases = tuple(one.alias for one in block.block.relations if mask & one.bit)
            found.append(_SubPlan(aliases, estimates.rows(mask), count))
    return found


async def _count(connection: Any, count: Count, seconds: float) -> float | None:
    """The factored form passes over each table once, whatever the join returns, so it comes first."""
    for form in (count.factored, count.plain):
        if form is None:
            continue
        try:
            async with connection.transaction(readonly=True):
                await connection.execute(f"{_SETTINGS}; SET LOCAL statement_timeout = {max(round(seconds * 1000), 1)}")
                return float(await connection.fetchval(form))
        except asyncpg.PostgresConnectionError:
            raise
        except asyncpg.PostgresError:
            continue
    return None

"""What the server estimates for a query's tables and joins, to compare `planner.estimates` with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from planner.estimates import BlockEstimates
from planner.graph import QueryBlock
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read

SETTINGS = (
    "SET max_parallel_workers_per_gather = 0; SET enable_nestloop = off; SET enable_memoize = off; SET geqo = off;"
    " SET join_collapse_limit = 30; SET from_collapse_limit = 30; SET jit = off"
)
"""Plans whose rows are those of whole sets: no inner side of a nested loop looks up only a part."""


@dataclass(frozen=True)
class Compared:
    """One table or join of a query: how far the two estimates are apart, as the natural logarithm of ours / theirs."""

    query: str
    aliases: tuple[str, ...]
    ours: float
    server: float

    @property
    def log_ratio(self) -> float:
        return math.log(self.ours / self.server)


def estimates_of(text: str, snapshot: Snapshot) -> BlockEstimates:
    """Of the statement's outermost block."""
    reading = read(text)
    assert reading.graph is not None, reading.reason
    resolved = resolve(reading.graph, snapshot, snapshot.default_search_path)
    return BlockEstimates(resolved.blocks[0], snapshot, {})


async def compare(connection: Any, text: str, snapshot: Snapshot) -> list[Compared]:
    """Every scan and join of the server's plan beside our estimate of the same set of relations."""
    estimates = estimates_of(text, snapshot)
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}"))[0]["Plan"]
    return [
        Compared(text, aliases, estimates.rows(mask_of(estimates.block, aliases)), rows)
        for aliases, rows in _sets(plan)
        if all(alias in {relation.alias for relation in estimates.block.relations} for alias in aliases)
    ]


def mask_of(block: QueryBlock, aliases: Sequence[str]) -> int:
    places = {relation.alias: relation.index for relation in block.relations}
    return sum(1 << places[alias] for alias in aliases)


def _sets(plan: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    kind = plan["Node Type"]
    if "Alias" in plan and kind.endswith("Scan"):
        yield (plan["Alias"],), float(plan["Plan Rows"])
    elif kind in {"Hash Join", "Merge Join", "Nested Loop"} and plan.get("Join Type") == "Inner":
        yield tuple(sorted(_aliases(plan))), float(plan["Plan Rows"])
    for child in plan.get("Plans", ()):
        yield from _sets(child)


def _aliases(plan: dict[str, Any]) -> set[str]:
    found = {plan["Alias"]} if "Alias" in plan else set()
    for child in plan.get("Plans", ()):
        found |= _aliases(child)
    return found


def describe(compared: Sequence[Compared]) -> str:
    """The distribution of |log ratio|."""
    if not compared:
        return "none"
    sizes = sorted(abs(item.log_ratio) for item in compared)
    at = {share: sizes[min(int(share * len(sizes)), len(sizes) - 1)] for share in (0.5, 0.9, 0.99)}
    parts = " ".join(f"p{share * 100:.0f} {size:.4f}" for share, size in at.items())
    return f"{len(sizes)} compared, |log ratio| {parts} max {sizes[-1]:.3f}"


def share_within(compared: Sequence[Compared], factor: float) -> float:
    """Which share is within that factor of the server's estimate."""
    return sum(1 for item in compared if abs(item.log_ratio) <= math.log(factor)) / max(len(compared), 1)

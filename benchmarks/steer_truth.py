"""True cardinalities of the measured queries' sub-plans: what a perfect model would say, and how wrong the others are.

The sub-plans, their native estimates and the text of the hints come from the planner itself, and the counts from the
same counting that training uses, so nothing but the numbers differs from what the proxy delivers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.steer_sets import DataSet, Query
from planner.advice import Advice, RowsAdvice
from planner.dialects import hint_plan
from planner.estimates import BlockEstimates
from planner.graph import NO_PARAMETERS
from planner.planner import Planner
from planner.resolve import resolve
from planner.sql import read
from planner.subplans import connected, join_pairs
from training.counting import BlockCounts, Count, selects, source_of
from training.evaluate.measure import percentile, q_error
from training.labels import Labeller, digest
from training.training_set import TrainingSet

COUNT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class SubPlan:
    """One join of one query: PostgreSQL's estimate, the model's (the same where it abstains), and the truth."""

    query: str
    aliases: tuple[str, ...]
    native: float
    model: float
    true: float


@dataclass(slots=True)
class Truth:
    """``hints`` are the comments that state the true rows, by query; ``missing`` sub-plans could not be counted in
    time. ``reasons`` say by query why the planner would leave it alone, "" for advice."""

    hints: dict[str, str] = field(default_factory=dict)
    sub_plans: list[SubPlan] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    query: Query
    block: int
    mask: int
    aliases: tuple[str, ...]
    native: float
    relations: int
    pairs: float
    count: Count


def q_errors(sub_plans: Sequence[SubPlan]) -> dict[str, tuple[float, float]]:
    """Percentiles of the q-error (native, model); empty joins are left out, as nobody can say how far off they are."""
    counted = [one for one in sub_plans if one.true >= 1]
    if not counted:
        return {}
    native = [q_error(one.native, one.true) for one in counted]
    model = [q_error(one.model, one.true) for one in counted]
    return {f"p{at}": (percentile(native, at), percentile(model, at)) for at in (50, 90, 99)} | {
        "max": (max(native), max(model))
    }


async def find_truth(dsn: str, models: Path, data: DataSet, labels: Path, budget: float, report: Any) -> Truth:
    """Count within `budget` seconds; counts of an earlier run in the training set `labels` are used again."""
    found = Truth()
    async with await Planner.connect(dsn, models=models) as planner:
        wanted: list[_Wanted] = []
        model: dict[tuple[str, int, int], float] = {}
        for query in data.queries:
            decision = await planner.advise(query.sql)
            found.reasons[query.name] = decision.reason
            for known in decision.estimates:
                if known.rows is not None and not decision.reason:
                    model[query.name, known.block, known.mask] = known.rows
            wanted += await asyncio.to_thread(_sub_plans, query, planner)
        snapshot = planner.snapshot
    with TrainingSet(labels) as kept:
        kept.belongs_to(snapshot.database, snapshot.schema_hash)
        labeller = Labeller(
            dsn,
            kept,
            budget=budget,
            timeout=COUNT_SECONDS,
            progress=lambda state: report(
                f"{data.name}: counting true rows {state.wanted - state.left}/{state.wanted}"
            ),
        )
        rows = (await labeller.run(one.count for one in wanted)).rows
    advice: dict[str, list[RowsAdvice]] = {}
    shape: dict[str, tuple[int, float]] = {}
    for one in wanted:
        true = rows.get(digest(one.count))
        if true is None:
            found.missing += 1
            continue
        name = one.query.name
        predicted = model.get((name, one.block, one.mask), one.native)
        found.sub_plans.append(SubPlan(name, one.aliases, one.native, predicted, true))
        advice.setdefault(name, []).append(RowsAdvice(one.aliases, max(true, 1.0)))
        relations, pairs = shape.get(name, (0, 0.0))
        shape[name] = max(relations, one.relations), max(pairs, one.pairs)
    for name, stated in advice.items():
        relations, pairs = shape[name]
        found.hints[name] = hint_plan.render(Advice(tuple(stated), relations=relations, join_pairs=pairs)).prefix
    return found


def _sub_plans(query: Query, planner: Planner) -> list[_Wanted]:
    """The sub-plans of a query whose rows can be counted and stated."""
    reading = read(query.sql)
    if reading.graph is None:
        return []
    snapshot = planner.snapshot
    resolved = resolve(reading.graph, snapshot, ("public",))
    aliases = list(resolved.graph.aliases)
    trees = selects(query.sql)
    found = []
    for block in resolved.blocks:
        tree = source_of(block.block, trees)
        if tree is None or any(aliases.count(relation.alias) > 1 for relation in block.block.relations):
            continue
        estimates = BlockEstimates(block, snapshot, NO_PARAMETERS)
        counts = BlockCounts(tree, block.block, block.tables, resolved.graph.blocks)
        for mask in connected(block.block, estimates):
            count = counts.count(mask)
            if count is None:
                continue
            names = tuple(one.alias for one in block.block.relations if mask & one.bit)
            found.append(
                _Wanted(
                    query,
                    block.block.index,
                    mask,
                    names,
                    estimates.rows(mask),
                    len(block.block.relations),
                    join_pairs(block.block),
                    count,
                )
            )
    return found

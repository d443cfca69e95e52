"""True cardinalities of the evaluated statements' sub-plans: what a perfect model would say, and how wrong others are.

The sub-plans and their native estimates come from the planner itself, and the counts from the same counting that
training uses, so nothing but the numbers differs from what serving delivers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner.advice import Advice, RowsAdvice
from planner.estimates import BlockEstimates
from planner.graph import NO_PARAMETERS
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.subplans import connected, join_pairs
from training.counting import BlockCounts, Count, selects, source_of
from training.evaluate.cases import Case
from training.labels import Labeller, Labels, digest
from training.training_set import TrainingSet

Key = tuple[str, int, int]
"""A sub-plan: the case's name, the block, the set of relations."""


@dataclass(slots=True)
class SubPlan:
    """One join of one statement: PostgreSQL's estimate by our arithmetic, the truth, and each model's rows by the
    model's name (PostgreSQL's estimate where it abstains; ``abstained`` names those models)."""

    case: str
    block: int
    mask: int
    aliases: tuple[str, ...]
    native: float
    true: float
    predicted: dict[str, float] = field(default_factory=dict)
    abstained: list[str] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return self.case, self.block, self.mask


@dataclass(slots=True)
class Truth:
    """``advice`` states the true rows, by case; ``missing`` sub-plans could not be counted in time, ``uncountable``
    have no count. ``sha256`` is that of all counts."""

    advice: dict[str, Advice] = field(default_factory=dict)
    sub_plans: list[SubPlan] = field(default_factory=list)
    missing: int = 0
    uncountable: int = 0
    seconds: float = 0.0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    case: str
    block: int
    mask: int
    aliases: tuple[str, ...]
    native: float
    relations: int
    pairs: float
    count: Count
    hinted: bool
    """Whether a hint with these aliases means this sub-plan alone."""


async def find_truth(
    truth: Truth,
    dsn: str,
    cases: Sequence[Case],
    snapshot: Snapshot,
    search_path: tuple[str, ...],
    kept: Path,
    *,
    budget: float,
    count_seconds: float,
    max_age: float | None = None,
    progress: Callable[[Labels], None] | None = None,
) -> None:
    """Count within ``budget`` seconds, each count within ``count_seconds``, and fill in ``truth``, also when it is
    interrupted or the database goes away (TrainingError). What was counted before is found in the training set
    ``kept``, and what is counted is kept there. Counts older than ``max_age`` seconds are made anew."""
    counted = Labels()

    def show(labels: Labels) -> None:
        nonlocal counted
        counted = labels
        if progress is not None:
            progress(labels)

    wanted: list[_Wanted] = []
    for case in cases:
        found, uncountable = _sub_plans(case, snapshot, search_path)
        truth.uncountable += uncountable
        wanted += found
    with TrainingSet(kept) as labels:
        labels.belongs_to(snapshot.database, snapshot.schema_hash, max_age=max_age)
        labeller = Labeller(dsn, labels, budget=budget, timeout=count_seconds, progress=show)
        try:
            await labeller.run(one.count for one in wanted)
        finally:
            truth.seconds = counted.seconds
            truth.sha256 = hashlib.sha256(json.dumps(counted.rows, sort_keys=True).encode()).hexdigest()
            _join(truth, wanted, counted.rows)


def _join(truth: Truth, wanted: Sequence[_Wanted], rows: Mapping[str, float]) -> None:
    advice: dict[str, list[RowsAdvice]] = {}
    shape: dict[str, tuple[int, float]] = {}
    for one in wanted:
        true = rows.get(digest(one.count))
        if true is None:
            truth.missing += 1
            continue
        truth.sub_plans.append(SubPlan(one.case, one.block, one.mask, one.aliases, one.native, true))
        if not one.hinted:
            continue
        advice.setdefault(one.case, []).append(RowsAdvice(one.aliases, max(true, 1.0)))
        relations, pairs = shape.get(one.case, (0, 0.0))
        shape[one.case] = max(relations, one.relations), max(pairs, one.pairs)
    for name, stated in advice.items():
        relations, pairs = shape[name]
        truth.advice[name] = Advice(tuple(stated), relations=relations, join_pairs=pairs)


def _sub_plans(case: Case, snapshot: Snapshot, search_path: tuple[str, ...]) -> tuple[list[_Wanted], int]:
    """The sub-plans of a statement whose rows can be counted and stated, and how many cannot."""
    reading = read(case.sql)
    if reading.graph is None:
        return [], 0
    resolved = resolve(reading.graph, snapshot, search_path)
    aliases = list(resolved.graph.aliases)
    trees = selects(case.sql)
    found: list[_Wanted] = []
    uncountable = 0
    for block in resolved.blocks:
        relations = block.block.relations
        if len(relations) < 2:
            continue
        hinted = all(aliases.count(relation.alias) == 1 for relation in relations)
        estimates = BlockEstimates(block, snapshot, NO_PARAMETERS)
        masks = connected(block.block, estimates)
        tree = source_of(block.block, trees) if masks else None
        counts = BlockCounts(tree, block.block, block.tables, resolved.graph.blocks) if tree is not None else None
        for mask in masks:
            count = counts.count(mask) if counts is not None else None
            if count is None:
                uncountable += 1
                continue
            names = tuple(one.alias for one in relations if mask & one.bit)
            pairs = join_pairs(block.block)
            native = max(estimates.rows(mask), 1.0)
            found.append(
                _Wanted(case.name, block.block.index, mask, names, native, len(relations), pairs, count, hinted)
            )
    return found, uncountable

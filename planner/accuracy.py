"""How good predictions are, all the time and for nothing: what a join was predicted to give against the rows that the
server said it gave.

The number in a statement's CommandComplete is that of its join where the statement gives all of the join's rows and
nothing else: inner joins without grouping, DISTINCT or functions that make rows, or a UNION ALL of such. Other blocks
may only stand where they take no rows away: in the list of outputs, or in a CTE or sub-query that nobody reads. With a
LIMIT the number is true as long as fewer rows come than it allows, but then only predictions that were too high would
be counted; so those are left out.

For the others the q-error, max(predicted / actual, actual / predicted) with at least one row each (Moerkotte, Neumann
and Steidl, VLDB 2009), is counted for the model and for the server's own estimate, so that they can be compared. What
one number cannot tell, the joins inside a statement, is told by a sample (`planner.auditing`), for which the statements
decided about last are kept here.

Bounded: predictions of the statements decided about last. Thread-safe.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from planner.advise import Outcome
from planner.counters import Counters
from planner.graph import Command, JoinKind, QueryBlock, QueryGraph
from planner.lru import Lru
from planner.memory.entries import Facts
from planner.plan_rows import harvestable
from planner.resolve import ResolvedBlock

MAX_PREDICTIONS: Final = 10_000
MAX_SAMPLES: Final = 200
MAX_SAMPLE_BYTES: Final = 65_536
"""Text and parameters of a statement that may become a sample."""
Q_ERROR_BOUNDS: Final[tuple[float, ...]] = (1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
"""Upper bounds of the histograms' buckets, the same as in `proxy.declared_metrics`."""
ROW_MAKERS: Final = frozenset({
    "generate_series", "generate_subscripts", "json_array_elements", "json_array_elements_text", "json_each",
    "json_each_text", "json_object_keys", "jsonb_array_elements", "jsonb_array_elements_text", "jsonb_each",
    "jsonb_each_text", "jsonb_object_keys", "jsonb_path_query", "regexp_matches", "regexp_split_to_table",
    "string_to_table", "unnest",
})  # fmt: skip
"""Functions of the server's own that give several rows where they stand among the outputs."""
_TELLING: Final = frozenset({Command.SELECT, Command.CREATE_TABLE_AS, Command.COPY})
"""Commands that say how many rows their query gave."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A statement and what was predicted of its joins: rows by the model and by the server, by set of relations.
    ``params`` as in `planner.memory.keys.canonical_params`."""

    key: str
    database: str
    search_path: str
    text: str
    params: str
    block: ResolvedBlock
    predicted: Mapping[int, tuple[float, float]]


class Accuracy:
    """Predictions by the key that their executions are told under."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lock = threading.Lock()
        self._predicted: Lru[str, tuple[float, float]] = Lru(MAX_PREDICTIONS)
        self._samples: Lru[str, Sample] = Lru(MAX_SAMPLES)

    def decided(self, facts: Facts, graph: QueryGraph, outcome: Outcome) -> None:
        """A decision was computed for the statement; some microseconds for each join."""
        found = root(graph, outcome)
        one = sample(facts, graph, outcome)
        with self._lock:
            if found is not None:
                self._predicted.put(facts.key, found)
            if one is not None:
                self._samples.put(facts.key, one)

    def observed(self, key: str, rows: int) -> None:
        """An execution ended with so many rows."""
        if rows < 0:
            return
        with self._lock:
            found = self._predicted.get(key)
        if found is not None:
            self._count("root_q_error", found, rows)

    def pick(self) -> Sample | None:
        """One of the statements that were decided about lately, any of them; it is not given twice."""
        with self._lock:
            waiting = [self._samples.pop_oldest() for _ in range(len(self._samples))]
            chosen = waiting.pop(random.randrange(len(waiting))) if waiting else None  # noqa: S311
            for one in waiting:
                self._samples.put(one.key, one)
        return chosen

    def audited(self, one: Sample, rows: Mapping[int, float]) -> int:
        """A sample was run, and its joins gave so many rows; how many of them had been predicted."""
        told = one.predicted.keys() & rows.keys()
        for mask in told:
            self._count("sub_plan_q_error", one.predicted[mask], rows[mask])
        return len(told)

    def _count(self, name: str, predicted: tuple[float, float], rows: float) -> None:
        model, server = predicted
        self._counters.observe_in(name, q_error(model, rows), Q_ERROR_BOUNDS)
        self._counters.observe_in(f"{name}_server", q_error(server, rows), Q_ERROR_BOUNDS)


def root(graph: QueryGraph, outcome: Outcome) -> tuple[float, float] | None:
    """The rows that the model and the server expect of the whole statement; None where a model said nothing of them, or
    where the rows a client gets are others."""
    if graph.command not in _TELLING or not graph.functions.isdisjoint(ROW_MAKERS):
        return None
    first = graph.blocks[0]
    # A condition with a query in it takes rows away that nobody predicted.
    if len(graph.blocks) > 1 + len(first.arms) and any(
        one.opaque for block in graph.blocks for one in block.predicates
    ):
        return None
    if not first.arms:
        return _of_block(first, outcome)
    if not _whole(first) or any(graph.blocks[arm].set_operation != "union all" for arm in first.arms):
        return None
    model = server = 0.0
    for arm in first.arms:
        found = _of_block(graph.blocks[arm], outcome)
        if found is None:
            return None
        model, server = model + found[0], server + found[1]
    return model, server


def _of_block(block: QueryBlock, outcome: Outcome) -> tuple[float, float] | None:
    if block.arms or not _whole(block):
        return None
    for one in outcome.sub_plans:
        if one.block == block.index and one.mask == block.everything and one.rows is not None:
            return one.rows, one.native
    return None


def _whole(block: QueryBlock) -> bool:
    """Whether all rows of the block's join come out, and nothing else."""
    return (
        not (block.group_by or block.aggregates or block.distinct or block.having)
        and block.limit is None
        and block.offset is None
        and all(edge.kind is JoinKind.INNER for edge in block.edges)
        and not block.outer_predicates
    )


def sample(facts: Facts, graph: QueryGraph, outcome: Outcome) -> Sample | None:
    """The statement as one that may be run to see how many rows its joins give; None where its plan would not tell, or
    where no model predicted anything of it."""
    if outcome.resolved is None or len(facts.text) + len(facts.params) > MAX_SAMPLE_BYTES:
        return None
    for block in outcome.resolved.blocks:
        predicted = {
            one.mask: (one.rows, one.native)
            for one in outcome.sub_plans
            if one.block == block.block.index and one.rows is not None
        }
        if predicted and harvestable(graph, block):
            return Sample(facts.key, facts.database, facts.search_path, facts.text, facts.params, block, predicted)
    return None


def q_error(estimated: float, actual: float) -> float:
    """1.0 or more."""
    estimated, actual = max(estimated, 1.0), max(actual, 1.0)
    return max(estimated / actual, actual / estimated)

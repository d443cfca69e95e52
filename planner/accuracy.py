"""How good predictions are, all the time and for nothing: what a join was predicted to give against the rows that the
server said it gave.

The number in a statement's CommandComplete is that of its join where the statement gives all of the join's rows and
nothing else: one block of inner joins without grouping, DISTINCT, LIMIT, or functions that make rows. For those the
q-error, max(predicted / actual, actual / predicted) with at least one row each (Moerkotte, Neumann and Steidl, VLDB
2009), is counted for the model and for the server's own estimate, so that they can be compared.

Bounded: predictions of the statements decided about last. Thread-safe.
"""

from __future__ import annotations

import threading
from typing import Final

from planner.advise import Outcome
from planner.counters import Counters
from planner.graph import Command, JoinKind, QueryGraph
from planner.lru import Lru

MAX_PREDICTIONS: Final = 10_000
Q_ERROR_BOUNDS: Final[tuple[float, ...]] = (1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
"""Upper bounds of the histograms' buckets, the same as in `proxy.planner_metrics`."""
ROW_MAKERS: Final = frozenset({
    "generate_series", "generate_subscripts", "json_array_elements", "json_array_elements_text", "json_each",
    "json_each_text", "json_object_keys", "jsonb_array_elements", "jsonb_array_elements_text", "jsonb_each",
    "jsonb_each_text", "jsonb_object_keys", "jsonb_path_query", "regexp_matches", "regexp_split_to_table",
    "string_to_table", "unnest",
})  # fmt: skip
"""Functions of the server's own that give several rows where they stand among the outputs."""


class Accuracy:
    """Predictions by the key that their executions are told under."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lock = threading.Lock()
        self._predicted: Lru[str, tuple[float, float]] = Lru(MAX_PREDICTIONS)

    def decided(self, key: str, graph: QueryGraph, outcome: Outcome) -> None:
        """A decision was computed for the statement with this key; some microseconds."""
        found = root(graph, outcome)
        if found is not None:
            with self._lock:
                self._predicted.put(key, found)

    def observed(self, key: str, rows: int) -> None:
        """An execution ended with so many rows."""
        if rows < 0:
            return
        with self._lock:
            found = self._predicted.get(key)
        if found is not None:
            model, server = found
            self._counters.observe_in("root_q_error", q_error(model, rows), Q_ERROR_BOUNDS)
            self._counters.observe_in("root_q_error_server", q_error(server, rows), Q_ERROR_BOUNDS)


def root(graph: QueryGraph, outcome: Outcome) -> tuple[float, float] | None:
    """The rows that the model and the server expect of the whole statement; None where a model said nothing of them, or
    where the rows a client gets are others."""
    block = graph.blocks[0]
    plain = (
        graph.command is Command.SELECT
        and len(graph.blocks) == 1
        and not (block.group_by or block.aggregates or block.distinct or block.having or block.set_operation)
        and block.limit is None
        and block.offset is None
        and all(edge.kind is JoinKind.INNER for edge in block.edges)
        and graph.functions.isdisjoint(ROW_MAKERS)
    )
    if not plain:
        return None
    for sub_plan in outcome.sub_plans:
        if sub_plan.block == 0 and sub_plan.mask == block.everything and sub_plan.rows is not None:
            return sub_plan.rows, sub_plan.native
    return None


def q_error(estimated: float, actual: float) -> float:
    """1.0 or more."""
    estimated, actual = max(estimated, 1.0), max(actual, 1.0)
    return max(estimated / actual, actual / estimated)

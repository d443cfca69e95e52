"""Statements that the proxy saw: the table ``query_metrics`` of its store.

Executions are samples; a statement's text and values are there only where the proxy may keep literals
(``store_literals``). Those without are counted, so that nobody wonders where they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from planner.memory.records import Execution
from planner.memory.store import open_store
from planner.memory.store.errors import StoreError
from training.errors import TrainingError
from training.sources import Told, take
from training.sources.parameters import bound
from training.training_set import Statement

STORE: Final = "store"
MOST_EXECUTIONS: Final = 100_000


def read_store(url: str, database: str, *, since: float = 0.0, limit: int = MOST_EXECUTIONS) -> Told:
    """The statements on that database since then (seconds since the epoch), the latest executions first considered.
    Raises TrainingError when the store cannot be read."""
    try:
        with open_store(url, migrate=False) as store:
            executions = store.executions(since, database=database, limit=limit, newest=True)
    except (StoreError, OSError, ValueError) as error:
        raise TrainingError(f"what the proxy saw cannot be read: {' '.join(str(error).split())}") from None
    return statements_of(executions)


def statements_of(executions: list[Execution]) -> Told:
    """One statement for each text with values; ``calls`` and ``total_ms`` are those of the samples."""
    told = Told()
    kept: dict[str, Statement] = {}
    for execution in executions:
        if execution.failed:
            continue
        if not execution.text:
            told.left_out["its text is not kept (store_literals is off)"] += 1
            continue
        text: str | None = execution.text
        if execution.params:
            values = _values(execution.params)
            text = bound(execution.text, values) if values is not None else None
        if text is None:
            told.leave_out(execution.text, "its values cannot be read")
            continue
        statement = Statement(
            text,
            STORE,
            total_ms=execution.took_ms,
            rows=float(execution.rows),
            cost=execution.estimated_cost,
            decision=execution.decision,
            model=execution.model,
            seen=execution.at,
        )
        known = kept.get(statement.key)
        if known is None:
            kept[statement.key] = statement
        else:
            kept[statement.key] = replace(
                known, calls=known.calls + 1, total_ms=known.total_ms + statement.total_ms,
                seen=max(known.seen, statement.seen),
            )  # fmt: skip
    for statement in kept.values():
        take(told, statement)
    return told


def _values(params: str) -> Mapping[int, str | None] | None:
    """A JSON list of texts and nulls, by number from 1."""
    try:
        found = json.loads(params)
    except ValueError:
        return None
    if not isinstance(found, list) or not all(value is None or isinstance(value, str) for value in found):
        return None
    return dict(enumerate(found, 1))

"""Running a statement in several kinds (plain, steered) in turn.

Statements go by the simple protocol, as psql sends them, and every row comes back to this process. The first run of
each kind is not counted; it brings the pages into memory and has the decision made. Then they take turns, and which of
them goes first changes too, so that a machine that slows down for a while hurts all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeAlias

import asyncpg

from training.evaluate.measure import Series

Run: TypeAlias = tuple[Any, str]
"""An asyncpg connection and the text to send over it."""


async def run_once(connection: Any, sql: str, limit_ms: float) -> tuple[float, str]:
    """One run: its milliseconds and its completion tag; ``limit_ms`` and "" when statement_timeout ended it."""
    started = time.perf_counter()
    try:
        tag = await connection.execute(sql)
    except asyncpg.QueryCanceledError:
        return limit_ms, ""
    return (time.perf_counter() - started) * 1000, str(tag)


async def interleave(kinds: Mapping[str, Run], rounds: int, limit_ms: float) -> dict[str, Series]:
    """`rounds` counted runs of each kind after one uncounted. Errors other than the time limit pass through.

    A kind whose first run hits the limit is not run again: all of its runs count as the limit.
    """
    found = {name: Series() for name in kinds}
    for name, (connection, sql) in kinds.items():
        found[name].first, found[name].tag = await run_once(connection, sql, limit_ms)
    order = list(kinds)
    for _ in range(rounds):
        for name in order:
            series = found[name]
            took = limit_ms
            if series.tag:
                connection, sql = kinds[name]
                took, _ = await run_once(connection, sql, limit_ms)
            series.times.append(took)
            series.timeouts += took >= limit_ms
        order.append(order.pop(0))
    return found

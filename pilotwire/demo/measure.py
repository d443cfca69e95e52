"""Running a statement in several kinds (plain, steered) in turn, and adding up what came of many statements.

Statements go by the simple protocol, as psql sends them, and every row comes back to this process. The first run of
each kind is not counted; it brings the pages into memory and has the decision made. Then they take turns, and which of
them goes first changes too, so that a machine that slows down for a while hurts all.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import asyncpg

Run: TypeAlias = tuple[Any, str]
"""An asyncpg connection and the text to send over it."""
SLACK_MS: Final = 5.0
"""What takes less is not counted as slower: such differences are the clock's and the scheduler's."""


@dataclass(slots=True)
class Series:
    """One kind of run of one statement: ``times`` are the counted runs' milliseconds, ``first`` the uncounted one's.

    A run that statement_timeout ended counts as that limit. ``tag`` is the completion tag with the number of rows, ""
    when no run was completed.
    """

    times: list[float] = field(default_factory=list)
    first: float = 0.0
    timeouts: int = 0
    tag: str = ""

    @property
    def ms(self) -> float:
        return statistics.median(self.times)


@dataclass(frozen=True, slots=True)
class Summary:
    """What many statements came to; times are milliseconds, factors plain over steered.

    ``total_without_two`` leaves out the two statements with the largest plain time. ``over_1_1`` and ``over_2`` count
    statements that got slower by more than that factor and then take more than `SLACK_MS`; ``worst`` is the largest
    such factor of all, 1 when none got slower.
    """

    statements: int
    plain_ms: float
    steered_ms: float
    total: float
    total_without_two: float
    geometric_mean: float
    percentiles: dict[str, tuple[float, float]]
    over_1_1: int
    over_2: int
    worst: float
    timeouts: int


def summarise(timings: Sequence[tuple[float, float]], timeouts: int = 0) -> Summary:
    """Of pairs (plain, steered), at least one."""
    plain = [pair[0] for pair in timings]
    steered = [pair[1] for pair in timings]
    largest_last = sorted(timings)
    rest = largest_last[:-2] or largest_last
    slower = [after / before for before, after in timings if after > max(before, SLACK_MS)]
    return Summary(
        statements=len(timings),
        plain_ms=sum(plain),
        steered_ms=sum(steered),
        total=sum(plain) / sum(steered),
        total_without_two=sum(pair[0] for pair in rest) / sum(pair[1] for pair in rest),
        geometric_mean=math.exp(statistics.fmean(math.log(before / after) for before, after in timings)),
        percentiles={f"p{at}": (percentile(plain, at), percentile(steered, at)) for at in (50, 95, 99)},
        over_1_1=sum(factor > 1.1 for factor in slower),
        over_2=sum(factor > 2 for factor in slower),
        worst=max([1.0, *slower]),
        timeouts=timeouts,
    )


def percentile(values: Sequence[float], at: float) -> float:
    """With linear interpolation between the two nearest, as numpy does it."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * at / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


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

"""Running a statement plain and steered in turn, through the same proxy, and adding up what came of many.

Plain is not past the proxy but through it with ``pilotwire.mode = 'off'``: so the two differ in the advice alone.
Statements go by the simple protocol, as psql sends them, and every row comes back to this process. The first run of
either kind is not counted; it brings the pages into memory and has the decision made. Then they alternate, and which
of the two goes first alternates too, so that a machine that slows down for a while hurts both.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

SLACK_MS: Final = 5.0
"""A statement counts as slower only above this: the rest is the clock's and the scheduler's noise."""


@dataclass(slots=True)
class Timings:
    """Milliseconds of every counted run, and of the uncounted first ones. ``limit_ms`` stands for a run that was cut
    off by statement_timeout. ``rows`` is what the runs returned; the two kinds must agree."""

    plain: list[float] = field(default_factory=list)
    steered: list[float] = field(default_factory=list)
    first_plain: float = 0.0
    first_steered: float = 0.0
    plain_timeouts: int = 0
    steered_timeouts: int = 0
    rows_agree: bool = True

    @property
    def plain_ms(self) -> float:
        return statistics.median(self.plain)

    @property
    def steered_ms(self) -> float:
        return statistics.median(self.steered)

    @property
    def factor(self) -> float:
        """How many times faster: above 1 is a gain."""
        return self.plain_ms / self.steered_ms

    @property
    def timed_out(self) -> bool:
        return self.plain_timeouts > 0 or self.steered_timeouts > 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What many statements came to; times are milliseconds, factors plain over steered.

    ``total_without_two`` leaves out the two statements with the largest plain time. ``over_1_1`` and ``over_2`` count
    statements that got slower by more than that factor and by more than `SLACK_MS`; ``worst`` is the largest such
    factor of all, 1 when none got slower.
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
    slower = [after / before for before, after in timings if after - before > SLACK_MS]
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


async def interleave(plain: Any, steered: Any, sql: str, rounds: int, limit_ms: float) -> Timings:
    """`rounds` counted runs of each kind after one uncounted. Errors other than the time limit pass through.

    A kind whose first run hits the limit is not run again: all of its runs count as the limit.
    """
    found = Timings()
    found.first_plain, tag = await run_once(plain, sql, limit_ms)
    found.first_steered, steered_tag = await run_once(steered, sql, limit_ms)
    hopeless = {id(found.plain): tag == "", id(found.steered): steered_tag == ""}
    found.rows_agree = not (tag and steered_tag) or tag == steered_tag
    for number in range(rounds):
        sides = [(plain, found.plain), (steered, found.steered)]
        for connection, times in sides if number % 2 == 0 else reversed(sides):
            if hopeless[id(times)]:
                times.append(limit_ms)
                continue
            took, _ = await run_once(connection, sql, limit_ms)
            times.append(took)
    found.plain_timeouts = sum(took >= limit_ms for took in found.plain)
    found.steered_timeouts = sum(took >= limit_ms for took in found.steered)
    return found

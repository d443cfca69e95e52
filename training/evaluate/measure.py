"""Figures of many statements that were timed in two ways, and of estimates beside the truth.

A total is easily one query's: the geometric mean, the total without the two largest, and the number and the worst
factor of statements that got slower always stand beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SLACK_MS: Final = 5.0
"""What takes less is not counted as slower: such differences are the clock's and the scheduler's."""
SLOWER: Final = 1.1
MUCH_SLOWER: Final = 2.0
LEAST_MS: Final = 1e-3


@dataclass(slots=True)
class Series:
    """One way of running one statement: ``times`` are the counted runs' milliseconds, ``first`` the uncounted one's.

    A run that was ended at its time limit counts as that limit, and is counted in ``timeouts``. ``tag`` is the
    completion tag with the number of rows, "" when no run was completed. ``error`` is what the server said when it
    refused the statement.
    """

    times: list[float] = field(default_factory=list)
    first: float = 0.0
    timeouts: int = 0
    tag: str = ""
    error: str = ""

    @property
    def ms(self) -> float:
        """The median of the counted runs."""
        return statistics.median(self.times) if self.times else self.first


@dataclass(frozen=True, slots=True)
class Summary:
    """What many statements came to; times are milliseconds, factors are plain over other (2.0: twice as fast).

    ``total_without_two`` leaves out the two statements with the largest plain time. ``over_1_1`` and ``over_2`` count
    statements that got slower by more than that factor and then take more than `SLACK_MS`; ``worst`` is the largest
    such factor of all, 1 when none got slower. ``percentiles`` are pairs (plain, other) by name.
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
    """Of pairs (plain, other) in milliseconds, at least one."""
    timings = [(max(before, LEAST_MS), max(after, LEAST_MS)) for before, after in timings]
    plain = [pair[0] for pair in timings]
    other = [pair[1] for pair in timings]
    rest = sorted(timings)[:-2] or timings
    slower = [slowdown(before, after) for before, after in timings]
    return Summary(
        statements=len(timings),
        plain_ms=sum(plain),
        steered_ms=sum(other),
        total=sum(plain) / sum(other),
        total_without_two=sum(pair[0] for pair in rest) / sum(pair[1] for pair in rest),
        geometric_mean=math.exp(statistics.fmean(math.log(before / after) for before, after in timings)),
        percentiles={f"p{at}": (percentile(plain, at), percentile(other, at)) for at in (50, 95, 99)},
        over_1_1=sum(factor > SLOWER for factor in slower),
        over_2=sum(factor > MUCH_SLOWER for factor in slower),
        worst=max(slower),
        timeouts=timeouts,
    )


def slowdown(before: float, after: float) -> float:
    """How many times slower, 1 for what is not slower or takes no longer than `SLACK_MS` then."""
    return after / max(before, LEAST_MS) if after > max(before, SLACK_MS) else 1.0


def percentile(values: Sequence[float], at: float) -> float:
    """With linear interpolation between the two nearest, as numpy does it."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * at / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def q_error(estimate: float, true: float) -> float:
    """How many times off, in either direction; both are at least one row, as PostgreSQL takes them (Moerkotte et al.,
    VLDB 2009)."""
    estimate, true = max(estimate, 1.0), max(true, 1.0)
    return max(estimate / true, true / estimate)

"""Running one statement in several ways in turn, so that a machine that slows down for a while hurts all of them.

The first run of each way is not counted: it brings the pages into memory. Then they take turns, and which of them goes
first changes too. A way whose first run hits its limit is not run again: all of its runs count as the limit, and are
counted as such. Ways that plan alike are not run twice where the caller says that they may share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from planner.advice import Rendered
from planner.explore.server import time_query
from training.evaluate.measure import Series

PLAIN: Final = Rendered()


@dataclass(frozen=True, slots=True)
class Way:
    """``connection`` is an asyncpg connection; ``limit_factor``: its limit is also so many times what the first way's
    first run took, and `SLACK_LIMIT_MS` more, 0: no such limit. Such a way is not run again either when its first run
    shows that it is nowhere near the first way's."""

    connection: Any
    rendered: Rendered = PLAIN
    limit_factor: float = 0.0


SLACK_LIMIT_MS: Final = 50.0
HOPELESS: Final = 1.5
_ENDED: Final = "57P"  # terminated by an administrator, shut down, crashed


class OutOfTimeError(Exception):
    """There was no time for one counted run of each way."""


async def interleave(
    sql: str, ways: Mapping[str, Way], rounds: int, limit_ms: float, ends: float = math.inf
) -> dict[str, Series]:
    """``rounds`` counted runs of each way after one uncounted; the first way sets the others' limits. What the server
    says against a way is kept in `Series.error`, and the way is not run again. No run begins when the monotonic clock
    is past ``ends``: rounds may be fewer then, the same for each way, or OutOfTimeError is raised. asyncpg's errors and
    OSError when a connection is lost."""
    found = {name: Series() for name in ways}
    limits = dict.fromkeys(ways, limit_ms)
    order = list(ways)
    for name, way in ways.items():
        if time.monotonic() > ends:
            raise OutOfTimeError
        if way.limit_factor:
            limits[name] = min(limit_ms, way.limit_factor * found[order[0]].first + SLACK_LIMIT_MS)
        await _run(sql, way, limits[name], found[name], counted=False)
    order_first = found[order[0]]
    for done in range(rounds):
        if time.monotonic() > ends:
            if not done:
                raise OutOfTimeError
            break
        for name in order:
            series = found[name]
            if series.error:
                continue
            if order_first is not series and ways[name].limit_factor and hopeless(series, order_first):
                # One run is enough of what will not be chosen.
                series.times = [series.first]
                continue
            if not series.tag:
                series.times.append(limits[name])
                series.timeouts += 1
                continue
            await _run(sql, ways[name], limits[name], series, counted=True)
        order.append(order.pop(0))
    return found


def hopeless(series: Series, first: Series) -> bool:
    """Whether the first run took so much longer than the first way's that more runs would tell nothing new."""
    return bool(series.tag) and series.first > HOPELESS * first.first + SLACK_LIMIT_MS


async def _run(sql: str, way: Way, limit_ms: float, series: Series, *, counted: bool) -> None:
    timing = await time_query(way.connection, sql, rendered=way.rendered, limit_ms=limit_ms)
    if timing.error.startswith(_ENDED):
        raise ConnectionResetError(f"the server ended the connection ({timing.error})")
    if timing.error:
        series.error = timing.error
        return
    if counted:
        series.times.append(timing.ms)
        series.timeouts += timing.timed_out
    else:
        series.first = timing.ms
    if not timing.timed_out:
        series.tag = str(timing.rows)

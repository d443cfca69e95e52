"""Latencies of each model over time: a sliding window for those who ask now, and points for the store.

Workers and the planner process count into sketches that only grow (see `proxy.quantiles`); what happened in a window is
the difference of two snapshots of them. Snapshots are taken ten times an interval. At the end of each interval the
quantiles go to ``save``; what it cannot take is tried again with the next ones, up to a bound.

The gain of steering goes the same way: points of the metric ``time_saved`` hold the seconds saved in ``p50``, those
lost in ``p95`` and the number of regressions in ``count``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast, get_args

from planner.memory.records import HistoryPoint
from proxy.admin.source import Latencies, Latency, Metric
from proxy.metrics import MODEL_LATENCY, NO_MODEL
from proxy.quantiles import Sketch, quantile, since, sketches

INFERENCE: Final = "inference_latency"
TIME_SAVED: Final = "time_saved"
SAVED: Final = "memory_saved_seconds"
LOST: Final = "memory_lost_seconds"
REGRESSIONS: Final = "memory_regressions"
KEPT_POINTS: Final = 20_000
"""Points kept in memory: a day of some dozens of models, and what waits for a store that is away."""
_TICKS: Final = 10
_LONGEST_TICK: Final = 30.0
_SHORTEST_TICK: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Moment:
    at: float
    models: dict[str, Sketch]
    inference: dict[str, Sketch]
    gain: tuple[float, float, float]


class LatencyHistory:
    """``totals`` gives the merged counters, ``interval`` the present setting in seconds."""

    def __init__(
        self,
        totals: Callable[[], Mapping[str, float]],
        interval: Callable[[], float],
        save: Callable[[Sequence[HistoryPoint]], Awaitable[bool]],
    ) -> None:
        self._totals = totals
        self._interval = interval
        self._save = save
        self._moments: deque[_Moment] = deque([self._look()])
        self._collected = self._moments[0]
        self._last: dict[tuple[str, Metric], Latency] = {}
        self._points: deque[HistoryPoint] = deque(maxlen=KEPT_POINTS)
        self._unsaved: deque[HistoryPoint] = deque(maxlen=KEPT_POINTS)
        self._saving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            interval = self._interval()
            await asyncio.sleep(min(max(interval / _TICKS, _SHORTEST_TICK), _LONGEST_TICK))
            moment = self._look()
            self._moments.append(moment)
            while len(self._moments) > 1 and self._moments[1].at <= moment.at - interval:
                self._moments.popleft()
            if moment.at - self._collected.at >= interval:
                self._collect(moment)

    def preload(self, points: Sequence[HistoryPoint]) -> None:
        """What was collected before this process was started, the oldest first."""
        for point in points:
            if point.metric in get_args(Metric):
                metric = cast(Metric, point.metric)
                self._last.setdefault((point.model, metric), as_latency(point, metric))
                if self._last[point.model, metric].at.timestamp() < point.at:
                    self._last[point.model, metric] = as_latency(point, metric)

    def rebase(self) -> None:
        """Counters of a predecessor have just come in: what they hold did not happen now."""
        self._collected = self._look()
        self._moments = deque([self._collected])

    def latencies(self) -> Latencies:
        """Of the window that ends now, and for those without anything in it the last that were collected."""
        now = self._look()
        found = dict(self._last)
        for row in _latencies(self._moments[0], now):
            found[row.model, row.metric] = row
        return Latencies(tuple(found.values()), _moment(self._collected.at))

    def gain_now(self) -> tuple[float, float, float]:
        """Seconds saved and lost and regressions since the last collection."""
        return _added(self._collected, self._look())

    @property
    def measured(self) -> bool:
        """Whether anything has been counted that a gain is made of."""
        return any(self._look().gain)

    def points(self, metric: str, model: str | None, start: float, end: float) -> list[HistoryPoint]:
        """Those in memory: since this process was started, and no more than `KEPT_POINTS`."""
        return [
            point
            for point in self._points
            if point.metric == metric and model in (None, point.model) and start <= point.at < end
        ]

    async def flush(self) -> None:
        """What has been counted since the last collection goes to the store, at the end."""
        self._collect(self._look())
        if self._saving is not None:
            await self._saving

    def _look(self) -> _Moment:
        totals = self._totals()
        gain = (totals.get(SAVED, 0.0), totals.get(LOST, 0.0), totals.get(REGRESSIONS, 0.0))
        return _Moment(time.time(), sketches(totals, MODEL_LATENCY), sketches(totals, INFERENCE), gain)

    def _collect(self, now: _Moment) -> None:
        before, self._collected = self._collected, now
        made = []
        for row in _latencies(before, now):
            self._last[row.model, row.metric] = row
            made.append(
                HistoryPoint(
                    at=now.at,
                    model=row.model,
                    metric=row.metric,
                    seconds=row.seconds,
                    count=row.count,
                    p50=row.p50,
                    p95=row.p95,
                    p99=row.p99,
                )
            )
        saved, lost, regressions = _added(before, now)
        if saved or lost or regressions:
            seconds = now.at - before.at
            made.append(HistoryPoint(at=now.at, model=NO_MODEL, metric=TIME_SAVED, seconds=seconds,
                                     count=int(regressions), p50=saved, p95=lost, p99=0.0))  # fmt: skip
        self._points.extend(made)
        self._unsaved.extend(made)
        if self._unsaved and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._store())

    async def _store(self) -> None:
        batch = list(self._unsaved)
        if await self._save(batch):
            for _ in range(min(len(batch), len(self._unsaved))):
                self._unsaved.popleft()


def _latencies(before: _Moment, now: _Moment) -> list[Latency]:
    found = []
    for inference, old, new in ((False, before.models, now.models), (True, before.inference, now.inference)):
        for model, sketch in since(new, old).items():
            plain: Metric = "unsteered_latency" if model == NO_MODEL else "statement_latency"
            found.append(
                Latency(
                    model=model,
                    metric="inference_latency" if inference else plain,
                    at=_moment(now.at),
                    seconds=max(now.at - before.at, 0.001),
                    count=int(sum(sketch.values())),
                    p50=quantile(sketch, 0.50),
                    p95=quantile(sketch, 0.95),
                    p99=quantile(sketch, 0.99),
                )
            )
    return found


def _added(before: _Moment, now: _Moment) -> tuple[float, float, float]:
    saved, lost, regressions = (max(0.0, new - old) for old, new in zip(before.gain, now.gain, strict=True))
    return saved, lost, regressions


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()


def as_latency(point: HistoryPoint, metric: Metric) -> Latency:
    """A stored point as the API gives it."""
    return Latency(point.model, metric, _moment(point.at), point.seconds, point.count, point.p50, point.p95, point.p99)

"""Latencies over time: the sliding window, what is collected, and a store that is away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pilotwire.latency_history import LOST, REGRESSIONS, SAVED, TIME_SAVED, LatencyHistory
from planner.memory.records import HistoryPoint
from proxy.metrics import Counters
from tests.support.waiting import eventually


class Instance:
    """Counts, and a store that can be away."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.more: dict[str, float] = {}
        self.stored: list[HistoryPoint] = []
        self.away = False

    def totals(self) -> dict[str, float]:
        return self.counters.snapshot() | self.more

    async def save(self, points: Sequence[HistoryPoint]) -> bool:
        if not self.away:
            self.stored += points
        return not self.away

    def history(self, interval: float) -> LatencyHistory:
        return LatencyHistory(self.totals, lambda: interval, self.save)


async def test_the_window_ends_now_and_what_was_collected_stays() -> None:
    instance = Instance()
    instance.counters.observe_model("old-1", 5.0)
    history = instance.history(0.3)
    assert history.latencies().latest == ()
    for _ in range(20):
        instance.counters.observe_model("m-1", 0.05)
    instance.counters.observe_model("", 0.1)
    now = {(row.model, row.metric): row for row in history.latencies().latest}
    assert now.keys() == {("m-1", "statement_latency"), ("none", "unsteered_latency")}
    assert now["m-1", "statement_latency"].p95 == pytest.approx(50, rel=0.09)
    task = asyncio.create_task(history.run())
    await eventually(lambda: len(instance.stored) == 2)
    first = history.latencies().collected
    await asyncio.sleep(0.5)
    task.cancel()
    # Nothing happened in the last window: the last collected numbers are shown, with their own moment.
    later = {row.model: row for row in history.latencies().latest}
    assert later["m-1"].p95 == pytest.approx(50, rel=0.09)
    assert first is not None
    assert later["m-1"].at <= first
    assert len(instance.stored) == 2


async def test_inference_is_a_metric_of_its_own() -> None:
    instance = Instance()
    history = instance.history(60)
    instance.more = {"inference_latency{m-1|60}": 3}
    (row,) = history.latencies().latest
    assert (row.model, row.metric, row.count) == ("m-1", "inference_latency", 3)


async def test_a_store_that_is_away_gets_everything_later() -> None:
    instance = Instance()
    history = instance.history(0.1)
    instance.away = True
    task = asyncio.create_task(history.run())
    for number in range(3):
        instance.counters.observe_model(f"m-{number}", 0.01)
        await asyncio.sleep(0.25)
    assert instance.stored == []
    instance.away = False
    instance.counters.observe_model("m-3", 0.01)
    await eventually(lambda: {point.model for point in instance.stored} == {f"m-{number}" for number in range(4)})
    task.cancel()
    assert len(instance.stored) == 4


async def test_a_gain_is_counted_and_flushed() -> None:
    instance = Instance()
    history = instance.history(3600)
    assert not history.measured
    instance.more = {SAVED: 12.0, LOST: 2.0, REGRESSIONS: 1.0}
    assert history.gain_now() == (12.0, 2.0, 1.0)
    assert history.measured
    await history.flush()
    (point,) = instance.stored
    assert (point.metric, point.p50, point.p95, point.count) == (TIME_SAVED, 12.0, 2.0, 1)
    assert history.gain_now() == (0.0, 0.0, 0.0)
    assert len(history.points(TIME_SAVED, None, 0, point.at + 1)) == 1


async def test_what_a_predecessor_counted_did_not_happen_now() -> None:
    instance = Instance()
    history = instance.history(60)
    instance.counters.observe_model("m-1", 0.01)
    history.rebase()
    assert history.latencies().latest == ()


async def test_what_was_collected_before_a_restart_is_shown() -> None:
    history = Instance().history(60)
    points = [HistoryPoint(at=at, model="m-1", metric=metric, seconds=300, count=1, p50=1, p95=at, p99=3)
              for at in (100.0, 200.0) for metric in ("statement_latency", "q_error", TIME_SAVED)]  # fmt: skip
    history.preload(points)
    (row,) = history.latencies().latest
    assert (row.metric, row.p95) == ("statement_latency", 200.0)

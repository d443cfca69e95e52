"""The two lanes: order, bounds, fresh before stale, one lane not held up by the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from planner.lanes import MAX_QUEUED, QUICK, SLOW, SLOW_BYTES, Job, Lanes


class Asker:
    """Collects what its jobs return."""

    def __init__(self) -> None:
        self.answers: queue.Queue[Any] = queue.Queue()

    def job(self, run: Callable[[int], Any], came: float | None = None) -> Job:
        job = Job(run, lambda result, error: self.answers.put(error or result))
        if came is not None:
            job.came = came
        return job

    def next(self) -> Any:
        return self.answers.get(timeout=10)


def numbered(number: int, lane: int) -> tuple[int, int]:
    return lane, number


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes()
    lanes.start()
    yield lanes
    lanes.stop()


def test_each_size_has_its_lane_and_its_order(lanes: Lanes) -> None:
    asker = Asker()
    for number in range(50):
        assert lanes.put(asker.job(partial(numbered, number)), SLOW_BYTES)
    assert [asker.next() for _ in range(50)] == [(QUICK, number) for number in range(50)]
    assert lanes.put(asker.job(lambda lane: lane), SLOW_BYTES + 1)
    assert asker.next() == SLOW


def test_a_slow_statement_does_not_hold_up_short_ones(lanes: Lanes) -> None:
    asker, begun, release = Asker(), threading.Event(), threading.Event()

    def slow(lane: int) -> object:
        begun.set()
        return release.wait(10) and "slow"

    assert lanes.put(asker.job(slow), SLOW_BYTES + 1)
    assert begun.wait(10)
    assert lanes.put(asker.job(lambda lane: "quick"), 10)
    assert asker.next() == "quick"
    assert lanes.stuck_seconds > 0
    release.set()
    assert asker.next() == "slow"


def test_what_nobody_waits_for_comes_last(lanes: Lanes) -> None:
    asker, release = Asker(), threading.Event()
    assert lanes.put(asker.job(lambda lane: release.wait(10) and "first"), 10)
    assert lanes.put(asker.job(lambda lane: "old", came=0.0), 10)
    assert lanes.put(asker.job(lambda lane: "older", came=0.0), 10)
    fresh = float("inf")
    assert lanes.put(asker.job(lambda lane: "fresh", came=fresh), 10)
    release.set()
    assert [asker.next() for _ in range(4)] == ["first", "fresh", "old", "older"]


def test_the_queue_is_bounded_and_an_error_is_an_answer(lanes: Lanes) -> None:
    asker, begun, release = Asker(), threading.Event(), threading.Event()

    def hold(lane: int) -> str:
        begun.set()
        release.wait(10)
        return "held"

    def fail(lane: int) -> None:
        raise ValueError("odd")

    assert lanes.put(asker.job(hold), 10)
    assert begun.wait(10)
    assert all(lanes.put(asker.job(fail), 10) for _ in range(MAX_QUEUED))
    assert not lanes.put(asker.job(fail), 10)
    assert lanes.waiting == MAX_QUEUED
    release.set()
    assert asker.next() == "held"
    assert all(isinstance(asker.next(), ValueError) for _ in range(MAX_QUEUED))
    assert lanes.put(asker.job(lambda lane: "again"), 10)
    assert asker.next() == "again"


def test_a_stopped_lane_takes_nothing() -> None:
    lanes = Lanes()
    lanes.start()
    lanes.stop()
    assert not lanes.put(Asker().job(lambda lane: None), 10)

"""Sketches: how far off a quantile is, that they add up and come apart, and that a worker's snapshot carries them."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import counters as planner_counters
from proxy.metrics import MAX_LABELS, MODEL_LATENCY, Counters, MergedCounters
from proxy.quantiles import LAST, LEAST_MS, bucket, quantile, since, sketches

DURATIONS = st.floats(0.011, 1e8)


def sketch_of(values: list[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for value in values:
        found[bucket(value)] = found.get(bucket(value), 0) + 1
    return found


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_one_bucket(values: list[float], share: float) -> None:
    exact = sorted(values)[max(0, ceil(share * len(values)) - 1)]
    found = quantile(sketch_of(values), share)
    assert exact / 1.0906 <= found <= exact * 1.0906


@pytest.mark.parametrize("value", [0.0, -1.0, LEAST_MS, float("nan"), float("inf"), 1e300])
def test_odd_durations_have_a_bucket_too(value: float) -> None:
    assert 0 <= bucket(value) <= LAST


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile({}, 0.5) == 0.0
    assert 0 < quantile({0: 4}, 0.5) <= LEAST_MS


def test_a_snapshot_carries_each_models_sketch() -> None:
    counters = Counters()
    for _ in range(99):
        counters.observe_model("m-1", 0.010)
    counters.observe_model("m-1", 1.0)
    counters.observe_model("", 0.5)
    merged = MergedCounters()
    merged.update("worker-0#1", counters.snapshot())
    merged.update("worker-1#1", counters.snapshot())
    merged.retire("worker-0#1")
    found = sketches(merged.totals(), MODEL_LATENCY)
    assert found.keys() == {"m-1", "none"}
    assert sum(found["m-1"].values()) == 200
    assert quantile(found["m-1"], 0.5) == pytest.approx(10, rel=0.09)
    assert quantile(found["m-1"], 0.999) == pytest.approx(1000, rel=0.09)


def test_models_are_bounded_in_number() -> None:
    counters = Counters()
    for number in range(MAX_LABELS * 3):
        counters.observe_model(f"m-{number}", 0.01)
    counters.observe_model("", 0.01)
    found = sketches(counters.snapshot(), MODEL_LATENCY)
    assert len(found) <= MAX_LABELS + 2
    assert sum(found["other"].values()) == MAX_LABELS * 2
    assert sum(found["none"].values()) == 1


def test_a_window_is_the_difference_of_two_snapshots() -> None:
    before = {"a": {3: 5.0}, "b": {1: 2.0}}
    now = {"a": {3: 5.0, 9: 4.0}, "b": {1: 2.0}, "c": {2: 1.0}}
    assert since(now, before) == {"a": {9: 4.0}, "c": {2: 1.0}}


@given(st.floats())
def test_the_planner_process_counts_into_the_same_buckets(value: float) -> None:
    assert planner_counters.bucket(value) == bucket(value)

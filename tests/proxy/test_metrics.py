"""Counters, snapshots, and the sum over workers that come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.declared_metrics import LATENCY_BOUNDS, WORKER_METRICS
from proxy.metrics import (
    LATENCY_KEYS,
    LATENCY_SUM,
    MAX_LABELS,
    Counters,
    Labelled,
    MergedCounters,
    labelled,
)


def test_every_counter_is_declared_and_every_declared_one_exists() -> None:
    counters = Counters()
    others = {"latency_sum", "probe_client", "probe_server"}
    attributes = {name for name in Counters.__slots__ if not name.startswith("_")} - others
    assert attributes == {metric.attribute for metric in WORKER_METRICS}
    assert all(hasattr(counters, name) for name in attributes)


def test_a_snapshot_is_flat() -> None:
    counters = Counters()
    counters.statements += 3
    counters.backends_opened["pool"] += 2
    counters.pinned["listen"] += 1
    snapshot = counters.snapshot()
    assert snapshot["statements"] == 3
    assert snapshot["backends_opened{pool}"] == 2
    assert snapshot["backends_opened{direct}"] == 0
    assert labelled(snapshot, "pinned") == [("listen", 1)]


def test_latency_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    counters = Counters()
    for seconds in (0.0, LATENCY_BOUNDS[0], 0.0003, LATENCY_BOUNDS[-1], 1000.0):
        counters.observe_latency(seconds)
    snapshot = counters.snapshot()
    counts = [snapshot[key] for key in LATENCY_KEYS]
    assert counts[0] == 2
    assert counts[LATENCY_BOUNDS.index(0.0005)] == 1
    assert counts[-2] == 1
    assert counts[-1] == 1
    assert snapshot[LATENCY_SUM] == sum((0.0, LATENCY_BOUNDS[0], 0.0003, LATENCY_BOUNDS[-1], 1000.0))


def test_latencies_in_any_order() -> None:
    seconds = [
        bound * factor for factor in (1.0, 0.999, 1.001) for bound in (*LATENCY_BOUNDS, *reversed(LATENCY_BOUNDS))
    ]
    counters = Counters()
    counts = [0] * len(LATENCY_KEYS)
    for one in seconds:
        counters.observe_latency(one)
        counts[sum(bound < one for bound in LATENCY_BOUNDS)] += 1
    snapshot = counters.snapshot()
    assert [snapshot[key] for key in LATENCY_KEYS] == counts


def test_labels_beyond_the_bound_are_counted_as_other() -> None:
    counts = Labelled()
    for number in range(MAX_LABELS + 10):
        counts[f"label{number}"] += 2
    counts["label0"] += 1
    assert len(counts) == MAX_LABELS + 1
    assert counts["other"] == 20
    assert counts["label0"] == 3


def test_a_dead_workers_counters_stay_and_its_gauges_go() -> None:
    merged = MergedCounters()
    merged.update("worker-0#1", {"statements": 5, "clients_current": 2})
    merged.update("worker-1#2", {"statements": 7, "clients_current": 1})
    merged.retire("worker-0#1")
    assert merged.totals() == {"statements": 12, "clients_current": 1}
    merged.update("worker-0#3", {"statements": 1, "clients_current": 4})
    assert merged.totals() == {"statements": 13, "clients_current": 5}
    merged.retire("never known")
    assert merged.totals()["statements"] == 13


def test_a_gauge_may_fall_and_a_counter_may_not() -> None:
    merged = MergedCounters()
    merged.update("a", {"statements": 5, "clients_current": 5})
    merged.update("a", {"statements": 4, "clients_current": 4})
    assert merged.totals() == {"statements": 5, "clients_current": 4}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["update", "retire"]), st.integers(0, 1000))))
def test_totals_never_fall(steps: list[tuple[str, str, int]]) -> None:
    merged = MergedCounters()
    last = 0.0
    for source, step, value in steps:
        if step == "update":
            merged.update(source, {"statements": value})
        else:
            merged.retire(source)
        total = merged.totals().get("statements", 0)
        assert total >= last
        last = total

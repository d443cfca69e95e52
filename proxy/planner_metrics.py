"""The metrics of the planner process, declared for the exposition beside those of `proxy.metrics`.

The planner process counts by itself and sends flat snapshots of the same form; the supervisor merges them, so that a
planner process that is started again never makes a counter fall.
"""

from __future__ import annotations

from typing import Final

from proxy.metrics import Metric

PLANNER_COUNTERS: Final[tuple[Metric, ...]] = (
    Metric("planner_restarts", "counter", "planner_restarts", "Planner processes started again because one ended."),
    Metric(
        "planner_decisions",
        "counter",
        "planner_decisions",
        "Decisions computed by the planner process, by why a statement was left alone; steered where it was not.",
        "reason",
        ("steered",),
    ),
    Metric("planner_cache_hits", "counter", "planner_cache_hits", "Decisions that the planner process remembered."),
    Metric("planner_stale", "counter", "planner_stale", "Decisions computed when nobody waited for them any more."),
    Metric(
        "planner_catalog_loads",
        "counter",
        "planner_catalog_loads",
        "Catalog snapshots taken.",
        "outcome",
        ("ok", "failed"),
    ),
    Metric(
        "planner_models",
        "counter",
        "planner_models",
        "Model files looked at: accepted, removed, or refused at which step of the checks.",
        "outcome",
        ("accepted",),
    ),
    Metric("memory_approved", "counter", "memory_approved", "Arms approved: measured to win."),
    Metric("memory_rejected", "counter", "memory_rejected", "Arms rejected: lost, gained too little, or withdrawn."),
    Metric("memory_regressions", "counter", "memory_regressions", "Arms in use withdrawn because they became slower."),
    Metric(
        "memory_saved_seconds",
        "counter",
        "memory_saved_seconds",
        "Seconds that steered executions took less than unsteered ones usually do.",
    ),
    Metric(
        "memory_lost_seconds",
        "counter",
        "memory_lost_seconds",
        "Seconds that steered executions took more, trials and stopped runs included.",
    ),
    Metric("memory_shadow", "counter", "memory_shadow", "Decisions logged by a rule for mode shadow, by arm.", "arm"),
    Metric("memory_unwritten", "counter", "memory_unwritten", "Times that records for the store had to be dropped."),
    Metric(
        "memory_store_failures",
        "counter",
        "memory_store_failures",
        "Failed attempts to write to or read from the store, by kind.",
        "kind",
    ),
    Metric(
        "planner_verifications",
        "counter",
        "planner_verifications",
        "Plans of arms looked at, by outcome: honoured, not_honoured, same_plan (nothing changes), failed (not seen).",
        "outcome",
        ("honoured", "not_honoured"),
    ),
)
BOUNDS: Final[tuple[float, ...]] = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0)
"""Upper bounds of both histograms in seconds, the same as in `planner.counters`."""
HISTOGRAMS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "planner_decision_seconds",
        "planner_decision",
        "Seconds the planner process computed for one decision, inference included.",
    ),
    ("planner_inference_seconds", "planner_inference", "Seconds of one model's run for one decision."),
)
"""Name, attribute and help of each."""

PLANNER_GAUGES: Final[tuple[Metric, ...]] = (
    Metric("ready", "gauge", "planner_ready", "1 while a planner process answers, else 0."),
    Metric("databases", "gauge", "planner_databases", "Databases whose catalog the planner process watches."),
    Metric("catalog_age_s", "gauge", "planner_catalog_age_seconds", "Age of the oldest catalog snapshot; -1 for none."),
    Metric("queue", "gauge", "planner_queue", "Statements that wait in the planner process."),
)
MODEL_INFO: Final = Metric("models", "gauge", "model_info", "1 for each model that serves.", "model")

"""The metrics of the planner process, declared for the exposition beside those of `proxy.metrics`.

The planner process counts by itself and sends flat snapshots of the same form; the supervisor merges them, so that a
planner process that is started again never makes a counter fall.
"""

from __future__ import annotations

from typing import Final

from proxy.metrics import Histogram, Metric

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
    Metric(
        "model_swaps",
        "counter",
        "model_swaps",
        "Times that another model, or none, took over, by kind.",
        "kind",
        ("cardinality", "hints"),
    ),
    Metric(
        "store_written",
        "counter",
        "store_written",
        "Records written to the store by the planner process, by kind.",
        "kind",
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
"""Upper bounds of durations in seconds, the same as in `planner.counters`."""
Q_ERROR_BOUNDS: Final[tuple[float, ...]] = (1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
LOAD_BOUNDS: Final[tuple[float, ...]] = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
HISTOGRAMS: Final[tuple[Histogram, ...]] = (
    Histogram(
        "planner_decision_seconds",
        "planner_decision",
        "Seconds the planner process computed for one decision, inference included.",
        BOUNDS,
    ),
    Histogram("planner_inference_seconds", "planner_inference", "Seconds of one model's run for one decision.", BOUNDS),
    Histogram(
        "model_check_seconds",
        "model_check",
        "Seconds for which a new model file was checked, in a process of its own.",
        LOAD_BOUNDS,
    ),
    Histogram(
        "model_load_seconds", "model_load", "Seconds to load and warm a model beside the one that serves.", LOAD_BOUNDS
    ),
    Histogram(
        "root_q_error",
        "root_q_error",
        "Factor by which the predicted rows of a join were off, of statements that give all its rows and nothing else.",
        Q_ERROR_BOUNDS,
    ),
    Histogram(
        "root_q_error_server",
        "root_q_error_server",
        "The same of the server's own estimate, for the same statements.",
        Q_ERROR_BOUNDS,
    ),
)
"""What the planner process measures."""

PLANNER_GAUGES: Final[tuple[Metric, ...]] = (
    Metric("ready", "gauge", "planner_ready", "1 while a planner process answers, else 0."),
    Metric("databases", "gauge", "planner_databases", "Databases whose catalog the planner process watches."),
    Metric("catalog_age_s", "gauge", "planner_catalog_age_seconds", "Age of the oldest catalog snapshot; -1 for none."),
    Metric("queue", "gauge", "planner_queue", "Statements that wait in the planner process."),
)
MODEL_INFO: Final = Metric("models", "gauge", "model_info", "1 for each model that serves.", "model")

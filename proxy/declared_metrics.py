"""Every metric of the program, declared once: its name, what it says, its unit and its label.

``/metrics`` (`proxy.admin.exposition`) shows what is declared here and nothing else, and docs/metrics.md is made from
it. Who counts what: workers the plain numbers of `proxy.metrics.Counters`, the planner process those of
`planner.counters` (which is below this package, and so has its bounds of buckets again; a test compares them), and the
supervisor the rest.

Names are without ``pilotwire_`` and, for counters, without ``_total``. Every label has a bounded number of values;
what comes after them is counted under ``other``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "pilotwire_"
Unit = Literal[
    "seconds", "bytes", "ratio", "statements", "transactions", "connections", "clients", "logins", "requests", "times",
    "processes", "workers", "decisions", "messages", "records", "plans", "arms", "models", "files", "databases",
    "spans", "lines", "timestamp", "0 or 1",
]  # fmt: skip
"""What one counts or measures; ``ratio`` is a factor, ``timestamp`` seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter or a gauge. ``attribute`` is the key in snapshots, ``values`` the label values that are shown even at
    zero."""

    attribute: str
    kind: Literal["counter", "gauge"]
    name: str
    unit: Unit
    help: str
    label: str = ""
    values: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its time series."""
        return (f"{PREFIX}{self.name}_total" if self.kind == "counter" else PREFIX + self.name,)


@dataclass(frozen=True, slots=True)
class Histogram:
    """``attribute`` is that of the snapshot keys, ``bounds`` are the upper bounds of the buckets in the unit."""

    name: str
    attribute: str
    unit: Unit
    help: str
    bounds: tuple[float, ...]

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its time series."""
        return tuple(f"{PREFIX}{self.name}_{part}" for part in ("bucket", "sum", "count"))


LATENCY_BOUNDS: Final[tuple[float, ...]] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Of what statements take; what is slower falls into the last, open bucket."""
WIRE_BOUNDS: Final[tuple[float, ...]] = (
    0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05,
)  # fmt: skip
WAIT_BOUNDS: Final[tuple[float, ...]] = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05)
DECISION_BOUNDS: Final[tuple[float, ...]] = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0)
Q_ERROR_BOUNDS: Final[tuple[float, ...]] = (1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
LOAD_BOUNDS: Final[tuple[float, ...]] = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def _counter(
    attribute: str, unit: Unit, text: str, label: str = "", values: tuple[str, ...] = (), *, name: str = ""
) -> Metric:
    return Metric(attribute, "counter", name or attribute, unit, text, label, values)


def _gauge(attribute: str, unit: Unit, text: str, label: str = "", *, name: str = "") -> Metric:
    return Metric(attribute, "gauge", name or attribute, unit, text, label)


WORKER_METRICS: Final[tuple[Metric, ...]] = (
    _counter("clients_total", "connections", "Client connections that were let in.", name="clients_accepted"),
    _gauge("clients_current", "connections", "Client connections open now."),
    _counter("logins_failed", "logins", "Client logins that were refused."),
    _counter("tls_connections", "connections", "Client connections that were encrypted."),
    _counter("protocol_errors", "connections", "Connections closed because the client broke the protocol."),
    _counter(
        "half_open_evicted", "connections", "Connections without a start-up message closed to make room for others."
    ),
    _counter(
        "login_timeouts", "connections", "Connections closed because login_timeout passed before their login was over."
    ),
    _counter("accept_pauses", "times", "Pauses in accepting because the system refused a descriptor or memory."),
    _counter("statements", "statements", "Statements sent on to the server."),
    _counter("transactions", "transactions", "Transactions that ended."),
    _counter("transaction_seconds", "seconds", "Time that transactions took, from the first statement to the end."),
    _counter("bytes_from_client", "bytes", "Bytes received from clients.", name="client_received_bytes"),
    _counter("bytes_to_client", "bytes", "Bytes sent to clients.", name="client_sent_bytes"),
    _counter(
        "backends_opened",
        "connections",
        "Server connections opened, by how: from the asyncpg pool or directly.",
        "how",
        ("pool", "direct"),
    ),
    _counter("backends_closed", "connections", "Server connections closed."),
    _gauge("backends_current", "connections", "Server connections open now."),
    _gauge("pool_waiting", "clients", "Clients waiting for a server connection now."),
    _gauge("paused", "workers", "Workers in which clients are kept waiting by PAUSE."),
    _gauge("pool_clients", "clients", "Clients connected now, by user@database.", "pool"),
    _gauge("pool_servers", "connections", "Server connections of a shared pool now, by user@database.", "pool"),
    _gauge("pool_limit", "connections", "Server connections that a shared pool may have, by user@database.", "pool"),
    _gauge("pool_queue", "clients", "Clients waiting for a server connection now, by user@database.", "pool"),
    _counter(
        "pool_wait_seconds_sum", "seconds", "Time clients waited for a server connection.", name="pool_wait_seconds"
    ),
    _counter(
        "pool_wait_seconds_count", "times", "Times a client had to wait for a server connection.", name="pool_waits"
    ),
    _counter("pool_wait_timeouts", "clients", "Clients refused because queue_timeout passed."),
    _counter("queue_rejected", "clients", "Clients refused because max_clients or queue_limit was reached."),
    _counter("cancels_forwarded", "requests", "Cancel requests sent on to the server."),
    _counter("cancels_dropped", "requests", "Cancel requests that named no running query."),
    _counter("pinned", "clients", "Clients that were given a server connection for good, by reason.", "reason"),
    _counter("statements_reprepared", "statements", "Prepared statements prepared once more on another connection."),
    _counter("steering_left_alone", "statements", "Statements that steering left as they were."),
    _counter("steering_steered", "statements", "Statements that went on with advice."),
    _counter("steering_models", "statements", "Statements that went on with advice, by model and version.", "model"),
    _counter("steering_arms", "statements", "Statements that went on with advice, by the kind of advice.", "arm"),
    _counter(
        "steering_dialects", "statements", "Statements that went on with advice, by how it is written.", "dialect"
    ),
    _counter("steering_reasons", "statements", "Statements that join tables and were left alone, by reason.", "reason"),
    _counter("steering_waited", "statements", "Statements that waited for advice."),
    _counter("steering_wait_seconds", "seconds", "Time that statements waited for advice."),
    _counter("steering_late", "statements", "Statements whose advice did not come before the deadline."),
    _counter("steering_asked", "messages", "Questions sent to the planner."),
    _counter("steering_answered", "messages", "Answers received from the planner."),
    _counter("steering_refused", "statements", "Steered statements that the server refused because of the advice."),
    _counter("steering_run_again", "statements", "Refused statements that were run again as the client sent them."),
    _counter("steering_control", "statements", "Statements left alone for comparison though there was advice."),
    _counter(
        "steering_stopped", "statements", "Steered statements that went over their budget and were run again unsteered."
    ),
    _counter("steering_stops_failed", "requests", "Cancel requests for statements over budget that could not be sent."),
    _counter(
        "steering_breaker_opened", "times", "Times that waiting was given up since the planner missed many deadlines."
    ),
    _counter(
        "steering_planner_errors", "connections", "Connections to the planner that were closed as it sent garbage."
    ),
    _counter(
        "steering_observations_dropped", "messages", "Measurements not told to the planner because it did not read."
    ),
    _gauge("planner_connected", "workers", "Workers that are connected to the planner."),
    _counter("parse_cache_evictions", "statements", "Prepared statements evicted to stay below max_prepared_bytes."),
    _counter("read_only_refused", "statements", "Statements refused by the read-only guard."),
    _counter("handed_back", "connections", "Server connections given back to the asyncpg pool."),
    _counter(
        "trace_spans", "spans", "Spans by what became of them: exported, dropped (too many waited), failed.", "outcome"
    ),
    _counter("log_lines_dropped", "lines", "Log lines dropped because standard error was not read fast enough."),
)
"""What each worker counts. A counter never falls; a gauge of a dead worker is forgotten."""

DATABASE_METRICS: Final[tuple[Metric, ...]] = (
    _counter("database_transactions", "transactions", "Transactions that ended, by database.", "database"),
    _counter("database_statements", "statements", "Statements sent on to the server, by database.", "database"),
    _counter("database_received_bytes", "bytes", "Bytes received from clients, by database.", "database"),
    _counter("database_sent_bytes", "bytes", "Bytes sent to clients, by database.", "database"),
    _counter("database_statement_seconds", "seconds", "Time that statements took, by database.", "database"),
    _counter("database_transaction_seconds", "seconds", "Time that transactions took, by database.", "database"),
    _counter("database_pool_wait_seconds", "seconds", "Time waited for a server connection, by database.", "database"),
    _counter(
        "database_statements_reprepared",
        "statements",
        "Prepared statements prepared once more on another connection, by database.",
        "database",
    ),
)
"""What each worker counts by database; see `proxy.database_counters`."""

WORKER_HISTOGRAMS: Final[tuple[Histogram, ...]] = (
    Histogram(
        "statement_latency_seconds",
        "statement_latency",
        "seconds",
        "Time from a statement's arrival to the end of its answer.",
        LATENCY_BOUNDS,
    ),
    Histogram(
        "server_seconds",
        "server_time",
        "seconds",
        "That time without what the proxy held the statement up: waiting for advice, runs over their budget.",
        LATENCY_BOUNDS,
    ),
    Histogram(
        "decision_wait_seconds",
        "decision_wait",
        "seconds",
        "Time that statements were held up to wait for advice.",
        WAIT_BOUNDS,
    ),
    Histogram(
        "wire_seconds",
        "wire",
        "seconds",
        "Time the proxy worked on one piece of what a client or server sent; some twenty a second are measured.",
        WIRE_BOUNDS,
    ),
)
"""What each worker measures."""

SUPERVISOR_METRICS: Final[tuple[Metric, ...]] = (
    _gauge("workers_configured", "processes", "Worker processes there should be."),
    _gauge("workers_ready", "processes", "Worker processes that accept clients."),
    _gauge("workers_responding", "processes", "Worker processes heard of within the last ten seconds."),
    _counter("worker_restarts", "processes", "Worker processes started again because one had died."),
    _gauge("draining", "0 or 1", "1 while the instance stops and serves only who is connected, else 0."),
    _gauge(
        "start_time", "timestamp", "When the instance was started, in seconds since 1970.", name="start_time_seconds"
    ),
    _gauge(
        "memory",
        "bytes",
        "Resident memory of each process; what workers share counts for each.",
        "process",
        name="process_resident_memory_bytes",
    ),
)
"""What the supervisor knows by itself; ``attribute`` is one of `proxy.admin.source.Status`."""

PLANNER_COUNTERS: Final[tuple[Metric, ...]] = (
    _counter("planner_restarts", "processes", "Planner processes started again because one ended."),
    _counter(
        "planner_decisions",
        "decisions",
        "Decisions computed by the planner process, by why a statement was left alone; steered where it was not.",
        "reason",
        ("steered",),
    ),
    _counter("planner_cache_hits", "decisions", "Decisions that the planner process remembered."),
    _counter("planner_stale", "decisions", "Decisions computed when nobody waited for them any more."),
    _counter(
        "planner_failures", "decisions", "Decisions that failed; their statements were left alone. By error.", "error"
    ),
    _counter("planner_refusals", "messages", "Reports of workers that a server refused a statement for its advice."),
    _counter("planner_catalog_loads", "times", "Catalog snapshots taken.", "outcome", ("ok", "failed")),
    _counter(
        "planner_models",
        "files",
        "Model files looked at: accepted, removed, or refused at which step of the checks.",
        "outcome",
        ("accepted",),
    ),
    _counter(
        "model_swaps",
        "times",
        "Times that another model, or none, took over, by its kind.",
        "kind",
        ("cardinality", "hints"),
    ),
    _counter("store_written", "records", "Records written to the store by the planner process, by kind.", "kind"),
    _counter("memory_approved", "arms", "Arms approved: measured to win."),
    _counter("memory_rejected", "arms", "Arms rejected: lost, gained too little, or withdrawn."),
    _counter("memory_regressions", "arms", "Arms in use withdrawn because they became slower."),
    _counter("memory_saved_seconds", "seconds", "Time that steered executions took less than unsteered ones."),
    _counter("memory_lost_seconds", "seconds", "Time that steered executions took more, stopped runs included."),
    _counter("memory_shadow", "decisions", "Decisions logged by a rule for mode shadow, by arm.", "arm"),
    _counter("memory_unwritten", "times", "Times that records for the store had to be dropped."),
    _counter(
        "memory_store_failures",
        "times",
        "Failed attempts to write to or read from the store, by kind.",
        "kind",
        ("full", "gone"),
    ),
    _counter(
        "planner_verifications",
        "plans",
        "Plans of arms looked at, by outcome: honoured, not_honoured, same_plan (nothing changes), failed (not seen).",
        "outcome",
        ("honoured", "not_honoured"),
    ),
    _counter(
        "accuracy_samples",
        "statements",
        "Statements run again to see the rows of their joins, by outcome: told, silent (the plan does not tell), busy "
        "(the server was), stopped (by the limit), failed.",
        "outcome",
        ("told",),
    ),
)
"""What the planner process counts, and the supervisor about it."""

PLANNER_HISTOGRAMS: Final[tuple[Histogram, ...]] = (
    Histogram(
        "planner_decision_seconds",
        "planner_decision",
        "seconds",
        "Time the planner process computed for one decision, inference included.",
        DECISION_BOUNDS,
    ),
    Histogram(
        "planner_inference_seconds",
        "planner_inference",
        "seconds",
        "Time of one model's run for one decision.",
        DECISION_BOUNDS,
    ),
    Histogram(
        "model_check_seconds",
        "model_check",
        "seconds",
        "Time for which a new model file was checked, in a process of its own.",
        LOAD_BOUNDS,
    ),
    Histogram(
        "model_load_seconds",
        "model_load",
        "seconds",
        "Time to load and warm a model beside the one that serves.",
        LOAD_BOUNDS,
    ),
    Histogram(
        "root_q_error",
        "root_q_error",
        "ratio",
        "Factor by which the model's rows were off, of statements that give all rows of their join and nothing else.",
        Q_ERROR_BOUNDS,
    ),
    Histogram(
        "root_q_error_server",
        "root_q_error_server",
        "ratio",
        "The same of the server's own estimate, for the same statements.",
        Q_ERROR_BOUNDS,
    ),
    Histogram(
        "sub_plan_q_error",
        "sub_plan_q_error",
        "ratio",
        "Factor by which the model's rows of joins inside statements were off, in statements run again as samples.",
        Q_ERROR_BOUNDS,
    ),
    Histogram(
        "sub_plan_q_error_server",
        "sub_plan_q_error_server",
        "ratio",
        "The same of the server's own estimate, for the same joins.",
        Q_ERROR_BOUNDS,
    ),
)
"""What the planner process measures."""

PLANNER_GAUGES: Final[tuple[Metric, ...]] = (
    _gauge("ready", "0 or 1", "1 while a planner process answers, else 0.", name="planner_ready"),
    _gauge("databases", "databases", "Databases whose catalog the planner process watches.", name="planner_databases"),
    _gauge(
        "catalog_age_s",
        "seconds",
        "Age of the oldest catalog snapshot; -1 for none.",
        name="planner_catalog_age_seconds",
    ),
    _gauge("queue", "statements", "Statements that wait in the planner process.", name="planner_queue"),
    _gauge(
        "breakers_open",
        "models",
        "Models that a circuit breaker has off, wholly or for trials, and one more where all steering is off.",
        name="memory_breakers_open",
    ),
)
"""``attribute`` is one of `proxy.admin.source.PlannerStatus`."""
MODEL_INFO: Final = _gauge("models", "0 or 1", "1 for each model that serves.", "model", name="model_info")


def declared() -> Iterator[Metric | Histogram]:
    """All of them, as they stand in the documentation."""
    yield from WORKER_METRICS
    yield from DATABASE_METRICS
    yield from WORKER_HISTOGRAMS
    yield from SUPERVISOR_METRICS
    yield from PLANNER_COUNTERS
    yield from PLANNER_HISTOGRAMS
    yield from PLANNER_GAUGES
    yield MODEL_INFO

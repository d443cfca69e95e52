"""The plain integers behind the metrics that `proxy.declared_metrics` declares.

A worker owns one ``Counters`` and adds to its attributes (``counters.statements += 1``), which costs an attribute
store and nothing else. Once a second, and whenever somebody scrapes, it sends ``counters.snapshot()`` to the
supervisor. There ``MergedCounters`` adds the snapshots of the living to a base kept of the dead, so that no counter
falls when a worker is restarted. ``proxy/admin/exposition.py`` turns the result into Prometheus metrics.

A snapshot is a flat ``dict[str, float]``: ``statements`` for a plain counter, ``pinned{listen}`` for a labelled one,
``statement_latency{0.001}`` for one histogram bucket (counts are per bucket there, not cumulated), and
``model_latency{cardinality-3|57}`` for one bucket of a sketch (see proxy/quantiles.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import inf
from typing import Final

from proxy.declared_metrics import LATENCY_BOUNDS, WAIT_BOUNDS, WIRE_BOUNDS, WORKER_METRICS
from proxy.quantiles import bucket

MAX_LABELS: Final = 32
"""Values one label may take before further ones are counted under ``other``."""


_GAUGES: Final = frozenset(metric.attribute for metric in WORKER_METRICS if metric.kind == "gauge")
LATENCY: Final = "statement_latency"
LATENCY_SUM: Final = "statement_latency_sum"
MODEL_LATENCY: Final = "model_latency"
"""Sketches of what steered statements took their clients, by model and version."""
OTHER: Final = "other"
"""The label of what came after the first `MAX_LABELS`."""
NO_MODEL: Final = "none"
"""The label of statements that went on as they were."""


def _keys(attribute: str, bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{attribute}{{{bound}}}" for bound in (*bounds, "+Inf"))


LATENCY_KEYS: Final = _keys(LATENCY, LATENCY_BOUNDS)
_SERVER_KEYS: Final = _keys("server_time", LATENCY_BOUNDS)
_WAIT_KEYS: Final = _keys("decision_wait", WAIT_BOUNDS)
_WIRE_KEYS: Final = _keys("wire", WIRE_BOUNDS)


class Labelled(dict[str, int]):
    """Counts by label value: ``counters.pinned["listen"] += 1``. After ``MAX_LABELS`` values the rest is ``other``."""

    __slots__ = ()

    def __missing__(self, label: str) -> int:
        return 0

    def __setitem__(self, label: str, count: int) -> None:
        if label not in self and len(self) >= MAX_LABELS:
            # `counters.x[new] += n` read 0 above, so that `count` is just what is to be added.
            label, count = OTHER, self[OTHER] + count
        dict.__setitem__(self, label, count)


class Counters:
    """The counts of one worker. Attributes are plain numbers, to be added to in place from the event loop's thread."""

    __slots__ = (
        "_at",
        "_held_up",
        "_held_up_sum",
        "_high",
        "_latency",
        "_low",
        "_lower",
        "_middle",
        "_model_latency",
        "_upper",
        "_wait",
        "_wire",
        "_wire_sum",
        "accept_pauses",
        "backends_closed",
        "backends_current",
        "backends_opened",
        "bytes_from_client",
        "bytes_to_client",
        "cancels_dropped",
        "cancels_forwarded",
        "clients_current",
        "clients_total",
        "half_open_evicted",
        "handed_back",
        "latency_sum",
        "log_lines_dropped",
        "login_timeouts",
        "logins_failed",
        "parse_cache_evictions",
        "paused",
        "pinned",
        "planner_connected",
        "pool_clients",
        "pool_limit",
        "pool_queue",
        "pool_servers",
        "pool_wait_seconds_count",
        "pool_wait_seconds_sum",
        "pool_wait_timeouts",
        "pool_waiting",
        "probe_client",
        "probe_server",
        "protocol_errors",
        "queue_rejected",
        "read_only_refused",
        "statements",
        "statements_reprepared",
        "steering_answered",
        "steering_arms",
        "steering_asked",
        "steering_breaker_opened",
        "steering_control",
        "steering_dialects",
        "steering_late",
        "steering_left_alone",
        "steering_models",
        "steering_observations_dropped",
        "steering_planner_errors",
        "steering_reasons",
        "steering_refused",
        "steering_run_again",
        "steering_steered",
        "steering_stopped",
        "steering_stops_failed",
        "steering_wait_seconds",
        "steering_waited",
        "tls_connections",
        "trace_spans",
        "transaction_seconds",
        "transactions",
    )

    def __init__(self) -> None:
        self.clients_total = 0
        self.clients_current = 0
        self.logins_failed = 0
        self.tls_connections = 0
        self.protocol_errors = 0
        self.half_open_evicted = 0
        self.login_timeouts = 0
        self.accept_pauses = 0
        self.statements = 0
        self.transactions = 0
        self.transaction_seconds = 0.0
        self.bytes_from_client = 0
        self.bytes_to_client = 0
        self.backends_opened = Labelled(pool=0, direct=0)
        self.backends_closed = 0
        self.backends_current = 0
        self.pool_waiting = 0
        self.paused = 0
        self.pool_clients = Labelled()
        self.pool_servers = Labelled()
        self.pool_limit = Labelled()
        self.pool_queue = Labelled()
        self.pool_wait_seconds_sum = 0.0
        self.pool_wait_seconds_count = 0
        self.pool_wait_timeouts = 0
        self.queue_rejected = 0
        self.cancels_forwarded = 0
        self.cancels_dropped = 0
        self.pinned = Labelled()
        self.statements_reprepared = 0
        self.steering_left_alone = 0
        self.steering_steered = 0
        self.steering_models = Labelled()
        self.steering_arms = Labelled()
        self.steering_dialects = Labelled()
        self.steering_reasons = Labelled()
        self.steering_waited = 0
        self.steering_wait_seconds = 0.0
        self.steering_late = 0
        self.steering_asked = 0
        self.steering_answered = 0
        self.steering_refused = 0
        self.steering_run_again = 0
        self.steering_control = 0
        self.steering_stopped = 0
        self.steering_stops_failed = 0
        self.steering_breaker_opened = 0
        self.steering_planner_errors = 0
        self.steering_observations_dropped = 0
        self.planner_connected = 0
        self.parse_cache_evictions = 0
        self.read_only_refused = 0
        self.handed_back = 0
        self.log_lines_dropped = 0
        self.trace_spans = Labelled()
        self.latency_sum = 0.0
        self._latency = [0] * (len(LATENCY_BOUNDS) + 1)
        # Most latencies belong in the same two buckets, where they are counted at the cost of a comparison: the first
        # one's place, the bounds below, between and above them, and what is not in the buckets yet.
        self._at = 0
        self._low = self._middle = self._high = -1.0
        self._lower = self._upper = 0
        self._model_latency: dict[str, dict[int, int]] = {}
        # By how much the server's times differ from the latencies, bucket by bucket: most do not.
        self._held_up = [0] * (len(LATENCY_BOUNDS) + 1)
        self._held_up_sum = 0.0
        self._wait = [0] * (len(WAIT_BOUNDS) + 1)
        self._wire = [0] * (len(WIRE_BOUNDS) + 1)
        self._wire_sum = 0.0
        # Set now and then: the next piece of what a client, or a server, sends is measured.
        self.probe_client = False
        self.probe_server = False

    def backend_opened(self, how: str) -> None:
        """Counts a server connection that was opened, ``pool`` or ``direct``."""
        self.backends_opened[how] += 1
        self.backends_current += 1

    def backend_closed(self) -> None:
        self.backends_closed += 1
        self.backends_current -= 1

    def observe_latency(self, seconds: float) -> None:
        """Counts one statement that took ``seconds`` from its arrival to its ReadyForQuery or CommandComplete."""
        self.latency_sum += seconds
        if self._low < seconds <= self._middle:
            self._lower += 1
        elif self._middle < seconds <= self._high:
            self._upper += 1
        else:
            self._put_away()
            at = bisect_left(LATENCY_BOUNDS, seconds)
            self._latency[at] += 1
            self._at = at = min(at, len(LATENCY_BOUNDS) - 1)
            self._low = LATENCY_BOUNDS[at - 1] if at else -1.0
            self._middle = LATENCY_BOUNDS[at]
            self._high = LATENCY_BOUNDS[at + 1] if at + 1 < len(LATENCY_BOUNDS) else inf

    def _put_away(self) -> None:
        """Counts the latest latencies in their buckets."""
        self._latency[self._at] += self._lower
        self._latency[self._at + 1] += self._upper
        self._lower = self._upper = 0

    def observe_model(self, model: str, seconds: float) -> None:
        """Counts one statement that steering looked at and that took its client ``seconds``, under the model that
        steered it ("": none did); about 0.5 us."""
        counts = self._model_latency.get(model or NO_MODEL)
        if counts is None:
            if model and len(self._model_latency) >= MAX_LABELS:
                model = OTHER
            counts = self._model_latency.setdefault(model or NO_MODEL, {})
        number = bucket(seconds * 1000)
        counts[number] = counts.get(number, 0) + 1

    def observe_held_up(self, seconds: float, ran: float) -> None:
        """The statement whose latency is ``seconds`` was with the server for ``ran`` seconds of them only."""
        self._held_up[bisect_left(LATENCY_BOUNDS, seconds)] -= 1
        self._held_up[bisect_left(LATENCY_BOUNDS, ran)] += 1
        self._held_up_sum += ran - seconds

    def observe_wait(self, seconds: float) -> None:
        """Counts one wait for advice."""
        self._wait[bisect_left(WAIT_BOUNDS, seconds)] += 1
        self.steering_wait_seconds += seconds

    def observe_wire(self, seconds: float) -> None:
        """Counts one piece of a stream that the proxy worked on for so long."""
        self._wire[bisect_left(WIRE_BOUNDS, seconds)] += 1
        self._wire_sum += seconds

    def snapshot(self) -> dict[str, float]:
        """The counts as they are now, flat: see the module's text for the keys."""
        flat: dict[str, float] = {}
        self._put_away()
        for metric in WORKER_METRICS:
            value = getattr(self, metric.attribute)
            if isinstance(value, Labelled):
                for label, count in value.items():
                    flat[f"{metric.attribute}{{{label}}}"] = count
            else:
                flat[metric.attribute] = value
        flat.update(zip(LATENCY_KEYS, self._latency, strict=True))
        flat[LATENCY_SUM] = self.latency_sum
        server = [all_of + other for all_of, other in zip(self._latency, self._held_up, strict=True)]
        flat.update(zip(_SERVER_KEYS, server, strict=True))
        flat["server_time_sum"] = self.latency_sum + self._held_up_sum
        flat.update(zip(_WAIT_KEYS, self._wait, strict=True))
        flat["decision_wait_sum"] = self.steering_wait_seconds
        flat.update(zip(_WIRE_KEYS, self._wire, strict=True))
        flat["wire_sum"] = self._wire_sum
        for model, counts in self._model_latency.items():
            for number, found in counts.items():
                flat[f"{MODEL_LATENCY}{{{model}|{number}}}"] = found
        return flat


def _is_gauge(key: str) -> bool:
    return key.partition("{")[0] in _GAUGES


def add_into(total: dict[str, float], snapshot: Mapping[str, float]) -> None:
    """Adds ``snapshot`` to ``total`` key by key."""
    for key, value in snapshot.items():
        total[key] = total.get(key, 0) + value


class MergedCounters:
    """The sum over sources (workers, and a predecessor that is draining) that come and go.

    A source is any hashable name used once: a restarted worker is a new source. Of one that is retired the counters
    stay in the base and the gauges go. Where a counter fell in a snapshot the higher value is kept, so that one that
    arrives late or broken cannot lower the sum.
    """

    __slots__ = ("_base", "_live")

    def __init__(self) -> None:
        self._base: dict[str, float] = {}
        self._live: dict[str, dict[str, float]] = {}

    def update(self, source: str, snapshot: Mapping[str, float]) -> None:
        """Takes the newest snapshot of a source."""
        held = self._live.setdefault(source, {})
        for key, value in snapshot.items():
            if _is_gauge(key):
                if value or "{" not in key:
                    held[key] = value
                else:
                    held.pop(key, None)  # a pool that is gone
            elif value >= held.get(key, 0):
                held[key] = value

    def retire(self, source: str) -> None:
        """Keeps the last known counters of a source that is gone and forgets its gauges."""
        held = self._live.pop(source, {})
        add_into(self._base, {key: value for key, value in held.items() if not _is_gauge(key)})

    def totals(self) -> dict[str, float]:
        """The sum over all sources, living and retired, in the form of a snapshot."""
        total = dict(self._base)
        for snapshot in self._live.values():
            add_into(total, snapshot)
        return total

    def live(self) -> Mapping[str, Mapping[str, float]]:
        """The latest snapshot of each living source."""
        return self._live


def labelled(totals: Mapping[str, float], attribute: str) -> Iterable[tuple[str, float]]:
    """The label values of one metric in a snapshot, with their counts."""
    start = f"{attribute}{{"
    return [(key[len(start) : -1], value) for key, value in totals.items() if key.startswith(start)]

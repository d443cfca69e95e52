"""What the admin pages need to know of the running instance, as plain values.

The supervisor implements `AdminSource` (see pilotwire/admin_view.py); what lies in the store comes by `MemorySource`.
All durations are milliseconds unless their name says otherwise, all moments are aware datetimes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from proxy.settings import ProxySettings

Order = Literal["saved", "lost", "total", "updated"]
Decision = Literal["approve", "reject", "prefer", "freeze", "unfreeze", "opt_out", "opt_in", "release", "forget"]
Metric = Literal["statement_latency", "inference_latency", "unsteered_latency"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One file of the models' folder. ``state`` is active (it serves), valid, kept (only a copy is left) or
    refused; ``detail`` says why."""

    file: str
    kind: str
    name: str
    version: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PlannerStatus:
    """The planner process. ``catalog_age_s`` is the age of its oldest catalog snapshot, -1 when it has none; ``queue``
    how many statements wait in it; ``store`` why it cannot write to the store, "" where it can; ``breakers_open``
    as in `planner.control.Report`."""

    ready: bool = False
    memory: int = 0
    databases: int = 0
    catalog_age_s: float = -1.0
    queue: int = 0
    models: tuple[ModelStatus, ...] = ()
    store: str = ""
    breakers_open: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """The instance at one moment.

    ``totals`` is a merged snapshot (see proxy/metrics.py), ``memory`` resident bytes by process name, ``start_time``
    seconds since 1970, ``planner`` is None where steering is off.
    """

    workers_configured: int
    workers_alive: int
    workers_ready: int
    workers_responding: int
    worker_restarts: int
    draining: bool
    start_time: float
    totals: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    planner: PlannerStatus | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles of one metric of one model over ``seconds`` that end at ``at``."""

    model: str
    metric: Metric
    at: datetime
    seconds: float
    count: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latest of each model and metric, and when they were last collected (None: never)."""

    latest: tuple[Latency, ...] = ()
    collected: datetime | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """What steering did since midnight of the proxy's machine: seconds that clients were spared, seconds that steered
    statements took longer than plain ones, arms withdrawn because they lost. ``known`` is false where nothing has been
    measured yet."""

    since: datetime
    saved_s: float = 0.0
    lost_s: float = 0.0
    regressions: int = 0
    known: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    """One client. ``id`` is ``worker.number``; ``state`` is idle, active, in transaction, waiting or logging in;
    ``log_id`` names its connection in the log."""

    id: str
    user: str
    database: str
    application: str
    peer: str
    tls: bool
    read_only: bool
    connected: datetime
    state: str
    running_ms: float
    server_pid: int
    log_id: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """The connections of one user to one database, over all workers."""

    user: str
    database: str
    mode: str
    clients: int = 0
    active: int = 0
    waiting: int = 0
    servers: int = 0
    idle_servers: int = 0
    opening: int = 0
    limit: int = 0
    longest_wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Reloaded:
    """``changed`` names the settings that apply now, ``restart`` those that wait for a restart, ``refused`` why the
    settings were not taken ("": they were)."""

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Arm:
    """The evidence for one way of planning a query. ``rows`` and ``settings`` are the advice; gains are factors (2.0:
    twice as fast; 0.0: not known)."""

    arm: str
    state: str
    model: str
    dialect: str
    rows: tuple[tuple[tuple[str, ...], float], ...]
    settings: tuple[tuple[str, str], ...]
    latencies: tuple[float, ...]
    baseline: tuple[float, ...]
    steered_ms: float | None
    plain_ms: float | None
    runs: int
    losses: int
    expected_gain: float
    measured_gain: float
    saved_ms: float
    why: str
    actor: str
    updated: datetime | None


@dataclass(frozen=True, slots=True)
class Query:
    """One remembered query or template. ``arm`` and ``state`` are those of the arm that matters most (one that is used,
    else the one changed last); ``saved_ms`` is what steering saved over all runs, negative when it lost."""

    key: str
    template: str
    database: str
    search_path: str
    fingerprint: str
    text: str
    calls: int
    total_ms: float
    plain_ms: float | None
    steered_ms: float | None
    saved_ms: float
    state: str
    arm: str
    arms: int
    opted_out: bool
    first_seen: datetime | None
    last_seen: datetime | None
    updated: datetime | None


@dataclass(frozen=True, slots=True)
class Run:
    """One execution that was recorded. ``decision`` is steered, control, or why it was left alone."""

    at: datetime
    took_ms: float
    decision: str
    arm: str = ""
    model: str = ""
    rows: int = -1
    failed: str = ""
    database: str = ""
    user: str = ""
    application: str = ""
    fingerprint: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class BreakerNow:
    """A circuit breaker. ``source`` is ``everything`` (all steering) or a model and version, of which ``covers`` says
    what is off when it is not closed: ``trials``, or the ``use`` of what was approved (``everything``: all steering).
    ``until`` is when an open one is tried again; ``bad`` of ``outcomes``, those since its position changed last."""

    source: str
    covers: str
    position: str
    until: datetime | None
    bad: int
    outcomes: int


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One line of the ledger. ``id`` grows with time. ``scope`` is ``query`` or ``template`` where it is about one: a
    run counts for both, and each has states of its own."""

    id: int
    at: datetime
    kind: str
    key: str
    database: str
    fingerprint: str
    arm: str
    model: str
    before: str
    after: str
    expected_gain: float
    measured_gain: float
    took_ms: float
    actor: str
    why: str
    text: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class QueryDetail:
    """``runs`` are the recorded executions, the newest first; ``ledger`` what became of it."""

    query: Query
    arms: tuple[Arm, ...] = ()
    runs: tuple[Run, ...] = ()
    ledger: tuple[LedgerLine, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanNode:
    """One step of a plan. ``actual`` is None when it was not run; ``differs``: the other plan has no such step."""

    name: str
    estimated: float
    actual: float | None
    cost: float
    time_ms: float | None
    differs: bool
    detail: str = ""
    children: tuple[PlanNode, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedStatement:
    """``advice`` is what is added to the statement for this plan; ``time_ms`` is None when it was not run."""

    root: PlanNode
    cost: float
    planning_ms: float | None
    time_ms: float | None
    advice: str = ""


@dataclass(frozen=True, slots=True)
class PlanPair:
    """``note`` says what the two plans cannot show."""

    plain: PlannedStatement
    steered: PlannedStatement | None
    arm: str
    note: str = ""


class PlannerUnavailableError(Exception):
    """There is no planner process, or it does not answer; ``str()`` says which."""


class UnavailableError(Exception):
    """What was asked for cannot be given now; ``str()`` is one sentence for the person who asked."""


class NotFoundError(Exception):
    """There is no such thing; ``str()`` says what was looked for."""


class RefusedError(Exception):
    """What was asked cannot be done; ``str()`` is one sentence that says why."""


class MemorySource(Protocol):
    """What the store knows. All of it may raise UnavailableError."""

    async def queries(
        self, order: Order, offset: int, limit: int, state: str | None, database: str | None, search: str
    ) -> tuple[Sequence[Query], int]:
        """One page, and how many there are in all (of those looked at)."""
        ...

    async def query(self, key: str) -> QueryDetail:
        """Raises NotFoundError."""
        ...

    async def ledger(self, kind: str | None, key: str | None, before: int | None, limit: int) -> Sequence[LedgerLine]:
        """The newest first."""
        ...

    async def runs(self, key: str | None, limit: int) -> Sequence[Run]:
        """Recorded executions, the newest first."""
        ...

    async def history(self, metric: Metric, model: str | None, start: datetime, end: datetime) -> Sequence[Latency]:
        """In the order of time."""
        ...

    async def gain(self) -> Gain: ...

    async def decide(self, key: str, action: Decision, arm: str, actor: str, why: str) -> QueryDetail:
        """A person's decision, and the query after it. Raises NotFoundError, RefusedError."""
        ...

    async def breakers(self) -> Sequence[BreakerNow]:
        """All circuit breakers, that over all steering first."""
        ...

    async def close_breaker(self, source: str, covers: str, actor: str, why: str) -> Sequence[BreakerNow]:
        """A person closes those of ``source`` that are not closed, before their pause is over (``covers`` "": both of a
        model); all of them afterwards. Raises NotFoundError, RefusedError."""
        ...

    async def plans(self, key: str, text: str, arm: str, *, analyze: bool) -> PlanPair:
        """Both plans of a query; ``text`` is needed where the store keeps none, and must be the very statement.
        ``analyze`` runs both. Raises NotFoundError, RefusedError."""
        ...


class AdminSource(Protocol):
    """The supervisor, as the admin pages see it."""

    @property
    def settings(self) -> ProxySettings:
        """Those in force."""
        ...

    @property
    def memory(self) -> MemorySource: ...

    def status(self) -> Status:
        """As far as it is known without asking anybody."""
        ...

    async def fresh_status(self) -> Status:
        """After asking each worker for its counters; one that does not answer soon is shown as last known."""
        ...

    async def upstream_reachable(self) -> bool:
        """Whether the upstream accepted a connection within the last seconds."""
        ...

    async def latencies(self) -> Latencies:
        """Of the last `history_interval`, and where a model had none in it the last that was collected."""
        ...

    async def clients(self, after: str, limit: int) -> Sequence[Client]:
        """Those behind ``after`` (an id, "" for the first page) in the order of worker and number."""
        ...

    async def pools(self) -> Sequence[Pool]: ...

    async def kill(self, client: str) -> bool:
        """Ends a client; False when it is gone."""
        ...

    async def reload(self) -> Reloaded:
        """Reads the settings again, as SIGHUP does."""
        ...

    async def set_mode(self, mode: str, actor: str, why: str) -> None:
        """For a known mode: until the next change, or the end of the process."""
        ...

    async def reload_models(self) -> tuple[ModelStatus, ...]:
        """Has the models' folder read again; its state afterwards. Raises PlannerUnavailableError."""
        ...

    async def model_file(self, file: str) -> Mapping[str, Any]:
        """What the file says about itself: kind, manifest with training summary, checks. Raises NotFoundError,
        UnavailableError."""
        ...

    async def choose_model(self, action: Literal["activate", "rollback", "release"], what: str) -> None:
        """Pins a model (``what``: name@version or file), goes back to the one before, or lets the newest serve again
        (``what``: the kind). Raises RefusedError, UnavailableError."""
        ...

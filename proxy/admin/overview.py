"""``/api/status``: is it healthy, is it helping? All of the console's first screen in one answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, get_args

from fastapi import APIRouter
from pydantic import BaseModel

from proxy.admin.latencies import iso
from proxy.admin.source import AdminSource, BreakerNow, Latency, Status, UnavailableError
from proxy.declared_metrics import Q_ERROR_BOUNDS
from proxy.metrics import labelled
from proxy.quantiles import of_histogram
from proxy.settings import SteeringMode

Grade = Literal["good", "warning", "danger"]
CATALOG_LATE: Final = 4.0
"""A catalog older than so many refreshes is worth a word."""


class Trouble(BaseModel):
    """``level`` is warning (it serves, but not as it should) or danger (clients notice)."""

    level: Literal["warning", "danger"]
    text: str


class Workers(BaseModel):
    configured: int
    alive: int
    ready: int
    responding: int
    restarts: int


class Planner(BaseModel):
    """``wanted`` is false where there are no models or steering is off."""

    wanted: bool
    ready: bool
    databases: int
    queue: int
    catalog_age_s: float


class Traffic(BaseModel):
    """Counts since the start, for rates; ``clients``, ``servers`` and ``waiting`` are of now."""

    clients: int
    servers: int
    waiting: int
    statements: int
    transactions: int
    steered: int
    left_alone: int
    asked: int
    late: int
    failed_logins: int


class GainNow(BaseModel):
    since: str
    saved_s: float
    lost_s: float
    regressions: int
    known: bool


class ModelLatency(BaseModel):
    """``grade`` is by the 95th percentile and the settings latency_good_ms and latency_warning_ms."""

    model: str
    metric: str
    grade: Grade | None
    p50_ms: float
    p95_ms: float
    p99_ms: float
    count: int
    at: str


class Reason(BaseModel):
    reason: str
    count: int


class Accuracy(BaseModel):
    """By which factor row counts were off since the start (medians of the q-error, 1 is exact): those that the model
    predicted, and the server's own estimates of the same. ``what`` is ``statements`` (rows that clients got) or
    ``joins`` (inside statements that were run again as samples, see the setting accuracy_samples)."""

    what: Literal["statements", "joins"]
    count: int
    model: float
    server: float


class Overview(BaseModel):
    """``breakers`` are the circuit breakers that are not closed. ``evidence`` none: advice is used at once, and nothing
    is compared or remembered."""

    health: Literal["healthy", "degraded", "unhealthy"]
    trouble: list[Trouble]
    mode: str
    modes: list[str]
    evidence: str
    at: str
    uptime_s: float
    workers: Workers
    planner: Planner
    traffic: Traffic
    gain: GainNow | None
    models: list[ModelLatency]
    accuracy: list[Accuracy]
    reasons: list[Reason]
    breakers: list[BreakerNow]
    latency_good_ms: float
    latency_warning_ms: float
    interval_s: float


def router(source: AdminSource) -> APIRouter:
    """One page."""
    routes = APIRouter(prefix="/api", tags=["status"])

    @routes.get("/status")
    async def status() -> Overview:
        """The instance as it is now: health with reasons, gain of today, latencies of each model."""
        return await overview(source)

    return routes


async def overview(source: AdminSource) -> Overview:
    """Also what `pilotwire top` shows."""
    now = time.time()
    status, settings = await source.fresh_status(), source.settings
    reachable = await source.upstream_reachable()
    latest = (await source.latencies()).latest
    complaint = ""
    gain = None
    breakers: list[BreakerNow] = []
    try:
        breakers = [one for one in await source.memory.breakers() if one.position != "closed"]
        found = await source.memory.gain()
        gain = GainNow(
            since=iso(found.since),
            saved_s=found.saved_s,
            lost_s=found.lost_s,
            regressions=found.regressions,
            known=found.known,
        )
    except UnavailableError as error:
        complaint = str(error)
    trouble = _trouble(source, status, reachable, complaint, breakers)
    worst = {item.level for item in trouble}
    totals = status.totals
    planner = status.planner
    return Overview(
        health="unhealthy" if "danger" in worst else "degraded" if worst else "healthy",
        trouble=trouble,
        mode=settings.mode,
        modes=list(MODES),
        evidence=settings.evidence,
        at=iso(_aware(now)),
        uptime_s=round(now - status.start_time, 1),
        workers=Workers(
            configured=status.workers_configured,
            alive=status.workers_alive,
            ready=status.workers_ready,
            responding=status.workers_responding,
            restarts=status.worker_restarts,
        ),
        planner=Planner(
            wanted=planner is not None and settings.mode != "off",
            ready=planner is not None and planner.ready,
            databases=planner.databases if planner else 0,
            queue=planner.queue if planner else 0,
            catalog_age_s=round(planner.catalog_age_s, 1) if planner else -1,
        ),
        traffic=Traffic(
            clients=int(totals.get("clients_current", 0)),
            servers=int(totals.get("backends_current", 0)),
            waiting=int(totals.get("pool_waiting", 0)),
            statements=int(totals.get("statements", 0)),
            transactions=int(totals.get("transactions", 0)),
            steered=int(totals.get("steering_steered", 0)),
            left_alone=int(totals.get("steering_left_alone", 0)),
            asked=int(totals.get("steering_asked", 0)),
            late=int(totals.get("steering_late", 0)),
            failed_logins=int(totals.get("logins_failed", 0)),
        ),
        gain=gain,
        models=[_model(row, settings.latency_good_ms, settings.latency_warning_ms) for row in latest],
        accuracy=accuracy(totals),
        reasons=reasons(status),
        breakers=breakers,
        latency_good_ms=settings.latency_good_ms,
        latency_warning_ms=settings.latency_warning_ms,
        interval_s=settings.history_interval,
    )


def accuracy(totals: Mapping[str, float]) -> list[Accuracy]:
    """Without what nothing is known of."""
    found: list[Accuracy] = []
    kinds: tuple[tuple[Literal["statements", "joins"], str], ...] = (
        ("statements", "root_q_error"), ("joins", "sub_plan_q_error"),
    )  # fmt: skip
    for what, attribute in kinds:
        count = sum(totals.get(f"{attribute}{{{bound}}}", 0) for bound in (*Q_ERROR_BOUNDS, "+Inf"))
        if count:
            model, server = (
                max(round(of_histogram(totals, name, Q_ERROR_BOUNDS, 0.5), 2), 1.0)
                for name in (attribute, f"{attribute}_server")
            )
            found.append(Accuracy(what=what, count=int(count), model=model, server=server))
    return found


def reasons(status: Status) -> list[Reason]:
    """Why statements that join tables were left alone, the most frequent first."""
    found = sorted(labelled(status.totals, "steering_reasons"), key=lambda pair: -pair[1])
    return [Reason(reason=reason, count=int(count)) for reason, count in found]


MODES: Final = get_args(SteeringMode)
"""The modes that the setting allows, in its own order."""


def _model(row: Latency, good: float, warning: float) -> ModelLatency:
    grade: Grade = "good" if row.p95 < good else "warning" if row.p95 < warning else "danger"
    return ModelLatency(
        model=row.model,
        metric=row.metric,
        grade=grade if row.metric == "statement_latency" else None,
        p50_ms=row.p50,
        p95_ms=row.p95,
        p99_ms=row.p99,
        count=row.count,
        at=iso(row.at),
    )


def _trouble(
    source: AdminSource, status: Status, reachable: bool, store: str, breakers: Sequence[BreakerNow]
) -> list[Trouble]:
    settings, planner = source.settings, status.planner
    away = planner is not None and settings.mode != "off" and not planner.ready
    late = (
        planner is not None
        and planner.ready
        and planner.catalog_age_s > max(CATALOG_LATE * settings.catalog_refresh, 60.0)
    )
    active = planner is not None and any(model.state == "active" for model in planner.models)
    refused = sum(model.state == "refused" for model in planner.models) if planner is not None else 0
    unwritten = planner is not None and bool(planner.store) and not store
    silent = status.workers_configured - status.workers_responding
    found: list[tuple[bool, Literal["warning", "danger"], str]] = [
        (not reachable, "danger", "The server (upstream) cannot be reached."),
        (status.workers_responding == 0, "danger", "No worker process responds: clients are not served."),
        (0 < silent < status.workers_configured, "warning", f"{silent} of the worker processes do not respond."),
        (status.totals.get("paused", 0) > 0, "danger", "PAUSE is in force: clients wait until RESUME is given."),
        (status.draining, "warning", "This instance is stopping: it serves only who is connected."),
        (away, "warning", "The planner process is not there: statements go through as they are."),
        (late, "warning", "The catalog could not be read for a while: advice may be out of date."),
        (planner is not None and planner.ready and not active, "warning", "No model serves."),
        (refused > 0, "warning", f"{refused} model file{'s are' if refused > 1 else ' is'} refused: see Models."),
        (bool(store), "warning", store),
        (unwritten, "warning", f"Nothing new is kept or approved: {planner.store if planner else ''}."),
    ]
    found += [(one.covers != "trials", "warning", _off(one)) for one in breakers if one.position == "open"]
    return [Trouble(level=level, text=text) for holds, level, text in found if holds]


def _off(one: BreakerNow) -> str:
    what = "All steering" if one.covers == "everything" else f"What was approved of {one.source}"
    until = f" until {one.until:%H:%M}" if one.until is not None else ""
    return f"{what} is switched off{until} by its circuit breaker: too much was withdrawn."


def _aware(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()

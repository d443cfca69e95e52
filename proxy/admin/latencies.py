"""``/api/metrics/``, ``/api/metrics/p95/``, ``/api/metrics/history/`` and ``/api/health/``: latencies of each model.

``statement_latency`` is what clients waited for the statements that a model and version steered, ``unsteered_latency``
the same for those that were left alone (model ``none``), ``inference_latency`` what the model itself took. The numbers
are of the last ``history_interval``; where a model had nothing to do in it, of the last one that was collected.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import groupby
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from proxy.admin.source import AdminSource, Latency, Metric

ModelName = Annotated[str, Field(min_length=1, max_length=200)]
MAX_HOURS: Final = 24 * 366
LATE: Final = 2.5
LOST: Final = 6.0
"""So many intervals without a collection are degraded, and unhealthy."""


class _Selected(BaseModel):
    """Parameters that are not known are refused: a misspelt filter would silently select everything."""

    model_config = ConfigDict(extra="forbid")


class Which(_Selected):
    model_name: ModelName | None = None


class WhichMetric(Which):
    metric_name: Metric | None = None


class WhichHours(Which):
    hours: int = Field(1, ge=1, le=MAX_HOURS, description="How far back.")


class P95(BaseModel):
    model: str
    p95_latency_ms: float
    collected_at: str


class P95Answer(BaseModel):
    status: Literal["success"] = "success"
    data: list[P95]
    count: int
    last_updated: str


class Quantiles(BaseModel):
    model: str
    p50_latency_ms: float
    p95_latency_ms: float
    p99_latency_ms: float
    collected_at: str
    metric_name: Metric
    time_range: str = Field(examples=["5m"])


class QuantilesAnswer(BaseModel):
    status: Literal["success"] = "success"
    data: list[Quantiles]
    count: int
    last_updated: str


class Point(BaseModel):
    timestamp: str
    p95_latency_ms: float


class Series(BaseModel):
    model: str
    data_points: list[Point]


class TimeRange(BaseModel):
    start: str
    end: str
    hours: int


class HistoryAnswer(BaseModel):
    status: Literal["success"] = "success"
    data: list[Series]
    count: int
    time_range: TimeRange


class HealthAnswer(BaseModel):
    status: Literal["healthy", "degraded", "unhealthy"]
    last_collection: str | None
    minutes_ago: int | None
    model_count: int


def router(source: AdminSource) -> APIRouter:
    """The four pages; 422 says which parameter is wrong and how."""
    routes = APIRouter(prefix="/api", tags=["metrics"])

    @routes.get("/metrics/p95/")
    async def p95(which: Annotated[Which, Query()]) -> P95Answer:
        """The 95th percentile of the statements that each model steered."""
        rows, updated = await _latest(source, "statement_latency", which.model_name)
        data = [P95(model=row.model, p95_latency_ms=_ms(row.p95), collected_at=iso(row.at)) for row in rows]
        return P95Answer(data=data, count=len(data), last_updated=updated)

    @routes.get("/metrics/")
    async def quantiles(which: Annotated[WhichMetric, Query()]) -> QuantilesAnswer:
        """Median, 95th and 99th percentile of each model and metric."""
        rows, updated = await _latest(source, which.metric_name, which.model_name)
        data = [
            Quantiles(
                model=row.model,
                p50_latency_ms=_ms(row.p50),
                p95_latency_ms=_ms(row.p95),
                p99_latency_ms=_ms(row.p99),
                collected_at=iso(row.at),
                metric_name=row.metric,
                time_range=span(source.settings.history_interval),
            )
            for row in rows
        ]
        return QuantilesAnswer(data=data, count=len(data), last_updated=updated)

    @routes.get("/metrics/history/")
    async def history(which: Annotated[WhichHours, Query()]) -> HistoryAnswer:
        """The 95th percentile over time, from the store."""
        end = now()
        start = end - timedelta(hours=which.hours)
        rows = await source.memory.history("statement_latency", which.model_name, start, end)
        data = [
            Series(
                model=model,
                data_points=[Point(timestamp=iso(row.at), p95_latency_ms=_ms(row.p95)) for row in series],
            )
            for model, series in _by_model(rows)
        ]
        spanned = TimeRange(start=iso(start), end=iso(end), hours=which.hours)
        return HistoryAnswer(data=data, count=len(data), time_range=spanned)

    @routes.get("/health/")
    async def health() -> HealthAnswer:
        """Whether latencies are collected as they should be, and whether anybody serves clients."""
        found = await source.latencies()
        status = source.status()
        state: Literal["healthy", "degraded", "unhealthy"] = "healthy"
        age = (now() - found.collected).total_seconds() if found.collected is not None else None
        interval = source.settings.history_interval
        if age is None or age > LOST * interval or not status.workers_responding:
            state = "unhealthy"
        elif age > LATE * interval or status.workers_responding < status.workers_configured or _planner_away(source):
            state = "degraded"
        models = status.planner.models if status.planner is not None else ()
        return HealthAnswer(
            status=state,
            last_collection=iso(found.collected) if found.collected is not None else None,
            minutes_ago=None if age is None else int(max(age, 0) // 60),
            model_count=sum(model.state == "active" for model in models),
        )

    return routes


def _planner_away(source: AdminSource) -> bool:
    planner = source.status().planner
    return planner is not None and not planner.ready


async def _latest(source: AdminSource, metric: str | None, model: str | None) -> tuple[list[Latency], str]:
    found = await source.latencies()
    rows = [row for row in found.latest if metric in (None, row.metric) and model in (None, row.model)]
    rows.sort(key=lambda row: (row.model, row.metric))
    updated = max((row.at for row in rows), default=found.collected)
    return rows, iso(updated or now())


def _by_model(rows: Iterable[Latency]) -> list[tuple[str, list[Latency]]]:
    ordered = sorted(rows, key=lambda row: (row.model, row.at))
    return [(model, list(series)) for model, series in groupby(ordered, key=lambda row: row.model)]


def now() -> datetime:
    return datetime.now().astimezone()


def iso(moment: datetime) -> str:
    """With the offset of this machine's zone, to the second."""
    return moment.astimezone().isoformat(timespec="seconds")


def span(seconds: float) -> str:
    """300 as ``5m``."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _ms(value: float) -> float:
    return round(value, 2 if value >= 1 else 4)

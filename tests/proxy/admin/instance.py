"""A made-up instance for the admin pages: every answer is a value that a test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal, cast

import httpx
from fastapi import FastAPI

from proxy.admin.app import create_app
from proxy.admin.source import (
    AdminSource,
    BreakerNow,
    Client,
    Decision,
    Gain,
    Latencies,
    Latency,
    LedgerLine,
    Metric,
    ModelStatus,
    NotFoundError,
    Order,
    PlannedStatement,
    PlannerStatus,
    PlannerUnavailableError,
    PlanNode,
    PlanPair,
    Pool,
    Query,
    QueryDetail,
    RefusedError,
    Reloaded,
    Run,
    Status,
    UnavailableError,
)
from proxy.metrics import Counters
from proxy.settings import ProxySettings

NOON = datetime(2026, 10, 17, 12, 0, tzinfo=UTC)
KEY = "ab" * 16
QUERY = Query(
    KEY, "cd" * 16, "shop", "public", "f1", "SELECT 1", 10, 100.0, 10.0, 5.0, 50.0, "approved", "cardinality", 1,
    False, NOON, NOON, NOON,
)  # fmt: skip
ROOT = PlanNode("Seq Scan t", 10.0, None, 1.5, None, False)


def latency(model: str, metric: Metric = "statement_latency", p95: float = 50.0, at: datetime = NOON) -> Latency:
    return Latency(model, metric, at, 300.0, 20, p95 / 2, p95, p95 * 2)


class Memory:
    """What the store would know. With ``away`` set everything is refused with that sentence."""

    def __init__(self) -> None:
        self.away = ""
        self.points: list[Latency] = []
        self.asked: list[tuple[object, ...]] = []
        self.switched_off: list[BreakerNow] = []
        self.lines = [
            LedgerLine(number, NOON, "state", KEY, "shop", "f1", "cardinality", "m-1", "trial", "approved", 2.0, 2.1,
                       0.0, "system", "it won", "")
            for number in range(9, 0, -1)
        ]  # fmt: skip

    def _there(self, *asked: object) -> None:
        self.asked.append(asked)
        if self.away:
            raise UnavailableError(self.away)

    async def queries(
        self, order: Order, offset: int, limit: int, state: str | None, database: str | None, search: str
    ) -> tuple[Sequence[Query], int]:
        self._there("queries", order, offset, limit, state, database, search)
        return [QUERY][offset : offset + limit], 1

    async def query(self, key: str) -> QueryDetail:
        self._there("query", key)
        if key != KEY:
            raise NotFoundError(f"no query {key} is remembered")
        return QueryDetail(QUERY)

    async def ledger(self, kind: str | None, key: str | None, before: int | None, limit: int) -> Sequence[LedgerLine]:
        self._there("ledger", kind, key, before, limit)
        return [line for line in self.lines if before is None or line.id < before][:limit]

    async def runs(self, key: str | None, limit: int) -> Sequence[Run]:
        self._there("runs", key, limit)
        return [Run(NOON, 12.5, "steered", "cardinality", key=KEY)]

    async def history(self, metric: Metric, model: str | None, start: datetime, end: datetime) -> Sequence[Latency]:
        self._there("history", metric, model)
        return [
            point
            for point in self.points
            if point.metric == metric and model in (None, point.model) and start <= point.at < end
        ]

    async def gain(self) -> Gain:
        self._there("gain")
        return Gain(NOON, 120.0, 3.0, 1, known=True)

    async def decide(self, key: str, action: Decision, arm: str, actor: str, why: str) -> QueryDetail:
        self._there("decide", key, action, arm, actor, why)
        if action == "approve" and not arm:
            raise RefusedError("name the arm")
        return await self.query(key)

    async def breakers(self) -> Sequence[BreakerNow]:
        self._there("breakers")
        return self.switched_off

    async def close_breaker(self, source: str, covers: str, actor: str, why: str) -> Sequence[BreakerNow]:
        self._there("close", source, covers, actor, why)
        if source not in {one.source for one in self.switched_off}:
            raise NotFoundError(f"no circuit breaker of {source} is open")
        self.switched_off = [replace(one, position="closed", until=None) for one in self.switched_off]
        return self.switched_off

    async def plans(self, key: str, text: str, arm: str, *, analyze: bool) -> PlanPair:
        self._there("plans", key, text, arm, analyze)
        planned = PlannedStatement(ROOT, 1.5, None, None)
        return PlanPair(planned, planned, "cardinality")


class Instance:
    """An ``AdminSource``."""

    def __init__(self, **settings: Any) -> None:
        counters = Counters()
        counters.statements = 7
        counters.pinned["listen"] += 2
        for seconds in (0.0002, 0.003, 100.0):
            counters.observe_latency(seconds)
        self.totals = counters.snapshot()
        self.ready = 2
        self.responding = 2
        self.draining = False
        self.reachable = True
        self.planner: PlannerStatus | None = None
        self.settings = ProxySettings.model_validate(
            {"upstream": "postgresql://app@127.0.0.1/shop", "store": "none", **settings}
        )
        self.memory = Memory()
        self.latest = Latencies(collected=NOON)
        self.connected: list[Client] = []
        self.reloaded = Reloaded(("pool_size",))
        self.killed: list[str] = []

    def status(self) -> Status:
        memory = {"supervisor": 1024}
        return Status(2, 2, self.ready, self.responding, 3, self.draining, 1.5, self.totals, memory, self.planner)

    async def fresh_status(self) -> Status:
        return self.status()

    async def upstream_reachable(self) -> bool:
        return self.reachable

    async def latencies(self) -> Latencies:
        return self.latest

    async def clients(self, after: str, limit: int) -> Sequence[Client]:
        start = 1 + next((n for n, client in enumerate(self.connected) if client.id == after), -1)
        return self.connected[start : start + limit]

    async def pools(self) -> Sequence[Pool]:
        return [Pool("app", "shop", "transaction", clients=3)]

    async def kill(self, client: str) -> bool:
        self.killed.append(client)
        return client in {known.id for known in self.connected}

    async def reload(self) -> Reloaded:
        return self.reloaded

    async def set_mode(self, mode: str, actor: str, why: str) -> None:
        self.settings = self.settings.model_copy(update={"mode": mode})

    async def reload_models(self) -> tuple[ModelStatus, ...]:
        if self.planner is None:
            raise PlannerUnavailableError("steering is off")
        return self.planner.models

    async def model_file(self, file: str) -> Mapping[str, Any]:
        if file != "m.onnx":
            raise NotFoundError(f"no model file {file}")
        return {"file": file, "ok": True}

    async def choose_model(self, action: Literal["activate", "rollback", "release"], what: str) -> None:
        if what == "nobody":
            raise RefusedError("no model nobody")


class _Present:
    """Stands for the instance of the test that runs: making an application takes longer than most tests."""

    def __init__(self) -> None:
        self.instance = Instance()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.instance, name)


_present = _Present()
_apps: dict[str, FastAPI] = {}


def client(instance: Instance, token: str = "", base_url: str = "http://admin") -> httpx.AsyncClient:
    _present.instance = instance
    if token not in _apps:
        _apps[token] = create_app(cast(AdminSource, _present), token)
    transport = httpx.ASGITransport(_apps[token])
    return httpx.AsyncClient(transport=transport, base_url=base_url)

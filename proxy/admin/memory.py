"""Decisions, memory and ledger: what was steered, on what evidence, and what a person decides about it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from proxy.admin.overview import Reason, reasons
from proxy.admin.source import (
    AdminSource,
    BreakerNow,
    Decision,
    LedgerLine,
    Order,
    PlanPair,
    QueryDetail,
    Run,
    UnavailableError,
)
from proxy.admin.source import Query as QueryRow

Key = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="As in the list.")]
State = Literal["candidate", "trial", "approved", "rejected", "expired", "preferred", "frozen"]
Kind = Literal["state", "execution", "breaker", "mode", "model", "person"]


class Decisions(BaseModel):
    """``steered`` and ``left_alone`` count statements since the start; ``recent`` are recorded executions, the newest
    first, or ``unavailable`` says why there are none."""

    steered: int
    left_alone: int
    reasons: list[Reason]
    recent: list[Run]
    unavailable: str = ""


class Queries(BaseModel):
    """``total`` is how many there are in all."""

    queries: list[QueryRow]
    total: int
    offset: int
    limit: int


class Ledger(BaseModel):
    """``next`` is what to give as ``before`` for the next page, null at the end."""

    entries: list[LedgerLine]
    next: int | None


class Judgement(BaseModel):
    """``arm`` may be left out where the query has one only. ``why`` goes into the ledger."""

    model_config = ConfigDict(extra="forbid")

    action: Decision
    arm: str = Field("", max_length=100)
    actor: str = Field("api", min_length=1, max_length=100)
    why: str = Field("", max_length=500)


class Breakers(BaseModel):
    breakers: list[BreakerNow]


class Closing(BaseModel):
    """``source`` is ``everything`` or a model and version, as in the list. ``covers`` may be left out: both of a
    model's."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["close"] = "close"
    source: str = Field(min_length=1, max_length=200)
    covers: Literal["", "trials", "use"] = ""
    actor: str = Field("api", min_length=1, max_length=100)
    why: str = Field("", max_length=500)


class Wanted(BaseModel):
    """``text`` is the statement with its values, needed where the store keeps none. ``analyze`` runs it, read only and
    within a time limit, once for each plan."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", max_length=65_536)
    arm: str = Field("", max_length=100)
    analyze: bool = False


def router(source: AdminSource) -> APIRouter:
    """503 says why the store cannot be read, 404 and 409 what was wrong with a request."""
    routes = APIRouter(prefix="/api", tags=["memory"])

    @routes.get("/decisions")
    async def decisions(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        key: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None,
    ) -> Decisions:
        """What was steered and what was left alone, why, and the latest of them."""
        status = await source.fresh_status()
        recent: list[Run] = []
        unavailable = ""
        try:
            recent = list(await source.memory.runs(key, limit))
        except UnavailableError as error:
            unavailable = str(error)
        return Decisions(
            steered=int(status.totals.get("steering_steered", 0)),
            left_alone=int(status.totals.get("steering_left_alone", 0)),
            reasons=reasons(status),
            recent=recent,
            unavailable=unavailable,
        )

    @routes.get("/memory")
    async def queries(
        order: Order = "saved",
        offset: Annotated[int, Query(ge=0, le=100_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        state: State | None = None,
        database: Annotated[str | None, Query(max_length=63)] = None,
        search: Annotated[str, Query(max_length=200, description="In the text, fingerprint or key.")] = "",
    ) -> Queries:
        """The queries that are remembered, by what was saved or lost on them, total time or last change."""
        rows, total = await source.memory.queries(order, offset, limit, state, database, search)
        return Queries(queries=list(rows), total=total, offset=offset, limit=limit)

    @routes.get("/memory/{key}")
    async def query(key: Key) -> QueryDetail:
        """One query: its arms with their evidence, its runs, its ledger."""
        return await source.memory.query(key)

    @routes.post("/memory/{key}")
    async def judge(key: Key, judgement: Judgement) -> QueryDetail:
        """A person's decision: approve, reject or prefer an arm, freeze the query or let go, opt its template out of
        steering or in, release what people decided, forget its evidence."""
        return await source.memory.decide(key, judgement.action, judgement.arm, judgement.actor, judgement.why)

    @routes.post("/memory/{key}/plans")
    async def plans(key: Key, wanted: Wanted) -> PlanPair:
        """The plain and the steered plan, by EXPLAIN, or with actual rows by running both."""
        return await source.memory.plans(key, wanted.text, wanted.arm, analyze=wanted.analyze)

    @routes.get("/breakers")
    async def breakers() -> Breakers:
        """The circuit breakers: what of steering is off because too much was lost, and until when."""
        return Breakers(breakers=list(await source.memory.breakers()))

    @routes.post("/breakers")
    async def close(closing: Closing) -> Breakers:
        """Closes a circuit breaker before its pause is over; all of them as they are then. 404: none of that source is
        open."""
        found = await source.memory.close_breaker(closing.source, closing.covers, closing.actor, closing.why)
        return Breakers(breakers=list(found))

    @routes.get("/ledger")
    async def ledger(
        kind: Kind | None = None,
        key: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None,
        before: Annotated[int | None, Query(ge=1, description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Ledger:
        """What was decided, by whom and why, the newest first."""
        entries = list(await source.memory.ledger(kind, key, before, limit))
        return Ledger(entries=entries, next=entries[-1].id if len(entries) == limit else None)

    return routes

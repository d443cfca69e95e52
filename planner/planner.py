"""The planner as a library: what the proxy would add to a statement, for programs that talk to PostgreSQL themselves.

::

    async with await Planner.connect("postgresql://app@db/app", models="models") as planner:
        decision = await planner.advise("SELECT ... WHERE a.kind = $1", ["large"])
        rows = await connection.fetch(decision.sql, "large")

`Planner` keeps one connection for itself, over which it reads the catalog and reads it again on a schedule, and a
folder of models, which it looks at again every second. A decision is computed from these in memory, in a millisecond or
two, and asks nobody. It says why it leaves a statement alone; it never raises on account of a statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from model_runtime.store import ModelStore
from planner.advice import Advice, Rendered
from planner.advise import NOTHING, Models, Options, Outcome, SubPlan, advise
from planner.catalog import CatalogSettings, CatalogWatcher
from planner.dialects import render
from planner.graph import Const, QueryGraph
from planner.snapshot import Snapshot
from planner.sql import read
from planner.warming import warm


@dataclass(frozen=True, slots=True)
class Decision:
    """What to send instead of a statement, and why.

    ``sql`` is the statement with ``prefix`` in front; ``settings`` must be in place while it runs (see `setup`).
    ``reason`` is "" for advice, else a short label that says why there is none, and then
    ``sql`` is the statement as it was. ``estimates`` are the joins that were looked at, with PostgreSQL's estimate and
    the model's. ``estimated_ms`` is a rough time of the statement without advice, ``model`` the model's name-version.
    ``arm`` and ``expected_gain`` are as in `planner.advise.Outcome`.
    """

    sql: str
    reason: str
    prefix: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    advice: Advice = NOTHING
    estimates: tuple[SubPlan, ...] = ()
    estimated_ms: float = 0.0
    model: str = ""
    dialect: str = ""
    notes: tuple[str, ...] = ()
    arm: str = ""
    expected_gain: float = 0.0

    @property
    def steered(self) -> bool:
        return not self.reason

    @property
    def setup(self) -> tuple[str, ...]:
        """``settings`` as statements to run before it in the same transaction, at whose end they go back."""
        return tuple(f"SET LOCAL {name} = '{value}'" for name, value in self.settings)


class Planner:
    """Made by `connect`; an async context manager that closes what it opened."""

    def __init__(self, watcher: CatalogWatcher, store: ModelStore | None, min_ms: float) -> None:
        self._watcher = watcher
        self._store = store
        self._min_ms = min_ms
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, dsn: str, *, models: str | Path | None = None, min_ms: float = 0.0, **catalog: Any) -> Self:
        """Reads the catalog and the models. ``min_ms``: statements estimated below it are left alone. ``catalog`` are
        fields of `planner.catalog.CatalogSettings`. Raises asyncpg's errors and OSError when the database cannot be
        reached; a model that is refused is not an error (see `models`)."""
        watcher = CatalogWatcher(dsn, settings=CatalogSettings(**catalog))
        await watcher.refresh()
        store = ModelStore(models) if models is not None else None
        planner = cls(watcher, store, min_ms)
        if store is not None:
            await asyncio.to_thread(store.reload)
            planner._watching = asyncio.create_task(store.watch())
            await asyncio.to_thread(warm, planner.snapshot, planner.models)
        watcher.start()
        return planner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and stops looking at the models."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._store is not None:
            self._store.close()
        await self._watcher.close()

    @property
    def snapshot(self) -> Snapshot:
        """The catalog as last read."""
        snapshot = self._watcher.snapshot
        assert snapshot is not None
        return snapshot

    @property
    def models(self) -> Models:
        """The models that serve now."""
        if self._store is None:
            return Models()
        return Models(self._store.current("cardinality"), self._store.current("hints"))

    async def advise(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[int, Any] = (),
        *,
        search_path: Sequence[str] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> Decision:
        """The decision on one statement; ``params`` are the values of ``$1``, ``$2`` ... ``plan`` is the object under
        "Plan" of its EXPLAIN (FORMAT JSON), if the caller has it: a model of settings may know more by it. Computed in
        a thread, so that the event loop goes on meanwhile."""
        return await asyncio.to_thread(self.decide, sql, params, search_path=search_path, plan=plan)

    def decide(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[int, Any] = (),
        *,
        search_path: Sequence[str] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> Decision:
        """The same at once, for callers that cannot wait, like a hook inside a driver. Any thread."""
        reading = read(sql)
        if reading.graph is None:
            return Decision(sql, reading.reason)
        try:
            outcome = self._outcome(reading.graph, params, search_path, plan)
        except Exception:
            # Odd statistics, a model that fails: the statement is as good as before.
            return Decision(sql, "failed")
        return decision(sql, outcome, render(outcome.advice, self.snapshot.capabilities))

    def _outcome(
        self,
        graph: QueryGraph,
        params: Sequence[Any] | Mapping[int, Any],
        search_path: Sequence[str] | None,
        plan: Mapping[str, Any] | None,
    ) -> Outcome:
        given = params.items() if isinstance(params, Mapping) else enumerate(params, 1)
        values = {number: Const(tuple(value) if isinstance(value, list) else value) for number, value in given}
        options = Options(min_ms=self._min_ms, plan=plan)
        return advise(graph, self.snapshot, self.models, values, tuple(search_path or ()), options)


def decision(sql: str, outcome: Outcome, rendered: Rendered) -> Decision:
    """An outcome in one dialect."""
    reason = outcome.reason or ("not_expressible" if rendered.empty else "")
    if reason:
        rendered = Rendered(dialect=rendered.dialect, notes=rendered.notes)
    return Decision(
        rendered.prefix + sql,
        reason,
        rendered.prefix,
        rendered.settings,
        outcome.advice,
        outcome.sub_plans,
        outcome.estimated_ms,
        outcome.model,
        rendered.dialect,
        rendered.notes,
        outcome.arm,
        outcome.expected_gain,
    )

"""What `pilotwire explore` and the background explorer have in common: connections, catalog, models, statements."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import asyncpg

from model_runtime.store import ModelStore
from pilotwire.counted_arm import counted_advice
from planner.advise import Models
from planner.catalog_load import load
from planner.explore.server import Link
from planner.memory.explorer import MOST_STATEMENTS, ExploreOptions, Explorer, Progress, Report, Wanted, wanted_of
from planner.memory.store import Store
from training.queries import Workload

GONE: Final = (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
"""What a database that cannot be reached, or goes away, raises."""


Opener = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """``served`` is the database that clients use, ``run`` where statements run ("" for the same): DSNs, or what opens
    a connection."""

    served: str | Opener
    run: str | Opener = ""
    models: Path | None = None


class Exploration:
    """One exploration of one database; `report` says at any moment what was found so far."""

    def __init__(self, target: Target, store: Store, options: ExploreOptions, progress: Progress | None = None) -> None:
        self._target = target
        self._store = store
        self._options = options
        self._progress = progress
        self._explorer: Explorer | None = None

    @property
    def report(self) -> Report:
        return self._explorer.report if self._explorer is not None else Report()

    async def run(self, workload: Sequence[Wanted] | None = None) -> Report:
        """Of these statements, or without them of those that the store knows. Raises what is in `GONE`, and
        `planner.memory.store.StoreError`."""
        async with AsyncExitStack() as stack:
            served = Link(self._target.served)
            stack.push_async_callback(served.close)
            snapshot = await load(await served.get())
            run = Link(self._target.run) if self._target.run else served
            stack.push_async_callback(run.close)
            models = await asyncio.to_thread(load_models, self._target.models)
            if workload is None:
                workload = await asyncio.to_thread(known_statements, self._store, snapshot.database)
            self._explorer = Explorer(
                self._store,
                snapshot,
                run,
                self._options,
                models=models,
                count=counted_advice,
                progress=self._progress,
            )
            return await self._explorer.explore(workload)


def load_models(folder: Path | None) -> Models:
    """The models of a folder that serve; none for None."""
    if folder is None:
        return Models()
    store = ModelStore(folder)
    try:
        store.reload()
        return Models(store.current("cardinality"), store.current("hints"))
    finally:
        store.close()


def known_statements(store: Store, database: str) -> list[Wanted]:
    """The store's statements of a database whose texts it keeps, those with the most total time first: the queries that
    are remembered, and sampled executions of others."""
    found: dict[str, Wanted] = {}
    for record in store.queries(database=database, limit=MOST_STATEMENTS, order="total_ms"):
        wanted = wanted_of(record)
        if wanted is not None and record.key != record.template:
            found[record.key] = wanted
    sampled: dict[str, Wanted] = {}
    for execution in store.executions(database=database, limit=10 * MOST_STATEMENTS):
        if not execution.text or not execution.key or execution.key in found or execution.failed:
            continue
        before = sampled.get(execution.key) or wanted_of(execution)
        if before is not None:
            sampled[execution.key] = replace(
                before, calls=before.calls + 1, total_ms=before.total_ms + execution.took_ms
            )
    return sorted([*found.values(), *sampled.values()], key=lambda one: -one.total_ms)[:MOST_STATEMENTS]


def from_file(workload: Workload) -> list[Wanted]:
    """The different statements of a file; nothing is known of how often they run."""
    found: dict[str, Wanted] = {}
    for query in workload.queries:
        text = query.text.strip().rstrip(";").rstrip()
        found.setdefault(text, Wanted(text, name=f"line {query.line}"))
    return list(found.values())

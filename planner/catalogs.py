"""The catalog watchers of a planner process: one for each database that somebody asks about, bounded in number.

A watcher is made on the first request for a database and goes when another database needs its place, the least recently
asked about first. Until its first snapshot is there the answer is None, and the statement goes on as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg

from planner.catalog import CatalogSettings, CatalogWatcher
from planner.control import Limits, Upstream
from planner.snapshot import Snapshot

MAX_NAME: Final = 63
"""Bytes of a database's name; none is longer."""


def connector(upstream: Upstream, database: str) -> Callable[[], Awaitable[Any]]:
    """A function that opens a connection to that database as the upstream's user. Everything is said in full, so that
    no PG* variable and no passfile of this process's user gets a say."""
    tls = dict(upstream.tls)
    system = tls.get("sslrootcert") == "system"
    if system:
        del tls["sslrootcert"]
    context = ssl.create_default_context() if system else None

    async def connect() -> Any:
        # One host at a time: asyncpg's limit is for all of them, and one that is switched off would use it up.
        *others, last = upstream.hosts
        for host in others:
            with contextlib.suppress(OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
                return await connect_to(*host)
        return await connect_to(*last)

    async def connect_to(host: str, port: int) -> Any:
        return await asyncpg.connect(
            f"postgresql://?{urlencode(tls)}",
            host=host,
            port=port,
            user=upstream.user,
            password=upstream.password,
            passfile="/dev/null",
            database=database,
            ssl=context,
            timeout=upstream.connect_timeout,
            server_settings={"application_name": "pilotwire planner"},
            # Statements of ours are few, and a pooler in between may not keep prepared ones.
            statement_cache_size=0,
        )

    return connect


class Catalogs:
    """``prepare(snapshot)`` is called in a thread before a snapshot is given out, ``changed(database, differs)``
    with each new one, ``failed(database, why)`` for each failure to read one. For the event loop only."""

    def __init__(
        self,
        upstream: Upstream,
        limits: Limits,
        prepare: Callable[[Snapshot], None],
        changed: Callable[[str, bool], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self._upstream = upstream
        self._limits = limits
        self._prepare = prepare
        self._changed = changed
        self._failed = failed
        self._watchers: OrderedDict[str, CatalogWatcher] = OrderedDict()
        self._latest: dict[str, Snapshot] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        return len(self._watchers)

    def age_seconds(self) -> float:
        """Of the oldest snapshot; -1 when there is none."""
        taken = [snapshot.taken_at for snapshot in self._latest.values()]
        return max(time.time() - min(taken), 0.0) if taken else -1.0

    def snapshot(self, database: str) -> Snapshot | None:
        """The latest one, None while there is none; the first request for a database begins to watch it."""
        watcher = self._watchers.get(database)
        if watcher is None:
            if not database or len(database.encode(errors="replace")) > MAX_NAME:
                return None
            self._watch(database)
        self._watchers.move_to_end(database)
        return self._latest.get(database)

    def configure(self, limits: Limits) -> None:
        """Takes new limits; what they change in a snapshot comes with the next refresh."""
        self._limits = limits
        for watcher in self._watchers.values():
            watcher.settings = self._settings()
        self._make_room(limits.databases)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(watcher.close() for watcher in self._watchers.values()), return_exceptions=True)

    def _settings(self) -> CatalogSettings:
        limits = self._limits
        return CatalogSettings(
            sample_rows=limits.sample_rows,
            # Samples may take an eighth of the memory, whatever the number of databases.
            sample_bytes=limits.memory_bytes // 8 // max(limits.databases, 1),
            interval=limits.catalog_refresh_s,
        )

    def _watch(self, database: str) -> None:
        self._make_room(self._limits.databases - 1)
        watcher = self._watchers[database] = CatalogWatcher(
            connect=connector(self._upstream, database),
            settings=self._settings(),
            changed=lambda snapshot: self._spawn(self._take(database, snapshot)),
            failed=lambda error: self._failed(database, " ".join(str(error).split()) or type(error).__name__),
        )
        watcher.start()

    def _make_room(self, most: int) -> None:
        while len(self._watchers) > most:
            database, watcher = self._watchers.popitem(last=False)
            self._latest.pop(database, None)
            self._spawn(watcher.close())

    async def _take(self, database: str, snapshot: Snapshot) -> None:
        """Most refreshes find nothing new, and then answers need not be forgotten."""
        await asyncio.to_thread(self._prepare, snapshot)
        before = self._latest.get(database)
        differs = before is None or await asyncio.to_thread(_differ, before, snapshot)
        watcher = self._watchers.get(database)
        if watcher is None or watcher.snapshot is not snapshot:
            return  # Nobody asks any more, or a newer one has come meanwhile.
        self._latest[database] = snapshot
        self._changed(database, differs)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _differ(before: Snapshot, after: Snapshot) -> bool:
    return (before.capabilities, before.default_search_path, before.volatile_functions, before.tables) != (
        after.capabilities,
        after.default_search_path,
        after.volatile_functions,
        after.tables,
    )

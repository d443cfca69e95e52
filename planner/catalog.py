"""The catalog of one database, kept up to date: `CatalogWatcher` holds the latest snapshot.

It looks every few seconds whether tables or columns changed, were analyzed, or were written to a good deal, and reads
the catalog again when they did, and on a schedule. It connects for each look: kept open, its connection would be in the
way of DROP DATABASE, which waits five seconds for others to go. When the database goes away the old snapshot stays,
failures are counted, and it connects again with growing pauses. `planner.catalog_load.load` does the reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Self

import asyncpg

from planner import catalog_queries as queries
from planner.catalog_load import CatalogSettings, Connection, load, schema_hash
from planner.snapshot import Snapshot

__all__ = ["CatalogSettings", "CatalogWatcher", "load", "schema_hash"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_CONNECT_SECONDS: Final = 10.0
_LOAD_SECONDS: Final = 300.0

Connect = Callable[[], Awaitable[Connection]]
Failed = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError, LookupError)
"""What reading a catalog can raise: the server's and the library's errors, a lost connection, unexpected values."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the last look at the database saw."""

    tables: str
    columns: str
    analyzed: str
    changed: float
    rows: float


class CatalogWatcher:
    """Give either a ``dsn`` or ``connect``, which opens an asyncpg connection that loads nothing by itself, or gives
    up in a time of its own.

    ``changed`` is called on the event loop with each new snapshot, ``failed`` with each error. `refresh` reads at once
    and raises; `start` begins to watch in the background and never raises.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        connect: Connect | None = None,
        settings: CatalogSettings | None = None,
        changed: Callable[[Snapshot], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        if (dsn is None) is (connect is None):
            raise ValueError("either a dsn or connect")
        self.settings = settings or CatalogSettings()
        self.snapshot: Snapshot | None = None
        #: Failures to read or look since the start, and in a row.
        self.failures = 0
        self.failures_in_a_row = 0
        #: Times the catalog was read.
        self.loads = 0
        self._dsn = dsn
        self._connect = connect
        self._changed = changed
        self._failed = failed
        self._connection: Connection | None = None
        self._mark: _Mark | None = None
        self._loaded_at = 0.0
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._loaded = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Watch from now on. Needs a running event loop."""
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="catalog watcher")

    async def ready(self, timeout: float | None = None) -> Snapshot:  # noqa: ASYNC109 - a plain wait
        """The first snapshot. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            await self._loaded.wait()
        assert self.snapshot is not None
        return self.snapshot

    def request(self) -> None:
        """Ask for a fresh snapshot soon."""
        self._mark = None
        self._wake.set()

    async def refresh(self) -> Snapshot:
        """Read the catalog now. Raises what asyncpg raises, OSError and TimeoutError; the old snapshot then stays."""
        async with self._lock:
            try:
                return await self._load()
            finally:
                await self._disconnect()

    async def close(self) -> None:
        """Stops watching and closes the connection."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._disconnect()

    # ------------------------------------------------------------------ the loop

    async def _watch(self) -> None:
        while True:
            try:
                async with self._lock:
                    if self.snapshot is None or await self._is_due():
                        await self._load()
                    await self._disconnect()
                self.failures_in_a_row = 0
                pause = self.settings.poll
            except Failed as error:
                pause = self._note_failure(error)
                await self._disconnect()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    def _note_failure(self, error: Exception) -> float:
        """Counts it; how long to wait."""
        self.failures += 1
        self.failures_in_a_row += 1
        if self.failures_in_a_row == 1:
            logger.warning("the catalog could not be read: %s: %s", type(error).__name__, error)
        if self._failed is not None:
            self._failed(error)
        return min(_FIRST_PAUSE * 2.0 ** min(self.failures_in_a_row - 1, 10), _LONGEST_PAUSE)

    async def _is_due(self) -> bool:
        age = time.monotonic() - self._loaded_at
        if age >= self.settings.interval or self._mark is None:
            return True
        mark, before = await self._look(), self._mark
        if (mark.tables, mark.columns) != (before.tables, before.columns):
            return True
        if age < self.settings.pause:
            return False
        # An ANALYZE sets the count of changes back, which is news as well.
        written = mark.changed - before.changed
        return mark.analyzed != before.analyzed or written > self.settings.changed_share * max(before.rows, 1.0)

    async def _look(self) -> _Mark:
        connection = await self._open()
        async with asyncio.timeout(self.settings.statement_timeout):
            row = await connection.fetchrow(queries.WATCH)
        return _Mark(row["tables"] or "", row["columns"] or "", row["analyzed"], row["changed"], row["rows"])

    async def _load(self) -> Snapshot:
        # The mark is taken before: what changes meanwhile is seen at the next look.
        mark = await self._look()
        connection = await self._open()
        before = self.snapshot
        async with asyncio.timeout(_LOAD_SECONDS):
            snapshot = await load(
                connection,
                settings=self.settings,
                generation=before.generation + 1 if before is not None else 1,
                known=before,
            )
        self._mark, self._loaded_at = mark, time.monotonic()
        self.snapshot = snapshot
        self.loads += 1
        self._loaded.set()
        if self._changed is not None:
            self._changed(snapshot)
        return snapshot

    # ------------------------------------------------------------------ the connection

    async def _open(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            if self._connect is not None:
                self._connection = await self._connect()
            else:
                self._connection = await asyncpg.connect(
                    self._dsn, timeout=_CONNECT_SECONDS, server_settings={"application_name": "pilotwire catalog"}
                )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.close(timeout=1.0)
        except Failed:
            connection.terminate()
        except asyncio.CancelledError:
            connection.terminate()
            raise

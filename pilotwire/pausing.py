"""What PAUSE in the administration database has paused: the state that all workers go by.

It stays when settings are read again and when a worker is started again, and goes over to the instance that takes over.
Databases are named as clients name them; which ones there are only the server knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from pilotwire.handover import Neighbour
from pilotwire.workers import WorkerProcess, gather_quietly
from proxy.admin.source import RefusedError
from proxy.console_db.tables import Paused
from proxy.control import ControlLostError
from proxy.logs import Log

TELL_SECONDS: Final = 5.0
"""How long a worker may take to say that it has heard."""
MAX_DATABASES: Final = 1000
"""Paused by name at one time."""


class PauseSwitch:
    """``workers`` and ``neighbours`` give those that run now: the processes of this instance, and the instances that it
    took over from or that take over from it."""

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerProcess]],
        neighbours: Callable[[], Iterable[Neighbour | None]],
        log: Log,
    ) -> None:
        self._workers = workers
        self._neighbours = neighbours
        self._log = log
        self.paused = Paused()

    async def pause(self, database: str, actor: str) -> None:
        """``database`` "" is all of them. Raises RefusedError when too many are."""
        if not database:
            self.paused = Paused(all=True, databases=self.paused.databases)
        elif len(self.paused.databases) >= MAX_DATABASES:
            raise RefusedError(f"{MAX_DATABASES} databases are paused already")
        else:
            self.paused = Paused(self.paused.all, frozenset([*self.paused.databases, database]))
        await self._tell("paused", database, actor)

    async def resume(self, database: str, actor: str) -> None:
        """``database`` "" is all of them. Raises RefusedError for one of them while all are paused."""
        if database and self.paused.all:
            raise RefusedError("all databases are paused: RESUME without a name lets them go on")
        left = frozenset(name for name in self.paused.databases if database and name != database)
        self.paused = Paused(all=False, databases=left)
        await self._tell("resumed", database, actor)

    async def _tell(self, event: str, database: str, actor: str) -> None:
        await self.tell()
        self._log.event(event, level="warning", database=database or "all", actor=actor)
        for neighbour in self._neighbours():
            if neighbour is not None:
                with contextlib.suppress(ControlLostError):
                    await neighbour.ask("pause", TELL_SECONDS, **self.to_wire())

    async def tell(self) -> None:
        """Has every worker go by it; one that hangs is not waited for long."""
        state = self.to_wire()
        await gather_quietly([worker.ask("pause", TELL_SECONDS, **state) for worker in self._workers()])

    def to_wire(self) -> dict[str, Any]:
        return {"everything": self.paused.all, "databases": sorted(self.paused.databases)}

    async def take(self, message: dict[str, Any]) -> None:
        """Another instance said how it is now."""
        state = Paused(bool(message.get("everything")), frozenset(message.get("databases", ())))
        if (state.all, state.databases) != (self.paused.all, self.paused.databases):
            self.paused = state
            await self.tell()

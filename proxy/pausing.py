"""What PAUSE keeps waiting in one worker: which databases, and the logins that wait for theirs.

In transaction mode the pools themselves keep clients waiting (`BackendPool.paused`); a client that is to have a server
connection of its own waits here for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


class Pauses:
    """Changed by the supervisor's word only, which always gives the whole state."""

    __slots__ = ("_all", "_changed", "_databases")

    def __init__(self) -> None:
        self._all = False
        self._databases: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def put(self, databases: Iterable[str], *, everything: bool) -> None:
        """This is paused from now on, and nothing else."""
        self._all = everything
        self._databases = frozenset(databases)
        self._changed.set()
        self._changed = asyncio.Event()

    def holds(self, database: str) -> bool:
        return self._all or database in self._databases

    async def over(self, database: str) -> None:
        """Returns when the database is not paused."""
        while self.holds(database):
            await self._changed.wait()

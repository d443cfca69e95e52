"""What the administration database needs to know and do besides what the admin pages do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from proxy.admin.source import AdminSource
from proxy.console_db.tables import Cell, DatabaseStats, Paused


class ConsoleSource(AdminSource, Protocol):
    """The supervisor, as the administration database sees it."""

    @property
    def paused(self) -> Paused: ...

    async def pause(self, database: str, actor: str) -> None:
        """New transactions of the database wait ("": of all), in every worker; returns when all know. Raises
        RefusedError."""
        ...

    async def resume(self, database: str, actor: str) -> None:
        """What waits goes on. Raises RefusedError when all are paused and one is named."""
        ...

    async def busy(self, database: str) -> int:
        """Transactions that run on it ("": on any database) now, in transaction pooling."""
        ...

    async def stats(self) -> Sequence[DatabaseStats]:
        """By database: since the start, and lately."""
        ...

    async def servers(self) -> Sequence[Mapping[str, Cell]]:
        """Connections to the server, as `proxy.console_db.tables.SERVER_COLUMNS` names them."""
        ...

    async def set(self, name: str, value: str, actor: str) -> None:
        """Changes a setting until the next reload. Raises RefusedError."""
        ...

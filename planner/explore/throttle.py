"""How much of the server exploring may use, and when it has to wait: `Throttle` is awaited before each of its runs.

After a run of t seconds it rests until t is at most ``share`` of the time gone by. Before a run it looks whether the
server is busy, at most once a second: when more than ``most_active`` other client backends are running a statement, it
waits, and after ``patience`` seconds of that exploring stops.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from planner.explore.runner import StoppedError
from planner.explore.server import APPLICATION, Connection, Link

LOOK_SECONDS: Final = 1.0
REST_SECONDS: Final = 60.0
"""The longest rest after one run; it would be hours after a run of a minute at a share of a hundredth."""
OURS: Final = (APPLICATION, "pilotwire planner")
"""What explorers' connections call themselves."""
_ACTIVE: Final = """
    SELECT count(*) FILTER (WHERE state = 'active' OR state IS NULL AND xact_start IS NOT NULL)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> ALL ($1)
"""


async def active_backends(connection: Connection) -> int:
    """Client backends that are running a statement, without explorers. A role that is not a member of
    pg_read_all_stats sees its own sessions only."""
    return int(await connection.fetchval(_ACTIVE, OURS))


class Throttle:
    """For one exploration over one connection. ``rested`` and ``waited`` add up the seconds of either kind."""

    def __init__(self, link: Link, *, share: float = 1.0, most_active: int = 4, patience: float = 60.0) -> None:
        """``share`` of the server's time, above 0 and up to 1; ``patience`` in seconds."""
        self._link = link
        self._share = share
        self._most_active = most_active
        self._patience = patience
        self._owed = 0.0
        self._looked = float("-inf")
        self.rested = 0.0
        self.waited = 0.0

    async def __call__(self, last_seconds: float) -> None:
        """Raises StoppedError when the server stays busy."""
        self._owed += last_seconds * (1 / self._share - 1)
        if self._owed > 0.01:
            rest = min(self._owed, REST_SECONDS)
            self._owed = 0.0
            self.rested += rest
            await asyncio.sleep(rest)
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        until = time.monotonic() + self._patience
        while (active := await active_backends(await self._link.get())) > self._most_active:
            if time.monotonic() >= until:
                raise StoppedError(
                    f"the server is busy: others are running {active} statement{'s' if active > 1 else ''}"
                )
            self.waited += LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
        self._looked = time.monotonic()

"""Looks at the plan of an arm before it is tried, and now and then at those in use: is the advice followed, and does it
change anything?

The server is asked for the plan as it is and under the advice, with the statement's own values and search_path, over a
connection of ours that is kept for a moment; nothing is executed. What cannot be explained so (rights of ours are
missing, a function is not allowed) is tried without: the verdict is the executions' in any case.

One at a time, at most some a second, and a bounded number wait: this is a guard, and no load.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from planner.explore.plans import honoured
from planner.explore.server import NotExplorableError, explain
from planner.explore.trust import check_trusted
from planner.weighing import Verification

MAX_WAITING: Final = 200
LIMIT_MS: Final = 2_000.0
IDLE_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.02
RETRY_SECONDS: Final = 10.0
"""How long a database that cannot be connected to is left alone."""

HONOURED: Final = "honoured"
NOT_HONOURED: Final = "not_honoured"
SAME_PLAN: Final = "same_plan"
FAILED: Final = "failed"
Connector = Callable[[str], Callable[[], Awaitable[Any]]]


class Verifier:
    """``connect(database)`` gives what opens a connection to it; ``done(what, outcome)`` is called on the event
    loop."""

    def __init__(self, connect: Connector, done: Callable[[Verification, str], None]) -> None:
        self._connect = connect
        self._done = done
        self._waiting: OrderedDict[tuple[str, str], Verification] = OrderedDict()
        self._wake = asyncio.Event()
        self._connection: Any = None
        self._database = ""
        self._away: dict[str, float] = {}

    def put(self, what: Verification) -> bool:
        """False when too many wait; the same arm of the same query waits once. For the event loop."""
        key = (what.key, what.arm)
        if key not in self._waiting and len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting[key] = what
        self._wake.set()
        return True

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS)
                except TimeoutError:
                    await self._disconnect()
                    await self._wake.wait()
                while self._waiting:
                    _, what = self._waiting.popitem(last=False)
                    self._done(what, await self._look(what))
                    await asyncio.sleep(PAUSE_SECONDS)
                self._wake.clear()
        finally:
            await self._disconnect()

    async def _look(self, what: Verification) -> str:
        if time.monotonic() < self._away.get(what.database, 0.0):
            return FAILED
        try:
            async with asyncio.timeout(3 * LIMIT_MS / 1000):
                connection = await self._open(what.database)
                await check_trusted(connection, what.text)
                params = json.loads(what.params) if what.params else []
                path = what.search_path
                plain = await explain(connection, what.text, params, search_path=path, limit_ms=LIMIT_MS)
                advised = await explain(
                    connection, what.text, params, advice=what.rendered, search_path=path, limit_ms=LIMIT_MS
                )
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError):
            await self._disconnect()
            self._away = {what.database: time.monotonic() + RETRY_SECONDS}
            return FAILED
        except (asyncpg.PostgresError, NotExplorableError, ValueError, UnicodeError):
            return FAILED
        if not honoured(advised, plain, what.advice):
            return NOT_HONOURED
        return SAME_PLAN if advised.shape == plain.shape else HONOURED

    async def _open(self, database: str) -> Any:
        if self._connection is None or self._connection.is_closed() or self._database != database:
            await self._disconnect()
            self._connection = await self._connect(database)()
            self._database = database
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.close(timeout=1.0)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
        except asyncio.CancelledError:
            connection.terminate()
            raise

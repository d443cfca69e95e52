"""Looks now and then at how many rows the joins inside a statement really give, against what was predicted of them.

The number that a client gets says nothing of the joins inside. So, where the setting ``accuracy_samples`` allows it, a
statement that a model decided about lately is run once more by EXPLAIN (ANALYZE), off the query path: over a connection
of ours, as it came and without advice, read-only, under a time limit, and only while the server is not busy. Its rows
are thrown away on the server. `planner.plan_rows` says which steps of the plan tell the rows of a join.

Statements with volatile functions are never decided about, so none is run; texts stay in this process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final

import asyncpg

from planner.accuracy import Accuracy, Sample
from planner.control import Limits
from planner.counters import Counters
from planner.explore.server import Link, NotExplorableError, explain
from planner.explore.throttle import active_backends
from planner.explore.trust import check_trusted
from planner.plan_rows import harvest
from planner.verifying import Connector

LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the next sample is due."""
GRACE_SECONDS: Final = 5.0

TOLD: Final = "told"
SILENT: Final = "silent"
BUSY: Final = "busy"
STOPPED: Final = "stopped"
FAILED: Final = "failed"


class Auditor:
    """``connect(database)`` gives what opens a connection to it, ``limits()`` what holds now."""

    def __init__(
        self,
        connect: Connector,
        accuracy: Accuracy,
        counters: Counters,
        limits: Callable[[], Limits],
    ) -> None:
        self._connect = connect
        self._accuracy = accuracy
        self._counters = counters
        self._limits = limits

    async def run(self) -> None:
        """Until cancelled. Samples are spread evenly over the hour; none is made up for."""
        rested = 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            rested += LOOK_SECONDS
            limits = self._limits()
            if limits.audits_per_hour <= 0 or rested < 3600 / limits.audits_per_hour:
                continue
            one = self._accuracy.pick()
            if one is None:
                continue
            rested = 0.0
            self._counters.add("accuracy_samples", await self.look(one, limits))

    async def look(self, one: Sample, limits: Limits) -> str:
        """Runs one sample and counts what it tells; one of the outcomes above."""
        link = Link(self._connect(one.database))
        try:
            async with asyncio.timeout(limits.audit_limit_ms / 1000 + 2 * GRACE_SECONDS):
                connection = await link.get()
                if await active_backends(connection) > limits.audit_most_active:
                    return BUSY
                await check_trusted(connection, one.text)
                plan = await explain(
                    connection,
                    one.text,
                    json.loads(one.params) if one.params else [],
                    search_path=one.search_path,
                    analyze=True,
                    limit_ms=limits.audit_limit_ms,
                )
                version = connection.get_server_version()
        except (asyncpg.QueryCanceledError, TimeoutError):
            return STOPPED
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            return FAILED
        except (NotExplorableError, ValueError, UnicodeError):
            return FAILED
        finally:
            await link.close()
        rows = harvest(plan.root, one.block, version.major * 10_000 + version.minor)
        return TOLD if self._accuracy.audited(one, rows) else SILENT

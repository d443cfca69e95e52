"""Requests that concern a session of some worker: of this process, or of the one before or after it in a hand-over."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from pilotwire.handover import Neighbour
from pilotwire.workers import WorkerProcess, gather_quietly
from proxy.control import ControlLostError, worker_of_key

ROUTE_SECONDS: Final = 10.0
"""How long a worker may take to act on a cancel, or to close its idle backends."""


class Routing:
    """``workers`` are those of this process by slot, as they come and go."""

    def __init__(self, workers: Mapping[int, WorkerProcess]) -> None:
        self._workers = workers

    async def cancel(self, pid: int, secret: str, onwards: Sequence[Neighbour | None]) -> None:
        """Brings a cancel to the worker that its key names, here or in a neighbouring process."""
        slot = worker_of_key(pid)
        worker = self._workers.get(slot)
        with contextlib.suppress(ControlLostError):
            if worker is not None:
                await worker.ask("cancel", ROUTE_SECONDS, pid=pid, secret=secret)
                return
            for neighbour in onwards:
                if neighbour is not None and slot in neighbour.ids:
                    await neighbour.ask("cancel", ROUTE_SECONDS, pid=pid, secret=secret)
                    return

    async def close_idle(self, database: str, onwards: Sequence[Neighbour | None]) -> None:
        """Has every worker, of neighbouring processes too, close its idle backends of a database."""
        neighbours = [neighbour for neighbour in onwards if neighbour is not None]
        targets: list[WorkerProcess | Neighbour] = [*self._workers.values(), *neighbours]
        await gather_quietly([target.ask("close_idle", ROUTE_SECONDS, database=database) for target in targets])

"""The workers of one instance: started together, each place filled again when its worker dies, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from pilotwire.errors import StartError
from pilotwire.listening import Listening
from pilotwire.nursery import Nursery
from pilotwire.workers import Owner, WorkerProcess, gather_quietly, how_ended
from proxy.logs import Log
from proxy.metrics import MergedCounters
from proxy.places import SharedCounts
from proxy.settings import ProxySettings

RELOAD_SECONDS: Final = 30.0
EARLY_DEATH_SECONDS: Final = 5.0
"""A worker that dies sooner is started again only after a pause that doubles up to ``MAX_PAUSE_SECONDS``."""
MIN_PAUSE_SECONDS: Final = 0.1
MAX_PAUSE_SECONDS: Final = 5.0
KILL_SECONDS: Final = 1.0
"""After being told to end at once, how long a worker has before it is killed."""


class Crew:
    """``settings`` gives those for a worker that starts now, ``started`` is told when the first have, and each one that
    came in place of another.

    ``workers`` are the present ones by their id; whoever holds the mapping sees it change. ``restarts`` counts those
    that came in place of others.
    """

    def __init__(
        self,
        owner: Owner,
        nursery: Nursery | None,
        merged: MergedCounters,
        log: Log,
        settings: Callable[[], ProxySettings],
        started: Callable[[], Awaitable[None]],
    ) -> None:
        self.workers: dict[int, WorkerProcess] = {}
        self.restarts = 0
        self._owner = owner
        self._nursery = nursery
        if nursery is not None:
            nursery.on_lost = self._on_nursery_lost
        self._merged = merged
        self._log = log
        self._settings = settings
        self._started = started
        self._listening: Sequence[Listening] = []
        self._places = SharedCounts()
        self._keepers: list[asyncio.Task[None]] = []
        self._generation = 0
        self._reloads = 0
        self._draining = asyncio.Event()

    async def start(self, slots: Sequence[int], listening: Sequence[Listening]) -> None:
        """Starts a worker for each id, on these sockets. StartError when one of them does not start."""
        self._listening = listening
        self.workers.update({slot: self._new(slot) for slot in slots})
        starts = [worker.start(self._settings(), self._listening, self._places.fd) for worker in self.workers.values()]
        reloads = self._reloads
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        if reloads != self._reloads:  # what they were started with is out of date
            await self._renew(self.workers.values(), self._settings())
        await self._started()

    def keep(self) -> None:
        """From now on every place is filled again."""
        self._keepers = [asyncio.create_task(self._keep(worker)) for worker in self.workers.values()]

    async def reload(self, settings: ProxySettings) -> set[str]:
        """Has every worker go by these settings; why some refuse them, which is logged."""
        self._reloads += 1
        return await self._renew(self.workers.values(), settings)

    def drain(self) -> None:
        """Every worker lets its clients finish and ends, and nobody comes in its place."""
        self._draining.set()
        for worker in self.workers.values():
            worker.drain()

    async def ended(self) -> None:
        """Waits until all that drain have ended."""
        await asyncio.wait(self._keepers)

    async def end_at_once(self) -> None:
        for worker in self.workers.values():
            worker.abort()
        await asyncio.wait(self._keepers, timeout=KILL_SECONDS)
        for worker in self.workers.values():
            worker.kill()
        await asyncio.wait(self._keepers, timeout=KILL_SECONDS)

    async def close(self) -> None:
        """Releases everything; after a drain in order most of it is gone already."""
        for task in self._keepers:
            task.cancel()
        for worker in self.workers.values():
            worker.kill()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._places.close()

    def _on_nursery_lost(self, why: str) -> None:
        detail = f"{why}; until the next start workers are started by themselves, which takes half a second each"
        self._log.event("nursery_lost", level="warning", detail=detail)

    async def _renew(self, workers: Iterable[WorkerProcess], settings: ProxySettings) -> set[str]:
        payload = settings.to_wire().decode()
        answers = await gather_quietly([worker.ask("reload", RELOAD_SECONDS, settings=payload) for worker in workers])
        refusals = {str(answer["refused"]) for answer in answers if "refused" in answer}
        for refused in refusals:
            self._log.event("reload_refused", level="error", detail=refused)
        return refusals

    def _new(self, slot: int) -> WorkerProcess:
        self._generation += 1
        return WorkerProcess(slot, self._generation, self._owner, self._nursery)

    async def _keep(self, worker: WorkerProcess) -> None:
        """Watches over one place for a worker: starts another one, under the same id, when it died. What keeps it from
        starting (a file that is broken by now) is logged once, and tried again until it is mended."""
        pause, obstacle = 0.0, ""
        while True:
            status = await worker.wait() if worker.pid else 0
            self._merged.retire(worker.source)
            self._places.clear(worker.slot)
            if self._draining.is_set():
                return
            early = time.monotonic() - worker.started < EARLY_DEATH_SECONDS
            pause = min(max(pause * 2, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS) if early else 0.0
            if not obstacle:
                self._log.event(
                    "worker_died", level="error", worker=worker.slot, how=how_ended(status), restart_in_seconds=pause
                )
            if pause:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), pause)
            if self._draining.is_set():
                return
            worker = self.workers[worker.slot] = self._new(worker.slot)
            self.restarts += 1
            reloads = self._reloads
            try:
                await worker.start(self._settings(), self._listening, self._places.fd)
            except StartError as error:
                if str(error) != obstacle:
                    obstacle = str(error)
                    self._log.event("worker_not_started", level="error", worker=worker.slot, detail=obstacle)
                worker.kill()
                continue
            obstacle = ""
            self._log.event("worker_restarted", worker=worker.slot, pid=worker.pid)
            if reloads != self._reloads:  # what it was started with is out of date
                await self._renew([worker], self._settings())
            await self._started()
            if self._draining.is_set():
                worker.drain()

"""The workers' keeper, with what cannot be timed from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from pilotwire.crew import Crew
from pilotwire.listening import Listening
from pilotwire.workers import WorkerProcess
from proxy.control import Message
from proxy.logs import Log
from proxy.metrics import MergedCounters
from proxy.settings import ProxySettings
from tests.support.waiting import eventually


class Nobody:
    """What workers say is of no interest here."""

    async def on_worker_message(self, worker: WorkerProcess, kind: str, message: Message) -> Message | None:
        return None


class Recorded:
    """A worker that lives until it is let go, and is told of a reload while it starts."""

    pid, slot, source, started = 1, 0, "worker-0#1", 0.0

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.had = ""
        self.asked: list[str] = []
        self.starting = False
        self.end = asyncio.Event()

    async def start(self, settings: ProxySettings, listening: Sequence[Listening], places: int) -> None:
        self.had = settings.pool_mode
        self.starting = True
        await self.crew.reload(made(pool_mode="transaction"))
        self.starting = False

    async def ask(self, kind: str, limit: float, **fields: object) -> Message:
        if self.starting:
            return {}  # a worker without settings has nothing to put others in the place of
        self.asked.append(ProxySettings.from_wire(str(fields["settings"]).encode()).pool_mode)
        return {}

    async def wait(self) -> int | None:
        await self.end.wait()
        return 0

    def kill(self) -> None:
        """There is no process."""


def made(**values: object) -> ProxySettings:
    return ProxySettings.model_validate({"upstream": "postgresql://postgres@127.0.0.1/postgres"} | values)


async def test_a_reload_reaches_a_worker_that_is_starting() -> None:
    in_force = [made(), made(pool_mode="transaction")]
    log = Log("supervisor", "human", "error")
    told = asyncio.Event()

    async def started() -> None:
        told.set()

    class Recording(Crew):
        def _new(self, slot: int) -> WorkerProcess:
            return cast(WorkerProcess, Recorded(self))

    crew = Recording(Nobody(), None, MergedCounters(), log, lambda: in_force.pop(0), started)
    first = Recorded(crew)
    crew.workers[0] = cast(WorkerProcess, first)
    crew.keep()
    first.end.set()
    await eventually(told.is_set)
    second = cast(Recorded, crew.workers[0])
    assert second is not first
    assert (second.had, second.asked) == ("session", ["transaction"])
    await crew.close()
    log.close()


async def test_a_reload_reaches_the_first_workers_too() -> None:
    in_force = [made(), made(pool_mode="transaction")]
    log = Log("supervisor", "human", "error")
    began: list[Recorded] = []

    async def started() -> None:
        """There is nothing to tell."""

    class Recording(Crew):
        def _new(self, slot: int) -> WorkerProcess:
            began.append(Recorded(self))
            return cast(WorkerProcess, began[-1])

    crew = Recording(Nobody(), None, MergedCounters(), log, lambda: in_force.pop(0), started)
    await crew.start([0], [])
    assert [(worker.had, worker.asked) for worker in began] == [("session", ["transaction"])]
    await crew.close()
    log.close()

"""The worker's connection to the planner, alone."""

from __future__ import annotations

import asyncio

import pytest

from planner.messages import Answer, Ask
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.steering import Decision
from proxy.steering.client import PlannerClient
from tests.proxy.steering.planner import scripted_planner
from tests.support.waiting import eventually


async def test_what_an_answer_takes_fades_while_none_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_planner() as planner:
        planner.delay = 0.3
        client = PlannerClient(str(planner.path), Counters(), Log("test", fd=-1), lambda changed: None)
        running = asyncio.create_task(client.run())
        await eventually(lambda: client.connected)
        answers: list[Answer | None] = []

        def keep(answer: Answer | None) -> Decision | None:
            answers.append(answer)
            return None

        assert client.cost_ms == 1.0
        client.ask(Ask(0, "shop", "postgres", "", "", b"t" * 16, b"select 1", None, ()), keep)
        await eventually(lambda: answers)
        slow = client.cost_ms
        assert slow > 20
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 4)
        assert client.cost_ms == slow
        monkeypatch.setattr(loop, "time", lambda: now + 60)
        assert client.cost_ms < 0.1
        monkeypatch.undo()
        running.cancel()
        await asyncio.wait([running])

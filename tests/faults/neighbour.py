"""A well-behaved client beside a hostile one: its answers are right, and it does not have to wait for them."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from tests.faults.load import Load
from tests.faults.state import resident
from tests.support.proxy import Proxy

PATIENCE = 1.5
"""Seconds that no query may take beside an attack. The machines that run these tests have little to spare; a proxy
that serves the attacker first makes a neighbour wait for as long as the attack lasts."""
GROWTH = 8 << 20
"""Bytes that a worker may grow while it is under attack."""


class Neighbours:
    """An async context manager around an attack on `target`.

    At its end: no neighbour saw an error, a wrong answer or a long wait, a new one gets in, and no worker grew by more
    than ``growth`` bytes at any time.
    """

    def __init__(self, target: Proxy, database: str = "postgres", *, growth: int = GROWTH) -> None:
        self._target = target
        self._growth = growth
        self._load = Load(target, database, clients=2, statement="select $n", pause=0.005)
        self._before: dict[int, int] = {}
        self._peak: dict[int, int] = {}
        self._sampler: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._load.__aenter__()
        await self._load.all_answered(30)
        for client in self._load.clients:
            client.slowest = 0.0
        self._before = {pid: resident(pid) for pid in self._target.workers()}
        self._peak = dict(self._before)
        self._sampler = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: Any, __: TracebackType | None) -> None:
        assert self._sampler is not None
        self._sampler.cancel()
        if kind is None:
            await self._load.all_answered(5)
            self._load.add(1)
            await self._load.all_answered(2)
        await self._load.stop()
        if kind is not None:
            return
        grown = {pid: peak - self._before[pid] for pid, peak in self._peak.items()}
        print(
            f"\nneighbours: {self._load.answered} answers, slowest {self._load.slowest * 1000:.0f} ms,"
            f" worker grew by {max(grown.values()) / (1 << 20):.1f} MB at most"
        )
        assert not self._load.failures, self._load.failures[:3]
        assert not self._load.wrong, self._load.wrong[:3]
        assert self._load.slowest < PATIENCE, f"a neighbour waited for {self._load.slowest:.2f} s"
        assert self._target.workers() == sorted(self._before), "no worker was replaced"
        assert max(grown.values()) < self._growth, f"a worker grew by {max(grown.values()) >> 20} MB"

    async def _sample(self) -> None:
        while True:
            for pid in self._peak:
                self._peak[pid] = max(self._peak[pid], resident(pid))
            await asyncio.sleep(0.02)

"""The shop's statements again and again, as its application and its people would send them, to look at a running proxy.

Each client sends short statements mostly and a report now and then, with literals drawn anew for every third one, so
that some texts come back and others do not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from pilotwire.demo.workload import Statement, workload
from training.evaluate.measure import percentile

SHARES: Final = {"point": 0.7, "list": 0.15, "dashboard": 0.12, "report": 0.03}
"""How often each kind is sent."""
SEEDS: Final = 3
"""Sets of literals that come back."""
KEPT: Final = 10_000
"""Latencies kept between two reports; further ones are only counted."""
REPORT_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 2.0
LOST: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a statement raises when its connection is lost; the last one when the server's farewell came a moment before."""


@dataclass(slots=True)
class Counts:
    """What was done since the last report; times are milliseconds."""

    statements: int = 0
    failures: int = 0
    times: list[float] = field(default_factory=list)

    def add(self, took_ms: float) -> None:
        self.statements += 1
        if len(self.times) < KEPT:
            self.times.append(took_ms)

    def line(self, seconds: float) -> str:
        """What happened in so many seconds, in one line."""
        times = self.times or [0.0]
        return (
            f"{self.statements / seconds:.1f} statements a second, p50 {percentile(times, 50):.1f} ms, "
            f"p95 {percentile(times, 95):.1f} ms, {self.failures} failed"
        )


class Draw:
    """One client's statements, in an order that the seed decides."""

    def __init__(self, seed: int, scale: float) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._scale = scale
        self._fixed = [self._by_kind(number) for number in range(SEEDS)]

    def _by_kind(self, seed: int) -> dict[str, list[Statement]]:
        found: dict[str, list[Statement]] = {}
        for statement in workload(seed, self._scale):
            found.setdefault(statement.kind, []).append(statement)
        return found

    def next(self) -> Statement:
        """The statement to be sent next."""
        (kind,) = self._random.choices(list(SHARES), list(SHARES.values()))
        known = self._random.random() < 2 / 3
        sets = self._random.choice(self._fixed) if known else self._by_kind(self._random.randrange(1 << 30))
        return self._random.choice(sets[kind])


async def run(
    dsn: str, *, clients: int, seconds: float, seed: int, scale: float, report: Callable[[str], None]
) -> None:
    """``clients`` connections for so many seconds (0: until cancelled). A connection that is lost is opened again."""
    counts = Counts()
    until = time.monotonic() + seconds if seconds else float("inf")
    works = [asyncio.create_task(_client(dsn, Draw(seed + number, scale), counts, until)) for number in range(clients)]
    try:
        while time.monotonic() < until and not all(work.done() for work in works):
            begun = time.monotonic()
            await asyncio.wait(works, timeout=min(REPORT_SECONDS, until - begun))
            report(counts.line(time.monotonic() - begun))
            counts.statements = counts.failures = 0
            counts.times.clear()
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


async def _client(dsn: str, draw: Draw, counts: Counts, until: float) -> None:
    while time.monotonic() < until:
        try:
            connection = await asyncpg.connect(dsn)
        except LOST:
            counts.failures += 1
            await asyncio.sleep(RETRY_SECONDS)
            continue
        try:
            while time.monotonic() < until:
                begun = time.perf_counter()
                await connection.execute(draw.next().sql)
                counts.add((time.perf_counter() - begun) * 1000)
        except LOST:
            counts.failures += 1
        finally:
            connection.terminate()

"""What the tests of pooled sessions share: a client that is always ended, and a look at the server past the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient


@asynccontextmanager
async def clients(proxy: Proxy, database: str, count: int, **options: str) -> AsyncIterator[list[WireClient]]:
    """So many logged-in clients, reset at the end; ``options`` are start-up settings."""
    opened: list[WireClient] = []
    try:
        for _ in range(count):
            opened.append(await WireClient.connect(proxy, database, settings=options))
        yield opened
    finally:
        for client in opened:
            client.reset()


async def kinds(client: WireClient, *messages: bytes) -> bytes:
    """Sends these and gives the kinds of the answers up to ReadyForQuery."""
    client.send(b"".join(messages))
    return b"".join(kind for kind, _ in await client.until(b"Z"))


def backends(postgres: Postgres, database: str) -> dict[int, str]:
    """The server processes that clients have in a database: pid -> state."""
    text = (
        f"SELECT pid, state FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend'"
        " AND pid <> pg_backend_pid()"
    )
    return {int(pid): state for pid, _, state in (line.partition("|") for line in postgres.sql(text).splitlines())}


async def backend_gone(postgres: Postgres, database: str, pid: int) -> None:
    await eventually(lambda: pid not in backends(postgres, database), what=f"backend {pid} ends")


async def waits(proxy: Proxy, task: asyncio.Task[Any], count: int = 1) -> None:
    """Until so many clients wait for a backend; the task's client is one of them."""
    await eventually(lambda: sample(proxy, "pool_waiting") >= count, what="a client waits for a backend")
    assert not task.done()


def sample(proxy: Proxy, name: str, labels: str = "") -> float:
    """One sample of /metrics; ``labels`` as Prometheus writes them, without the braces."""
    metrics = proxy.metrics()
    full = f"pilotwire_{name}" + (f"{{{labels}}}" if labels else "")
    return metrics.get(full, 0.0)

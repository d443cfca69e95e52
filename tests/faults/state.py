"""What must be so again once a fault is over: nobody connected, nothing left on the server, nothing grown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient

CLIENTS = "pilotwire_clients_current"
BACKENDS = "pilotwire_backends_current"


async def becomes(condition: Callable[[], Awaitable[bool]], what: str = "", timeout: float = 15) -> None:
    """Waits until `condition()` is true. TimeoutError that names `what`."""
    await eventually(condition, timeout, what)


async def metric(target: Proxy, name: str) -> float:
    return (await asyncio.to_thread(target.metrics))[name]


async def watch(server: Any) -> WireClient:
    """A connection straight to the server, to look at what happens there."""
    return await WireClient.connect(server, settings={"application_name": "watcher"})


async def backends(watcher: WireClient, database: str) -> int:
    """Connections to `database` that the server has, a watcher's excepted."""
    count = await watcher.value(
        "select count(*) from pg_stat_activity where backend_type = 'client backend'"
        f" and application_name <> 'watcher' and datname = '{database}'"
    )
    return int(count or 0)


async def settled(target: Proxy, watcher: WireClient, database: str, *, clients: int = 0, idle: int = 0) -> None:
    """Waits until so many clients are left, and as many backends on the server as the proxy believes to have.

    ``idle`` is how many backends may stay in pools; the gauge must have come down to that.
    """

    async def at_level() -> bool:
        numbers = await asyncio.to_thread(target.metrics)
        there = await backends(watcher, database)
        return numbers[CLIENTS] == clients and numbers[BACKENDS] <= clients + idle and numbers[BACKENDS] == there

    try:
        await becomes(at_level)
    except TimeoutError:
        numbers = await asyncio.to_thread(target.metrics)
        there = await watcher.query(
            f"select pid, state, query, now() - state_change from pg_stat_activity where datname = '{database}'"
        )
        raise AssertionError(
            f"not at its level: {numbers[CLIENTS]:g} clients (of {clients}), {numbers[BACKENDS]:g} backends (of"
            f" {clients + idle} at most), on the server: {there}"
        ) from None


async def nothing_left(watcher: WireClient, database: str) -> None:
    """Waits until the server has no connection to `database` any more."""

    async def empty() -> bool:
        return await backends(watcher, database) == 0

    await becomes(empty, f"no backend of {database} is left on the server")


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory of its own")

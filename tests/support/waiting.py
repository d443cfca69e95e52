"""Waiting for a condition instead of sleeping for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
PAUSE, MAX_PAUSE, GROWTH = 0.01, 0.1, 1.15
"""Seconds between two looks: growing, for many conditions start a psql, which would keep a processor busy for as long
as the wait lasts."""


def wait_until(condition: Callable[[], T], timeout: float = 10, what: str = "") -> T:
    """The first true value of `condition()`. TimeoutError that names `what` after `timeout` seconds."""
    deadline, pause = time.monotonic() + timeout, PAUSE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout} s still not: {what or _name(condition)} (last: {value!r})")
        time.sleep(pause)
        pause = min(pause * GROWTH, MAX_PAUSE)
    return value


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout: float = 10, what: str = "") -> T: ...
@overload
async def eventually(condition: Callable[[], T], timeout: float = 10, what: str = "") -> T: ...
async def eventually(condition: Callable[[], Any], timeout: float = 10, what: str = "") -> Any:
    """The same for coroutines: `condition` may be a plain or an async function."""
    deadline, pause = time.monotonic() + timeout, PAUSE
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout} s still not: {what or _name(condition)} (last: {value!r})")
        await asyncio.sleep(pause)
        pause = min(pause * GROWTH, MAX_PAUSE)


def _name(condition: Callable[..., object]) -> str:
    return getattr(condition, "__qualname__", repr(condition))

"""Running a command's coroutine so that Ctrl-C leaves nothing but the command's own last line. SIGTERM is the same."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, without asyncpg's complaints about connections that were cut off with the work.

    asyncpg leaves the error of a connection that ends in the middle of a cancelled operation to nobody, and asyncio
    would print it with a traceback when the program ends.
    """

    async def quietly() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_tell)
        with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
            loop.add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
        return await work

    return asyncio.run(quietly())


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)

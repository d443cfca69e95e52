"""What the processes that the supervisor starts have in common: their environment, and how they are ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Final

END_SECONDS: Final = 2.0
_SECRET: Final = frozenset(
    f"PILOTWIRE_{name}" for name in ("UPSTREAM", "UPSTREAM_PASSWORD", "ADMIN_TOKEN", "STORE", "STORE_PASSWORD")
)
"""Variables that are, or may hold, a secret. Children get their settings by a channel of their own."""


def environment() -> dict[str, str]:
    """Ours without secrets: what is in a process's environment stays in /proc as long as it lives."""
    return {name: value for name, value in os.environ.items() if name not in _SECRET}


def without_secrets() -> list[str]:
    """The same for this very process, a copy of one that has them; returns what they were."""
    return [os.environ.pop(name) for name in _SECRET & os.environ.keys()]


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Asks the process to end, also one that is stopped, and makes it end."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        process.send_signal(signal.SIGCONT)
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

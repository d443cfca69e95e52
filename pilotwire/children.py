"""Ending the processes that the supervisor started beside its workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Final

END_SECONDS: Final = 2.0


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

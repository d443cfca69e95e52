"""What systemd is told by a unit of ``Type=notify``: ready, reloading, stopping, and that the program is alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


def notify_systemd(state: str) -> None:
    """Tells systemd about a change; does nothing elsewhere."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def watchdog_seconds(environment: Mapping[str, str]) -> float:
    """How often systemd wants to hear of this process: half of what the unit's WatchdogSec allows; 0.0 for never."""
    try:
        allowed = int(environment.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return 0.0
    return max(allowed, 0) / 2e6


async def keep_watchdog() -> None:
    """Says again and again that the event loop runs; returns at once where nobody wants to know."""
    pause = watchdog_seconds(os.environ)
    while pause:
        notify_systemd("WATCHDOG=1")
        await asyncio.sleep(pause)

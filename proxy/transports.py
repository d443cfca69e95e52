"""What clients' and servers' transports have in common."""

from __future__ import annotations

import asyncio


def write_at_once(transport: asyncio.Transport) -> None:
    """Has `write` send what the kernel takes, not only at the end of the event loop's turn, as uvloop does below its
    high-water mark. The peer works meanwhile: 3 to 10 % more statements a second, and a tenth less CPU with one client.
    What the kernel does not take pauses the other side at once. Not for TLS, whose records are written one by one."""
    transport.set_write_buffer_limits(high=0)

"""What clients' and servers' transports have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

GREAT_READ: Final = 32_768
"""Bytes that may take long to handle: 5,000 messages, if there is nothing in them."""
FULL_READ: Final = 256_000
"""Bytes that uvloop reads at once; behind so many it reads again before anything else gets its turn, 32 times."""
TURN_SECONDS: Final = 0.01
"""What takes longer is handled in smaller portions from then on."""
LEAST_PORTION: Final = 8192
LOOK_AGAIN_SECONDS: Final = 0.01


def write_at_once(transport: asyncio.Transport) -> None:
    """Has `write` send what the kernel takes, not only at the end of the event loop's turn, as uvloop does below its
    high-water mark. The peer works meanwhile: 3 to 10 % more statements a second, and a tenth less CPU with one client.
    What the kernel does not take pauses the other side at once. Not for TLS, whose records are written one by one."""
    transport.set_write_buffer_limits(high=0)


class Portions:
    """Great reads of one peer, one portion for each turn of the event loop: whoever floods with tiny messages keeps
    nobody waiting for longer than `TURN_SECONDS`, give or take.

    A portion is given to ``handle``; it is all that was read as long as that is quick, which it is but for tiny
    messages. Behind the last one ``read_on`` is called, which resumes reading unless there is a reason not to; while
    there is a ``rest`` nobody else may, since what came then would overtake it. Nothing is handled while it is ``full``
    behind ``handle``: that is asked again a little later.
    """

    __slots__ = ("_full", "_handle", "_handling", "_paused", "_read_on", "_size", "_transport", "rest")

    def __init__(
        self,
        transport: asyncio.Transport,
        handle: Callable[[bytes], None],
        read_on: Callable[[], None],
        full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport = transport
        self._handle = handle
        self._read_on = read_on
        self._full = full
        self._handling = False
        self._paused = False
        self._size = 2 * FULL_READ
        self.rest = b""

    def begin(self, data: bytes) -> bool:
        """Takes what was read, unless it is a portion, or older than the rest: that is to be handled at once."""
        if self._handling or self.rest:
            return False
        self.rest = data
        self._turn()
        return True

    def _turn(self) -> None:
        transport = self._transport
        great = len(self.rest) >= FULL_READ
        full = self._full()
        if not full and not transport.is_closing():
            self.flush(self._size)
        if transport.is_closing():
            self.rest = b""
            return
        if self.rest or (great and transport.is_reading()):
            transport.pause_reading()
            self._paused = True
        loop = asyncio.get_running_loop()
        if full:
            loop.call_later(LOOK_AGAIN_SECONDS, self._turn)
        elif self.rest:
            loop.call_soon(self._turn)
        elif self._paused:
            self._paused = False
            loop.call_soon(self._read_on)

    def flush(self, size: int = 1 << 62) -> None:
        """Has so much of the rest handled now."""
        data = self.rest
        self.rest = data[size:]
        self._handling = True
        begun = time.monotonic()
        try:
            self._handle(data[:size])
        except BaseException:
            # As where the transport itself gave the bytes: a connection of which nobody knows how far it is, is none.
            self.rest = b""
            self._transport.abort()
            raise
        finally:
            self._handling = False
        took = time.monotonic() - begun
        if took > TURN_SECONDS:
            self._size = max(min(self._size, len(data)) >> 1, LEAST_PORTION)
        elif took < TURN_SECONDS / 4:
            self._size = min(self._size << 1, 2 * FULL_READ)

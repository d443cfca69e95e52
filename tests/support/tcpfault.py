"""A TCP proxy that breaks what passes through it: cuts after so many bytes, delays, cuts into pieces, goes silent.

It knows nothing of the protocol. It stands between pilotwire and the server, or between a client and pilotwire.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any, Literal, Self

Direction = Literal["up", "down"]
CHUNK = 64 * 1024


class TcpFault:
    """An async context manager; connect to ``host`` and ``port`` in place of those of `target`.

    "up" is towards the target, "down" away from it. The attributes hold for bytes that pass from now on:

    * ``cut_after[direction]``: when so many bytes of one connection have passed that way, both sides are reset.
    * ``delay``: seconds that each piece waits on its way.
    * ``piece``: bytes passed on at once, each piece as a write of its own.
    * ``silent``: nothing passes either way, and nothing is closed.

    ``passed`` counts the bytes of the connection opened last, ``most`` the most connections open at one time.
    """

    def __init__(self, target: Any) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.target = target
        self.cut_after: dict[Direction, int | None] = {"up": None, "down": None}
        self.delay = 0.0
        self.piece = CHUNK
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.accepted = 0
        self._loud = asyncio.Event()
        self._loud.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, 0, limit=CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._closed = True
        for sock in self._server.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        # A server that is closed loses what it has accepted in this very moment: that comes to `_accept` first.
        for _round in range(5):
            await asyncio.sleep(0)
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def silent(self) -> bool:
        return not self._loud.is_set()

    @silent.setter
    def silent(self, value: bool) -> None:
        if value:
            self._loud.clear()
        else:
            self._loud.set()

    def heal(self) -> None:
        """Everything passes again, as it comes."""
        self.cut_after = {"up": None, "down": None}
        self.delay = 0.0
        self.piece = CHUNK
        self.silent = False

    def cut(self) -> int:
        """Resets every connection there is, on both sides; how many sockets that were."""
        cut = len(self._writers)
        for writer in list(self._writers):
            _reset(writer)
        self._writers.clear()
        return cut

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine: one that is cancelled before its first step could not close what it was given.
        if self._closed:
            _reset(writer)
            return
        self.accepted += 1
        self._writers.add(writer)
        task = asyncio.ensure_future(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.passed = passed
        try:
            far_reader, far_writer = await asyncio.open_connection(self.target.host, self.target.port, limit=CHUNK)
        except OSError:
            _reset(writer)
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        try:
            await asyncio.gather(
                self._pass("up", reader, far_writer, writer, passed),
                self._pass("down", far_reader, writer, far_writer, passed),
            )
        finally:
            for end in (writer, far_writer):
                self._writers.discard(end)
                end.transport.abort()

    async def _pass(
        self,
        direction: Direction,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        passed: dict[Direction, int],
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                limit = self.cut_after[direction]
                if limit is not None and passed[direction] >= limit:
                    _reset(sink)
                    _reset(other)
                    return
                wanted = self.piece if limit is None else min(self.piece, limit - passed[direction])
                data = await source.read(wanted)
                await self._loud.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if not data:
                    break
                sink.write(data)
                passed[direction] += len(data)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()
            return
        _reset(sink)
        _reset(other)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

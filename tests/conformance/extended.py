"""Between a client of the simple protocol and its server: every single statement goes on in the extended one.

psql sends nearly all of the regression suite as Query messages. Here each becomes Parse, Bind, Describe, Execute and
Sync of the same text, and of the replies those that a Query would not have brought are left out. Several statements in
one message and COPY, whose Sync would come too early, go on as they are. The same stands in front of the server and of
the proxy, so that what differs is not its doing.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from proxy.steering.template import BROKEN, SEVERAL, template
from proxy.wire import messages
from proxy.wire.advice import first_word
from proxy.wire.messages import SYNC, message
from tests.conformance.stage import Address

_LEFT_OUT: Final = frozenset(b"12n")  # ParseComplete, BindComplete, NoData
_DESCRIBE_PORTAL: Final = message(b"D", b"P\0")


def as_extended(text: bytes) -> bytes | None:
    """The messages for a statement; None when it has to stay a Query."""
    if first_word(text) == b"copy" or template(text)[1] & (SEVERAL | BROKEN):
        return None
    parse = messages.parse(b"", text)
    return parse + messages.bind(b"", b"", b"\0\0\0\0\0\0") + _DESCRIBE_PORTAL + messages.execute(b"") + SYNC


class _Connection:
    """``converted`` has an entry for each ReadyForQuery to come: whether it ends a statement of ours."""

    def __init__(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._client = client
        self._to_client = to_client
        self._converted: deque[bool] = deque()

    async def run(self, address: Address) -> None:
        try:
            server, to_server = await asyncio.open_connection(address.host, address.port)
        except OSError:
            self._to_client.close()
            return
        with suppress(OSError, asyncio.IncompleteReadError):
            length = await self._client.readexactly(4)
            to_server.write(length + await self._client.readexactly(struct.unpack("!I", length)[0] - 4))
            await asyncio.gather(self._send(to_server), self._answer(server))
        self._to_client.close()
        to_server.close()

    async def _send(self, to_server: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, body = await _read(self._client)
                converted = as_extended(body[:-1]) if kind == b"Q" else None
                if kind in (b"Q", b"S"):
                    self._converted.append(converted is not None)
                to_server.write(converted if converted is not None else message(kind, body))
                await to_server.drain()
        finally:
            to_server.close()

    async def _answer(self, server: asyncio.StreamReader) -> None:
        try:
            while True:
                kind, body = await _read(server)
                if kind[0] in _LEFT_OUT and self._converted and self._converted[0]:
                    continue
                if kind == b"Z" and self._converted:
                    self._converted.popleft()
                self._to_client.write(message(kind, body))
                await self._to_client.drain()
        finally:
            self._to_client.close()


async def _read(stream: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await stream.readexactly(5)
    return head[:1], await stream.readexactly(struct.unpack_from("!I", head, 1)[0] - 4)


@contextmanager
def extended(address: Address, port: int) -> Iterator[Address]:
    """A place at ``port`` where clients find what is at ``address``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve() -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _Connection(reader, writer).run(address)

        return await asyncio.start_server(connected, "127.0.0.1", port)

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    try:
        yield Address("127.0.0.1", port, address.user)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

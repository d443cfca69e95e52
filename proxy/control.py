"""The control channel between the supervisor and a worker, and between two supervisors during a hand-over.

Each message is a JSON object behind a four-byte length. ``kind`` says what it is; one that wants an answer carries an
``id``, and the answer is a ``reply`` with the same ``id``. Which kinds exist is the business of the two ends: this
module only carries them.

Everything is bounded: the size of a message, what waits for a peer that does not read (a stopped worker), the requests
open in both directions, and the time an answer may take. A peer that breaks the framing loses the channel.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

Message = dict[str, Any]
Handler = Callable[[str, Message], Awaitable[Message | None]]

MAX_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes of one message; the settings with a long list of users stay far below."""
MAX_UNSENT: Final = 8 * 1024 * 1024
"""Bytes that may wait for a peer that does not read before further messages are dropped."""
MAX_REQUESTS: Final = 1000
"""Requests one side may have open."""

KEY_SERIAL_BITS: Final = 22
_LENGTH: Final = struct.Struct("!I")


class ControlLostError(Exception):
    """The other end is gone, does not read, did not answer in time, or failed to do what was asked."""


def worker_of_key(pid: int) -> int:
    """The worker id in the process id of a cancel key of our own making (see ``WorkerContext.new_key``)."""
    return pid >> KEY_SERIAL_BITS & 0xFF


def encode(message: Message) -> bytes:
    """One message with its length in front."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a control message of {len(body)} bytes is longer than {MAX_MESSAGE} bytes")
    return _LENGTH.pack(len(body)) + body


def decode(buffer: bytearray) -> list[Message]:
    """Takes the complete messages off the front of ``buffer``. Raises ValueError when it is not ours."""
    messages: list[Message] = []
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        if length > MAX_MESSAGE:
            raise ValueError(f"a control message claims {length} bytes")
        end = _LENGTH.size + length
        if len(buffer) < end:
            break
        message = json.loads(bytes(buffer[_LENGTH.size : end]))
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise ValueError("a control message is not an object with a kind")
        del buffer[:end]
        messages.append(message)
    return messages


class ControlChannel(asyncio.Protocol):
    """One end of a channel.

    ``handler(kind, message)`` is awaited for each message that is not a reply, in a task of its own; what it returns is
    the answer when one was asked for. ``lost()`` is called once when the channel ends.
    """

    def __init__(self, handler: Handler, lost: Callable[[], None]) -> None:
        self._handler = handler
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._open: dict[int, asyncio.Future[Message]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def over(cls, sock: socket.socket, handler: Handler, lost: Callable[[], None]) -> ControlChannel:
        """Runs a channel over a connected Unix socket, which it then owns."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(lambda: cls(handler, lost), sock=sock)
        return channel

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, kind: str, **fields: Any) -> bool:
        """Sends a message that wants no answer. False when the channel is closed or the other end does not read."""
        return self._write({"kind": kind, **fields})

    async def request(self, kind: str, limit: float, **fields: Any) -> Message:
        """Sends a message and returns its answer; ControlLostError when there is none within ``limit`` seconds."""
        if len(self._open) >= MAX_REQUESTS:
            raise ControlLostError(f"{len(self._open)} requests are open already")
        self._next += 1
        number = self._next
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            if not self._write({"kind": kind, "id": number, **fields}):
                raise ControlLostError("the other end does not read")
            async with asyncio.timeout(limit):
                message = await answer
            if "error" in message:
                raise ControlLostError(str(message["error"]))
            return message
        except TimeoutError:
            raise ControlLostError(f"no answer to {kind} within {limit:g} s") from None
        finally:
            del self._open[number]

    def close(self) -> None:
        """Ends the channel; what was sent is still delivered."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(ControlLostError("the other end is gone"))
        self._lost()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            messages = decode(self._buffer)
        except ValueError:
            assert self._transport is not None
            self._transport.abort()
            return
        for message in messages:
            self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        number = message.get("id")
        if message["kind"] == "reply":
            answer = self._open.get(number) if isinstance(number, int) else None
            if answer is not None and not answer.done():
                answer.set_result(message)
            return
        if len(self._tasks) >= MAX_REQUESTS:
            # Dropped without an answer: the other end runs into its time limit.
            return
        task = asyncio.create_task(self._handle(message, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: Message, number: object) -> None:
        try:
            answer = await self._handler(message["kind"], message)
        except Exception as error:
            # The other end learns that it failed; this one goes on, and its loop's handler logs the reason.
            answer = {"error": f"{type(error).__name__}: {error}"}
            context = {"message": f"control message {message['kind']} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        if number is not None:
            self._write({**(answer or {}), "kind": "reply", "id": number})

    def _write(self, message: Message) -> bool:
        transport = self._transport
        if transport is None or self._closed or transport.get_write_buffer_size() > MAX_UNSENT:
            return False
        transport.write(encode(message))
        return True

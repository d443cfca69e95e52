"""A PostgreSQL client that hides nothing: it says exactly what a test tells it to, and sees every message.

Drivers retry, wrap errors and refuse to send nonsense; fault tests need to know what was sent, what was answered and
how the connection ended.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any

from proxy.wire.messages import cancel_request, error_fields, query, startup_message

ANSWER_SECONDS = 30.0
_open: set[WireClient] = set()
Row = tuple[str | None, ...]


class ServerError(Exception):
    """An ErrorResponse: ``fields`` by their one-letter codes."""

    def __init__(self, body: bytes) -> None:
        self.fields = error_fields(body)
        super().__init__(f"{self.sqlstate}: {self.text}")

    @property
    def sqlstate(self) -> str:
        return self.fields["C"]

    @property
    def text(self) -> str:
        return self.fields["M"]

    @property
    def fatal(self) -> bool:
        return self.fields["V"] in ("FATAL", "PANIC")


class Lost(ConnectionError):
    """The connection ended without a word."""


class WireClient:
    """One connection. ``status`` is the last ReadyForQuery's, ``parameters`` what ParameterStatus said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.pid = 0
        self.secret = b""
        self.status = ""
        self.parameters: dict[str, str] = {}
        _open.add(self)
        self.local_port: int = writer.get_extra_info("sockname")[1]

    @classmethod
    async def open(cls, server: Any, timeout: float = ANSWER_SECONDS) -> WireClient:
        """A TCP connection to anything with ``host`` and ``port``, nothing said yet."""
        async with asyncio.timeout(timeout):
            return cls(*await asyncio.open_connection(server.host, server.port))

    @classmethod
    async def connect(
        cls,
        server: Any,
        database: str = "postgres",
        *,
        user: str = "postgres",
        settings: Mapping[str, str] | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> WireClient:
        """Logged in without a password. `ServerError` or `Lost` when that fails."""
        client = await cls.open(server, timeout)
        try:
            async with asyncio.timeout(timeout):
                client.send(startup_message({"user": user, "database": database, **(settings or {})}))
                await client.until_ready()
        except BaseException:
            client.reset()
            raise
        return client

    def send(self, data: bytes) -> None:
        """Nothing happens when the connection is gone; the next read tells."""
        self.writer.write(data)

    async def message(self) -> tuple[bytes, bytes]:
        """The next message: kind and body. `Lost` at the end of the connection."""
        try:
            header = await self.reader.readexactly(5)
            body = await self.reader.readexactly(struct.unpack_from("!I", header, 1)[0] - 4)
        except (EOFError, OSError) as error:
            raise Lost(str(error) or type(error).__name__) from None
        if header[:1] == b"S":
            name, value, _ = body.decode().split("\0")
            self.parameters[name] = value
        elif header[:1] == b"K":
            self.pid, self.secret = struct.unpack_from("!i", body)[0], body[4:]
        elif header[:1] == b"Z":
            self.status = body.decode()
        return header[:1], body

    async def until(self, *kinds: bytes) -> list[tuple[bytes, bytes]]:
        """All messages up to the first of one of `kinds`. `ServerError` for an error that ends the connection."""
        seen = []
        while True:
            kind, body = await self.message()
            seen.append((kind, body))
            if kind in kinds:
                return seen
            if kind == b"E" and (error := ServerError(body)).fatal:
                raise error

    async def until_ready(self) -> list[tuple[bytes, bytes]]:
        """All messages up to ReadyForQuery. `ServerError` for the first error among them."""
        seen = await self.until(b"Z")
        for kind, body in seen:
            if kind == b"E":
                raise ServerError(body)
        return seen

    async def until_closed(self, timeout: float = ANSWER_SECONDS) -> list[tuple[bytes, bytes]]:
        """All messages up to the end of the connection; TimeoutError when it stays open."""
        seen = []
        async with asyncio.timeout(timeout):
            while True:
                try:
                    seen.append(await self.message())
                except Lost:
                    return seen

    async def query(self, sql: str, timeout: float = ANSWER_SECONDS) -> list[Row]:
        """Runs one simple query; the rows as text."""
        async with asyncio.timeout(timeout):
            self.send(query(sql))
            return [_row(body) for kind, body in await self.until_ready() if kind == b"D"]

    async def value(self, sql: str) -> str | None:
        """The first column of the first row."""
        return (await self.query(sql))[0][0]

    async def cancel(self, server: Any) -> None:
        """Asks `server` to cancel what this client runs; returns when the request has been dealt with."""
        other = await WireClient.open(server)
        other.send(cancel_request(self.pid, self.secret))
        await other.until_closed()
        other.reset()

    def reset(self) -> None:
        """Ends the connection by RST: the other side learns that we are gone, and nothing else."""
        _open.discard(self)
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Says goodbye and waits for the other side to close."""
        self.send(b"X\0\0\0\x04")
        try:
            await self.until_closed()
        finally:
            self.reset()


async def reset_all() -> None:
    """Ends whatever connections are left open; for the end of a test that may have failed half-way."""
    for client in list(_open):
        client.reset()
    await asyncio.sleep(0)


def _row(body: bytes) -> Row:
    values: list[str | None] = []
    pos = 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        (length,) = struct.unpack_from("!i", body, pos)
        pos += 4
        if length < 0:
            values.append(None)
        else:
            values.append(body[pos : pos + length].decode())
            pos += length
    return tuple(values)

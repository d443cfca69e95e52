"""A small server on a free port that verifies clients by an ``Authenticator``: real drivers are let loose on it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from typing import Any

from proxy.auth import Authenticator, AuthFailed
from proxy.login import Credential
from proxy.wire.messages import (
    AUTHENTICATION_OK,
    backend_key_data,
    error_response,
    parameter_status,
    ready_for_query,
)

_SSL_REQUEST = 80877103
_GSS_REQUEST = 80877104


class RecordedLog:
    """Keeps events, for the assertion that they were written."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, *, level: str = "info", **fields: Any) -> None:
        self.events.append((name, {"level": level, **fields}))


class TestListener:
    """``credentials``: one per client let in, by user name. ``port`` is known once entered."""

    __test__ = False

    def __init__(self, authenticator: Authenticator, tls: ssl.SSLContext | None = None) -> None:
        self._authenticator = authenticator
        self._tls = tls
        self.credentials: dict[str, Credential] = {}
        self.failures: list[AuthFailed] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[TestListener]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._greet(reader, writer)
        except AuthFailed as failure:
            self.failures.append(failure)
            writer.write(failure.response())
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parameters = await self._startup(reader, writer)
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        exchange = await self._authenticator.begin(
            parameters["user"],
            parameters.get("database", ""),
            tls=tls is not None,
            peer_certificate=None if tls is None else tls.getpeercert(),
            peer="127.0.0.1",
        )
        writer.write(exchange.start())
        while not exchange.done:
            kind, body = await _message(reader)
            assert kind == b"p"
            writer.write(exchange.receive(body))
        self.credentials[parameters["user"]] = exchange.credential
        statuses = {"server_version": "18.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"}
        writer.write(AUTHENTICATION_OK + b"".join(parameter_status(*item) for item in statuses.items()))
        writer.write(backend_key_data(1, b"1234") + ready_for_query())
        while (await _message(reader))[0] != b"X":
            writer.write(error_response("0A000", "there is no database here", severity="ERROR") + ready_for_query())

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, str]:
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            if code == _SSL_REQUEST and self._tls is not None:
                writer.write(b"S")
                await writer.start_tls(self._tls)
            elif code in (_SSL_REQUEST, _GSS_REQUEST):
                writer.write(b"N")
            else:
                parts = (await reader.readexactly(length - 8)).decode().split("\0")
                return dict(zip(parts[::2], parts[1::2], strict=False))


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    header = await reader.readexactly(5)
    return header[:1], await reader.readexactly(int.from_bytes(header[1:], "big") - 4)

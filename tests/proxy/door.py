"""A worker's front without what is behind it: real listeners, TLS and authentication on a uvloop of their own thread.

``Door`` stands for the worker: where the proxy would start a session, it notes the login and says ReadyForQuery.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import uvloop

from proxy.auth import Authenticator
from proxy.listener import Listener, Lobby
from proxy.login import Login
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.places import Places
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts
from proxy.wire.messages import ready_for_query

T = TypeVar("T")


class Inside(asyncio.Protocol):
    """A client that was let in: notes what it sends."""

    def __init__(self, door: Door, login: Login, transport: asyncio.Transport, pending: bytes) -> None:
        self.door = door
        self.login = login
        self.transport = transport
        self.received = pending
        self.raw_startup = b""

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.sessions.discard(self)
        self.door.places.put_sessions(len(self.door.sessions))


@dataclass
class Cancelled:
    pid: int
    secret: bytes


class Door:
    """A context manager. ``port`` is where it listens; ``unix`` makes it listen on that path instead."""

    def __init__(self, log_file: Path, *, unix: Path | None = None, read_only: bool = False, **settings: Any) -> None:
        self.settings = ProxySettings(**{"upstream": "postgresql://postgres@127.0.0.1:1/postgres", **settings})
        self.counters = Counters()
        self.tls = TlsContexts(self.settings)
        self.log_file = log_file
        self._log_fd = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.log = Log("test", fd=self._log_fd)
        self.authenticator = Authenticator(self.settings, lambda: self.tls.certificate_hash, self.log)
        self.draining = False
        self.sessions: set[Inside] = set()
        self.places = Places()
        self.logins: list[Inside] = []
        self.cancels: list[Cancelled] = []
        self.cancel_gate: asyncio.Event | None = None
        self.problems: list[dict[str, Any]] = []
        self._read_only = read_only
        self.sock = self._listening(unix)
        self.port: int = 0 if unix else self.sock.getsockname()[1]
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda _, problem: self.problems.append(problem))
        self._thread = threading.Thread(target=self.loop.run_forever, name="door")

    @staticmethod
    def _listening(unix: Path | None) -> socket.socket:
        if unix is None:
            return socket.create_server(("127.0.0.1", 0), backlog=1024)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(unix))
        sock.listen(1024)
        return sock

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._start())
        return self

    async def _start(self) -> None:
        await self.authenticator.start()
        self.listener = Listener(self, self.sock, read_only=self._read_only)
        self.listener.start()

    def __exit__(self, *_: object) -> None:
        self.do(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self.sock.close()
        self.log.close()
        os.close(self._log_fd)

    async def _stop(self) -> None:
        self.listener.stop_accepting()
        self.lobby.abort()
        for session in list(self.sessions):
            session.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 10)
        # Closed transports are let go of one turn of the loop later.
        await asyncio.sleep(0)

    @property
    def lobby(self) -> Lobby:
        return self.listener.lobby

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the door's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function on the door's loop."""

        async def called() -> T:
            return function()

        return self.do(called())

    def log_text(self) -> str:
        return self.log_file.read_text()

    def connect(self, timeout: float = 10) -> socket.socket:
        if self.port:
            return socket.create_connection(("127.0.0.1", self.port), timeout)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(self.sock.getsockname())
        return sock

    # What a worker's context does.

    def start_session(self, login: Login, transport: asyncio.Transport, pending: bytes) -> None:
        session = Inside(self, login, transport, pending)
        self.sessions.add(session)
        self.logins.append(session)
        transport.set_protocol(session)
        transport.write(ready_for_query())

    def start_relay(self, login: Login, transport: asyncio.Transport, raw_startup: bytes, pending: bytes) -> None:
        self.start_session(login, transport, pending)
        self.logins[-1].raw_startup = raw_startup

    async def cancel(self, pid: int, secret: bytes) -> None:
        self.cancels.append(Cancelled(pid, secret))
        if self.cancel_gate is not None:
            await self.cancel_gate.wait()


READY = ready_for_query()


def read_all(sock: socket.socket, until: bytes = b"") -> bytes:
    """What the other side sends until it closes, resets, or the bytes end with ``until``."""
    received = b""
    try:
        while not (until and received.endswith(until)) and (data := sock.recv(65536)):
            received += data
    except ConnectionResetError:
        pass
    return received


def ask(sock: socket.socket, data: bytes, until: bytes = READY) -> bytes:
    """Sends ``data`` and reads the answer; closes."""
    with sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        return read_all(sock, until)

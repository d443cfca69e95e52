"""Runs the admin application by uvicorn inside the supervisor's event loop.

uvicorn is kept from what a whole program does: it installs no signal handlers and logs nothing by itself. It gets a
duplicate of the listening socket, because it closes what it is given and the socket may still be handed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

MAX_CONNECTIONS: Final = 200
"""Requests served at one time; more get 503."""
STOP_SECONDS: Final = 2.0
RETIRE_SECONDS: Final = 1.0


class _Embedded(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Has `serve` return once the requests that run have ended, or soon."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """In place of a look ten times a second at whether it is to end."""
        await self._ending.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves ``app``, an ASGI application, on ``sock`` from ``start()`` to ``stop()``."""

    def __init__(self, app: Callable[..., Any], sock: socket.socket) -> None:
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).addHandler(logging.NullHandler())
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            http="h11",
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
            server_header=False,
            date_header=False,
        )
        self._server = _Embedded(config)
        self._sock = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once requests are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock.dup()]))
        await self._server.accepting.wait()

    def retire(self) -> None:
        """Leaves new connections to the process that has the socket now, and ends those it has after a moment.

        Not at once: a request may be on its way in them. Not never: a scraper keeps its connection, and would go on
        reading the numbers of a process that does nothing any more.
        """
        loop = asyncio.get_running_loop()
        for server in self._server.servers:
            for sock in server.sockets:
                # Not closed yet: a server that is closed drops a connection that it has accepted in this very moment.
                loop.remove_reader(sock.fileno())
        loop.call_later(RETIRE_SECONDS, self._server.end)

    async def stop(self) -> None:
        """Stops accepting, lets running requests end shortly, and returns."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task, STOP_SECONDS)

"""Before the admin application: answers probes and scrapes by itself, and loads the rest when that is asked for.

FastAPI, the pages and their models are a third of what a supervisor would import before it serves, and most instances
are only ever asked whether they are ready, and for their metrics. What is not answered here, a request that has to be
refused among others, goes to the application. That is loaded some time after the start at the latest: an installation
may be replaced by a newer one while this process still runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from proxy.admin import probes
from proxy.admin.exposition import render
from proxy.admin.shell import HEADERS, is_local_name, is_token
from proxy.admin.source import AdminSource

LOAD_SECONDS: Final = 30.0
"""How long after the start the application is loaded without being asked for."""
Fields = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Fields]]
Send = Callable[[Fields], Awaitable[None]]
Application = Callable[[Fields, Receive, Send], Awaitable[None]]


class Front:
    """An ASGI application over ``source``; ``token`` as in `proxy.admin.app.create_app`."""

    def __init__(self, source: AdminSource, token: str = "") -> None:
        self._source = source
        self._token = token
        self._application: asyncio.Task[Application] | None = None

    async def __call__(self, scope: Fields, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            match scope["path"]:
                case "/healthz":
                    await _send_json(send, *probes.alive(self._source))
                    return
                case "/readyz":
                    await _send_json(send, *await probes.ready(self._source))
                    return
                case "/metrics" if self._may_scrape(scope):
                    accept = _header(scope, b"accept") or ""
                    body, content_type = render(await self._source.fresh_status(), accept)
                    await _send(send, 200, content_type, body)
                    return
        application = await self._loaded()
        await application(scope, receive, send)

    async def load_later(self) -> None:
        """Loads the application after `LOAD_SECONDS`."""
        await asyncio.sleep(LOAD_SECONDS)
        await self._loaded()

    async def _loaded(self) -> Application:
        if self._application is None:
            # In a thread, so that the rest of the supervisor goes on for the third of a second that it takes.
            self._application = asyncio.create_task(asyncio.to_thread(self._load))
        return await asyncio.shield(self._application)

    def _load(self) -> Application:
        from proxy.admin.app import create_app

        return create_app(self._source, self._token)

    def _may_scrape(self, scope: Fields) -> bool:
        if not self._token:
            return is_local_name(_header(scope, b"host") or "")
        scheme, _, offered = (_header(scope, b"authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and is_token(offered, self._token)


def _header(scope: Fields, name: bytes) -> str | None:
    """The first header of that name (lower case), as Starlette reads it."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def _send_json(send: Send, answer: dict[str, Any], status: int) -> None:
    body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
    await _send(send, status, "application/json", body)


async def _send(send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = {"Content-Length": str(len(body)), "Content-Type": content_type, **HEADERS}
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

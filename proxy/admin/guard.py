"""Who may use the admin port: the token where there is one, and browsers only from pages of our own.

Without a token the port is on loopback (a start with another address is refused), so the danger is a web page in a
browser of the same machine. Such a page could send requests that change something, which carry its ``Origin``; or it
could be served under a name that suddenly means 127.0.0.1, whose requests then carry that name in ``Host``. Both are
refused. Every answer carries headers that let the console run nothing but its own files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.admin.shell import HEADERS, is_local_name, is_token

MAX_BODY: Final = 256 * 1024
_BEARER: Final = HTTPBearer(auto_error=False, description="The setting admin_token.")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def dependencies(token: str) -> list[Dependency]:
    """What every guarded page depends on."""
    return [Depends(_ours), *([Depends(_require(token))] if token else [Depends(_local_name)])]


def _require(token: str) -> Callable[..., Awaitable[None]]:
    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if given is None or not is_token(given.credentials, token):
            raise HTTPException(401, "this page needs the admin token", {"WWW-Authenticate": "Bearer"})

    return check


async def _ours(request: Request) -> None:
    """Refuses what a page from elsewhere had a browser send."""
    if request.method in _SAFE:
        return
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise HTTPException(403, "a request from another site")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "a request from another site")


async def _local_name(request: Request) -> None:
    if not is_local_name(request.headers.get("host", "")):
        raise HTTPException(
            403, "this name is not one of this machine's: use 127.0.0.1 or localhost, or set admin_token"
        )


class Shell:
    """Around every page: adds the headers, and ends a request whose body is longer than `MAX_BODY`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise HTTPException(413, f"a request may have {MAX_BODY} bytes at most")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api"):
                    # Nothing of the API is to be kept in a browser's cache.
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, bounded, with_headers)

"""The admin application: joins the routers and guards them with the admin token, where there is one."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response

from proxy.admin import health, models
from proxy.admin.exposition import render
from proxy.admin.source import AdminSource


def create_app(source: AdminSource, token: str = "") -> FastAPI:
    """The application over ``source``.

    With a ``token`` every page but the health checks wants ``Authorization: Bearer <token>`` (401 otherwise).
    """
    app = FastAPI(title="pilotwire", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(health.router(source))
    guarded = [Depends(_require(token))] if token else []

    # Later groups of pages (a console) are included here, with the same dependencies.
    app.include_router(models.router(source), dependencies=guarded)

    @app.get("/metrics", dependencies=guarded)
    async def metrics(request: Request) -> Response:
        """All metrics, in Prometheus' text form or OpenMetrics, as the scraper asks."""
        body, content_type = render(await source.fresh_status(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return app


def _require(token: str) -> Callable[..., Awaitable[None]]:
    expected = f"Bearer {token}".encode()

    async def check(authorization: Annotated[str, Header()] = "") -> None:
        # Compared in constant time: an answer's delay must not tell how much of a guess was right.
        if not hmac.compare_digest(authorization.encode(), expected):
            raise HTTPException(401, "this page needs the admin token", {"WWW-Authenticate": "Bearer"})

    return check

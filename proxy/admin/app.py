"""The admin application: joins the routers and guards them with the admin token, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from proxy.admin import health, latencies, memory, models, overview, traffic
from proxy.admin.exposition import render
from proxy.admin.guard import Shell, dependencies
from proxy.admin.source import AdminSource, NotFoundError, PlannerUnavailableError, RefusedError, UnavailableError

CONSOLE: Final = Path(__file__).with_name("console")
_STATUS: Final = {NotFoundError: 404, RefusedError: 409, UnavailableError: 503, PlannerUnavailableError: 503}
_WORDS: Final = (
    "metrics, health, decisions, memory and switches of this instance. All durations named `_ms` are milliseconds."
)


def create_app(source: AdminSource, token: str = "") -> FastAPI:
    """The application over ``source``.

    With a ``token`` every page wants ``Authorization: Bearer <token>`` (401 otherwise), but for the health checks and
    the files of the console, which hold no data.
    """
    app = FastAPI(title="pilotwire", description=_WORDS, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Shell)
    app.include_router(health.router(source))
    guarded = dependencies(token)
    for group in (latencies, overview, models, memory, traffic):
        app.include_router(group.router(source), dependencies=guarded)

    @app.get("/metrics", dependencies=guarded, tags=["metrics"])
    async def metrics(request: Request) -> Response:
        """All metrics, in Prometheus' text form or OpenMetrics, as the scraper asks."""
        body, content_type = render(await source.fresh_status(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    @app.get("/api/openapi.json", dependencies=guarded, include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/console/")

    app.mount("/console", StaticFiles(directory=CONSOLE, html=True))
    for kind in _STATUS:
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, next(code for kind, code in _STATUS.items() if isinstance(error, kind)))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """As FastAPI does, without the value itself: it may be a secret in the wrong place."""
    assert isinstance(error, RequestValidationError)
    if request.method == "POST" and "json" not in request.headers.get("content-type", ""):
        # Not read at all, which keeps forms of other sites' pages out; curl forgets it as easily.
        return JSONResponse({"detail": "send a JSON body, with the header Content-Type: application/json"}, 422)
    details: list[dict[str, Any]] = [
        {"loc": list(found["loc"]), "msg": found["msg"], "type": found["type"]} for found in error.errors()
    ]
    return JSONResponse({"detail": details}, 422)

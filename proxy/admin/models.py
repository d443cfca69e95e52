"""``/api/models``: which models there are, and reading their folder again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from proxy.admin.source import AdminSource, ModelStatus, PlannerUnavailableError


def router(source: AdminSource) -> APIRouter:
    """Both pages; 503 with a reason while there is no planner process to ask."""
    routes = APIRouter(prefix="/api/models", tags=["models"])

    @routes.get("")
    async def models() -> JSONResponse:
        """Every file of the models' folder with its state, as last reported."""
        planner = source.status().planner
        if planner is None or not planner.ready:
            return _unavailable("steering is off" if planner is None else "the planner process is not running")
        return JSONResponse({"models": _plain(planner.models)})

    @routes.post("/reload")
    async def reload() -> JSONResponse:
        """Looks at the folder now; answers once every file has been loaded or refused."""
        try:
            found = await source.reload_models()
        except PlannerUnavailableError as error:
            return _unavailable(str(error))
        return JSONResponse({"models": _plain(found)})

    return routes


def _plain(models: Iterable[ModelStatus]) -> list[dict[str, Any]]:
    return [asdict(model) for model in models]


def _unavailable(reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, 503)

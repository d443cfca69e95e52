"""``/api/models``: which models there are, what they say of themselves, which of them serves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from proxy.admin.source import AdminSource, ModelStatus, PlannerUnavailableError

FileName = Annotated[str, Path(min_length=1, max_length=255)]


class Model(BaseModel):
    """``state`` is active (it serves), valid, kept (only a copy is left) or refused; ``detail`` says why."""

    file: str
    kind: str
    name: str
    version: str
    state: str
    detail: str = ""


class Models(BaseModel):
    models: list[Model]


class Unavailable(BaseModel):
    error: str


class Choice(BaseModel):
    """``model`` is a name, name@version or a file of the folder; rollback and release want the ``kind`` only."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["activate", "rollback", "release"]
    model: str = Field("", max_length=255, pattern=r"^([^\x00-\x1f-][^\x00-\x1f]*)?$")
    kind: Literal["cardinality", "hints"] = "cardinality"


def router(source: AdminSource) -> APIRouter:
    """503 with a reason while there is no planner process to ask."""
    routes = APIRouter(prefix="/api/models", tags=["models"])
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": Unavailable}}

    @routes.get("", response_model=Models, responses=unavailable)
    async def models() -> JSONResponse:
        """Every file of the models' folder with its state, as last reported."""
        planner = source.status().planner
        if planner is None or not planner.ready:
            return _unavailable("steering is off" if planner is None else "the planner process is not running")
        return JSONResponse({"models": _plain(planner.models)})

    @routes.post("/reload", response_model=Models, responses=unavailable)
    async def reload() -> JSONResponse:
        """Looks at the folder now; answers once every file has been loaded or refused."""
        try:
            found = await source.reload_models()
        except PlannerUnavailableError as error:
            return _unavailable(str(error))
        return JSONResponse({"models": _plain(found)})

    @routes.post("/choice")
    async def choose(choice: Choice) -> Models:
        """Pins a model against whatever comes (activate), goes back to the one before (rollback), or lets the newest
        serve again (release). 409 says why it cannot be."""
        await source.choose_model(choice.action, choice.model if choice.action == "activate" else choice.kind)
        try:
            found = await source.reload_models()
        except PlannerUnavailableError:
            # Written down: the planner process will see it when it is there.
            found = ()
        return Models(models=[Model(**row) for row in _plain(found)])

    @routes.get("/{file}")
    async def file(file: FileName) -> dict[str, Any]:
        """What a file says about itself: checks, manifest, training summary with q-errors."""
        return dict(await source.model_file(file))

    return routes


def _plain(models: Iterable[ModelStatus]) -> list[dict[str, Any]]:
    return [asdict(model) for model in models]


def _unavailable(reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, 503)

"""Clients, pools, settings, mode: what runs now, and the switches."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from proxy.admin.overview import MODES
from proxy.admin.source import AdminSource, Client, Pool, Reloaded
from proxy.settings import docs

ClientId = Annotated[str, Path(pattern=r"^\d{1,3}\.\d{1,18}$", description="As in the list of clients.")]
HIDDEN: Final = "********"


class Clients(BaseModel):
    """``next`` is what to give as ``after`` for the next page, null at the end."""

    clients: list[Client]
    next: str | None


class Pools(BaseModel):
    pools: list[Pool]


class Setting(BaseModel):
    """``changed``: not the default. The value of a secret is never given."""

    name: str
    value: Any
    default: str
    changed: bool
    group: str
    unit: str
    description: str
    reason: str
    warning: str
    reload: bool


class Settings(BaseModel):
    settings: list[Setting]


class Mode(BaseModel):
    mode: str
    modes: list[str]


class Switch(BaseModel):
    """It stays when the settings are read again, and ends with the process."""

    model_config = ConfigDict(extra="forbid")

    mode: str = Field(max_length=20)
    actor: str = Field("api", min_length=1, max_length=100)
    why: str = Field("", max_length=500)


class Killed(BaseModel):
    killed: str


def router(source: AdminSource) -> APIRouter:
    """All of them."""
    routes = APIRouter(prefix="/api")

    @routes.get("/clients", tags=["connections"])
    async def clients(
        after: Annotated[str, Query(pattern=r"^(\d{1,3}\.\d{1,18})?$", description="`next` of the page before.")] = "",
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> Clients:
        """Who is connected, page by page."""
        found = list(await source.clients(after, limit))
        return Clients(clients=found, next=found[-1].id if len(found) == limit else None)

    @routes.post("/clients/{client}/kill", tags=["connections"])
    async def kill(client: ClientId) -> Killed:
        """Cancels what the client runs and ends it with 57P01. 404 when it is gone."""
        if not await source.kill(client):
            raise HTTPException(404, f"no client {client}")
        return Killed(killed=client)

    @routes.get("/pools", tags=["connections"])
    async def pools() -> Pools:
        """Connections by user and database."""
        return Pools(pools=list(await source.pools()))

    @routes.get("/settings", tags=["settings"])
    async def settings() -> Settings:
        """Every setting in force, with what the documentation says of it."""
        return Settings(settings=described(source))

    @routes.post("/reload", tags=["settings"])
    async def reload() -> Reloaded:
        """Reads the settings and the models again, as SIGHUP does. 409 says why they were not taken."""
        outcome = await source.reload()
        if outcome.refused:
            raise HTTPException(409, outcome.refused)
        return outcome

    @routes.get("/mode", tags=["settings"])
    async def mode() -> Mode:
        """Whether statements are steered."""
        return Mode(mode=source.settings.mode, modes=list(MODES))

    @routes.post("/mode", tags=["settings"])
    async def set_mode(switch: Switch) -> Mode:
        """Switches steering in all workers at once. 422 for a mode that is not known."""
        if switch.mode not in MODES:
            raise HTTPException(422, f"mode is one of {', '.join(MODES)}, not {switch.mode}")
        await source.set_mode(switch.mode, switch.actor, switch.why)
        return Mode(mode=source.settings.mode, modes=list(MODES))

    return routes


def described(source: AdminSource) -> list[Setting]:
    """Secrets as `HIDDEN`; the DSN's password is not in ``upstream`` at all."""
    settings = source.settings
    values = settings.model_dump(mode="json")
    fields = type(settings).model_fields
    rows = []
    for name, doc in docs().items():
        value = getattr(settings, name)
        shown = HIDDEN if isinstance(value, SecretStr) else values[name]
        rows.append(
            Setting(
                name=name,
                value=shown,
                default=doc.default,
                changed=value != fields[name].get_default(call_default_factory=True),
                group=doc.group,
                unit=doc.unit,
                description=fields[name].description or "",
                reason=doc.reason,
                warning=doc.warning,
                reload=doc.reload,
            )
        )
    return rows

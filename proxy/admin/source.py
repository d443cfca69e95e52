"""What the admin pages need to know of the running instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One file of the models' folder. ``state`` is active (it serves), valid, kept (only a copy is left) or
    refused; ``detail`` says why."""

    file: str
    kind: str
    name: str
    version: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PlannerStatus:
    """The planner process. ``catalog_age_s`` is the age of its oldest catalog snapshot, -1 when it has none; ``queue``
    how many statements wait in it."""

    ready: bool = False
    memory: int = 0
    databases: int = 0
    catalog_age_s: float = -1.0
    queue: int = 0
    models: tuple[ModelStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """The instance at one moment.

    ``totals`` is a merged snapshot (see proxy/metrics.py), ``memory`` resident bytes by process name, ``start_time``
    seconds since 1970, ``planner`` is None where steering is off.
    """

    workers_configured: int
    workers_alive: int
    workers_ready: int
    workers_responding: int
    worker_restarts: int
    draining: bool
    start_time: float
    totals: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    planner: PlannerStatus | None = None


class PlannerUnavailableError(Exception):
    """There is no planner process, or it does not answer; ``str()`` says which."""


class AdminSource(Protocol):
    """The supervisor, as the admin pages see it."""

    def status(self) -> Status:
        """As far as it is known without asking anybody."""
        ...

    async def fresh_status(self) -> Status:
        """After asking each worker for its counters; one that does not answer soon is shown as last known."""
        ...

    async def upstream_reachable(self) -> bool:
        """Whether the upstream accepted a connection within the last seconds."""
        ...

    async def reload_models(self) -> tuple[ModelStatus, ...]:
        """Has the models' folder read again; its state afterwards. Raises PlannerUnavailableError."""
        ...

"""What the admin pages need to know of the running instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Status:
    """The instance at one moment.

    ``totals`` is a merged snapshot (see proxy/metrics.py), ``memory`` resident bytes by process name, ``start_time``
    seconds since 1970.
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

"""``/healthz`` and ``/readyz``.

Neither asks for the admin token: probes of load balancers and of Kubernetes carry none, and the answers tell nothing
about data.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from proxy.admin import probes
from proxy.admin.source import AdminSource


def router(source: AdminSource) -> APIRouter:
    """The two pages; status 200 for yes and 503 for no, with the reasons as JSON."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:
        """Yes when at least one worker process is alive and responds. Restart the instance when it says no for long."""
        return JSONResponse(*probes.alive(source))

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        """Yes when a worker accepts clients, the instance is not stopping, and the upstream can be reached."""
        return JSONResponse(*await probes.ready(source))

    return routes

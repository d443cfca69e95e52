"""``/healthz``: is the process alive? ``/readyz``: should clients be sent here?

Neither asks for the admin token: probes of load balancers and of Kubernetes carry none, and the answers tell nothing
about data.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from proxy.admin.source import AdminSource


def router(source: AdminSource) -> APIRouter:
    """The two pages; status 200 for yes and 503 for no, with the reasons as JSON."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> JSONResponse:
        """Yes when at least one worker process is alive and responds. Restart the instance when it says no for long."""
        status = source.status()
        alive = status.workers_responding > 0
        return JSONResponse(
            {
                "status": "ok" if alive else "failed",
                "workers": status.workers_alive,
                "workers_responding": status.workers_responding,
                "workers_configured": status.workers_configured,
            },
            200 if alive else 503,
        )

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        """Yes when a worker accepts clients, the instance is not stopping, and the upstream can be reached."""
        status = source.status()
        reasons = []
        if status.draining:
            reasons.append("the instance is stopping")
        if status.workers_ready == 0:
            reasons.append("no worker accepts clients")
        if not await source.upstream_reachable():
            reasons.append("the upstream cannot be reached")
        return JSONResponse(
            {"status": "failed" if reasons else "ok", "reasons": reasons, "workers_ready": status.workers_ready},
            503 if reasons else 200,
        )

    return routes

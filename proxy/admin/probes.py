"""What the two probes answer: ``/healthz``, is the process alive? ``/readyz``, should clients be sent here?"""

from __future__ import annotations

from typing import Any

from proxy.admin.source import AdminSource


def alive(source: AdminSource) -> tuple[dict[str, Any], int]:
    """The answer as JSON and its status: 200 when at least one worker process is alive and responds, else 503."""
    status = source.status()
    fine = status.workers_responding > 0
    answer = {
        "status": "ok" if fine else "failed",
        "workers": status.workers_alive,
        "workers_responding": status.workers_responding,
        "workers_configured": status.workers_configured,
    }
    return answer, 200 if fine else 503


async def ready(source: AdminSource) -> tuple[dict[str, Any], int]:
    """The same of readiness: 200 when a worker accepts clients, the instance is not stopping, and the upstream can be
    reached."""
    status = source.status()
    reasons = []
    if status.draining:
        reasons.append("the instance is stopping")
    if status.workers_ready == 0:
        reasons.append("no worker accepts clients")
    if not await source.upstream_reachable():
        reasons.append("the upstream cannot be reached")
    answer = {"status": "failed" if reasons else "ok", "reasons": reasons, "workers_ready": status.workers_ready}
    return answer, 503 if reasons else 200

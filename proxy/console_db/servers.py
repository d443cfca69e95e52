"""The server connections of one worker, described for a person; about 2 us for each."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from proxy.clients import Sessions, state_of
from proxy.session_base import Session
from proxy.upstream.backend import Backend
from proxy.upstream.pool import BackendPool

MAX_SERVERS: Final = 5000


def listed(sessions: Sessions, pools: Iterable[BackendPool]) -> list[dict[str, Any]]:
    """Those that clients have, and those that are ready for one. ``client`` is the client's number here, None for an
    idle one."""
    now = time.monotonic()
    found: list[dict[str, Any]] = []
    for number, session in sessions.numbered():
        if isinstance(session, Session) and session.backend is not None:
            row = _row(session.backend, session.login.user, session.login.database, now)
            found.append({**row, "state": state_of(session), "client": number})
    for pool in pools:
        for backend in pool.idle:
            row = _row(backend, pool.opener.user, pool.opener.database, now)
            found.append({**row, "state": "idle", "idle_s": round(now - backend.idle_since, 1), "client": None})
    return [*islice(found, MAX_SERVERS)]


def _row(backend: Backend, user: str, database: str, now: float) -> dict[str, Any]:
    address = backend.address
    return {
        "database": database,
        "user": user,
        "addr": address if isinstance(address, str) else f"{address[0]}:{address[1]}",
        "pid": backend.pid,
        "tls": backend.tls,
        "connected_s": round(now - backend.born, 1),
    }

"""The clients of one worker, by number: listed, counted by pool, and ended on demand.

Numbers are given in the order of arrival and never again, so that a listing can be read page by page while clients come
and go, and a client that is to be ended is the one that was seen. Nothing here is on the hot path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from proxy.relay import RelaySession
from proxy.session import PooledSession
from proxy.session_base import SHUTDOWN, Session
from proxy.upstream.pool import BackendPool

if TYPE_CHECKING:
    from proxy.context import WorkerContext

MAX_PAGE: Final = 500
"""Clients described at one time: some 5 us each, between which no client is served."""
CANCEL_SECONDS: Final = 5.0
"""How long a client's query may take to end once it is cancelled, before its connection is cut."""
_LOOK: Final = 0.02

AnySession = Session | RelaySession


class Sessions:
    """All that are logged in, and those that log in with the server itself."""

    __slots__ = ("_last", "_seats")

    def __init__(self) -> None:
        self._seats: dict[AnySession, tuple[int, float]] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[AnySession]:
        return iter(self._seats)

    def __contains__(self, session: object) -> bool:
        return session in self._seats

    def add(self, session: AnySession) -> None:
        self._last += 1
        self._seats[session] = (self._last, time.time())

    def replace(self, old: AnySession, new: AnySession) -> None:
        """The same client goes on in another session."""
        seat = self._seats.pop(old, None)
        if seat is None:
            self.add(new)
        else:
            self._seats[new] = seat

    def discard(self, session: AnySession) -> None:
        self._seats.pop(session, None)

    def numbered(self) -> Iterator[tuple[int, AnySession]]:
        """Each with its number."""
        return ((seat[0], session) for session, seat in self._seats.items())

    def find(self, number: int) -> AnySession | None:
        """The client with this number; about 30 ns for each client."""
        return next((session for session, seat in self._seats.items() if seat[0] == number), None)

    def page(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Up to ``limit`` clients with higher numbers than ``after``, in order, in plain values."""
        now = time.monotonic()
        later = ((seat[0], session) for session, seat in self._seats.items() if seat[0] > after)
        # A relayed login keeps its number and moves to the end: sorted, the order holds for it too.
        chosen = sorted(later, key=lambda pair: pair[0])
        return [self._described(session, now) for _, session in islice(chosen, min(limit, MAX_PAGE))]

    def _described(self, session: AnySession, now: float) -> dict[str, Any]:
        number, connected = self._seats[session]
        login = session.login
        state, running_ms, backend = "logging in", 0.0, 0
        application = login.settings.get("application_name", "")
        if isinstance(session, Session):
            state = state_of(session)
            running_ms = (now - session._since) * 1000 if session._since else 0.0
            backend = session.backend.pid if session.backend is not None else 0
            steering = session._steering
            application = steering.application if steering is not None else application
        return {
            "number": number,
            "user": login.user,
            "database": login.database,
            "application": application[:200],
            "peer": login.peer,
            "tls": login.tls,
            "read_only": login.read_only,
            "connected": connected,
            "state": state,
            "running_ms": round(running_ms, 3),
            "server_pid": backend,
            "log_id": login.id,
        }


def state_of(session: Session) -> str:
    """``idle``, ``active`` (a statement is on its way), ``waiting`` (for a server connection), ``in transaction``."""
    talk = session.talk
    if isinstance(session, PooledSession) and session.waiting:
        return "waiting"
    if talk.owed.first or session._since:
        return "active"
    return "idle" if talk.idle else "in transaction"


def pools(sessions: Sessions, kept: list[BackendPool], pool_mode: str) -> list[dict[str, Any]]:
    """One entry for each user and database; about 1 us for each client."""
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def entry(user: str, database: str) -> dict[str, Any]:
        zero = dict.fromkeys(("clients", "active", "waiting", "servers", "idle_servers", "opening", "limit"), 0)
        return found.setdefault(
            (user, database), {"user": user, "database": database, "mode": pool_mode, **zero, "longest_wait_ms": 0.0}
        )

    for session in sessions:
        row = entry(session.login.user, session.login.database)
        row["clients"] += 1
        if isinstance(session, Session):
            row["active"] += session.backend is not None and state_of(session) != "idle"
            if pool_mode == "session":
                row["servers"] += session.backend is not None
    for pool in kept:
        row = entry(pool.opener.user, pool.opener.database)
        state = pool.state(time.monotonic())
        # A session that reuses a connection has been counted with it above.
        row["servers"] += state["servers"] if pool_mode == "transaction" else state["idle"]
        row["idle_servers"] += state["idle"]
        row["opening"] += state["opening"]
        row["waiting"] += state["waiting"]
        row["limit"] += state["limit"]
        row["longest_wait_ms"] = max(row["longest_wait_ms"], round(state["longest_wait"] * 1000, 3))
    return list(found.values())


async def kill(context: WorkerContext, number: int) -> bool:
    """Ends a client with 57P01: its query, if one runs, is cancelled first, so that it gets an error in order. False
    when there is no such client."""
    session = context.sessions.find(number)
    if session is None:
        return False
    login = session.login
    context.log.event("client_killed", id=login.id, user=login.user, database=login.database, peer=login.peer)
    if isinstance(session, RelaySession):
        session.abort()
        return True
    until = time.monotonic() + CANCEL_SECONDS
    cancelled = False
    while session.talk.owed.first and session in context.sessions and time.monotonic() < until:
        if not cancelled and session.key[0]:
            cancelled = True
            await context.cancel(*session.key)
        await asyncio.sleep(_LOOK)
    if session not in context.sessions:
        return True
    if session.talk.owed.first:
        session.abort()
    else:
        session.finish(SHUTDOWN)
    return True

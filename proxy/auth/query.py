"""Users known to the upstream: ``auth_query`` over connections of our own.

The query gets the user's name as its bound parameter ``$1`` and gives one row: the name, the secret as
``pg_authid.rolpassword`` holds it, and, if it has a third column, the time until which the secret is valid. For example
``SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin``.

What anybody can make grow before login is bounded: at most ``MAX_CONNECTIONS`` connections, ``MAX_WAITING`` users being
looked up, ``CACHE_USERS`` answers kept for ``CACHE_SECONDS``. A login that fails drops its user's answer, so that a
password changed a moment ago is at most refused once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal, Protocol

import asyncpg

from proxy.auth.failures import CANNOT_CONNECT_NOW, AuthFailed
from proxy.auth.secrets import Secret, parse_secret
from proxy.dsn import Dsn
from proxy.upstream.hosts import connect_first

MAX_CONNECTIONS: Final = 2
MAX_WAITING: Final = 200
CACHE_USERS: Final = 1024
CACHE_SECONDS: Final = 5.0
MAX_NAME_BYTES: Final = 63
"""No role has a longer name; such a name is not looked up."""


class EventLog(Protocol):
    """The part of ``proxy.logs.Log`` used here."""

    def event(
        self, name: str, /, *, level: Literal["debug", "info", "warning", "error"] = "info", **fields: str | int
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """How to ask: ``timeout`` is for each host and for the answer, in seconds; ``tls`` gives asyncpg's options about
    encryption, anew for each pool."""

    dsn: Dsn
    sql: str
    user: str
    password: str | None = field(repr=False)
    timeout: float
    tls: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """One user's row. ``valid_until`` None: for ever."""

    secret: Secret | None
    valid_until: datetime | None = None

    def expired(self) -> bool:
        return self.valid_until is not None and self.valid_until < datetime.now(UTC)


class AuthQueryError(Exception):
    """The query ran but its answer cannot be used; the text says what the query must give."""


_FAILURES: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    AuthQueryError,
)


class AuthQuery:
    """Looks users up. Belongs to one event loop; opens its first connection at the first look-up."""

    def __init__(self, settings: QuerySettings, log: EventLog, now: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._log = log
        self._now = now
        self._pool: asyncpg.Pool | None = None
        self._running: dict[str, asyncio.Task[Found | None]] = {}
        self._cache: OrderedDict[str, tuple[float, Found | None]] = OrderedDict()

    async def look_up(self, user: str) -> Found | None:
        """The user's row, None when there is none. AuthFailed when the upstream cannot be asked."""
        if not _can_exist(user):
            return None
        kept = self._cache.get(user)
        if kept is not None and kept[0] > self._now():
            return kept[1]
        task = self._running.get(user)
        if task is None:
            if len(self._running) >= MAX_WAITING:
                raise AuthFailed(
                    CANNOT_CONNECT_NOW,
                    "too many logins wait for auth_query: try again in a moment",
                    log_detail=f"{MAX_WAITING} users are being looked up",
                )
            task = asyncio.get_running_loop().create_task(self._ask(user))
            self._running[user] = task
            task.add_done_callback(lambda done: self._finished(user, done))
        try:
            # A client that leaves must not cancel the look-up of another one with the same name.
            return await asyncio.shield(task)
        except _FAILURES as error:
            reason = f"{type(error).__name__}: {error}"
            self._log.event("auth_query_failed", level="error", user=user, reason=reason)
            raise AuthFailed(
                CANNOT_CONNECT_NOW,
                f'cannot look up user "{user}": auth_query failed, see the log of the proxy',
                log_detail=reason,
            ) from error

    def forget(self, user: str) -> None:
        self._cache.pop(user, None)

    async def close(self) -> None:
        for task in list(self._running.values()):
            task.cancel()
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    def _finished(self, user: str, task: asyncio.Task[Found | None]) -> None:
        del self._running[user]
        if task.cancelled() or task.exception() is not None:
            return
        self._cache[user] = (self._now() + CACHE_SECONDS, task.result())
        self._cache.move_to_end(user)
        while len(self._cache) > CACHE_USERS:
            self._cache.popitem(last=False)

    async def _ask(self, user: str) -> Found | None:
        if self._pool is None:
            self._pool = self._make_pool()
        pool = await self._pool
        async with asyncio.timeout(self.settings.timeout * (len(self.settings.dsn.hosts) + 1)):
            connection = await pool.acquire()
            try:
                row = await connection.fetchrow(self.settings.sql, user, timeout=self.settings.timeout)
            except BaseException:
                # Its state is not worth finding out, and a reset over a dead network would wait.
                connection.terminate()
                raise
            finally:
                with contextlib.suppress(asyncpg.InterfaceError, OSError):
                    await pool.release(connection)
        return None if row is None else read_row(tuple(row.values()), user)

    def _make_pool(self) -> asyncpg.Pool:
        settings = self.settings
        options = settings.tls()
        if settings.password is not None:
            options["password"] = settings.password
        return asyncpg.create_pool(
            connect=partial(
                connect_first, hosts=settings.dsn.hosts, target_session_attrs="any", limit=settings.timeout
            ),
            user=settings.user,
            database=settings.dsn.database or settings.user,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            max_inactive_connection_lifetime=60.0,
            statement_cache_size=0,
            server_settings={"application_name": "pilotwire auth_query"},
            **options,
        )


def _can_exist(user: str) -> bool:
    try:
        return 0 < len(user.encode("utf-8")) <= MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False


def read_row(row: tuple[Any, ...], user: str) -> Found:
    """What a row (name, secret[, valid until]) says of ``user``; AuthQueryError when it says nothing usable."""
    if len(row) not in (2, 3):
        raise AuthQueryError(f"auth_query must give 2 or 3 columns (name, secret, valid until), not {len(row)}")
    name, secret, until = (*row, None)[:3]
    if name != user:
        raise AuthQueryError("auth_query gave the row of another user: it must select by $1")
    if secret is not None and not isinstance(secret, str):
        raise AuthQueryError("the second column of auth_query must be text, the user's secret")
    if until is not None and not isinstance(until, datetime):
        raise AuthQueryError("the third column of auth_query must be a timestamp with time zone")
    if until is not None and until.replace(tzinfo=None) in (datetime.max, datetime.min):
        # How asyncpg writes infinity and -infinity; comparing them with a zone would overflow.
        until = None if until.replace(tzinfo=None) == datetime.max else datetime.min.replace(tzinfo=UTC)
    elif until is not None and until.tzinfo is None:
        raise AuthQueryError("the third column of auth_query must be a timestamp with time zone")
    try:
        return Found(parse_secret(secret or ""), until)
    except ValueError as error:
        raise AuthQueryError(f"the secret that auth_query gave cannot be used: {error}") from None

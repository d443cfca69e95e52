"""Backends that change hands: the ready list of one database, user and start-up, in one worker.

A transaction costs no acquire and release at asyncpg: backends that were taken over stay here, and asyncpg gets them
back only to be checked. Everything waits in one queue, first come, first served; the queue has a limit and a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from proxy.logs import Log
from proxy.metrics import Counters
from proxy.settings import ProxySettings
from proxy.upstream.backend import Backend, Owner, idle_message_is_harmless, reported_settings, run_alone
from proxy.upstream.errors import UpstreamError
from proxy.upstream.opener import Opener
from proxy.wire.messages import error_response
from proxy.wire.prepared import UNKNOWN
from proxy.wire.session_state import BackendState

_now: Final = time.monotonic
_CHECK_TIMEOUT: Final = 5.0
# A backend above pool_size goes when it has idled this long, in seconds. Ended at once, it was missed a moment later:
# 32 busy clients on a pool of 20 opened 800 a second and got a tenth of the throughput.
_OVERFLOW_IDLE: Final = 5.0


class Waiter(Protocol):
    """A session that asked for a backend."""

    def granted(self, backend: Backend) -> None: ...

    def refused(self, response: bytes) -> None: ...


class BackendPool(Owner):
    """The backends of one database, user and start-up settings. Also the owner of those that are idle."""

    def __init__(
        self,
        settings: ProxySettings,
        counters: Counters,
        log: Log,
        opener: Opener,
        startup: Mapping[str, str],
    ) -> None:
        self.settings = settings
        self.opener = opener
        self.greeting: list[bytes] = []
        self.reported: dict[bytes, bytes] = {}
        self.last_used = _now()
        self._paused = False
        self._startup = startup
        self._counters = counters
        self._log = log
        self._ready: list[Backend] = []
        self._waiting: deque[tuple[Waiter, float]] = deque()
        self._all: set[Backend] = set()
        self._opening = 0
        self._checking: set[Backend] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return (
            f"<BackendPool {self.opener.user}@{self.opener.database} size={self.size} ready={len(self._ready)}"
            f" waiting={len(self._waiting)}>"
        )

    @property
    def size(self) -> int:
        return len(self._all) + self._opening

    @property
    def connected(self) -> bool:
        """Whether the server has let one in: then a client may be greeted without a backend of its own."""
        return bool(self._all)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> list[Backend]:
        """Those that wait for a client."""
        return [*self._ready, *self._checking]

    @property
    def unused(self) -> bool:
        return not self._all and not self._opening and not self._waiting

    def state(self, now: float) -> dict[str, float]:
        """How full it is; ``longest_wait`` in seconds."""
        return {
            "servers": len(self._all),
            "idle": len(self._ready),
            "opening": self._opening,
            "waiting": len(self._waiting),
            "limit": self.settings.pool_size + self.settings.pool_overflow,
            "longest_wait": now - self._waiting[0][1] if self._waiting else 0.0,
        }

    # ------------------------------------------------------------------ taking and giving back

    def take(self, session: Waiter) -> Backend | None:
        """A ready backend, or None: then the session has been queued, and is granted one or refused later."""
        if self._ready:
            return self._ready.pop()
        # Who gets a backend as soon as it is open is not in the queue.
        places = max(0, self.settings.pool_size + self.settings.pool_overflow - len(self._all))
        if len(self._waiting) - places >= self.settings.queue_limit and not self._paused:
            self._counters.queue_rejected += 1
            session.refused(self._refusal(f"its queue is full ({self.settings.queue_limit} clients wait)"))
            return None
        self._waiting.append((session, _now()))
        self._counters.pool_waiting += 1
        self._grow()
        return None

    def forget(self, session: Waiter) -> None:
        """The session does not wait any more."""
        for entry in self._waiting:
            if entry[0] is session:
                self._waiting.remove(entry)
                self._counters.pool_waiting -= 1
                return

    def give_back(self, backend: Backend, now: float) -> None:
        """A backend outside a transaction, with nothing owed, in a known state; ``now`` on the monotonic clock."""
        backend.owner = self
        if backend.lost:
            return
        backend.idle_since = backend.checked = now
        if now > backend.expires or self._paused:
            self.retire(backend)
        elif self._waiting:
            self._grant(backend)
        else:
            self._ready.append(backend)

    def retire(self, backend: Backend, *, polite: bool = True) -> None:
        """Ends a backend: too old, too many, or in a state that nobody knows. ``polite`` only outside a message."""
        self._all.discard(backend)
        backend.close(polite=polite)
        if self._waiting:
            self._grow()

    def _grant(self, backend: Backend) -> None:
        session, since = self._waiting.popleft()
        self._counters.pool_waiting -= 1
        self._counters.pool_wait_seconds_count += 1
        self._counters.pool_wait_seconds_sum += _now() - since
        session.granted(backend)

    def _refusal(self, why: str) -> bytes:
        pool = f'"{self.opener.user}@{self.opener.database}"'
        limit = self.settings.pool_size + self.settings.pool_overflow
        return error_response(
            "53300",
            f"pilotwire has no server connection for you in pool {pool}: {why}",
            detail=f"The pool has {len(self._all)} of at most {limit} connections, {len(self._ready)} of them free.",
            hint="Raise pool_size or pool_overflow, or look for transactions that stay open.",
        )

    def reload(self, settings: ProxySettings) -> None:
        """Goes by these settings from now on, also with the backends that it has."""
        self.settings = settings
        self.opener = self.opener.renewed(settings)
        for backend in self._all:
            backend.expires = backend.born + self._lifetime

    @property
    def _lifetime(self) -> float:
        return self.settings.server_lifetime or math.inf

    # ------------------------------------------------------------------ opening

    def _grow(self) -> None:
        if self._paused:
            return
        limit = self.settings.pool_size + self.settings.pool_overflow
        while self._opening < len(self._waiting) and self.size < limit:
            self._spawn()

    def _spawn(self) -> None:
        self._opening += 1
        task = asyncio.get_running_loop().create_task(self._open())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            backend = await self.opener.open(self._startup)
        except UpstreamError as error:
            self._opening -= 1
            self._log.event("backend_failed", level="warning", pool=repr(self), error=str(error))
            if not self._all and not self._paused:
                # There is nobody to wait for: a client is told at once.
                self._refuse_all(error.response)
            return
        except BaseException:
            self._opening -= 1
            raise
        self._opening -= 1
        self._all.add(backend)
        self._counters.backend_opened(backend.how)
        self.greeting = backend.greeting
        self.reported = reported_settings(backend.greeting)
        backend.state = BackendState(self.reported, self.settings.max_prepared_bytes_backend, backend.pid)
        backend.expires = backend.born + self._lifetime
        backend.start(self._ended)
        backend.owner = self
        backend.replay_early()
        self.give_back(backend, _now())

    def _refuse_all(self, response: bytes) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._counters.pool_waiting -= len(waiting)
        for session, _ in waiting:
            session.refused(response)

    def _ended(self, backend: Backend) -> None:
        self._counters.backend_closed()
        self._all.discard(backend)
        if backend in self._ready:
            self._ready.remove(backend)
        if self._waiting:
            self._grow()

    # ------------------------------------------------------------------ the owner of idle backends

    def server_data(self, backend: Backend, data: bytes) -> None:
        """An idle backend spoke: a changed setting or a notice is fine, anything else ends it."""
        if idle_message_is_harmless(data) and backend.state is not None:
            backend.state.reported = {**backend.state.reported, **reported_settings([data])}
        else:
            if backend in self._ready:
                self._ready.remove(backend)
            self.retire(backend)

    def server_lost(self, backend: Backend, error: Exception | None) -> None:
        """Nothing to do: `_ended` has been called."""

    def server_writable(self, writable: bool) -> None:
        """Nothing is written to an idle backend."""

    # ------------------------------------------------------------------ keeping house, once a second

    def sweep(self, now: float) -> None:
        """Refuses who has waited too long, ends what has idled too long, checks the rest, keeps the minimum."""
        for backend in self._all:
            if backend.state is not None:
                self._counters.parse_cache_evictions += backend.state.prepared.evictions
                backend.state.prepared.evictions = 0
        while self._waiting and now - self._waiting[0][1] > self.settings.queue_timeout and not self._paused:
            session, since = self._waiting.popleft()
            self._counters.pool_waiting -= 1
            self._counters.pool_wait_timeouts += 1
            session.refused(self._refusal(f"none came free in {now - since:.1f} s (queue_timeout)"))
        idle_limit = self.settings.server_idle_timeout or math.inf
        for backend in [*self._ready]:
            # A check does not make it any less idle: both times are kept.
            idle = now - backend.idle_since
            if (
                (idle > idle_limit and self.size > self.settings.pool_min)
                or (idle > _OVERFLOW_IDLE and self.size > self.settings.pool_size)
                or now > backend.expires
            ):
                self._ready.remove(backend)
                self.retire(backend)
            elif now - backend.checked > self.settings.server_check_delay:
                self._ready.remove(backend)
                self._checking.add(backend)
                task = asyncio.get_running_loop().create_task(self._check(backend))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        while self._all and self.size < self.settings.pool_min and not self._paused:
            self._spawn()

    async def _check(self, backend: Backend) -> None:
        """Proves an idle backend: DISCARD ALL, then back to asyncpg for a query of its own, then taken again."""
        idle_since = backend.idle_since
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT):
                if backend.state is None or not await run_alone(backend, "DISCARD ALL"):
                    raise ConnectionError("DISCARD ALL failed")
                backend.state = BackendState(
                    backend.state.reported, self.settings.max_prepared_bytes_backend, backend.pid
                )
                await backend.prove()
                backend.state.prepared.unnamed = UNKNOWN  # asyncpg left one
                self._counters.handed_back += 1
        except (Exception, asyncio.CancelledError) as error:
            if backend in self._checking:
                self._log.event("backend_check_failed", level="warning", pool=repr(self), error=str(error))
            self._all.discard(backend)
            backend.abort()
            return
        finally:
            wanted = backend in self._checking
            self._checking.discard(backend)
        if wanted:
            self.give_back(backend, _now())
            backend.idle_since = idle_since
        else:
            self.retire(backend)

    def close_idle(self) -> int:
        """Ends every idle backend, since somebody wants the database for himself; how many there were."""
        idle, self._ready = [*self._ready, *self._checking], []
        self._checking.clear()
        for backend in idle:
            self.retire(backend)
        return len(idle)

    def pause(self, *, paused: bool) -> None:
        """While paused nobody gets a backend, and who has one gives it up behind its transaction; who waits is neither
        too many nor too late."""
        if paused is self._paused:
            return
        self._paused = paused
        if paused:
            self.close_idle()
        else:
            now = _now()
            self._waiting = deque((session, now) for session, _ in self._waiting)
            self._grow()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for backend in [*self._all]:
            backend.close(polite=True)
        self.opener.close()

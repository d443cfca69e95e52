"""What one worker process knows: settings, pools, sessions and cancel keys. The listeners and the control channel talk
to this object; sessions live in it."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from importlib.metadata import version
from typing import Any, Final, Protocol, TypeVar

from proxy import clients, pool_gauges
from proxy.auth import Authenticator
from proxy.clients import Sessions, state_of
from proxy.console_db import servers
from proxy.console_db.rights import Rights, meant, rights
from proxy.console_db.session import MAX_SESSIONS, ConsoleSession
from proxy.control import KEY_SERIAL_BITS, worker_of_key
from proxy.database_counters import DatabaseCounters
from proxy.login import Credential, Login
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.pausing import Pauses
from proxy.places import Places
from proxy.pool_gauges import pool_name
from proxy.readonly import lifts_read_only
from proxy.relay import RelaySession
from proxy.reuse import ReusingSession
from proxy.session import DedicatedSession, PooledSession, RelayedTalk, new_secret
from proxy.session_base import SHUTDOWN, Session
from proxy.settings import ProxySettings
from proxy.slow_log import slow_statement
from proxy.steering import Steering
from proxy.steering.steerer import SessionSteering, Steerer
from proxy.tls import TlsContexts
from proxy.tracing import Tracer, available
from proxy.upstream import takeover
from proxy.upstream.backend import Backend
from proxy.upstream.cancel import Address, send_cancel
from proxy.upstream.hosts import tls_options
from proxy.upstream.opener import Opener
from proxy.upstream.pool import BackendPool
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.messages import error_response, startup_message
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry

NOT_ALLOWED: Final = error_response(
    "42501",
    "permission denied for the administration database",
    detail="The settings admin_users and stats_users say who may use it.",
)
TOO_MANY_CONSOLES: Final = error_response("53300", "too many clients of the administration database already")
_SWEEP_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 0.1
_OUR_KEY: Final = 0x4000_0000  # set in the process ids we make up; real ones are far below
_MAX_POOLS: Final = 1000  # pools and openers kept at once; the least recently used unused ones go first
# How long a cancel request waits for a query of the proxy's own, and how often it looks.
_OWN_QUERY_SECONDS: Final = 5.0
_OWN_QUERY_LOOK: Final = 0.0005
# Seconds between requests that cancel a statement which the server may not have begun with, and how often it is looked
# whether that is over.
_CANCEL_AGAIN: Final = (0.005, 0.02, 0.1, 0.5)
_CANCEL_LOOK: Final = 0.002
_MAX_CANCELS: Final = 64  # cancel requests under way at once; nobody has logged in to send one


class _Closable(Protocol):
    @property
    def unused(self) -> bool: ...

    def close(self) -> None: ...


_K = TypeVar("_K")
_V = TypeVar("_V", bound=_Closable)


def _drop_unused(kept: OrderedDict[_K, _V], newest: _V) -> None:
    """Closes the least recently used one that is not in use, when there are too many."""
    if len(kept) > _MAX_POOLS:
        for key, old in kept.items():
            if old is not newest and old.unused:
                del kept[key]
                old.close()
                return


def _slow_limit(settings: ProxySettings) -> float:
    """Milliseconds from which a statement is logged; infinite for none."""
    return float(settings.log_slow_ms) if settings.log_slow_ms >= 0 else float("inf")


class WorkerContext:
    """``worker_id`` is unique among live workers, those of a predecessor that is draining included (0 to 255)."""

    def __init__(self, settings: ProxySettings, worker_id: int, counters: Counters, log: Log) -> None:
        takeover.install()
        takeover.self_check()
        self.settings = settings
        self.worker_id = worker_id
        self.counters = counters
        self.databases = DatabaseCounters(counters)
        self.log = log
        self.tls = TlsContexts(settings)
        self.authenticator = Authenticator(
            settings, lambda: self.tls.certificate_hash, log, upstream_tls=self._upstream_tls
        )
        self.steerer = Steerer(settings, counters, log) if settings.planner_socket else None
        self.registry = StatementRegistry()
        self.sessions = Sessions()
        self.places = Places()
        self.consoles: set[ConsoleSession] = set()
        self.pauses = Pauses()
        self.tracer: Tracer | None = None
        self.draining = False
        self.slow_ms = _slow_limit(settings)
        self.cancel_router: Callable[[int, bytes], Awaitable[None]] | None = None
        self.cancel_elsewhere: Callable[[int, bytes], Awaitable[bool]] | None = None
        self.request_close_idle: Callable[[str], Awaitable[None]] | None = None
        self.ask_supervisor: Callable[..., Awaitable[dict[str, Any]]] | None = None
        self._openers: OrderedDict[tuple[str, str, Credential], Opener] = OrderedDict()
        self._pools: OrderedDict[tuple[str, str, Credential, tuple[tuple[str, str], ...]], BackendPool] = OrderedDict()
        self._keys: dict[int, Session | ConsoleSession] = {}
        self._clients: dict[str, int] = {}  # by pool, as the metrics name it
        self._serial = 0
        self._cancels = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._emptied = asyncio.Event()
        self._probing: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Reads users and begins to keep house. Raises on users files and queries that cannot be used."""
        await self.authenticator.start()
        if self.settings.otel_endpoint:
            self.tracer = self._make_tracer()
        self.spawn(self._sweep())
        self._probe()
        if self.steerer is not None:
            self.spawn(self.steerer.client.run())

    def _make_tracer(self) -> Tracer:
        settings = self.settings
        if not available():
            raise ValueError("otel_endpoint needs the OpenTelemetry packages: install pilotwire[otel]")
        literals, share = settings.log_literals, settings.otel_share
        return Tracer(settings.otel_endpoint, share, literals=literals, worker=self.worker_id, log=self.log)

    def _upstream_tls(self) -> dict[str, Any]:
        return tls_options(self.tls, self.settings.dsn.hosts)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            for pool in self._pools.values():
                pool.sweep(now)

    def _probe(self) -> None:
        """Has the time measured that this process spends on a piece of a client's or a server's stream, now and then:
        two clock readings for each piece would cost more than they tell."""
        self.databases.probe()
        self._probing = asyncio.get_running_loop().call_later(_PROBE_SECONDS, self._probe)

    # ------------------------------------------------------------------ sessions

    def start_session(self, login: Login, transport: asyncio.Transport, pending: bytes) -> None:
        """Takes an authenticated client over; AuthenticationOk has been sent."""
        session: DedicatedSession | PooledSession  # a ReusingSession is a DedicatedSession
        if self.draining:
            transport.write(SHUTDOWN)
            transport.close()
            return
        if meant(self.settings, login.database, login.replication):
            self._start_console(login, transport, pending)
            return
        if login.replication is None and self.settings.pool_mode == "transaction":
            session = PooledSession(self, login, transport, self._pool(login), pending)
        elif login.replication is None and self.settings.session_reuse:
            session = ReusingSession(self, login, transport, self._pool(login), pending)
        else:
            session = DedicatedSession(self, login, transport, pending)
        self._count_in(session)
        if self.settings.log_connections:
            self.log.event(
                "login", id=login.id, user=login.user, database=login.database, peer=login.peer, tls=login.tls
            )
        session.start()

    def start_relay(self, login: Login, transport: asyncio.Transport, raw_startup: bytes, pending: bytes) -> None:
        """A client that will log in with the server itself."""
        session = RelaySession(self, login, transport, raw_startup, pending)
        self._count_in(session)
        session.start()

    def _start_console(self, login: Login, transport: asyncio.Transport, pending: bytes) -> None:
        """The administration database; it is neither counted nor waited for."""
        allowed = rights(self.settings, login)
        refused = NOT_ALLOWED if allowed is Rights.NONE else TOO_MANY_CONSOLES
        if allowed is Rights.NONE or len(self.consoles) >= MAX_SESSIONS:
            self.log.event("admin_refused", level="warning", id=login.id, user=login.user, peer=login.peer)
            transport.write(refused)
            transport.close()
            return
        console = ConsoleSession(self, login, transport, pending, version("pilotwire"))
        self.consoles.add(console)
        self._keys[console.key[0]] = console
        self.log.event("admin_login", id=login.id, user=login.user, peer=login.peer, rights=allowed.name.lower())
        console.start()

    def console_ended(self, console: ConsoleSession) -> None:
        self.consoles.discard(console)
        self._keys.pop(console.key[0], None)

    def _count_in(self, session: Session | RelaySession) -> None:
        self.sessions.add(session)
        self.counters.clients_total += 1
        self.counters.clients_current += 1
        pool = pool_name(session.login.user, session.login.database)
        self._clients[pool] = self._clients.get(pool, 0) + 1

    def conversation(self, login: Login) -> Conversation:
        if login.replication is not None:
            return RelayedTalk(Steering())
        talk = SteeredConversation(self._steering(login))
        if login.read_only:
            talk.guard = lifts_read_only
        return talk

    def _steering(self, login: Login) -> Steering:
        if self.steerer is None:
            return Steering()
        return SessionSteering(self.steerer, login.database, login.user, login.settings, login.id)

    def pooled_conversation(self, login: Login, pool: BackendPool) -> PooledConversation:
        settings = {}
        if "application_name" in login.settings:
            settings[b"application_name"] = login.settings["application_name"].encode("utf-8", "surrogateescape")
        talk = PooledConversation(
            self._steering(login), self.registry, pool.reported, settings, self.settings.max_prepared_bytes
        )
        if login.read_only:
            talk.guard = lifts_read_only
        return talk

    async def open_dedicated(self, login: Login) -> Backend:
        """A backend with this client's own start-up. Raises `UpstreamError`."""
        if self.pauses.holds(login.database):
            await self.pauses.over(login.database)
        opener = self._opener(login.user, login.database, login.credential, None)
        settings = self.startup_settings(login)
        if login.replication is not None:
            parameters = {"user": login.user, "database": login.database, "replication": login.replication, **settings}
            backend = await opener.open_direct(startup_message(parameters))
        else:
            backend = await opener.open(settings)
        self.counters.backend_opened(backend.how)
        return backend

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def startup_settings(self, login: Login) -> dict[str, str]:
        settings = dict(login.settings)
        if login.read_only:
            # Last, since the server applies start-up settings in their order.
            settings.pop("default_transaction_read_only", None)
            settings["default_transaction_read_only"] = "on"
        return settings

    def backend_ended(self, backend: Backend) -> None:
        self.counters.backend_closed()

    def ended(self, session: Session | RelaySession, error: Exception | None) -> None:
        """A client's connection is gone."""
        self.sessions.discard(session)
        if session.key[0]:
            self._keys.pop(session.key[0], None)
        self.counters.clients_current -= 1
        self.places.put_sessions(len(self.sessions))
        pool = pool_name(session.login.user, session.login.database)
        self._clients[pool] -= 1
        if not self._clients[pool]:
            del self._clients[pool]
        if self.settings.log_connections:
            login = session.login
            self.log.event(
                "disconnect",
                id=login.id,
                user=login.user,
                database=login.database,
                peer=login.peer,
                error=str(error) if error else None,
            )
        if not self.sessions:
            self._emptied.set()

    def log_slow(self, session: Session, seconds: float) -> None:
        """One line for a batch that took longer than log_slow_ms, before steering has forgotten what it decided."""
        self.log.event("slow_statement", level="warning", **slow_statement(session, seconds))

    # ------------------------------------------------------------------ pools

    def _opener(self, user: str, database: str, credential: Credential, size: int | None) -> Opener:
        key = (user, database, credential)
        opener = self._openers.get(key)
        if opener is None:
            opener = self._openers[key] = Opener(self.settings, self.tls, user, database, credential, size)
            _drop_unused(self._openers, opener)
        else:
            self._openers.move_to_end(key)
        return opener

    def _pool(self, login: Login) -> BackendPool:
        startup = self.startup_settings(login)
        if self.settings.pool_mode == "transaction":
            # The application's name differs from client to client; it is set on the backend, not at its start-up.
            startup.pop("application_name", None)
        key = (login.user, login.database, login.credential, tuple(startup.items()))
        pool = self._pools.get(key)
        if pool is None:
            limit = self.settings.pool_size + self.settings.pool_overflow
            opener = Opener(self.settings, self.tls, login.user, login.database, login.credential, limit)
            counters = self.databases.of(login.database)
            pool = self._pools[key] = BackendPool(self.settings, counters, self.log, opener, startup)
            pool.pause(paused=self.pauses.holds(login.database))
            _drop_unused(self._pools, pool)
        else:
            self._pools.move_to_end(key)
        return pool

    def pools(self) -> list[dict[str, Any]]:
        """The pools of this worker, for a person; see `proxy.clients.pools`."""
        return clients.pools(self.sessions, [*self._pools.values()], self.settings.pool_mode)

    def snapshot(self) -> dict[str, float]:
        """All that is counted here, as it is now."""
        self.counters.log_lines_dropped = self.log.dropped
        pool_gauges.fill(self.counters, self._clients, self._pools.values())
        if self.tracer is not None:
            self.counters.trace_spans.update(
                exported=self.tracer.exported, dropped=self.tracer.dropped, failed=self.tracer.failed
            )
        return self.databases.snapshot()

    def servers(self) -> list[dict[str, Any]]:
        """The server connections of this worker; see `proxy.console_db.servers`."""
        return servers.listed(self.sessions, [*self._pools.values()])

    def pause(self, databases: Sequence[str], *, everything: bool) -> None:
        """Has new transactions of these databases wait, and those of all others go on."""
        self.pauses.put(databases, everything=everything)
        self.counters.paused = int(everything or bool(databases))
        for pool in self._pools.values():
            pool.pause(paused=self.pauses.holds(pool.opener.database))

    def busy(self, database: str) -> int:
        """Transactions that run on a database ("": on any) in pools that hand their backends on."""
        return sum(
            isinstance(session, PooledSession)
            and session.backend is not None
            and (not database or session.login.database == database)
            and state_of(session) != "idle"
            for session in self.sessions
        )

    async def clear_database(self, database: str) -> None:
        """Closes idle backends of a database in every worker."""
        await self.close_idle_backends(database)
        if self.request_close_idle is not None:
            await self.request_close_idle(database)

    async def close_idle_backends(self, database: str) -> None:
        """Closes idle backends of a database in this worker."""
        for pool in self._pools.values():
            if pool.opener.database == database:
                pool.close_idle()

    # ------------------------------------------------------------------ cancelling

    def new_key(self, *, long: bool) -> tuple[int, bytes]:
        """A cancel key of ours: the process id names this worker, the secret is random."""
        while True:
            self._serial = (self._serial + 1) % (1 << KEY_SERIAL_BITS)
            pid = _OUR_KEY | self.worker_id << KEY_SERIAL_BITS | self._serial
            if pid not in self._keys:
                return pid, new_secret(long=long)

    def register(self, session: Session) -> None:
        self._keys[session.key[0]] = session

    async def cancel(self, pid: int, secret: bytes, answered: int | None = None) -> None:
        """Brings a cancel request to the query it is meant for; returns when that is done or it was dropped.
        ``answered``: it is meant for what comes behind so many answers, and for nothing else."""
        if self._cancels >= _MAX_CANCELS:
            self.counters.cancels_dropped += 1
            return
        self._cancels += 1
        try:
            await self._cancel(pid, secret, answered)
        except (OSError, TimeoutError) as error:
            meant_for = self._keys.get(pid)
            name = meant_for.login.id if meant_for is not None else None
            self.log.event("cancel_failed", level="warning", id=name, error=str(error) or type(error).__name__)
        finally:
            self._cancels -= 1

    async def cancel_here(self, pid: int, secret: bytes, answered: int | None = None) -> bool:
        """Cancels what a session of this worker runs; False when the key is none of theirs."""
        session = self._keys.get(pid)
        if session is None or not hmac.compare_digest(session.key[1], secret):
            return False
        if isinstance(session, ConsoleSession):
            session.cancel()
            return True
        talk = session.talk
        answered = talk.ready_count if answered is None else answered
        if talk.ready_count == answered:
            talk.cancelled()
            await self._own_query_over(session)
        if talk.ready_count != answered:
            self.counters.cancels_dropped += 1
            return True
        held = session.without_advice()  # the statement that waits is the one that is meant
        backend = session.backend
        if backend is None and isinstance(session, PooledSession) and session.waiting:
            session.cancel_due = True  # it has sent its statement; `granted` comes back to this
            return True
        if backend is None or not talk.cancellable:
            self.counters.cancels_dropped += 1
            return True
        backend.cancelling += 1
        # The request may come to the server before a statement that waited here or was sent just now, and hit nothing:
        # a client that sent its statement long ago must not find that out.
        again = held or session.just_sent
        try:
            await self._send_cancel(backend.address, backend.pid, backend.secret)
            for pause in _CANCEL_AGAIN if again else ():
                if await self._cancelled_within(pause, session, backend, answered):
                    break
                session.stop_reading()  # what the client sends next must not be hit
                try:
                    await self._send_cancel(backend.address, backend.pid, backend.secret)
                finally:
                    session.go_on_reading()
        finally:
            self.cancel_over(backend)
        return True

    async def _cancelled_within(self, seconds: float, session: Session, backend: Backend, answered: int) -> bool:
        """Whether what is to be cancelled ends in so many seconds; returns as soon as it does."""
        until = time.monotonic() + seconds
        talk = session.talk
        while session.backend is backend and talk.ready_count == answered and talk.cancellable:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_CANCEL_LOOK)
        return True

    async def _cancel(self, pid: int, secret: bytes, answered: int | None) -> None:
        if await self.cancel_here(pid, secret, answered):
            return
        if pid & _OUR_KEY:
            if worker_of_key(pid) != self.worker_id and self.cancel_router is not None:
                await self.cancel_router(pid, secret)
            else:
                self.counters.cancels_dropped += 1
        else:
            # A real key of a session elsewhere: in another worker, which must know whose cancel it is where it may have
            # one of its own under way, or in another instance behind a load balancer.
            elsewhere = self.cancel_elsewhere if self.steerer is not None else None
            if elsewhere is not None and await elsewhere(pid, secret):
                return
            await self._cancel_at_every_host(pid, secret)

    async def _cancel_at_every_host(self, pid: int, secret: bytes) -> None:
        """All at once, so that one that is gone keeps none of the others waiting. OSError when none could be told."""
        hosts = self.settings.dsn.hosts
        addresses: list[Address] = [host.socket_path if host.is_unix else (host.host, host.port) for host in hosts]
        sent = await asyncio.gather(
            *(self._send_cancel(address, pid, secret) for address in addresses), return_exceptions=True
        )
        failures = [it for it in sent if isinstance(it, BaseException)]
        if len(failures) == len(sent):
            raise failures[0]

    async def _own_query_over(self, session: Session) -> None:
        """Waits while a query of the proxy's own runs in front of the client's, which is the one to be cancelled. (What
        is ours in an extended batch is answered with the client's: the server says nothing before the batch's end.)"""
        until = time.monotonic() + _OWN_QUERY_SECONDS
        while session.backend is not None and session.talk.owed.at_our_query:
            if time.monotonic() > until:
                return
            await asyncio.sleep(_OWN_QUERY_LOOK)

    async def _send_cancel(self, address: Address, pid: int, secret: bytes) -> None:
        mode = self.tls.server_mode
        tls = None if mode in ("disable", "allow") else self.tls.server_side
        self.counters.cancels_forwarded += 1
        await send_cancel(address, pid, secret, tls, require_tls=mode not in ("disable", "allow", "prefer"))

    async def stop(self, backend: Backend) -> bool:
        """Cancels what runs on a backend, for the proxy itself; whether the server has got the request. When this
        returns true the request can hit nothing any more that is sent later: the server closes the connection that
        brought it behind the signal, and a backend drops a signal that finds it idle."""
        try:
            await self._send_cancel(backend.address, backend.pid, backend.secret)
        except (OSError, TimeoutError) as error:
            self.counters.steering_stops_failed += 1
            name = backend.owner.login.id if isinstance(backend.owner, Session) else None
            self.log.event("stop_failed", level="warning", id=name, error=str(error) or type(error).__name__)
            return False
        return True

    def cancel_over(self, backend: Backend) -> None:
        """One thing less that kept a backend from changing hands."""
        backend.cancelling -= 1
        owner = backend.owner
        if not backend.cancelling and isinstance(owner, PooledSession):
            owner.after_cancel(backend)

    # ------------------------------------------------------------------ ending and changing

    async def drain(self) -> None:
        """Serves the connected until they leave; after drain_timeout ends each at its next transaction boundary.
        Returns when no session is left."""
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self._wait_empty()
        except TimeoutError:
            self.terminate_idle()
            await self._wait_empty()
        for console in [*self.consoles]:
            console.finish(SHUTDOWN)

    async def _wait_empty(self) -> None:
        while self.sessions:
            self._emptied.clear()
            await self._emptied.wait()

    def terminate_idle(self) -> None:
        """Ends each session as soon as it is outside a transaction, with 57P01."""
        self.pause((), everything=False)  # nobody could resume it any more
        for session in [*self.sessions]:
            session.end_when_idle()

    def abort(self) -> None:
        """Ends everything at once."""
        for session in [*self.sessions]:
            session.abort()
        for console in [*self.consoles]:
            console.abort()
        self.close()

    def close(self) -> None:
        for console in [*self.consoles]:
            console.finish(SHUTDOWN)
        for task in self._tasks:
            task.cancel()
        if self._probing is not None:
            self._probing.cancel()
        for pool in self._pools.values():
            pool.close()
        for opener in self._openers.values():
            opener.close()

    def set_mode(self, mode: str) -> None:
        """Steers in this mode from now on; statements that wait for advice go on without it where it says so."""
        self.settings = self.settings.model_copy(update={"mode": mode})
        if self.steerer is not None:
            self.steerer.configure(self.settings)

    async def reload(self, settings: ProxySettings) -> None:
        """Puts new settings in place; connections that exist keep what they were opened with. ValueError, before
        anything has changed, for users that cannot be read."""
        await self.authenticator.reload(settings)
        self.settings = settings
        self.slow_ms = _slow_limit(settings)
        if self.tracer is not None:
            self.tracer.share, self.tracer.literals = settings.otel_share, settings.log_literals
        for session in self.sessions:
            if isinstance(session, Session):
                session.slow_ms = self.slow_ms
        if self.steerer is not None:
            self.steerer.configure(settings)
        for complaint in self.tls.reload(settings):
            self.log.event("tls_kept", level="error", detail=complaint)
        for pool in self._pools.values():
            pool.reload(settings)
        self._openers.clear()

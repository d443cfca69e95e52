"""The planner process as its supervisor sees it: started, watched, started again, told to reload.

It is never waited for: while it is away, stopped or starting, statements go on as clients sent them. One that is not
heard of for ``SILENT_SECONDS`` (stopped, or stuck so that not even its report gets out) is killed and replaced. Its
socket lies in a folder of mode 0700 made for this instance, under a path that stays the same over restarts. Secrets
reach it over the inherited control channel only.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from pilotwire.children import end_process, environment
from pilotwire.workers import how_ended, resident_bytes
from planner.blackbox import BlackBox
from planner.control import (
    Control,
    Event,
    Keeping,
    Limits,
    ModelState,
    Poll,
    Reader,
    Ready,
    Refuse,
    Reload,
    Reloaded,
    Report,
    Start,
    Upstream,
)
from planner.messages import encode
from proxy.admin.source import ModelStatus, PlannerStatus, PlannerUnavailableError
from proxy.logs import Level, Log
from proxy.metrics import MergedCounters
from proxy.settings import ProxySettings

START_SECONDS: Final = 60.0
SILENT_SECONDS: Final = 5.0
"""It reports every second; one that has not for this long is replaced."""
RELOAD_SECONDS: Final = 60.0
EARLY_DEATH_SECONDS: Final = 5.0
MIN_PAUSE_SECONDS: Final = 0.2
MAX_PAUSE_SECONDS: Final = 5.0
_LEVELS: Final[dict[str, Level]] = {"debug": "debug", "warning": "warning", "error": "error"}


class PlannerProcess:
    """One place for a planner process, whichever incarnation fills it. Counters go into ``merged``."""

    def __init__(self, settings: ProxySettings, log: Log, merged: MergedCounters) -> None:
        self._settings = settings
        self._log = log
        self._merged = merged
        self._folder = Path(tempfile.mkdtemp(prefix="pilotwire-"))
        self._blackbox = BlackBox()
        self._keeper: asyncio.Task[None] | None = None
        self._wanted = False
        self._process: asyncio.subprocess.Process | None = None
        self._link: _Link | None = None
        self._generation = 0
        self._restarts = 0
        self._reload_number = 0
        self._reloads: dict[int, asyncio.Future[Reloaded]] = {}
        self._report: Report | None = None
        self._reported = asyncio.Event()
        self._ready = False

    @property
    def socket(self) -> str:
        """Where it listens for wire workers, now or once it runs."""
        return str(self._folder / "planner.sock")

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def apply(self, settings: ProxySettings) -> None:
        """Takes these settings, and starts or ends the process as their mode asks; returns at once. A process that
        runs learns of them at the next `reload`; one that logged in otherwise, or elsewhere, is replaced."""
        stale = upstream(settings) != upstream(self._settings)
        self._settings = settings
        wanted = settings.mode != "off"
        if self._wanted and (stale or not wanted) and self._keeper is not None:
            self._keeper.cancel()
            self._ready = False
        if wanted and (stale or not self._wanted):
            self._keeper = asyncio.create_task(self._keep(self._keeper))
        self._wanted = wanted

    async def stop(self) -> None:
        """Ends it and removes the socket's folder."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self.abandon()

    def abandon(self) -> None:
        """Without waiting: kills what still runs and removes the folder. May be called twice."""
        self._kill()
        if self._link is not None:
            self._link.close()
        self._blackbox.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- keeping it alive ----------------------------------------------------------------------------------------

    async def _keep(self, before: asyncio.Task[None] | None) -> None:
        """Until cancelled; begins when ``before``, which was cancelled, has ended its process."""
        if before is not None:
            try:
                await asyncio.wait([before])
            except asyncio.CancelledError:
                await asyncio.wait([before])  # whoever waits for this one waits for that one's process, too
                raise
        pause = 0.0
        while True:
            began = time.monotonic()
            self._generation += 1
            source = f"planner#{self._generation}"
            try:
                how = await self._live_once(source)
            finally:
                self._ready = False
                self._report = None
                self._merged.retire(source)
            early = time.monotonic() - began < EARLY_DEATH_SECONDS
            pause = min(max(pause * 2, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS) if early else MIN_PAUSE_SECONDS
            condemned = self._blackbox.inquest()
            if condemned:
                self._log.event("statements_quarantined", level="error", statements=len(condemned))
            self._log.event("planner_died", level="error", how=how, restart_in_seconds=pause)
            await asyncio.sleep(pause)
            self._restarts += 1
            self._merged.update("planner", {"planner_restarts": self._restarts})

    async def _live_once(self, source: str) -> str:
        """One incarnation from its start to its end; says how it ended."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "planner.service",
                "--control",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment(),
                pass_fds=[theirs.fileno(), self._blackbox.fd],
                process_group=0,
            )
        except OSError as error:
            ours.close()
            return f"cannot be started: {error.strerror}"
        except asyncio.CancelledError:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: _Link(lambda message: self._on_message(source, message)), sock=ours
            )
            return await self._followed(self._process, link)
        except asyncio.CancelledError:
            await end_process(self._process)
            raise

    async def _followed(self, process: asyncio.subprocess.Process, link: _Link) -> str:
        """From its first message to its end; says how it ended."""
        self._link = link
        link.send(start_message(self._settings, self.socket, self._blackbox))
        watch = asyncio.create_task(self._watch(link))
        try:
            status = await process.wait()
            with contextlib.suppress(TimeoutError):
                # Its last words may still be in the socket.
                await asyncio.wait_for(link.gone.wait(), 1.0)
        except asyncio.CancelledError:
            # While it has its link: without one it takes the supervisor for dead, and removes the socket's folder.
            await end_process(process)
            raise
        finally:
            watch.cancel()
            link.close()
            for reload in self._reloads.values():
                if not reload.done():
                    reload.set_exception(PlannerUnavailableError("the planner process ended"))
        return how_ended(status)

    async def _watch(self, link: _Link) -> None:
        """Kills an incarnation that does not get ready, or is not heard of any more."""
        while True:
            await asyncio.sleep(SILENT_SECONDS / 5)
            if time.monotonic() - link.heard > (SILENT_SECONDS if self._ready else START_SECONDS):
                self._log.event("planner_silent", level="error", seconds=round(time.monotonic() - link.heard, 1))
                self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _on_message(self, source: str, message: Control) -> None:
        match message:
            case Report():
                self._report = message
                self._reported.set()
                self._merged.update(source, message.counters)
            case Reloaded(number=number):
                reload = self._reloads.get(number)
                if reload is not None and not reload.done():
                    reload.set_result(message)
            case Ready():
                self._ready = True
                self._log.event("planner_ready", pid=self.pid, restarts=self._restarts)
            case Refuse(reason=reason):
                self._log.event("planner_refused", level="error", detail=reason)
            case Event(name=name, level=level, fields=fields):
                self._log.event(name, level=_LEVELS.get(level, "info"), **fields)

    # --- what the supervisor asks --------------------------------------------------------------------------------

    async def reload(self) -> tuple[ModelStatus, ...]:
        """Has it read the models again and take the present settings; the state of the models' folder afterwards.
        Raises PlannerUnavailableError when it does not answer."""
        if not self._ready or self._link is None:
            raise PlannerUnavailableError("the planner process is not running")
        self._reload_number += 1
        number = self._reload_number
        answer: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._reloads[number] = answer
        try:
            self._link.send(Reload(number, limits(self._settings)))
            async with asyncio.timeout(RELOAD_SECONDS):
                return _models((await answer).models)
        except TimeoutError:
            raise PlannerUnavailableError(f"no answer from the planner process in {RELOAD_SECONDS:g} s") from None
        finally:
            del self._reloads[number]

    async def refresh(self, limit: float) -> None:
        """Waits for a fresh report, at most ``limit`` seconds."""
        if not self._ready or self._link is None:
            return
        self._reported.clear()
        self._link.send(Poll())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reported.wait(), limit)

    def status(self) -> PlannerStatus:
        """As last reported."""
        report = self._report or Report({})
        return PlannerStatus(
            ready=self._ready,
            memory=resident_bytes(self.pid) if self.pid else 0,
            databases=report.databases,
            catalog_age_s=report.catalog_age_s,
            queue=report.queue,
            models=_models(report.models),
            store=report.store if self._ready else "",
            breakers_open=report.breakers_open if self._ready else 0,
        )


class _Link(asyncio.Protocol):
    """The supervisor's end of one incarnation's control channel."""

    def __init__(self, on_message: Callable[[Control], None]) -> None:
        self.heard = time.monotonic()
        self.gone = asyncio.Event()
        self._on_message = on_message
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        try:
            for message in self._reader.feed(data):
                self._on_message(message)
        except ValueError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()

    def send(self, message: Control) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def start_message(settings: ProxySettings, path: str, blackbox: BlackBox) -> Start:
    """What a planner process needs to know."""
    keeping = Keeping(settings.store_url or "", settings.store_literals, settings.store_retention)
    return Start(path, upstream(settings), settings.models, limits(settings), blackbox.fd, blackbox.quarantine, keeping)


def upstream(settings: ProxySettings) -> Upstream:
    """How the planner logs in: as the DSN's user, as the settings say."""
    tls: dict[str, str] = {"sslmode": settings.server_tls_mode}
    if settings.server_tls_ca:
        tls["sslrootcert"] = settings.server_tls_ca
    if settings.server_tls_cert:
        tls |= {"sslcert": settings.server_tls_cert, "sslkey": settings.server_tls_key}
    user = settings.dsn.user or getpass.getuser()
    return Upstream(
        hosts=tuple((host.host, host.port) for host in settings.dsn.hosts),
        user=user,
        password=settings.password or "",
        database=settings.dsn.database or user,
        tls=tls,
        connect_timeout=settings.connect_timeout,
    )


def limits(settings: ProxySettings) -> Limits:
    """The part of the settings that the planner process may be told anew."""
    return Limits(
        memory_bytes=settings.planner_memory,
        databases=settings.planner_databases,
        catalog_refresh_s=settings.catalog_refresh,
        sample_rows=settings.sample_rows,
        min_ms=settings.steer_min_ms,
        model_batch_ms=settings.model_batch_ms,
        model_predict_ms=settings.model_predict_ms,
        users_off=tuple(settings.steer_off_users),
        databases_off=tuple(settings.steer_off_databases),
        applications_off=tuple(settings.steer_off_applications),
        fingerprints_off=tuple(settings.steer_off_fingerprints),
        mode_rules=tuple(settings.steer_modes),
        evidence=settings.evidence,
        min_calls=settings.steer_min_calls,
        min_gain=settings.min_gain,
        min_gain_ms=settings.min_gain_ms,
        template_gain=settings.template_gain,
        control_share=settings.control_share,
        canary_share=settings.canary_share,
        regret_budget=settings.regret_budget,
        trial_share=settings.trial_share,
        evidence_age_s=settings.evidence_max_age,
        audits_per_hour=settings.accuracy_samples,
        audit_limit_ms=settings.accuracy_limit * 1000,
        audit_most_active=settings.explore_most_active,
        min_total_ms=settings.steer_min_total_ms,
    )


def _models(states: tuple[ModelState, ...]) -> tuple[ModelStatus, ...]:
    return tuple(
        ModelStatus(state.file, state.kind, state.name, state.version, state.state, state.detail) for state in states
    )

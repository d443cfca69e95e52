"""The supervisor: owns the listening sockets and keeps the worker processes running.

It carries no client byte. What it does: checks at the start that the upstream is there; binds, inherits or receives
the sockets; starts the workers and starts a dead one again; merges their counters; passes cancel requests and "close
idle backends" between them; rereads the settings on SIGHUP; drains on SIGTERM or when a successor took over; serves the
admin pages.

SIGTERM and SIGINT: stop accepting, serve the connected until they leave (after ``drain_timeout`` the workers end them
outside a transaction), end. A second one ends at once. The state only moves forward: starting, serving, draining,
ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pilotwire.admin_view import AdminView
from pilotwire.crew import Crew
from pilotwire.errors import StartError
from pilotwire.explorer_process import ExplorerProcess
from pilotwire.handover import ControlSocket, Inherited, Neighbour, Role, admin_token, ask_for_sockets, open_sockets
from pilotwire.listening import Listening
from pilotwire.mode_switch import ModeSwitch
from pilotwire.nursery import Nursery
from pilotwire.pausing import PauseSwitch
from pilotwire.planner_process import PlannerProcess
from pilotwire.routing import ROUTE_SECONDS, Routing
from pilotwire.systemd import keep_watchdog, notify_systemd
from pilotwire.upstream_check import Reachability, check_upstream
from pilotwire.workers import WorkerProcess, cancel_in_one, resident_bytes
from proxy.admin.front import Front
from proxy.admin.server import AdminServer
from proxy.admin.source import ModelStatus, PlannerUnavailableError, Reloaded, Status
from proxy.auth.authenticator import known_users
from proxy.console_db.rights import say_who
from proxy.control import ControlLostError, Message
from proxy.logs import Log
from proxy.metrics import MergedCounters
from proxy.settings import ProxySettings, apply_reload, changes_on_reload

SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})
"""What the supervisor is told by. Its children ignore them."""
MAX_WORKER_ID: Final = 255
SCRAPE_SECONDS: Final = 0.5
"""How long a scrape waits for the workers' fresh counters."""
PUSH_SECONDS: Final = 1.0
"""How often a draining process sends its counters to its successor."""
COUNTED_SECONDS: Final = 2.0
"""How long its successor waits for the first of them before it answers scrapes."""


def serve(settings: ProxySettings, reread: Callable[[], ProxySettings], takeover: bool) -> int:
    """Runs the proxy until it is told to stop; returns the exit code.

    ``reread`` gives the settings anew on SIGHUP and raises ValueError (or a subclass) when they are wrong. With
    ``takeover`` the sockets come from the instance that listens on ``control_socket``, if there is one. Raises
    StartError when it cannot start.
    """
    # Who stops it from here on is heard when there is a loop to hear it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    nursery = Nursery.open(SIGNALS)  # before there is a thread or a loop
    log = Log("supervisor", settings.log_format, settings.log_level)
    say_who(settings, log)
    try:
        return asyncio.run(Supervisor(settings, reread, takeover, log, nursery).run())
    finally:
        log.close()
        if nursery is not None:
            nursery.close()


class Supervisor:
    """One instance, from its start to its end. Made and run inside ``serve``."""

    def __init__(
        self,
        settings: ProxySettings,
        reread: Callable[[], ProxySettings],
        takeover: bool,
        log: Log,
        nursery: Nursery | None,
    ) -> None:
        self._settings = settings
        self._reread = reread
        self._takeover = takeover
        self._log = log
        self._merged = MergedCounters()
        self._crew = Crew(self, nursery, self._merged, log, self._for_workers, self._on_started)
        self._workers = self._crew.workers
        self._routing = Routing(self._workers)
        self._background: set[asyncio.Task[None]] = set()
        self._listening: list[Listening] = []
        self._admin_listening: Listening | None = None
        self._admin: AdminServer | None = None
        self._control: ControlSocket | None = None
        self._planner: PlannerProcess | None = None
        self._explorer = ExplorerProcess(log)
        self._predecessor: Neighbour | None = None
        self._successor: Neighbour | None = None
        self._counted = asyncio.Event()  # once the predecessor's counters are among ours
        self._reachable = Reachability()
        self._serving = False
        self._draining = asyncio.Event()
        self._ended = asyncio.Event()
        self._borrowed = False
        self._released = False
        self._stop_signals = 0
        self._reloading = asyncio.Lock()
        self._start_time = time.time()
        self._modes = ModeSwitch(self._workers.values, log, lambda: (self._predecessor, self._successor))
        self.pauses = PauseSwitch(self._workers.values, lambda: (self._predecessor, self._successor), log)
        self._view = AdminView(self)

    # --- from the start to the end -------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serves until drained; 0 when it ended as told. StartError when it could not start."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, signal.Signals(number).name, task)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR2, self._on_kill_switch)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            await self._start()
            await self._ended.wait()
        except asyncio.CancelledError:
            # A stop signal during the start.
            return 0
        finally:
            await self._close()
            # The loop restores the default handlers when it closes; a late second SIGTERM must not turn a drain in
            # order into a death by signal. The process is about to end.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        return 0

    async def _start(self) -> None:
        settings = self._settings
        await check_upstream(settings)
        inherited = self._take_over() if self._takeover else None
        self._borrowed = inherited is not None
        if inherited is not None:
            # Before there are workers: none of them may steer, or serve a paused database, for a moment.
            self._modes.take(settings, inherited.state)
            await self.pauses.take(inherited.state)
        self._listening, self._admin_listening = open_sockets(settings, inherited, self._log)
        taken = inherited.worker_ids if inherited is not None else set()
        slots = [slot for slot in range(MAX_WORKER_ID + 1) if slot not in taken][: settings.workers]
        if len(slots) < settings.workers:
            raise StartError("too many instances are draining at once: wait until some have ended")
        if (settings.models or settings.evidence != "none") and not settings.planner_socket:
            self._planner = PlannerProcess(settings, self._log, self._merged)
            self._planner.apply(settings)
        self._explorer.apply(settings)
        await self._crew.start(slots, self._listening)
        if inherited is not None:
            await self._join(inherited)
        if settings.control_socket:
            self._control = ControlSocket(
                settings.control_socket, self._offer, self._on_successor, self._on_refused, self._switched
            )
            self._control.open(replace=inherited is not None)
        self._crew.keep()
        self._serving = True
        self._borrowed = False
        if inherited is not None:
            await self._release_predecessor()
        await self._start_admin()
        self._log.event(
            "serving",
            listen=",".join(entry.address for entry in self._listening),
            admin=self._admin_listening.address if self._admin_listening is not None else None,
            upstream=settings.dsn.text(),
            auth=settings.auth_method,
            pool_mode=settings.pool_mode,
            workers=settings.workers,
            pid=os.getpid(),
        )
        notify_systemd(f"READY=1\nMAINPID={os.getpid()}")
        self._spawn(keep_watchdog())

    def _take_over(self) -> Inherited | None:
        if not self._settings.control_socket:
            raise StartError("--takeover needs control_socket, the path that the running instance was started with")
        inherited = ask_for_sockets(self._settings.control_socket)
        if inherited is None:
            self._log.event("takeover_nobody", detail="no instance is running: starting afresh")
        return inherited

    def _for_workers(self) -> ProxySettings:
        """The settings as workers get them: they are told where our planner process listens."""
        if self._planner is None:
            return self.settings
        return self.settings.model_copy(update={"planner_socket": self._planner.socket})

    async def _start_admin(self) -> None:
        self._view.start()
        if (listening := self._admin_listening) is not None:
            self._admin = AdminServer(front := Front(self._view, admin_token(self._settings)), listening.sock)
            await self._admin.start()
            self._spawn(front.load_later())

    async def _close(self) -> None:
        """Releases everything; after a drain in order most of it is gone already."""
        for task in self._background:
            task.cancel()
        await self._crew.close()
        if self._planner is not None:
            await self._planner.stop()
        await self._explorer.stop()
        if self._admin is not None:
            await self._admin.stop()
        await self._view.close()
        if self._control is not None:
            self._control.close()
        for entry in (*self._listening, *([self._admin_listening] if self._admin_listening else [])):
            entry.close(keep_file=self._handed_over)
        for neighbour in (self._predecessor, self._successor):
            if neighbour is not None:
                neighbour.close()
        if self._serving:
            self._log.event("ended")

    # --- workers -------------------------------------------------------------------------------------------------

    async def _on_started(self) -> None:
        """Workers came: what was switched meanwhile holds for them too."""
        await self._modes.tell(self._settings)
        await self.pauses.tell()

    async def on_worker_message(self, worker: WorkerProcess, kind: str, message: Message) -> Message | None:
        """What a worker says; see proxy/worker.py for the kinds."""
        match kind:
            case "counters":
                self._merged.update(worker.source, message["counters"])
            case "cancel":
                await self._routing.cancel(
                    int(message["pid"]), str(message["secret"]), (self._predecessor, self._successor)
                )
            case "cancel_elsewhere":
                others = [other for other in self._workers.values() if other is not worker]
                return {"found": await cancel_in_one(others, int(message["pid"]), str(message["secret"]))}
            case "close_idle":
                await self._routing.close_idle(str(message["database"]), (self._predecessor, self._successor))
            case "console":
                return await self._view.console(message)
        return None

    # --- signals -------------------------------------------------------------------------------------------------

    def _on_stop(self, name: str, task: asyncio.Task[Any]) -> None:
        self._stop_signals += 1
        if not self._serving:
            task.cancel()
        elif self._stop_signals == 1:
            self._log.event("stopping", signal=name, drain_timeout=self._settings.drain_timeout)
            notify_systemd("STOPPING=1")
            self._begin_drain()
        elif self._stop_signals == 2:
            self._log.event("stopping_at_once", level="warning", signal=name)
            self._spawn(self._end_at_once())

    async def _end_at_once(self) -> None:
        await self._crew.end_at_once()
        self._ended.set()

    def _on_hangup(self) -> None:
        self._spawn(self.reload())

    async def reload(self) -> Reloaded:
        """Reads the settings again and puts them in place; see ``proxy.admin.source``."""
        async with self._reloading:
            notify_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                wanted = self._reread()
                applied, restart = changes_on_reload(self._settings, wanted)
                settings = apply_reload(self._settings, wanted)
                known_users(settings)  # refused before anything has changed
            except (ValueError, OSError) as error:
                self._log.event("reload_failed", level="error", detail=f"{error}; the settings stay as they were")
                notify_systemd("READY=1")
                return Reloaded(refused=str(error))
            # Also when no setting differs: files named by them (certificates, users) may have changed.
            refused = await self._apply(settings)
            if not refused:
                self._log.event("reloaded", changed=",".join(applied) or "none", workers=len(self._workers))
            if restart:
                self._log.event("reload_needs_restart", level="warning", settings=",".join(restart))
            notify_systemd("READY=1")
            return Reloaded(tuple(applied), tuple(restart), refused)

    async def change(self, name: str, value: Any) -> str:
        """Changes one setting until the next reload; why a worker refused it, or "". Raises ValueError."""
        async with self._reloading:
            wanted = type(self._settings).model_validate({**json.loads(self._settings.to_wire()), name: value})
            known_users(wanted)
            return await self._apply(wanted)

    async def _apply(self, settings: ProxySettings) -> str:
        """Puts settings in place, here, in the workers and in the planner process; why a worker refused them, or ""."""
        self._settings = settings
        self._modes.reread(settings)
        self._log.configure(settings.log_format, settings.log_level)
        refusals = await self._crew.reload(self._for_workers())
        self._explorer.apply(settings)
        if self._planner is not None:
            self._planner.apply(self.settings)
            with contextlib.suppress(PlannerUnavailableError):
                await self._planner.reload()
        return min(refusals, default="")

    def _on_kill_switch(self) -> None:
        self._spawn(self.set_mode(self._modes.other(self._settings), "signal", "SIGUSR2"))

    async def set_mode(self, mode: str, actor: str, why: str) -> None:
        """Switches steering, in every worker at once; see ``pilotwire.mode_switch``. Raises ValueError."""
        before = self._modes.choose(self._settings, mode, actor, why)
        await self._mode_changed()
        await self._modes.tell_neighbours(self._settings)
        self._spawn(self._view.memory.mode_switched(before, mode, actor, why))

    async def _mode_changed(self) -> None:
        await self._modes.tell(self._settings)
        if self._planner is not None:
            self._planner.apply(self.settings)

    async def _take_mode(self, message: Message) -> None:
        if self._modes.take(self._settings, message):
            await self._mode_changed()

    def _switched(self) -> Message:
        return {**self.pauses.to_wire(), **self._modes.to_wire()}

    # --- draining and handing over -------------------------------------------------------------------------------

    @property
    def _handed_over(self) -> bool:
        """Whether another process serves our sockets too, or is about to: their files are then not ours to remove."""
        return self._borrowed or self._released or self._successor is not None

    def _begin_drain(self) -> None:
        if self._draining.is_set():
            return
        self._draining.set()
        self._crew.drain()
        self._spawn(self._explorer.stop())
        for entry in self._listening:
            entry.close(keep_file=self._handed_over)
        self._listening.clear()
        if self._control is not None:
            self._control.close()
        self._spawn(self._finish())

    async def _finish(self) -> None:
        await self._crew.ended()
        if self._successor is not None and self._predecessor is not None:
            # The successor reaches the process before us only through us.
            await self._predecessor.gone.wait()
        if self._successor is not None:
            self._successor.send("totals", counters=self.status().totals, worker_ids=[])
        self._ended.set()

    def _offer(self) -> tuple[Sequence[tuple[Role, Listening]], Sequence[int]]:
        sockets: list[tuple[Role, Listening]] = [("listen", entry) for entry in self._listening]
        if self._admin_listening is not None:
            sockets.append(("admin", self._admin_listening))
        return sockets, self._ids_in_use()

    def _ids_in_use(self) -> list[int]:
        older = self._predecessor.ids if self._predecessor is not None else set()
        return sorted({*self._workers, *older})

    def _on_refused(self, why: str) -> None:
        self._log.event("takeover_refused", level="warning", detail=why)

    def _on_successor(self, link: socket.socket) -> None:
        if self._successor is not None:
            self._on_refused("another process is taking over already")
            link.close()
            return
        self._successor = Neighbour(os.getpid(), set())
        self._spawn(self._successor.open(link, self._from_successor, self._on_successor_lost))

    async def _from_successor(self, kind: str, message: Message) -> Message | None:
        assert self._successor is not None
        match kind:
            case "ready":
                self._successor.pid = int(message["pid"])
                self._successor.ids = set(message["worker_ids"])
                self._log.event("taken_over", by_pid=self._successor.pid, drain_timeout=self._settings.drain_timeout)
                self._released = True
                self._begin_drain()
                self._spawn(self._push_totals(self._successor))
                self._spawn(self._view.retire())
                if self._admin is not None:
                    self._admin.retire()
                return self._switched()
            case "cancel":
                await self._routing.cancel(int(message["pid"]), str(message["secret"]), (self._predecessor,))
            case "close_idle":
                await self._routing.close_idle(str(message["database"]), (self._predecessor,))
            case "pause":
                await self.pauses.take(message)
            case "mode":
                await self._take_mode(message)
        return None

    def _on_successor_lost(self) -> None:
        if not self._draining.is_set():
            self._log.event("takeover_abandoned", level="warning", detail="the new process did not get ready")
        self._successor = None

    async def _push_totals(self, successor: Neighbour) -> None:
        while not successor.gone.is_set():
            totals = (await self.fresh_status()).totals
            successor.send("totals", counters=totals, worker_ids=self._ids_in_use())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(successor.gone.wait(), PUSH_SECONDS)

    async def _join(self, inherited: Inherited) -> None:
        self._predecessor = Neighbour(inherited.pid, inherited.worker_ids)
        await self._predecessor.open(inherited.link, self._from_predecessor, self._on_predecessor_lost)

    async def _release_predecessor(self) -> None:
        assert self._predecessor is not None
        try:
            state = await self._predecessor.ask("ready", ROUTE_SECONDS, pid=os.getpid(), worker_ids=[*self._workers])
            await self.pauses.take(state)
            await self._take_mode(state)
        except ControlLostError as error:
            # We hold its sockets and serve; if it still lives it serves them too, and ends when told.
            self._log.event("takeover_incomplete", level="warning", pid=self._predecessor.pid, detail=str(error))
        else:
            self._log.event("took_over", from_pid=self._predecessor.pid)
            # A scrape that came before its counters did would see them all fall.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._counted.wait(), COUNTED_SECONDS)

    async def _from_predecessor(self, kind: str, message: Message) -> Message | None:
        assert self._predecessor is not None
        match kind:
            case "totals":
                first = self._predecessor.source not in self._merged.live()
                self._merged.update(self._predecessor.source, message["counters"])
                if first:
                    self._view.rebase()
                    self._counted.set()
                self._predecessor.ids = set(message["worker_ids"])
            case "cancel":
                await self._routing.cancel(int(message["pid"]), str(message["secret"]), (self._successor,))
            case "close_idle":
                await self._routing.close_idle(str(message["database"]), (self._successor,))
            case "pause":
                await self.pauses.take(message)
            case "mode":
                await self._take_mode(message)
        return None

    def _on_predecessor_lost(self) -> None:
        assert self._predecessor is not None
        self._merged.retire(self._predecessor.source)
        self._log.event("predecessor_ended", pid=self._predecessor.pid)
        self._predecessor = None
        self._counted.set()

    # --- what the admin pages ask --------------------------------------------------------------------------------

    @property
    def settings(self) -> ProxySettings:
        """Those in force."""
        return self._modes.in_force(self._settings)

    @property
    def workers(self) -> Mapping[int, WorkerProcess]:
        """By slot."""
        return self._workers

    def totals(self) -> Mapping[str, float]:
        """The merged counters, as last heard."""
        return self._merged.totals()

    def status(self) -> Status:
        """See ``proxy.admin.source``."""
        workers = self._workers.values()
        alive = [worker for worker in workers if worker.state != "dead" and worker.pid]
        self._merged.update(
            "supervisor", {"log_lines_dropped": self._log.dropped, "worker_restarts": self._crew.restarts}
        )
        totals = self._merged.totals()
        memory = {f"worker-{worker.slot}": resident_bytes(worker.pid) for worker in alive}
        return Status(
            workers_configured=self._settings.workers,
            workers_alive=len(alive),
            workers_ready=sum(worker.state == "ready" for worker in alive),
            workers_responding=sum(worker.responding for worker in alive),
            worker_restarts=int(totals["worker_restarts"]),
            draining=self._draining.is_set(),
            start_time=self._start_time,
            totals=totals,
            memory={"supervisor": resident_bytes(os.getpid()), **memory},
            planner=self._planner.status() if self._planner is not None else None,
        )

    async def fresh_status(self) -> Status:
        """See ``proxy.admin.source``."""
        asked = [self._refresh(worker) for worker in self._workers.values()]
        if self._planner is not None:
            asked.append(self._planner.refresh(SCRAPE_SECONDS))
        await asyncio.gather(*asked)
        return self.status()

    async def _refresh(self, worker: WorkerProcess) -> None:
        with contextlib.suppress(ControlLostError):
            answer = await worker.ask("counters", SCRAPE_SECONDS)
            # It may have died meanwhile, and then belongs to the base already; one that starts has none to give.
            if worker.state != "dead" and "counters" in answer:
                self._merged.update(worker.source, answer["counters"])

    async def upstream_reachable(self) -> bool:
        """See ``proxy.admin.source``."""
        return await self._reachable(self._settings.dsn.hosts)

    async def reload_models(self) -> tuple[ModelStatus, ...]:
        """See ``proxy.admin.source``."""
        if self._planner is None:
            raise PlannerUnavailableError("steering is off")
        return await self._planner.reload()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._log.event("internal_error", level="error", detail=str(context.get("message", "")), error=repr(error))

"""The planner process: answers wire workers' questions over a Unix socket.

Started by the supervisor as ``python -m planner.service --control FD``; everything it needs comes over that inherited
channel (`planner.control`). It may be killed, stopped or replaced at any moment: workers then let statements pass, and
nothing is lost but what it remembers. It ends by itself when its memory passes a limit or one computation does not come
to an end, so that a fresh process can take its place, and when the supervisor is gone.

The event loop only reads, answers what is known and looks after connections; everything that takes time is done in the
lanes' threads (`planner.lanes`), and the catalogs are read in small steps between (`planner.catalog`).

SIGHUP reads the models again, SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

import uvloop

from model_runtime.limits import Limits as ModelLimits
from model_runtime.store import ModelStore, Outcome
from planner import control
from planner.advise import Models
from planner.auditing import Auditor
from planner.blackbox import Recorder
from planner.catalogs import Catalogs, connector
from planner.control import Control, Event, Limits, ModelState, Poll, Ready, Refuse, Reload, Reloaded, Report, Start
from planner.counters import LOAD_BOUNDS, Counters
from planner.engine import Engine
from planner.lanes import STALE_SECONDS, Job, Lanes
from planner.memory.memory import Memory
from planner.messages import Answer, Ask, Changed, FrameError, Message, Observed, Reader, Refused, encode
from planner.remembering import TURN_SECONDS, Remembering, policy
from planner.snapshot import Snapshot
from planner.verifying import Verifier
from planner.warming import warm
from planner.weighing import Verification

TICK_SECONDS: Final = 1.0
STUCK_SECONDS: Final = 10.0
"""A computation that takes longer has run away; the process ends, and its statement is remembered against it."""
EXIT_MEMORY: Final = 3
EXIT_STUCK: Final = 4
MAX_DATABASES_FAILING: Final = 1000
MAX_WORKERS: Final = 600
"""Connections at one time: those of all workers, before and after a hand-over."""
MAX_UNSENT: Final = 4 << 20
"""Bytes of answers that may wait for a worker that does not read; further ones are dropped."""
MAX_MODELS: Final = 200
"""Files of the models' folder that are reported."""
REVERIFY_SECONDS: Final = 15.0
"""How often the plan of one of the arms in use is looked at again."""
MAX_EVENTS: Final = 20
"""Lines for the log between two ticks."""


class Service:
    """One planner process, from `Start` to its end."""

    def __init__(self, start: Start, send: Any) -> None:
        self._send = send
        self._limits = start.limits
        self._path = Path(start.socket)
        self._database = start.upstream.database
        self._counters = Counters()
        self._loop = asyncio.get_running_loop()
        self._store: ModelStore | None = None
        if start.models:
            bounds = model_limits(start.limits)
            self._store = ModelStore(Path(start.models), bounds, self._on_model_event, self._on_swap)
        memory = None
        if start.limits.evidence != "none":
            memory = Memory(policy(start.limits), durable=bool(start.keeping.url), verify=True)
        self._memory = memory
        self._engine = Engine(
            self._store, start.limits, self._counters, Recorder(start.blackbox), start.quarantine, memory, self._verify
        )
        self._remembering = Remembering(memory, start.keeping, self._counters, self._outdated, self._on_store_failed)
        self._verifier = Verifier(lambda database: connector(start.upstream, database), self._verified)
        self._auditor = Auditor(
            lambda database: connector(start.upstream, database),
            self._engine.accuracy,
            self._counters,
            lambda: self._limits,
        )
        self._catalogs = Catalogs(
            start.upstream, start.limits, self._prepare, self._on_catalog, self._on_catalog_failed
        )
        self._lanes = Lanes()
        self._workers: set[_Worker] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._generation = time.time_ns() // 1_000_000
        self._events = 0
        self._models: tuple[ModelState, ...] = ()
        self._listing: asyncio.Task[Any] | None = None
        self._failing: set[str] = set()
        self._server: asyncio.Server | None = None
        self.ended = asyncio.Event()

    async def start(self) -> None:
        """Loads the models, then listens. Raises OSError when it cannot listen."""
        _limit_memory(self._limits)
        if self._store is not None:
            # Before anybody is served, so that the first statements already meet a model.
            await asyncio.to_thread(self._store.reload)
            await self._list_models()
            self._spawn(self._store.watch())
        self._lanes.start()
        # Others are read when somebody asks about them; this one somebody will.
        self._catalogs.snapshot(self._database)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._server = await self._loop.create_unix_server(lambda: _Worker(self), str(self._path))
        self._path.chmod(0o600)
        self._spawn(self._tick())
        self._spawn(self._remember())
        self._spawn(self._verifier.run())
        self._spawn(self._auditor.run())
        gc.collect()
        gc.freeze()

    async def close(self, *, supervisor_lost: bool = False) -> None:
        """Stops answering and closes everything."""
        if self._server is not None:
            self._server.close()
        for worker in [*self._workers]:
            worker.close()
        for task in self._tasks:
            task.cancel()
        self._lanes.stop()
        await asyncio.to_thread(self._remembering.close)
        await self._catalogs.close()
        if self._store is not None:
            self._store.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
            if supervisor_lost:
                # Nobody else is left to remove the folder that was made for it.
                self._path.parent.rmdir()

    # --- workers -------------------------------------------------------------------------------------------------

    def joined(self, worker: _Worker) -> bool:
        """A worker has connected; False when there are too many."""
        if len(self._workers) >= MAX_WORKERS:
            return False
        self._workers.add(worker)
        worker.send(Changed(self._generation))
        return True

    def left(self, worker: _Worker) -> None:
        self._workers.discard(worker)

    def received(self, worker: _Worker, message: Message) -> None:
        """What a worker says."""
        match message:
            case Ask():
                self._asked(worker, message)
            case Observed():
                self._engine.observed(message)
                self._remembering.sampled(message)
            case Refused():
                self._engine.refused(message)
                self._counters.add("planner_refusals")
                self._event("advice_refused", "warning", sqlstate=message.sqlstate, detail=message.message[:200])
                self._changed()

    def _asked(self, worker: _Worker, ask: Ask) -> None:
        snapshot = self._catalogs.snapshot(ask.database)
        answer = self._engine.at_once(ask, snapshot)
        if answer is not None:
            worker.send(answer)
            return
        assert snapshot is not None
        job = _Question(self, worker, ask, snapshot)
        if not self._lanes.put(Job(job.run, job.done), len(ask.text)):
            self._counters.add("planner_decisions", "queue_full")
            worker.send(Answer(ask.number, reason="queue_full", scope="once"))

    def compute(self, ask: Ask, snapshot: Snapshot, lane: int, came: float) -> Answer:
        """In a lane's thread."""
        if time.monotonic() - came > STALE_SECONDS:
            self._counters.add("planner_stale")
        return self._engine.answer(ask, snapshot, lane)

    def deliver(self, worker: _Worker, answer: Answer) -> None:
        """From a lane's thread to the event loop, which alone may touch a connection."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(worker.send, answer)

    def _changed(self) -> None:
        """No earlier answer holds any more, here and in the workers."""
        self._engine.forget()
        self._generation += 1
        for worker in self._workers:
            worker.send(Changed(self._generation))

    def _outdated(self, keys: set[str] | None) -> None:
        """Answers to these queries do not hold any more, or no answer at all."""
        if keys is None:
            self._changed()
            return
        changed = Changed(self._generation, queries=tuple(map(bytes.fromhex, keys)))
        for worker in self._workers:
            worker.send(changed)

    # --- evidence ------------------------------------------------------------------------------------------------

    async def _remember(self) -> None:
        """Has what was learnt written, and arms in use looked at again."""
        again = time.monotonic() + REVERIFY_SECONDS
        while True:
            self._remembering.turn()
            await asyncio.sleep(TURN_SECONDS)
            if time.monotonic() >= again and self._engine.weighing is not None:
                again = time.monotonic() + REVERIFY_SECONDS
                what = self._engine.weighing.sample()
                if what is not None:
                    self._verifier.put(what)

    def _verify(self, what: Verification) -> None:
        """From a lane's thread or the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._verifier.put, what)

    def _verified(self, what: Verification, outcome: str) -> None:
        self._counters.add("planner_verifications", outcome)
        if self._memory is not None:
            self._memory.verified(what.key, what.arm, outcome)

    def _on_store_failed(self, why: str) -> None:
        """In the store's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._event("store_failed", "error", detail=why))

    # --- models and catalogs -------------------------------------------------------------------------------------

    def _on_model_event(self, outcome: Outcome) -> None:
        """In the thread that looks at the folder."""
        removed = outcome.step == "removed"
        self._counters.add("planner_models", "accepted" if outcome.accepted else outcome.step)
        if outcome.seconds:
            self._counters.observe_in("model_check", outcome.seconds, LOAD_BOUNDS)
        level = "info" if outcome.accepted or removed else "error"
        name = "model_loaded" if outcome.accepted else "model_removed" if removed else "model_refused"
        self._loop.call_soon_threadsafe(
            lambda: self._event(
                name, level, file=outcome.file, model=f"{outcome.name}-{outcome.version}", detail=outcome.reason
            )
        )

    def _on_swap(self, kind: str, model: Any) -> None:
        label = model.label if model is not None else "none"
        self._counters.add("model_swaps", kind)
        if model is not None and self._store is not None:
            self._counters.observe_in("model_load", self._store.load_seconds, LOAD_BOUNDS)

        def swapped() -> None:
            self._event("model_serves", "info", kind=kind, model=label)
            self._remembering.serves(kind, label)
            self._changed()

        self._loop.call_soon_threadsafe(swapped)

    def _prepare(self, snapshot: Snapshot) -> None:
        if self._store is not None:
            warm(snapshot, Models(self._store.current("cardinality"), self._store.current("hints")))

    def _on_catalog(self, database: str, differs: bool) -> None:
        self._counters.add("planner_catalog_loads", "ok")
        if database in self._failing:
            self._failing.discard(database)
            self._event("catalog_back", "info", database=database)
        if differs:
            self._changed()

    def _on_catalog_failed(self, database: str, why: str) -> None:
        self._counters.add("planner_catalog_loads", "failed")
        if database not in self._failing and len(self._failing) < MAX_DATABASES_FAILING:
            self._failing.add(database)
            self._event("catalog_unreachable", "warning", database=database, detail=why)

    # --- the supervisor ------------------------------------------------------------------------------------------

    def told(self, message: Control) -> None:
        """What the supervisor says after `Start`."""
        match message:
            case Poll():
                self._send(self._report())
            case Reload(number=number, limits=limits):
                self._spawn(self.reload(number, limits))

    async def reload(self, number: int = 0, limits: Limits | None = None) -> None:
        """Reads the models again; answers with the state of their folder when ``number`` asks for it."""
        if limits is not None and limits != self._limits:
            self._limits = limits
            self._engine.configure(limits)
            if self._memory is not None:
                self._memory.configure(policy(limits))
            self._catalogs.configure(limits)
            self._changed()
        if self._store is not None:
            await asyncio.to_thread(self._store.reload)
            await self._list_models()
        if number:
            self._send(Reloaded(number, self._models))

    async def _list_models(self) -> None:
        """In a thread, since the store may be busy with a file for a while."""
        if self._store is not None:
            rows = await asyncio.to_thread(self._store.listing)
            self._models = tuple(
                ModelState(row.file, row.kind, row.name, row.version, row.status, row.reason)
                for row in rows[:MAX_MODELS]
            )

    def _report(self) -> Report:
        return Report(
            self._counters.snapshot(),
            self._models,
            self._catalogs.count,
            self._catalogs.age_seconds(),
            self._lanes.waiting,
            self._lanes.stuck_seconds,
            self._remembering.failing,
            self._remembering.breakers_open,
        )

    async def _tick(self) -> None:
        failing = ""
        while True:
            self._events = 0
            if failing and not self._remembering.failing:
                self._event("store_back", "info")
            failing = self._remembering.failing
            self._send(self._report())
            self._check_health()
            await asyncio.sleep(TICK_SECONDS)
            if self._listing is None or self._listing.done():
                # Not awaited here: a file that is being checked must not hold up the report.
                self._listing = self._spawn(self._list_models())

    def _check_health(self) -> None:
        if self._lanes.stuck_seconds > STUCK_SECONDS:
            self._event("planner_stuck", "error", seconds=round(self._lanes.stuck_seconds, 1))
            self._give_up(EXIT_STUCK)
        resident = resident_bytes()
        if resident > self._limits.memory_bytes:
            self._event("planner_memory", "error", resident=resident, limit=self._limits.memory_bytes)
            self._give_up(EXIT_MEMORY)

    def _give_up(self, status: int) -> None:
        """Ends the process: a thread that runs away cannot be stopped in any other way. A moment later, so that what
        was said gets out."""
        self._loop.call_later(0.05, os._exit, status)

    def _event(self, name: str, level: str, **fields: str | int | float | bool | None) -> None:
        self._events += 1
        if self._events <= MAX_EVENTS:
            self._send(Event(name, level, fields))

    def log(self, record: logging.LogRecord) -> None:
        """A warning of one of our modules, from any thread."""
        text = record.getMessage()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(
                lambda: self._event("planner_warning", record.levelname.lower(), logger=record.name, detail=text)
            )

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Question:
    """One `Ask` on its way through a lane."""

    __slots__ = ("_ask", "_came", "_service", "_snapshot", "_worker")

    def __init__(self, service: Service, worker: _Worker, ask: Ask, snapshot: Snapshot) -> None:
        self._service = service
        self._worker = worker
        self._ask = ask
        self._snapshot = snapshot
        self._came = time.monotonic()

    def run(self, lane: int) -> Answer:
        return self._service.compute(self._ask, self._snapshot, lane, self._came)

    def done(self, answer: Answer | None, error: BaseException | None) -> None:
        if answer is None:
            answer = Answer(self._ask.number, reason="failed", scope="once")
        self._service.deliver(self._worker, answer)


class _Worker(asyncio.Protocol):
    """The connection of one wire worker."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        if not self._service.joined(self):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._service.received(self, message)
        except FrameError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.left(self)

    def send(self, message: Message) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing() and transport.get_write_buffer_size() < MAX_UNSENT:
            transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Supervisor(asyncio.Protocol):
    """Our end of the control channel."""

    def __init__(self) -> None:
        self.service: Service | None = None
        self.lost = asyncio.Event()
        self.gone = False
        self._reader = control.Reader()
        self._transport: asyncio.Transport | None = None
        self._starting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                if isinstance(message, Start) and self._starting is None:
                    self._starting = asyncio.create_task(self._start(message))
                elif self.service is not None:
                    self.service.told(message)
        except ValueError:
            self.lost.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.lost.set()

    async def _start(self, start: Start) -> None:
        self.service = Service(start, self.send)
        logging.getLogger().addHandler(_Forward(self.service))
        try:
            await self.service.start()
        except (OSError, ValueError) as error:
            self.send(Refuse(str(error)))
            self.lost.set()
            return
        self.send(Ready())

    def send(self, message: Control) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))


class _Forward(logging.Handler):
    def __init__(self, service: Service) -> None:
        super().__init__(logging.WARNING)
        self._service = service

    def emit(self, record: logging.LogRecord) -> None:
        self._service.log(record)


def model_limits(limits: Limits) -> ModelLimits:
    """How long a model may take."""
    return ModelLimits(batch_ms=limits.model_batch_ms, predict_ms=limits.model_predict_ms)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _limit_memory(limits: Limits) -> None:
    """A jump in memory between two looks at it fails inside this process instead of hurting the machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limits.memory_bytes * 2
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


async def run(sock: socket.socket) -> None:
    """Serves until SIGTERM or until the supervisor is gone."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    _, supervisor = await loop.create_connection(_Supervisor, sock=sock)
    loop.add_signal_handler(signal.SIGTERM, supervisor.lost.set)

    def reload() -> None:
        if supervisor.service is not None:
            supervisor.service.told(Reload(0))

    loop.add_signal_handler(signal.SIGHUP, reload)
    await supervisor.lost.wait()
    if supervisor.service is not None:
        await supervisor.service.close(supervisor_lost=supervisor.gone)


def main(arguments: list[str]) -> int:
    """The process's entry; ``arguments`` as on its command line."""
    parser = argparse.ArgumentParser(prog="planner.service", description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="descriptor of the control channel")
    sock = socket.socket(fileno=parser.parse_args(arguments).control)
    faulthandler.enable()
    # Ctrl-C in the terminal is the supervisor's, and so is the kill switch, which may be sent to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # Two threads compute; the event loop must not wait the default 5 ms for its turn.
    sys.setswitchinterval(0.001)
    uvloop.run(run(sock))
    # Without waiting for a lane's thread that may be busy for long.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

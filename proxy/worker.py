"""One wire worker: a process with an event loop that serves client connections until its supervisor says otherwise.

Forked by the nursery, or started as ``python -m proxy.worker --control FD --id N``, with the listening sockets and one
end of the control channel inherited. The settings, secrets included, come over that channel and never stand on a
command line or in the environment.

From the supervisor: ``start``, ``counters``, ``reload``, ``drain``, ``abort``, ``cancel``, ``cancel_here``, ``mode``,
``close_idle``, ``pause``, and for people ``clients``, ``pools``, ``servers``, ``busy`` and ``kill``. To the supervisor:
``counters`` every second, ``cancel``, ``cancel_elsewhere`` and ``close_idle`` where other workers are concerned, and
``console`` for what is asked in the administration database. When the channel ends the supervisor is dead: the worker
stops accepting, lets its clients finish within ``drain_timeout``, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from typing import Any, Final

import uvloop
from setproctitle import setproctitle

from proxy.clients import kill
from proxy.context import WorkerContext
from proxy.control import ControlChannel, ControlLostError, Message
from proxy.listener import Listener, Lobby
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.places import Places
from proxy.settings import ProxySettings

PUSH_SECONDS: Final = 1.0
"""How often counters are sent unasked: what a killed worker may lose."""
ROUTE_SECONDS: Final = 12.0
"""How long another worker may take for a cancel or for closing idle backends."""
LOGIN_GRACE_SECONDS: Final = 5.0
"""How long a draining worker waits for clients that are logging in, at most ``drain_timeout``."""
ORPHAN_GRACE_SECONDS: Final = 10.0
"""How much longer than ``drain_timeout`` a worker without a supervisor waits for open transactions."""


class Worker:
    """The worker's side of the control channel, around one ``WorkerContext``."""

    def __init__(self) -> None:
        self._done = asyncio.Event()
        self._context: WorkerContext | None = None
        self._listeners: list[tuple[Listener, socket.socket]] = []
        self._lobby: Lobby | None = None
        self._channel: ControlChannel | None = None
        self._drain: asyncio.Task[None] | None = None
        self._push: asyncio.Task[None] | None = None
        self._log: Log | None = None

    async def run(self, control: socket.socket) -> None:
        """Serves until drained or aborted."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        self._channel = await ControlChannel.over(control, self._handle, self._on_supervisor_lost)
        try:
            await self._done.wait()
            if self._context is not None:
                # The last word to the supervisor, so that no count is lost when a worker ends in order.
                self._send_counters(self._context)
                await self._context.authenticator.close()
                if self._context.tracer is not None:
                    self._context.tracer.close()
        finally:
            if self._push is not None:
                self._push.cancel()
            self._channel.close()
            if self._log is not None:
                self._log.close()

    async def _handle(self, kind: str, message: Message) -> Message | None:
        if kind == "start":
            return await self._start(message)
        context = self._context
        if context is None:
            if kind in ("drain", "abort"):
                self._done.set()
            return None
        match kind:
            case "counters":
                return {"counters": context.snapshot()}
            case "reload":
                return await self._reload(context, message)
            case "drain":
                self._begin_drain(context)
            case "abort":
                context.abort()
                self._done.set()
            case "cancel":
                await context.cancel(int(message["pid"]), bytes.fromhex(message["secret"]))
            case "cancel_here":
                return {"found": await context.cancel_here(int(message["pid"]), bytes.fromhex(message["secret"]))}
            case "mode":
                context.set_mode(str(message["mode"]))
            case "close_idle":
                await context.close_idle_backends(str(message["database"]))
            case "clients":
                return {"clients": context.sessions.page(int(message["after"]), int(message["most"]))}
            case "pools":
                return {"pools": context.pools()}
            case "servers":
                return {"servers": context.servers()}
            case "pause":
                context.pause(message["databases"], everything=bool(message["everything"]))
            case "busy":
                return {"busy": context.busy(str(message["database"]))}
            case "kill":
                return {"found": await kill(context, int(message["number"]))}
        return None

    async def _start(self, message: Message) -> Message:
        settings = ProxySettings.from_wire(message["settings"].encode())
        worker_id = int(message["worker_id"])
        self._log = Log(f"worker-{worker_id}", settings.log_format, settings.log_level)
        try:
            context = WorkerContext(settings, worker_id, Counters(), self._log)
            if "places" in message:
                context.places = Places(int(message["places"]), worker_id)
            context.cancel_router = self._route_cancel
            context.cancel_elsewhere = self._cancel_elsewhere
            context.request_close_idle = self._request_close_idle
            context.ask_supervisor = self._ask
            await context.start()
        except (ValueError, OSError, RuntimeError) as error:
            return {"refused": str(error)}
        self._context = context
        self._lobby = Lobby(context)
        for entry in message["listeners"]:
            sock = socket.socket(fileno=int(entry["fd"]))
            listener = Listener(context, sock, read_only=bool(entry["read_only"]), lobby=self._lobby)
            listener.start()
            self._listeners.append((listener, sock))
        _tune_garbage_collection()
        self._push = asyncio.create_task(self._push_counters(context))
        return {}

    async def _reload(self, context: WorkerContext, message: Message) -> Message:
        settings = ProxySettings.from_wire(message["settings"].encode())
        try:
            await context.reload(settings)
        except (ValueError, OSError) as error:
            return {"refused": str(error)}
        context.log.configure(settings.log_format, settings.log_level)
        return {}

    async def _push_counters(self, context: WorkerContext) -> None:
        while True:
            self._send_counters(context)
            await asyncio.sleep(PUSH_SECONDS)

    def _send_counters(self, context: WorkerContext) -> None:
        if self._channel is not None:
            self._channel.send("counters", counters=context.snapshot())

    async def _ask(self, kind: str, limit: float, **fields: Any) -> Message:
        assert self._channel is not None
        return await self._channel.request(kind, limit, **fields)

    async def _route_cancel(self, pid: int, secret: bytes) -> None:
        assert self._channel is not None
        with contextlib.suppress(ControlLostError):
            await self._channel.request("cancel", ROUTE_SECONDS, pid=pid, secret=secret.hex())

    async def _cancel_elsewhere(self, pid: int, secret: bytes) -> bool:
        assert self._channel is not None
        try:
            answer = await self._channel.request("cancel_elsewhere", ROUTE_SECONDS, pid=pid, secret=secret.hex())
        except ControlLostError:
            return False
        return bool(answer.get("found"))

    async def _request_close_idle(self, database: str) -> None:
        assert self._channel is not None
        # A worker that does not answer must not hold the client's statement up for good: the server then says 55006.
        with contextlib.suppress(ControlLostError):
            await self._channel.request("close_idle", ROUTE_SECONDS, database=database)

    def _begin_drain(self, context: WorkerContext, grace: float | None = None) -> None:
        for listener, sock in self._listeners:
            listener.stop_accepting()
            sock.close()
        self._listeners.clear()
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_and_end(context, grace))

    async def _drain_and_end(self, context: WorkerContext, grace: float | None) -> None:
        limit = None if grace is None else context.settings.drain_timeout + grace
        try:
            async with asyncio.timeout(limit):
                await self._finish_logins(context)
                await context.drain()
        except TimeoutError:
            context.abort()
        finally:
            self._done.set()

    async def _finish_logins(self, context: WorkerContext) -> None:
        """Whoever was accepted before the drain still gets in; a context that drains would turn them away."""
        assert self._lobby is not None
        try:
            async with asyncio.timeout(min(context.settings.drain_timeout, LOGIN_GRACE_SECONDS)):
                await self._lobby.quiet()
        except TimeoutError:
            self._lobby.abort()

    def _on_supervisor_lost(self) -> None:
        if self._context is None:
            self._done.set()
            return
        if self._drain is None and not self._done.is_set():
            self._context.log.event("supervisor_lost", level="error", detail="draining, then ending")
        if self._drain is None or self._drain.done():
            self._begin_drain(self._context, ORPHAN_GRACE_SECONDS)
            return
        # Already draining without a limit of its own, and now nobody is left to end it.
        limit = self._context.settings.drain_timeout + ORPHAN_GRACE_SECONDS
        asyncio.get_running_loop().call_later(limit, self._done.set)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._log is None:
            loop.default_exception_handler(context)
            return
        error = context.get("exception")
        where = _innermost(error) if isinstance(error, BaseException) else ""
        self._log.event(
            "internal_error", level="error", detail=str(context.get("message", "")), error=repr(error), where=where
        )


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def _tune_garbage_collection() -> None:
    """Keeps the collector off what lives as long as the process, and makes it run less often.

    Each client holds some dozens of tracked objects for a long time, and a full collection walks all of them: with
    thousands of clients that is a pause of tens of milliseconds for every query on this worker. What it costs: garbage
    in cycles (a session and its protocol refer to each other) stays until 20,000 further container objects were made,
    some megabytes at worst.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def raise_open_files() -> None:
    """Lifts the soft limit of open files to the hard one: each client needs one descriptor or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: list[str]) -> int:
    """The process's entry; ``arguments`` as on its command line."""
    parser = argparse.ArgumentParser(prog="proxy.worker", description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="descriptor of the control channel")
    parser.add_argument("--id", type=int, required=True, help="the worker id, for the process's title")
    chosen = parser.parse_args(arguments)
    setproctitle(f"pilotwire: worker {chosen.id}")
    control = socket.socket(fileno=chosen.control)
    # Ctrl-C and systemd signal the whole group; the supervisor alone decides what that means for its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    raise_open_files()
    uvloop.run(Worker().run(control))
    sys.stdout.flush()
    # All has been closed; to take the modules apart would only cost a tenth of a second of the processor.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

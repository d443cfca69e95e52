"""The background explorer: a child process of the supervisor's, and the supervisor's side of it.

The child reads one line of JSON from its standard input (`Start`, secrets included), explores what the store knows,
rests, and looks again; each line of JSON that it prints is an event for the log. It ends when its input ends, so that
it never outlives its supervisor. One that dies is started again after a pause that grows to minutes: nothing waits for
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from pilotwire.children import end_process, environment
from pilotwire.planner_process import upstream
from pilotwire.workers import how_ended
from planner.control import Upstream
from proxy.logs import Log
from proxy.settings import ProxySettings

MIN_PAUSE_SECONDS: Final = 1.0
MAX_PAUSE_SECONDS: Final = 300.0
STEADY_SECONDS: Final = 60.0
"""A child that lived this long did its work: the pause begins small again."""
PASS_SECONDS: Final = 3600.0
"""About how long one pass over the store's statements may take before it begins anew with the slowest."""
NICE: Final = 10
MAX_LINE: Final = 1 << 20


class Start(msgspec.Struct):
    """What the child goes by; ``host`` and ``port`` of the replica, "" for none."""

    upstream: Upstream
    store: str
    literals: bool
    models: str
    share: float
    most_active: int
    limit: float
    interval: float
    min_gain: float
    min_gain_ms: float
    host: str = ""
    port: int = 5432
    databases_off: tuple[str, ...] = ()


# ---------------------------------------------------------------------- the supervisor's side


class ExplorerProcess:
    """One place for the child, whichever incarnation fills it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._keeper: asyncio.Task[None] | None = None
        self._start: Start | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    def apply(self, settings: ProxySettings) -> None:
        """Takes these settings: starts, ends or replaces the child as they ask; returns at once."""
        start = start_message(settings)
        if start == self._start:
            return
        self._start = start
        before = self._keeper
        if before is not None:
            before.cancel()
        self._keeper = asyncio.create_task(self._keep(before, start)) if start is not None else None
        if start is None and before is not None:
            self._keeper = asyncio.create_task(_over(before))

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._end()

    async def _keep(self, before: asyncio.Task[None] | None, start: Start) -> None:
        """Until cancelled; begins when ``before`` has ended its child."""
        if before is not None:
            await asyncio.wait([before])
        pause = MIN_PAUSE_SECONDS
        while True:
            began = time.monotonic()
            how = await self._live_once(start)
            pause = MIN_PAUSE_SECONDS if time.monotonic() - began > STEADY_SECONDS else pause
            self._log.event("explorer_died", level="warning", how=how, restart_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)
            self.restarts += 1

    async def _live_once(self, start: Start) -> str:
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pilotwire.explorer_process",
                stdin=asyncio.subprocess.PIPE,
                env=environment(),
                stdout=asyncio.subprocess.PIPE,
                process_group=0,
                limit=MAX_LINE,
            )
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(start) + b"\n")
            self._log.event("explorer_started", pid=process.pid)
            with contextlib.suppress(ValueError, ConnectionError):
                while line := await process.stdout.readline():
                    self._tell(line)
            return how_ended(await process.wait())
        finally:
            await self._end()

    def _tell(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            self._log.event(str(event.pop("event")), level=event.pop("level", "info"), **event)
        except (ValueError, TypeError, LookupError, AttributeError):
            self._log.event("explorer_said", level="warning", detail=line[:200].decode(errors="replace").strip())

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        await end_process(process)


async def _over(before: asyncio.Task[None]) -> None:
    await asyncio.wait([before])


def start_message(settings: ProxySettings) -> Start | None:
    """What a child would go by; None when there is to be none."""
    if not settings.explore or settings.mode == "off" or not settings.store_url:
        return None
    host, _, port = (
        settings.explore_host.rpartition(":") if ":" in settings.explore_host else (settings.explore_host, "", "")
    )
    return Start(
        upstream=upstream(settings),
        store=settings.store_url,
        literals=settings.store_literals,
        models=settings.models,
        share=settings.explore_share,
        most_active=settings.explore_most_active,
        limit=settings.explore_limit,
        interval=settings.explore_interval,
        min_gain=settings.min_gain,
        min_gain_ms=settings.min_gain_ms,
        host=host.strip("[]"),
        port=int(port) if port.isdigit() else 5432,
        databases_off=tuple(settings.steer_off_databases),
    )


# ---------------------------------------------------------------------- the child


async def run(start: Start) -> None:
    """Until cancelled. Raises StoreError when the store cannot be used; a database that cannot be reached, or goes
    away, is told and tried again at the next pass."""
    from pilotwire.exploring import GONE, Exploration, Target
    from planner.catalogs import connector
    from planner.memory.evidence import Rules
    from planner.memory.explorer import ExploreOptions
    from planner.memory.store import open_store

    options = ExploreOptions(
        budget=max(start.share * PASS_SECONDS, 1.0),
        share=start.share,
        most_active=start.most_active,
        patience=start.interval,
        limit_ms=start.limit * 1000,
        rules=Rules(min_gain=start.min_gain, min_ms=start.min_gain_ms),
        cheap_ms=start.min_gain_ms,
    )
    replica = msgspec.structs.replace(start.upstream, hosts=((start.host, start.port),)) if start.host else None
    models = Path(start.models) if start.models else None
    with open_store(start.store, literals=start.literals) as store:
        while True:
            records = await asyncio.to_thread(store.queries, limit=10_000)
            for database in sorted({record.database for record in records} - set(start.databases_off)):
                target = Target(
                    connector(start.upstream, database), connector(replica, database) if replica else "", models
                )
                exploration = Exploration(target, store, options)
                try:
                    report = await exploration.run()
                except GONE as error:
                    detail = " ".join(str(error).split()) or type(error).__name__
                    _say("explorer_failed", level="warning", database=database, detail=detail)
                    continue
                if report.tried:
                    _say(
                        "explored",
                        database=database,
                        tried=len(report.tried),
                        faster=len(report.approved),
                        spent_seconds=round(report.spent, 3),
                        saved_ms=round(report.saved_ms, 3),
                        stopped=report.stopped,
                    )
            await asyncio.sleep(start.interval)


def _say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def _until_orphaned(start: Start) -> None:
    """Runs until the supervisor's end of the input is closed, or SIGTERM."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    work = asyncio.ensure_future(run(start))
    orphaned = asyncio.ensure_future(reader.read())
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    await asyncio.wait([work, orphaned], return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    orphaned.cancel()


def main() -> int:
    from planner.memory.store import StoreError

    os.nice(NICE)
    # The supervisor's kill switch, which may be sent to the whole group.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # Not by the buffered file: what is behind the line must stay in the pipe.
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < MAX_LINE and (byte := os.read(0, 1)):
        line += byte
    try:
        asyncio.run(_until_orphaned(msgspec.json.decode(bytes(line), type=Start)))
    except msgspec.MsgspecError:
        return 2
    except StoreError as error:
        _say("explorer_failed", level="error", detail=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

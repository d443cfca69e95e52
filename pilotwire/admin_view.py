"""The running instance as the admin pages see it: `proxy.admin.source.AdminSource` over the supervisor.

Everything that asks workers or starts a process for a person's question is here, so that the supervisor keeps to its
own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pydantic import ValidationError

from pilotwire.admin_memory import StoreMemory
from pilotwire.children import environment
from pilotwire.database_stats import STATS_SECONDS, StatsHistory
from pilotwire.latency_history import LatencyHistory
from pilotwire.pausing import PauseSwitch
from pilotwire.workers import WorkerProcess, gather_quietly
from proxy.admin.source import (
    Client,
    Latencies,
    ModelStatus,
    NotFoundError,
    Pool,
    RefusedError,
    Reloaded,
    Status,
    UnavailableError,
)
from proxy.console_db import answering
from proxy.console_db.tables import Cell, DatabaseStats, Paused
from proxy.control import ControlLostError, Message
from proxy.settings import ProxySettings, docs

ASK_SECONDS: Final = 2.0
KILL_SECONDS: Final = 10.0
FRESH_SECONDS: Final = 0.2
FLUSH_SECONDS: Final = 2.0
COMMAND_SECONDS: Final = 60.0
MAX_KEPT_FILES: Final = 100
PRELOADED_SECONDS: Final = 86_400.0
"""How old latencies may be that are still shown as the last of a model."""
SETTABLE: Final = frozenset(
    {
        "Pooling",
        "Steering",
        "Evidence and guardrails",
        "Models and the planner process",
        "Stopping and guarding",
        "Logging",
    }
)
"""Groups of settings that SET may change: none that says who may log in, or what is kept or shown of the data."""
NOT_SETTABLE: Final = frozenset({"read_only_users", "log_literals", "log_debug_wire"})


class Instance(Protocol):
    """The part of the supervisor that is used here."""

    @property
    def settings(self) -> ProxySettings: ...

    @property
    def workers(self) -> Mapping[int, WorkerProcess]: ...

    @property
    def pauses(self) -> PauseSwitch: ...

    def status(self) -> Status: ...

    async def fresh_status(self) -> Status: ...

    async def upstream_reachable(self) -> bool: ...

    async def reload(self) -> Reloaded: ...

    async def set_mode(self, mode: str, actor: str, why: str) -> None: ...

    async def change(self, name: str, value: Any) -> str: ...

    async def reload_models(self) -> tuple[ModelStatus, ...]: ...

    def totals(self) -> Mapping[str, float]: ...


class AdminView:
    """See the module. `start` and `close` go with the supervisor's."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._store = StoreMemory(instance.settings.store_url, lambda: instance.settings)
        self._history = LatencyHistory(
            instance.totals, lambda: instance.settings.history_interval, self._store.save_history
        )
        self._store.latency_history = self._history
        self._collector: asyncio.Task[None] | None = None
        self._stats = StatsHistory(instance.totals(), time.monotonic())
        self._averaging: asyncio.Task[None] | None = None
        self._files: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._inspecting = asyncio.Semaphore(1)
        self._refreshed = 0.0

    def start(self) -> None:
        self._collector = asyncio.create_task(self._collect())
        self._averaging = asyncio.create_task(self._average())

    async def _average(self) -> None:
        while True:
            await asyncio.sleep(STATS_SECONDS)
            self._stats.look(self._instance.totals(), time.monotonic())

    async def _collect(self) -> None:
        self._history.preload(await self._store.recent_history(PRELOADED_SECONDS))
        await self._history.run()

    async def retire(self) -> None:
        """A successor counts from here on: what has been collected is written, and nothing further."""
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.cancel()
            with contextlib.suppress(TimeoutError):
                # A store that is away must not hold up the end.
                await asyncio.wait_for(self._history.flush(), FLUSH_SECONDS)

    async def close(self) -> None:
        await self.retire()
        if self._averaging is not None:
            self._averaging.cancel()
        await self._store.close()

    def rebase(self) -> None:
        """See `LatencyHistory.rebase`: what a predecessor counted is not of the last minute."""
        self._history.rebase()
        self._stats = StatsHistory(self._instance.totals(), time.monotonic())

    # --- AdminSource ---------------------------------------------------------------------------------------------

    @property
    def settings(self) -> ProxySettings:
        return self._instance.settings

    @property
    def memory(self) -> StoreMemory:
        return self._store

    def status(self) -> Status:
        return self._instance.status()

    async def fresh_status(self) -> Status:
        found = await self._instance.fresh_status()
        self._refreshed = time.monotonic()
        return found

    async def upstream_reachable(self) -> bool:
        return await self._instance.upstream_reachable()

    async def latencies(self) -> Latencies:
        # A page that has just asked the workers for their counters need not ask again.
        if time.monotonic() - self._refreshed > FRESH_SECONDS:
            await self.fresh_status()
        return self._history.latencies()

    async def clients(self, after: str, limit: int) -> Sequence[Client]:
        slot, number = (int(part) for part in after.split(".")) if after else (-1, 0)
        found: list[Client] = []
        for worker in sorted(self._instance.workers.values(), key=lambda worker: worker.slot):
            if worker.slot < slot or len(found) >= limit:
                continue
            later = number if worker.slot == slot else 0
            try:
                answer = await worker.ask("clients", ASK_SECONDS, after=later, most=limit - len(found))
            except ControlLostError:
                continue
            for row in answer.get("clients", ()):
                connected = datetime.fromtimestamp(row.pop("connected")).astimezone()
                found.append(Client(id=f"{worker.slot}.{row.pop('number')}", connected=connected, **row))
        return found

    async def pools(self) -> Sequence[Pool]:
        answers = await gather_quietly([worker.ask("pools", ASK_SECONDS) for worker in self._instance.workers.values()])
        merged: dict[tuple[str, str], dict[str, Any]] = {}
        for row in (row for answer in answers for row in answer.get("pools", ())):
            key = (row["user"], row["database"])
            known = merged.get(key)
            if known is None:
                merged[key] = dict(row)
                continue
            for name, value in row.items():
                if name == "longest_wait_ms":
                    known[name] = max(known[name], value)
                elif isinstance(value, int):
                    known[name] += value
        found = [Pool(**row) for row in merged.values()]
        return sorted(found, key=lambda pool: (-pool.clients, pool.database, pool.user))

    async def kill(self, client: str) -> bool:
        slot, _, number = client.partition(".")
        worker = self._instance.workers.get(int(slot))
        if worker is None:
            return False
        try:
            answer = await worker.ask("kill", KILL_SECONDS, number=int(number))
        except ControlLostError as error:
            raise UnavailableError(f"The worker process did not do it: {error}.") from None
        return bool(answer.get("found"))

    async def reload(self) -> Reloaded:
        return await self._instance.reload()

    async def set_mode(self, mode: str, actor: str, why: str) -> None:
        await self._instance.set_mode(mode, actor, why)

    # --- ConsoleSource -------------------------------------------------------------------------------------------

    async def console(self, request: Message) -> Message:
        """Answers a command of the administration database; see `proxy.console_db.answering`."""
        return await answering.answer(self, request, version("pilotwire"))

    @property
    def paused(self) -> Paused:
        return self._instance.pauses.paused

    async def pause(self, database: str, actor: str) -> None:
        await self._instance.pauses.pause(database, actor)

    async def resume(self, database: str, actor: str) -> None:
        await self._instance.pauses.resume(database, actor)

    async def busy(self, database: str) -> int:
        workers = self._instance.workers.values()
        answers = await gather_quietly([worker.ask("busy", ASK_SECONDS, database=database) for worker in workers])
        return sum(int(found.get("busy", 0)) for found in answers)

    async def stats(self) -> Sequence[DatabaseStats]:
        await self.fresh_status()
        return self._stats.databases(self._instance.totals(), time.monotonic())

    async def servers(self) -> Sequence[Mapping[str, Cell]]:
        found: list[Mapping[str, Cell]] = []
        for worker in sorted(self._instance.workers.values(), key=lambda worker: worker.slot):
            with contextlib.suppress(ControlLostError):
                for row in (await worker.ask("servers", ASK_SECONDS)).get("servers", ()):
                    client = None if row["client"] is None else f"{worker.slot}.{row['client']}"
                    found.append({**row, "worker": worker.slot, "client": client})
        return found

    async def set(self, name: str, value: str, actor: str) -> None:
        doc = docs()[name]
        if doc.group not in SETTABLE or name in NOT_SETTABLE:
            raise RefusedError(f"{name} can be changed in the configuration only")
        if not doc.reload:
            raise RefusedError(f"{name} cannot be changed without a restart")
        try:
            refused = await self._instance.change(name, value)
        except ValidationError as error:
            raise RefusedError(f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        except ValueError as error:
            raise RefusedError(str(error)) from None
        if refused:
            raise RefusedError(refused)

    # --- models --------------------------------------------------------------------------------------------------

    async def reload_models(self) -> tuple[ModelStatus, ...]:
        return await self._instance.reload_models()

    async def model_file(self, file: str) -> Mapping[str, Any]:
        folder = self._instance.settings.models
        planner = self._instance.status().planner
        if not folder or planner is None:
            raise UnavailableError("There is no folder of models.")
        # Only what the planner process has listed: a name from outside never becomes a path.
        if file not in {model.file for model in planner.models}:
            raise NotFoundError(f"no model file {file[:100]}")
        path = Path(folder) / file
        try:
            facts = path.stat()
        except OSError:
            raise NotFoundError(f"{file[:100]} is not there any more; a copy of it may still serve") from None
        key = (file, facts.st_mtime_ns, facts.st_size)
        async with self._inspecting:
            if key not in self._files:
                if len(self._files) >= MAX_KEPT_FILES:
                    self._files.clear()
                _, found, _ = await _command("model", "inspect", "--json", "--", str(path))
                if found is None:
                    raise UnavailableError("The file could not be looked into.")
                manifest = found.get("manifest") or {}
                # Vocabulary and self-test are long and of no use to a person.
                for name in ("vocabulary", "self_test", "ranges", "relation_hashes"):
                    manifest.pop(name, None)
                self._files[key] = {**found, "file": file}
        return self._files[key]

    async def choose_model(self, action: Literal["activate", "rollback", "release"], what: str) -> None:
        folder = self._instance.settings.models
        if not folder:
            raise UnavailableError("There is no folder of models.")
        if action == "activate":
            if not what:
                raise RefusedError("name the model that is to serve")
            arguments = ["activate", "--models", folder, "--json", "--", what]
        else:
            arguments = ["rollback"] if action == "rollback" else ["activate", "--newest"]
            arguments += ["--models", folder, "--kind", what, "--json"]
        code, _, complaint = await _command("model", *arguments)
        if code:
            raise RefusedError(complaint or "the model could not be chosen")


async def _command(*arguments: str) -> tuple[int, dict[str, Any] | None, str]:
    """Runs a command of our own: exit code, its JSON, and its sentence on standard error. Model files are looked into
    by a process of their own, because the supervisor must not load what may crash."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pilotwire", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        process_group=0, env=environment(),
    )  # fmt: skip
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            out, complaint = await process.communicate()
    except TimeoutError:
        raise UnavailableError("It took too long and was given up.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        found = json.loads(out)
    except ValueError:
        found = None
    words = complaint.decode(errors="replace").strip().removeprefix("pilotwire: ")
    return process.returncode or 0, found if isinstance(found, dict) else None, words[:500]

"""A users file that is broken when the settings are read again, or when a worker has to be started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from pilotwire.supervisor import Supervisor
from pilotwire.workers import WorkerProcess
from proxy.context import WorkerContext
from proxy.control import Message
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.settings import ProxySettings
from tests.pilotwire.test_supervisor import restarted
from tests.pilotwire.test_supervisor_planner import post
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

StartProxy = Callable[..., Proxy]
GOOD = '"postgres" "secret"\n'
BROKEN = '"postgres" "secret\n'


def write(path: Path, text: str) -> None:
    # As an editor does it: a worker that starts meanwhile must not find a file that is empty, and valid.
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


async def logs_in(target: Proxy) -> bool:
    connection = await asyncpg.connect(target.dsn(password="secret"), statement_cache_size=0, timeout=20)
    answer: int = await connection.fetchval("select 1")
    await connection.close()
    return answer == 1


async def reload(target: Proxy) -> tuple[int, Any]:
    return await asyncio.to_thread(post, target, "/api/reload")


def pool_size(target: Proxy) -> object:
    rows = json.loads(target.http("/api/settings")[1])["settings"]
    return next(row["value"] for row in rows if row["name"] == "pool_size")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    write(path, GOOD)
    return path


async def test_a_reload_with_a_broken_users_file_changes_nothing(proxy: StartProxy, users: Path) -> None:
    target = proxy(auth="scram-sha-256", users_file=str(users), pool_mode="transaction", pool_size=3, workers=2)
    write(users, BROKEN)
    target.write_config(pool_size=4)
    status, refused = await reload(target)
    assert status == 409
    assert "users.txt, line 1" in refused["detail"]
    await asyncio.to_thread(target.wait_log, "reload_failed")
    assert "reloaded changed=" not in target.log_text()
    assert await asyncio.to_thread(pool_size, target) == 3
    assert await logs_in(target)
    write(users, GOOD)
    assert (await reload(target))[1]["changed"] == ["pool_size"]
    assert await asyncio.to_thread(pool_size, target) == 4


async def test_a_worker_refuses_settings_before_it_takes_any_of_them(users: Path) -> None:
    """Another process may write the file between the supervisor's look at it and the worker's."""
    values = {"upstream": "postgresql://postgres@127.0.0.1/postgres", "auth": "scram-sha-256", "users_file": str(users)}
    before = ProxySettings.model_validate(values)
    log = Log("worker-0", "human", "error")
    context = WorkerContext(before, 0, Counters(), log)
    await context.authenticator.start()
    write(users, BROKEN)
    with pytest.raises(ValueError, match=r"users\.txt, line 1"):
        await context.reload(ProxySettings.model_validate(values | {"log_slow_ms": 5, "server_tls_mode": "disable"}))
    assert context.settings is before
    assert (context.slow_ms, context.tls.server_mode) == (before.log_slow_ms, before.server_tls_mode)
    context.close()
    log.close()


async def test_a_worker_that_died_comes_back_once_the_users_file_is_mended(proxy: StartProxy, users: Path) -> None:
    target = proxy(auth="scram-sha-256", users_file=str(users), workers=1)
    write(users, BROKEN)
    os.kill(target.workers()[0], signal.SIGKILL)
    await asyncio.to_thread(target.wait_log, "worker_not_started")
    await eventually(lambda: restarted(target, 3))
    status, text = await asyncio.to_thread(target.http, "/readyz")
    assert (status, json.loads(text)["reasons"]) == (503, ["no worker accepts clients"])
    log = target.log_text()
    assert (log.count("worker_died"), log.count("worker_not_started")) == (1, 1)
    assert "users.txt, line 1" in log
    write(users, GOOD)
    await eventually(lambda: target.http_status("/readyz") == 200)
    assert await logs_in(target)


class StartingWorker:
    """As a worker answers that has not got its settings yet, or was refused with them."""

    slot, source, state, pid, responding = 0, "worker-0#1", "starting", 0, True

    async def ask(self, kind: str, limit: float, **fields: object) -> Message:
        return {"kind": "reply", "id": 1}

    def kill(self) -> None:
        """There is no process."""


async def test_a_scrape_passes_by_a_worker_that_only_starts() -> None:
    settings = ProxySettings.model_validate({"upstream": "postgresql://postgres@127.0.0.1/postgres"})
    log = Log("supervisor", "human", "error")
    supervisor = Supervisor(settings, lambda: settings, False, log, None)
    supervisor._workers[0] = cast(WorkerProcess, StartingWorker())
    status = await supervisor.fresh_status()
    assert (status.workers_ready, status.workers_alive) == (0, 0)
    await supervisor._crew.close()
    log.close()

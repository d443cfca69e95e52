"""A worker in this process, spoken to over its control channel as the supervisor does."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import asyncpg
import pytest

from proxy.control import ControlChannel, Message
from proxy.settings import ProxySettings
from proxy.worker import Worker
from tests.support.postgres import Postgres
from tests.support.waiting import eventually


async def _ignore(kind: str, message: Message) -> Message | None:
    return None


async def test_the_connections_of_auth_query_end_with_the_worker(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.worker._tune_garbage_collection", lambda: None)  # it is this process's for good
    database, role = postgres.create_database(), postgres.create_role("a secret")
    settings: dict[str, Any] = {
        "upstream": postgres.dsn(database),
        "auth": "scram-sha-256",
        "auth_query": "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1",
        "drain_timeout": 5,
    }
    asking = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND application_name ~ 'auth_query'"
    ours, theirs = socket.socketpair()
    running = asyncio.create_task(Worker().run(theirs))
    supervisor = await ControlChannel.over(ours, _ignore, lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        listeners = [{"fd": os.dup(sock.fileno()), "read_only": False}]
        wire = ProxySettings(**settings).to_wire().decode()
        answer = await supervisor.request("start", 10, settings=wire, worker_id=0, listeners=listeners)
        assert "refused" not in answer
    client = await asyncpg.connect(
        host="127.0.0.1", port=port, user=role, password="a secret", database=database, ssl=False
    )
    assert await client.fetchval("SELECT 1") == 1
    assert postgres.sql(asking) == "1"
    await client.close()
    supervisor.send("drain")
    await asyncio.wait_for(running, 20)
    supervisor.close()
    await eventually(lambda: postgres.sql(asking) == "0", what="the server has seen it go")
    postgres.drop_database(database)

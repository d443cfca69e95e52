"""The admin pages over real processes: clients seen and ended, pools, latencies, switches, both plans of a query."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from planner.memory.records import State
from tests.support.memories import remember
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.shop import QUERY, SCHEMA, constant_model
from tests.support.waiting import eventually, wait_until

StartProxy = Callable[..., Proxy]


def ask(target: Proxy, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """GET, or with a body POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(target.admin_url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def clients(target: Proxy, application: str) -> list[dict[str, Any]]:
    _, found = await asyncio.to_thread(ask, target, "/api/clients?limit=500")
    return [row for row in found["clients"] if row["application"] == application]


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[str]:
    name = postgres.create_database()
    postgres.sql(SCHEMA, name)
    yield name
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def target(
    module_proxy: StartProxy, postgres: Postgres, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Proxy:
    """Two workers in transaction mode with a model and a store."""
    folder = tmp_path_factory.mktemp("view")
    constant_model(folder)
    remember(folder / "store.db", {QUERY: (State.APPROVED, 30.0, 10.0)}, database)
    return module_proxy(
        upstream=postgres.dsn(database), workers=2, pool_mode="transaction", models=str(folder), history_interval=1,
        store=str(folder / "store.db"), store_literals=True, pool_size=1, pool_overflow=0, log_connections=False,
    )  # fmt: skip


async def connect(target: Proxy, database: str, name: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        target.dsn(database), statement_cache_size=0, server_settings={"application_name": name}, timeout=20
    )


async def test_clients_are_listed_with_what_they_do(target: Proxy, database: str) -> None:
    connections = [await connect(target, database, "listed") for _ in range(5)]
    rows = await eventually(lambda: clients(target, "listed"))
    assert len(rows) == 5
    assert {row["state"] for row in rows} == {"idle"}
    assert {(row["user"], row["database"]) for row in rows} == {("postgres", database)}
    # Page by page, over both workers, each is seen once.
    seen: list[str] = []
    after = ""
    while True:
        _, page = await asyncio.to_thread(ask, target, f"/api/clients?limit=2&after={after}")
        seen += [row["id"] for row in page["clients"] if row["application"] == "listed"]
        if page["next"] is None:
            break
        after = page["next"]
    assert sorted(seen) == sorted(row["id"] for row in rows)
    for connection in connections:
        await connection.close()


@pytest.mark.parametrize(
    ("before", "statement", "state"),
    [(None, None, "idle"), ("BEGIN", None, "in transaction"), (None, "SELECT pg_sleep(30)", "active")],
)
async def test_a_client_is_ended_whatever_it_does(
    target: Proxy, database: str, before: str | None, statement: str | None, state: str
) -> None:
    connection = await connect(target, database, f"ended {state}")
    if before:
        await connection.execute(before)
    running = asyncio.create_task(connection.execute(statement)) if statement else None

    async def there() -> list[dict[str, Any]]:
        return [row for row in await clients(target, f"ended {state}") if row["state"] == state]

    (row,) = await eventually(there)
    status, _ = await asyncio.to_thread(ask, target, f"/api/clients/{row['id']}/kill", {})
    assert status == 200
    if running is not None:
        with pytest.raises(asyncpg.QueryCanceledError):
            await running
    await eventually(connection.is_closed)
    assert (await asyncio.to_thread(ask, target, f"/api/clients/{row['id']}/kill", {}))[0] == 404
    # What it held is free again: the pool has one connection.
    other = await connect(target, database, "after")
    assert await other.fetchval("SELECT 1") == 1
    await other.close()


async def test_pools_show_who_waits(target: Proxy, database: str) -> None:
    # More than two workers' pools of one connection each can serve.
    holders = [await connect(target, database, "holder") for _ in range(6)]
    waiting = [asyncio.create_task(holder.execute("SELECT pg_sleep(0.6)")) for holder in holders]

    async def queue() -> dict[str, Any] | None:
        _, found = await asyncio.to_thread(ask, target, "/api/pools")
        rows = [row for row in found["pools"] if row["database"] == database]
        return rows[0] if rows and rows[0]["waiting"] >= 4 and rows[0]["longest_wait_ms"] > 0 else None

    pool = await eventually(queue)
    assert pool is not None
    assert (pool["mode"], pool["clients"], pool["active"]) == ("transaction", 6, 2)
    await asyncio.gather(*waiting)
    for holder in holders:
        await holder.close()


async def test_latencies_of_what_was_steered_and_what_was_not(target: Proxy, database: str) -> None:
    await eventually(lambda: target.metrics()["pilotwire_planner_ready"] == 1, 20)
    connection = await connect(target, database, "measured")

    async def measured() -> list[dict[str, Any]]:
        for _ in range(5):
            await connection.fetchval(QUERY)
        _, found = await asyncio.to_thread(ask, target, "/api/metrics/")
        return [row for row in found["data"] if row["metric_name"] != "inference_latency"]

    for row in await eventually(measured):
        expected = "unsteered_latency" if row["model"] == "none" else "statement_latency"
        assert row["metric_name"] == expected
        assert 0 < row["p50_latency_ms"] <= row["p95_latency_ms"] <= row["p99_latency_ms"]
        assert row["time_range"] == "1s"
    await connection.close()
    _, health = await asyncio.to_thread(ask, target, "/api/health/")
    assert (health["status"], health["minutes_ago"], health["model_count"]) == ("healthy", 0, 1)
    _, history = await asyncio.to_thread(ask, target, "/api/metrics/history/?model_name=cardinality-3")
    assert [row["model"] for row in history["data"]] == ["cardinality-3"]
    assert len(history["data"][0]["data_points"]) == 11


def test_both_plans_of_a_query(target: Proxy) -> None:
    _, found = ask(target, "/api/memory?search=customers")
    key = found["queries"][0]["key"]
    status, pair = ask(target, f"/api/memory/{key}/plans", {"analyze": True})
    assert status == 200, pair
    assert pair["arm"] == "no_hashjoin"
    assert "Hash Join" in json.dumps(pair["plain"])
    assert "Hash Join" not in json.dumps(pair["steered"])
    assert pair["steered"]["advice"]

    def steps(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for child in node["children"]:
            yield from steps(child)

    assert all(step["actual"] is not None for step in steps(pair["plain"]["root"]))
    assert any(step["differs"] for step in steps(pair["steered"]["root"]))
    assert pair["plain"]["time_ms"] > 0
    status, refused = ask(target, f"/api/memory/{key}/plans", {"text": "DROP TABLE items"})
    assert status == 409
    assert "to the letter" in refused["detail"]


def test_the_mode_and_the_settings_are_switched(target: Proxy) -> None:
    assert ask(target, "/api/mode", {"mode": "off", "why": "an incident", "actor": "anna"})[1]["mode"] == "off"
    target.wait_log("an incident")
    assert ask(target, "/api/status")[1]["mode"] == "off"
    target.write_config(pool_overflow=1, listen_backlog=99)
    status, outcome = ask(target, "/api/reload", {})
    assert status == 200
    assert outcome["changed"] == ["pool_overflow"]
    assert outcome["restart"] == ["listen_backlog"]
    target.write_config(pool_overflow="many")
    status, refused = ask(target, "/api/reload", {})
    assert status == 409
    assert "pool_overflow" in refused["detail"]
    target.write_config(pool_overflow=0, listen_backlog=None)
    assert ask(target, "/api/reload", {})[0] == 200
    assert ask(target, "/api/mode")[1]["mode"] == "off"
    assert ask(target, "/api/mode", {"mode": "on"})[1]["mode"] == "on"


def test_a_model_is_described_pinned_and_released(target: Proxy) -> None:
    folder = Path(str(target.settings["models"]))
    wait_until(lambda: ask(target, "/api/models")[0] == 200, 20)
    constant_model(folder, version="2.0.0")

    def serving(path: str, body: dict[str, Any]) -> list[str]:
        status, found = ask(target, path, body)
        assert status == 200, found
        return [model["version"] for model in found["models"] if model["state"] == "active"]

    assert serving("/api/models/reload", {}) == ["2.0.0"]
    status, described = ask(target, "/api/models/times-e2.onnx")
    assert status == 200
    assert described["manifest"]["version"] == "2.0.0"
    assert ask(target, "/api/models/store.db")[0] == 404
    assert ask(target, "/api/models/..%2F..%2Fetc%2Fpasswd")[0] == 404
    assert serving("/api/models/choice", {"action": "rollback"}) == ["1.0.0"]

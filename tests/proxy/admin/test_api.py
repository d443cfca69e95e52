"""The JSON API over a made-up instance: what each page gives, refuses, and who may ask."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from proxy.admin.shell import is_local_name
from proxy.admin.source import BreakerNow, Client, Latencies, ModelStatus, PlannerStatus, Reloaded
from tests.proxy.admin.instance import KEY, NOON, Instance, client, latency

SOMEBODY = Client("0.1", "app", "shop", "web", "10.0.0.1:5", False, False, NOON, "idle", 0.0, 77)


async def get(instance: Instance, path: str, status: int = 200) -> Any:
    async with client(instance) as http:
        answer = await http.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


async def post(instance: Instance, path: str, status: int = 200, **body: Any) -> Any:
    async with client(instance) as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_body_that_is_not_said_to_be_json_is_told_so() -> None:
    async with client(Instance()) as http:
        answer = await http.post("/api/mode", content='{"mode": "off"}')
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]


# --- status


async def test_a_healthy_instance_says_so() -> None:
    instance = Instance()
    instance.planner = PlannerStatus(ready=True, models=(ModelStatus("m", "cardinality", "m", "1", "active"),))
    found = await get(instance, "/api/status")
    assert (found["health"], found["trouble"]) == ("healthy", [])
    assert found["gain"] == {
        "since": found["gain"]["since"],
        "saved_s": 120.0,
        "lost_s": 3.0,
        "regressions": 1,
        "known": True,
    }


@pytest.mark.parametrize(
    ("changes", "health", "words"),
    [
        ({"reachable": False}, "unhealthy", "cannot be reached"),
        ({"responding": 0}, "unhealthy", "No worker process"),
        ({"responding": 1}, "degraded", "1 of the worker"),
        ({"draining": True}, "degraded", "stopping"),
        ({"planner": PlannerStatus(ready=True, store="no space is left")}, "degraded", "no space is left"),
        ({"totals": {"paused": 1}}, "unhealthy", "PAUSE is in force"),
        ({"planner": PlannerStatus(ready=False)}, "degraded", "planner process"),
        ({"planner": PlannerStatus(ready=True, catalog_age_s=1e6)}, "degraded", "catalog"),
        ({"planner": PlannerStatus(ready=True)}, "degraded", "No model serves"),
    ],
)
async def test_what_is_wrong_is_said(changes: dict[str, Any], health: str, words: str) -> None:
    instance = Instance()
    for name, value in changes.items():
        setattr(instance, name, value)
    found = await get(instance, "/api/status")
    assert found["health"] == health
    assert any(words in one["text"] for one in found["trouble"])


async def test_the_accuracy_of_row_counts_is_told_where_it_is_known() -> None:
    instance = Instance()
    assert (await get(instance, "/api/status"))["accuracy"] == []
    instance.totals = {"root_q_error{2.0}": 8, "root_q_error_server{100.0}": 8, "sub_plan_q_error{1.1}": 0}
    (found,) = (await get(instance, "/api/status"))["accuracy"]
    assert (found["what"], found["count"]) == ("statements", 8)
    assert 1.5 < found["model"] <= 2.0
    assert 30.0 < found["server"] <= 100.0


async def test_models_are_graded_by_the_settings() -> None:
    instance = Instance(latency_good_ms=10, latency_warning_ms=20)
    rows = [latency(str(p95), p95=p95) for p95 in (9.9, 10.0, 19.9, 20.0)]
    instance.latest = Latencies((*rows, latency("none", "unsteered_latency", 5.0)), NOON)
    found = await get(instance, "/api/status")
    assert [row["grade"] for row in found["models"]] == ["good", "warning", "warning", "danger", None]


async def test_a_store_that_is_away_is_a_word_and_no_failure() -> None:
    instance = Instance()
    instance.memory.away = "The store does not answer."
    found = await get(instance, "/api/status")
    assert (found["health"], found["gain"]) == ("degraded", None)
    assert (await get(instance, "/api/decisions"))["unavailable"] == "The store does not answer."
    assert await get(instance, "/api/ledger", 503) == {"detail": "The store does not answer."}


# --- connections and settings


async def test_clients_come_in_pages_and_are_ended() -> None:
    instance = Instance()
    instance.connected = [replace(SOMEBODY, id=f"0.{number}") for number in range(1, 6)]
    seen = []
    after = ""
    while True:
        page = await get(instance, f"/api/clients?limit=2&after={after}")
        seen += [row["id"] for row in page["clients"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    assert await post(instance, "/api/clients/0.3/kill") == {"killed": "0.3"}
    await post(instance, "/api/clients/9.9/kill", 404)
    await post(instance, "/api/clients/all/kill", 422)
    assert instance.killed == ["0.3", "9.9"]


async def test_pools_are_listed() -> None:
    (pool,) = (await get(Instance(), "/api/pools"))["pools"]
    assert (pool["user"], pool["clients"]) == ("app", 3)


async def test_settings_are_shown_without_secrets() -> None:
    instance = Instance(upstream_password="geheim1", admin_token="geheim2", pool_size=3)
    found = await get(instance, "/api/settings")
    assert "geheim" not in json.dumps(found)
    by_name = {row["name"]: row for row in found["settings"]}
    assert by_name["upstream_password"]["value"] == by_name["admin_token"]["value"] == "********"
    assert (by_name["pool_size"]["value"], by_name["pool_size"]["changed"]) == (3, True)
    assert by_name["pool_overflow"]["changed"] is False
    assert all(row["description"] and row["group"] for row in found["settings"])


async def test_the_mode_is_switched_to_one_that_there_is() -> None:
    instance = Instance()
    modes = (await get(instance, "/api/mode"))["modes"]
    assert {"on", "shadow", "observe", "off"} <= set(modes)
    assert (await post(instance, "/api/mode", mode="observe", why="an incident"))["mode"] == "observe"
    answer = await post(instance, "/api/mode", 422, mode="sideways")
    assert "sideways" in answer["detail"]
    await post(instance, "/api/mode", 422)
    assert instance.settings.mode == "observe"


async def test_a_reload_says_what_became_of_it() -> None:
    instance = Instance()
    assert (await post(instance, "/api/reload"))["changed"] == ["pool_size"]
    instance.reloaded = Reloaded(refused="pool_size: not a number")
    assert (await post(instance, "/api/reload", 409))["detail"] == "pool_size: not a number"


# --- models


async def test_models_are_described_and_chosen() -> None:
    instance = Instance()
    instance.planner = PlannerStatus(ready=True, models=(ModelStatus("m.onnx", "cardinality", "m", "1", "active"),))
    assert (await get(instance, "/api/models/m.onnx"))["ok"] is True
    await get(instance, "/api/models/other.onnx", 404)
    assert (await post(instance, "/api/models/choice", action="rollback"))["models"][0]["name"] == "m"
    assert "nobody" in (await post(instance, "/api/models/choice", 409, action="activate", model="nobody"))["detail"]
    await post(instance, "/api/models/choice", 422, action="activate", model="--models=/etc")
    await post(instance, "/api/models/choice", 422, action="delete")


# --- memory and ledger


async def test_the_memory_is_listed_shown_and_judged() -> None:
    instance = Instance()
    found = await get(instance, "/api/memory?order=lost&limit=5&state=approved&database=shop&search=SELECT")
    assert (found["total"], found["queries"][0]["key"]) == (1, KEY)
    assert instance.memory.asked[-1] == ("queries", "lost", 0, 5, "approved", "shop", "SELECT")
    assert (await get(instance, f"/api/memory/{KEY}"))["query"]["text"] == "SELECT 1"
    await get(instance, f"/api/memory/{'00' * 16}", 404)
    await post(instance, f"/api/memory/{KEY}", action="freeze", actor="anna", why="slow on Mondays")
    assert ("decide", KEY, "freeze", "", "anna", "slow on Mondays") in instance.memory.asked
    assert (await post(instance, f"/api/memory/{KEY}", 409, action="approve"))["detail"] == "name the arm"
    assert (await post(instance, f"/api/memory/{KEY}/plans"))["plain"]["root"]["name"] == "Seq Scan t"


async def test_circuit_breakers_are_shown_and_closed() -> None:
    instance = Instance()
    instance.memory.switched_off = [
        BreakerNow("everything", "everything", "closed", None, 0, 3), BreakerNow("m-1", "use", "open", NOON, 0, 0),
    ]  # fmt: skip
    assert [row["source"] for row in (await get(instance, "/api/breakers"))["breakers"]] == ["everything", "m-1"]
    status = await get(instance, "/api/status")
    assert [row["source"] for row in status["breakers"]] == ["m-1"]
    assert status["health"] == "degraded"
    assert "What was approved of m-1 is switched off until" in status["trouble"][-1]["text"]
    found = await post(instance, "/api/breakers", source="m-1", actor="anna", why="mended")
    assert {row["position"] for row in found["breakers"]} == {"closed"}
    assert ("close", "m-1", "", "anna", "mended") in instance.memory.asked
    assert (await get(instance, "/api/status"))["health"] == "healthy"
    await post(instance, "/api/breakers", 404, source="m-2")
    for wrong in ({}, {"source": ""}, {"source": "m-1", "covers": "all"}, {"source": "m-1", "action": "open"}):
        await post(instance, "/api/breakers", 422, **wrong)


async def test_the_ledger_is_paged_backwards() -> None:
    instance = Instance()
    seen: list[int] = []
    before = ""
    while True:
        page = await get(instance, f"/api/ledger?limit=4{before}")
        seen += [row["id"] for row in page["entries"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert seen == list(range(9, 0, -1))


@pytest.mark.parametrize(
    "path",
    [
        "/api/memory?limit=0", "/api/memory?limit=501", "/api/memory?offset=-1", "/api/memory?order=random",
        "/api/memory?state=sleeping", "/api/memory/not-a-key", "/api/ledger?kind=gossip", "/api/ledger?before=0",
        "/api/ledger?limit=1001", "/api/ledger?key=x", "/api/decisions?limit=0", "/api/clients?limit=0",
        "/api/clients?after=x",
    ],
)  # fmt: skip
async def test_bad_parameters_are_refused(path: str) -> None:
    assert (await get(Instance(), path, 422))["detail"]


# --- who may ask

GUARDED = ["/api/status", "/api/metrics/", "/api/metrics/p95/", "/api/health/", "/api/models", "/api/openapi.json",
           "/api/memory", "/api/ledger", "/api/clients", "/api/pools", "/api/settings", "/api/decisions",
           "/metrics"]  # fmt: skip


async def test_every_page_with_data_wants_the_token() -> None:
    instance = Instance()
    async with client(instance, "s3cret") as http:
        schema = (await http.get("/api/openapi.json", headers={"Authorization": "Bearer s3cret"})).json()
        for path, ways in schema["paths"].items():
            for way in ways:
                answer = await http.request(
                    way, path.replace("{key}", KEY).replace("{client}", "0.1"), json={"mode": "off"}
                )
                assert answer.status_code == (200 if path in ("/healthz", "/readyz") else 401), (way, path)
        for path in GUARDED:
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers={"Authorization": "Bearer s3cre"})).status_code == 401
            assert (await http.get(path, headers={"Authorization": "Basic s3cret"})).status_code == 401
            assert (await http.get(path, headers={"Authorization": "Bearer s3cret"})).status_code in (200, 503)
        assert (await http.get("/console/")).status_code == 200
    assert instance.settings.mode == "on"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:9432", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example:9432", "Origin": "http://evil.example:9432"}, 403),
    ],
)
async def test_a_page_from_elsewhere_changes_nothing(headers: dict[str, str], status: int) -> None:
    instance = Instance()
    async with client(instance, base_url="http://127.0.0.1:9432") as http:
        answer = await http.post("/api/mode", json={"mode": "off"}, headers=headers)
    assert answer.status_code == status
    assert (instance.settings.mode == "off") == (status == 200)


async def test_a_foreign_name_reads_nothing() -> None:
    async with client(Instance(), base_url="http://evil.example:9432") as http:
        assert (await http.get("/api/status")).status_code == 403
        assert (await http.get("/healthz")).status_code == 200
    async with client(Instance(), "s3cret", base_url="http://proxy.example:9432") as http:
        answer = await http.get("/api/status", headers={"Authorization": "Bearer s3cret"})
        assert answer.status_code == 200


def test_names_of_this_machine() -> None:
    for host in ("127.0.0.1:9432", "[::1]:9432", "10.1.2.3", "localhost:1", "db", "x.localhost."):
        assert is_local_name(host), host
    for host in ("evil.example:9432", "127.0.0.1.evil.example", "localhost.evil.example", "[::1"):
        assert not is_local_name(host), host


async def test_headers_keep_a_browser_to_our_own_files() -> None:
    async with client(Instance()) as http:
        page, data = await http.get("/console/"), await http.get("/api/mode")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in policy
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert data.headers["cache-control"] == "no-store"
    assert data.headers["x-content-type-options"] == "nosniff"


async def test_a_long_body_is_not_kept() -> None:
    async def endless() -> Any:
        for _ in range(1000):
            yield b"x" * 10_000

    async with client(Instance()) as http:
        answer = await http.post("/api/mode", content=endless())
    assert answer.status_code == 413


async def test_the_schema_needs_nothing_from_elsewhere() -> None:
    schema = await get(Instance(), "/api/openapi.json")
    assert {"/api/metrics/", "/api/metrics/p95/", "/api/metrics/history/", "/api/health/"} <= schema["paths"].keys()
    assert all(way["description"] for ways in schema["paths"].values() for way in ways.values())
    assert isinstance(httpx.Response(200, json=schema).json(), dict)

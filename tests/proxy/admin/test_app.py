"""The admin pages over a made-up instance."""

from __future__ import annotations

import asyncio
import logging
import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin.app import create_app
from proxy.admin.server import AdminServer
from proxy.admin.source import ModelStatus, PlannerStatus
from proxy.declared_metrics import PREFIX, declared
from tests.proxy.admin.instance import Instance, client


async def test_metrics_are_what_prometheus_reads() -> None:
    async with client(Instance()) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {f"{PREFIX}{metric.name}" for metric in declared()} == families.keys()
    assert all(family.documentation for family in families.values())
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["pilotwire_statements_total",] == 7
    assert samples["pilotwire_pinned_total", "listen"] == 2
    assert samples["pilotwire_backends_opened_total", "direct"] == 0
    assert samples["pilotwire_worker_restarts_total",] == 3
    assert samples["pilotwire_process_resident_memory_bytes", "supervisor"] == 1024
    assert samples["pilotwire_statement_latency_seconds_bucket", "0.00025"] == 1
    assert samples["pilotwire_statement_latency_seconds_bucket", "0.005"] == 2
    assert samples["pilotwire_statement_latency_seconds_bucket", "+Inf"] == 3
    assert samples["pilotwire_statement_latency_seconds_count",] == 3
    assert samples["pilotwire_statement_latency_seconds_sum",] == pytest.approx(100.0032)


async def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    async with client(Instance()) as http:
        answer = await http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert "# UNIT pilotwire_wire_seconds seconds\n" in answer.text


async def test_health_is_about_workers_alone() -> None:
    instance = Instance()
    instance.reachable = False
    async with client(instance) as http:
        assert (await http.get("/healthz")).status_code == 200
        instance.responding = 0
        assert (await http.get("/healthz")).status_code == 503


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("ready", 0, "no worker accepts clients"),
        ("draining", True, "the instance is stopping"),
        ("reachable", False, "the upstream cannot be reached"),
    ],
)
async def test_readiness_says_why_not(attribute: str, value: object, reason: str) -> None:
    instance = Instance()
    async with client(instance) as http:
        assert (await http.get("/readyz")).status_code == 200
        setattr(instance, attribute, value)
        answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [reason]


async def test_with_a_token_only_the_probes_are_open() -> None:
    async with client(Instance(), "s3cret") as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get("/metrics", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_models_and_the_planner_process() -> None:
    instance = Instance()
    async with client(instance, "s3cret") as http:
        assert (await http.post("/api/models/reload")).status_code == 401
        http.headers["Authorization"] = "Bearer s3cret"
        for answer in (await http.get("/api/models"), await http.post("/api/models/reload")):
            assert (answer.status_code, answer.json()) == (503, {"error": "steering is off"})
        model = ModelStatus("m.onnx", "cardinality", "sales", "1.0.0", "active")
        instance.planner = PlannerStatus(True, 2048, 3, 7.5, 1, (model,))
        instance.totals |= {"planner_decisions{no_join}": 4, "planner_decision{0.001}": 2, "planner_decision_sum": 0.5}
        for answer in (await http.get("/api/models"), await http.post("/api/models/reload")):
            assert answer.json()["models"][0]["name"] == "sales"
        text = (await http.get("/metrics")).text
    for line in (
        'pilotwire_planner_decisions_total{reason="no_join"} 4.0',
        'pilotwire_planner_decision_seconds_bucket{le="0.0025"} 2.0',
        "pilotwire_planner_decision_seconds_sum 0.5",
        "pilotwire_planner_catalog_age_seconds 7.5",
        'pilotwire_model_info{model="sales-1.0.0"} 1.0',
        'pilotwire_process_resident_memory_bytes{process="planner"} 2048.0',
    ):
        assert line in text


async def test_the_server_leaves_the_socket_open_and_logging_alone() -> None:
    before = list(logging.getLogger().handlers)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        server = AdminServer(create_app(Instance()), sock)
        await server.start()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/healthz"
        async with httpx.AsyncClient() as http:
            assert (await http.get(url)).status_code == 200
        await server.stop()
        await server.stop()
        # Somebody else can serve the very same socket.
        again = AdminServer(create_app(Instance()), sock)
        await again.start()
        async with httpx.AsyncClient() as http:
            assert (await http.get(url)).status_code == 200
            again.retire()
            # A connection that is open is served for a moment yet.
            assert (await http.get(url)).status_code == 200
        await asyncio.wait_for(again.stop(), 5)
    assert logging.getLogger().handlers == before

"""Traces and the slow-statement log of a real proxy in front of a real server, with a collector that keeps spans."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import asyncpg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from proxy.logs import Log
from proxy.settings import ProxySettings
from proxy.tracing import EXPORT_SECONDS, MAX_QUEUE, Tracer, parent_of
from tests.conftest import StartProxy
from tests.proxy.steering.planner import ScriptedPlanner, scripted_planner
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
JOIN = "SELECT l.relname FROM pg_class l JOIN pg_namespace n ON n.oid = l.relnamespace JOIN pg_am a ON a.oid = l.relam"


class Collector:
    """Takes spans by OTLP over HTTP, and keeps each as a plain dictionary."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.service = ""
        spans = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    spans.service = names["service.name"]
                    spans.spans += [_plain(span) for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, marker: str) -> dict[str, Any]:
        """The one span whose statement has that word."""
        (found,) = [span for span in self.spans if marker in str(span.get("db.query.text"))]
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _plain(span: Any) -> dict[str, Any]:
    values = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
    ids = {"trace": span.trace_id.hex(), "parent": span.parent_span_id.hex(), "name": span.name}
    return {**values, **ids, "ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6, "status": span.status}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def planner() -> Iterator[ScriptedPlanner]:
    with scripted_planner() as made:
        yield made


@pytest.fixture(scope="module")
def traced(module_proxy: StartProxy, collector: Collector, planner: ScriptedPlanner) -> Proxy:
    started = module_proxy(
        workers=1, otel_endpoint=collector.endpoint, log_slow_ms=0, log_format="json", steer_min_joins=2,
        planner_socket=str(planner.path), steer_deadline_ms=5000,
    )  # fmt: skip
    planner.wait_connected(1)
    return started


def slow(proxy: Proxy, marker: str) -> dict[str, Any]:
    """The one line about a slow statement with that word."""
    events = [json.loads(line) for line in proxy.log_text().splitlines() if line.startswith("{")]
    found: list[dict[str, Any]] = [line for line in events if marker in line.get("statement", "")]
    assert [line["event"] for line in found] == ["slow_statement"]
    return found[0]


async def test_a_steered_statement_below_the_clients_own_span(
    traced: Proxy, collector: Collector, planner: ScriptedPlanner
) -> None:
    planner.reset()
    planner.steer("/*+ Set(enable_hashjoin off) */ ", arm="no_hashjoin", dialect="hint_plan")
    planner.delay = 0.05
    client = await asyncpg.connect(traced.dsn(), server_settings={"application_name": "shop"})
    try:
        text = f"{JOIN} WHERE l.relname = 'pg_class' /*traceparent='00-{TRACE}-{SPAN}-01'*/"
        assert [row["relname"] for row in await client.fetch(text)] == ["pg_class"]
        await eventually(lambda: any("pg_namespace" in str(span) for span in collector.spans), what="the span comes")
    finally:
        await client.close()
    span = collector.of("pg_namespace")
    assert (span["trace"], span["parent"], span["name"]) == (TRACE, SPAN, "SELECT")
    assert span["pilotwire.decision"] == "steered"
    assert (span["pilotwire.arm"], span["pilotwire.model"]) == ("no_hashjoin", "test-1")
    assert span["pilotwire.dialect"] == "hint_plan"
    assert span["db.response.returned_rows"] == 1
    assert span["ms"] >= span["pilotwire.server_ms"] + 40
    assert span["pilotwire.held_up_ms"] >= 40
    assert "'pg_class'" not in str(span)
    assert collector.service == "pilotwire"
    line = slow(traced, "pg_namespace")
    assert line["id"] == span["pilotwire.connection"]
    assert (line["decision"], line["arm"], line["model"]) == ("steered", "no_hashjoin", "test-1")
    assert (line["application"], line["database"]) == ("shop", "postgres")
    assert line["ms"] >= line["waited_ms"] >= 40
    # Every event of the connection has its name.
    ours = [json.loads(text) for text in traced.log_text().splitlines() if line["id"] in text]
    assert {"login", "slow_statement"} <= {event["event"] for event in ours}
    metrics = traced.metrics()
    assert metrics['pilotwire_steering_models_total{model="test-1"}'] == 1
    assert metrics['pilotwire_steering_arms_total{arm="no_hashjoin"}'] == 1
    assert metrics['pilotwire_steering_dialects_total{dialect="hint_plan"}'] == 1
    assert metrics["pilotwire_decision_wait_seconds_count"] == 1
    # The wait is in the one and not in the other, however long the server took on a busy machine.
    assert metrics["pilotwire_server_seconds_sum"] <= metrics["pilotwire_statement_latency_seconds_sum"] - 0.04
    assert metrics["pilotwire_server_seconds_count"] == metrics["pilotwire_statement_latency_seconds_count"]


async def test_statements_that_are_left_alone_and_those_that_fail(
    traced: Proxy, collector: Collector, planner: ScriptedPlanner
) -> None:
    planner.reset()
    client = await asyncpg.connect(traced.dsn())
    try:
        assert await client.fetchval("SELECT 'mark_one' || $1::text", "x") == "mark_onex"
        await client.execute("SELECT mark_two FROM (SELECT 2 AS mark_two) s")
        with pytest.raises(asyncpg.UndefinedColumnError):
            await client.execute(f"{JOIN} WHERE mark_three")
        await client.execute(f"SELECT 4 AS mark_four /*traceparent='00-{TRACE}-{SPAN}-00'*/")
        await client.execute("SELECT 5 AS mark_five")
        await eventually(lambda: any("mark_five" in str(span) for span in collector.spans), what="the spans come")
    finally:
        await client.close()
    assert collector.of("mark_two")["pilotwire.reason"] == "no_join"
    assert not collector.of("mark_two")["parent"]
    failed = collector.of("mark_three")
    assert failed["db.response.status_code"] == "42703"
    assert slow(traced, "mark_three")["sqlstate"] == "42703"
    assert slow(traced, "mark_two")["decision"] == "left_alone"
    # What its client does not sample has no span, but a line in the log.
    assert not any("mark_four" in str(span) for span in collector.spans)
    assert slow(traced, "mark_four")["ms"] > 0
    assert "mark_one" not in traced.log_text()
    metrics = traced.metrics()
    assert metrics['pilotwire_trace_spans_total{outcome="exported"}'] >= 4
    assert metrics['pilotwire_trace_spans_total{outcome="dropped"}'] == 0
    assert metrics["pilotwire_wire_seconds_count"] > 0


async def test_pools_are_told_by_name(traced: Proxy) -> None:
    clients = [await asyncpg.connect(traced.dsn()) for _ in range(2)]
    try:
        assert traced.metrics()['pilotwire_pool_clients{pool="postgres@postgres"}'] == 2
    finally:
        for client in clients:
            await client.close()
    await eventually(
        lambda: 'pilotwire_pool_clients{pool="postgres@postgres"}' not in traced.metrics(), what="it is told no more"
    )


def test_a_collector_that_is_away_costs_spans_and_nothing_else() -> None:
    class Steering:
        text = b"SELECT 1"

    class Talk:
        steering = Steering()

    class Session:
        talk = Talk()
        _steering = None

        class login:  # noqa: N801 (an attribute)
            database = user = peer = id = "x"

    tracer = Tracer(f"http://127.0.0.1:{free_port()}/", 1.0, literals=False, worker=0, log=Log("test", fd=-1))
    session: Any = Session()
    for _ in range(2 * MAX_QUEUE):
        tracer.statement(session, 0.001, b"")
    assert tracer.dropped > 0
    tracer.close()
    assert tracer.exported == 0
    # It would go on until the process ends, and draws random numbers for its retries: Hypothesis minds, in other tests.
    tracer._queue.clear()
    tracer._thread.join(2 * EXPORT_SECONDS)
    assert not tracer._thread.is_alive()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"SELECT 1 /*a='b',traceparent='00-{TRACE}-{SPAN}-01'*/", (int(TRACE, 16), int(SPAN, 16), True)),
        (f"/* traceparent='00-{TRACE}-{SPAN}-00' */ SELECT 1", (int(TRACE, 16), int(SPAN, 16), False)),
        (f"SELECT 'traceparent=''00-{TRACE}-{SPAN}-01'''", None),
        (f"SELECT 1 -- traceparent='00-{TRACE}-{SPAN}-01'", None),
        ("SELECT 1 /*traceparent='00-zz'*/", None),
        (f"SELECT 1 /*traceparent='00-{'0' * 32}-{SPAN}-01'*/", None),
        ("SELECT 1", None),
    ],
)
def test_what_a_comment_names(text: str, expected: tuple[int, int, bool] | None) -> None:
    assert parent_of(text.encode()) == expected


def test_an_endpoint_holds_no_password() -> None:
    values = {"upstream": "postgresql://app@127.0.0.1/shop"}
    assert ProxySettings.model_validate({**values, "otel_endpoint": "http://collector:4318/v1/traces"}).otel_endpoint
    for wrong in ("http://user:secret@collector/", "collector:4318", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="otel_endpoint"):
            ProxySettings.model_validate({**values, "otel_endpoint": wrong})

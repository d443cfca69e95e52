"""The four pages of latencies, shape for shape."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from proxy.admin.latencies import span
from proxy.admin.source import Latencies, ModelStatus, PlannerStatus
from tests.proxy.admin.instance import NOON, Instance, client, latency

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d")


@pytest.fixture
def instance() -> Instance:
    found = Instance()
    found.latest = Latencies(
        (
            latency("cardinality-3", p95=245.674),
            latency("cardinality-3", "inference_latency", 1.25),
            latency("none", "unsteered_latency", 400.0),
            latency("hints-1", p95=90.0, at=NOON + timedelta(minutes=5)),
        ),
        NOON,
    )
    return found


async def test_p95_is_of_the_statements_that_models_steered(instance: Instance) -> None:
    async with client(instance) as http:
        found = (await http.get("/api/metrics/p95/")).json()
    assert list(found) == ["status", "data", "count", "last_updated"]
    assert (found["status"], found["count"]) == ("success", 2)
    assert [(row["model"], row["p95_latency_ms"]) for row in found["data"]] == [
        ("cardinality-3", 245.67),
        ("hints-1", 90.0),
    ]
    assert all(list(row) == ["model", "p95_latency_ms", "collected_at"] for row in found["data"])
    assert all(ISO.fullmatch(moment) for moment in (found["last_updated"], found["data"][0]["collected_at"]))
    assert datetime.fromisoformat(found["last_updated"]) == NOON + timedelta(minutes=5)


async def test_metrics_are_selected_by_name_and_model(instance: Instance) -> None:
    async with client(instance) as http:
        found = (await http.get("/api/metrics/")).json()
        one = (await http.get("/api/metrics/?metric_name=unsteered_latency")).json()
        two = (await http.get("/api/metrics/", params={"model_name": "cardinality-3"})).json()
    assert found["count"] == len(found["data"]) == 4
    assert found["data"][1] == {
        "model": "cardinality-3",
        "p50_latency_ms": 122.84,
        "p95_latency_ms": 245.67,
        "p99_latency_ms": 491.35,
        "collected_at": found["data"][1]["collected_at"],
        "metric_name": "statement_latency",
        "time_range": "5m",
    }
    assert [(row["model"], row["metric_name"]) for row in one["data"]] == [("none", "unsteered_latency")]
    assert {row["metric_name"] for row in two["data"]} == {"statement_latency", "inference_latency"}


async def test_history_is_a_series_for_each_model(instance: Instance) -> None:
    now = datetime.now().astimezone()
    moments = [now - timedelta(minutes=minutes) for minutes in (90, 50, 10)]
    instance.memory.points = [
        latency(model, p95=p95, at=at) for model, p95 in (("b", 2.0), ("a", 1.0)) for at in moments
    ]
    async with client(instance) as http:
        found = (await http.get("/api/metrics/history/?hours=1")).json()
        longer = (await http.get("/api/metrics/history/?hours=2&model_name=a")).json()
    assert list(found) == ["status", "data", "count", "time_range"]
    assert (found["status"], found["count"], found["time_range"]["hours"]) == ("success", 2, 1)
    assert [(row["model"], len(row["data_points"])) for row in found["data"]] == [("a", 2), ("b", 2)]
    assert list(found["data"][0]["data_points"][0]) == ["timestamp", "p95_latency_ms"]
    start, end = (datetime.fromisoformat(found["time_range"][name]) for name in ("start", "end"))
    assert end - start == timedelta(hours=1)
    assert [(row["model"], len(row["data_points"])) for row in longer["data"]] == [("a", 3)]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/metrics/?metric_name=latency", "metric_name"),
        ("/api/metrics/?metrics_name=statement_latency", "metrics_name"),
        ("/api/metrics/p95/?model_name=", "model_name"),
        ("/api/metrics/history/?hours=0", "hours"),
        ("/api/metrics/history/?hours=-1", "hours"),
        ("/api/metrics/history/?hours=1.5", "hours"),
        ("/api/metrics/history/?hours=many", "hours"),
        ("/api/metrics/history/?hours=100000", "hours"),
        (f"/api/metrics/history/?model_name={'x' * 300}", "model_name"),
    ],
)
async def test_a_bad_parameter_is_named(instance: Instance, path: str, name: str) -> None:
    async with client(instance) as http:
        answer = await http.get(path)
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert detail["loc"] == ["query", name]
    assert detail["msg"]


async def test_without_a_slash_they_are_found_too(instance: Instance) -> None:
    async with client(instance) as http:
        answer = await http.get("/api/metrics/p95", follow_redirects=True)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("age", "responding", "status"),
    [(10, 2, "healthy"), (600, 2, "healthy"), (800, 2, "degraded"), (10, 1, "degraded"), (2000, 2, "unhealthy"),
     (10, 0, "unhealthy"), (None, 2, "unhealthy")],
)  # fmt: skip
async def test_health_follows_the_collection_and_the_workers(
    instance: Instance, age: int | None, responding: int, status: str
) -> None:
    at = None if age is None else datetime.now().astimezone() - timedelta(seconds=age)
    instance.latest = replace(instance.latest, collected=at)
    instance.responding = responding
    instance.planner = PlannerStatus(
        ready=True,
        models=(ModelStatus("m.onnx", "cardinality", "m", "1", "active"), ModelStatus("b", "", "", "", "refused")),
    )
    async with client(instance) as http:
        found = (await http.get("/api/health/")).json()
    assert list(found) == ["status", "last_collection", "minutes_ago", "model_count"]
    assert (found["status"], found["model_count"]) == (status, 1)
    assert found["minutes_ago"] == (None if age is None else age // 60)


def test_a_span_of_time_in_short() -> None:
    assert [span(seconds) for seconds in (300, 3600, 5400, 90, 1, 0.5)] == ["5m", "1h", "90m", "90s", "1s", "0.5s"]

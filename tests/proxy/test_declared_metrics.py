"""The one list of metrics: complete, documented, and true to what is counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pilotwire.metrics_reference import reference
from planner import accuracy, counters
from proxy import declared_metrics
from proxy.admin.source import PlannerStatus, Status
from proxy.declared_metrics import PREFIX, Histogram, Unit, declared

ROOT = Path(__file__).resolve().parents[2]
COUNTED = re.compile(r"counters\.(?:add|observe|observe_in)\(\s*\"([a-z_]+)\"")


def test_each_has_a_name_of_its_own_a_help_and_a_unit() -> None:
    found = list(declared())
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.help.endswith(".")
        assert one.unit in get_args(Unit)
        if one.unit in ("seconds", "bytes"):
            assert one.name.endswith(f"_{one.unit}")
        if isinstance(one, Histogram):
            assert list(one.bounds) == sorted(one.bounds)


def test_what_the_planner_process_counts_is_declared() -> None:
    texts = [file.read_text() for file in (ROOT / "planner").rglob("*.py")]
    names = {name for text in texts for name in COUNTED.findall(text)}
    known = {one.attribute for one in declared_metrics.PLANNER_COUNTERS}
    known |= {one.attribute for one in declared_metrics.PLANNER_HISTOGRAMS}
    assert len(names) > 10
    assert names <= known
    # Others are told by a variable, or counted by the supervisor.
    assert all(
        any(f'"{name.removesuffix("_server")}"' in text for text in texts) for name in known - {"planner_restarts"}
    )


def test_the_planner_process_has_the_same_buckets() -> None:
    assert counters.BOUNDS == declared_metrics.DECISION_BOUNDS
    assert counters.LOAD_BOUNDS == declared_metrics.LOAD_BOUNDS
    assert accuracy.Q_ERROR_BOUNDS == declared_metrics.Q_ERROR_BOUNDS


def test_what_is_read_of_a_status_is_there() -> None:
    assert {one.attribute for one in declared_metrics.SUPERVISOR_METRICS} <= set(Status.__slots__)
    assert {one.attribute for one in declared_metrics.PLANNER_GAUGES} <= set(PlannerStatus.__slots__)


def test_the_documentation_is_up_to_date_and_complete() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == reference(), "run: pilotwire metrics-reference > docs/metrics.md"
    assert all(f"`{PREFIX}{one.name}" in written for one in declared())


def test_nobody_else_makes_metrics() -> None:
    packages = ("proxy", "pilotwire", "planner", "model_runtime", "training")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    assert [file.name for file in files if "prometheus_client" in file.read_text()] == ["exposition.py"]

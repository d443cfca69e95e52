"""docs/metrics.md, made from the metrics' own declarations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy import declared_metrics
from proxy.declared_metrics import PREFIX, Histogram, Metric

_HEAD = """\
# Metrics

<!-- Written by `pilotwire metrics-reference > docs/metrics.md`; change proxy/declared_metrics.py instead. -->

`GET /metrics` on the admin port gives all of these, for the whole instance: the supervisor adds up what its workers and
its planner process count. A counter never falls, not when a process dies, not when a new instance takes over. A label
has at most some forty values, what comes after them is `other`. Alerts and what to do about them are in
[operating.md](operating.md); `deploy/prometheus` has the rules, `deploy/grafana` a dashboard.
"""
_SECTIONS: Final[tuple[tuple[str, str, tuple[Metric | Histogram, ...]], ...]] = (
    ("Clients, pools, statements, steering", "Counted by each worker and added up.",
     (*declared_metrics.WORKER_METRICS, *declared_metrics.DATABASE_METRICS, *declared_metrics.WORKER_HISTOGRAMS)),
    ("The instance", "Known by the supervisor.", declared_metrics.SUPERVISOR_METRICS),
    ("Decisions, models, memory, store", "Of the planner process.",
     (*declared_metrics.PLANNER_COUNTERS, *declared_metrics.PLANNER_HISTOGRAMS, *declared_metrics.PLANNER_GAUGES,
      declared_metrics.MODEL_INFO)),
)  # fmt: skip


def reference() -> str:
    """The whole document."""
    return "\n".join([_HEAD, *(_section(title, words, found) for title, words, found in _SECTIONS)])


def _section(title: str, words: str, found: Iterable[Metric | Histogram]) -> str:
    rows = [f"## {title}\n", f"{words}\n", "| metric | kind | unit | label | what it says |", "|---|---|---|---|---|"]
    for one in found:
        if isinstance(one, Histogram):
            rows.append(f"| `{PREFIX}{one.name}` | histogram | {one.unit} | | {one.help} |")
        else:
            label = f"`{one.label}`" if one.label else ""
            rows.append(f"| `{one.series[0]}` | {one.kind} | {one.unit} | {label} | {one.help} |")
    return "\n".join([*rows, ""])


def metrics_reference() -> None:
    """Print the document."""
    print(reference(), end="")

"""What a run of the steering benchmark has found: raw timings as JSON, tables for people, and the promises."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.ratios import Verdict
from benchmarks.report import head, show_verdicts
from benchmarks.steer_truth import SubPlan, q_errors
from training.evaluate.measure import SLACK_MS, Series, Summary, summarise

KINDS: Final = ("direct", "plain", "steered", "true rows")
"""PostgreSQL itself; through the proxy with steering off; steered; PostgreSQL itself with the true rows in hints."""
BASELINE: Final = "direct"
GEOMETRIC_MEAN: Final = 1.25
TOTAL_WITHOUT_TWO: Final = 1.15
PROMISED: Final = "travel_se"


@dataclass(slots=True)
class Measured:
    """One query of a data set. ``reason`` is why the planner left it alone, "" when it got advice."""

    name: str
    sql: str
    reason: str
    series: dict[str, Series]
    changed: bool

    def pair(self, kind: str) -> tuple[float, float]:
        return self.series[BASELINE].ms, self.series[kind].ms

    @property
    def timed_out(self) -> bool:
        return any(series.timeouts for series in self.series.values())


@dataclass(slots=True)
class SetResults:
    """One data set. ``training`` is what `pilotwire train` reported."""

    name: str
    inputs: dict[str, str]
    model_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    queries: list[Measured] = field(default_factory=list)
    sub_plans: list[SubPlan] = field(default_factory=list)
    uncounted: int = 0

    def summary(self, kind: str, *, timeouts: bool = True) -> Summary | None:
        """Of one kind against `BASELINE`; without the queries that ran into the time limit if asked so."""
        chosen = [one for one in self.queries if kind in one.series and (timeouts or not one.timed_out)]
        if not chosen:
            return None
        return summarise([one.pair(kind) for one in chosen], sum(one.timed_out for one in chosen))

    def reasons(self) -> Counter[str]:
        return Counter(one.reason or "advised" for one in self.queries)

    def verdicts(self) -> list[Verdict]:
        """What was promised of blind steering with the model alone: the gain on `PROMISED`, the rest on both."""
        found = self.summary("steered")
        if found is None:
            return []
        never = Verdict(f"{self.name}: more than twice slower", found.over_2, 0, "queries")
        if self.name != PROMISED:
            return [never]
        return [
            Verdict(f"{self.name}: geometric mean", found.geometric_mean, GEOMETRIC_MEAN, "x", True),
            Verdict(
                f"{self.name}: total without the two largest", found.total_without_two, TOTAL_WITHOUT_TWO, "x", True
            ),
            never,
        ]


@dataclass(slots=True)
class Results:
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    sets: list[SetResults] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)
    cost_verdicts: list[Verdict] = field(default_factory=list)
    complete: bool = False

    def verdicts(self) -> list[Verdict]:
        return [verdict for one in self.sets for verdict in one.verdicts()] + self.cost_verdicts

    def as_json(self) -> str:
        content = {
            **head(self),
            "sets": [_set_json(one) for one in self.sets],
            "costs": self.costs,
        }
        return json.dumps(content, indent=1) + "\n"


def _set_json(found: SetResults) -> dict[str, Any]:
    summaries = {}
    for kind in KINDS[1:]:
        for timeouts in (True, False):
            summary = found.summary(kind, timeouts=timeouts)
            if summary is not None:
                summaries[kind if timeouts else f"{kind}, without timeouts"] = asdict(summary)
    return {
        "name": found.name,
        "inputs": found.inputs,
        "model_sha256": found.model_sha256,
        "training": found.training,
        "summaries": summaries,
        "reasons": dict(found.reasons()),
        "q_errors": q_errors(found.sub_plans),
        "uncounted_sub_plans": found.uncounted,
        "queries": [asdict(one) for one in found.queries],
        "sub_plans": [asdict(one) for one in found.sub_plans],
    }


def show(results: Results, console: Console) -> None:
    """Every table that has something in it, the promises last."""
    for one in results.sets:
        if one.queries:
            _show_queries(one, console)
            _show_summaries(one, console)
            _show_q_errors(one, console)
    if results.costs:
        _show_costs(results.costs, console)
    show_verdicts(results.verdicts(), console)


def _show_queries(found: SetResults, console: Console) -> None:
    table = Table(title=f"{found.name}: medians in ms, slowest first", title_justify="left")
    table.add_column("query", max_width=40, no_wrap=True)
    for kind in KINDS:
        table.add_column(kind, justify="right")
    table.add_column("factor", justify="right")
    table.add_column("true rows", justify="right")
    table.add_column("advice", no_wrap=True)
    for one in sorted(found.queries, key=lambda one: -one.series[BASELINE].ms):
        factors = []
        for kind in ("steered", "true rows"):
            if kind not in one.series:
                factors.append(Text("-", style="dim"))
                continue
            before, after = one.pair(kind)
            slower = after > 1.1 * before and after > SLACK_MS
            style = "green" if before > 1.1 * after else "red" if slower else ""
            factors.append(Text(f"{before / after:.2f}", style=style))
        times = [f"{one.series[kind].ms:,.1f}" if kind in one.series else "-" for kind in KINDS]
        table.add_row(one.name, *times, *factors, one.reason or ("new plan" if one.changed else "same plan"))
    console.print(table)


def _show_summaries(found: SetResults, console: Console) -> None:
    table = Table(title=f"{found.name}: against PostgreSQL itself", title_justify="left")
    names = (
        "kind", "queries", "direct s", "s", "total", "without two largest", "geometric mean", "p50 ms", "p95 ms",
        "p99 ms", "> 1.1x slower", "> 2x slower", "worst",
    )  # fmt: skip
    for name in names:
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in KINDS[1:]:
        for timeouts in (True, False):
            summary = found.summary(kind, timeouts=timeouts)
            if summary is None or (not timeouts and not found.summary(kind).timeouts):  # type: ignore[union-attr]
                continue
            table.add_row(
                kind if timeouts else f"{kind}, no timeouts",
                str(summary.statements),
                f"{summary.plain_ms / 1000:.2f}",
                f"{summary.steered_ms / 1000:.2f}",
                f"{summary.total:.2f}",
                f"{summary.total_without_two:.2f}",
                f"{summary.geometric_mean:.2f}",
                *(f"{before:,.0f} → {after:,.0f}" for before, after in summary.percentiles.values()),
                str(summary.over_1_1),
                str(summary.over_2),
                f"{summary.worst:.2f}",
            )
    console.print(table)
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons().most_common())
    console.print(f"{found.name}: {len(found.queries)} queries: {reasons}")


def _show_q_errors(found: SetResults, console: Console) -> None:
    errors = q_errors(found.sub_plans)
    if not errors:
        return
    table = Table(title=f"{found.name}: q-errors of {len(found.sub_plans)} sub-plans", title_justify="left")
    table.add_column("")
    for name in errors:
        table.add_column(name, justify="right")
    for at, label in enumerate(("PostgreSQL's arithmetic", "with the model")):
        table.add_row(label, *(f"{pair[at]:,.2f}" for pair in errors.values()))
    console.print(table)
    if found.uncounted:
        console.print(f"{found.uncounted} sub-plans could not be counted in time")


def _show_costs(costs: dict[str, Any], console: Console) -> None:
    table = Table(title="What a decision costs", title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for name, value in costs.items():
        table.add_row(name, f"{value:,.2f}" if isinstance(value, float) else str(value))
    console.print(table)

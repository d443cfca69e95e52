"""One HTML page of an evaluation: the answer on its first screen, the evidence below, nothing loaded from elsewhere.

The template and its styles are package data; the plots are inline SVG (`charts`). Everything that comes from the
database or the queries is escaped by the template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

from training.errors import TrainingError
from training.evaluate import charts
from training.evaluate.charts import Axis, Chart, nice_log
from training.evaluate.measure import SLACK_MS, SLOWER, percentile, slowdown
from training.evaluate.results import (
    ARM,
    BEST_ARM,
    DEFAULT,
    ONE_SETTING,
    PROXY,
    PROXY_OFF,
    TRUE_ROWS,
    Measured,
    Results,
)
from training.evaluate.verdict import RULES, judge, seconds

TEMPLATE: Final = "report.html.j2"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
LINES: Final = ((DEFAULT, "line plain"), (BEST_ARM, "line s3"), (TRUE_ROWS, "line s2"))
LIST: Final = 2000
"""Rows of the long table; more are in the JSON beside the page."""


def render(results: Results, raw: str = "") -> str:
    """The page. ``raw`` names the file beside it that has every timing. Raises TrainingError without jinja2."""
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise TrainingError("the HTML report needs jinja2: pip install 'pilotwire[train]'") from None
    source = resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    kind, cases = results.main()
    view = {
        "results": results,
        "raw": raw,
        "kind": kind,
        "title": title(results, kind),
        "verdict": judge(results),
        "rules": RULES,
        "slack": SLACK_MS,
        "tiles": _tiles(results, kind, cases),
        "contenders": contenders(results),
        "splits": splits(results),
        "errors": [(one, title(results, one), *results.q_errors(one)) for one in results.models],
        "regressions": _regressions(results),
        "queries": _queries(results, kind)[:LIST],
        "reasons": {title(results, one): results.reasons(one).most_common() for one in results.models},
        "charts": {name: markupsafe.Markup(svg) for name, svg in _charts(results, kind, cases).items() if svg},  # noqa: S704
        "seconds": seconds,
        "number": charts.number,
        "with_plans": any(query.plans for query in results.queries),
    }
    return environment.from_string(source).render(view)


def title(results: Results, kind: str) -> str:
    """A kind as a person calls it."""
    if kind == ONE_SETTING:
        chosen = results.one_setting() or DEFAULT
        return f"one best setting ({'none' if chosen == DEFAULT else chosen.removeprefix(ARM)})"
    return {
        DEFAULT: "PostgreSQL as configured",
        BEST_ARM: "best arm per query",
        TRUE_ROWS: "true cardinalities",
        PROXY_OFF: "through the proxy, off",
        PROXY: "through the proxy",
    }.get(kind, kind)


def contenders(results: Results) -> list[dict[str, Any]]:
    """One row for each kind, against the default on the statements that ran under both."""
    rows = []
    for kind in results.kinds():
        summary = results.summary(kind)
        if summary is not None:
            rows.append({"kind": kind, "title": title(results, kind), "summary": summary})
    return rows


def splits(results: Results) -> list[dict[str, Any]]:
    """One row for each way to divide the statements."""
    rows = []
    for split in results.splits:
        count, errors = results.q_errors(split.kind, split.cases)
        rows.append(
            {
                "split": split,
                "summary": results.summary(split.kind, split.cases),
                "sub_plans": count,
                "errors": errors,
                "training": results.training.get(split.kind),
            }
        )
    return rows


# ---------------------------------------------------------------------- tables


def _tiles(results: Results, kind: str, cases: Sequence[str] | None) -> list[tuple[str, str, str]]:
    """(figure, what it is, how to take it) for the first screen."""
    found = results.summary(kind, cases) if kind else None
    if found is None:
        return []
    return [
        (f"{found.total:.2f}{TIMES}", "as fast in total", f"{seconds(found.plain_ms)} → {seconds(found.steered_ms)}"),
        (f"{found.total_without_two:.2f}{TIMES}", "without the two largest", "whether two statements decide it"),
        (f"{found.geometric_mean:.2f}{TIMES}", "geometric mean", "each statement counts the same"),
        (
            f"{len(results.regressions(kind, cases))} of {found.statements}",
            "got slower",
            f"{found.over_2} more than twice; worst {found.worst:.2f}{TIMES}; {found.timeouts} timed out",
        ),
    ]


def _regressions(results: Results) -> list[dict[str, Any]]:
    """Statements that a model or the proxy made slower, the worst first."""
    rows = []
    for kind in [*results.models, PROXY]:
        for query, factor in results.regressions(kind):
            rows.append(
                {
                    "query": query,
                    "kind": title(results, kind),
                    "factor": factor,
                    "before": query.ms(DEFAULT),
                    "after": query.ms(kind),
                    "steered": query.steered.get(kind),
                    "plain_plan": query.plans.get(DEFAULT, "") if kind in query.plans else "",
                    "plan": query.plans.get(kind, ""),
                }
            )
    return sorted(rows, key=lambda row: -row["factor"])


def _queries(results: Results, kind: str) -> list[dict[str, Any]]:
    """Every statement, the slowest first."""
    rows = []
    for query in results.queries:
        before = query.ms(DEFAULT) or 0.0
        arm, best = query.best_arm()
        steered = query.steered.get(kind)
        after = query.ms(kind) if kind else None
        rows.append(
            {
                "query": query,
                "before": before,
                "after": after,
                "factor": before / after if after else None,
                "slower": after is not None and slowdown(before, after) > SLOWER,
                "faster": after is not None and before > SLOWER * after,
                "decision": steered.decision_ms if steered else None,
                "true": query.ms(TRUE_ROWS),
                "best": best,
                "arm": arm.removeprefix(ARM),
                "what": (steered.reason or ("new plan" if steered.new_plan else "same plan")) if steered else "",
                "timeouts": sum(series.timeouts > 0 for series in query.series.values()),
            }
        )
    return sorted(rows, key=lambda row: -float(row["before"]))


# ---------------------------------------------------------------------- plots


def _charts(results: Results, kind: str, cases: Sequence[str] | None) -> dict[str, str]:
    pairs = results.pairs(kind, cases) if kind else []
    # What goes through a proxy has no estimates of its own: the first model's are shown.
    estimates = results.models[0] if kind == PROXY and results.models else kind
    return {
        "workload": _workload(results),
        "factors": _factors(pairs, title(results, kind)),
        "cumulative": _cumulative(results, kind, cases),
        "joins": _joins(results, estimates, cases),
        "calibration": _calibration(results, estimates, cases),
    }


def _workload(results: Results) -> str:
    """Total time of each contender, over the statements that all of them ran. Arms that some statements had no time
    for are left out: they would leave few."""
    kinds = [kind for kind in results.kinds() if not (results.without_arms and kind in (BEST_ARM, ONE_SETTING))]
    times = {kind: {query.name: (before, after) for query, before, after in results.pairs(kind)} for kind in kinds}
    common = set.intersection(*(set(found) for found in times.values())) if times else set()
    if not common:
        return ""
    first = next(iter(times.values()))
    default = sum(first[name][0] for name in common)
    items = [(title(results, DEFAULT), default, "plain", "")]
    for kind in kinds:
        total = sum(times[kind][name][1] for name in common)
        own = kind in results.models or kind == PROXY
        style = "s1" if own else "s2" if kind == TRUE_ROWS else "s3" if kind in (BEST_ARM, ONE_SETTING) else "plain"
        summary = results.summary(kind, sorted(common))
        slower = len(results.regressions(kind, sorted(common)))
        worst = f", {slower} slower (worst {summary.worst:.1f}{TIMES})" if summary is not None and slower else ""
        items.append((_short(title(results, kind)), total, style, f"{default / total:.2f}{TIMES}{worst}"))
    return charts.rows(items, "Time of the whole workload", seconds)


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:33]}…"


def _factors(pairs: Sequence[tuple[Measured, float, float]], name: str) -> str:
    """One bar for each statement: how many times as fast, sorted."""
    found = sorted(((before / after, query, before, after) for query, before, after in pairs), key=lambda one: -one[0])
    if not found:
        return ""
    low, high = nice_log([factor for factor, *_ in found], 0.8, 1.25)
    chart = Chart(
        "How many times as fast each statement is",
        Axis(f"statements, sorted ({name})", 0, len(found)),
        Axis("times as fast", low, high, log=True),
    )
    for place, (factor, query, before, after) in enumerate(found):
        style = "good" if factor > SLOWER else "bad" if slowdown(before, after) > SLOWER else "quiet"
        said = f"{query.name}: {before:,.1f} ms → {after:,.1f} ms, {factor:.2f} times as fast"
        chart.bar(place + 0.08, place + 0.92, 1.0, factor, style, said)
    chart.rule(1.0)
    return chart.svg()


def _cumulative(results: Results, kind: str, cases: Sequence[str] | None) -> str:
    """Time added up over the statements, the slowest first."""
    wanted = [*LINES, *([(kind, "line s1")] if kind else [])]
    if results.without_arms:
        wanted.remove((BEST_ARM, "line s3"))
    shown = [(one, style) for one, style in wanted if one == DEFAULT or results.pairs(one, cases)]
    times = {one: {query.name: after for query, _, after in results.pairs(one, cases)} for one, _ in shown}
    times[DEFAULT] = {query.name: before for query, before, _ in results.pairs(kind or DEFAULT, cases)}
    common = set.intersection(*(set(found) for found in times.values())) if times else set()
    if not common:
        return ""
    order = sorted(common, key=lambda name: -times[DEFAULT][name])
    sums: dict[str, list[float]] = {}
    for one, _ in shown:
        total = [0.0]
        for name in order:
            total.append(total[-1] + times[one][name] / 1000)
        sums[one] = total
    high = max(total[-1] for total in sums.values()) * 1.05
    chart = Chart(
        "Time added up over the statements",
        Axis("statements, the slowest first", 0, len(order)),
        Axis("seconds, added up", 0, high),
    )
    for one, style in shown:
        chart.steps(sums[one], style)
    return chart.svg()


def _joins(results: Results, kind: str, cases: Sequence[str] | None) -> str:
    """q-errors by the number of joins: boxes from the 10th to the 90th percentile, a line at the median."""
    found = results.q_errors_by_joins(kind, cases) if kind else {}
    if not found:
        return ""
    tops = [percentile(errors, 95) for pair in found.values() for errors in pair.values()]
    _, high = nice_log(tops, 1.0, 10.0)
    chart = Chart(
        "q-error by the number of joins",
        Axis("joins in the sub-plan (how many sub-plans)", 0, len(found)),
        Axis("q-error: times off", 1.0, high, log=True),
    )
    names = {}
    for place, (joins, pair) in enumerate(found.items()):
        names[place + 0.5] = f"{joins} ({len(pair['native']):,})"
        for side, (name, style) in enumerate((("native", "plain"), ("model", "s1"))):
            low, middle, top = (percentile(pair[name], at) for at in (10, 50, 90))
            left = place + 0.16 + side * 0.36
            said = f"{joins} joins, {name}: p10 {low:.2f}, median {middle:.2f}, p90 {top:.1f}"
            chart.bar(left, left + 0.3, low, top, f"{style} box", said)
            chart.line([(left, middle), (left + 0.3, middle)], f"median {style}")
    chart.names(names)
    return chart.svg(ticks=False)


def _calibration(results: Results, kind: str, cases: Sequence[str] | None) -> str:
    """Whether the corrections that a model makes are the ones needed: predicted against actual factor."""
    wanted = None if cases is None else set(cases)
    points = [
        (one.predicted[kind] / one.native, max(one.true, 1.0) / one.native, f"{one.case}: {', '.join(one.aliases)}")
        for one in results.sub_plans
        if kind in one.predicted and kind not in one.abstained and one.true >= 1
        if wanted is None or one.case in wanted
    ]
    if not points:
        return ""
    low, high = nice_log([value for point in points for value in point[:2]], 0.1, 10.0)
    chart = Chart(
        "Calibration of the corrections",
        Axis(f"correction by the model (estimate {TIMES} this)", low, high, log=True),
        Axis("correction that was needed", low, high, log=True),
        height=380,
    )
    chart.dots(points, "dot")
    chart.line([(low, low), (high, high)], "line plain")
    ordered = sorted(points)
    size = max(len(ordered) // 10, 5)
    deciles = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    chart.line(
        [
            (math.exp(sum(math.log(one[0]) for one in part) / len(part)), percentile([one[1] for one in part], 50))
            for part in deciles
            if len(part) >= min(size, 5)
        ],
        "line s1",
    )
    return chart.svg()

"""Plans as text for people: what each step does, the rows that were expected, and those that came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg

from planner.advice import Rendered
from planner.explore.plans import Plan
from planner.explore.server import Connection, explain

MAX_STEPS = 200
_CONDITIONS = ("Hash Cond", "Merge Cond", "Index Cond", "Join Filter", "Filter")
_WIDTH = 160


def text(plan: Plan) -> str:
    """One line a step, children indented, at most `MAX_STEPS`. Rows that came are those of all loops together."""
    lines: list[str] = []
    _lines(plan.root, 0, lines)
    if len(lines) > MAX_STEPS:
        lines = [*lines[:MAX_STEPS], f"... and {len(lines) - MAX_STEPS} more lines"]
    return "\n".join(lines)


def _lines(node: Mapping[str, Any], depth: int, lines: list[str]) -> None:
    name = str(node["Node Type"])
    join = str(node.get("Join Type", "Inner"))
    if join != "Inner":
        name += f" {join}"
    what = node.get("Relation Name") or node.get("CTE Name") or node.get("Function Name") or ""
    alias = node.get("Alias", "")
    target = f" on {what}{f' {alias}' if alias and alias != what else ''}" if what else ""
    index = f" using {node['Index Name']}" if node.get("Index Name") else ""
    rows = f"expected {float(node.get('Plan Rows', 0)):,.0f}"
    loops = float(node.get("Actual Loops", 0))
    if "Actual Rows" in node:
        rows += f", came {float(node['Actual Rows']) * loops:,.0f}" + (f" in {loops:,.0f} loops" if loops > 1 else "")
        rows = rows if loops else f"{rows.split(',')[0]}, never run"
    lines.append(f"{'  ' * depth}{name}{index}{target}  ({rows})")
    for condition in _CONDITIONS:
        if condition in node:
            shown = f"{condition}: {node[condition]}"
            lines.append(f"{'  ' * depth}    {shown if len(shown) <= _WIDTH else shown[:_WIDTH] + '...'}")
    for child in node.get("Plans", ()):
        _lines(child, depth + 1, lines)


async def described(connection: Connection, sql: str, rendered: Rendered, limit_ms: float) -> str:
    """The plan with the rows that come, from one more run; without them where that takes longer than ``limit_ms``."""
    try:
        return text(await explain(connection, sql, advice=rendered, analyze=True, limit_ms=limit_ms))
    except (asyncpg.QueryCanceledError, TimeoutError):
        return text(await explain(connection, sql, advice=rendered))

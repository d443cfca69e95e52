"""In a few words: what the proxy told PostgreSQL about a statement and what that changed, or why it told nothing.

What was changed is read off the plans that EXPLAIN shows through the proxy, plain and steered, so it is what was
delivered; what the model thought comes from the same decision made in this process.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pilotwire.explain_reasons import REASONS
from pilotwire.plan_tree import Plan, changed, parse
from planner.advise import SubPlan
from planner.planner import Decision, Planner

SHORT: Final = {
    "no_join": "joins nothing",
    "outer_join": "outer joins only",
    "no_change": "the model agrees",
    "out_of_range": "nothing like it in training",
    "uncertain": "the model is not sure",
    "cheap": "too short to gain",
    "no_model": "no model serves",
    "unknown_featurizer": "the model is of another version",
    "no_dialect": "pg_hint_plan is missing",
    "duplicate_alias": "an alias occurs twice",
    "correlated": "joins only in sub-queries for each row",
}


async def explain_why(plain: Any, steered: Any, planner: Planner, sql: str) -> tuple[bool, str]:
    """Whether the statement gets advice, and why or what."""
    before, after = await _plan(plain, sql), await _plan(steered, sql)
    decision = await planner.advise(sql)
    told = [node.rows for _, node in before.root.walk()] != [node.rows for _, node in after.root.walk()]
    steps = len(changed(after.root, before.root))
    if not told and not steps:
        return False, left_alone(decision)
    return True, advised(decision, steps)


def left_alone(decision: Decision) -> str:
    """Why not, where the planner says; what it would have steered was too short for the proxy to ask about."""
    reason = decision.reason or "cheap"
    return f"left alone: {SHORT.get(reason) or REASONS.get(reason, reason)}"


def advised(decision: Decision, steps: int) -> str:
    """The join whose size was corrected most, and how much of the plan is new."""
    corrected = [one for one in decision.estimates if one.rows is not None]
    plan = f"{steps} new step{'s' if steps != 1 else ''}" if steps else "same plan"
    if not corrected:
        return f"settings: {', '.join(f'{name}={value}' for name, value in decision.settings)}; {plan}"
    most = max(corrected, key=_correction)
    return f"{' ⋈ '.join(most.aliases)}: {_rows(most.native)} → {_rows(most.rows or 1)} rows; {plan}"


def _correction(found: SubPlan) -> float:
    rows = max(found.rows or 1.0, 1.0)
    native = max(found.native, 1.0)
    return max(rows / native, native / rows)


def _rows(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:,.0f}"


async def _plan(connection: Any, sql: str) -> Plan:
    return parse(json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}"))[0])

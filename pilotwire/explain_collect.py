"""What ``pilotwire explain`` shows, gathered: the decision on one statement, its plans, and where asked what is true.

Everything runs on one connection, in transactions that are read-only and rolled back. Without ``analyze`` nothing is
executed but EXPLAIN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg
from pglast import ast
from pglast.parser import ParseError, parse_sql
from pglast.stream import RawStream

from model_runtime.runner import ModelError
from pilotwire.plan_tree import Plan, parse
from planner.advise import Models, Options, Outcome, SubPlan, advise
from planner.dialects import hint_plan, plan_advice, render, settings
from planner.graph import Command, Parameters, QueryGraph
from planner.policy import fingerprint
from planner.snapshot import Snapshot
from planner.sql import read
from training.counting import BlockCounts, selects, source_of

Connection = Any
"""An asyncpg connection: the library has no types of its own."""
PLANNED: Final = frozenset({"hinted", "opted_out", "too_large", "too_deep"})
"""Reasons not to read a statement that still has a plan."""
EXPLAINED: Final = frozenset({Command.SELECT, Command.EXPLAIN, Command.INSERT, Command.CREATE_TABLE_AS})


@dataclass(slots=True)
class Explained:
    """``reason`` is why nothing is advised, "" for advice. ``true_rows`` are counts by (block, set of relations).
    ``notes`` are sentences on what could not be shown."""

    sql: str
    fingerprint: str
    reason: str
    snapshot: Snapshot
    models: Models
    graph: QueryGraph | None = None
    outcome: Outcome | None = None
    dialects: dict[str, str] = field(default_factory=dict)
    dialect: str = ""
    plain: Plan | None = None
    steered: Plan | None = None
    true_rows: dict[tuple[int, int], float] = field(default_factory=dict)
    analyzed: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def sub_plans(self) -> tuple[SubPlan, ...]:
        return self.outcome.sub_plans if self.outcome is not None else ()


async def explain(
    connection: Connection,
    snapshot: Snapshot,
    models: Models,
    sql: str,
    params: Parameters,
    *,
    analyze: bool = False,
    seconds: float = 30.0,
) -> Explained:
    """Never executes a statement that writes. ``seconds`` is the limit of each statement."""
    reading = read(sql)
    found = Explained(sql, fingerprint(sql), reading.reason, snapshot, models, analyzed=analyze)
    if reading.graph is None:
        if reading.reason in PLANNED:
            await _plans(connection, found, "", (), params, analyze=False, seconds=seconds)
        return found
    path = tuple(await connection.fetchval("SELECT current_schemas(false)::text[]"))
    options = Options(estimate_anyway=True)
    try:
        outcome = advise(reading.graph, snapshot, models, params, path, options)
    except ModelError as error:
        found.notes.append(f"The model failed: {error}.")
        outcome = replace(advise(reading.graph, snapshot, Models(), params, path, options), reason="failed")
    found.outcome, found.reason = outcome, outcome.reason
    found.graph = outcome.resolved.graph if outcome.resolved is not None else reading.graph
    if analyze and not reading.graph.read_only:
        found.notes.append("The statement writes, so it was not executed.")
        found.analyzed = analyze = False
    if len(params) < reading.graph.parameters:
        # Plans for any values cannot be had over a connection that binds values to all parameters.
        found.notes.append(
            f"Values are given for {len(params)} of {reading.graph.parameters} parameters: "
            "the plans are shown with a --param for each."
        )
        found.analyzed = analyze = False
    rendered = render(outcome.advice, snapshot.capabilities)
    found.dialect = rendered.dialect
    if not outcome.advice.empty:
        for module in (hint_plan, settings, plan_advice):
            each = module.render(outcome.advice)
            lines = [each.prefix.strip()] if each.prefix else []
            lines += [f"SET LOCAL {name} = '{value}';" for name, value in each.settings]
            lines += [f"({note})" for note in each.notes] if not lines else []
            found.dialects[module.NAME] = "\n".join(lines)
    if analyze:
        await _count(connection, found, seconds)
    await _plans(connection, found, rendered.prefix, rendered.settings, params, analyze=analyze, seconds=seconds)
    return found


async def _plans(
    connection: Connection,
    found: Explained,
    prefix: str,
    setting: tuple[tuple[str, str], ...],
    params: Parameters,
    *,
    analyze: bool,
    seconds: float,
) -> None:
    text = _inner(found)
    if text is None:
        return
    values: list[object] = [params[number].value for number in sorted(params)]
    options = "ANALYZE, TIMING OFF, FORMAT JSON" if analyze else "FORMAT JSON"
    if found.graph is not None:
        wanted = found.graph.parameters
        if len(values) < wanted:
            return
        if len(values) > wanted:
            found.notes.append(f"The statement has {wanted} parameters: the other values are not used.")
        values = values[:wanted]
    try:
        found.plain = await _plan(connection, f"EXPLAIN ({options}) {text}", {}, values, seconds)
        if prefix or setting:
            steered = f"{prefix}EXPLAIN ({options}) {text}"
            found.steered = await _plan(connection, steered, dict(setting), values, seconds)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # asyncpg's own errors are of values that the statement does not take; their second line is a hint.
        found.notes.append(f"EXPLAIN failed: {str(error).partition(chr(10))[0]}")


async def _plan(
    connection: Connection, text: str, setting: Mapping[str, str], values: list[object], seconds: float
) -> Plan:
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
        for name, value in setting.items():
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        return parse(json.loads(await connection.fetchval(text, *values))[0])
    finally:
        await transaction.rollback()


def _inner(found: Explained) -> str | None:
    """The statement behind its own EXPLAIN; None for what EXPLAIN does not take."""
    if found.graph is None or found.graph.command is Command.SELECT:
        return found.sql
    if found.graph.command is Command.EXPLAIN:
        tree = _statement(found.sql)
        if isinstance(tree, ast.ExplainStmt) and isinstance(tree.query, ast.SelectStmt):
            return str(RawStream()(tree.query))
        return None
    return found.sql if found.graph.command in EXPLAINED else None


def _statement(sql: str) -> Any:
    try:
        return parse_sql(sql)[0].stmt
    except (ParseError, IndexError, RecursionError):
        return None


async def _count(connection: Connection, found: Explained, seconds: float) -> None:
    """Counts the true rows of each sub-plan, block by block, the small ones first, as time allows."""
    assert found.outcome is not None
    resolved = found.outcome.resolved
    if resolved is None:
        return
    candidates = selects(found.sql)
    counts = {
        one.block.index: BlockCounts(tree, one.block, one.tables, resolved.graph.blocks)
        for one in resolved.blocks
        if (tree := source_of(one.block, candidates)) is not None
    }
    missing = 0
    for sub_plan in found.sub_plans:
        block = counts.get(sub_plan.block)
        count = block.count(sub_plan.mask) if block is not None else None
        if count is None:
            missing += 1
            continue
        rows = await _counted(connection, count.factored or count.plain, seconds)
        if rows is None:
            missing += 1
        else:
            found.true_rows[sub_plan.block, sub_plan.mask] = rows
    if missing:
        found.notes.append(f"The true rows of {missing} joins could not be counted, or not within {seconds:g} s each.")


async def _counted(connection: Connection, text: str, seconds: float) -> float | None:
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
        value = await connection.fetchval(text)
        return float(value or 0)
    except asyncpg.PostgresError:
        return None
    finally:
        await transaction.rollback()

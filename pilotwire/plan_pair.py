"""Both plans of one statement, in a process of its own: ``python -m pilotwire.plan_pair`` reads one JSON object from
standard input and writes one.

What parses SQL that a person gave must not run in the supervisor, which everybody depends on. The process gets how to
log in by its standard input, never on its command line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import msgspec

from pilotwire.plan_tree import PlanNode, changed
from pilotwire.plan_tree import parse as parse_plan
from planner.advice import Rendered
from planner.catalogs import connector
from planner.control import Upstream
from planner.dialects import render
from planner.explore.runner import find_capabilities
from planner.explore.server import EXPLAIN_LIMIT_MS, NotExplorableError, explain
from planner.explore.trust import check_trusted
from planner.memory.convert import to_advice
from planner.memory.records import StoredAdvice

ANALYZE_LIMIT_MS: Final = 60_000.0
MAX_NODES: Final = 500


class Wanted(msgspec.Struct):
    """``params`` are the bound values as texts. ``advice`` None: the plain plan alone."""

    upstream: Upstream
    database: str
    search_path: str
    sql: str
    params: list[str | None] = []
    advice: StoredAdvice | None = None
    analyze: bool = False


async def plan_pair(wanted: Wanted) -> dict[str, Any]:
    """``{"plain": ..., "steered": ..., "note": ...}``, or ``{"error": sentence}``."""
    try:
        connection = await connector(wanted.upstream, wanted.database)()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        return {"error": f"the server cannot be reached for an EXPLAIN: {type(error).__name__}"}
    try:
        return await _both(connection, wanted)
    except NotExplorableError as error:
        return {"error": f"the statement cannot be explained: {error}"}
    except asyncpg.QueryCanceledError:
        return {"error": f"it took longer than {ANALYZE_LIMIT_MS / 1000:g} s and was stopped"}
    except asyncpg.PostgresError as error:
        return {"error": f"the server refused: {error}"}
    finally:
        await connection.close(timeout=2)


async def _both(connection: Any, wanted: Wanted) -> dict[str, Any]:
    await check_trusted(connection, wanted.sql)
    plain = await _plan(connection, wanted, None)
    if wanted.advice is None:
        return {"plain": _shown(plain, None, ""), "steered": None, "note": "there is no advice for this query"}
    capabilities = await find_capabilities(connection)
    rendered = render(to_advice(wanted.advice), capabilities)
    if rendered.empty:
        return {
            "plain": _shown(plain, None, ""),
            "steered": None,
            "note": "the advice cannot be expressed on this server",
        }
    steered = await _plan(connection, wanted, rendered)
    said = rendered.prefix + "".join(f"SET LOCAL {name} = {value}\n" for name, value in rendered.settings)
    note = "" if changed(steered.root, plain.root) else "both plans take the same steps"
    return {"plain": _shown(plain, steered, ""), "steered": _shown(steered, plain, said.strip()), "note": note}


async def _plan(connection: Any, wanted: Wanted, rendered: Rendered | None) -> _Found:
    plan = await explain(
        connection,
        wanted.sql,
        wanted.params,
        advice=rendered,
        search_path=wanted.search_path,
        analyze=wanted.analyze,
        limit_ms=ANALYZE_LIMIT_MS if wanted.analyze else EXPLAIN_LIMIT_MS,
    )
    document: dict[str, Any] = {"Plan": plan.root}
    if wanted.analyze:
        document |= {"Planning Time": plan.planning_ms, "Execution Time": plan.execution_ms}
    return _Found(document)


class _Found:
    """A plan as `pilotwire.plan_tree` compares it, beside the server's own document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.plan = parse_plan(document)

    @property
    def root(self) -> PlanNode:
        return self.plan.root


def _shown(found: _Found, other: _Found | None, advice: str) -> dict[str, Any]:
    differs = changed(found.root, other.root) if other is not None else set()
    count = 0

    def node(tree: PlanNode, document: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal count
        position, count = count, count + 1
        loops = float(document.get("Actual Loops", 0) or 0)
        time_ms = document.get("Actual Total Time")
        pairs = zip(tree.children, document.get("Plans", ()), strict=True)
        return {
            "name": tree.name,
            "estimated": tree.rows,
            "actual": tree.actual,
            "cost": float(document.get("Total Cost", 0.0)),
            "time_ms": None if time_ms is None else float(time_ms) * loops,
            "differs": position in differs,
            "detail": _detail(document),
            "children": [node(child, below) for child, below in pairs if count < MAX_NODES],
        }

    return {
        "root": node(found.root, found.document["Plan"]),
        "cost": found.plan.cost,
        "planning_ms": found.plan.planning_ms,
        "time_ms": found.plan.execution_ms,
        "advice": advice,
    }


def _detail(document: Mapping[str, Any]) -> str:
    """The condition that tells most about a step."""
    for name in ("Hash Cond", "Merge Cond", "Join Filter", "Index Cond", "Recheck Cond", "Filter", "Sort Key"):
        if name in document:
            value = document[name]
            return f"{name}: {', '.join(value) if isinstance(value, list) else value}"[:300]
    return ""


def main() -> int:
    """The process's entry."""
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Wanted)
    print(json.dumps(asyncio.run(plan_pair(wanted))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Running every statement of an evaluation in all its kinds, over connections that are opened anew when they are lost.

A statement whose connection breaks is tried once more; when it breaks again and the server still answers, the statement
is named as failed and the next one runs. When the server does not answer, the evaluation ends with what it has.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import asyncpg

from planner.advice import Advice, Rendered
from planner.dialects import render
from planner.explore import server
from planner.explore.plans import Plan
from planner.explore.server import LOST, Link
from planner.memory.arms import PORTFOLIO
from training.evaluate import plans, runs
from training.evaluate.cases import Case
from training.evaluate.measure import SLOWER, slowdown
from training.evaluate.options import Options, Prepared
from training.evaluate.results import ARM, DEFAULT, TRUE_ROWS, Measured, Results, Steered
from training.steps import Step

ARM_LIMIT_FACTOR: Final = 3.0
"""An arm that takes so many times the default's time is stopped: no summary needs to know how bad it is."""
GONE: Final = (*LOST, asyncpg.OperatorInterventionError)
PAUSE_SECONDS: Final = 1.0


class Measurer:
    """``link`` is to the database, ``proxies`` are links through a proxy by kind."""

    def __init__(
        self, link: Link, proxies: Mapping[str, Link], prepared: Prepared, options: Options, results: Results
    ) -> None:
        self._link = link
        self._proxies = proxies
        self._prepared = prepared
        self._options = options
        self._results = results

    async def measure(self, case: Case, *, arms: bool = True, ends: float = math.inf) -> None:
        """One statement, into the results, under the ``arms`` too. Raises OutOfTimeError when the monotonic clock is
        past ``ends`` too soon, and what a lost connection raises when no other one can be had."""
        try:
            await self.one(case, arms, ends)
        except GONE:
            await asyncio.sleep(PAUSE_SECONDS)
            await self._link.get()
            try:
                await self.one(case, arms, ends)
            except GONE as error:
                await asyncio.sleep(PAUSE_SECONDS)
                await self._link.get()
                self._failed(case, f"the connection broke twice: {' '.join(str(error).split())}")

    def _failed(self, case: Case, why: str) -> None:
        self._results.failed.append(f"{case.name} (line {case.line}): {why}")

    async def one(self, case: Case, arms: bool, ends: float) -> None:
        """One statement in all kinds."""
        connection = await self._link.get()
        query = Measured(case.name, case.line, case.sql, case.template, case.relations, str(case.seen))
        try:
            plain = await server.explain(connection, case.sql)
        except (asyncpg.PostgresError, TimeoutError, ValueError) as error:
            if isinstance(error, GONE):
                raise
            self._failed(case, " ".join(str(error).split()))
            return
        ways = {DEFAULT: runs.Way(connection)}
        shapes = {plain.shape: DEFAULT}
        await self._add_baselines(connection, case, query, ways, shapes, arms)
        await self._add_models(connection, case, query, ways, plain)
        for kind, proxied in self._proxies.items():
            ways[kind] = runs.Way(await proxied.get())
        query.series = await runs.interleave(case.sql, ways, self._options.rounds, self._options.limit * 1000, ends)
        default = query.series[DEFAULT]
        if default.error:
            self._failed(case, f"the server says {default.error}")
            return
        rows = {kind: series.tag for kind, series in query.series.items() if series.tag}
        if len(set(rows.values())) > 1:
            query.notes.append(f"different numbers of rows: {rows}")
            self._results.warnings.append(f"{case.name} returned different numbers of rows: {rows}")
        self._results.queries.append(query)

    async def _add_baselines(
        self,
        connection: Any,
        case: Case,
        query: Measured,
        ways: dict[str, runs.Way],
        shapes: dict[str, str],
        arms: bool,
    ) -> None:
        """The arms and the true rows; plans that are already to be run are shared."""
        wanted: dict[str, tuple[Advice, float]] = {}
        if arms:
            wanted |= {f"{ARM}{name}": (Advice(settings=arm), ARM_LIMIT_FACTOR) for name, arm in PORTFOLIO.items()}
        if self._prepared.truth.advice and "hint_plan" in self._prepared.snapshot.capabilities:
            true = self._prepared.truth.advice.get(case.name)
            if true is None:
                query.shared[TRUE_ROWS] = DEFAULT
            else:
                wanted[TRUE_ROWS] = true, 0.0
        for kind, (advice, factor) in wanted.items():
            rendered = render(advice, self._prepared.snapshot.capabilities)
            shape = await self._shape(connection, case, rendered, query)
            known = shapes.setdefault(shape, kind) if shape else DEFAULT
            # A run that may be stopped early cannot stand for one that may not.
            if known != kind and (factor or known == DEFAULT):
                query.shared[kind] = known
            else:
                ways[kind] = runs.Way(connection, rendered, factor)

    async def _add_models(
        self,
        connection: Any,
        case: Case,
        query: Measured,
        ways: dict[str, runs.Way],
        plain: Plan,
    ) -> None:
        """The models. The same plan does the same work, so the default's runs count for it, and what planning under
        advice costs is added; models that give the same other plan share its runs."""
        shapes: dict[str, str] = {plain.shape: DEFAULT}
        planning = -1.0
        for kind in self._prepared.steering:
            decision = self._prepared.decisions.get((kind, case.name))
            if decision is None:
                continue
            rendered = Rendered(decision.prefix, decision.settings)
            shape = "" if decision.reason else await self._shape(connection, case, rendered, query)
            reason = decision.reason or ("" if shape else "refused")
            steered = query.steered[kind] = Steered(
                reason, decision.ms, not reason and shape != plain.shape, 0.0, decision.prefix, decision.settings
            )
            if reason:
                query.shared[kind] = DEFAULT
            elif (known := shapes.setdefault(shape, kind)) != kind:
                query.shared[kind] = known
            else:
                ways[kind] = runs.Way(connection, rendered)
            if not reason and not steered.new_plan:
                planning = await _planning_ms(connection, case.sql, runs.PLAIN) if planning < 0 else planning
                steered.planning_ms = max(await _planning_ms(connection, case.sql, rendered) - planning, 0.0)

    async def _shape(self, connection: Any, case: Case, rendered: Rendered, query: Measured) -> str:
        """The shape of the plan under advice, "" when the server refuses it."""
        try:
            return (await server.explain(connection, case.sql, advice=rendered)).shape
        except (asyncpg.PostgresError, TimeoutError) as error:
            if isinstance(error, GONE):
                raise
            query.notes.append(f"refused under advice: {' '.join(str(error).split())}")
            return ""

    async def explain_regressions(self, tell: Callable[[Step], None]) -> None:
        """Both plans of the statements that a model made slower, the worst first."""
        connection = await self._link.get()
        slower = []
        for query in self._results.queries:
            for kind, decision in query.steered.items():
                before, after = query.ms(DEFAULT), query.ms(kind)
                if before is not None and after is not None and decision.new_plan and slowdown(before, after) > SLOWER:
                    slower.append((slowdown(before, after), query, kind, decision))
        slower.sort(key=lambda one: -one[0])
        for number, (_, query, kind, decision) in enumerate(slower[: self._options.plans]):
            tell(Step("explaining what got slower", number, min(len(slower), self._options.plans)))
            limit = self._options.limit * 1000
            if DEFAULT not in query.plans:
                query.plans[DEFAULT] = await plans.described(connection, query.sql, runs.PLAIN, limit)
            rendered = Rendered(decision.prefix, decision.settings)
            query.plans[kind] = await plans.described(connection, query.sql, rendered, limit)


async def _planning_ms(connection: Any, sql: str, rendered: Rendered) -> float:
    """What an EXPLAIN takes, the least of three: the network and the server's planner."""
    least = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        await server.explain(connection, sql, advice=rendered)
        least = min(least, time.perf_counter() - started)
    return least * 1000

"""Latencies of statements under the portfolio of planner settings: what a model of hints learns from.

The runs themselves are `planner.explore.runner`'s: EXPLAIN first, arms with the default's plan are not run, the best
time so far is the limit, and what is expected to win most comes first. Expected is what the statements before showed:
the mean of the gains of an arm. Statements come in the order of the server's own cost, dearest first, since there is
most to gain, but one of each set of tables before the second of any, since siblings tell much the same. The budget is
shared: none may take more than its part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from planner.advice import Advice
from planner.explore.runner import ArmResults, ArmRuns, try_arms
from planner.explore.server import Link, OutOfStepError
from planner.explore.server import connect as connect_to_explore
from planner.memory.arms import PORTFOLIO
from planner.memory.records import DEFAULT_ARM
from planner.snapshot import Snapshot
from training.dataset import ArmRun
from training.labels import GONE, gone_in_the_middle
from training.queries import Workload
from training.training_set import ArmTime, TrainingSet, statement_key

ROUNDS: Final = 3
PART: Final = 0.1
"""Of what is left of the budget, for one statement."""
LEAST_SECONDS: Final = 1.0
_STATUS: Final = {
    "": "timed", "behind": "timed", "timed_out": "stopped", "same_plan": "same_plan", "failed": "failed",
    "not_honoured": "same_plan",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArmBudget:
    """``seconds`` of the server's time for all; a statement whose default takes longer than ``statement_ms`` is left
    alone."""

    seconds: float
    statement_ms: float = 10_000.0


@dataclass(slots=True)
class ArmTimes:
    """How it went. ``known`` statements were measured before, ``skipped`` could not be, ``left`` had no time left."""

    wanted: int = 0
    known: int = 0
    measured: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.wanted - self.known - self.measured - self.skipped


class ArmLabeller:
    """Measures statements under arms and keeps what came of it in the training set."""

    def __init__(
        self,
        dsn: str,
        kept: TrainingSet,
        budget: ArmBudget,
        *,
        arms: Mapping[str, Mapping[str, str]] = PORTFOLIO,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._kept = kept
        self._budget = budget
        self._arms = {name: Advice(settings=dict(settings)) for name, settings in arms.items()}
        self._progress = progress
        self._gains: dict[str, list[float]] = {name: [1.0] for name in arms}

    async def run(self, statements: Sequence[str], snapshot: Snapshot) -> ArmTimes:
        """Measure these statements. TrainingError when the database goes away; what was measured is kept."""
        started = time.monotonic()
        known = {arm.statement for arm in self._kept.arms if arm.arm == DEFAULT_ARM}
        waiting = [text for text in statements if statement_key(text) not in known]
        found = ArmTimes(wanted=len(statements), known=len(statements) - len(waiting))
        # A connection that is out of step is ended, which says nothing of the server: the link opens another one.
        link = Link(lambda: connect_to_explore(self._dsn))
        try:
            connection = await link.get()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            raise gone_in_the_middle(error, self._kept, "trying arms") from None
        try:
            for done, (_, text) in enumerate(await self._ordered(connection, waiting, found)):
                left = self._budget.seconds - (time.monotonic() - started)
                if left <= 0:
                    break
                if self._progress is not None:
                    self._progress(done, len(waiting))
                await self._one(link, text, max(left * PART, min(left, LEAST_SECONDS)), snapshot, found)
        except GONE as error:
            raise gone_in_the_middle(error, self._kept, "trying arms") from None
        finally:
            found.seconds = time.monotonic() - started
            await link.close()
        return found

    async def _ordered(self, connection: Any, texts: Sequence[str], found: ArmTimes) -> list[tuple[float, str]]:
        costed: dict[tuple[str, ...], list[tuple[float, str]]] = {}
        for text in texts:
            try:
                plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}"))[0]["Plan"]
            except asyncpg.PostgresError as error:
                if isinstance(error, GONE):
                    raise
                self._skip(found, "it cannot be planned")
                continue
            costed.setdefault(_relations(plan), []).append((float(plan["Total Cost"]), text))
        ranked = [
            (rank, -cost, text)
            for group in costed.values()
            for rank, (cost, text) in enumerate(sorted(group, reverse=True))
        ]
        return [(-cost, text) for _, cost, text in sorted(ranked)]

    async def _one(self, link: Link, text: str, seconds: float, snapshot: Snapshot, found: ArmTimes) -> None:
        expected = {name: sum(gains) / len(gains) for name, gains in self._gains.items()}
        try:
            results = await try_arms(
                link,
                text,
                self._arms,
                seconds,
                capabilities=snapshot.capabilities,
                expected=expected,
                rounds=ROUNDS,
                limit_ms=self._budget.statement_ms,
            )
        except OutOfStepError as error:
            self._skip(found, str(error))
            return
        if results.reason or not results.default.runs:
            self._skip(found, results.reason or results.stopped or "nothing was measured")
            return
        self._keep(text, results)
        found.measured += 1

    def _skip(self, found: ArmTimes, reason: str) -> None:
        found.skipped += 1
        found.reasons[reason] = found.reasons.get(reason, 0) + 1

    def _keep(self, text: str, results: ArmResults) -> None:
        statement, now = statement_key(text), time.time()
        for arm in results.arms.values():
            # An arm with another one's plan has its times.
            measured = results.arms.get(arm.twin, arm)
            status = _STATUS.get(measured.outcome)
            if status is None:
                continue
            ms = _limit(results, measured) if status == "stopped" else measured.ms if status == "timed" else 0.0
            default_ms = _default(results, measured)
            if status == "timed" and ms > 0:
                self._gains[arm.name].append(min(default_ms / ms, 10.0))
            self._kept.add_arm(ArmTime(statement, arm.name, status, ms, default_ms, "", now))
        plan = json.dumps({"Plan": results.default.plan.root}) if results.default.plan is not None else ""
        ms = results.default.ms
        # Last, since it is by this row that the statement counts as measured.
        self._kept.add_arm(ArmTime(statement, DEFAULT_ARM, "timed", ms, ms, plan, now))


def _default(results: ArmResults, arm: ArmRuns) -> float:
    """The default's median in the runs that took turns with the arm."""
    runs = sorted(one.ms for one in arm.baseline)
    return runs[len(runs) // 2] if runs else results.default.ms


def _relations(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """The tables that a plan reads, one for each time."""
    found, waiting = [], [plan]
    while waiting:
        step = waiting.pop()
        if "Relation Name" in step:
            found.append(str(step["Relation Name"]))
        waiting += step.get("Plans", ())
    return tuple(sorted(found))


def _limit(results: ArmResults, arm: ArmRuns) -> float:
    return arm.first.ms if arm.first is not None else results.default.ms


def runs_of(workload: Workload, arms: Sequence[ArmTime]) -> tuple[ArmRun, ...]:
    """The measurements of the workload's statements, by their places in it."""
    places: dict[str, int] = {}
    for number, query in enumerate(workload.queries):
        places.setdefault(statement_key(query.text), number)
    return tuple(
        ArmRun(
            places[arm.statement],
            arm.arm,
            arm.status,
            arm.ms,
            arm.default_ms,
            json.loads(arm.plan) if arm.plan else None,
        )
        for arm in arms
        if arm.statement in places
    )

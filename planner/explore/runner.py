"""Trying arms on a statement: which of several ways of planning it is really faster, for as little time as possible.

`try_arms` asks for the plan of each arm first. An arm whose plan is the default's is not run, and of several arms with
one plan a single one is. The default runs, then each arm in the order of what is expected of it, with the best time so
far as its limit, so that a terrible plan costs no more than a good one. What comes through is run in turns with the
default, so that a server that slows down for a while hurts all alike; an arm that falls behind is dropped. The first
run of each is kept apart: it brings pages into memory.

Nothing is concluded here: every timing is handed on, and `planner.memory` judges.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import asyncpg

from planner.advice import Advice, Rendered
from planner.dialects import render
from planner.explore.plans import Plan, honoured
from planner.explore.server import (
    CANCELLED,
    Connection,
    Link,
    NotExplorableError,
    OutOfStepError,
    Statement,
    Timing,
    explain,
    time_query,
)
from planner.memory.arms import CUSTOM_PLAN
from planner.memory.evidence import Rules, Verdict, judge
from planner.memory.records import DEFAULT_ARM

__all__ = [
    "ArmResults", "ArmRuns", "Budget", "NotExplorableError", "Statement", "StoppedError", "Timing", "explain",
    "time_query", "try_arms",
]  # fmt: skip

ROUNDS: Final = 7
LIMIT_MS: Final = 60_000.0
"""For the default's first run, and for every run where the budget allows more."""
FLOOR_MS: Final = 5.0
"""No time limit is shorter: below it the clock and the scheduler decide."""
CHEAP_MS: Final = 5.0
"""A statement that takes less by itself has nothing to win that counts."""
FIRST_SLACK: Final = 1.25
"""The first run of an arm may take this much longer than the best so far: its pages may not be in memory yet."""
ROUND_SLACK: Final = 2.0
"""A counted run may take this many times the best time so far, since a single run is noisy."""
BEHIND: Final = 1.2
"""An arm is dropped when its median is so many times the best one's after some rounds."""
PROMISE: Final = 1.1
"""An arm is dropped too when it is not this many times faster than the default by then: no rounds will make it so."""
ENOUGH_ROUNDS: Final = 3
CENSORED: Final = 4.0
"""A default that takes a second or more is run no longer than this many times the best arm: it has lost by then."""
LONG_MS: Final = 1000.0
SLOW_MS: Final = 5000.0
"""A default that takes this long is run once before the arms: what the pages' reading adds does not decide."""
ATTEMPTS: Final = 2
SPENT: Final = "the budget is spent"

_Result = TypeVar("_Result")
Pace = Callable[[float], Awaitable[None]]
"""Awaited before each run with the seconds that the last one took; may wait, or raise `StoppedError`."""


class StoppedError(Exception):
    """Exploring must stop now; ``str()`` is the reason."""


@dataclass(slots=True)
class Budget:
    """Seconds of the server's time that may be spent. ``spare`` are seconds more, to end a race that is all but won."""

    seconds: float
    spent: float = 0.0
    spare: float = 0.0

    @property
    def left(self) -> float:
        return max(self.seconds - self.spent, 0.0)

    def use_spare(self) -> None:
        self.seconds += self.spare
        self.spare = 0.0


@dataclass(slots=True)
class ArmRuns:
    """One arm of one statement. ``outcome`` is "" where it was raced against the default to the end, else why not:

    ``not_expressible`` (this server cannot be told), ``same_plan`` (as the default's), ``same_as`` (as that of the arm
    ``twin``, whose runs count for it too), ``not_honoured``, ``failed``, ``timed_out`` (slower than the best so far),
    ``behind`` (dropped after some rounds: slower than another arm, or hardly faster than the default), ``cheap`` (the
    default is too fast to be beaten), ``not_tried``.

    ``first`` is the uncounted run, ``runs`` are the counted ones and ``baseline`` those of the default (or for
    ``force_custom_plan`` of the generic plan) that took turns with them.
    """

    name: str
    advice: Advice = field(default_factory=Advice)
    rendered: Rendered = field(default_factory=Rendered)
    expected_gain: float = 0.0
    plan: Plan | None = None
    outcome: str = ""
    twin: str = ""
    first: Timing | None = None
    runs: list[Timing] = field(default_factory=list)
    baseline: list[Timing] = field(default_factory=list)
    error: str = ""

    @property
    def ms(self) -> float:
        """The median of the counted runs, of the first one where there are none; infinite for neither."""
        if self.runs:
            return _median(self.runs)
        return self.first.ms if self.first is not None and self.first.completed else float("inf")

    def as_json(self) -> dict[str, Any]:
        return {
            "arm": self.name,
            "outcome": self.outcome,
            "twin": self.twin,
            "prefix": self.rendered.prefix,
            "settings": dict(self.rendered.settings),
            "plan": self.plan.shape if self.plan is not None else "",
            "cost": self.plan.cost if self.plan is not None else 0.0,
            "expected_gain": self.expected_gain,
            "first_ms": self.first.ms if self.first is not None else None,
            "runs_ms": [one.ms for one in self.runs],
            "baseline_ms": [one.ms for one in self.baseline],
            "timeouts": sum(one.timed_out for one in self.runs),
            "error": self.error,
        }


@dataclass(slots=True)
class ArmResults:
    """What came of one statement. ``spent`` is the time its runs and EXPLAINs took, in seconds; ``reason`` is why
    nothing was tried, ``stopped`` why it ended early, "" for neither."""

    statement: Statement
    default: ArmRuns
    arms: dict[str, ArmRuns] = field(default_factory=dict)
    spent: float = 0.0
    reason: str = ""
    stopped: str = ""

    @property
    def best(self) -> ArmRuns:
        """The fastest of all, the default where no arm is faster."""
        raced = [arm for arm in self.arms.values() if arm.runs and arm.outcome == ""]
        return min([self.default, *raced], key=lambda arm: arm.ms)

    def as_json(self) -> dict[str, Any]:
        return {
            "sql": self.statement.sql,
            "spent_seconds": self.spent,
            "reason": self.reason,
            "stopped": self.stopped,
            "best": self.best.name,
            "default": self.default.as_json(),
            "arms": [arm.as_json() for arm in self.arms.values()],
        }


def _median(timings: Sequence[Timing]) -> float:
    return statistics.median(one.ms for one in timings)


async def try_arms(
    target: Connection | str | Link,
    statement: Statement | str,
    arms: Mapping[str, Advice],
    budget: Budget | float,
    *,
    capabilities: Collection[str] | None = None,
    expected: Mapping[str, float] | None = None,
    rounds: int = ROUNDS,
    rules: Rules | None = None,
    limit_ms: float = LIMIT_MS,
    cheap_ms: float = CHEAP_MS,
    pace: Pace | None = None,
) -> ArmResults:
    """Try ``arms`` (name to advice) on one statement; ``target`` is a connection, a DSN or a `Link`, and
    ``budget`` seconds.

    ``capabilities`` are the server's, asked for when not given. ``expected`` is how many times faster an arm is thought
    to be; arms are tried in that order, others as they come. ``rounds`` of turns are run; with ``rules`` as many as it
    takes to judge every arm that is still in, at most `Rules.max_pairs`. ``cheap_ms``: a default faster than this is
    all that is run. A statement that is refused, fails, or takes longer than ``limit_ms`` under every arm comes back
    with a reason. A lost connection raises asyncpg's errors or OSError.
    """
    if isinstance(statement, str):
        statement = Statement(statement)
    spend = Budget(budget) if isinstance(budget, int | float) else budget
    expected = expected or {}
    results = ArmResults(statement, ArmRuns(DEFAULT_ARM))
    link = target if isinstance(target, Link) else Link(target)
    try:
        if capabilities is None:
            capabilities = await find_capabilities(await link.get())
        for name in sorted(arms, key=lambda name: -expected.get(name, 0.0)):
            rendered = render(arms[name], capabilities)
            results.arms[name] = ArmRuns(name, arms[name], rendered, expected.get(name, 0.0))
        race = _Race(link, results, spend, rounds, rules, limit_ms, cheap_ms, pace)
        before = spend.spent
        try:
            await race.run()
        except NotExplorableError as error:
            results.reason = str(error)
        except StoppedError as error:
            results.stopped = str(error)
        finally:
            results.spent = spend.spent - before
    finally:
        if not isinstance(target, Link):
            await link.close()
    for arm in results.arms.values():
        if not arm.runs and not arm.outcome:
            arm.outcome = "not_tried"
    return results


async def find_capabilities(connection: Connection) -> frozenset[str]:
    """What the server's sessions can be told by, as in `planner.snapshot.Snapshot.capabilities`."""
    found = await connection.fetch(
        "SELECT name FROM pg_settings WHERE name IN ('pg_hint_plan.enable_hint', 'pg_plan_advice.advice')"
    )
    return frozenset(row["name"].partition(".")[0].removeprefix("pg_") for row in found)


class _Race:
    """One statement's arms, from their plans to the last round."""

    def __init__(
        self,
        link: Link,
        results: ArmResults,
        budget: Budget,
        rounds: int,
        rules: Rules | None,
        limit_ms: float,
        cheap_ms: float,
        pace: Pace | None,
    ) -> None:
        self._link = link
        self._results = results
        self._budget = budget
        self._rounds = rounds if rules is None else rules.max_pairs
        self._rules = rules
        self._limit_ms = limit_ms
        self._cheap_ms = cheap_ms
        self._pace = pace
        self._last_seconds = 0.0

    async def run(self) -> None:
        default = self._results.default
        raced = await self._plans()
        if raced is None:
            return
        custom = self._results.arms.get(CUSTOM_PLAN)
        if not raced and (custom is None or custom.outcome):
            return
        plain = default.first = await self._time(default, self._limit_ms)
        if plain.completed and plain.ms < SLOW_MS:
            # The first run read what was not in memory; what the statement takes is known from the second one on.
            plain = await self._time(default, self._limit_ms)
            default.runs += [plain] * plain.completed
        if plain.error:
            self._results.reason = f"it fails: {plain.error}"
            return
        if plain.ms < self._cheap_ms:
            for arm in raced:
                arm.outcome = "cheap"
        else:
            survivors = await self._screen(raced, plain.ms)
            if plain.timed_out and not survivors:
                self._results.reason = "the statement takes too long"
            await self._rounds_of(survivors)
        self._share()
        if custom is not None and not custom.outcome:
            await self._custom_plan(custom)

    # ------------------------------------------------------------------ plans

    async def _plans(self) -> list[ArmRuns] | None:
        """The arms that are worth running; None when the default cannot even be planned."""
        default = self._results.default
        default.plan = await self._explain(default)
        if default.plan is None:
            self._results.reason = f"it cannot be planned: {default.error}"
            return None
        seen: dict[str, str] = {default.plan.shape: DEFAULT_ARM}
        raced = []
        for arm in self._results.arms.values():
            if arm.name == CUSTOM_PLAN:
                await self._plan_custom(arm)
                continue
            if arm.rendered.empty:
                arm.outcome = "not_expressible"
                continue
            arm.plan = await self._explain(arm)
            if arm.plan is None:
                arm.outcome = "failed"
            elif arm.plan.shape in seen:
                twin = seen[arm.plan.shape]
                obeyed = twin != DEFAULT_ARM or honoured(arm.plan, default.plan, arm.advice)
                arm.twin = "" if twin == DEFAULT_ARM else twin
                arm.outcome = "same_as" if arm.twin else "same_plan" if obeyed else "not_honoured"
            else:
                seen[arm.plan.shape] = arm.name
                raced.append(arm)
        return raced

    async def _explain(self, arm: ArmRuns, *, settled: bool = False) -> Plan | None:
        statement = self._results.statement
        try:
            return await self._on_server(
                lambda connection: explain(
                    connection,
                    statement.sql,
                    statement.params,
                    advice=arm.rendered,
                    search_path=statement.search_path,
                    settled=settled,
                )
            )
        except asyncpg.PostgresConnectionError:
            raise
        except asyncpg.PostgresError as error:
            arm.error = error.sqlstate or "XX000"
            return None

    async def _plan_custom(self, arm: ArmRuns) -> None:
        """Planning for the values is what the default here does already; what it is an arm against is the plan that a
        prepared statement keeps."""
        if not self._results.statement.params:
            arm.outcome = "not_expressible"
            return
        arm.plan = self._results.default.plan
        settled = await self._explain(ArmRuns(DEFAULT_ARM), settled=True)
        if settled is None:
            arm.outcome = "failed"
        elif arm.plan is not None and settled.shape == arm.plan.shape:
            arm.outcome = "same_plan"

    # ------------------------------------------------------------------ runs

    async def _screen(self, arms: list[ArmRuns], best: float) -> list[ArmRuns]:
        """One run of each within the best time so far; those that came through, the fastest first."""
        survivors = []
        for arm in arms:
            arm.first = await self._time(arm, best * FIRST_SLACK)
            if not arm.first.completed:
                arm.outcome = "timed_out" if arm.first.timed_out else "failed"
                arm.error = arm.first.error
                continue
            survivors.append(arm)
            best = min(best, arm.first.ms)
        return sorted(survivors, key=lambda arm: arm.ms)

    async def _rounds_of(self, survivors: list[ArmRuns]) -> None:
        default = self._results.default
        racing = list(survivors)
        for number in range(self._rounds):
            if not racing:
                return
            turn = [default, *racing]
            timings: dict[str, Timing] = {}
            for arm in turn[number % len(turn) :] + turn[: number % len(turn)]:
                timings[arm.name] = await self._time(arm, self._round_limit(arm, racing))
            plain = timings[DEFAULT_ARM]
            if plain.error:
                self._results.reason = f"it fails: {plain.error}"
                return
            default.runs.append(plain)
            for arm in racing:
                if timings[arm.name].error:
                    arm.outcome, arm.error = "failed", timings[arm.name].error
                    continue
                arm.runs.append(timings[arm.name])
                arm.baseline.append(plain)
            racing = self._still_racing(racing, number + 1)
            if self._judged(racing):
                return
            if number + 1 >= ENOUGH_ROUNDS and any(map(self._leads, racing)):
                self._budget.use_spare()

    def _judged(self, arms: list[ArmRuns]) -> bool:
        """Whether more rounds would tell nothing: the verdict on each is clear."""
        rules = self._rules
        return rules is not None and all(
            judge([one.ms for one in arm.runs], [one.ms for one in arm.baseline], rules).verdict is not Verdict.OPEN
            for arm in arms
        )

    def _leads(self, arm: ArmRuns) -> bool:
        """Whether each pair of its runs shows the gain that is asked for."""
        pairs = zip(arm.runs, arm.baseline, strict=True)
        return self._rules is not None and all(ours.ms * self._rules.min_gain <= plain.ms for ours, plain in pairs)

    def _round_limit(self, arm: ArmRuns, racing: list[ArmRuns]) -> float:
        default = self._results.default
        best = min(one.ms for one in (default, *racing))
        if arm is not default:
            return ROUND_SLACK * best
        return max(CENSORED * best, LONG_MS) if max(default.ms, self._first_ms) >= LONG_MS else self._limit_ms

    @property
    def _first_ms(self) -> float:
        first = self._results.default.first
        return first.ms if first is not None else 0.0

    def _still_racing(self, racing: list[ArmRuns], rounds: int) -> list[ArmRuns]:
        racing = [arm for arm in racing if not arm.outcome]
        if rounds < ENOUGH_ROUNDS:
            return racing
        best = min(one.ms for one in (self._results.default, *racing))
        left = []
        for arm in racing:
            if (arm.ms > best * BEHIND and arm.ms > best + 1.0) or arm.ms * PROMISE > _median(arm.baseline):
                arm.outcome = "behind"
            else:
                left.append(arm)
        return left

    async def _custom_plan(self, arm: ArmRuns) -> None:
        """The generic plan takes turns with the default here, which is planned for the values."""
        default = self._results.default
        arm.first = default.first
        limit = max(CENSORED * default.ms, LONG_MS)
        warm = await self._time(default, limit, generic=True)
        if warm.error:
            arm.outcome, arm.error = "failed", warm.error
            return
        for number in range(self._rounds):
            pair: dict[bool, Timing] = {}
            for generic in (True, False) if number % 2 else (False, True):
                pair[generic] = await self._time(default, limit, generic=generic)
            errors = [one.error for one in pair.values() if one.error]
            if errors:
                arm.outcome, arm.error = "failed", errors[0]
                return
            arm.runs.append(pair[False])
            arm.baseline.append(pair[True])
            if self._judged([arm]):
                return

    def _share(self) -> None:
        """Arms with one plan share its runs."""
        for arm in self._results.arms.values():
            if arm.twin:
                twin = self._results.arms[arm.twin]
                arm.first, arm.runs, arm.baseline, arm.error = twin.first, twin.runs, twin.baseline, twin.error

    async def _time(self, arm: ArmRuns, limit_ms: float, *, generic: bool = False) -> Timing:
        limit = max(min(limit_ms, self._limit_ms), FLOOR_MS)
        statement = self._results.statement
        for _ in range(ATTEMPTS):
            left_ms = self._budget.left * 1000
            if left_ms < 1.0:
                raise StoppedError(SPENT)
            within = min(limit, left_ms)
            timing = await self._on_server(
                lambda connection, within=within: time_query(  # type: ignore[misc]
                    connection,
                    statement.sql,
                    statement.params,
                    arm.rendered,
                    within,
                    search_path=statement.search_path,
                    generic=generic,
                )
            )
            if timing.error != CANCELLED:  # somebody cancelled it: that says nothing of the arm
                break
        if timing.timed_out and left_ms < limit:
            # The budget ended it and not its own limit: it says nothing of the arm.
            raise StoppedError(SPENT)
        return timing

    async def _on_server(self, call: Callable[[Connection], Awaitable[_Result]]) -> _Result:
        """One EXPLAIN or run, paced and paid for; once more where the connection turned out to be out of step."""
        for attempt in range(ATTEMPTS):
            if self._pace is not None:
                await self._pace(self._last_seconds)
            connection = await self._link.get()
            started = time.perf_counter()
            try:
                return await call(connection)
            except OutOfStepError:
                if attempt + 1 == ATTEMPTS or not self._link.reopens:
                    raise
            finally:
                self._last_seconds = time.perf_counter() - started
                self._budget.spent += self._last_seconds
        raise AssertionError

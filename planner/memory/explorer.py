"""Exploring off the query path: verifies what may make a statement faster, and writes what was found into the store.

For each statement, those with the most total time first: may it be run at all (one SELECT, read-only, no volatile
function or operator, nothing that the planner would leave alone); what could be tried (the portfolio of settings, the
models' advice, true rows from counting its own sub-plans, planning for the values of a prepared statement); what of
that is known already under the same schema, server and data. The rest is raced (`planner.explore.runner`), judged
(`planner.memory.explored`) and saved at once, one transaction for each statement, so that stopping at any moment keeps
what was verified. A planner process that serves finds it in the store by itself.

Statements run on ``run``, which may be a replica; the catalog is read from the database that is served, since evidence
is kept under its statistics.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

import asyncpg
import msgspec

from planner.advice import Advice
from planner.advise import Models, Options, look
from planner.advise import Statement as Looked
from planner.explore.runner import LIMIT_MS, SPENT, ArmResults, Budget, StoppedError, find_capabilities, try_arms
from planner.explore.server import Connection, Link, NotExplorableError, OutOfStepError, Statement, check, explain
from planner.explore.throttle import Throttle
from planner.explore.trust import OTHERS, check_trusted, named
from planner.graph import NO_PARAMETERS, Parameters
from planner.memory.convert import to_advice
from planner.memory.evidence import Rules
from planner.memory.explored import Decided, baseline, decide
from planner.memory.keys import Conditions, canonical_path, conditions, same
from planner.memory.records import (
    COUNTED_ARM,
    MODEL_ARM,
    ArmRecord,
    Execution,
    QueryRecord,
    State,
    query_key,
    template_key,
)
from planner.memory.store import Store
from planner.param_types import completed, infer
from planner.policy import fingerprint
from planner.snapshot import Snapshot
from planner.sql import read
from planner.values import parameters
from planner.weighing import candidates

Counter = Callable[[Connection, str, Snapshot, Sequence[str], float], Awaitable[Advice | None]]
"""Counts the sub-plans of a statement without parameters, under these schemas (none: the database's default), within so
many seconds; None when that cannot be done."""

EXPECTED: Final = {COUNTED_ARM: 1.5, MODEL_ARM: 1.4}
"""What is tried first where nothing is known; the portfolio comes behind, in its own order."""
MOST_STATEMENTS: Final = 10_000
SHARES: Final = 8
"""No statement gets more than this part of the budget that is left, while there are others: a single one that never
ends would be all that is explored."""
LEAST_SHARE: Final = 1.0
"""Seconds that a statement gets all the same: a small budget in even smaller parts would show nothing of any."""
LEAST_SECONDS: Final = 0.001
"""What is left of a budget and is too little for any run."""
SHARE_SPENT: Final = "share_spent"
OUT_OF_STEP: Final = "out_of_step"
COUNTING: Final = 0.5
"""Of what a statement may spend, so much at most goes into counting its sub-plans."""
_SETTLED: Final = frozenset({State.APPROVED, State.REJECTED, State.PREFERRED, State.FROZEN})
_VOLATILE_OPERATORS: Final = """
    SELECT DISTINCT oprname FROM pg_operator JOIN pg_proc ON pg_proc.oid = oprcode WHERE provolatile = 'v'
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One statement to explore. ``path`` are the schemas of its search_path, () for the connection's own; ``total_ms``
    is what it took in total as far as known, ``calls`` how often it ran."""

    sql: str
    params: tuple[str | None, ...] = ()
    path: tuple[str, ...] = ()
    calls: int = 0
    total_ms: float = 0.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class ExploreOptions:
    """``budget`` are seconds of the server's time for runs, EXPLAINs and counts; ``share``, ``most_active`` and
    ``patience`` as in `Throttle`; ``limit_ms`` the longest statement that is run at all. ``again``: what is known is
    tried once more. ``count_seconds``: for counting one statement's sub-plans, 0 for none."""

    budget: float = 300.0
    share: float = 1.0
    most_active: int = 4
    patience: float = 60.0
    limit_ms: float = LIMIT_MS
    cheap_ms: float = 5.0
    again: bool = False
    count_seconds: float = 30.0
    rules: Rules = field(default_factory=Rules)


@dataclass(slots=True)
class Explored:
    """One statement when it is done with. ``reason`` is why nothing was tried, "" otherwise."""

    wanted: Wanted
    key: str = ""
    reason: str = ""
    results: ArmResults | None = None
    decided: list[Decided] = field(default_factory=list)
    spent: float = 0.0

    @property
    def approved(self) -> Decided | None:
        """The one that is used from now on."""
        found = [one for one in self.decided if one.record.state is State.APPROVED and one.finding is not None]
        return max(found, key=lambda one: one.record.measured_gain, default=None)

    @property
    def plain_ms(self) -> float:
        """What an execution takes by itself; at least, where it was stopped."""
        if self.results is None or not self.results.default.runs:
            return 0.0
        default = self.results.default
        if default.first is None or not any(one.timed_out for one in default.runs):
            return default.ms
        return max(default.ms, default.first.ms)

    @property
    def saved_ms(self) -> float:
        """What one execution saves from now on: by runs in turns, which on a busy machine may have taken longer than
        the others, but never more than an execution takes."""
        return min(max(self.approved.saved_ms, 0.0), self.plain_ms) if self.approved is not None else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.wanted.name,
            "key": self.key,
            "reason": self.reason,
            "calls": self.wanted.calls,
            "total_ms": self.wanted.total_ms,
            "plain_ms": self.plain_ms,
            "saved_ms": self.saved_ms,
            "spent_seconds": self.spent,
            "approved": self.approved.record.arm if self.approved is not None else "",
            "states": {one.record.arm: str(one.record.state) for one in self.decided},
            "why": {one.record.arm: one.record.why for one in self.decided},
            "results": self.results.as_json() if self.results is not None else None,
        }


@dataclass(slots=True)
class Report:
    """A whole exploration. ``spent`` is the server's time in seconds, ``stopped`` why it ended early."""

    explored: list[Explored] = field(default_factory=list)
    wanted: int = 0
    spent: float = 0.0
    rested: float = 0.0
    stopped: str = ""

    @property
    def tried(self) -> list[Explored]:
        return [one for one in self.explored if one.results is not None and one.results.default.runs]

    @property
    def approved(self) -> list[Explored]:
        return [one for one in self.explored if one.approved is not None]

    @property
    def saved_ms(self) -> float:
        """What running each explored statement once saves."""
        return sum(one.saved_ms for one in self.explored)

    @property
    def repays_after(self) -> float | None:
        """How often each statement must be repeated until exploring has paid for itself; None for never."""
        return self.spent * 1000 / self.saved_ms if self.saved_ms > 0 else None

    def as_json(self) -> dict[str, Any]:
        return {
            "statements": self.wanted,
            "looked_at": len(self.explored),
            "tried": len(self.tried),
            "approved": len(self.approved),
            "spent_seconds": self.spent,
            "rested_seconds": self.rested,
            "plain_ms": sum(one.plain_ms for one in self.tried),
            "saved_ms": self.saved_ms,
            "repaid_after_repeats": self.repays_after,
            "stopped": self.stopped,
            "queries": [one.as_json() for one in self.explored],
        }


Progress = Callable[[Report, Wanted | None], None]
"""Told before each statement, and with None at the end."""


class Explorer:
    """Explores statements of one database. ``snapshot`` is of the database that is served, ``run`` the connection that
    statements run on. `report` is up to date at any moment."""

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        run: Link,
        options: ExploreOptions,
        *,
        models: Models | None = None,
        count: Counter | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._run = run
        self._options = options
        self._models = models or Models()
        self._count = count
        self._progress = progress
        self._budget = Budget(options.budget)
        self._throttle = Throttle(run, share=options.share, most_active=options.most_active, patience=options.patience)
        self._volatile_operators: frozenset[str] = frozenset()
        self._capabilities: frozenset[str] = frozenset()
        self.report = Report()

    async def explore(self, wanted: Sequence[Wanted]) -> Report:
        """Those with the most total time first; where no times are known, as the server estimates their costs. Raises
        `planner.memory.store.StoreError`, and asyncpg's errors or OSError when the database is gone; what was verified
        before is in the store."""
        report = self.report
        report.wanted = len(wanted)
        self._capabilities = await find_capabilities(await self._run.get())
        self._volatile_operators = await self._volatile()
        for one in await self._in_order(wanted):
            if self._progress is not None:
                self._progress(report, one)
            if self._budget.left <= LEAST_SECONDS:
                report.stopped = SPENT
                break
            before = self._budget.spent
            explored = Explored(one)
            try:
                await self._one(explored)
            except StoppedError as error:
                report.stopped = str(error)
            except OutOfStepError:
                # Its connection is gone, and another one is opened for the next.
                if not self._run.reopens:
                    raise
                explored.reason = OUT_OF_STEP
            finally:
                explored.spent = self._budget.spent - before
                report.spent, report.rested = self._budget.spent, self._throttle.rested
                report.explored.append(explored)
            if explored.results is not None and explored.results.stopped:
                report.stopped = explored.results.stopped
            if report.stopped:
                break
        if self._progress is not None:
            self._progress(report, None)
        return report

    async def _in_order(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """Costs are asked for only where times are missing; a cost unit counts as a hundredth of a millisecond."""
        weights: list[float] = []
        for one in wanted[:MOST_STATEMENTS]:
            weight = one.total_ms
            if not weight and not one.params:
                weight = await self._cost(one.sql) / 100
            weights.append(weight)
        order = sorted(range(len(weights)), key=lambda at: -weights[at])
        return [wanted[at] for at in order]

    async def _cost(self, sql: str) -> float:
        try:
            check(sql)
            connection = await self._run.get()
            await check_trusted(connection, sql)
            return (await explain(connection, sql)).cost
        except asyncpg.PostgresConnectionError:
            raise
        except (asyncpg.PostgresError, ValueError):
            return 0.0

    async def _volatile(self) -> frozenset[str]:
        connection = await self._run.get()
        return frozenset(row["oprname"] for row in await connection.fetch(_VOLATILE_OPERATORS))

    # ------------------------------------------------------------------ one statement

    async def _one(self, explored: Explored) -> None:
        wanted = explored.wanted
        looked = self._look(wanted)
        if isinstance(looked, str):
            explored.reason = looked
            return
        try:
            await check_trusted(await self._run.get(), wanted.sql)
        except NotExplorableError:
            explored.reason = OTHERS
            return
        if not self._volatile_operators.isdisjoint(named(wanted.sql)[1]):
            explored.reason = "volatile"
            return
        snapshot = self._snapshot
        assert looked.resolved is not None
        path = canonical_path(snapshot, wanted.path)
        params = json.dumps(wanted.params, ensure_ascii=False) if wanted.params else ""
        key = explored.key = query_key(snapshot.database, path, wanted.sql, params)
        found = await asyncio.to_thread(self._store.query, key)
        known = {arm.arm: arm for arm in await asyncio.to_thread(self._store.arms, key)}
        if found is not None and found.opted_out:
            explored.reason = "frozen"
            return
        tables = [table for block in looked.resolved.blocks for table in block.tables]
        now = conditions(snapshot, tables)
        arms, labels, expected = self._candidates(wanted, looked)
        counting = self._count is not None and not wanted.params and self._options.count_seconds > 0
        fresh = [name for name in arms if not self._known(known.get(name), now, labels.get(name, ""))]
        if counting and not self._known(known.get(COUNTED_ARM), now, ""):
            await self._counted(wanted, arms)
            fresh += [COUNTED_ARM] * (COUNTED_ARM in arms)
        if not fresh:
            explored.reason = "known"
            return
        contest = {
            name: advice
            for name, advice in arms.items()
            if name in fresh or (name in known and known[name].state is State.APPROVED)
        }
        expected |= {name: arm.measured_gain for name, arm in known.items() if arm.measured_gain}
        results = await self._race(wanted, contest, expected)
        explored.results = results
        explored.reason = results.reason
        if results.default.runs and not results.reason:
            query = QueryRecord(
                key=key,
                template=template_key(snapshot.database, path, fingerprint(wanted.sql)),
                database=snapshot.database,
                search_path=path,
                fingerprint=fingerprint(wanted.sql),
                text=wanted.sql,
                params=params,
                first_seen=time.time(),
            )
            explored.decided = await asyncio.to_thread(self._save, query, results, now, labels)

    def _look(self, wanted: Wanted) -> Looked | str:
        """The statement with its tables, or why it is not explored."""
        try:
            check(wanted.sql)
        except NotExplorableError:
            return "not_a_query"
        reading = read(wanted.sql)
        if reading.graph is None:
            return reading.reason
        if not reading.graph.read_only:
            return "not_read_only"
        looked = look(reading.graph, self._snapshot, wanted.path)
        if looked.reason:
            return looked.reason
        return looked

    def _candidates(self, wanted: Wanted, looked: Looked) -> tuple[dict[str, Advice], dict[str, str], dict[str, float]]:
        """What could be tried, by name: the same arms as in serving; of what comes from a model which one; and how much
        is expected of it."""
        found, _ = candidates(
            looked,
            self._snapshot,
            self._models,
            _parameters(wanted, looked),
            prepared=bool(wanted.params),
            options=Options(),
            failed=lambda error: None,  # a model that fails advises nothing, as in serving
        )
        arms = {one.arm: to_advice(one.advice) for one in found}
        labels = {one.arm: one.model for one in found if one.model}
        expected = {one.arm: max(one.expected_gain, EXPECTED[MODEL_ARM]) for one in found if one.model}
        return arms, labels, {COUNTED_ARM: EXPECTED[COUNTED_ARM], **expected}

    def _known(self, record: ArmRecord | None, now: Conditions, label: str) -> bool:
        """Whether there is nothing new to learn of an arm."""
        if record is None or record.state not in _SETTLED:
            return False
        if record.state in (State.PREFERRED, State.FROZEN) or record.actor != "system":
            return True
        measured = Conditions(record.schema_hash, record.server_version, record.drift)
        if self._options.again or same(measured, now):
            return False
        return record.arm != MODEL_ARM or record.state is State.APPROVED or record.model == label

    async def _counted(self, wanted: Wanted, arms: dict[str, Advice]) -> None:
        assert self._count is not None
        await self._throttle(0.0)
        started = time.perf_counter()
        seconds = min(self._options.count_seconds, self._share * COUNTING)
        try:
            advice = await self._count(await self._run.get(), wanted.sql, self._snapshot, wanted.path, seconds)
        finally:
            took = time.perf_counter() - started
            self._budget.spent += took
        await self._throttle(took)
        if advice is not None and not advice.empty:
            arms[COUNTED_ARM] = advice

    async def _race(self, wanted: Wanted, arms: Mapping[str, Advice], expected: Mapping[str, float]) -> ArmResults:
        statement = Statement(wanted.sql, wanted.params, ", ".join(map(_identifier, wanted.path)))
        seconds = self._share
        share = Budget(seconds, spare=min(seconds, self._budget.left - seconds))
        try:
            results = await try_arms(
                self._run,
                statement,
                arms,
                share,
                capabilities=self._capabilities,
                expected=expected,
                rules=self._options.rules,
                limit_ms=self._options.limit_ms,
                cheap_ms=self._options.cheap_ms,
                pace=self._throttle,
            )
        finally:
            self._budget.spent += share.spent
        if results.stopped == SPENT and self._budget.left > LEAST_SECONDS:
            # Only this one's share is spent: the others have theirs.
            results.stopped = ""
            results.reason = results.reason or ("" if any(arm.runs for arm in results.arms.values()) else SHARE_SPENT)
        return results

    @property
    def _share(self) -> float:
        """The seconds that the present statement may spend."""
        share = self._budget.left / max(min(SHARES, self.report.wanted - len(self.report.explored)), 1)
        return max(share, min(self._budget.left, LEAST_SHARE))

    def _save(
        self, query: QueryRecord, results: ArmResults, now: Conditions, labels: Mapping[str, str]
    ) -> list[Decided]:
        """In a thread. What is there is read again at the last moment: a person or a planner process may have changed
        it while the arms ran, and then theirs stands (`planner.memory.store.saving`)."""
        at = time.time()
        found = self._store.query(query.key)
        latest = found or query
        latest = msgspec.structs.replace(
            latest,
            text=latest.text or query.text,
            params=latest.params or query.params,
            last_seen=max(latest.last_seen, at),
            baseline=baseline(results, latest.baseline),
            updated=at,
        )
        known = {arm.arm: arm for arm in self._store.arms(query.key)}
        decided, ledger = decide(results, latest, known, now, labels, at, self._options.rules)
        saved = self._store.save([latest], [one.record for one in decided], ledger)
        states = {arm.arm: arm for arm in saved.arms}
        return [replace(one, record=states.get(one.record.arm, one.record)) for one in decided]


def wanted_of(record: QueryRecord | Execution) -> Wanted | None:
    """What the store knows of a query, or of a sampled execution; None where its text is not kept."""
    if not record.text:
        return None
    try:
        params = tuple(json.loads(record.params)) if record.params else ()
    except (TypeError, ValueError):
        return None
    if not all(value is None or isinstance(value, str) for value in params):
        return None
    path = tuple(name for name in record.search_path.split(", ") if name)
    if isinstance(record, Execution):
        return Wanted(record.text, params, path, name=record.fingerprint)
    usual = median(record.baseline) if record.baseline else 0.0
    return Wanted(record.text, params, path, record.calls, record.total_ms or usual * record.calls, record.fingerprint)


def _parameters(wanted: Wanted, looked: Looked) -> Parameters:
    if not wanted.params or looked.resolved is None:
        return NO_PARAMETERS
    parts = [b"\0\0", len(wanted.params).to_bytes(2, "big")]
    for value in wanted.params:
        data = b"" if value is None else value.encode("utf-8", "surrogateescape")
        parts += [(-1 if value is None else len(data)).to_bytes(4, "big", signed=True), data]
    return parameters(b"".join(parts), completed((), infer(looked.resolved)))


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

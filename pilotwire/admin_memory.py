"""What the admin pages show of the store, and people's decisions written into it.

The store's methods block, so they run in two threads of their own, with a time limit; a store that is away costs its
reader one sentence and nobody else anything. What is computed from many rows (who saved most) is kept for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from pilotwire.latency_history import TIME_SAVED, LatencyHistory, as_latency
from pilotwire.planner_process import upstream
from planner.memory.records import (
    REPLAYED,
    ArmRecord,
    Execution,
    HistoryPoint,
    LedgerEntry,
    QueryRecord,
    State,
    query_key,
)
from proxy.admin.source import (
    Arm,
    BreakerNow,
    Decision,
    Gain,
    Latency,
    LedgerLine,
    Metric,
    NotFoundError,
    Order,
    PlannedStatement,
    PlanNode,
    PlanPair,
    Query,
    QueryDetail,
    RefusedError,
    Run,
    UnavailableError,
)
from proxy.settings import ProxySettings

if TYPE_CHECKING:
    from planner.memory.breaker import Standing
    from planner.memory.store import Store

LOOKED_AT: Final = 1000
"""Queries among which the page is chosen: those with the largest total time (or changed last)."""
KEPT_SECONDS: Final = 2.0
STORE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 5.0
PLAN_SECONDS: Final = 150.0
MAX_LINES: Final = 100
"""Lines of the ledger that wait for a store that is away."""
OFF: Final = "The store is switched off (store = none): nothing is remembered."
_RANK: Final = {
    State.PREFERRED: 0, State.APPROVED: 1, State.TRIAL: 2, State.CANDIDATE: 3, State.EXPIRED: 4, State.REJECTED: 5,
    State.FROZEN: 6,
}  # fmt: skip
T = TypeVar("T")


class StoreMemory:
    """Implements `proxy.admin.source.MemorySource`. ``settings`` gives those in force; ``url`` is the store's, None:
    there is none."""

    def __init__(self, url: str | None, settings: Callable[[], ProxySettings]) -> None:
        self._url = url
        self._settings = settings
        self._threads = ThreadPoolExecutor(2, "store")
        self._store: Store | None = None
        self._trouble: tuple[float, str] = (0.0, "")
        self._pages: dict[tuple[str, str | None], tuple[float, list[Query]]] = {}
        self._planning = asyncio.Semaphore(2)
        self._midnight: tuple[float, float, tuple[float, float, float]] = (0.0, 0.0, (0.0, 0.0, 0.0))
        self._breakers: tuple[float, Sequence[BreakerNow]] = (-KEPT_SECONDS, [])
        self._lines: deque[LedgerEntry] = deque(maxlen=MAX_LINES)
        self.latency_history: LatencyHistory | None = None

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            try:
                await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._threads, store.close), 2.0)
            except TimeoutError:
                # The process would not end before its threads do.
                store.cut()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, work: Callable[[Store], T]) -> T:
        """Has a thread do something with the store. Raises UnavailableError with one sentence, without secrets."""
        if self._url is None:
            raise UnavailableError(OFF)
        since, why = self._trouble
        if why and time.monotonic() - since < RETRY_SECONDS:
            raise UnavailableError(why)
        try:
            async with asyncio.timeout(STORE_SECONDS):
                found = await asyncio.get_running_loop().run_in_executor(self._threads, self._work, work)
        except TimeoutError:
            self._fail("The store does not answer.")
        except (NotFoundError, RefusedError):
            raise
        except Exception as error:
            # Of the store's own errors the text is one sentence; of others nobody knows what it says.
            from planner.memory.store import StoreError

            self._fail(f"The store cannot be used: {error if isinstance(error, StoreError) else type(error).__name__}")
        self._trouble = (0.0, "")
        return found

    def _fail(self, why: str) -> Any:
        self._trouble = (time.monotonic(), why)
        raise UnavailableError(why)

    def _work(self, work: Callable[[Store], T]) -> T:
        """In a thread."""
        if self._store is None:
            from planner.memory.store import open_store

            assert self._url is not None
            self._store = open_store(self._url, literals=self._settings().store_literals)
        return work(self._store)

    # --- queries -------------------------------------------------------------------------------------------------

    async def queries(
        self, order: Order, offset: int, limit: int, state: str | None, database: str | None, search: str
    ) -> tuple[Sequence[Query], int]:
        rows = await self._rows("updated" if order == "updated" else "total_ms", database)
        wanted = search.strip().lower()
        rows = [
            row
            for row in rows
            if (state is None or row.state == state)
            and (not wanted or any(wanted in text for text in (row.text.lower(), row.fingerprint, row.key, row.arm)))
        ]
        if order == "saved":
            rows.sort(key=lambda row: -row.saved_ms)
        elif order == "lost":
            rows.sort(key=lambda row: row.saved_ms)
        return rows[offset : offset + limit], len(rows)

    async def _rows(self, order: str, database: str | None) -> list[Query]:
        kept = self._pages.get((order, database))
        if kept is not None and time.monotonic() - kept[0] < KEPT_SECONDS:
            return list(kept[1])

        def read(store: Store) -> list[Query]:
            found = store.queries(database, limit=LOOKED_AT, order=order)
            arms: dict[str, list[ArmRecord]] = {}
            for arm in store.arms(keys=[record.key for record in found]) if found else ():
                arms.setdefault(arm.key, []).append(arm)
            return [as_query(record, arms.get(record.key, [])) for record in found]

        rows = await self._ask(read)
        if len(self._pages) > 20:
            self._pages.clear()
        self._pages[order, database] = (time.monotonic(), rows)
        return list(rows)

    async def query(self, key: str) -> QueryDetail:
        def read(store: Store) -> QueryDetail:
            record = _known(store, key)
            arms = store.arms(key)
            runs = store.executions(key=key, newest=True, limit=500)
            lines = store.ledger(key=key, limit=100)
            return QueryDetail(
                as_query(record, arms),
                tuple(as_arm(arm, record) for arm in sorted(arms, key=_rank)),
                tuple(as_run(run) for run in runs),
                tuple(as_line(line) for line in lines),
            )

        return await self._ask(read)

    async def ledger(self, kind: str | None, key: str | None, before: int | None, limit: int) -> Sequence[LedgerLine]:
        found = await self._ask(lambda store: store.ledger(kind=kind, key=key, before_id=before, limit=limit))
        return [as_line(line) for line in found]

    async def runs(self, key: str | None, limit: int) -> Sequence[Run]:
        found = await self._ask(lambda store: store.executions(key=key, newest=True, limit=limit))
        return [as_run(run) for run in found]

    # --- history -------------------------------------------------------------------------------------------------

    async def save_history(self, points: Sequence[HistoryPoint]) -> bool:
        """And lines of the ledger that wait. False when they are to be tried again; where there is no store there is
        nothing to try."""
        lines = list(self._lines)
        try:
            await self._ask(lambda store: store.save(history=points, ledger=lines))
        except UnavailableError:
            return self._url is None
        for line in lines:
            with contextlib.suppress(ValueError):
                self._lines.remove(line)
        return True

    async def recent_history(self, seconds: float) -> Sequence[HistoryPoint]:
        """All metrics; nothing where the store cannot be read."""
        try:
            return await self._ask(lambda store: store.history(since=time.time() - seconds))
        except UnavailableError:
            return ()

    async def history(self, metric: Metric, model: str | None, start: datetime, end: datetime) -> Sequence[Latency]:
        """From the store, or where it cannot be read what this process remembers."""
        since, until = start.timestamp(), end.timestamp()
        try:
            found = await self._ask(lambda store: store.history(metric, model, since, until))
        except UnavailableError:
            assert self.latency_history is not None
            found = self.latency_history.points(metric, model, since, until)
        return [as_latency(point, metric) for point in found]

    async def gain(self) -> Gain:
        """Of today, from the points in the store and what came since."""
        history = self.latency_history
        assert history is not None
        start = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        since, asked, before = self._midnight
        if since != start.timestamp() or time.monotonic() - asked > KEPT_SECONDS:
            try:
                points = await self._ask(lambda store: store.history(TIME_SAVED, None, start.timestamp()))
            except UnavailableError:
                if self._url is not None:
                    raise
                points = history.points(TIME_SAVED, None, start.timestamp(), float("inf"))
            before = (
                sum(point.p50 for point in points),
                sum(point.p95 for point in points),
                float(sum(point.count for point in points)),
            )
            self._midnight = (start.timestamp(), time.monotonic(), before)
        saved, lost, regressions = (old + new for old, new in zip(before, history.gain_now(), strict=True))
        return Gain(start, round(saved, 3), round(lost, 3), int(regressions), any(before) or history.measured)

    # --- a person's decisions ------------------------------------------------------------------------------------

    async def decide(self, key: str, action: Decision, arm: str, actor: str, why: str) -> QueryDetail:
        await self._ask(lambda store: _decide(store, key, action, arm, actor, why))
        self._pages.clear()
        if action == "forget":
            gone = Query(key, key, "", "", "", "", 0, 0.0, None, None, 0.0, "", "", 0, False, None, None, None)
            return QueryDetail(gone)
        return await self.query(key)

    # --- circuit breakers, and the mode --------------------------------------------------------------------------

    async def breakers(self) -> Sequence[BreakerNow]:
        from planner.memory.store.breakers import standing

        asked, found = self._breakers
        if time.monotonic() - asked > KEPT_SECONDS:
            found = [as_breaker(one) for one in await self._ask(standing)] if self._url is not None else []
            self._breakers = (time.monotonic(), found)
        return found

    async def close_breaker(self, source: str, covers: str, actor: str, why: str) -> Sequence[BreakerNow]:
        await self._ask(lambda store: _close(store, source, covers, actor, why))
        self._breakers = (-KEPT_SECONDS, [])
        return await self.breakers()

    async def mode_switched(self, before: str, after: str, actor: str, why: str) -> None:
        """Writes it into the ledger; where the store is away, with the next history that can be written."""
        if self._url is None or before == after:
            return
        line = LedgerEntry(
            at=time.time(), kind="mode", before=before, after=after, actor=actor, why=why, uid=uuid.uuid4().hex
        )
        self._lines.append(line)
        await self.save_history(())

    # --- plans ---------------------------------------------------------------------------------------------------

    async def plans(self, key: str, text: str, arm: str, *, analyze: bool) -> PlanPair:
        record, arms = await self._ask(lambda store: (_known(store, key), store.arms(key)))
        statement = text or record.text
        if not statement:
            raise RefusedError("the store keeps no literals (store_literals): give the statement with its values")
        if text and query_key(record.database, record.search_path, text, record.params) != record.key:
            raise RefusedError("this is not the statement that is remembered here: it must be the same to the letter")
        chosen = _chosen(arms, arm) if arms or arm else None
        wanted = {
            "upstream": msgspec.to_builtins(upstream(self._settings())),
            "database": record.database,
            "search_path": record.search_path,
            "sql": statement,
            "params": json.loads(record.params) if record.params else [],
            "advice": msgspec.to_builtins(chosen.advice) if chosen is not None else None,
            "analyze": analyze,
        }
        async with self._planning:
            found = await _in_a_process("pilotwire.plan_pair", json.dumps(wanted).encode(), PLAN_SECONDS)
        if "error" in found:
            raise RefusedError(str(found["error"]))
        plain, steered = (_planned(found[name]) for name in ("plain", "steered"))
        assert plain is not None
        return PlanPair(plain, steered, chosen.arm if chosen is not None else "", str(found["note"]))


def _decide(store: Store, key: str, action: Decision, arm: str, actor: str, why: str) -> None:
    from planner.memory.store.decisions import DecisionError, decide

    try:
        decide(store, key, action, arm, actor=actor, why=why)
    except DecisionError as error:
        raise (NotFoundError if error.missing else RefusedError)(str(error)) from None


def _close(store: Store, source: str, covers: str, actor: str, why: str) -> None:
    from planner.memory.store.breakers import close
    from planner.memory.store.decisions import DecisionError

    try:
        close(store, source, covers, actor=actor, why=why)
    except DecisionError as error:
        raise (NotFoundError if error.missing else RefusedError)(str(error)) from None


def as_breaker(one: Standing) -> BreakerNow:
    from planner.memory.store.breakers import called

    return BreakerNow(called(one), one.covers, str(one.position), _moment(one.until), one.bad, one.outcomes)


def _known(store: Store, key: str) -> QueryRecord:
    record = store.query(key)
    if record is None:
        raise NotFoundError(f"no query {key} is remembered")
    return record


def _chosen(arms: Sequence[ArmRecord], name: str) -> ArmRecord:
    if name:
        for arm in arms:
            if arm.arm == name:
                return arm
        raise NotFoundError(f"the query has no arm {name[:100]}")
    if not arms:
        raise RefusedError("the query has no arm to decide about yet")
    return min(arms, key=_rank)


def _rank(arm: ArmRecord) -> tuple[int, float, str]:
    """The arm that matters most comes first."""
    return _RANK[arm.state], -arm.measured_gain, arm.arm


# --- records as the API gives them -------------------------------------------------------------------------------


def as_query(record: QueryRecord, arms: Sequence[ArmRecord]) -> Query:
    first = min(arms, key=_rank, default=None)
    # A template that was opted out keeps its queries' arms: the person's word is what counts.
    state = "frozen" if record.opted_out else str(first.state) if first is not None else ""
    measured = [arm for arm in arms if arm.latencies and (arm.state in REPLAYED or arm is first)]
    best = min(measured, key=_rank, default=None)
    return Query(
        key=record.key,
        template=record.template,
        database=record.database,
        search_path=record.search_path,
        fingerprint=record.fingerprint,
        text=record.text or record.shape,
        calls=record.calls,
        total_ms=record.total_ms,
        plain_ms=_median((best.baseline if best is not None else ()) or record.baseline),
        steered_ms=_median(best.latencies) if best is not None else None,
        saved_ms=sum(saved_ms(arm, record) for arm in arms),
        state=state,
        arm=first.arm if first is not None else "",
        arms=len(arms),
        opted_out=record.opted_out,
        first_seen=_moment(record.first_seen),
        last_seen=_moment(record.last_seen),
        updated=_moment(max([record.updated, *(arm.updated for arm in arms)])),
    )


def saved_ms(arm: ArmRecord, record: QueryRecord) -> float:
    """All runs of the arm by the difference of the medians: an estimate, negative when it lost. A candidate has been
    run by nobody but the explorer."""
    if arm.state is State.CANDIDATE:
        return 0.0
    plain, steered = _median(arm.baseline or record.baseline), _median(arm.latencies)
    return 0.0 if plain is None or steered is None else (plain - steered) * max(arm.runs, len(arm.latencies))


def as_arm(arm: ArmRecord, record: QueryRecord) -> Arm:
    return Arm(
        arm=arm.arm,
        state=str(arm.state),
        model=arm.model,
        dialect=arm.dialect,
        rows=arm.advice.rows,
        settings=arm.advice.settings,
        latencies=arm.latencies,
        baseline=arm.baseline or record.baseline,
        steered_ms=_median(arm.latencies),
        plain_ms=_median(arm.baseline or record.baseline),
        runs=arm.runs,
        losses=arm.losses,
        expected_gain=arm.expected_gain,
        measured_gain=arm.measured_gain,
        saved_ms=saved_ms(arm, record),
        why=arm.why,
        actor=arm.actor,
        updated=_moment(arm.updated),
    )


def as_run(run: Execution) -> Run:
    return Run(
        at=_moment(run.at) or datetime.fromtimestamp(0).astimezone(),
        took_ms=run.took_ms,
        decision=run.decision,
        arm=run.arm,
        model=run.model,
        rows=run.rows,
        failed=run.failed,
        database=run.database,
        user=run.user,
        application=run.application,
        fingerprint=run.fingerprint,
        key=run.key,
    )


def as_line(entry: LedgerEntry) -> LedgerLine:
    return LedgerLine(
        id=entry.id,
        at=_moment(entry.at) or datetime.fromtimestamp(0).astimezone(),
        kind=entry.kind,
        key=entry.key,
        database=entry.database,
        fingerprint=entry.fingerprint,
        arm=entry.arm,
        model=entry.model,
        before=entry.before,
        after=entry.after,
        expected_gain=entry.expected_gain,
        measured_gain=entry.measured_gain,
        took_ms=entry.took_ms,
        actor=entry.actor,
        why=entry.why,
        text=entry.text,
        scope=entry.scope,
    )


def _median(values: Sequence[float]) -> float | None:
    return round(median(values), 3) if values else None


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds).astimezone() if seconds > 0 else None


def _planned(found: dict[str, Any] | None) -> PlannedStatement | None:
    if found is None:
        return None
    return PlannedStatement(
        _node(found["root"]), found["cost"], found["planning_ms"], found["time_ms"], found["advice"]
    )


def _node(found: dict[str, Any]) -> PlanNode:
    own = {name: value for name, value in found.items() if name != "children"}
    return PlanNode(**own, children=tuple(_node(child) for child in found["children"]))


async def _in_a_process(module: str, given: bytes, limit: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        process_group=0,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit):
            out, _ = await process.communicate(given)
        found = json.loads(out)
    except TimeoutError:
        raise RefusedError(f"no plan within {limit:g} s") from None
    except ValueError:
        raise RefusedError("the statement could not be explained") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return found if isinstance(found, dict) else {"error": "the statement could not be explained"}

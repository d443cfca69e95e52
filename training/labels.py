"""True cardinalities: runs the counts of `training.counting` within a budget and keeps every result.

Counts run on a few read-only connections, each under a statement timeout. Of a count's two forms the one that EXPLAIN
thinks cheaper runs first, with a handicap for the plain one, since what is looked for here are the joins whose size is
underestimated; when it runs out of time the other form is tried. The plain form, which produces the join's rows, moves
a cursor over them: where it stops, at a number of rows or by the clock, as many rows as it has passed are known to be
there, a lower bound. What runs out of time in both forms is given up, and remembered with that bound, so that the next
run does not try it again with as little time.

Cheap counts come first, but joins of every size get their share of the time: where the budget is not enough for all,
a model that had seen nothing but joins of two tables would know nothing of those that matter.

Every result is kept in the training set the moment it is there. It goes by the digest of the count's text: no literal
of a query is kept with it. A count holds for the data it was made on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import asyncpg

from training.counting import Count
from training.errors import TrainingError
from training.queries import OWN
from training.training_set import EXACT, LOWER, STOPPED, TrainingSet

COUNTED: Final = "counted"
MOST_ROWS: Final = 50_000_000
"""Where a count that produces its join's rows stops."""
FIRST_MOVE: Final = 1 << 16
"""How many rows are passed at first; then as many again as have been passed, so that a lower bound is at most twice too
low."""
PLAIN_HANDICAP: Final = 5.0
SESSION: Final[Mapping[str, str]] = {
    "application_name": "pilotwire train",
    "default_transaction_read_only": "on",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # Many counts join more tables than the planner reorders by itself.
    "join_collapse_limit": "20",
    "from_collapse_limit": "20",
    "geqo": "off",
    # All rows of a cursor are read.
    "cursor_tuple_fraction": "1",
}
Progress = Callable[["Labels"], None]


@dataclass(slots=True)
class Labels:
    """How labelling stands. ``rows`` has the true rows by `digest` of the count's plain text, ``bounds`` lower bounds
    of others, above 0. ``bounded`` counts were stopped at a number of rows, ``timed_out`` ones by the clock."""

    wanted: int = 0
    known: int = 0
    """Of the wanted: exactly known from before."""
    counted: int = 0
    bounded: int = 0
    timed_out: int = 0
    failed: int = 0
    seconds: float = 0.0
    rows: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    first_failure: str = ""

    @property
    def left(self) -> int:
        """Not looked at: the budget was over before."""
        return self.wanted - self.known - self.counted - self.bounded - self.timed_out - self.failed

    def after(self, first: Labels) -> Labels:
        """Both runs over the same counts as one."""
        return replace(
            self, known=first.known, counted=first.counted + self.counted, seconds=first.seconds + self.seconds
        )


def digest(count: Count) -> str:
    """The name of a count in the training set."""
    return hashlib.blake2b(count.plain.encode(), digest_size=16).hexdigest()


async def connect(dsn: str, **settings: str) -> asyncpg.Connection[asyncpg.Record]:
    """A read-only connection for counting. Raises TrainingError."""
    try:
        return await asyncpg.connect(dsn, server_settings={**SESSION, **settings}, timeout=30)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or "no answer within 30 seconds"
        raise TrainingError(f"the database cannot be reached: {reason}") from None


class Labeller:
    """Counts sub-plans. ``timeout`` is for one statement, ``budget`` for everything, both in seconds; ``most_rows`` is
    where a count stops that produces its rows, 0: nowhere."""

    def __init__(
        self,
        dsn: str,
        kept: TrainingSet,
        *,
        budget: float,
        timeout: float,
        connections: int = 2,
        most_rows: int = MOST_ROWS,
        progress: Progress | None = None,
    ) -> None:
        self._dsn = dsn
        self._kept = kept
        self._budget = budget
        self._timeout = timeout
        self._connections = connections
        self._most_rows = most_rows
        self._progress = progress
        self._labels = Labels()
        self._started = 0.0

    async def run(self, counts: Iterable[Count]) -> Labels:
        """Label these counts, each once. TrainingError when the database goes away; what was counted is kept."""
        self._started = time.monotonic()
        wanted = {digest(count): count for count in counts}
        labels = self._labels = Labels(wanted=len(wanted))
        waiting: dict[str, Count] = {}
        for name, count in wanted.items():
            kind, rows, limit = self._kept.label(name) or ("", 0.0, 0.0)
            if kind == EXACT:
                labels.rows[name] = rows
                labels.known += 1
            elif kind == LOWER and (self._most_rows and rows >= self._most_rows):
                labels.bounds[name] = rows
                labels.bounded += 1
            elif kind in (LOWER, STOPPED) and limit >= self._timeout:
                labels.timed_out += 1
                if kind == LOWER:
                    labels.bounds[name] = rows
            else:
                waiting[name] = count
        self._tell()
        if waiting:
            await self._all(waiting)
        labels.seconds = time.monotonic() - self._started
        self._tell()
        return labels

    async def _all(self, waiting: Mapping[str, Count]) -> None:
        try:
            names = list(waiting)
            parts = [
                {name: waiting[name] for name in names[part :: self._connections]} for part in range(self._connections)
            ]
            async with asyncio.TaskGroup() as group:
                explained = [group.create_task(self._explain(part)) for part in parts]
            queue = _Queue(item for task in explained for item in task.result())
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._connections, len(waiting))):
                    group.create_task(self._work(queue))
        except BaseExceptionGroup as several:
            error = several.exceptions[0]
            if not isinstance(error, GONE):
                raise error from None
            raise gone_in_the_middle(error, self._kept, "counting") from None

    @property
    def _remaining(self) -> float:
        return self._budget - (time.monotonic() - self._started)

    def _tell(self) -> None:
        self._labels.seconds = time.monotonic() - self._started
        if self._progress is not None:
            self._progress(self._labels)

    async def _explain(self, counts: Mapping[str, Count]) -> list[_Waiting]:
        """Each count's cost and its forms in the order they are tried. What the budget leaves out comes last."""
        found: list[_Waiting] = []
        connection = await connect(self._dsn)
        try:
            for name, count in counts.items():
                forms = [count.plain] if count.factored is None else [count.plain, count.factored]
                if self._remaining < self._budget / 2:
                    found.append(_Waiting(float("inf"), name, forms, count))
                    continue
                try:
                    costs = [await _cost(connection, form) for form in forms]
                except asyncpg.PostgresError as error:
                    self._refused(error)
                    continue
                if len(forms) == 2 and costs[1] < PLAIN_HANDICAP * costs[0]:
                    forms.reverse()
                    costs.reverse()
                found.append(_Waiting(costs[0], name, forms, count))
        finally:
            await connection.close(timeout=5)
        return found

    def _refused(self, error: Exception) -> None:
        """One statement was refused: the next one may still work, unless the server is gone. Raises the error then."""
        if isinstance(error, GONE):
            raise error
        self._labels.failed += 1
        self._labels.first_failure = self._labels.first_failure or " ".join(str(error).split())

    async def _work(self, queue: _Queue) -> None:
        """Take counts until there are none or the budget is over."""
        connection = await connect(self._dsn, statement_timeout=str(max(1, round(self._timeout * 1000))))
        try:
            while self._remaining > 0 and (one := queue.pop()) is not None:
                started = time.monotonic()
                try:
                    found = await self._one(connection, one)
                except asyncpg.PostgresError as error:
                    self._refused(error)
                else:
                    if not found.exact and not found.full and self._remaining <= 0:
                        return
                    self._keep(one, found)
                queue.took(one, time.monotonic() - started)
                self._tell()
        finally:
            await connection.close(timeout=5)

    def _keep(self, one: _Waiting, found: _Found) -> None:
        labels = self._labels
        kind = EXACT if found.exact else LOWER if found.rows > 0 else STOPPED
        # What was stopped at a number of rows hit no limit in time.
        self._kept.add_label(one.name, kind, found.rows, 0.0 if found.full else self._timeout, COUNTED)
        if kind == LOWER:
            labels.bounds[one.name] = found.rows
        if found.exact:
            labels.rows[one.name] = found.rows
            labels.counted += 1
        elif found.full:
            labels.bounded += 1
        else:
            labels.timed_out += 1

    async def _one(self, connection: asyncpg.Connection[asyncpg.Record], one: _Waiting) -> _Found:
        """The best that the forms tell in time: the true rows, or the higher lower bound."""
        best = _Found(0.0)
        for form in one.forms:
            if self._remaining <= 0:
                break
            if form is one.count.plain:
                found = await self._passed(connection, form)
            else:
                found = await self._summed(connection, form)
            if found.exact:
                return found
            best = max(best, found, key=lambda one: one.rows)
        return best

    async def _summed(self, connection: asyncpg.Connection[asyncpg.Record], form: str) -> _Found:
        try:
            async with asyncio.timeout(self._remaining):
                return _Found(float(await connection.fetchval(_own(form))), exact=True)
        except STOPPED_BY:
            return _Found(0.0)

    async def _passed(self, connection: asyncpg.Connection[asyncpg.Record], plain: str) -> _Found:
        """How many rows a cursor over the join passes until it is at the end, or stopped."""
        ends = time.monotonic() + min(self._timeout, self._remaining)
        passed = 0
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._remaining):
                async with connection.transaction():
                    await connection.execute(f"DECLARE counted NO SCROLL CURSOR FOR {_own(_rows_of(plain))}")
                    while (left := ends - time.monotonic()) > 0:
                        step = max(passed, FIRST_MOVE)
                        step = min(step, self._most_rows - passed) if self._most_rows else step
                        await connection.execute(f"SET LOCAL statement_timeout = {max(1, round(left * 1000))}")
                        done = int((await connection.execute(f"MOVE FORWARD {step} IN counted")).rpartition(" ")[2])
                        passed += done
                        if done < step:
                            return _Found(passed, exact=True)
                        if passed == self._most_rows:
                            return _Found(passed, full=True)
        except STOPPED_BY:
            pass
        return _Found(passed)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a count told: its rows, at least so many where it is not ``exact``. ``full``: stopped at so many."""

    rows: float
    exact: bool = False
    full: bool = False


@dataclass(slots=True)
class _Waiting:
    cost: float
    name: str
    forms: list[str]
    count: Count


class _Queue:
    """Counts by the number of relations they join: the cheapest of the size that has had the least time so far."""

    def __init__(self, waiting: Iterable[_Waiting]) -> None:
        self._sizes: dict[int, list[_Waiting]] = {}
        self._spent: dict[int, float] = {}
        for one in waiting:
            self._sizes.setdefault(one.count.relations, []).append(one)
        for size, several in self._sizes.items():
            several.sort(key=lambda one: (one.cost, one.name), reverse=True)
            self._spent[size] = 0.0

    def pop(self) -> _Waiting | None:
        if not self._sizes:
            return None
        size = min(self._sizes, key=lambda size: (self._spent[size], size))
        # Several connections ask: what is on its way counts a little, or all would take from one size.
        self._spent[size] += 0.001
        one = self._sizes[size].pop()
        if not self._sizes[size]:
            del self._sizes[size]
        return one

    def took(self, one: _Waiting, seconds: float) -> None:
        self._spent[one.count.relations] += seconds


GONE: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke between two messages of one statement
    asyncpg.OperatorInterventionError,
)
"""What is raised when the server or the connection is no more."""
STOPPED_BY: Final = (TimeoutError, asyncpg.QueryCanceledError, asyncpg.SerializationError)
"""What ends one statement: our clock, the server's, and on a standby a conflict with what is replayed."""


def gone_in_the_middle(error: BaseException, kept: TrainingSet, doing: str) -> TrainingError:
    """What to tell somebody whose database went away."""
    reason = " ".join(str(error).split()) or type(error).__name__
    times = f" and {len(kept.arms)} times of arms" if kept.arms else ""
    return TrainingError(
        f"the database is gone in the middle of {doing} ({reason}); {len(kept.rows)} counts{times} are kept in "
        f"{kept.path}: run the same command again to go on"
    )


def _own(form: str) -> str:
    """The count with `OWN` behind its first word: pg_stat_statements cuts off what stands before."""
    word, blank, rest = form.partition(" ")
    return f"{word} {OWN}{blank}{rest}"


def _rows_of(plain: str) -> str:
    """The plain form, which begins with ``SELECT count(*)``, made to produce the rows, without any column."""
    return f"SELECT {plain.removeprefix('SELECT count(*) ')}"


async def _cost(connection: asyncpg.Connection[asyncpg.Record], form: str) -> float:
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {_own(form)}"))
    return float(plan[0]["Plan"]["Total Cost"])

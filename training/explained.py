"""Labels out of plans that were run: one EXPLAIN (ANALYZE) tells the rows of several sub-plans at once
(`planner.plan_rows` says which).

`Explainer` runs statements under the planner's own settings and under others that lead to other join orders, each of
which shows other sub-plans. A plan is run only when it shows something not known yet, the cheapest for what it shows
first. Everything happens in read-only transactions that are rolled back, within a budget and a statement timeout.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from planner.memory.arms import PORTFOLIO
from planner.plan_rows import harvest, shown
from planner.resolve import ResolvedBlock
from training.errors import TrainingError
from training.labels import GONE, connect, gone_in_the_middle
from training.training_set import EXACT, TrainingSet

EXPLAINED: Final = "explained"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement whose plans can be read. ``wanted`` names the labels of its sub-plans: set of relations -> digest."""

    text: str
    block: ResolvedBlock
    wanted: Mapping[int, str]


@dataclass(slots=True)
class Harvested:
    """How it went: ``run`` plans were run, ``stopped`` of them by the time limit; ``labels`` were new."""

    candidates: int = 0
    run: int = 0
    stopped: int = 0
    failed: int = 0
    labels: int = 0
    seconds: float = 0.0
    first_failure: str = ""


@dataclass(order=True, slots=True)
class _Planned:
    price: float
    number: int
    arm: str = field(compare=False)
    settings: Mapping[str, str] = field(compare=False)
    masks: frozenset[int] = field(compare=False)


class Explainer:
    """Runs statements for their rows. ``budget`` is for everything, ``timeout`` for one statement, in seconds."""

    def __init__(
        self,
        dsn: str,
        kept: TrainingSet,
        *,
        budget: float,
        timeout: float,
        most_cost: float = float("inf"),
        arms: Mapping[str, Mapping[str, str]] = PORTFOLIO,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._kept = kept
        self._budget = budget
        self._timeout = timeout
        self._most_cost = most_cost
        self._arms = {"": {}, **arms}
        self._progress = progress
        self._started = 0.0

    @property
    def _over(self) -> bool:
        return time.monotonic() - self._started >= self._budget

    async def run(self, candidates: Iterable[Candidate]) -> Harvested:
        """Take labels from these statements' plans. TrainingError when the database goes away."""
        self._started = time.monotonic()
        listed = [one for one in candidates if self._unknown(one, one.wanted)]
        found = Harvested(candidates=len(listed))
        if not listed or self._over:
            return found
        connection = await connect(self._dsn, statement_timeout=str(max(1, round(self._timeout * 1000))))
        try:
            await self._set_up(connection)
            planned = await self._plan(connection, listed, found)
            for done, one in enumerate(planned):
                if self._over:
                    break
                if self._progress is not None:
                    self._progress(done, len(planned))
                candidate = listed[one.number]
                # Others have been run since: what this one shows may be known by now.
                if self._unknown(candidate, one.masks):
                    await self._run(connection, candidate, one, found)
        except GONE as error:
            raise gone_in_the_middle(error, self._kept, "running statements") from None
        finally:
            found.seconds = time.monotonic() - self._started
            await connection.close(timeout=5)
        return found

    def _unknown(self, candidate: Candidate, masks: Iterable[int]) -> int:
        wanted = candidate.wanted
        return sum((self._kept.label(wanted[mask]) or ("",))[0] != EXACT for mask in masks if mask in wanted)

    async def _set_up(self, connection: Any) -> None:
        self._version = int(await connection.fetchval("SELECT current_setting('server_version_num')::int"))
        if self._version >= 180_000:
            # A table joined with itself has to stay two tables in the plan.
            await connection.execute("SET enable_self_join_elimination = off")

    async def _plan(self, connection: Any, listed: Sequence[Candidate], found: Harvested) -> list[_Planned]:
        """What to run, the cheapest for each label first."""
        planned: list[_Planned] = []
        for number, candidate in enumerate(listed):
            if time.monotonic() - self._started > self._budget / 3:
                break
            seen: set[frozenset[int]] = set()
            for arm, settings in self._arms.items():
                try:
                    explained = await _explain(connection, candidate.text, settings, "FORMAT JSON")
                except asyncpg.PostgresError as error:
                    _refused(error, found)
                    break
                masks = frozenset(shown(explained["Plan"], candidate.block))
                price = float(explained["Plan"]["Total Cost"])
                new = self._unknown(candidate, masks)
                if new and masks not in seen and price <= self._most_cost:
                    seen.add(masks)
                    planned.append(_Planned(price / new, number, arm, settings, masks))
        return sorted(planned)

    async def _run(self, connection: Any, candidate: Candidate, one: _Planned, found: Harvested) -> None:
        options = "ANALYZE, TIMING OFF, SUMMARY OFF, FORMAT JSON"
        try:
            explained = await _explain(connection, candidate.text, one.settings, options)
        except asyncpg.QueryCanceledError:
            found.run += 1
            found.stopped += 1
            return
        except asyncpg.PostgresError as error:
            _refused(error, found)
            return
        found.run += 1
        found.labels += keep(harvest(explained["Plan"], candidate.block, self._version), candidate.wanted, self._kept)


def keep(rows: Mapping[int, float], wanted: Mapping[int, str], kept: TrainingSet) -> int:
    """Take in what a plan told; how many labels are new."""
    new = 0
    for mask, count in rows.items():
        name = wanted.get(mask)
        if name is not None and (kept.label(name) or ("",))[0] != EXACT:
            kept.add_label(name, EXACT, count, 0.0, EXPLAINED)
            new += 1
    return new


def _refused(error: asyncpg.PostgresError, found: Harvested) -> None:
    if isinstance(error, GONE) and not isinstance(error, asyncpg.QueryCanceledError):
        raise error
    found.failed += 1
    found.first_failure = found.first_failure or " ".join(str(error).split())


async def _explain(connection: Any, text: str, settings: Mapping[str, str], options: str) -> dict[str, Any]:
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        for name, value in settings.items():
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        found = json.loads(await connection.fetchval(f"EXPLAIN ({options}) {text}"))[0]
        if not isinstance(found, dict) or "Plan" not in found:
            raise TrainingError("the server's EXPLAIN gives no plan")
        return found
    finally:
        if not connection.is_closed():
            await transaction.rollback()

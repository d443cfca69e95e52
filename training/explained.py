"""True cardinalities out of plans that were run: one EXPLAIN (ANALYZE) tells the rows of several sub-plans at once.

A step of a plan tells the rows of a sub-plan only under conditions, all of which `harvest` checks:

- it joins tables by inner joins alone, and nothing below it drops, repeats or adds rows for another reason
- it was run to its end: not below a LIMIT, nor on a side of a merge join, which stops when the other side is used up,
  nor on the outer side of a hash join whose other side is empty, unless something in between reads all rows first
- it was not run once per row of something else with that row's values: the inner sides of nested loops and the
  sub-plans of expressions are left out
- in a parallel plan, where each worker counts its own rows, the rows of all loops are added up, for steps that share
  the work; those that every worker does alone are left out

`Explainer` runs statements under the planner's own settings and under others that lead to other join orders, each of
which shows other sub-plans. A plan is run only when it shows something not known yet, the cheapest for what it shows
first. Everything happens in read-only transactions that are rolled back, within a budget and a statement timeout.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from planner.graph import Command, QueryGraph
from planner.memory.arms import PORTFOLIO
from planner.resolve import ResolvedBlock
from training.errors import TrainingError
from training.labels import GONE, connect, gone_in_the_middle
from training.training_set import EXACT, TrainingSet

EXPLAINED: Final = "explained"
FOUR_EYES: Final = 0.05
"""A mean of rows per loop is rounded; it is used when that is off by no more than this share."""
_JOINS: Final = frozenset({"Nested Loop", "Hash Join", "Merge Join"})
_SCANS: Final = frozenset(
    {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Tid Scan", "Tid Range Scan"}
)
_PASSING: Final = frozenset({"Sort", "Incremental Sort", "Materialize", "Memoize", "Hash", "Gather", "Gather Merge"})
"""Steps that hand on the rows they get."""
_READING_ALL: Final = frozenset({"Sort", "Hash", "Aggregate"})
"""Steps that read everything before they give anything; of aggregates those that do not go by sorted groups."""
Node = Mapping[str, Any]


def harvestable(graph: QueryGraph, block: ResolvedBlock) -> bool:
    """Whether the plan of such a statement can be read: one block of tables, no name twice. What other blocks ask may
    reach the tables of this one (a constant in an EXISTS, a filter above a sub-query), so their rows are not the
    sub-plan's."""
    with_relations = [one for one in graph.blocks if one.relations]
    aliases = list(graph.aliases)
    return (
        graph.command is Command.SELECT
        and graph.read_only
        and len(with_relations) == 1
        and with_relations[0].index == block.block.index
        and len(set(aliases)) == len(aliases)
        and all(table is not None for table in block.tables)
    )


def harvest(plan: Node, block: ResolvedBlock, server_version: int) -> dict[int, float]:
    """True rows by set of relations, from one plan that was run (the object under ``Plan`` of EXPLAIN's JSON). Empty
    for plans that lack a table of the block: what was removed from the plan filters nothing any more."""
    places = {relation.alias: relation.index for relation in block.block.relations}
    if {str(node["Alias"]) for node in _walk(plan) if "Alias" in node} != set(places):
        return {}
    found: dict[int, float] = {}
    _Harvest(places, 0.005 if server_version >= 180_000 else 0.5, found).visit(plan, complete=True, parallel=False)
    return found


def shown(plan: Node, block: ResolvedBlock) -> set[int]:
    """The sub-plans that running this plan might tell; ``plan`` need not have been run."""
    places = {relation.alias: relation.index for relation in block.block.relations}
    found: dict[int, float] = {}
    _Harvest(places, None, found).visit(plan, complete=True, parallel=False)
    return set(found)


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


@dataclass(slots=True)
class _Harvest:
    """``rounding`` is how far a mean may be off by being rounded; None for plans that were not run."""

    places: Mapping[str, int]
    rounding: float | None
    found: dict[int, float]

    def visit(self, node: Node, *, complete: bool, parallel: bool) -> int:
        """The set of relations whose inner join the step gives, 0 when it is something else. ``complete``: whoever is
        above reads all of it."""
        kind = str(node.get("Node Type"))
        parallel = parallel or kind in ("Gather", "Gather Merge")
        mask, sound = 0, kind in _JOINS or kind in _SCANS or kind in _PASSING
        for child in node.get("Plans", ()):
            relation = child.get("Parent Relationship")
            if relation in ("SubPlan", "InitPlan"):
                # A condition with a sub-plan in it is none that sub-plans of joins have.
                sound = False
                continue
            if str(child.get("Node Type", "")).startswith(("Bitmap Index", "BitmapAnd", "BitmapOr")):
                continue
            inner = kind == "Nested Loop" and relation == "Inner"
            below = (
                self._of_scans(child)
                if inner
                else self.visit(child, complete=self._read_up(node, child, complete), parallel=parallel)
            )
            sound = sound and below != 0 and not mask & below
            mask |= below
        if kind in _JOINS and node.get("Join Type") != "Inner":
            sound = False
        if kind in _SCANS:
            place = self.places.get(str(node.get("Alias")))
            mask, sound = (1 << place, sound) if place is not None else (0, False)
        if not sound:
            return 0
        if kind in _JOINS and complete:
            self._take(node, mask, parallel)
        return mask

    def _of_scans(self, node: Node) -> int:
        """The relations of an inner side, none of whose rows are of use."""
        return _Harvest(self.places, self.rounding, {}).visit(node, complete=False, parallel=False)

    def _read_up(self, node: Node, child: Node, complete: bool) -> bool:
        """Whether the child's rows were all asked for."""
        kind = str(node.get("Node Type"))
        if kind in _READING_ALL and node.get("Strategy", "Plain") != "Sorted":
            return True
        if kind in ("Limit", "Merge Join"):
            return False
        if kind == "Hash Join" and child.get("Parent Relationship") == "Outer":
            return complete and not any(_empty(other) for other in node.get("Plans", ()) if other is not child)
        return complete and kind in _JOINS | _PASSING | {
            "Aggregate",
            "Group",
            "Unique",
            "WindowAgg",
            "ProjectSet",
            "Result",
        }

    def _take(self, node: Node, mask: int, parallel: bool) -> None:
        if self.rounding is None:
            self.found.setdefault(mask, 0.0)
            return
        loops = float(node.get("Actual Loops", 0))
        mean = float(node.get("Actual Rows", 0))
        if loops == 1:
            self.found.setdefault(mask, mean)
        elif loops > 1 and parallel and _shared(node) and self.rounding <= FOUR_EYES * mean:
            self.found.setdefault(mask, round(mean * loops))


def _empty(node: Node) -> bool:
    return "Actual Rows" in node and not float(node["Actual Rows"])


def _shared(node: Node) -> bool:
    """Whether workers share the step's work: its outermost scan is a parallel one."""
    while children := node.get("Plans"):
        node = next((child for child in children if child.get("Parent Relationship") == "Outer"), children[0])
    return bool(node.get("Parallel Aware"))


# ---------------------------------------------------------------------- running them


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

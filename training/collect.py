"""Fills a training set: the workload from its sources, then labels and arm latencies from the database, within budgets.

Everything that reads the database runs on a few connections whose transactions are read-only, each statement under a
timeout, on a replica where one is named. Whatever was found is in the training set the moment it is there: an
interrupted run goes on where it stopped.

The order of labelling: plans that others ran already (auto_explain) cost nothing; EXPLAIN (ANALYZE) comes next, for
statements that are cheap for what their plans tell; then each sub-plan that is still unknown is counted, the workload's
own before those of generated statements. Where the budget is not enough for all, the latter get their share of it: of
as many labels a model learns more when a part of them is of other joins.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import asyncpg

from planner.catalog_load import load
from planner.plan_rows import harvest
from planner.resolve import ResolvedBlock, resolve
from planner.snapshot import Snapshot
from planner.sql import read
from training.dataset import Block, Collected, Dataset, Labelled, assemble, collect
from training.errors import TrainingError
from training.explained import Candidate, Explainer, Harvested, keep
from training.generate import generate, joints, seen
from training.labels import GONE, MOST_ROWS, Labeller, Labels, connect, gone_in_the_middle
from training.labels_arms import ArmBudget, ArmLabeller, ArmTimes, runs_of
from training.queries import Query, Skipped, Workload
from training.sources import Plan, Told
from training.sources.log import read_log
from training.sources.parameters import with_likely_values
from training.sources.pg_stat_statements import read_statements
from training.sources.proxy import read_store
from training.steps import Step, Tell
from training.training_set import GENERATED, Statement, TrainingSet, statement_key

BUDGET_SECONDS: Final = 420.0
COUNT_SECONDS: Final = 2.0
EXPLAIN_SHARE: Final = 0.1
"""Of the budget, for EXPLAIN (ANALYZE)."""
OWN_SHARE: Final = 0.6
"""Of what is left for counting, for the workload's own sub-plans, as long as those of generated statements wait too."""
EXPLAIN_COST: Final = 30_000.0
"""Statements that the server thinks dearer than this are left to counting, which does not produce their rows."""
GENERATED_EACH: Final = 3
FEWEST_GENERATED: Final = 200
MOST_GENERATED: Final = 1200
"""By default as many statements are made up as the workload has times `GENERATED_EACH`, within these limits."""
STATEMENTS: Final = 1000
OTHER_SIZE: Final = 1.5
"""A database for labelling whose rows are more or fewer by this factor is told of: it is no present copy."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the workload comes from; any of them, or none when the training set has one already. ``store`` is a store's
    URL, read from ``since`` (seconds since the epoch) on. ``kept``: what the set has from before belongs to it too;
    without it the set only lends its labels."""

    workload: Workload | None = None
    pg_stat_statements: bool = False
    logs: tuple[Path, ...] = ()
    store: str = ""
    since: float = 0.0
    limit: int = STATEMENTS
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What it may cost the database. ``budget`` is for labelling as a whole, ``statement`` for one statement, both in
    seconds; a count that produces rows stops at ``rows`` of them (0: never). ``explain_share`` of the budget goes to
    EXPLAIN (ANALYZE). ``arms`` are seconds for running statements under other settings. ``label_dsn`` is where all
    that happens, if not on the database itself."""

    budget: float = BUDGET_SECONDS
    statement: float = COUNT_SECONDS
    rows: int = MOST_ROWS
    connections: int = 2
    explain_share: float = EXPLAIN_SHARE
    arms: float = 0.0
    label_dsn: str = ""


@dataclass(slots=True)
class Filled:
    """What a run did. ``collected`` and ``labelled`` are for training; ``told`` counts new statements by source."""

    snapshot: Snapshot
    search_path: tuple[str, ...]
    workload: Workload
    collected: Collected
    told: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    generated_labels: Labels = field(default_factory=Labels)
    explained: Harvested = field(default_factory=Harvested)
    from_plans: int = 0
    arms: ArmTimes = field(default_factory=ArmTimes)
    statements: int = 0
    generated: int = 0
    given_values: int = 0
    """Statements of the file that had parameters; `training.sources.parameters.VARIANTS` of each are counted."""
    notes: list[str] = field(default_factory=list)

    def labelled(self, kept: TrainingSet) -> Labelled:
        """For a trainer: the labels of these statements' sub-plans."""
        data: Dataset = assemble(self.collected.blocks, kept.rows, kept.bounds)
        return Labelled(
            self.snapshot,
            self.search_path,
            self.workload,
            self.collected.blocks,
            data,
            runs_of(self.workload, kept.arms),
        )


async def fill(
    kept: TrainingSet,
    dsn: str,
    sources: Sources,
    limits: Limits,
    *,
    generate_count: int | None = None,
    seed: int = 0,
    max_age: float | None = None,
    tell: Tell,
) -> Filled:
    """Collect and label. ``generate_count`` statements are made up; None: as many as are good for a workload of that
    size. Labels older than ``max_age`` seconds are made anew. Raises TrainingError; what was done so far is kept."""
    tell(Step("reading the catalog"))
    snapshot, search_path = await catalog(dsn)
    if not any(table.steerable and schema != "pg_catalog" for (schema, _), table in snapshot.tables.items()):
        raise TrainingError(f"the database {snapshot.database} has no tables that this user can see")
    kept.belongs_to(snapshot.database, snapshot.schema_hash, max_age=max_age)
    tell(Step("reading the workload"))
    given = 0
    if sources.workload is not None:
        file, given = await asyncio.to_thread(with_likely_values, sources.workload, snapshot, search_path, seed=seed)
        sources = replace(sources, workload=file)
    told, plans = await _read(kept, dsn, sources, snapshot, search_path, seed)
    workload = _workload(kept, sources, told.keys)
    made_up = _generated(kept, workload, snapshot, search_path, generate_count, seed, known=sources.kept)
    workload = Workload((*workload.queries, *made_up), workload.skipped)
    tell(Step("reading the queries", 0, len(workload.queries)))
    collected = await asyncio.to_thread(collect, workload, snapshot, search_path)
    filled = Filled(
        snapshot, search_path, workload, collected, told.new, told.left_out, [*told.skipped, *collected.skipped]
    )
    filled.notes += kept.notes
    filled.given_values = given
    filled.statements = sum(not query.generated for query in workload.queries)
    filled.generated = len(workload.queries) - filled.statements
    _check(filled)
    filled.from_plans = _from_plans(kept, plans, snapshot, search_path, collected.blocks, workload)
    await _label(kept, limits.label_dsn or dsn, filled, limits, tell)
    return filled


async def catalog(dsn: str) -> tuple[Snapshot, tuple[str, ...]]:
    """The database as the planner sees it, and the schemas that names are looked up in."""
    connection = await connect(dsn)
    try:
        # As the planner loads it: its own settings, not those of a counting session, would change nothing here.
        snapshot = await load(connection)
        schemas = await connection.fetchval("SELECT current_schemas(false)::text[]")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise TrainingError(f"the catalog cannot be read: {' '.join(str(error).split())}") from None
    finally:
        await connection.close(timeout=5)
    return snapshot, tuple(schemas)


# ---------------------------------------------------------------------- the workload


@dataclass(slots=True)
class _ToldByAll:
    new: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


async def _read(
    kept: TrainingSet, dsn: str, sources: Sources, snapshot: Snapshot, search_path: tuple[str, ...], seed: int
) -> tuple[_ToldByAll, list[Plan]]:
    found = _ToldByAll()
    several: list[Told] = []
    for log in sources.logs:
        several.append(await asyncio.to_thread(read_log, log, snapshot.database))
    if sources.pg_stat_statements:
        connection = await connect(dsn)
        try:
            several.append(await read_statements(connection, snapshot, search_path, limit=sources.limit, seed=seed))
        except GONE as error:
            raise gone_in_the_middle(error, kept, "reading pg_stat_statements") from None
        finally:
            await connection.close(timeout=5)
    if sources.store:
        several.append(await asyncio.to_thread(read_store, sources.store, snapshot.database, since=sources.since))
    plans: list[Plan] = []
    for told in several:
        for statement in sorted(told.statements, key=lambda one: -one.total_ms)[: sources.limit]:
            found.new[statement.source] += kept.add_statement(statement)
            found.keys.add(statement.key)
        found.left_out += told.left_out
        found.skipped += told.skipped
        plans += told.plans
    for query in sources.workload.queries if sources.workload is not None else ():
        found.new["file"] += kept.add_statement(Statement(query.text, "file", line=query.line))
    return found, plans


def _workload(kept: TrainingSet, sources: Sources, told: set[str]) -> Workload:
    """All statements of the set that nobody made up, or those that were told just now; the file's come first, as they
    are there."""
    given = sources.workload
    queries = list(given.queries) if given is not None else []
    there = {statement_key(query.text) for query in queries}
    for statement in kept.statements:
        wanted = sources.kept or statement.key in told
        if wanted and statement.source != GENERATED and statement.key not in there:
            queries.append(Query(statement.line if statement.source == "file" else 0, statement.text))
    return Workload(tuple(queries), given.skipped if given is not None else ())


def _generated(
    kept: TrainingSet,
    workload: Workload,
    snapshot: Snapshot,
    search_path: tuple[str, ...],
    count: int | None,
    seed: int,
    *,
    known: bool,
) -> list[Query]:
    """Made-up statements: those of earlier runs, if they are to be used (``known``), and as many more as are wanted."""
    if count == 0:
        return []
    own = len(workload.queries)
    wanted = count if count is not None else min(max(GENERATED_EACH * own, FEWEST_GENERATED), MOST_GENERATED)
    texts: list[str] = []
    if known:
        texts = [statement.text for statement in kept.statements if statement.source == GENERATED][:wanted]
    if len(texts) < wanted:
        blocks: list[ResolvedBlock] = []
        for query in workload.queries:
            graph = read(query.text).graph
            blocks += resolve(graph, snapshot, search_path).blocks if graph is not None else ()
        workload_seen = seen(blocks)
        ways = joints(snapshot, workload_seen)
        for text in generate(snapshot, ways, workload_seen, wanted - len(texts), seed + len(texts)):
            kept.add_statement(Statement(text, GENERATED))
            texts.append(text)
    return [Query(0, text, generated=True) for text in dict.fromkeys(texts)]


def _check(filled: Filled) -> None:
    """TrainingError when there is nothing to count."""
    if filled.collected.blocks:
        return
    skipped = [one for one in filled.skipped if one.reason]
    first = f"; the first: {skipped[0]}" if skipped else ""
    if not filled.workload.queries:
        unused = "; ".join(f"{count} left out: {reason}" for reason, count in filled.left_out.most_common(3))
        raise TrainingError(f"there is no statement to learn from{f' ({unused})' if unused else first}")
    raise TrainingError(
        f"none of the {filled.statements} statements joins tables of the database {filled.snapshot.database} in a way "
        f"that can be counted{first}"
    )


# ---------------------------------------------------------------------- labels


def _from_plans(
    kept: TrainingSet,
    plans: Sequence[Plan],
    snapshot: Snapshot,
    search_path: tuple[str, ...],
    blocks: Sequence[Block],
    workload: Workload,
) -> int:
    """Labels from plans that were run elsewhere; how many are new."""
    if not plans:
        return 0
    by_text: dict[str, list[Block]] = {}
    for block in blocks:
        by_text.setdefault(workload.queries[block.query].text, []).append(block)
    new = 0
    for plan in plans:
        for block in by_text.get(plan.text, ()):
            if block.readable:
                wanted = dict(zip(block.masks, block.digests, strict=True))
                new += keep(harvest(plan.root, block.resolved, snapshot.server_version), wanted, kept)
    return new


async def _label(kept: TrainingSet, dsn: str, filled: Filled, limits: Limits, tell: Tell) -> None:
    if limits.label_dsn:
        filled.notes += await _check_replica(limits.label_dsn, filled.snapshot)
    blocks, workload = filled.collected.blocks, filled.workload
    left = limits.budget
    if limits.explain_share > 0 and left > 0:
        explainer = Explainer(
            dsn,
            kept,
            budget=left * limits.explain_share,
            timeout=limits.statement,
            most_cost=EXPLAIN_COST,
            progress=lambda done, total: tell(Step("running queries", done, total)),
        )
        filled.explained = await explainer.run(_candidates(blocks, workload))
        left -= filled.explained.seconds

    def show(name: str) -> Callable[[Labels], None]:
        def shown(labels: Labels) -> None:
            note = f"{labels.timed_out} timed out" if labels.timed_out else ""
            tell(Step(name, labels.wanted - labels.left, labels.wanted, note))

        return shown

    async def count(generated: bool, budget: float) -> Labels:
        labeller = Labeller(
            dsn,
            kept,
            budget=max(budget, 0.0),
            timeout=limits.statement,
            connections=limits.connections,
            most_rows=limits.rows,
            progress=show("counting generated joins" if generated else "counting joins"),
        )
        return await labeller.run(one for block in blocks if block.generated is generated for one in block.counts)

    share = OWN_SHARE if filled.generated else 1.0
    filled.labels = await count(False, left * share)
    left -= filled.labels.seconds
    filled.generated_labels = await count(True, left)
    left -= filled.generated_labels.seconds
    if filled.labels.left and left > 0:
        filled.labels = (await count(False, left)).after(filled.labels)
    if limits.arms > 0:
        budget = ArmBudget(limits.arms, statement_ms=max(limits.statement, 1.0) * 1000 * 5)
        labeller_of_arms = ArmLabeller(
            dsn, kept, budget, progress=lambda done, total: tell(Step("trying arms", done, total))
        )
        filled.arms = await labeller_of_arms.run(_own_statements(blocks, workload), filled.snapshot)


def _own_statements(blocks: Iterable[Block], workload: Workload) -> list[str]:
    """The workload's own statements that join tables, each once."""
    return list(dict.fromkeys(workload.queries[block.query].text for block in blocks if not block.generated))


def _candidates(blocks: Sequence[Block], workload: Workload) -> list[Candidate]:
    return [
        Candidate(
            workload.queries[block.query].text, block.resolved, dict(zip(block.masks, block.digests, strict=True))
        )
        for block in blocks
        if block.readable
    ]


async def _check_replica(dsn: str, snapshot: Snapshot) -> list[str]:
    """What to know of the database for labelling. TrainingError when it is away or not the same one."""
    try:
        replica, _ = await catalog(dsn)
    except TrainingError as error:
        raise TrainingError(f"for labelling (--label-dsn): {error}") from None
    if replica.schema_hash != snapshot.schema_hash:
        raise TrainingError(
            f"the database for labelling ({replica.database}) has other tables than {snapshot.database}: it must be a "
            "replica or a copy of it"
        )
    here, there = (_size(one) for one in (snapshot, replica))
    if max(here, there) <= OTHER_SIZE * min(here, there):
        return []
    return [
        f"the database for labelling has about {there:,.0f} rows, {snapshot.database} {here:,.0f}: counts of the one "
        "may not hold for the other"
    ]


def _size(snapshot: Snapshot) -> float:
    return sum(max(table.rows, 0.0) for table in snapshot.tables.values() if table.kind in "rm") + 1.0

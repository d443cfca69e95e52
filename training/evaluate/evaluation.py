"""An evaluation from end to end: `Evaluation.run`, which fills `Evaluation.results` as it goes.

Whoever stops it, or a database that goes away, leaves in ``results`` what was measured until then. Statements run in
an order drawn by the seed, so that what a short budget leaves out is no part of its own. Everything is read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import asyncpg

from planner.catalog_load import load
from planner.explore import server
from planner.explore.server import Link
from planner.snapshot import Snapshot
from training.errors import TrainingError
from training.evaluate import contenders
from training.evaluate.cases import Seen, read_cases, with_training
from training.evaluate.contenders import Contender, decide
from training.evaluate.cross import HINTS, Crossed, cross_validate, measure_arms
from training.evaluate.measuring import GONE, Measurer
from training.evaluate.options import Options, Prepared
from training.evaluate.results import PROXY, PROXY_OFF, Results, Split, now, sha256
from training.evaluate.runs import OutOfTimeError
from training.evaluate.splits import SPLITS
from training.evaluate.truth import find_truth
from training.labels import Labels
from training.queries import Workload, read_file
from training.steps import Step

KEEP_SECONDS: Final = 10.0
SETTINGS: Final = (
    "shared_buffers", "work_mem", "hash_mem_multiplier", "effective_cache_size", "random_page_cost", "seq_page_cost",
    "max_parallel_workers_per_gather", "jit", "join_collapse_limit", "from_collapse_limit", "geqo",
    "default_statistics_target", "plan_cache_mode",
)  # fmt: skip
KNOWN: Final = {
    Seen.REPEATED: ("repeated", "Repeated: the model was trained on these very statements"),
    Seen.NEW_VALUES: ("values", "Same template, new values: trained on statements with the same joins"),
    Seen.NEW_TEMPLATE: ("template", "Template not seen: nothing with these joins was trained on"),
}


class Evaluation:
    """See the module. ``models`` are files, folders or contenders; without any the splits are all that steers. ``kept``
    is the folder of a training set, where counts are kept for the next run. ``proxy`` is a DSN through a running proxy.
    ``keep`` is called now and then with the results so far."""

    def __init__(
        self,
        dsn: str,
        queries: Path | Workload,
        *,
        kept: Path,
        models: Sequence[Path | Contender] = (),
        trained_on: Path | None = None,
        proxy: str = "",
        options: Options | None = None,
        progress: Callable[[Step], None] | None = None,
        keep: Callable[[Results], None] | None = None,
    ) -> None:
        self.options = options or Options()
        self.results = Results("", options=asdict(self.options))
        self._dsn = dsn
        self._queries = queries
        self._kept = kept
        self._models = models
        self._trained_on = trained_on
        self._proxy = proxy
        self._tell = progress or (lambda _: None)
        self._save = keep or (lambda _: None)

    async def run(self) -> Results:
        """Everything. Raises TrainingError with a sentence for the person who asked."""
        try:
            async with _linked(lambda: _opened(self._dsn)) as link:
                prepared = await self._prepare(await link.get())
                await self._measure(link, prepared)
        except GONE as error:
            self.results.stopped = f"the database is gone: {' '.join(str(error).split()) or type(error).__name__}"
            raise TrainingError(self.results.stopped) from None
        except TrainingError as error:
            self.results.stopped = str(error)
            raise
        except BaseException:
            self.results.stopped = "interrupted"
            raise
        finally:
            self.results.finished = now()
            self._save(self.results)
        return self.results

    # ------------------------------------------------------------------ before the first run

    async def _prepare(self, connection: Any) -> Prepared:
        results = self.results
        if isinstance(self._queries, Path):
            workload = read_file(self._queries)
            results.inputs[f"queries {self._queries.name}"] = sha256(self._queries)
        else:
            workload = self._queries
            texts = "\n".join(query.text for query in workload.queries)
            results.inputs["queries"] = hashlib.sha256(texts.encode()).hexdigest()
        trained = read_file(self._trained_on) if self._trained_on is not None else None
        if self._trained_on is not None:
            results.inputs[f"training queries {self._trained_on.name}"] = sha256(self._trained_on)
        self._tell(Step("reading the catalog"))
        snapshot, search_path = await self._catalog(connection)
        steering = [await asyncio.to_thread(_contender, path) for path in self._models]
        self._tell(Step("reading the queries"))
        cases, skipped = await asyncio.to_thread(read_cases, workload, snapshot, search_path)
        results.statements = len(workload.queries) + len(workload.skipped)
        results.skipped = [str(one) for one in skipped]
        if not cases:
            first = f"; the first: {skipped[0]}" if skipped else ""
            raise TrainingError(f"none of the {results.statements} statements can be run as it stands{first}")
        if trained is not None:
            known, _ = await asyncio.to_thread(read_cases, trained, snapshot, search_path)
            cases = with_training(cases, known)
        prepared = Prepared(cases, snapshot, search_path)
        self._given(prepared, steering)
        try:
            if self.options.truth_budget:
                await self._count(prepared)
            await self._crossed(prepared)
        except BaseException:
            self._decide(prepared)  # what was counted until then shows how good the estimates are
            raise
        await asyncio.to_thread(self._decide, prepared)
        return prepared

    async def _catalog(self, connection: Any) -> tuple[Snapshot, tuple[str, ...]]:
        results = self.results
        snapshot = await load(connection)
        search_path = tuple(await connection.fetchval("SELECT current_schemas(false)::text[]"))
        results.database = snapshot.database
        results.server = str(await connection.fetchval("SELECT version()")).split(" on ")[0]
        rows = await connection.fetch(
            "SELECT name, current_setting(name) AS value FROM pg_settings WHERE name = ANY($1::text[]) ORDER BY name",
            list(SETTINGS),
        )
        results.settings = {row["name"]: row["value"] for row in rows}
        results.settings["pg_hint_plan"] = "loaded" if "hint_plan" in snapshot.capabilities else "not loaded"
        results.tables = {
            f"{table.schema}.{table.name}": float(table.rows)
            for table in snapshot.tables.values()
            if table.schema not in ("pg_catalog", "information_schema")
        }
        results.inputs["schema"] = snapshot.schema_hash
        results.versions = {name: metadata.version(name) for name in ("pilotwire", "onnxruntime", "pglast", "asyncpg")}
        return snapshot, search_path

    def _given(self, prepared: Prepared, steering: Sequence[Contender]) -> None:
        """The models that were given, each a kind for all cases, divided by what its training knew."""
        for one in steering:
            self.results.inputs |= {f"model {label}": digest for label, digest in one.files.items()}
            self.results.models.append(one.name)
            prepared.steering[one.name] = {case.name: one.models for case in prepared.cases}
            for seen, (name, title) in KNOWN.items():
                members = [case.name for case in prepared.cases if case.seen == seen and case.template]
                if members:
                    self.results.splits.append(Split(name, title, one.name, members))

    async def _count(self, prepared: Prepared) -> None:
        truth = prepared.truth

        def show(labels: Labels) -> None:
            self._tell(Step("counting true rows", labels.wanted - labels.left, labels.wanted))

        await find_truth(
            truth,
            self._dsn,
            prepared.cases,
            prepared.snapshot,
            prepared.search_path,
            self._kept,
            budget=self.options.truth_budget,
            count_seconds=self.options.count_seconds,
            max_age=self.options.max_age,
            progress=show,
        )
        self.results.inputs["true counts"] = truth.sha256
        self.results.uncounted = truth.missing + truth.uncountable
        self.results.seconds["counting"] = truth.seconds

    async def _crossed(self, prepared: Prepared) -> None:
        options = self.options
        if options.splits and HINTS in options.algorithms:
            arms = await measure_arms(
                self._dsn, prepared.cases, self._kept, budget=options.arms_budget, tell=self._tell
            )
            self.results.seconds["arms"] = arms.seconds
        for split, algorithm in itertools.product(options.splits, options.algorithms):

            def show(done: int, total: int, what: str = f"{split}, {algorithm}") -> None:
                self._tell(Step(f"training for the split {what}", done, total))

            crossed = await cross_validate(
                self._dsn,
                prepared.cases,
                split,
                self._kept,
                algorithm=algorithm,
                folds=self.options.folds,
                seed=self.options.seed,
                count_seconds=self.options.count_seconds,
                budget=max(self.options.truth_budget / 4, 10.0),
                progress=show,
            )
            self._add_split(prepared, crossed)

    def _add_split(self, prepared: Prepared, crossed: Crossed) -> None:
        self.results.warnings += crossed.warnings
        if not crossed.models:
            what = f"{crossed.split}, {crossed.algorithm}"
            self.results.warnings.append(f"split {what} is left out: {crossed.why}")
            return
        kind = f"{crossed.algorithm} trained: {crossed.split}"
        self.results.models.append(kind)
        self.results.training[kind] = {
            "split": crossed.split,
            "algorithm": crossed.algorithm,
            "folds": crossed.folds,
            "seconds": crossed.train_seconds,
            "judged": len(crossed.models),
        }
        prepared.steering[kind] = crossed.models
        members = [case.name for case in prepared.cases if case.name in crossed.models]
        self.results.splits.append(Split(crossed.split, SPLITS[crossed.split], kind, members))

    def _decide(self, prepared: Prepared) -> None:
        """All decisions, before anything is timed: nothing else shall run beside the queries."""
        for case in prepared.cases:
            for kind, models in prepared.steering.items():
                if case.name in models:
                    prepared.decisions[kind, case.name] = decide(
                        case.sql, models[case.name], prepared.snapshot, prepared.search_path, self.options.min_ms
                    )
        for one in prepared.truth.sub_plans:
            for kind, steering in prepared.steering.items():
                decision = prepared.decisions.get((kind, one.case))
                if decision is None or decision.predicted is None or steering[one.case].cardinality is None:
                    continue
                rows = decision.predicted.get((one.block, one.mask))
                one.predicted[kind] = one.native if rows is None else rows
                if rows is None:
                    one.abstained.append(kind)
        self.results.sub_plans = prepared.truth.sub_plans

    # ------------------------------------------------------------------ running

    async def _measure(self, link: Link, prepared: Prepared) -> None:
        options, results = self.options, self.results
        started = kept = time.monotonic()
        order = list(prepared.cases)
        random.Random(options.seed).shuffle(order)  # noqa: S311 - no secret
        async with contextlib.AsyncExitStack() as stack:
            proxies: dict[str, Link] = {}
            if self._proxy:
                for kind in (PROXY_OFF, PROXY):
                    opener = partial(_opened, self._proxy, off=kind == PROXY_OFF)
                    proxies[kind] = await stack.enter_async_context(_linked(opener))
            measurer = Measurer(link, proxies, prepared, options, results)
            for number, case in enumerate(order):
                self._tell(Step("running the queries", number, len(order), case.name))
                in_time = time.monotonic() - started <= options.budget * (number + 1) / len(order)
                try:
                    await measurer.measure(case, arms=options.arms and in_time, ends=started + options.budget)
                except OutOfTimeError:
                    results.unmeasured = len(order) - number
                    results.warnings.append(
                        f"{results.unmeasured} statements were not run: the budget of {options.budget:g} s was over"
                    )
                    break
                results.without_arms += options.arms and not in_time
                results.seconds["running"] = time.monotonic() - started
                if time.monotonic() - kept > KEEP_SECONDS:
                    self._save(results)
                    kept = time.monotonic()
            else:
                results.complete = True
            if results.without_arms:
                results.warnings.append(
                    f"{results.without_arms} statements were run without the arms, for which the budget of "
                    f"{options.budget:g} s left no time: give more, or --no-arms"
                )
            self._tell(Step("running the queries", len(order), len(order)))
            await measurer.explain_regressions(self._tell)
        if not results.queries and not results.sub_plans:
            first = f"; the first: {results.failed[0]}" if results.failed else ""
            raise TrainingError(f"no statement could be measured{first}")


def _contender(path: Path | Contender) -> Contender:
    if isinstance(path, Contender):
        return path
    return contenders.from_folder(path) if path.is_dir() else contenders.from_file(path)


async def _opened(dsn: str, *, off: bool = False) -> Any:
    """A read-only connection with the server's own planner settings; ``off``: through a proxy that is to leave it
    alone. Raises TrainingError."""
    try:
        connection = await server.connect(dsn, timeout=30)
        if off:
            await connection.execute("SET pilotwire.mode = 'off'")
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or "no answer within 30 seconds"
        raise TrainingError(f"the database cannot be reached: {reason}") from None
    return connection


@contextlib.asynccontextmanager
async def _linked(opener: Callable[[], Awaitable[Any]]) -> AsyncIterator[Link]:
    link = Link(opener)
    try:
        yield link
    finally:
        await link.close()

"""Does steering ever lose? ``python -m benchmarks.never_loses``: many rounds of a workload through a real proxy.

For the demo's data and for travel_se: a fresh PostgreSQL, a model trained by `pilotwire train`, and a saboteur that
predicts nonsense. With each of the two a real `pilotwire serve` in mode on, with a store of its own, warms up: the
workload runs some rounds, `pilotwire explore` verifies it once, and it runs some rounds more. Then it is measured: each
query directly, steered, and (with the honest model) under the better of the best arm and its true cardinalities, which
were found beforehand; the three close together and in turns. What looks slower is measured for longer, and printed with
what the plan memory says of it before and after, so that noise and a trial under way can be told from a wrong choice.

A data set takes about ``--minutes``, and some for loading and training: what can be cut short gets a share of them.

This is about a workload that repeats: the queries that are measured are the ones that were explored, and travel_se's
test queries serve for both. What a model makes of queries never seen is measured by `benchmarks.steer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final

import asyncpg
import typer
from rich.console import Console

from benchmarks import saboteur
from benchmarks.never_loses_results import DIRECT, ORACLE, STEERED, Kind, Results, Timings, show
from benchmarks.processes import HOST, BenchmarkError, free_port, server_process
from benchmarks.steer import CONFIG, RESULTS, Report, connected, prepared_server, train, wait_for_model
from benchmarks.steer_sets import ROOT, DataSet, Query, counted, demo_set, digest, travel_files, travel_set
from pilotwire.counted_arm import counted_advice
from pilotwire.demo.measure import run_once
from pilotwire.embedded import EmbeddedError, EmbeddedServer
from planner.advice import Advice
from planner.catalog_load import load
from planner.dialects import hint_plan
from planner.explore.runner import try_arms
from planner.memory.arms import PORTFOLIO
from planner.memory.records import COUNTED_ARM, State, query_key
from planner.memory.store import open_store

SETS: Final = ("demo", "travel")
MODELS: Final = ("honest", "saboteur")
LIMIT_MS: Final = 20_000.0
SEARCH_ROUNDS: Final = 5
SEARCH, WARM_UP, MEASURED, DOUBTFUL = 0.18, 0.04, 0.12, 0.03
EXPLORE: Final = {"honest": 0.22, "saboteur": 0.10}
"""Shares of a data set's minutes: finding the best arms, once; and for each model a warm-up (before exploring, and
again after it), measuring, measuring again what looks slower, and exploring. Loading and training come on top."""
PASSES: Final = 3
"""Over the workload while measuring, so that what is slow for a minute does not hit all rounds of a query."""
SPREAD: Final = 4.0
LEAST_WARM_UP: Final = 2
LEAST_SEARCH_SECONDS: Final = 1.0
"""For the arms of one query, and again for counting its sub-plans."""
AGAIN: Final = 3
"""A query that looks slower gets so many times the rounds more: what is noise goes away, what is not stays."""
SEARCH_PATH: Final = "public"
SETTLE_SECONDS: Final = 3.0
"""The planner process looks into the store every second."""

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. ``training`` takes so many of travel_se's training queries instead of its test queries: for work on
    this benchmark itself."""

    sets: tuple[str, ...]
    models: tuple[str, ...]
    minutes: float
    rounds: int
    warm_up: int
    seed: int
    scale: float
    budget: float
    explore: bool
    travel: Path
    training: int

    def seconds(self, share: float) -> float:
        return self.minutes * 60 * share


@app.command()
def main(
    *,
    sets: Annotated[str, typer.Option(help=f"Only these: {', '.join(SETS)}.")] = ",".join(SETS),
    models: Annotated[str, typer.Option(help=f"Only these: {', '.join(MODELS)}.")] = ",".join(MODELS),
    minutes: Annotated[float, typer.Option(min=0.5, help="For each data set; long queries get fewer rounds.")] = 15.0,
    rounds: Annotated[int, typer.Option(min=3, help="Measured rounds of each query at most.")] = 15,
    warm_up: Annotated[int, typer.Option(min=1, help="Rounds before exploring, and again after it, at most.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the demo's rows and queries.")] = 1,
    scale: Annotated[float, typer.Option(min=0.005, help="Of the demo's rows.")] = 1.0,
    budget: Annotated[float, typer.Option(min=1, help="Seconds for counting joins while training.")] = 150.0,
    explore: Annotated[bool, typer.Option(help="Explore once; without, there is serving only.")] = True,
    training: Annotated[
        int, typer.Option("--training-queries", min=0, help="Measure so many of travel_se's training queries.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="Where the JSON goes; a dated file by default.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a promise is not kept.")] = False,
) -> None:
    """Measure that no query gets slower, whatever the model, and how much of the possible gain is reached."""
    console = Console(width=None if sys.stdout.isatty() else 190, highlight=False)
    chosen, kinds = _chosen(sets, SETS, console), _chosen(models, MODELS, console)
    travel = Path(os.environ.get("TRAVEL_SE") or ROOT.parent / "shared" / "data" / "travel_se")
    plan = Plan(chosen, kinds, minutes, rounds, warm_up, seed, scale, budget, explore, travel, training)
    path = output or RESULTS / f"never-loses-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}.json"
    settings = {
        "config": CONFIG,
        "minutes": minutes,
        "rounds": rounds,
        "warm_up": warm_up,
        "seed": seed,
        "scale": scale,
        "budget": budget,
        "explore": explore,
        "training_queries": training,
    }
    results = Results(settings)
    signal.signal(signal.SIGTERM, _interrupt)
    code = 0
    with console.status("starting") as status:
        report: Report = status.update if console.is_terminal else lambda text: print(text, file=sys.stderr, flush=True)
        try:
            if "travel" in chosen:
                travel_files(travel)
            with prepared_server(report) as (server, work):
                run(plan, server, work, results, report)
            results.complete = True
        except (BenchmarkError, EmbeddedError, asyncpg.PostgresError, OSError) as error:
            print(f"benchmarks.never_loses: {' '.join(str(error).split())}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            console.print("stopped; what was measured so far follows")
            code = 130
    show(results, console)
    if results.kinds:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.as_json())
        console.print(f"Results: {path}")
    failed = strict and not all(verdict.passed for verdict in results.verdicts())
    raise typer.Exit(code or int(failed))


def _chosen(given: str, known: tuple[str, ...], console: Console) -> tuple[str, ...]:
    found = tuple(name.strip() for name in given.split(",") if name.strip())
    if unknown := [name for name in found if name not in known]:
        console.print(f"[red]{unknown[0]!r}: choose from {', '.join(known)}.[/]")
        raise typer.Exit(2)
    return found


def run(plan: Plan, server: EmbeddedServer, work: Path, results: Results, report: Report) -> None:
    """Everything, filling ``results`` as it goes, so that an interrupted run keeps what it has."""
    results.versions = {"postgresql": server.version} | {
        name: metadata.version(name) for name in ("pilotwire", "onnxruntime", "lightgbm", "pglast", "asyncpg")
    }
    for name in plan.sets:
        database = f"guard_{name}"
        server.run("psql", "-XAtq", "-d", server.dsn(), "-c", f"CREATE DATABASE {database}")
        dsn = server.dsn(database)
        data = _data(plan, name, dsn, work, report)
        honest = work / f"honest-{name}"
        honest.mkdir()
        file = honest / f"{name}.onnx"
        training = train(dsn, data, file, plan.budget, report)
        oracle = asyncio.run(find_oracle(dsn, data, plan.seconds(SEARCH), report)) if "honest" in plan.models else {}
        for model in plan.models:
            folder = honest
            if model == "saboteur":
                folder = work / f"saboteur-{name}"
                folder.mkdir()
                saboteur.write(file, folder / "saboteur.onnx")
            [used] = folder.glob("*.onnx")
            kind = Kind(data.name, model, data.inputs, digest(used.read_bytes()), training, oracle={})
            if model == "honest":
                kind.oracle = {query: {"arm": arm, "prefix": prefix} for query, (arm, prefix) in oracle.items()}
            results.kinds.append(kind)
            store = work / f"{model}-{name}.db"
            with serving(server, database, folder, store, work, report) as proxied:
                queries = _queries_file(data, work)
                asyncio.run(_rounds(plan, data, dsn, proxied, folder, store, queries, kind, report))


def _data(plan: Plan, name: str, dsn: str, work: Path, report: Report) -> DataSet:
    if name == "demo":
        return demo_set(dsn, work, plan.seed, plan.scale, report)
    data = travel_set(dsn, plan.travel, report)
    if not plan.training:
        return data
    lines = [sql for rows, sql in counted((plan.travel / "queries_train.sql").read_text()) if rows <= 2_000_000]
    step = max(len(lines) // plan.training, 1)
    return replace(data, queries=tuple(Query(f"t{number}", sql) for number, sql in enumerate(lines[::step], 1)))


def _queries_file(data: DataSet, work: Path) -> Path:
    path = work / f"{data.name}-workload.sql"
    path.write_text(";\n".join(query.sql for query in data.queries) + ";\n")
    return path


@contextlib.contextmanager
def serving(
    server: EmbeddedServer, database: str, models: Path, store: Path, work: Path, report: Report
) -> Iterator[str]:
    """`pilotwire serve` in mode on, with that store, until the block ends; the DSN through it."""
    port, admin = free_port(), free_port()
    command = [
        sys.executable, "-m", "pilotwire", "serve", "--upstream", server.dsn(database), "--listen", f"{HOST}:{port}",
        "--admin", f"{HOST}:{admin}", "--auth", "trust", "--workers", "1", "--models", str(models), "--mode", "on",
        "--store", str(store),
    ]  # fmt: skip
    report("starting the proxy")
    with server_process(command, port, work / "proxy.log", environment={"PILOTWIRE_DRAIN_TIMEOUT": "1"}):
        wait_for_model(f"http://{HOST}:{admin}/api/models")
        yield f"postgresql://postgres@{HOST}:{port}/{database}"


# ---------------------------------------------------------------------- the better of best arm and true cardinalities


async def find_oracle(dsn: str, data: DataSet, seconds: float, report: Report) -> dict[str, tuple[str, str]]:
    """Each query's best arm and the comment that asks for it ("" for none), true cardinalities among the arms; as far
    as that can be found in so many seconds."""
    found: dict[str, tuple[str, str]] = {}
    time_left = Allotment(seconds, len(data.queries))
    async with connected(dsn) as connection:
        snapshot = await load(connection)
        for number, query in enumerate(data.queries, 1):
            report(f"{data.name}: the best arm {number}/{len(data.queries)} {query.name}")
            arms = {name: Advice(settings=settings) for name, settings in PORTFOLIO.items()}
            end = time_left.until()
            half = max((end - time.monotonic()) / 2, LEAST_SEARCH_SECONDS)
            counted_rows = await counted_advice(connection, query.sql, snapshot, (), half)
            if counted_rows is not None:
                arms[COUNTED_ARM] = counted_rows
            results = await try_arms(
                dsn,
                query.sql,
                arms,
                max(end - time.monotonic(), LEAST_SEARCH_SECONDS),
                capabilities=(hint_plan.CAPABILITY,),
                expected={COUNTED_ARM: 2.0},
                rounds=SEARCH_ROUNDS,
                limit_ms=LIMIT_MS,
                cheap_ms=0.0,
            )
            found[query.name] = (results.best.name, results.best.rendered.prefix)
    return found


# ---------------------------------------------------------------------- rounds


class Allotment:
    """Seconds for a number of queries: none gets more than `SPREAD` times its equal part of what is left, so that one
    that takes long does not take all."""

    def __init__(self, seconds: float, queries: int) -> None:
        self._end = time.monotonic() + seconds
        self._left = max(queries, 1)

    def until(self) -> float:
        """When the next query's time is over, by the monotonic clock."""
        now = time.monotonic()
        share = SPREAD * max(self._end - now, 0.0) / max(self._left, 1)
        self._left -= 1
        return min(now + share, max(self._end, now))


async def _rounds(
    plan: Plan,
    data: DataSet,
    direct: str,
    proxied: str,
    models: Path,
    store: Path,
    queries: Path,
    kind: Kind,
    report: Report,
) -> None:
    """Warm-up, exploring, warm-up, then what is measured."""
    name = f"{data.name}, {kind.model}"
    database = f"guard_{'demo' if data.name == 'demo' else 'travel'}"
    async with contextlib.AsyncExitStack() as stack:
        straight, steered = [await stack.enter_async_context(connected(dsn)) for dsn in (direct, proxied)]
        kind.timings = {query.name: Timings(query.name, query.sql) for query in data.queries}
        report(f"{name}: unsteered")
        # What a query takes by itself, for what the warm-up costs.
        for query in data.queries:
            await run_once(straight, query.sql, LIMIT_MS)
            kind.timings[query.name].unsteered.append((await run_once(straight, query.sql, LIMIT_MS))[0])
        await _warm_up(plan, data, kind, steered, f"{name}: warm-up", report)
        if plan.explore:
            report(f"{name}: exploring")
            kind.explored = await asyncio.to_thread(_explore, plan, kind.model, direct, models, store, queries)
            await asyncio.sleep(SETTLE_SECONDS)
            await _warm_up(plan, data, kind, steered, f"{name}: warm-up after exploring", report)
        _look(kind, store, database)
        dice = random.Random(plan.seed)
        order = list(data.queries)
        for number in range(PASSES):
            report(f"{name}: measured {number + 1}/{PASSES}")
            dice.shuffle(order)
            time_left = Allotment(plan.seconds(MEASURED) / PASSES, len(order))
            for query in order:
                await _turns(kind, query, straight, steered, -(-plan.rounds // PASSES), time_left.until())
        doubtful = [query for query in data.queries if kind.timings[query.name].slower()]
        time_left = Allotment(plan.seconds(DOUBTFUL), len(doubtful))
        for query in doubtful:
            report(f"{name}: {query.name} looks slower, and is measured for longer")
            await _turns(kind, query, straight, steered, AGAIN * plan.rounds, time_left.until())
    _look(kind, store, database)


async def _warm_up(plan: Plan, data: DataSet, kind: Kind, steered: Any, what: str, report: Report) -> None:
    """Round by round over the workload, as far as the time goes; two rounds at least."""
    end = time.monotonic() + plan.seconds(WARM_UP)
    for number in range(plan.warm_up):
        if number >= LEAST_WARM_UP and time.monotonic() > end:
            return
        report(f"{what} {number + 1}/{plan.warm_up}")
        for query in data.queries:
            kind.timings[query.name].warm_up.append((await run_once(steered, query.sql, LIMIT_MS))[0])


async def _turns(kind: Kind, query: Query, straight: Any, steered: Any, rounds: int, end: float) -> None:
    """Rounds of one query, until ``end``; one at least. In each it runs directly, steered and as the oracle would have
    it, close together: what is in memory, and who else is busy, is the same for all three."""
    for number in range(rounds):
        if number and time.monotonic() > end:
            return
        await _turn(kind, query, straight, steered, number)


async def _turn(kind: Kind, query: Query, straight: Any, steered: Any, number: int) -> None:
    """One run of each kind; which comes first changes from round to round."""
    runs = {DIRECT: (straight, query.sql), STEERED: (steered, query.sql)}
    best = kind.oracle.get(query.name)
    if best is not None and best["prefix"]:
        runs[ORACLE] = (straight, best["prefix"] + query.sql)
    order = list(runs)
    timings = kind.timings[query.name]
    tags = set()
    for name in order[number % len(order) :] + order[: number % len(order)]:
        took, tag = await run_once(*runs[name], LIMIT_MS)
        timings.runs.setdefault(name, []).append(took)
        tags.add(tag)
    if len(tags - {""}) > 1:
        raise BenchmarkError(f"{kind.data} {query.name} returned different rows: {sorted(tags)}.")


def _look(kind: Kind, store: Path, database: str) -> None:
    """What the plan memory holds of each query now."""
    with open_store(str(store), migrate=False) as opened:
        for timings in kind.timings.values():
            arms = opened.arms(query_key(database, SEARCH_PATH, timings.sql))
            timings.approved = {arm.arm: arm.measured_gain for arm in arms if arm.state is State.APPROVED}
            timings.memory.append([f"{arm.arm}: {arm.state}, {arm.runs} runs, {arm.why}" for arm in arms])


def _explore(plan: Plan, model: str, direct: str, models: Path, store: Path, queries: Path) -> dict[str, Any]:
    """`pilotwire explore` as a person runs it; its report."""
    command = [
        sys.executable, "-m", "pilotwire", "explore", "--upstream", direct, "--queries", str(queries),
        "--models", str(models), "--store", str(store), "--budget", f"{plan.seconds(EXPLORE[model]):g}", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"pilotwire explore failed: {done.stderr.strip()[-400:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()

"""Does steering ever lose? ``python -m benchmarks.never_loses``: many rounds of a workload through a real proxy.

For the demo's data and for travel_se: a fresh PostgreSQL, a model trained by `pilotwire train`, and a saboteur that
predicts nonsense. With each of the two a real `pilotwire serve` in mode on, with a store of its own, warms up: the
workload runs some rounds, `pilotwire explore` verifies it once, and it runs some rounds more. Then it is measured: each
query directly, steered, and (with the honest model) under the better of the best arm and its true cardinalities, which
were found beforehand, in turns, round by round over the whole workload.

This is about a workload that repeats: the queries that are measured are the ones that were explored, and travel_se's
test queries serve for both. What a model makes of queries never seen is measured by `benchmarks.steer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
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
SEARCH_SECONDS: Final = 300.0
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
    rounds: int
    warm_up: int
    seed: int
    scale: float
    budget: float
    explore: float
    travel: Path
    training: int


@app.command()
def main(
    *,
    sets: Annotated[str, typer.Option(help=f"Only these: {', '.join(SETS)}.")] = ",".join(SETS),
    models: Annotated[str, typer.Option(help=f"Only these: {', '.join(MODELS)}.")] = ",".join(MODELS),
    rounds: Annotated[int, typer.Option(min=3, help="Measured rounds over the workload.")] = 9,
    warm_up: Annotated[int, typer.Option(min=1, help="Rounds before exploring, and again after it.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the demo's rows and queries.")] = 1,
    scale: Annotated[float, typer.Option(min=0.005, help="Of the demo's rows.")] = 1.0,
    budget: Annotated[float, typer.Option(min=1, help="Seconds for counting joins while training.")] = 300.0,
    explore: Annotated[float, typer.Option(min=0, help="Seconds of server time to explore; 0: serving only.")] = 600.0,
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
    plan = Plan(chosen, kinds, rounds, warm_up, seed, scale, budget, explore, travel, training)
    path = output or RESULTS / f"never-loses-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}.json"
    settings = {"config": CONFIG, "rounds": rounds, "warm_up": warm_up, "seed": seed, "scale": scale, "budget": budget,
                "explore": explore, "training_queries": training}  # fmt: skip
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
        oracle = asyncio.run(find_oracle(dsn, data, report)) if "honest" in plan.models else {}
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


async def find_oracle(dsn: str, data: DataSet, report: Report) -> dict[str, tuple[str, str]]:
    """Each query's best arm and the comment that asks for it ("" for none), true cardinalities among the arms."""
    found: dict[str, tuple[str, str]] = {}
    async with connected(dsn) as connection:
        snapshot = await load(connection)
        for number, query in enumerate(data.queries, 1):
            report(f"{data.name}: the best arm {number}/{len(data.queries)} {query.name}")
            arms = {name: Advice(settings=settings) for name, settings in PORTFOLIO.items()}
            counted_rows = await counted_advice(connection, query.sql, snapshot, (), SEARCH_SECONDS)
            if counted_rows is not None:
                arms[COUNTED_ARM] = counted_rows
            results = await try_arms(
                dsn,
                query.sql,
                arms,
                SEARCH_SECONDS,
                capabilities=(hint_plan.CAPABILITY,),
                expected={COUNTED_ARM: 2.0},
                rounds=SEARCH_ROUNDS,
                limit_ms=LIMIT_MS,
                cheap_ms=0.0,
            )
            found[query.name] = (results.best.name, results.best.rendered.prefix)
    return found


# ---------------------------------------------------------------------- rounds


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
    """Warm-up, exploring, warm-up, then the measured rounds."""
    name = f"{data.name}, {kind.model}"
    async with contextlib.AsyncExitStack() as stack:
        straight, steered = [await stack.enter_async_context(connected(dsn)) for dsn in (direct, proxied)]
        kind.timings = {query.name: Timings(query.name, query.sql) for query in data.queries}
        # What a query takes by itself, for what the warm-up costs.
        for query in data.queries:
            await run_once(straight, query.sql, LIMIT_MS)
            kind.timings[query.name].unsteered.append((await run_once(straight, query.sql, LIMIT_MS))[0])
        for number in range(2 * plan.warm_up):
            if number == plan.warm_up and plan.explore:
                report(f"{name}: exploring")
                kind.explored = await asyncio.to_thread(_explore, plan, direct, models, store, queries)
                await asyncio.sleep(SETTLE_SECONDS)
            report(f"{name}: warm-up {number + 1}/{2 * plan.warm_up}")
            for query in data.queries:
                kind.timings[query.name].warm_up.append((await run_once(steered, query.sql, LIMIT_MS))[0])
        for number in range(plan.rounds):
            report(f"{name}: round {number + 1}/{plan.rounds}")
            for query in data.queries:
                await _turn(kind, query, straight, steered, number)
        doubtful = [query for query in data.queries if kind.timings[query.name].slower()]
        for number in range(AGAIN * plan.rounds if doubtful else 0):
            report(f"{name}: {len(doubtful)} that look slower, {number + 1}/{AGAIN * plan.rounds}")
            for query in doubtful:
                await _turn(kind, query, straight, steered, number)
    _in_use(kind, store, f"guard_{'demo' if data.name == 'demo' else 'travel'}")


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


def _in_use(kind: Kind, store: Path, database: str) -> None:
    """The approved arms of each query, as the store has them."""
    with open_store(str(store), migrate=False) as opened:
        for timings in kind.timings.values():
            arms = opened.arms(query_key(database, SEARCH_PATH, timings.sql), state=State.APPROVED)
            timings.approved = {arm.arm: arm.measured_gain for arm in arms}


def _explore(plan: Plan, direct: str, models: Path, store: Path, queries: Path) -> dict[str, Any]:
    """`pilotwire explore` as a person runs it; its report."""
    command = [
        sys.executable, "-m", "pilotwire", "explore", "--upstream", direct, "--queries", str(queries),
        "--models", str(models), "--store", str(store), "--budget", f"{plan.explore:g}", "--json",
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

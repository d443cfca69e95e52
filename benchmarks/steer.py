"""What steering gains and what it costs: ``python -m benchmarks.steer``.

For the demo's data and for travel_se: a fresh PostgreSQL, `pilotwire train` from an empty folder on the training
queries, a real `pilotwire serve --models`, and then queries that nothing was trained on, each in four kinds that take
turns. docs/benchmarks.md says how to read the tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final

import asyncpg
import typer
from rich.console import Console

from benchmarks import steer_cost
from benchmarks.processes import HOST, BenchmarkError, free_port, server_process
from benchmarks.steer_results import Measured, Results, SetResults, show
from benchmarks.steer_sets import ROOT, DataSet, demo_set, digest, travel_files, travel_set
from benchmarks.steer_truth import Truth, find_truth
from pilotwire.demo.measure import interleave
from pilotwire.embedded import EmbeddedError, EmbeddedServer

RESULTS: Final = Path(__file__).parent / "results"
PARTS: Final = ("demo", "travel", "cost")
CONFIG: Final[dict[str, str | int]] = {
    "shared_buffers": "1GB",
    "effective_cache_size": "3GB",
    "work_mem": "16MB",
    "random_page_cost": "1.1",
    "max_parallel_workers_per_gather": 0,
    "jit": "off",
    "fsync": "off",
    "max_wal_size": "4GB",
    "autovacuum": "off",
}
"""The tuning that guides give for a machine with an SSD, and no parallel query, so that two cores are enough for the
server and the proxy. autovacuum is off so that statistics stay those that both sides were planned with."""
LIMIT_SECONDS: Final = 20
READY_SECONDS: Final = 60.0

Report = Callable[[str], None]
app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. ``budget`` bounds the counting of `pilotwire train`, ``truth`` that of true rows, in seconds; 0
    leaves the kind "true rows" out. ``labels`` is a folder where counts of true rows are kept for the next run."""

    parts: tuple[str, ...]
    rounds: int
    seed: int
    scale: float
    budget: float
    truth: float
    travel: Path
    labels: Path | None
    seconds: float


@app.command()
def main(
    *,
    parts: Annotated[str, typer.Option(help=f"Only these parts: {', '.join(PARTS)}.")] = ",".join(PARTS),
    rounds: Annotated[int, typer.Option(min=1, help="Counted runs of each query and kind.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the demo's rows and queries.")] = 1,
    scale: Annotated[float, typer.Option(min=0.005, help="Of the demo's rows.")] = 1.0,
    budget: Annotated[float, typer.Option(min=1, help="Seconds for counting joins while training.")] = 300.0,
    truth: Annotated[float, typer.Option(min=0, help="Seconds for counting true rows; 0: leave them out.")] = 900.0,
    labels: Annotated[Path | None, typer.Option(help="Folder that keeps counts of true rows for the next run.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one pgbench run of the cost part.")] = 10.0,
    output: Annotated[Path | None, typer.Option("--json", help="Where the JSON goes; a dated file by default.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a promise is not kept.")] = False,
) -> None:
    """Measure what steering gains and costs; at full length about an hour."""
    console = Console(width=None if sys.stdout.isatty() else 190, highlight=False)
    chosen = tuple(part.strip() for part in parts.split(",") if part.strip())
    if unknown := [part for part in chosen if part not in PARTS]:
        console.print(f"[red]{unknown[0]!r} is no part: choose from {', '.join(PARTS)}.[/]")
        raise typer.Exit(2)
    travel = Path(os.environ.get("TRAVEL_SE") or ROOT.parent / "shared" / "data" / "travel_se")
    plan = Plan(chosen, rounds, seed, scale, budget, truth, travel, labels, seconds)
    path = output or RESULTS / f"steer-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}.json"
    results = Results({"config": CONFIG, "rounds": rounds, "seed": seed, "scale": scale, "budget": budget})
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
        except (BenchmarkError, EmbeddedError, asyncpg.PostgresError) as error:
            print(f"benchmarks.steer: {' '.join(str(error).split())}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            console.print("stopped; what was measured so far follows")
            code = 130
    show(results, console)
    if results.sets or results.costs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.as_json())
        console.print(f"Results: {path}")
    failed = strict and not all(verdict.passed for verdict in results.verdicts())
    raise typer.Exit(code or int(failed))


@contextlib.contextmanager
def prepared_server(report: Report) -> Iterator[tuple[EmbeddedServer, Path]]:
    """A fresh server with pg_hint_plan in a temporary directory; gone when the block ends."""
    work = Path(tempfile.mkdtemp(prefix="pilotwire-steer-"))
    work.chmod(0o755)
    server = EmbeddedServer(work / "postgres", config=CONFIG)
    try:
        server.start(report)
        if not server.hint_plan.available:
            raise BenchmarkError(f"Rows of joins can only be told to pg_hint_plan: {server.hint_plan.reason}")
        yield server, work
    finally:
        server.stop()
        shutil.rmtree(work, ignore_errors=True)


def run(plan: Plan, server: EmbeddedServer, work: Path, results: Results, report: Report) -> None:
    """All parts, filling `results` as it goes, so that an interrupted run keeps what it has."""
    results.versions = {"postgresql": server.version, "pilotwire": metadata.version("pilotwire")}
    for name in ("onnxruntime", "lightgbm", "pglast", "asyncpg"):
        results.versions[name] = metadata.version(name)
    for part in ("demo", "travel"):
        if part not in plan.parts and not (part == "demo" and "cost" in plan.parts):
            continue
        database = f"steer_{part}"
        server.run("psql", "-XAtq", "-d", server.dsn(), "-c", f"CREATE DATABASE {database}")
        dsn = server.dsn(database)
        if part == "demo":
            data = demo_set(dsn, work, plan.seed, plan.scale, report)
        else:
            data = travel_set(dsn, plan.travel, report)
        models = work / f"models-{part}"
        models.mkdir()
        found = SetResults(data.name, data.inputs)
        found.training = train(dsn, data, models / f"{part}.onnx", plan.budget, report)
        found.model_sha256 = digest((models / f"{part}.onnx").read_bytes())
        with serving(server, database, models, work, report) as proxied:
            if part in plan.parts:
                results.sets.append(found)
                asyncio.run(measure(plan, data, dsn, proxied, models, work, found, report))
            if part == "demo" and "cost" in plan.parts:
                steer_cost.measure(results, server, dsn, proxied, models, plan.seconds, plan.rounds, report)


def train(dsn: str, data: DataSet, out: Path, budget: float, report: Report) -> dict[str, Any]:
    """`pilotwire train` as a person runs it; its report."""
    report(f"{data.name}: training")
    command = [
        sys.executable, "-m", "pilotwire", "train", "--upstream", dsn, "--queries", str(data.training),
        "--out", str(out), "--budget", f"{budget:g}", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"pilotwire train failed: {done.stderr.strip()[-400:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@contextlib.contextmanager
def serving(server: EmbeddedServer, database: str, models: Path, work: Path, report: Report) -> Iterator[str]:
    """`pilotwire serve --models` with one worker until the block ends; the DSN through it. Its model serves already."""
    port, admin = free_port(), free_port()
    command = [
        sys.executable, "-m", "pilotwire", "serve", "--upstream", server.dsn(database), "--listen", f"{HOST}:{port}",
        "--admin", f"{HOST}:{admin}", "--auth", "trust", "--workers", "1", "--models", str(models),
        # What is measured is the model by itself.
        "--evidence", "none", "--store", "none",
    ]  # fmt: skip
    report("starting the proxy")
    with server_process(command, port, work / "proxy.log", environment={"PILOTWIRE_DRAIN_TIMEOUT": "1"}):
        wait_for_model(f"http://{HOST}:{admin}/api/models")
        yield f"postgresql://postgres@{HOST}:{port}/{database}"


def wait_for_model(url: str) -> None:
    """Until the proxy says that a model serves."""
    deadline = time.monotonic() + READY_SECONDS
    said = "nothing"
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=5) as answer:
            said = answer.read().decode()
            if any(one["state"] == "active" for one in json.loads(said)["models"]):
                return
        time.sleep(0.2)
    raise BenchmarkError(f"The proxy serves no model after {READY_SECONDS:.0f} s; it says: {said[:300]}")


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn, ssl=False, statement_cache_size=0)
    try:
        await connection.execute(f"SET statement_timeout = {LIMIT_SECONDS * 1000}")
        yield connection
    finally:
        await connection.close(timeout=5)


async def measure(
    plan: Plan, data: DataSet, direct: str, proxied: str, models: Path, work: Path, found: SetResults, report: Report
) -> None:
    """Every query in all kinds."""
    truth = Truth()
    if plan.truth:
        labels = (plan.labels or work) / f"steer-{data.name}.truth"
        truth = await find_truth(direct, models, data, labels, plan.truth, report)
    found.sub_plans, found.uncounted = truth.sub_plans, truth.missing
    async with contextlib.AsyncExitStack() as stack:
        straight, hinted, plain, steered = [
            await stack.enter_async_context(connected(dsn)) for dsn in (direct, direct, proxied, proxied)
        ]
        await plain.execute("SET pilotwire.mode = 'off'")
        await _known(steered, data)
        for number, query in enumerate(data.queries, 1):
            report(f"{data.name}: {number}/{len(data.queries)} {query.name}")
            kinds = {"direct": (straight, query.sql), "plain": (plain, query.sql), "steered": (steered, query.sql)}
            if query.name in truth.hints:
                kinds["true rows"] = (hinted, truth.hints[query.name] + query.sql)
            elif plan.truth:
                kinds["true rows"] = (hinted, query.sql)
            series = await interleave(kinds, plan.rounds, LIMIT_SECONDS * 1000)
            tags = {one.tag for one in series.values() if one.tag}
            if len(tags) > 1:
                raise BenchmarkError(f"{data.name} {query.name} returned different rows: {sorted(tags)}.")
            before, after = await explained(plain, query.sql), await explained(steered, query.sql)
            reason = truth.reasons.get(query.name, "") or ("" if told(before) != told(after) else "not told")
            found.queries.append(Measured(query.name, query.sql, reason, series, shape(before) != shape(after)))


async def _known(steered: Any, data: DataSet) -> None:
    """Have the planner process read the catalog of this database before anything is timed."""
    deadline = time.monotonic() + READY_SECONDS
    joined = [query.sql for query in data.queries][:20]
    while time.monotonic() < deadline:
        for sql in joined:
            plain = await steered.fetchval(f"/* pilotwire: off */ EXPLAIN (FORMAT JSON) {sql}")
            if told(json.loads(plain)[0]["Plan"]) != told(await explained(steered, sql)):
                return
        await asyncio.sleep(0.5)


async def explained(connection: Any, sql: str) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}"))[0]["Plan"]
    return plan


def told(plan: dict[str, Any]) -> list[float]:
    """The rows that the server expects of each step: other ones mean that advice arrived."""
    return [plan["Plan Rows"], *(rows for child in plan.get("Plans", ()) for rows in told(child))]


def shape(plan: dict[str, Any]) -> tuple[Any, ...]:
    """What a plan does, whatever it expects."""
    own = (plan["Node Type"], plan.get("Alias"), plan.get("Index Name"), plan.get("Join Type"))
    return (*own, *(shape(child) for child in plan.get("Plans", ())))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()

"""The demo from an empty database to a table of times: load, train, run plain and steered, say what came of it.

Plain is not past the proxy but through it with ``pilotwire.mode = 'off'``: so the two differ in the advice alone.
Whatever was done is kept in a folder and in the database: a second start finds the rows, the model and the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import asyncpg
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from model_runtime import bundle
from pilotwire.demo import load
from pilotwire.demo.measure import interleave
from pilotwire.demo.report import Results, Row, read_results, show
from pilotwire.demo.training_queries import COUNT, training_queries
from pilotwire.demo.why import explain_why
from pilotwire.demo.workload import Statement, workload
from pilotwire.errors import StartError
from planner.features import UnknownFeaturizerError, featurizer
from planner.features.flat import Flat
from planner.planner import Planner
from training.errors import TrainingError
from training.queries import read_text
from training.steps import Step
from training.train import train_baseline

DATABASE: Final = "demo"
MODEL_FILE: Final = "demo.onnx"
ROUNDS: Final = 5
LIMIT_SECONDS: Final = 30
COUNTING_SECONDS: Final = 80.0
"""Of the two minutes that training may take, for counting joins; growing the trees takes the rest."""
SHARES_OF_TRAINING: Final = {
    "running queries": (0.02, 0.1),
    "counting joins": (0.1, 0.6),
    "counting generated joins": (0.6, 0.8),
    "growing trees": (0.8, 0.98),
}
"""From where to where its steps go, roughly."""
READY_SECONDS: Final = 30.0
"""How long the proxy may take until it knows the catalog and the model."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What to run, and where. The DSNs name any database of one server, straight and through the proxy; ``models`` is
    the folder that the proxy serves models from; ``admin_url`` is the proxy's admin server."""

    direct: str
    proxy: str
    admin_url: str
    folder: Path
    models: Path
    seed: int = 1
    scale: float = 1.0
    rounds: int = ROUNDS
    queries: int = COUNT
    fresh: bool = False
    again: bool = False

    @property
    def results_file(self) -> Path:
        return self.folder / f"demo-results-{self.seed}-{self.scale:g}.json"


def run_demo(demo: Demo, console: Console) -> Results:
    """Everything that is still missing is done and shown. Raises StartError with one sentence."""
    try:
        return asyncio.run(_run(demo, console))
    except TrainingError as error:
        raise StartError(f"the demo's model could not be trained: {error}") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StartError(f"the demo's database failed: {reason}") from None


async def _run(demo: Demo, console: Console) -> Results:
    direct, proxied = in_database(demo.direct, DATABASE), in_database(demo.proxy, DATABASE)
    demo.models.mkdir(parents=True, exist_ok=True)
    loaded = await _load(demo, direct, console)
    model = demo.models / MODEL_FILE
    label = await asyncio.to_thread(usable, model)
    trained = loaded or not label
    if trained:
        if loaded:
            # Counts of other rows would be wrong.
            for left in model.parent.glob(f"{model.stem}.labels.jsonl*"):
                left.unlink()
        await _train(demo, direct, model, console)
    kept = read_results(demo.results_file)
    if kept is not None and kept.model == label and not trained and not demo.again:
        console.print(f"\nThe workload as it ran at {kept.taken_at} (--again runs it again):\n")
        show(kept, console)
        return kept
    await _serving(demo, trained)
    results = await _measure(demo, direct, proxied, console)
    results.save(demo.results_file)
    console.print()
    show(results, console)
    return results


def usable(path: Path) -> str:
    """The name-version of an earlier start's model; "" unless it is whole and this version computes its inputs."""
    try:
        manifest = bundle.load(path).manifest
        described = manifest.featurizer
        made = featurizer(described.name, described.version, manifest.vocabulary, described.options)
    except (bundle.Refused, UnknownFeaturizerError):
        return ""
    same_inputs = not isinstance(made, Flat) or manifest.features == made.names
    return manifest.label if same_inputs else ""


def in_database(dsn: str, database: str) -> str:
    """The same DSN with another database."""
    return urlsplit(dsn)._replace(path=f"/{quote(database, safe='')}").geturl()


async def _load(demo: Demo, direct: str, console: Console) -> bool:
    """Have the rows in place; True when they had to be made."""
    connection = await asyncpg.connect(demo.direct, ssl=False)
    try:
        if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    if not demo.fresh and await load.is_loaded(direct, demo.seed, demo.scale):
        console.print(f"the database {DATABASE} is loaded already (seed {demo.seed})")
        return False
    started = time.monotonic()
    with _progress(console) as told:
        rows = await load.load(direct, demo.seed, demo.scale, told)
    console.print(f"{rows:,} rows of a shop loaded into the database {DATABASE} in {time.monotonic() - started:.1f} s")
    return True


async def _train(demo: Demo, direct: str, model: Path, console: Console) -> None:
    queries = read_text(";\n".join(training_queries(demo.seed, demo.queries, demo.scale)))
    with _progress(console) as told:

        def show_step(step: Step) -> None:
            share = step.done / step.total if step.total else 0.0
            begin, end = SHARES_OF_TRAINING.get(step.name, (0.0, 0.0))
            at = begin + (end - begin) * share
            numbers = f" {step.done:,}/{step.total:,}" if step.total else ""
            told(f"training: {step.name}{numbers}", at)

        report = await train_baseline(direct, queries, model, budget_seconds=COUNTING_SECONDS, progress=show_step)
    split = report.splits.get("templates")
    said = ""
    if split is not None:
        said = (
            f"; on joins it has not seen, 1 of 10 estimates is off by more than {split.native[1]:,.1f} times "
            f"(PostgreSQL's own) and {split.model[1]:,.1f} times (the model's)"
        )
    console.print(
        f"{report.model} trained on {report.queries_learned} other queries ({report.sub_plans:,} joins counted) in "
        f"{report.seconds:.0f} s{said}"
    )


async def _serving(demo: Demo, trained: bool) -> None:
    """Have the proxy take the model in now. Raises StartError when it refuses or does not come to it."""
    deadline = time.monotonic() + READY_SECONDS
    problem = "it did not answer"
    while time.monotonic() < deadline:
        try:
            models = await asyncio.to_thread(_reload, demo.admin_url)
        except (OSError, ValueError) as error:
            problem = str(error)
        else:
            mine = [one for one in models if one.get("file") == MODEL_FILE]
            if any(one.get("state") == "active" for one in mine):
                return
            if any(one.get("state") == "refused" for one in mine):
                raise StartError(f"the proxy refused the new model: {mine[0].get('detail')}")
            problem = f"it serves {models or 'no model'}"
        await asyncio.sleep(0.2)
    raise StartError(f"the proxy does not serve the model after {READY_SECONDS:.0f} s: {problem}")


def _reload(admin_url: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{admin_url}/api/models/reload", method="POST")  # noqa: S310 - http to loopback
    try:
        with urllib.request.urlopen(request, timeout=READY_SECONDS) as answer:  # noqa: S310
            found: list[dict[str, Any]] = json.loads(answer.read())["models"]
            return found
    except urllib.error.HTTPError as error:
        raise OSError(error.read().decode(errors="replace")) from None


async def _measure(demo: Demo, direct: str, proxied: str, console: Console) -> Results:
    statements = workload(demo.seed, demo.scale)
    async with contextlib.AsyncExitStack() as stack:
        plain, steered = [await stack.enter_async_context(_connected(proxied, LIMIT_SECONDS)) for _ in range(2)]
        await plain.execute("SET pilotwire.mode = 'off'")
        planner = await stack.enter_async_context(await Planner.connect(direct, models=demo.models))
        serving = planner.models.cardinality
        label = serving.manifest.label if serving is not None else ""
        results = Results(
            seed=demo.seed,
            scale=demo.scale,
            model=label,
            taken_at=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            rounds=demo.rounds,
        )
        await _steering(plain, steered, statements)
        with _progress(console) as told:
            for number, statement in enumerate(statements):
                told(f"plain and steered in turn: {statement.name}", number / len(statements))
                sql = statement.sql
                kinds = {"plain": (plain, sql), "steered": (steered, sql)}
                found = await interleave(kinds, demo.rounds, LIMIT_SECONDS * 1000)
                advised, why = await explain_why(plain, steered, planner, sql)
                results.rows.append(
                    Row(statement.name, statement.kind, sql, found["plain"], found["steered"], advised, why)
                )
    return results


async def _steering(plain: Any, steered: Any, statements: list[Statement]) -> None:
    """Wait until the proxy knows this database's catalog: until any statement is planned with other rows."""
    joined = [statement.sql for statement in statements if statement.kind == "dashboard"]
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        for sql in joined:
            if await plain.fetch(f"EXPLAIN {sql}") != await steered.fetch(f"EXPLAIN {sql}"):
                return
        await asyncio.sleep(0.5)
    # A model that corrects nothing is no error: the table says so in its own words.


@contextlib.asynccontextmanager
async def _connected(dsn: str, limit_seconds: float) -> Any:
    connection = await asyncpg.connect(dsn, ssl=False, statement_cache_size=0)
    try:
        await connection.execute(f"SET statement_timeout = {int(limit_seconds * 1000)}")
        yield connection
    finally:
        await connection.close()


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar that goes away when the work is done; nothing where there is no terminal."""
    bar = Progress(
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task: TaskID = bar.add_task("", total=1.0)
        yield lambda text, share: bar.update(task, description=f"{text:<60.60}", completed=share)

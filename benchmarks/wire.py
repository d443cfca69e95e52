"""What the wire costs: ``python -m benchmarks.wire``.

PostgreSQL itself, PgBouncer and pilotwire stand side by side in one run and take turns, round by round, so that a
machine that changes its mind hurts all of them alike. docs/benchmarks.md says how to read the tables.
"""

from __future__ import annotations

import contextlib
import datetime
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.status import Status

from benchmarks import bulk, idle_memory, latency, speed
from benchmarks.pgbench import Pgbench
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Cell
from benchmarks.report import Results, kept, show
from benchmarks.targets import POOL_SIZE, Bench, Target, Variant, pgbouncer_settings, pilotwire_settings, prepared_bench
from pilotwire.embedded import EmbeddedError

Part = Literal["speed", "latency", "connect", "memory", "bulk", "stall"]
PARTS: tuple[Part, ...] = ("speed", "latency", "connect", "memory", "bulk", "stall")
RESULTS = Path(__file__).parent / "results"
COMPILED = Path(__file__).resolve().parent.parent / "build" / "compiled"
"""Where ``make compiled`` puts the compiled build; without it only the pure one is measured."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="How often each target runs in each cell.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="Length of one pgbench run, in seconds.")] = 10,
    cells: Annotated[str, typer.Option(help="Only these cells of the grid, like 8:simple,32:prepared.")] = "",
    parts: Annotated[str, typer.Option(help=f"Only these parts: {', '.join(PARTS)}.")] = ",".join(PARTS),
    targets: Annotated[str, typer.Option(help="Only targets whose name holds one of these words.")] = "",
    bulk_mb: Annotated[int, typer.Option(min=1, help="Size of a large result, in MB.")] = 1024,
    models: Annotated[
        Path | None, typer.Option(help="A folder of models: pilotwire then has steering on.", exists=True)
    ] = None,
    pgbouncer: Annotated[Path | None, typer.Option(help="The PgBouncer to compare with.", exists=True)] = None,
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes; a dated file by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run that was stopped and left this JSON, and write it there.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a promise is not kept.")] = False,
) -> None:
    """Measure pilotwire beside PgBouncer and direct connections; at full length about an hour."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        wanted = _parts(parts)
        grid = speed.parse_cells(cells)
        results = kept(resume, seconds) if resume else Results({}, {})
    except ValueError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(2) from None
    signal.signal(signal.SIGTERM, _interrupt)
    words = [word.strip() for word in targets.split(",") if word.strip()]
    plan = Plan(parts=wanted, cells=grid, rounds=rounds, seconds=seconds, bulk_size=bulk_mb * bulk.MIB, words=words)
    path = output or resume or RESULTS / f"wire-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}.json"
    code = 0
    with console.status("starting") as status:
        report = _reporter(console, status)
        try:
            idle_memory.allow_sockets(8192)
            compiled = COMPILED if any(COMPILED.glob("proxy/wire/*.so")) else None
            with prepared_bench(report, pgbouncer, compiled=compiled, models=models) as bench:
                plan.run(bench, results, report)
            results.complete = True
        except (BenchmarkError, EmbeddedError) as error:
            console.print(f"[red]{error}[/]")
            code = 1
        except KeyboardInterrupt:
            console.print("stopped; what was measured so far follows")
            code = 130
    show(results, console)
    if results.settings:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.as_json())
        console.print(f"Results: {path}")
    failed = strict and not all(verdict.passed for verdict in results.verdicts())
    raise typer.Exit(code or int(failed))


class Plan:
    """Which parts to run on which targets and for how long; sizes in bytes."""

    def __init__(
        self,
        *,
        parts: Sequence[Part],
        cells: Sequence[Cell],
        rounds: int,
        seconds: float,
        bulk_size: int,
        words: Sequence[str],
    ) -> None:
        self._parts = parts
        self._cells = cells
        self._rounds = rounds
        self._seconds = seconds
        self._bulk_size = bulk_size
        self._words = words

    def run(self, bench: Bench, results: Results, report: Callable[[str], None]) -> None:
        """Run all parts, filling `results` as it goes, so that an interrupted run keeps what it has."""
        pgbench = Pgbench(bench.server.binary("pgbench"))
        results.settings.update(self._settings(bench))
        found = versions(bench, pgbench)
        if results.versions not in ({}, found):
            raise BenchmarkError(f"What was kept was measured with other versions: {results.versions}, now {found}.")
        results.versions = found
        if "speed" in self._parts:
            report("making pgbench's tables")
            pgbench.initialise(bench.server.port)
            with self._running(bench, speed.VARIANTS) as targets:
                samples = speed.measure(
                    bench,
                    pgbench,
                    targets,
                    self._cells,
                    rounds=self._rounds,
                    seconds=self._seconds,
                    done=tuple(results.samples),
                    progress=report,
                )
                for sample in samples:
                    results.samples.append(sample)
        if "latency" in self._parts and not results.queries:
            with self._running(bench, latency.QUERY_VARIANTS) as targets:
                results.queries += latency.queries(targets, round(self._seconds * self._rounds * 100), report)
        if "connect" in self._parts and not results.connects:
            with self._running(bench, latency.CONNECT_VARIANTS) as targets:
                results.connects += latency.connects(bench, targets, round(self._seconds * self._rounds * 6), report)
        if "memory" in self._parts:
            for load in idle_memory.LOADS:
                if self._wanted(bench, load.variant):
                    results.memory.append(idle_memory.measure(bench, load, report))
        if "bulk" in self._parts:
            with self._running(bench, bulk.VARIANTS) as targets:
                for stream in bulk.streams(targets, self._bulk_size, min(self._rounds, 3), report):
                    results.streams.append(stream)
        if "stall" in self._parts:
            for variant in bulk.STALL_VARIANTS:
                if self._wanted(bench, variant):
                    results.stalls += bulk.stalls(bench, variant, report)

    @contextlib.contextmanager
    def _running(self, bench: Bench, variants: Sequence[Variant]) -> Iterator[list[Target]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(bench.start(one)) for one in variants if self._wanted(bench, one)]

    def _wanted(self, bench: Bench, variant: Variant) -> bool:
        named = not self._words or any(word in variant.name for word in self._words)
        return named and bench.can_run(variant)

    def _settings(self, bench: Bench) -> dict[str, object]:
        shown = {variant.name: variant for variant in speed.VARIANTS}
        return {
            "rounds": self._rounds,
            "seconds": self._seconds,
            "cells": [str(cell) for cell in self._cells],
            "parts": list(self._parts),
            "bulk_bytes": self._bulk_size,
            "pool_size": POOL_SIZE,
            "pgbouncer": {
                name: pgbouncer_settings(one, bench) for name, one in shown.items() if one.kind == "pgbouncer"
            },
            "pilotwire": {
                name: pilotwire_settings(one, bench) for name, one in shown.items() if one.kind == "pilotwire"
            },
        }


def versions(bench: Bench, pgbench: Pgbench) -> dict[str, str]:
    """The versions of all that takes part."""
    packages = {name: metadata.version(name) for name in ("asyncpg", "uvloop")}
    huge_pages = bench.server.run("psql", "-XAtq", "-d", bench.server.dsn(), "-c", "SHOW huge_pages_status")
    return {
        "postgresql": bench.server.version,
        "huge pages": huge_pages.strip(),
        "pgbench": pgbench.version(),
        "pgbouncer": bench.pgbouncer.version if bench.pgbouncer else "none",
        "pilotwire": metadata.version("pilotwire"),
        **packages,
    }


def _parts(text: str) -> list[Part]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no part: choose from {', '.join(PARTS)}.")
    return [part for part in PARTS if part in names]


def _reporter(console: Console, status: Status) -> Callable[[str], None]:
    """A line that changes in place on a terminal, lines one after the other elsewhere."""
    if console.is_terminal:
        return status.update
    return lambda text: print(text, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()

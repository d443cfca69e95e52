"""``pilotwire train``: learns from a database and a file of queries, and writes one model file.

What takes time is counting what the queries' joins really return; every count is kept beside the model file, so Ctrl-C
loses nothing and the next run goes on. Exit code 0: the model is written; 1: it is not, and one line says why; 2: a
wrong option; 130: interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pilotwire.errors import StartError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from training.train import Report, Step

INTERRUPTED = 130
SHOWN_SKIPPED = 5


def train(
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream", metavar="DSN", envvar="PILOTWIRE_UPSTREAM", help="The database, read only: postgresql://..."
        ),
    ],
    queries: Annotated[
        Path, typer.Option("--queries", metavar="FILE", help="SQL divided by ';', or lines of 'count||SQL'.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The model file, for instance models/shop.onnx.")],
    budget: Annotated[
        float, typer.Option("--budget", metavar="SECONDS", min=1, help="For counting joins; training takes some more.")
    ] = 300.0,
    count_timeout: Annotated[
        float, typer.Option("--count-timeout", metavar="SECONDS", min=0.01, help="For a single count.")
    ] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="The same seed gives the same trees.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Train a model on a workload: true row counts against the server's own estimates."""
    from rich.console import Console

    from pilotwire.cli import fail
    from training.errors import TrainingError
    from training.train import labels_path, train_baseline

    console = Console(highlight=False, soft_wrap=True)
    with _progress(quiet=as_json) as tell:
        try:
            report = asyncio.run(
                train_baseline(
                    upstream,
                    queries,
                    out,
                    budget_seconds=budget,
                    count_seconds=count_timeout,
                    seed=seed,
                    progress=tell,
                )
            )
        except TrainingError as error:
            raise StartError(str(error)) from None
        except KeyboardInterrupt:
            kept = labels_path(out)
            hint = f": what was counted is in {kept}, run the same command again to go on" if kept.exists() else ""
            return fail(f"interrupted{hint}", INTERRUPTED)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _summarise(report, console)
    return 0


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Step], None]]:
    """Shows the steps on standard error: bars on a terminal, one line a step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        seen: set[str] = set()

        def line(step: Step) -> None:
            if not quiet and step.name not in seen:
                seen.add(step.name)
                total = f" ({step.total})" if step.total else ""
                console.print(f"{step.name}{total} ...", soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: Step) -> None:
            total = step.total or None
            if step.name not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, completed=1, total=1, visible=False)
                tasks[step.name] = bars.add_task(step.name, total=total, note="")
            bars.update(tasks[step.name], completed=step.done, total=total, note=step.note)

        yield show


def _summarise(report: Report, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    skipped = f", {report.queries_skipped} skipped" if report.queries_skipped else ""
    console.print(f"queries    {report.queries} read{skipped}, {report.queries_learned} learned from")
    for reason in report.skipped[:SHOWN_SKIPPED]:
        console.print(Text(f"           {reason}", style="dim"))
    if len(report.skipped) > SHOWN_SKIPPED:
        console.print(Text(f"           and {len(report.skipped) - SHOWN_SKIPPED} more", style="dim"))
    console.print(
        f"joins      {report.counts} different ones: {report.counts_known} known from before, "
        f"{report.counts_timed_out} timed out, {report.counts_failed} failed, {report.counts_left} left; "
        f"{report.count_seconds:.0f} s"
    )
    console.print(
        f"learned    {report.sub_plans} with rows; left out: {report.sub_plans_empty} empty, "
        f"{report.sub_plans_uncountable} that cannot be counted; {report.train_seconds:.0f} s"
    )
    table = Table(title="q-errors on queries kept out of training, native -> model", title_justify="left", box=None)
    table.add_column("")
    for point in ("p50", "p90", "p99"):
        table.add_column(point, justify="right", no_wrap=True)
    names = {"templates": "join templates not seen", "random": "queries not seen"}
    for name, split in report.splits.items():
        figures = [f"{native:.3g} -> {model:.3g}" for native, model in zip(split.native, split.model, strict=True)]
        table.add_row(names[name], *figures)
    console.print(table)
    for warning in report.warnings:
        console.print(Text("warning: ", style="yellow").append(warning, style="none"))
    console.print(
        f"{report.model} is in {report.file} ({report.file_bytes / 1e6:.1f} MB), after {report.seconds:.0f} s"
    )

"""``pilotwire explore``: verifies what would make a workload faster, off the query path, and remembers it in the store.

Statements come from a file or from what the store knows, those with the most total time first. Each is saved as soon as
it is done with, so Ctrl-C keeps what was verified. Exit code 0: done (or the budget is spent, or the server is busy,
which is said); 1: it could not be done, and one line says why; 2: a wrong option; 130: interrupted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pilotwire import interrupting
from pilotwire.errors import StartError
from pilotwire.fitted_table import Column, fitted
from pilotwire.store_access import ConfigOption, Found, StoreOption, find

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pilotwire.exploring import Target
    from planner.memory.explorer import Explored, ExploreOptions, Progress, Report, Wanted

INTERRUPTED = 130
SHOWN = 30
EXCERPT = 200


Upstream = Annotated[
    str,
    typer.Option(
        "--upstream", metavar="DSN", envvar="PILOTWIRE_UPSTREAM", help="The database that is served: postgresql://..."
    ),
]
Queries = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        metavar="FILE",
        help="SQL divided by ';', or lines of 'count||SQL'; by default what the store knows with its texts.",
    ),
]
ModelFolder = Annotated[
    Path | None,
    typer.Option("--models", metavar="DIR", envvar="PILOTWIRE_MODELS", help="Try the models' advice as well."),
]
ExploreDsn = Annotated[
    str,
    typer.Option(
        "--explore-dsn",
        metavar="DSN",
        envvar="PILOTWIRE_EXPLORE_DSN",
        help="Run the statements here, for instance on a replica; by default on --upstream.",
    ),
]
BudgetSeconds = Annotated[
    float, typer.Option("--budget", metavar="SECONDS", min=0.1, help="Of the server's time, for everything.")
]
Share = Annotated[
    float, typer.Option("--share", min=0.001, max=1.0, help="Of the time, that statements may be running.")
]
Limit = Annotated[
    float, typer.Option("--limit", metavar="SECONDS", min=0.01, help="A statement that takes longer is not explored.")
]
MostActive = Annotated[
    int, typer.Option("--most-active", min=0, help="With more statements of others running, the server is busy.")
]
Patience = Annotated[
    float, typer.Option("--patience", metavar="SECONDS", min=0, help="How long to wait for a busy server.")
]
CountBudget = Annotated[
    float,
    typer.Option("--count-budget", metavar="SECONDS", min=0, help="For counting one statement's joins; 0: do not."),
]
MinGain = Annotated[
    float,
    typer.Option(
        "--min-gain", min=1, envvar="PILOTWIRE_MIN_GAIN", help="How many times as fast it must be to be approved."
    ),
]
MinGainMs = Annotated[
    float,
    typer.Option(
        "--min-gain-ms", min=0, envvar="PILOTWIRE_MIN_GAIN_MS", help="Milliseconds that it must save in the median."
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Try again what is known already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, every timing in it.")]


def explore(
    upstream: Upstream,
    queries: Queries = None,
    models: ModelFolder = None,
    store: StoreOption = "",
    config: ConfigOption = None,
    explore_dsn: ExploreDsn = "",
    budget: BudgetSeconds = 300.0,
    share: Share = 1.0,
    limit: Limit = 60.0,
    most_active: MostActive = 4,
    patience: Patience = 60.0,
    count_budget: CountBudget = 30.0,
    min_gain: MinGain = 1.2,
    min_gain_ms: MinGainMs = 5.0,
    again: Again = False,
    as_json: AsJson = False,
) -> int:
    """Find out what makes a workload faster, and have it used from then on."""
    from rich.console import Console

    from pilotwire.cli import fail
    from pilotwire.exploring import Target
    from planner.memory.evidence import Rules
    from planner.memory.explorer import ExploreOptions

    options = ExploreOptions(
        budget=budget,
        share=share,
        most_active=most_active,
        patience=patience,
        limit_ms=limit * 1000,
        again=again,
        count_seconds=count_budget,
        cheap_ms=min_gain_ms,
        rules=Rules(min_gain=min_gain, min_ms=min_gain_ms),
    )
    report, code, said = _run(
        Target(upstream, explore_dsn, models), queries, find(store, config), options, quiet=as_json
    )
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(report.as_json()))
    elif report.explored:
        _summarise(report, console)
    elif not code:
        console.print(
            "Nothing to explore: the store keeps no texts (store_literals is off), or none yet. Give --queries."
        )
    return fail(said, code) if code else 0


def _run(
    target: Target, queries: Path | None, store: Found, options: ExploreOptions, *, quiet: bool
) -> tuple[Report, int, str]:
    """What was found, and the exit code with its sentence when it ended early."""
    from pilotwire.exploring import GONE, Exploration, from_file
    from planner.memory.store import StoreError, open_store
    from training.errors import TrainingError
    from training.queries import read_file

    code, said = 0, ""
    with _progress(quiet=quiet) as tell:
        try:
            workload = from_file(read_file(queries)) if queries is not None else None
            with open_store(store.url, literals=store.literals) as opened:
                exploration = Exploration(target, opened, options, tell)
                try:
                    interrupting.run(exploration.run(workload))
                except KeyboardInterrupt:
                    code, said = INTERRUPTED, "interrupted; what was verified is kept"
                except GONE as error:
                    code, said = 1, f"the database: {' '.join(str(error).split()) or type(error).__name__}"
        except (TrainingError, StoreError) as error:
            raise StartError(str(error)) from None
    return exploration.report, code, said


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal, on standard error; nothing elsewhere, as a line for each statement would be many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:

        def silent(report: Report, wanted: Wanted | None) -> None:
            return

        yield silent
        return
    columns = (
        TextColumn("exploring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("exploring", total=None, note="reading the catalog")

        def show(report: Report, wanted: Wanted | None) -> None:
            note = f"{len(report.approved)} faster, {report.spent:.0f} s spent"
            if wanted is not None and wanted.name:
                note = f"{wanted.name}; {note}"
            bars.update(task, total=report.wanted, completed=len(report.explored), note=note)

        yield show


def _summarise(report: Report, console: Console) -> None:
    from rich.markup import escape

    best = sorted(report.approved, key=lambda one: -one.saved_ms)
    if best:
        columns = (
            Column("", 1), Column("plain", right=True), Column("saves", right=True), Column("factor", right=True),
            Column("by", 1),
        )  # fmt: skip
        rows = [_row(one) for one in best[:SHOWN]]
        console.print(fitted(console, columns, rows, "verified to be faster"))
        if len(best) > SHOWN:
            console.print(f"[dim]and {len(best) - SHOWN} more[/]")
    left: dict[str, int] = {}
    for one in report.explored:
        if one.reason:
            left[one.reason] = left.get(one.reason, 0) + 1
    reasons = ", ".join(
        f"{count} {escape(reason)}" for reason, count in sorted(left.items(), key=lambda item: -item[1])
    )
    console.print(
        f"statements {report.wanted}: {len(report.tried)} tried, {len(best)} faster"
        + (f"; not tried: {reasons}" if reasons else "")
    )
    console.print(f"cost       {report.spent:.1f} s of the server's time" + _repaid(report))
    if report.stopped:
        console.print(f"stopped    {escape(report.stopped)}; the same command goes on from here")


def _row(one: Explored) -> tuple[Text, ...]:
    from rich.text import Text

    assert one.approved is not None
    text = Text(" ".join(one.wanted.sql.split())[:EXCERPT])
    gain = one.approved.record.measured_gain
    numbers = (f"{one.plain_ms:.1f} ms", f"{one.saved_ms:.1f} ms", f"{gain:.2f}x")
    return text, *(Text(number) for number in numbers), Text(one.approved.record.arm)


def _repaid(report: Report) -> str:
    after = report.repays_after
    if after is None:
        return ""
    return f"; running each once now saves {report.saved_ms / 1000:.2f} s, so {after:.0f} repeats repay it"

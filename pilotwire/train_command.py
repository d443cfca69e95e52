"""``pilotwire train``: learns from a database and its queries, and writes one model file.

What takes time is labelling: counting what the queries' joins really return, or running them under other settings.
Every label is kept in a training set, a folder beside the model file, so Ctrl-C loses nothing and the next run goes on.
Exit code 0: the model is written; 1: it is not, and one line says why; 2: a wrong option; 130: interrupted.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pilotwire import interrupting
from pilotwire.errors import StartError
from pilotwire.progress import progress_bars

if TYPE_CHECKING:
    from rich.console import Console

    from training.collect import Limits, Sources
    from training.train import Report

INTERRUPTED = 130
SHOWN_SKIPPED = 5


class Kind(enum.StrEnum):
    """What the model predicts."""

    CARDINALITY = "cardinality"
    HINTS = "hints"


class Algorithm(enum.StrEnum):
    """How rows are predicted."""

    GBDT = "gbdt"
    MSCN = "mscn"


Upstream = Annotated[
    str,
    typer.Option(
        "--upstream", metavar="DSN", envvar="PILOTWIRE_UPSTREAM", help="The database, read only: postgresql://..."
    ),
]
Queries = Annotated[
    Path | None, typer.Option("--queries", metavar="FILE", help="SQL divided by ';', or lines of 'count||SQL'.")
]
PgStatStatements = Annotated[
    bool, typer.Option("--pg-stat-statements", help="Take the statements that cost most time from there.")
]
Logs = Annotated[
    list[Path] | None,
    typer.Option("--log", metavar="FILE", help="PostgreSQL's log, of any format; auto_explain too. May be repeated."),
]
StoreUrl = Annotated[str, typer.Option("--store", metavar="URL", help="What the proxy saw: the URL of its store.")]
Days = Annotated[float, typer.Option("--days", min=0, help="How far to look back in the store.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The most statements taken from each source but a file.")]
Generate = Annotated[
    int | None,
    typer.Option(
        "--generate", metavar="N", min=0, max=100_000, help="Statements to make up; default: by the workload."
    ),
]
LabelDsn = Annotated[
    str,
    typer.Option(
        "--label-dsn", metavar="DSN", envvar="PILOTWIRE_LABEL_DSN", help="A replica, where all the work is done."
    ),
]
Budget = Annotated[
    float, typer.Option("--budget", metavar="SECONDS", min=0, help="For finding true row counts, in all.")
]
CountTimeout = Annotated[
    float, typer.Option("--count-timeout", metavar="SECONDS", min=0.01, help="For a single statement.")
]
CountRows = Annotated[
    int,
    typer.Option("--count-rows", metavar="N", min=0, help="Where a count stops that has to produce rows; 0: never."),
]
Connections = Annotated[int, typer.Option("--connections", min=1, max=64, help="How many are used at once.")]
ArmsBudget = Annotated[
    float,
    typer.Option(
        "--arms-budget", metavar="SECONDS", min=0, help="For running statements under other planner settings."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="The same seed gives the same model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def train(
    upstream: Upstream,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The model file, for instance models/shop.onnx.")],
    queries: Queries = None,
    training_set: Annotated[
        Path | None,
        typer.Option("--set", metavar="DIR", help="A training set to learn from and add to; see pilotwire collect."),
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="Rows of joins, or which settings suit a query.")] = (
        Kind.CARDINALITY
    ),
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", help="Boosted trees, or the set network (needs PyTorch).")
    ] = Algorithm.GBDT,
    budget: Budget = 420.0,
    count_timeout: CountTimeout = 2.0,
    count_rows: CountRows = 50_000_000,
    connections: Connections = 2,
    label_dsn: LabelDsn = "",
    generate: Generate = None,
    arms_budget: ArmsBudget = 0.0,
    pg_stat_statements: PgStatStatements = False,
    log: Logs = None,
    store: StoreUrl = "",
    days: Days = 30.0,
    limit: Limit = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Train a model on a workload: true row counts against the server's own estimates."""
    from rich.console import Console

    from pilotwire.cli import fail
    from training.errors import TrainingError
    from training.train import check_writable, set_path, train_model

    if not (queries or training_set or pg_stat_statements or log or store):
        raise typer.BadParameter("name a file of queries, or another source", param_hint="'--queries'")
    _check_kind(kind, algorithm)
    place = training_set or set_path(out)
    console = Console(highlight=False, soft_wrap=True)
    with progress_bars(quiet=as_json) as tell:
        try:
            check_writable(out)
            report = interrupting.run(
                train_model(
                    upstream,
                    out,
                    sources_of(queries, pg_stat_statements, log, store, days, limit, kept=training_set is not None),
                    limits_of(budget, count_timeout, count_rows, connections, arms_budget, label_dsn),
                    kind=kind.value,
                    algorithm=algorithm.value,
                    training_set=place,
                    generate=generate,
                    seed=seed,
                    progress=tell,
                )
            )
        except TrainingError as error:
            raise StartError(str(error)) from None
        except KeyboardInterrupt:
            return fail(interrupted(place), INTERRUPTED)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _summarise(report, console)
    return 0


def _check_kind(kind: Kind, algorithm: Algorithm) -> None:
    if kind is Kind.HINTS and algorithm is not Algorithm.GBDT:
        raise typer.BadParameter(
            "it is for models of rows; a model of settings has one way to learn", param_hint="'--algorithm'"
        )


def sources_of(
    queries: Path | None,
    pg_stat_statements: bool,
    logs: list[Path] | None,
    store: str,
    days: float,
    limit: int,
    *,
    kept: bool,
) -> Sources:
    """The options as `training.collect` takes them. Raises TrainingError for a file that cannot be read."""
    import time

    from training.collect import Sources
    from training.queries import read_file

    return Sources(
        read_file(queries) if queries is not None else None,
        pg_stat_statements=pg_stat_statements,
        logs=tuple(logs or ()),
        store=store,
        since=time.time() - days * 86_400,
        limit=limit,
        kept=kept,
    )


def limits_of(budget: float, statement: float, rows: int, connections: int, arms: float, label_dsn: str) -> Limits:
    """The options as `training.collect` takes them."""
    from training.collect import Limits

    return Limits(
        budget=budget, statement=statement, rows=rows, connections=connections, arms=arms, label_dsn=label_dsn
    )


def interrupted(place: Path) -> str:
    """What to say after Ctrl-C."""
    hint = f": what was done is kept in {place}, run the same command again to go on" if place.exists() else ""
    return f"interrupted{hint}"


def _summarise(report: Report, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    skipped = f", {report.queries_skipped} skipped" if report.queries_skipped else ""
    hints = report.kind == "hints"
    learned = report.arms_measured if hints else report.queries_learned
    console.print(f"queries    {report.queries} read{skipped}, {learned} learned from")
    for reason in report.skipped[:SHOWN_SKIPPED]:
        console.print(Text(f"           {reason}", style="dim"))
    if len(report.skipped) > SHOWN_SKIPPED:
        console.print(Text(f"           and {len(report.skipped) - SHOWN_SKIPPED} more", style="dim"))
    if report.queries_given_values:
        console.print(
            f"           {report.queries_given_values} with parameters, taken with several likely values each"
        )
    if report.queries_generated:
        console.print(f"           {report.queries_generated} more were generated from the schema")
    if hints:
        console.print(
            f"arms       {report.arms_measured} statements measured, {report.arms_left} left; "
            f"{report.label_seconds:.0f} s"
        )
        _choices(report, console)
    else:
        _counted(report, console)
    what = "q-errors" if report.kind == "cardinality" else "errors of the predicted times"
    table = Table(title=f"{what} on queries kept out of training, native -> model", title_justify="left", box=None)
    table.add_column("")
    for point in ("p50", "p90", "p99"):
        table.add_column(point, justify="right", no_wrap=True)
    names = {"templates": "join templates not seen", "random": "queries not seen"}
    for name, split in report.splits.items():
        figures = [f"{native:.3g} -> {model:.3g}" for native, model in zip(split.native, split.model, strict=True)]
        table.add_row(names.get(name, name), *figures)
    if report.splits:
        console.print(table)
    for warning in report.warnings:
        console.print(Text("warning: ", style="yellow").append(warning, style="none"))
    console.print(
        f"{report.model} is in {report.file} ({report.file_bytes / 1e6:.1f} MB), after {report.seconds:.0f} s"
    )


def _counted(report: Report, console: Console) -> None:
    """What a model of rows learned from."""
    console.print(
        f"joins      {report.counts} different ones: {report.counts_known} known before counting "
        f"({report.labels_explained} new from plans), {report.counts_timed_out} timed out, {report.counts_bounded} "
        f"bounded, {report.counts_failed} failed, {report.counts_left} left; {report.label_seconds:.0f} s"
    )
    if report.generated_counts:
        console.print(
            f"           and {report.generated_counts} of generated statements, {report.generated_counts_left} left"
        )
    console.print(
        f"learned    {report.sub_plans} with rows; left out: {report.sub_plans_empty} empty, "
        f"{report.sub_plans_uncountable} that cannot be counted; {report.train_seconds:.0f} s"
    )


def _choices(report: Report, console: Console) -> None:
    """What a model of settings chose for statements kept out of training."""
    label = "chosen"
    for prefix, what in (("", "join templates not seen"), ("known_", "new values of known templates")):
        notes = {name.removeprefix(prefix): value for name, value in report.notes.items() if name.startswith(prefix)}
        if "steered" not in notes:
            continue
        console.print(
            f"{label:<10} {what}: {notes['steered']} steered, {notes['seconds_default']:.3g} s -> "
            f"{notes['seconds_chosen']:.3g} s (the best arms: {notes['seconds_best']:.3g} s), "
            f"{notes['slower']} slower, the worst {notes['worst']:.2f} times"
        )
        label = ""

"""``pilotwire collect``: fills a training set, a folder of Parquet files that models are trained from.

The workload comes from one or several sources; then labels are found within budgets. A run that ends early, for
whatever reason, is gone on with by the same command. Exit code 0: done; 1: one line says what is wrong; 2: a wrong
option; 130: interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire import interrupting
from pilotwire.errors import StartError
from pilotwire.progress import progress_bars
from pilotwire.train_command import (
    INTERRUPTED,
    SHOWN_SKIPPED,
    ArmsBudget,
    AsJson,
    Budget,
    Connections,
    CountRows,
    CountTimeout,
    Days,
    Generate,
    LabelDsn,
    Limit,
    Logs,
    PgStatStatements,
    Queries,
    Seed,
    StoreUrl,
    Upstream,
    interrupted,
    limits_of,
    sources_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from training.collect import Filled, Limits, Sources


def collect(
    upstream: Upstream,
    training_set: Annotated[Path, typer.Option("--set", metavar="DIR", help="The training set, made if need be.")],
    queries: Queries = None,
    pg_stat_statements: PgStatStatements = False,
    log: Logs = None,
    store: StoreUrl = "",
    days: Days = 30.0,
    limit: Limit = 1000,
    generate: Generate = None,
    label_dsn: LabelDsn = "",
    budget: Budget = 420.0,
    count_timeout: CountTimeout = 2.0,
    count_rows: CountRows = 50_000_000,
    connections: Connections = 2,
    arms_budget: ArmsBudget = 0.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> int:
    """Collect a workload and label it, for `pilotwire train --set`."""
    from rich.console import Console

    from pilotwire.cli import fail
    from training.errors import TrainingError

    with progress_bars(quiet=as_json) as tell:
        try:
            sources = sources_of(queries, pg_stat_statements, log, store, days, limit, kept=True)
            limits = limits_of(budget, count_timeout, count_rows, connections, arms_budget, label_dsn)
            summary, filled = interrupting.run(_fill(upstream, training_set, sources, limits, generate, seed, tell))
        except TrainingError as error:
            raise StartError(str(error)) from None
        except KeyboardInterrupt:
            return fail(interrupted(training_set), INTERRUPTED)
    if as_json:
        print(json.dumps(summary))
    else:
        _show(summary, filled, Console(highlight=False, soft_wrap=True))
    return 0


async def _fill(
    dsn: str, place: Path, sources: Sources, limits: Limits, generate: int | None, seed: int, tell: Any
) -> tuple[dict[str, Any], Filled]:
    from training.collect import fill
    from training.training_set import TrainingSet

    with TrainingSet(place) as kept:
        filled = await fill(kept, dsn, sources, limits, generate_count=generate, seed=seed, tell=tell)
        labels, generated = filled.labels, filled.generated_labels
        summary = {
            "training_set": str(place),
            "database": filled.snapshot.database,
            "statements": filled.statements,
            "statements_generated": filled.generated,
            "statements_given_values": filled.given_values,
            "new": dict(filled.told),
            "left_out": dict(filled.left_out),
            "skipped": [str(one) for one in filled.skipped],
            "labels": len(kept.rows),
            "lower_bounds": len(kept.bounds),
            "arm_times": len(kept.arms),
            "joins": labels.wanted,
            "joins_known": labels.known,
            "joins_counted": labels.counted,
            "joins_bounded": labels.bounded,
            "joins_timed_out": labels.timed_out,
            "joins_failed": labels.failed,
            "joins_left": labels.left,
            "generated_joins": generated.wanted,
            "generated_joins_left": generated.left,
            "statements_run": filled.explained.run,
            "statements_stopped": filled.explained.stopped,
            "labels_from_runs": filled.explained.labels,
            "labels_from_logs": filled.from_plans,
            "arms_measured": filled.arms.measured,
            "arms_known": filled.arms.known,
            "arms_skipped": dict(filled.arms.reasons),
            "arms_left": filled.arms.left,
            "seconds": labels.seconds + generated.seconds + filled.explained.seconds + filled.arms.seconds,
            "notes": filled.notes,
        }
    return summary, filled


def _show(summary: dict[str, Any], filled: Filled, console: Console) -> None:
    from rich.text import Text

    told = ", ".join(f"{count} new from {source}" for source, count in summary["new"].items() if count)
    console.print(f"statements {summary['statements']}{f', {told}' if told else ''}")
    if summary["statements_given_values"]:
        console.print(
            f"           {summary['statements_given_values']} with parameters, taken with a few likely values each"
        )
    if summary["statements_generated"]:
        console.print(f"           and {summary['statements_generated']} generated from the schema")
    for reason, count in sorted(summary["left_out"].items(), key=lambda item: -item[1])[:SHOWN_SKIPPED]:
        console.print(Text(f"           {count} left out: {reason}", style="dim"))
    skipped = [str(one) for one in filled.collected.skipped]
    for line in skipped[:SHOWN_SKIPPED]:
        console.print(Text(f"           {line}", style="dim"))
    if len(skipped) > SHOWN_SKIPPED:
        console.print(Text(f"           and {len(skipped) - SHOWN_SKIPPED} more", style="dim"))
    console.print(
        f"joins      {summary['joins']}: {summary['joins_known']} known, {summary['joins_counted']} counted, "
        f"{summary['joins_timed_out']} timed out, {summary['joins_bounded']} bounded, "
        f"{summary['joins_failed']} failed, {summary['joins_left']} left"
    )
    if summary["generated_joins"]:
        console.print(
            f"           and {summary['generated_joins']} of generated statements, "
            f"{summary['generated_joins_left']} left"
        )
    console.print(
        f"plans run  {summary['statements_run']} ({summary['statements_stopped']} stopped by their time limit), "
        f"{summary['labels_from_runs']} labels; {summary['labels_from_logs']} labels from logs"
    )
    if filled.arms.wanted:
        console.print(
            f"arms       {summary['arms_measured']} statements measured, {summary['arms_known']} known, "
            f"{filled.arms.skipped} skipped, {summary['arms_left']} left"
        )
    for note in summary["notes"]:
        console.print(Text("note: ", style="yellow").append(note, style="none"))
    console.print(
        f"{summary['training_set']} holds {summary['labels']} labels, {summary['lower_bounds']} lower bounds, "
        f"{summary['arm_times']} times of arms; {summary['seconds']:.0f} s"
    )

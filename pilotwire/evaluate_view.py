"""The tables that ``pilotwire evaluate`` ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from training.evaluate.results import Results

SHOWN = 40
LISTED = 5


def show(results: Results, console: Console) -> None:
    """The verdict, the comparison, the splits, what got slower, what was left out."""
    from rich.text import Text

    from training.evaluate.verdict import judge

    styles = {"good": "green", "bad": "red", "mixed": "yellow", "none": ""}
    verdict = judge(results)
    if results.queries:
        console.print(_compared(results))
    if results.splits:
        console.print(_splits(results))
    _slower(results, console)
    counts = f"{results.statements} statements read, {len(results.queries)} measured"
    for number, what in (
        (len(results.skipped), "skipped"),
        (len(results.failed), "refused by the server"),
        (results.unmeasured, "not run within the budget"),
    ):
        counts += f", {number} {what}" if number else ""
    console.print(counts)
    for line in [*results.failed[:LISTED], *results.skipped[:LISTED]]:
        console.print(Text(f"  {line}", style="dim"))
    if len(results.skipped) > LISTED:
        console.print(Text(f"  and {len(results.skipped) - LISTED} more skipped", style="dim"))
    for warning in results.warnings[:20]:
        console.print(Text("warning: ", style="yellow").append(warning, style="none"))
    console.print(Text(verdict.word, style=f"bold {styles[verdict.level]}".strip()))
    for sentence in verdict.sentences:
        console.print(Text(sentence))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _compared(results: Results) -> Table:
    from training.evaluate.report import contenders
    from training.evaluate.verdict import seconds

    table = _table(
        "against PostgreSQL as configured",
        (
            "",
            "statements",
            "before",
            "after",
            "total",
            "without two",
            "geo. mean",
            "slower",
            "> 2x",
            "worst",
            "timeouts",
        ),
    )
    for row in contenders(results):
        found = row["summary"]
        table.add_row(
            row["title"],
            str(found.statements),
            seconds(found.plain_ms),
            seconds(found.steered_ms),
            f"{found.total:.2f}x",
            f"{found.total_without_two:.2f}x",
            f"{found.geometric_mean:.2f}x",
            str(found.over_1_1),
            str(found.over_2),
            f"{found.worst:.2f}x",
            str(found.timeouts),
        )
    return table


def _splits(results: Results) -> Table:
    from training.evaluate.charts import number
    from training.evaluate.report import splits

    table = _table(
        "by what the model knew; q-errors PostgreSQL -> model",
        ("", "model", "statements", "total", "geo. mean", "slower", "worst", "sub-plans", "p50", "p90", "p99"),
    )
    for row in splits(results):
        split, found = row["split"], row["summary"]
        times = (
            [
                str(found.statements),
                f"{found.total:.2f}x",
                f"{found.geometric_mean:.2f}x",
                str(found.over_1_1),
                f"{found.worst:.2f}x",
            ]
            if found is not None
            else ["0", "-", "-", "-", "-"]
        )
        errors = [f"{number(native)} -> {number(model)}" for native, model in row["errors"].values()] or ["-"] * 3
        table.add_row(split.title.split(":")[0], split.kind, *times, str(row["sub_plans"]), *errors)
    return table


def _slower(results: Results, console: Console) -> None:
    """By name, the worst first, of every steering kind."""
    from training.evaluate.results import DEFAULT, PROXY

    rows = [(factor, query, kind) for kind in [*results.models, PROXY] for query, factor in results.regressions(kind)]
    if not rows:
        return
    table = _table("what got slower", ("statement", "times slower", "before ms", "after ms", "model"))
    for factor, query, kind in sorted(rows, key=lambda row: -row[0])[:SHOWN]:
        table.add_row(
            query.name, f"{factor:.2f}", f"{query.ms(DEFAULT) or 0:,.1f}", f"{query.ms(kind) or 0:,.1f}", kind
        )
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN} more")
